"""The ``cider`` command: run a molecule; show, list and convert functionals."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # --help and usage errors need not wait for JAX
    from cider.run import Calculation, Result

DEFAULT_FUNCTIONAL = "pbe0-x-nldf"

_FAILED, _BAD_INPUT = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 1 not converged, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (ValueError, NotImplementedError, OSError) as error:
        print(f"cider: {' '.join(str(error).split())}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print("cider: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cider", description="Machine-learned density functionals for PySCF."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="a self-consistent calculation of a molecule",
        description="A self-consistent calculation of a molecule, beside PBE and PBE0. Without a "
        "file: water with a ready-made functional.",
    )
    run.add_argument("file", nargs="?", help="XYZ file, positions in angstrom")
    run.add_argument(
        "--functional",
        default=DEFAULT_FUNCTIONAL,
        help="name (see cider list) or path (default: %(default)s)",
    )
    run.add_argument("--x-mix", type=float, help="fraction of learned exchange, e.g. 0.25")
    run.add_argument("--semilocal", help="functional that supplies the rest, e.g. PBE")
    run.add_argument("--correlation", help="libxc correlation beside pure exchange, e.g. GGA_C_PBE")
    run.add_argument("--basis", default="def2-svp", help="default: %(default)s")
    run.add_argument("--charge", type=int, default=0, help="in elementary charges (default: 0)")
    run.add_argument("--spin", type=int, default=0, help="unpaired electrons, 2S (default: 0)")
    run.add_argument("--grid-level", type=int, default=3, help="PySCF's, 0 to 9 (default: 3)")
    run.add_argument("--density-fit", action="store_true", help="density fitting of Coulomb terms")
    run.add_argument("--max-cycles", type=int, default=50, help="SCF iterations (default: 50)")
    run.add_argument("--alone", action="store_true", help="do not run PBE and PBE0 beside it")
    run.set_defaults(command=_run)

    info = commands.add_parser("info", help="features, constraints, training and errors of one")
    info.add_argument("functional", help="name (see cider list) or path")
    info.set_defaults(command=_info)

    convert = commands.add_parser(
        "convert",
        help="a published CIDER model as a functional file",
        description="Write model files of the package ciderpress as functional files. They are "
        "read as data: nothing in them is run.",
    )
    convert.add_argument(
        "model", nargs="?", help="YAML file of ciderpress, such as CIDER23X_NL_MGGA.yaml"
    )
    convert.add_argument("out", nargs="?", help="functional file to write, such as nl-mgga.h5")
    convert.add_argument(
        "--installed",
        nargs="?",
        const=".",
        metavar="OUTDIR",
        help="instead: all models of the installed ciderpress, into a folder (default: this one)",
    )
    convert.add_argument("--force", action="store_true", help="overwrite files that exist")
    convert.set_defaults(command=_convert)

    listing = commands.add_parser("list", help="the registered functionals")
    listing.set_defaults(command=_list)
    return parser


def _run(options: argparse.Namespace) -> int:
    from cider.functional import CiderFunctional
    from cider.registry import registered_names
    from cider.run import COMPARISON, Calculation, embedded_molecule, read_molecule, run

    functional = CiderFunctional(
        options.functional,
        x_mix=options.x_mix,
        semilocal=options.semilocal,
        correlation=options.correlation,
    )
    composed = (options.x_mix, options.semilocal, options.correlation) != (None, None, None)
    is_ready_made = options.functional in registered_names() and not composed
    if options.file is not None:
        molecule = read_molecule(options.file, options.charge, options.spin)
    elif options.charge or options.spin:
        raise ValueError("--charge and --spin belong to a molecule of your own: give an XYZ file")
    else:
        molecule = embedded_molecule()
    calculation = Calculation(
        molecule=molecule,
        functional=functional,
        title=options.functional if is_ready_made else functional.name,
        basis=options.basis,
        grid_level=options.grid_level,
        density_fit=options.density_fit,
        max_cycles=options.max_cycles,
        comparison=() if options.alone else COMPARISON,
    )
    with Console(stderr=True).status("starting") as status:
        results = run(calculation, lambda line: status.update(Text(line)))
    return _print_results(calculation, results)


def _print_results(calculation: "Calculation", results: "Sequence[Result]") -> int:
    molecule, learned = calculation.molecule, calculation.functional.learned.name
    rows = {
        "Total energy (Ha)": [f"{r.energy:.6f}" for r in results],
        "HOMO (eV)": [f"{r.homo:.3f}" for r in results],
        "LUMO (eV)": ["–" if r.lumo is None else f"{r.lumo:.3f}" for r in results],
        "Exact exchange (Ha)": [f"{r.exact_exchange:.5f}" for r in results],
        f"{learned} exchange (Ha)": [f"{r.learned_exchange:.5f}" for r in results],
        "  minus exact (mHa)": [
            f"{1e3 * (r.learned_exchange - r.exact_exchange):+.2f}" for r in results
        ],
        "PBE exchange (Ha)": [f"{r.pbe_exchange:.5f}" for r in results],
        "  minus exact (mHa) ": [
            f"{1e3 * (r.pbe_exchange - r.exact_exchange):+.2f}" for r in results
        ],
        "SCF iterations": [
            f"{r.iterations}" + ("" if r.converged else ", not converged") for r in results
        ],
        "Time (s)": [f"{r.seconds:.1f}" for r in results],
    }
    spin = f", {molecule.spin} unpaired" if molecule.spin else ""
    charge = f", charge {molecule.charge:+d}" if molecule.charge else ""
    fit = ", density fitting" if calculation.density_fit else ""
    table = Table(
        title=f"{molecule.name}{charge}{spin}: {calculation.basis}, grid level "
        f"{calculation.grid_level}{fit}",
        caption="Exchange energies are those of each column's own density matrix.",
    )
    table.add_column("")
    for result in results:
        table.add_column(Text(result.title), justify="right", overflow="fold")
    for label, cells in rows.items():
        table.add_row(Text(label.rstrip()), *cells)
    Console().print(table)
    failed = [result.title for result in results if not result.converged]
    if failed:
        print(
            f"cider: SCF of {', '.join(failed)} did not converge in {calculation.max_cycles} "
            "cycles; its numbers are not final. Try more --max-cycles, or check geometry, charge "
            "and spin.",
            file=sys.stderr,
        )
        return _FAILED
    return 0


def _info(options: argparse.Namespace) -> int:
    from cider.description import describe

    console = Console()
    for title, entries in describe(options.functional).items():
        console.print(Text(title, style="bold"))
        console.print(_entries(entries) if isinstance(entries, Mapping) else _rows(entries))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from cider.ciderpress_model import convert_ciderpress, convert_installed

    if options.installed is None:
        if options.out is None:
            raise ValueError("give a model file and the file to write, or --installed")
        convert_ciderpress(options.model, options.out, overwrite=options.force)
        print(_how_to_run(options.out))
        return 0
    if options.model is not None:
        raise ValueError(f"--installed converts all models: leave {options.model} out")
    failed = False
    for name, outcome in convert_installed(options.installed, overwrite=options.force).items():
        if isinstance(outcome, Exception):
            print(f"{name} is not converted: {outcome}", file=sys.stderr)
            failed = failed or not isinstance(outcome, NotImplementedError)
        else:
            print(_how_to_run(outcome))
    return _BAD_INPUT if failed else 0


def _how_to_run(path: str | os.PathLike[str]) -> str:
    run = f"cider run --functional {path}"
    return f"{path}: run it with {run}; exchange alone needs --correlation GGA_C_PBE or another"


def _list(options: argparse.Namespace) -> int:
    from cider.description import overview

    rows = overview()
    if not rows:
        raise ValueError("no functional is registered in this installation; reinstall cider")
    Console().print(_rows(rows))
    return 0


def _entries(entries: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for key, value in entries.items():
        grid.add_row(Text(f"  {key}"), Text(value))
    return grid


def _rows(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table()
    for header in rows[0]:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
