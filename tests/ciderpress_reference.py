"""Densities at which ciderpress was asked for reference figures, and points to compare at."""

import functools
from typing import Any

import numpy as np
from molecules import from_ase
from pyscf import dft, gto

THETA = (0.5, 0.01, 0.02)
FEATURES = ((0.25, 0.005, 0.01), (0.5, 0.01, 0.02), (1.0, 0.02, 0.04), (2.0, 0.04, 0.08))
"""Made-up parameters of exponents as ciderpress has them: a0, by the gradient, by tau."""

SYSTEMS = {
    "H2O": (from_ase("H2O"), 0),
    "O2": (from_ase("O2"), 2),
    "Fe": ("Fe", 4),
    "SO2": (from_ase("SO2"), 0),
    "benzene": (from_ase("C6H6"), 0),
}
"""Atoms, and the number of unpaired electrons."""


@functools.cache
def molecule(system: str) -> tuple[Any, np.ndarray, Any]:
    """A molecule, the density matrix of its superposed atoms, with a spin axis for open shells,
    and its grid of level 3."""
    atom, spin = SYSTEMS[system]
    mol = gto.M(atom=atom, spin=spin, basis="def2-svp", verbose=0)
    grids = dft.Grids(mol).set(level=3)
    grids.build(with_non0tab=True)
    return mol, dft.KS(mol).get_init_guess(key="minao"), grids


def spin_scaled(dm: np.ndarray) -> np.ndarray:
    """The density matrix of closed shells, or twice that of the first spin."""
    return dm if dm.ndim == 2 else 2 * dm[0]


def ingredients(mol: Any, dm: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """rho, its gradient, and tau: shape (5, grid)."""
    blocks = (coords[i : i + 20000] for i in range(0, len(coords), 20000))
    evaluate = dft.numint.NumInt()
    return np.hstack(
        [
            evaluate.eval_rho(
                mol, evaluate.eval_ao(mol, own, deriv=1), dm, xctype="MGGA", with_lapl=False
            )
            for own in blocks
        ]
    )


def sample(rho: np.ndarray) -> np.ndarray:
    """Some 300 points of a grid where the density (bohr^-3) carries energy."""
    chosen = np.flatnonzero(rho > 1e-3)
    return chosen[:: len(chosen) // 300]
