"""Cycles of the self-consistent field of hard systems with a learned functional, beside PBE.

With PySCF's own DIIS, from its own guess with a little noise. Systems that are in ``--results`` are
not run again.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
from geometries import from_ase

SHAKEN = 1e-6
"""Noise of the initial density matrices."""


class Hard(NamedTuple):
    """Atoms, as PySCF reads them (angstrom), charge and number of unpaired electrons."""

    atoms: str
    charge: int = 0
    spin: int = 0


def octahedron(metal: str, ligand: str, distance: float) -> str:
    """Six ligands along the axes."""
    axes = ("1 0 0", "-1 0 0", "0 1 0", "0 -1 0", "0 0 1", "0 0 -1")
    places = [" ".join(str(distance * int(x)) for x in axis.split()) for axis in axes]
    return "; ".join([f"{metal} 0 0 0", *(f"{ligand} {place}" for place in places)])


def tetrahedron(metal: str, ligand: str, distance: float) -> str:
    """Four ligands at every second corner of a cube."""
    corners = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
    places = [" ".join(f"{distance * x / 3**0.5:.6f}" for x in corner) for corner in corners]
    return "; ".join([f"{metal} 0 0 0", *(f"{ligand} {place}" for place in places)])


def diatomic(first: str, second: str, distance: float, charge: int = 0, spin: int = 0) -> Hard:
    """Two atoms at a distance."""
    return Hard(f"{first} 0 0 0; {second} 0 0 {distance}", charge, spin)


SYSTEMS = {
    "Sc": Hard("Sc", spin=1),
    "Ti": Hard("Ti", spin=2),
    "V": Hard("V", spin=3),
    "Cr": Hard("Cr", spin=6),
    "Mn": Hard("Mn", spin=5),
    "Fe": Hard("Fe", spin=4),
    "Co": Hard("Co", spin=3),
    "Ni": Hard("Ni", spin=2),
    "Cu": Hard("Cu", spin=1),
    "Zn": Hard("Zn"),
    "Ti3+": Hard("Ti", 3, 1),
    "V2+": Hard("V", 2, 3),
    "Cr3+": Hard("Cr", 3, 3),
    "Fe2+": Hard("Fe", 2, 4),
    "Fe3+": Hard("Fe", 3, 5),
    "Co2+": Hard("Co", 2, 3),
    "Ni2+": Hard("Ni", 2, 2),
    "Cu2+": Hard("Cu", 2, 1),
    "H2 stretched": diatomic("H", "H", 2.0),
    "N2 stretched": diatomic("N", "N", 1.8),
    "F2 stretched": diatomic("F", "F", 2.0),
    "LiF stretched": diatomic("Li", "F", 3.0),
    "HF stretched": diatomic("H", "F", 1.8),
    "F-": Hard("F", -1),
    "O-": Hard("O", -1, 1),
    "OH-": diatomic("O", "H", 0.97, -1),
    "CN-": diatomic("C", "N", 1.18, -1),
    "O2-": diatomic("O", "O", 1.35, -1, 1),
    "O2 singlet": diatomic("O", "O", 1.21),
    "C2": diatomic("C", "C", 1.24),
    "BN triplet": diatomic("B", "N", 1.33, spin=2),
    "O3": Hard(from_ase("O3")),
    "CH2 singlet": Hard(from_ase("CH2_s1A1d")),
    "CH2 triplet": Hard(from_ase("CH2_s3B1d"), spin=2),
    "FeO": diatomic("Fe", "O", 1.62, spin=4),
    "MnO": diatomic("Mn", "O", 1.65, spin=5),
    "CuF": diatomic("Cu", "F", 1.74),
    "TiCl4": Hard(tetrahedron("Ti", "Cl", 2.17)),
    "FeCl4-": Hard(tetrahedron("Fe", "Cl", 2.20), -1, 5),
    "CrF6 3-": Hard(octahedron("Cr", "F", 1.93), -3, 3),
}


def main() -> None:
    parser = harness.options(__doc__, SYSTEMS)
    parser.set_defaults(functional="x-nldf", basis="def2-svp")
    parser.add_argument("--starts", type=int, default=3, help="initial guesses of each system")
    parser.add_argument("--max-cycle", type=int, default=100)
    parser.add_argument("--results", type=Path, default=Path("convergence.jsonl"))
    settings = parser.parse_args()

    rows = harness.rows_in(settings.results)
    known = {row["system"]: row for row in rows if row["settings"] == compared_settings(settings)}
    for name in settings.systems:
        if name not in known:
            known[name] = compared(settings, name)
            with settings.results.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
    report(settings, [known[name] for name in settings.systems])


def compared_settings(settings: argparse.Namespace) -> dict[str, Any]:
    """What cycles depend on."""
    names = ("functional", "basis", "grid_level", "max_cycle", "starts")
    return {name: getattr(settings, name) for name in names}


def compared(settings: argparse.Namespace, name: str) -> dict[str, Any]:
    """Cycles from each start with PBE and with the functional; None where there is no end."""
    from pyscf import dft, gto

    system = SYSTEMS[name]
    mol = gto.M(
        atom=system.atoms,
        charge=system.charge,
        spin=system.spin,
        basis=settings.basis,
        verbose=0,
    )
    row: dict[str, Any] = {"system": name, "settings": compared_settings(settings)}
    for column, xc in (("PBE", "PBE"), (settings.functional, harness.learned(settings.functional))):
        row[column] = []
        for start in range(settings.starts):
            mf = dft.KS(mol, xc=xc).density_fit()
            mf.grids.level = settings.grid_level
            mf.max_cycle = settings.max_cycle
            mf.kernel(shaken(mf.get_init_guess(), start))
            row[column].append(mf.cycles if mf.converged else None)
    print(json.dumps(row), flush=True)
    return row


def shaken(dm: np.ndarray, start: int) -> np.ndarray:
    """An initial guess that prefers none of degenerate orbitals.

    Those of a round guess are chosen by rounding: atoms of open shells then take few cycles or many
    by luck, and others on another machine.
    """
    noise = np.random.default_rng(start).normal(scale=SHAKEN, size=dm.shape)
    return np.asarray(dm) + noise + np.swapaxes(noise, -1, -2)


def report(settings: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """A table, and how many systems converge: from most of the starts, in the median of cycles."""
    own = settings.functional
    facts = ", ".join(f"{key} {value}" for key, value in harness.machine().items())
    print(f"\n{settings.basis}, grid level {settings.grid_level}, density fitting. {facts}.\n")
    print(f"| | PBE | {own} | ratio of medians |\n| --- | --- | --- | --- |")
    for row in rows:
        ratio = f"{median(row[own]) / median(row['PBE']):.2f}" if solved(row, "PBE", own) else ""
        shown = [", ".join(str(n or "none") for n in row[column]) for column in ("PBE", own)]
        print(f"| {row['system']} | {shown[0]} | {shown[1]} | {ratio} |")
    both = [row for row in rows if solved(row, "PBE", own)]
    within = sum(median(row[own]) <= 1.3 * median(row["PBE"]) for row in both)
    print(
        f"\nOf {len(rows)} systems PBE converges {sum(solved(row, 'PBE') for row in rows)} from "
        f"most of {settings.starts} starts, {own} {len(both)} of these and "
        f"{sum(solved(row, own) for row in rows)} in all; within 1.3 x PBE's cycles: {within}."
    )


def solved(row: dict[str, Any], *columns: str) -> bool:
    """Whether most of the starts converge."""
    return all(np.isfinite(median(row[column])) for column in columns)


def median(cycles: list[int | None]) -> float:
    """Infinite where most of the starts do not converge."""
    return float(np.median([np.inf if number is None else number for number in cycles]))


if __name__ == "__main__":
    main()
