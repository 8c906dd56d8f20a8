"""Atomic orbitals on the grid, block by block."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pyscf.dft import numint

_ROWS_TOGETHER = 160
"""Most rows of PySCF's screening table (``BLKSIZE`` points each) in one block."""


class AOBlock(NamedTuple):
    """Some points of the grid, and the orbitals that do not vanish on all of them."""

    points: slice
    active: Int[np.ndarray, " active"]
    """Which orbitals these are."""
    ao: Float[np.ndarray, "component active grid"]
    """Their values and derivatives, in PySCF's order. The next block overwrites them."""
    room: Float[np.ndarray, " any"]
    """For one product of the values or a gradient with something."""


def ao_blocks(mol: Any, grids: Any, max_memory: float, deriv: int = 1) -> Iterator[AOBlock]:
    """All orbitals on all points but those where every orbital vanishes.

    Their derivatives reach up to the order ``deriv``.

    A nonlocal functional needs the density everywhere before its potential anywhere, so that this
    runs twice. Keeping the values in between was slower: fresh memory for all points takes longer
    to touch than a few megabytes, used again and again, take to evaluate a second time.

    Work on a block belongs to PySCF's own threads (``lib.ddot``, not ``@``). NumPy's would wait
    for the same cores between two calls: products were up to ten times slower on a busy machine.
    """
    screening = grids.non0tab if mol is grids.mol else None
    if screening is None:
        screening = grids.make_mask(mol, grids.coords)
    row_size = mol.nao * numint.BLKSIZE
    components = math.comb(deriv + 3, 3)
    rows_of_memory = 1e6 * max_memory / (8 * (components + 1) * row_size)
    rows_together = int(np.clip(rows_of_memory, 1, _ROWS_TOGETHER))
    buffer = numint._empty_aligned((components, rows_together * row_size))
    room = numint._empty_aligned(rows_together * row_size)
    shell_sizes = np.diff(mol.ao_loc_nr())
    for row in range(0, len(screening), rows_together):
        rows = screening[row : row + rows_together]
        present = rows.any(axis=0)
        if not present.any():
            continue
        start = row * numint.BLKSIZE
        points = slice(start, min(start + len(rows) * numint.BLKSIZE, len(grids.coords)))
        part = mol.copy(deep=False)
        part._bas = mol._bas[present]
        ao = numint.eval_ao(
            part,
            grids.coords[points],
            deriv=deriv,
            non0tab=np.ascontiguousarray(rows[:, present]),
            out=buffer,
        )
        active = np.flatnonzero(np.repeat(present, shell_sizes))
        by_component = ao if deriv else ao[None]
        yield AOBlock(points, active, by_component.transpose(0, 2, 1), room)
