"""Seconds of an SCF iteration and of the first cycle, and peak memory, beside PBE and r2SCAN."""

import argparse
import json
from collections.abc import Callable
from typing import Any

import harness

COULOMB = ("fitted", "exact")


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument(
        "--coulomb",
        nargs="+",
        choices=COULOMB,
        default=list(COULOMB),
        help="with density fitting, without, or both (default)",
    )
    settings = parser.parse_args()
    if settings.measure:
        print(json.dumps(measure(settings, settings.systems[0])))
        return
    harness.report(settings, "SCF", [run(settings, system) for system in settings.systems])


def run(settings: argparse.Namespace, system: str) -> dict:
    """All of one system, each part in a process of its own."""
    result: dict[str, Any] = {"tables": {}}
    for coulomb in settings.coulomb:
        part = harness.in_fresh_process(settings, coulomb, system)
        result = {**part, "tables": {**result["tables"], **part["tables"]}}
    peaks = {
        name: harness.in_fresh_process(settings, f"memory {name}", system)
        for name in ("learned", *harness.REFERENCES)
    }
    result["tables"]["memory"] = [
        {
            "fitted SCF, fresh process": name,
            "peak memory (GB)": peak,
            **{f"ratio to {r}": peak / peaks[r] for r in harness.REFERENCES},
        }
        for name, peak in peaks.items()
    ]
    return result


def measure(settings: argparse.Namespace, system: str) -> Any:
    """One part: iterations ``fitted`` or ``exact``, or the peak memory of one functional."""
    kind, _, name = settings.measure.partition(" ")
    functional = harness.learned(settings.functional)
    if kind == "memory":
        mol, grids, dm = harness.molecule(settings, system)
        step = iteration(mol, grids, dm, functional if name == "learned" else name, fitted=True)
        for _ in range(3):
            step()
        return harness.peak_memory()

    mol, grids, dm = harness.molecule(settings, system)
    # On its own grids: the map of the grid and the compilation belong to the first cycle.
    functionals = {"learned": functional, **{name: name for name in harness.REFERENCES}}
    steps: dict[str, Callable] = {}
    first = {}
    for label, own in functionals.items():
        row = f"iteration, {kind}: {label}"
        steps[row] = iteration(mol, grids, dm, own, fitted=kind == "fitted")
        first[f"first cycle, {kind}: {label}"] = [harness.seconds(steps[row])]
    checks = harness.check(functional, mol, grids, dm)
    times = harness.interleaved(steps, settings.repeats)
    references = [f"iteration, {kind}: {name}" for name in harness.REFERENCES]
    tables = {
        kind: harness.rows_of(times, references),
        f"{kind}, first": harness.rows_of(
            first, [f"first cycle, {kind}: {name}" for name in harness.REFERENCES]
        ),
    }
    return harness.result(system, mol, grids, checks, tables)


def iteration(mol: Any, grids: Any, dm: Any, functional: Any, fitted: bool) -> Callable[[], None]:
    """``steps`` of a functional on given grids."""
    from pyscf import dft

    mf = dft.RKS(mol, xc=functional)
    if fitted:
        mf = mf.density_fit()
    mf.grids = grids
    return steps(mf, dm)


def steps(mf: Any, dm: Any) -> Callable[[], None]:
    """A function that takes one SCF step after the other: potential, Fock matrix, orbitals.

    The first call prepares what a first cycle does: integrals, the map of the grid, compilation.
    """
    mol = mf.mol
    overlap, hcore, diis = mf.get_ovlp(), mf.get_hcore(), mf.DIIS(mf)
    state = {"dm": dm, "last": 0, "vhf": 0, "cycle": 0}

    def step() -> None:
        state["vhf"] = mf.get_veff(mol, state["dm"], state["last"], state["vhf"])
        fock = mf.get_fock(hcore, overlap, state["vhf"], state["dm"], state["cycle"], diis)
        energies, orbitals = mf.eig(fock, overlap)
        state["last"] = state["dm"]
        state["dm"] = mf.make_rdm1(orbitals, mf.get_occ(energies, orbitals))
        state["cycle"] += 1

    return step


if __name__ == "__main__":
    main()
