"""Lattice constants, bulk moduli and gaps of cubic solids in GPAW, beside experiment.

The reference is a JSON file with experimental lattice constants (angstrom) and bulk moduli (GPa),
without zero-point motion, in a list ``lattice58``, and gaps (eV) of experiment and of published
calculations in a list ``gaps``. What is in ``--results`` is not run again.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.eos import EquationOfState
from ase.units import GPa
from gpaw import GPAW, PW

from cider import CiderFunctional

SEMILOCAL = ("LDA", "PBE", "PBEsol", "SCAN")
"""GPAW's own functionals."""

SCALES = (1.03, 1.015, 1.0, 0.985, 0.97)
"""Lattice constants of the equation of state, beside that of experiment; the largest is first."""


class Solid(NamedTuple):
    """Its name in ``lattice58``, and what the mesh of k-points is multiplied with."""

    name: str
    density: int = 1


SOLIDS = {
    "C": Solid("C_diamond"),
    "Si": Solid("Si_diamond"),
    "SiC": Solid("SiC_b3"),
    "BN": Solid("BN_b3"),
    "BP": Solid("BP_b3"),
    "AlN": Solid("AlN_b3"),
    "GaAs": Solid("GaAs_b3"),
    "LiH": Solid("LiH_b1"),
    "LiF": Solid("LiF_b1"),
    "NaCl": Solid("NaCl_b1"),
    "MgO": Solid("MgO_b1"),
    "Al": Solid("Al_fcc", density=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path, help="JSON file of experimental values")
    parser.add_argument("--solids", nargs="+", choices=SOLIDS, default=list(SOLIDS))
    parser.add_argument("--functionals", nargs="+", default=["PBE", "pbe0-x-nldf"])
    parser.add_argument("--cutoff", type=float, default=600.0, help="of plane waves (eV)")
    parser.add_argument("--kpts", type=int, default=6, help="along each vector; metals: twice")
    parser.add_argument("--results", type=Path, default=Path("solids.jsonl"))
    settings = parser.parse_args()

    reference = json.loads(settings.reference.read_text())
    lattice = {row["name"]: row for row in reference["lattice58"]}
    gaps = {row["formula"]: row for row in reference["gaps"] if "structure" in row}
    known = {key_of(row): row for row in harness.rows_in(settings.results)}
    for solid in settings.solids:
        for functional in settings.functionals:
            own = {
                "solid": solid,
                "functional": functional,
                "cutoff": settings.cutoff,
                "kpts": SOLIDS[solid].density * settings.kpts,
            }
            if key_of(own) not in known:
                row = own | measured(own, lattice[SOLIDS[solid].name], solid in gaps)
                known[key_of(row)] = row
                with settings.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    report(settings, known, lattice, gaps)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What results depend on."""
    return row["solid"], row["functional"], row["cutoff"], row["kpts"]


def measured(own: dict[str, Any], experiment: dict[str, Any], has_gap: bool) -> dict[str, Any]:
    """Volumes (angstrom^3) and energies (eV), and the gap (eV) at the volume of experiment."""
    started = time.process_time()
    volumes, energies, gap, mesh = [], [], None, None
    for scale in SCALES:
        atoms = crystal(own, experiment, scale, mesh)
        volumes.append(atoms.get_volume())
        energies.append(float(atoms.get_potential_energy()))
        # Another grid at another volume would be another error of the energy.
        mesh = atoms.calc.get_number_of_grid_points()
        if has_gap and scale == 1.0:
            gap = fundamental_gap(atoms)
    row = {
        "volumes": volumes,
        "energies": energies,
        "gap": gap,
        "CPU seconds": time.process_time() - started,
    }
    print(own["solid"], own["functional"], json.dumps(row), file=sys.stderr, flush=True)
    return row


def properties(row: dict[str, Any], experiment: dict[str, Any]) -> dict[str, float]:
    """Lattice constant (angstrom), bulk modulus (GPa) and gap (eV)."""
    volumes = row["volumes"]
    scale, modulus = equilibrium(volumes, row["energies"], volumes[SCALES.index(1.0)])
    return {
        "lattice constant": experiment["a0"] * scale,
        "bulk modulus": modulus,
        "gap": row["gap"],
    }


def equilibrium(
    volumes: Sequence[float], energies: Sequence[float], beside: float
) -> tuple[float, float]:
    """Lattice constant over that of the volume ``beside`` (angstrom^3), bulk modulus (GPa)."""
    volume, _, modulus = EquationOfState(volumes, energies).fit()
    return (volume / beside) ** (1 / 3), modulus / GPa


def crystal(
    own: dict[str, Any], experiment: dict[str, Any], scale: float, mesh: np.ndarray | None
) -> Atoms:
    """Primitive cell, with its calculator, which chooses a grid where there is no ``mesh``."""
    name = own["functional"]
    atoms = bulk(experiment["symbols"], experiment["structure"], a=scale * experiment["a0"])
    atoms.calc = GPAW(
        mode=PW(own["cutoff"]),
        xc=name if name in SEMILOCAL else CiderFunctional(name),
        gpts=mesh,
        kpts={"size": (own["kpts"],) * 3, "gamma": True},
        occupations={"name": "fermi-dirac", "width": 0.05},
        convergence={"density": 1e-5},
        txt=None,
    )
    return atoms


def fundamental_gap(atoms: Atoms) -> float:
    """From eigenvalues (eV) between X, the zone's centre and L, at fixed density."""
    occupied = round(atoms.calc.get_number_of_electrons()) // 2
    path = atoms.cell.bandpath("XGL", npoints=31)
    bands = atoms.calc.fixed_density(
        kpts=path.kpts,
        symmetry="off",
        nbands=occupied + 4,
        convergence={"bands": occupied + 1},
        txt=None,
    )
    eigenvalues = np.array([bands.get_eigenvalues(kpt=k) for k in range(len(path.kpts))])
    return float(eigenvalues[:, occupied].min() - eigenvalues[:, occupied - 1].max())


def report(
    settings: argparse.Namespace,
    rows: dict[tuple[Any, ...], dict[str, Any]],
    lattice: dict[str, dict[str, Any]],
    gaps: dict[str, dict[str, Any]],
) -> None:
    """Tables beside experiment, and the mean errors of each functional."""
    facts = ", ".join(
        f"{key} {value}" for key, value in harness.machine((*harness.PACKAGES, "gpaw")).items()
    )
    print(f"PW({settings.cutoff:g}), {settings.kpts} k-points along each vector. {facts}.")
    published = ("pbe", "hse06", "pbe0")
    for quantity, digits in (("lattice constant", 3), ("bulk modulus", 1), ("gap", 2)):
        columns = ["experiment", *settings.functionals]
        columns += [f"{name} (published)" for name in published] if quantity == "gap" else []
        print(f"\n| {quantity} | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
        errors: dict[str, list[float]] = {name: [] for name in settings.functionals}
        for solid in settings.solids:
            kpts = SOLIDS[solid].density * settings.kpts
            experiment = lattice[SOLIDS[solid].name]
            values = [
                properties(rows[solid, name, settings.cutoff, kpts], experiment)[quantity]
                for name in settings.functionals
            ]
            expected = {
                "lattice constant": experiment["a0"],
                "bulk modulus": experiment["b0"],
                "gap": gaps.get(solid, {}).get("gap"),
            }[quantity]
            if expected is None:
                continue
            for own, value in zip(errors.values(), values, strict=True):
                own.append(value - expected)
            if quantity == "gap":
                values += [gaps[solid][name] for name in published]
            cells = [f"{value:.{digits}f}" for value in (expected, *values)]
            print(f"| {solid} | {' | '.join(cells)} |")
        for name, own in errors.items():
            print(
                f"\n{name}: mean error {np.mean(own):+.{digits}f}, mean absolute error "
                f"{np.mean(np.abs(own)):.{digits}f}"
            )


if __name__ == "__main__":
    main()
