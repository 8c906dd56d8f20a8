"""Atomic orbitals on the grid, block by block."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int, Shaped
from pyscf import lib
from pyscf.dft import numint

from cider.features.threads import thread_pool
from cider.plugins.pyscf.learned_part import threads_of_pyscf

_ROWS_TOGETHER = 20
"""Most rows of PySCF's screening table (``BLKSIZE`` points each) in one block.

Few orbitals are active in small ones: in 16 molecules of water half of all, of 80 rows three
quarters; 10 rows are too few for benzene.
"""

_T = TypeVar("_T")


class AOBlock(NamedTuple):
    """Some points of the grid, and the orbitals that do not vanish on all of them."""

    points: slice
    active: Int[np.ndarray, " active"]
    """Which orbitals these are."""
    ao: Float[np.ndarray, "component active grid"]
    """Their values and derivatives, in PySCF's order. The next block overwrites them."""
    room: Float[np.ndarray, " any"]
    """For one product of the values or a gradient with something."""


def map_ao_blocks(
    function: Callable[[AOBlock], _T], mol: Any, grids: Any, max_memory: float, deriv: int = 1
) -> Iterator[_T]:
    """What a function makes of all orbitals on all points but those where every orbital vanishes.

    Their derivatives reach up to the order ``deriv``. The function is called in as many threads as
    PySCF takes, for different blocks, and works in one thread itself: products by NumPy take a
    third of the time of PySCF's in its own threads. Results come in the order of the blocks.

    A nonlocal functional needs the density everywhere before its potential anywhere, so that this
    runs twice. Keeping the values in between was slower: fresh memory for all points takes longer
    to touch than a few megabytes, used again and again, take to evaluate a second time.
    """
    local = threading.local()

    with threads_of_pyscf(), thread_pool() as pool:
        evaluator = _Evaluator(mol, grids, max_memory / lib.num_threads(), deriv)

        def run(row: int) -> list[_T]:
            with lib.with_omp_threads(1):
                if not hasattr(local, "buffers"):
                    local.buffers = evaluator.buffers()
                block = evaluator.block(row, *local.buffers)
                return [] if block is None else [function(block)]

        for result in pool.map(run, evaluator.rows):
            yield from result


def screening_table(mol: Any, grids: Any) -> Shaped[np.ndarray, "row shell"]:
    """PySCF's: zero where a shell vanishes on all of the ``BLKSIZE`` points of a row."""
    table = grids.non0tab if mol is grids.mol else None
    return grids.make_mask(mol, grids.coords) if table is None else table


class _Evaluator:
    """Evaluates the orbitals of rows of PySCF's screening table, as many as the memory allows."""

    def __init__(self, mol: Any, grids: Any, max_memory: float, deriv: int):
        self._mol, self._grids, self._deriv = mol, grids, deriv
        self._screening = screening_table(mol, grids)
        self._components = math.comb(deriv + 3, 3)
        self._row_size = mol.nao * numint.BLKSIZE
        rows_of_memory = 1e6 * max_memory / (8 * (self._components + 1) * self._row_size)
        self._rows_together = int(np.clip(rows_of_memory, 1, _ROWS_TOGETHER))

    @property
    def rows(self) -> range:
        """The first row of each block."""
        return range(0, len(self._screening), self._rows_together)

    def buffers(self) -> tuple[Float[np.ndarray, "component any"], Float[np.ndarray, " any"]]:
        """Memory for the orbitals of a block, and room for a product."""
        size = self._rows_together * self._row_size
        return numint._empty_aligned((self._components, size)), numint._empty_aligned(size)

    def block(
        self, row: int, buffer: Float[np.ndarray, "component any"], room: Float[np.ndarray, " any"]
    ) -> AOBlock | None:
        """That which begins with a row; None where every orbital vanishes."""
        mol, coords = self._mol, self._grids.coords
        rows = self._screening[row : row + self._rows_together]
        present = rows.any(axis=0)
        if not present.any():
            return None
        start = row * numint.BLKSIZE
        points = slice(start, min(start + len(rows) * numint.BLKSIZE, len(coords)))
        part = mol.copy(deep=False)
        part._bas = mol._bas[present]
        ao = numint.eval_ao(
            part,
            coords[points],
            deriv=self._deriv,
            non0tab=np.ascontiguousarray(rows[:, present]),
            out=buffer,
        )
        active = np.flatnonzero(np.repeat(present, np.diff(mol.ao_loc_nr())))
        by_component = ao if self._deriv else ao[None]
        return AOBlock(points, active, by_component.transpose(0, 2, 1), room)
