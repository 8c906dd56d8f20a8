"""Molecules of the benchmarks, as PySCF reads them (angstrom)."""

import math

import numpy as np
from ase.build import molecule


def from_ase(name: str) -> str:
    """A molecule of the G2 set."""
    atoms = molecule(name)
    return _lines(zip(atoms.symbols, atoms.positions, strict=True))


def water_cluster(*shape: int) -> str:
    """Water molecules on a distorted cubic lattice, oxygen neighbours 2.8 angstrom apart."""
    water = np.array([[0.0, 0.0, 0.0], [0.76, 0.0, 0.59], [-0.76, 0.0, 0.59]])
    random = np.random.default_rng(8)
    rows = []
    for corner in np.ndindex(*shape):
        rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
        center = 2.8 * np.array(corner) + 0.1 * random.normal(size=3)
        rows += zip("OHH", center + water @ rotation.T, strict=True)
    return _lines(rows)


def alkane(num_carbons: int) -> str:
    """A straight chain, all trans, with ideal tetrahedral angles."""
    cc, ch, half_angle = 1.53, 1.09, math.acos(-1 / 3) / 2
    step = np.array([cc * math.sin(half_angle), cc * math.cos(half_angle)])
    carbons = np.array([[i * step[0], (i % 2) * step[1], 0.0] for i in range(num_carbons)])
    rows = [("C", carbon) for carbon in carbons]
    for i, carbon in enumerate(carbons):
        away = 1.0 if i % 2 else -1.0
        sideways = [0.0, away * math.cos(half_angle), math.sin(half_angle)]
        rows += [("H", carbon + ch * np.array(sideways) * [1, 1, side]) for side in (1, -1)]
    for end, inner in ((0, 1), (num_carbons - 1, num_carbons - 2)):
        # The hydrogen where the chain would go on.
        bond = (carbons[end] - carbons[inner]) * [1, -1, 1]
        rows.append(("H", carbons[end] + ch / cc * bond))
    return _lines(rows)


def _lines(rows) -> str:
    return "; ".join(f"{symbol} {x:.8f} {y:.8f} {z:.8f}" for symbol, (x, y, z) in rows)


SYSTEMS = {
    "H2O": from_ase("H2O"),
    "benzene": from_ase("C6H6"),
    "(H2O)8": water_cluster(2, 2, 2),
    "C10H22": alkane(10),
}
