"""What the benchmarks share: options, interleaved timing, checks before timing, tables."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from geometries import SYSTEMS

REFERENCES = ("PBE", "R2SCAN")
"""Semilocal functionals that every time and every memory is a ratio to."""

PACKAGES = ("cider-xc", "pyscf", "jax", "numpy")


def options(description: str, systems: Iterable[str] = SYSTEMS) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--systems", nargs="+", choices=systems, default=list(systems))
    parser.add_argument("--functional", default="pbe0-x-nldf", help="name or path of a file")
    parser.add_argument("--basis", default="def2-tzvp")
    parser.add_argument("--grid-level", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (5 or more)")
    parser.add_argument(
        "--output", type=Path, nargs="*", default=[], help="files to write: .md, .json"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one part, in a process of its own
    return parser


def learned(functional: str) -> Any:
    """The functional; pure exchange gets PBE correlation."""
    from cider import CiderFunctional

    own = CiderFunctional(functional)
    return own if own.libxc_terms else CiderFunctional(functional, correlation="GGA_C_PBE")


def without_learned_part(functional: Any) -> Any:
    """Its baseline alone, that of PBE being PBE, at the cost of the whole."""
    import equinox as eqx
    import numpy as np

    from cider import CiderFunctional

    nothing = eqx.tree_at(
        lambda x: x.terms[0].model.quadratic_form, functional.learned, replace_fn=np.zeros_like
    )
    return CiderFunctional(nothing, correlation="GGA_C_PBE")


def molecule(settings: argparse.Namespace, system: str) -> tuple[Any, Any, Any]:
    """``prepared`` for a system of that name."""
    return prepared(settings, SYSTEMS[system])


def prepared(settings: argparse.Namespace, atoms: str) -> tuple[Any, Any, Any]:
    """Molecule, built grids, and the density matrix of the superposed atoms."""
    from pyscf import dft, gto

    mol = gto.M(atom=atoms, basis=settings.basis, verbose=0)
    grids = dft.Grids(mol).set(level=settings.grid_level)
    grids.build(with_non0tab=True)
    return mol, grids, dft.RKS(mol).get_init_guess()


def check(functional: Any, mol: Any, grids: Any, dm: Any) -> list[str]:
    """Refuse to time what is wrong; what was checked, in words.

    Raises:
        RuntimeError: Two evaluations, or one spin and two, or no learned part and PBE, differ.
    """
    import numpy as np
    from pyscf import dft

    from cider.plugins.pyscf.numint import CiderNumInt

    integrator = CiderNumInt()
    _, energy, vmat = integrator.nr_rks(mol, grids, functional, dm)
    _, again, _ = integrator.nr_rks(mol, grids, functional, dm)
    _, by_spins, vmats = integrator.nr_uks(mol, grids, functional, np.stack([dm, dm]) / 2)
    checks = {
        "a second evaluation": abs(again - energy),
        "two spins": abs(by_spins - energy),
        "potential of two spins": abs(vmats[1] - vmat).max(),
    }
    if functional.learned.terms[0].baseline == "GGA_X_PBE":
        _, baseline, _ = integrator.nr_rks(mol, grids, without_learned_part(functional), dm)
        _, expected, _ = dft.numint.NumInt().nr_rks(mol, grids, "PBE", dm)
        checks["zero learned part against PBE"] = abs(baseline - expected)
    for name, difference in checks.items():
        if not difference < 1e-7 * abs(energy):
            raise RuntimeError(f"{name} differs by {difference:.2e}: not timed")
    return [f"{name} {difference:.1e} Ha" for name, difference in checks.items()]


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call; what it computes must be finished when it returns."""
    import jax

    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Times of each function, one after the other in every round, so that a slow moment of the
    machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def rows_of(times: Mapping[str, Sequence[float]], references: Sequence[str]) -> list[dict]:
    """Median, spread (least to largest), and the ratio to each reference."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        row = {
            "what": name,
            "median": medians[name],
            "least": min(values),
            "largest": max(values),
            "count": len(values),
        }
        for reference in references:
            semilocal = reference.split(":")[-1].strip()
            row[f"ratio to {semilocal}"] = medians[name] / medians[reference]
        rows.append(row)
    return rows


def result(system: str, mol: Any, grids: Any, checks: list[str], tables: dict) -> dict:
    """What a script measured on one system, for ``report``."""
    return {
        "system": system,
        "orbitals": mol.nao,
        "points": len(grids.weights),
        "checks": checks,
        "tables": tables,
    }


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if platform.system() == "Darwin" else 1024) / 1e9


def in_fresh_process(settings: argparse.Namespace, part: str, system: str) -> Any:
    """What this script's ``--measure part`` prints (JSON) for one system."""
    command = [sys.executable, sys.argv[0], "--measure", part, "--systems", system]
    for name in ("functional", "basis", "grid_level", "repeats"):
        command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    print(f"{system}: {part}", file=sys.stderr, flush=True)
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"{system}: {part} failed")
    return json.loads(result.stdout.splitlines()[-1])


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Device, threads and versions."""
    import jax
    from pyscf import lib

    return {
        "date": datetime.date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0],
        "OpenMP threads": lib.num_threads(),
        "JAX device": str(jax.devices()[0]),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def report(
    settings: argparse.Namespace,
    title: str,
    results: Sequence[Mapping],
    packages: Iterable[str] = PACKAGES,
) -> None:
    """Print the Markdown and write what ``--output`` asks for."""
    content = {
        "title": title,
        "functional": settings.functional,
        "basis": settings.basis,
        "grid level": settings.grid_level,
        "machine": machine(packages),
        "systems": list(results),
    }
    text = _markdown(content)
    print(text)
    for path in settings.output:
        if path.suffix == ".json":
            path.write_text(json.dumps(content, indent=1) + "\n")
        else:
            path.write_text(text + "\n")


def _markdown(content: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    lines = [
        f"# {content['title']}: {content['functional']}",
        "",
        f"{content['basis']}, grid level {content['grid level']}. {facts}.",
    ]
    for result in content["systems"]:
        size = f"{result['orbitals']} orbitals, {result['points']} points"
        lines += ["", f"## {result['system']} ({size})", ""]
        lines += [f"Checked: {'; '.join(result['checks'])}.", ""]
        for rows in result["tables"].values():
            lines += [*table(rows), ""]
    return "\n".join(lines).rstrip()


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    header = list(rows[0])
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    for row in rows:
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rows_in(results: Path) -> list[dict[str, Any]]:
    """What has been calculated: the lines of a file, none where there is no file yet."""
    lines = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]
