"""The Gaussian convolution on PySCF's Becke grids."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import gto
from pyscf.data.radii import COVALENT
from pyscf.dft import gen_grid
from scipy.spatial import cKDTree

from cider.features.atomic_shells import AngularGrid, AtomicGrid
from cider.features.molecular_convolution import MolecularConvolution, molecular_convolution
from cider.features.nldf import Nldf

_DIRECTION_TOLERANCE = 1e-6
"""Distance on the unit sphere within which a grid point is taken for a Lebedev direction."""


def becke_convolution(mol: Any, grids: Any, nldf: Nldf) -> MolecularConvolution:
    """The convolution that ``nldf`` needs on the built ``grids`` of a PySCF molecule.

    Raises ``ValueError`` for grids that are not made of whole atomic shells, such as those that
    lost points by their density.
    """
    owner = getattr(grids, "atm_idx", None)
    if owner is None or getattr(grids, "quadrature_weights", None) is None:
        raise ValueError(
            "nonlocal density features need PySCF's atom-centred grids, built by grids.build(): "
            f"{type(grids).__name__} has no atm_idx and quadrature_weights"
        )
    return molecular_convolution(
        np.asarray(grids.coords),
        np.asarray(grids.quadrature_weights),
        atomic_grids(mol, grids.coords, owner),
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    )


def atomic_grids(mol: Any, coords: np.ndarray, owner: np.ndarray) -> list[AtomicGrid]:
    """The shells of each atom that has grid points, of which ``owner`` is the number.

    Raises ``ValueError`` where these are no whole shells.
    """
    return [
        _atomic_grid(mol, atom, coords, np.flatnonzero(owner == atom), _lebedev_grids())
        for atom in range(mol.natm)
        if np.any(owner == atom)
    ]


@dataclass(frozen=True)
class _LebedevGrid(AngularGrid):
    """A Lebedev grid, with a search tree of its directions."""

    tree: cKDTree


@functools.cache
def _lebedev_grids() -> dict[int, _LebedevGrid]:
    """The Lebedev grids by their number of points."""
    grids = {}
    for degree, size in gen_grid.LEBEDEV_ORDER.items():
        if size > 1:
            directions = gen_grid.MakeAngularGrid(size)[:, :3].copy()
            grids[size] = _LebedevGrid(directions, degree, cKDTree(directions))
    return grids


def _atomic_grid(
    mol: Any, atom: int, coords: np.ndarray, members: np.ndarray, angular: dict[int, _LebedevGrid]
) -> AtomicGrid:
    center = mol.atom_coord(atom)
    offset = coords[members] - center
    distance = np.linalg.norm(offset, axis=1)
    order = np.argsort(distance, kind="stable")
    # Neighbouring shells differ by per cents, points of one shell by rounding.
    new_shell = np.diff(distance[order], prepend=-1.0) > 1e-5 * distance[order] + 1e-9
    shells = np.split(order, np.flatnonzero(new_shell)[1:])
    chosen, points = [], []
    for shell in shells:
        grid = angular.get(len(shell))
        if grid is not None:
            gap, direction = grid.tree.query(offset[shell] / distance[shell][:, None])
        if grid is None or gap.max() > _DIRECTION_TOLERANCE:
            # Points are dropped by Becke's weights; the sources are shared otherwise.
            raise ValueError(
                f"the grid of atom {atom} ({mol.atom_symbol(atom)}) is not made of whole Lebedev "
                "shells: nonlocal density features need PySCF's own atomic grids with all their "
                "points; set mf.small_rho_cutoff = 0. If the atoms moved since (the scanner of a "
                "copy moves the grids that it shares), call mf.grids.reset(mf.mol)"
            )
        index = np.empty(len(shell), dtype=int)
        index[direction] = members[shell]
        chosen.append(grid)
        points.append(index)
    radii = np.array([distance[shell].mean() for shell in shells])
    species = (mol.atom_symbol(atom), tuple(np.round(radii, 6)), tuple(g.degree for g in chosen))
    covalent_radius = float(COVALENT[min(gto.charge(mol.atom_symbol(atom)), len(COVALENT) - 1)])
    return AtomicGrid(species, center, covalent_radius, radii, tuple(chosen), tuple(points))
