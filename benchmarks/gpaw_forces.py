"""Forces and stress of crystals in GPAW beside differences of energies.

One atom is displaced from its place and moved to both sides along a direction of no symmetry. The
cell is strained alike along all directions, with the grid and the cutoff following it, so that no
wave comes or goes. Some are sheared too, at the zone's centre alone and with the cutoff between the
lengths of two waves.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import harness
import numpy as np
from ase import Atoms
from ase.build import bulk, surface
from ase.spacegroup import crystal
from ase.units import Bohr, Hartree
from scipy.linalg import expm

from cider.features.waves import waves_of_grid

DISPLACED = np.array([0.05, -0.03, 0.08])
"""The last atom is this far off its place (angstrom)."""

DIRECTION = np.array([0.6, 0.0, 0.8])
STEP = 0.005
"""By which the last atom moves, along ``DIRECTION`` (angstrom)."""

STRAIN = 0.002

SHEAR = np.array([(0.6, 0.5, -0.3), (0.5, -0.8, 0.4), (-0.3, 0.4, 0.2)])
"""A strain that leaves the volume as it is.

It is taken times ``STRAIN``. Waves of the density come and go: with a quarter of that, PBE's energy
of MgO is off by 4e-4 eV/A^3.
"""

TIGHT = {"energy": 1e-7, "density": 1e-7, "eigenstates": 1e-9}


def titanium_dioxide() -> Atoms:
    """One layer of rutile, (110), with 6 angstrom of vacuum."""
    rutile = crystal(
        ["Ti", "O"],
        [(0, 0, 0), (0.3053, 0.3053, 0)],
        spacegroup=136,
        cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    )
    slab = surface(rutile, (1, 1, 0), layers=1, vacuum=3.0)
    slab.pbc = True
    return slab


def iron() -> Atoms:
    """Ferromagnetic, two atoms."""
    atoms = bulk("Fe", "bcc", 2.87, cubic=True)
    atoms.set_initial_magnetic_moments([2.2, 2.2])
    return atoms


SYSTEMS = {
    "Si": lambda: bulk("Si", "diamond", 5.43),
    "MgO": lambda: bulk("MgO", "rocksalt", 4.21),
    "LiF": lambda: bulk("LiF", "rocksalt", 4.03),
    "Al": lambda: bulk("Al", "fcc", 4.05, cubic=True),
    "Fe": iron,
    "TiO2": titanium_dioxide,
}
METALS = {"Al": 0.2, "Fe": 0.1}
"""Width of smearing (eV)."""

SHEARED = ("Si", "MgO")
"""In the others PBE's own energies jump, with waves of the density, or levels cross."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--functionals", nargs="+", default=["pbe0-x-nldf"])
    parser.add_argument("--cutoff", type=float, default=400.0, help="of plane waves (eV)")
    parser.add_argument("--kpts", type=int, default=2, help="along each vector")
    parser.add_argument("--results", type=Path, required=True, help="where to go on (.jsonl)")
    settings = parser.parse_args()

    done = {tuple(row["key"]): row for row in harness.rows_in(settings.results)}
    for system in settings.systems:
        for name in settings.functionals:
            key = (system, name, settings.cutoff, settings.kpts)
            if key not in done:
                done[key] = {"key": key, **compared(system, name, settings)}
                with settings.results.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
    packages = (*harness.PACKAGES, "gpaw")
    facts = ", ".join(f"{key} {value}" for key, value in harness.machine(packages).items())
    print(f"PW({settings.cutoff:g}), {settings.kpts} k-points along each vector. {facts}.\n")
    print(
        "| | | force (eV/Å) | off by | trace of the stress / 3 (eV/Å³) | off by "
        "| sheared (eV/Å³) | off by |"
    )
    print("|" + " --- |" * 8)
    for (system, name, *_), row in done.items():
        cells = [
            f"{row[key]:.6f} | {abs(row[key] - row[key + '_by_difference']):.1e}"
            if key in row
            else " | "
            for key in ("force", "pressure", "shear")
        ]
        print(f"| {system} | {name} | {' | '.join(cells)} |")


def compared(system: str, functional: str, settings: argparse.Namespace) -> dict[str, float]:
    """Force, a third of the trace of the stress, and some shears: of GPAW, and by energies."""

    def calculated(step: float = 0.0, scale: float = 1.0, **mesh: Any) -> Atoms:
        atoms = displaced(system)
        atoms.positions[-1] += step * DIRECTION
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        atoms.calc = calculator(system, functional, settings, settings.cutoff / scale**2, **mesh)
        atoms.get_potential_energy()
        return atoms

    atoms = calculated()
    mesh = atoms.calc.get_number_of_grid_points()
    energies = {
        kind: [
            calculated(**{kind: value}, gpts=mesh).get_potential_energy(force_consistent=True)
            for value in values
        ]
        for kind, values in (("step", (-STEP, STEP)), ("scale", (1 - STRAIN, 1 + STRAIN)))
    }
    slopes = {kind: after - before for kind, (before, after) in energies.items()}
    return {
        "force": float(atoms.get_forces()[-1] @ DIRECTION),
        "force_by_difference": -slopes["step"] / (2 * STEP),
        "pressure": float(atoms.get_stress()[:3].mean()),
        "pressure_by_difference": slopes["scale"] / (2 * STRAIN) / (3 * atoms.get_volume()),
        **(sheared(system, functional, settings) if system in SHEARED else {}),
    }


def sheared(system: str, functional: str, settings: argparse.Namespace) -> dict[str, float]:
    """Stress along ``SHEAR``, with the same waves in the strained cells."""
    cutoff = cutoff_between_waves(displaced(system), settings.cutoff)
    at_centre = argparse.Namespace(kpts=1)

    # Finer than by default, so that the grid holds the waves of strained cells too.
    spacing = 0.8 * np.pi / np.sqrt(8 * cutoff / Hartree) * Bohr
    mesh = np.ceil(displaced(system).cell.lengths() / spacing / 4).astype(int) * 4

    def calculated(strain: float = 0.0) -> Atoms:
        atoms = displaced(system)
        atoms.set_cell(atoms.cell @ expm(strain * SHEAR), scale_atoms=True)
        atoms.calc = calculator(system, functional, at_centre, cutoff, gpts=mesh)
        atoms.get_potential_energy()
        return atoms

    atoms = calculated()
    before, after = (
        calculated(sign * STRAIN).get_potential_energy(force_consistent=True) for sign in (-1, 1)
    )
    return {
        "shear": float(np.vdot(atoms.get_stress(voigt=False), SHEAR)),
        "shear_by_difference": (after - before) / (2 * STRAIN * atoms.get_volume()),
    }


def displaced(system: str) -> Atoms:
    """The crystal with its last atom off its place."""
    atoms = SYSTEMS[system]()
    atoms.positions[-1] += DISPLACED
    return atoms


def cutoff_between_waves(atoms: Atoms, cutoff: float) -> float:
    """The cutoff (eV) within 10 per cent that is farthest from the energy of any wave."""
    counts = [int(count) for count in 2 + 8 * atoms.cell.lengths()]
    vectors = waves_of_grid(atoms.cell.array / Bohr, counts).vectors
    energies = np.sort(np.sum(vectors**2, axis=1)) / 2 * Hartree
    near = energies[np.abs(energies / cutoff - 1) < 0.1]
    widest = int(np.argmax(np.diff(near)))
    return float(near[widest : widest + 2].mean())


def calculator(
    system: str, functional: str, settings: argparse.Namespace, cutoff: float, **more: Any
) -> Any:
    """With as many k-points as asked for, but one across a slab."""
    from gpaw import GPAW, PW

    from cider import CiderFunctional

    xc = functional if functional in ("PBE", "SCAN") else CiderFunctional(functional)
    width = METALS.get(system)
    kpts = (settings.kpts, settings.kpts, 1 if system == "TiO2" else settings.kpts)
    more |= {"occupations": {"name": "fermi-dirac", "width": width}} if width else {}
    return GPAW(mode=PW(cutoff), xc=xc, kpts=kpts, convergence=TIGHT, txt=None, **more)


if __name__ == "__main__":
    main()
