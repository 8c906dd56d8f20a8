"""Surrogates of a hybrid functional beside the hybrid: atomisation energies and gaps of G2/97.

Self-consistent, each with its own density, Coulomb energies fitted, exact exchange not. Systems
that are in ``--results`` are not run again. By default the molecules that no shipped functional was
fitted to or tuned on.
"""

import argparse
import collections
import json
import statistics
from pathlib import Path
from typing import Any

import harness

from cider.conventions import KCAL_PER_MOL
from cider.training.systems import System, atoms, molecules

HELD_OUT = ("test", "ten")
EV = 27.211386


def main() -> None:
    systems = {s.name: s for s in (*atoms(), *molecules())}
    held_out = [s.name for s in molecules() if s.role in HELD_OUT]
    parser = harness.options(__doc__, systems)
    parser.set_defaults(systems=held_out, basis="def2-svp")
    parser.add_argument("--functionals", nargs="+", default=["pbe0-x-nldf", "pbe0-x-sdmx"])
    parser.add_argument("--hybrid", default="PBE0", help="what they stand for, to PySCF")
    parser.add_argument("--semilocal", default="PBE", help="shown beside them")
    parser.add_argument("--results", type=Path, default=Path("surrogates.jsonl"))
    settings = parser.parse_args()

    chosen = [systems[name] for name in settings.systems]
    elements = {symbol for s in chosen for symbol in s.symbols}
    needed = [a for a in atoms() if a.name in elements] + chosen
    columns = [settings.hybrid, settings.semilocal, *settings.functionals]
    rows = harness.rows_in(settings.results)
    known = {
        (row["system"], row["functional"]): row
        for row in rows
        if (row["basis"], row["grid level"]) == (settings.basis, settings.grid_level)
    }
    for system in needed:
        for functional in columns:
            if (system.name, functional) not in known:
                row = calculated(settings, system, functional)
                known[system.name, functional] = row
                with settings.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    report(settings, chosen, known)


def calculated(settings: argparse.Namespace, system: System, functional: str) -> dict[str, Any]:
    """Total energy (Ha) and the least gap of a spin (eV); None without convergence."""
    from pyscf import dft, gto

    mol = gto.M(
        atom=list(zip(system.symbols, system.positions, strict=True)),
        charge=system.charge,
        spin=system.spin,
        basis=settings.basis,
        verbose=0,
    )
    own = functional in settings.functionals
    mf = dft.KS(mol, xc=harness.learned(functional) if own else functional)
    mf = mf.density_fit(only_dfj=True)
    mf.grids.level = settings.grid_level
    mf.max_cycle = 100
    mf.kernel()
    orbitals, occupations = mf.mo_energy, mf.mo_occ
    if mol.spin == 0:
        orbitals, occupations = orbitals[None], occupations[None]
    gaps = [
        float(e[n == 0].min() - e[n > 0].max())
        for e, n in zip(orbitals, occupations, strict=True)
        if n.any() and not n.all()
    ]
    row = {
        "system": system.name,
        "functional": functional,
        "basis": settings.basis,
        "grid level": settings.grid_level,
        "energy": float(mf.e_tot) if mf.converged else None,
        "gap": EV * min(gaps) if gaps else None,
        "cycles": mf.cycles,
    }
    print(json.dumps(row), flush=True)
    return row


def report(
    settings: argparse.Namespace,
    systems: list[System],
    known: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """Mean and largest deviations from the hybrid."""
    facts = ", ".join(f"{key} {value}" for key, value in harness.machine().items())
    print(f"\n{settings.basis}, grid level {settings.grid_level}. {facts}.\n")
    print(f"Deviations from {settings.hybrid}: mean absolute, largest\n")
    print("| | Molecules | Atomisation energy (kcal/mol) | Gap (eV) |\n| --- | --- | --- | --- |")
    for functional in (settings.semilocal, *settings.functionals):
        atomisations, gaps = {}, {}
        for system in systems:
            ours, exact = known[system.name, functional], known[system.name, settings.hybrid]
            needed = collections.Counter([*system.symbols, system.name])
            energies = [
                [known[name, column]["energy"] for name in needed]
                for column in (functional, settings.hybrid)
            ]
            if None in (*energies[0], *energies[1]) or system.name in system.symbols:
                print(f"{system.name} with {functional}: left out, not converged or an atom")
                continue
            signs = [n if name != system.name else -1 for name, n in needed.items()]
            change = [sum(c * e for c, e in zip(signs, column, strict=True)) for column in energies]
            atomisations[system.name] = (change[0] - change[1]) * KCAL_PER_MOL
            gaps[system.name] = ours["gap"] - exact["gap"]
        cells = [shown(errors) for errors in (atomisations, gaps)]
        print(f"| {functional} | {len(gaps)} | {' | '.join(cells)} |")


def shown(errors: dict[str, float]) -> str:
    """Mean absolute and largest error, with the name of the system of the latter."""
    worst = max(errors, key=lambda name: abs(errors[name]))
    mean = statistics.fmean(map(abs, errors.values()))
    return f"{mean:.2f}, {errors[worst]:.2f} ({worst})"


if __name__ == "__main__":
    main()
