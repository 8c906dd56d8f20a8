"""Cycles of the self-consistent field of hard systems with a learned functional, beside PBE.

From PySCF's own start and with its own DIIS. Systems that are in ``--results`` are not run again.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import harness
from geometries import from_ase


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
    parser.add_argument("--max-cycle", type=int, default=100)
    parser.add_argument("--results", type=Path, default=Path("convergence.jsonl"))
    settings = parser.parse_args()

    lines = settings.results.read_text().splitlines() if settings.results.exists() else []
    rows = map(json.loads, lines)
    known = {row["system"]: row for row in rows if row["settings"] == compared_settings(settings)}
    for name in settings.systems:
        if name not in known:
            known[name] = compared(settings, name)
            with settings.results.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
    report(settings, [known[name] for name in settings.systems])


def compared_settings(settings: argparse.Namespace) -> dict[str, Any]:
    """What cycles depend on."""
    names = ("functional", "basis", "grid_level", "max_cycle")
    return {name: getattr(settings, name) for name in names}


def compared(settings: argparse.Namespace, name: str) -> dict[str, Any]:
    """Cycles with PBE and with the functional; None where there was no convergence."""
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
        mf = dft.KS(mol, xc=xc).density_fit()
        mf.grids.level = settings.grid_level
        mf.max_cycle = settings.max_cycle
        mf.kernel()
        row[column] = mf.cycles if mf.converged else None
    print(json.dumps(row), flush=True)
    return row


def report(settings: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """A table, and how many systems converge."""
    own = settings.functional
    facts = ", ".join(f"{key} {value}" for key, value in harness.machine().items())
    print(f"\n{settings.basis}, grid level {settings.grid_level}, density fitting. {facts}.\n")
    print(f"| | PBE | {own} | ratio |\n| --- | --- | --- | --- |")
    for row in rows:
        cycles = [row["PBE"], row[own]]
        ratio = "" if None in cycles else f"{cycles[1] / cycles[0]:.2f}"
        shown = ["not converged" if number is None else number for number in cycles]
        print(f"| {row['system']} | {shown[0]} | {shown[1]} | {ratio} |")
    solved = [row for row in rows if row["PBE"] is not None]
    also = [row for row in solved if row[own] is not None]
    within = sum(row[own] <= 1.3 * row["PBE"] for row in also)
    print(
        f"\nOf {len(rows)} systems PBE converges {len(solved)}, {own} {len(also)} of these and "
        f"{sum(row[own] is not None for row in rows)} in all; within 1.3 x PBE's cycles: {within}."
    )


if __name__ == "__main__":
    main()
