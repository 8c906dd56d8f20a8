"""Atomic orbitals on the grid, kept between the density and the potential matrix."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from pyscf import lib
from pyscf.dft import numint

KEPT_FRACTION = 0.2
"""Share of the memory limit that kept orbitals may take; the rest is evaluated a second time."""

_COMPONENTS = 4  # value and gradient

AOBlock = tuple[
    slice, Float[np.ndarray, "component grid ao"], UInt8[np.ndarray, "block shell"] | None
]
"""Points, orbitals with gradients there, and PySCF's screening of them (None: treat as dense)."""


class AOBlocks:
    """Blocks of grid points with the values and gradients of all atomic orbitals.

    It may be iterated repeatedly. As ``NumInt.block_loop`` of PySCF, but for the blocks that are
    kept, since a nonlocal functional needs the density everywhere before its potential anywhere.
    """

    def __init__(self, ni: numint.NumInt, mol: Any, grids: Any, max_memory: float):
        self._ni, self._mol, self._grids = ni, mol, grids
        num_points = len(grids.weights)
        bytes_per_point = 8 * _COMPONENTS * mol.nao
        block = int(max_memory * 1e6 / (bytes_per_point * 1.25 * numint.BLKSIZE))
        # Screening tables are indexed by whole blocks of BLKSIZE points.
        self._block_size = (
            max(4, min(block, num_points // numint.BLKSIZE + 1, 1200)) * numint.BLKSIZE
        )
        self._num_kept = int(
            KEPT_FRACTION * max_memory * 1e6 / (bytes_per_point * self._block_size)
        )
        self._kept: list[np.ndarray] = []
        screening = grids.non0tab if mol is grids.mol else None
        if screening is None:
            rows = -(-num_points // numint.BLKSIZE)
            screening = np.full((rows, mol.nbas), numint.NBINS + 1, dtype=np.uint8)
        self._screening = screening
        self._allow_sparse = (
            num_points % numint.ALIGNMENT_UNIT == 0 and mol.nao > numint.SWITCH_SIZE
        )

    def __iter__(self) -> Iterator[AOBlock]:
        buffer = None
        for index, (start, stop) in enumerate(
            lib.prange(0, len(self._grids.weights), self._block_size)
        ):
            mask = self._screening[start // numint.BLKSIZE :]
            if index < len(self._kept):
                ao = self._kept[index]
            else:
                keep = index < self._num_kept
                if keep or buffer is None:
                    buffer = numint._empty_aligned(_COMPONENTS * self._block_size * self._mol.nao)
                ao = self._ni.eval_ao(
                    self._mol,
                    self._grids.coords[start:stop],
                    deriv=1,
                    non0tab=mask,
                    cutoff=self._grids.cutoff,
                    out=buffer,
                )
                if keep:
                    self._kept.append(ao)
                    buffer = None
            dense = not self._allow_sparse and not numint._sparse_enough(mask)
            yield slice(start, stop), ao, None if dense else mask
