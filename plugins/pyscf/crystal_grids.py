"""Atomic grids of PySCF's cells, and the Gaussian convolution on them."""

from typing import Any, ClassVar

import numpy as np
from pyscf.dft.gen_grid import arg_group_grids
from pyscf.pbc.dft.gen_grid import BeckeGrids

from cider.features.crystal_convolution import crystal_convolution, crystal_partition
from cider.features.nldf import Nldf
from cider.features.split_convolution import SplitConvolution
from cider.plugins.pyscf.grids import atomic_grids

NEGLIGIBLE_WEIGHT = 1e-11
"""Weight (bohr^3) of all points beyond an atom's outermost shell: less than 1e-9 Ha in a cell."""


class CrystalGrids(BeckeGrids):
    """``BeckeGrids`` in whole atomic shells, as nonlocal density features need them.

    Points, levels and radial grids are those of ``BeckeGrids``, without its cuts; the weights
    belong to ``crystal_partition``, in which all images of the atoms take part alike. So energies
    stay the same where the atoms are translated or the cell is repeated, and electrons are counted
    better: in LiH at level 3, 1e-4 are missing; with ``BeckeGrids`` there are 7e-3 too many.

    ``coords`` are in the cell about the origin, ``translations`` take them to the shells of their
    atoms ``atm_idx``.
    """

    _keys: ClassVar[set[str]] = {"translations"}

    translations: Any = None

    def build(self, cell: Any = None, with_non0tab: bool = False) -> "CrystalGrids":
        """As in PySCF; points are sorted by their place."""
        cell = self.cell if cell is None else cell
        lattice, centers = cell.lattice_vectors(), cell.atom_coords()
        settings = self.atom_grid, self.radi_method, self.level, self.prune
        shells = self.gen_atomic_grids(cell, *settings)
        own = [shells[cell.atom_symbol(atom)] for atom in range(cell.natm)]
        owner = np.repeat(np.arange(cell.natm), [len(volumes) for _, volumes in own])
        offsets, volumes = (np.concatenate(parts) for parts in zip(*own, strict=True))
        coords = centers[owner] + offsets
        translations = np.round(coords @ np.linalg.inv(lattice)) @ lattice
        coords -= translations
        shares = crystal_partition(lattice, coords, centers[owner] - translations, centers)
        self.coords, self.translations, self.atm_idx = coords, translations, owner
        self.quadrature_weights, self.weights = volumes, volumes * shares
        distance = np.linalg.norm(offsets, axis=1)
        counts = self.weights > NEGLIGIBLE_WEIGHT
        outermost = [distance[(owner == atom) & counts].max() for atom in range(cell.natm)]
        # Whole shells, whose radii differ by rounding.
        self._select_grids(distance < (1 + 1e-6) * np.array(outermost)[owner])
        self._select_grids(arg_group_grids(cell, self.coords))
        self.non0tab = self.make_mask(cell, self.coords) if with_non0tab else None
        return self

    def _select_grids(self, idx: np.ndarray) -> None:
        super()._select_grids(idx)
        self.translations = self.translations[idx]

    def reset(self, mol: Any = None) -> "CrystalGrids":
        """As in PySCF, for a changed cell too."""
        if mol is not None:
            self.cell = mol
        self.translations = None
        return super().reset(mol)


def in_whole_shells(grids: Any) -> Any:
    """``CrystalGrids`` with the settings of ``BeckeGrids``; any other grids as they are."""
    if type(grids) is not BeckeGrids:
        return grids
    whole = CrystalGrids(grids.cell)
    whole.__dict__.update(grids.__dict__)
    return whole.reset()


def crystal_grids_convolution(cell: Any, grids: CrystalGrids, nldf: Nldf) -> SplitConvolution:
    """The convolution that ``nldf`` needs on built grids.

    Raises ``ValueError`` where shells lost points by their density.
    """
    return crystal_convolution(
        cell.lattice_vectors(),
        grids.coords,
        cell.atom_coords()[grids.atm_idx] - grids.translations,
        grids.weights,
        atomic_grids(cell, grids.coords + grids.translations, grids.atm_idx),
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    )
