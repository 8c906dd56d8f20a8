"""Molecules with cheap but real densities, on PySCF grids."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.build import molecule
from pyscf import dft, gto

from cider.density import Density


def water_cluster(*sides: int) -> str:
    """Water molecules on a distorted cubic lattice, oxygen neighbours 2.8 Angstrom apart."""
    oxygen, hydrogen = np.zeros(3), np.array([[0.76, 0.0, 0.59], [-0.76, 0.0, 0.59]])
    rng = np.random.default_rng(8)
    lines = []
    for corner in np.ndindex(*sides):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        center = 2.8 * np.array(corner) + 0.1 * rng.normal(size=3)
        for symbol, position in (("O", oxygen), ("H", hydrogen[0]), ("H", hydrogen[1])):
            x, y, z = center + rotation @ position
            lines.append(f"{symbol} {x:.8f} {y:.8f} {z:.8f}")
    return "; ".join(lines)


def from_ase(name: str) -> str:
    """A molecule of the G2 set, as PySCF reads it."""
    atoms = molecule(name)
    rows = zip(atoms.symbols, atoms.positions, strict=True)
    return "; ".join(f"{s} {x:.8f} {y:.8f} {z:.8f}" for s, (x, y, z) in rows)


MOLECULES = {
    "water": dict(atom=from_ase("H2O")),
    "benzene": dict(atom=from_ase("C6H6")),
    "4 waters": dict(atom=water_cluster(2, 2, 1)),
    "8 waters": dict(atom=water_cluster(2, 2, 2)),
    "SO2": dict(atom=from_ase("SO2")),
    "zinc complex": dict(
        atom="Zn 0 0 0; N 0 0 2.0; H 0.95 0 2.35; H -0.475 0.8227 2.35; H -0.475 -0.8227 2.35",
        charge=2,
    ),
    "stretched F2": dict(atom="F 0 0 0; F 0 0 2.2"),
    "fluoride": dict(atom="F 0 0 0", charge=-1, basis="aug-cc-pvdz"),
}

DIFFUSE = {
    "calcium": dict(atom="Ca 0 0 0"),
    "lithium": dict(atom="Li 0 0 0; Li 0 0 2.67"),
    "hydride": dict(atom="H 0 0 0", charge=-1, basis="aug-cc-pvdz"),
}


@dataclass(frozen=True)
class MoleculeDensity:
    """A molecule, its density matrix, and how to get its density anywhere."""

    mol: Any
    dm: np.ndarray

    def on_grid(self, **settings: Any) -> tuple[Any, Density]:
        """Grids of the given settings (level, prune), and the closed-shell density there."""
        grids = dft.gen_grid.Grids(self.mol)
        for name, value in settings.items():
            setattr(grids, name, value)
        grids.build()
        return grids, self.at(grids.coords)

    def at(self, coords: np.ndarray) -> Density:
        """The closed-shell density at points (bohr)."""
        integrator = dft.numint.NumInt()
        parts = []
        for start in range(0, len(coords), 20000):
            ao = integrator.eval_ao(self.mol, coords[start : start + 20000], deriv=1)
            parts.append(
                integrator.eval_rho(self.mol, ao, self.dm, xctype="MGGA", hermi=1, with_lapl=False)
            )
        rho = np.hstack(parts)
        return Density(rho[None, 0], rho[None, 1:4], rho[None, 4])


@functools.cache
def molecule_density(name: str) -> MoleculeDensity:
    """A density near the self-consistent one: a few iterations of PBE on a coarse grid."""
    mol = gto.M(**{"basis": "def2-svp", "verbose": 0, **(MOLECULES | DIFFUSE)[name]})
    mf = dft.RKS(mol, xc="PBE").density_fit()
    mf.grids.level = 0
    mf.max_cycle = 4
    mf.kernel()
    return MoleculeDensity(mol, mf.make_rdm1())
