"""Grid points in blocks of one size, so that one compiled program fits all, in bounded memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array

from cider.features.accelerator import has_accelerator

BLOCK = 4096
"""Grid points that are evaluated together: as many as stay in a processor's cache."""

GPU_BLOCK = 65536
"""The same on a GPU, which needs many to be busy: some hundred MB."""

_Arrays = TypeVar("_Arrays")
"""One array, several, or none (None): what holds for the points of the grid."""


def blocks_of(size: int) -> Iterator[slice]:
    """All of so many points, some at a time."""
    block = _block_size()
    return (slice(start, min(start + block, size)) for start in range(0, size, block))


def take_block(arrays: _Arrays, points: slice, axis: int = 0) -> _Arrays:
    """The points along ``axis``, filled up with zeros to the size of all blocks."""

    def part(array: np.ndarray) -> np.ndarray:
        own = _along(array, points, axis)
        widths = [(0, 0)] * own.ndim
        widths[axis] = (0, _block_size() - own.shape[axis])
        return np.pad(own, widths) if widths[axis] != (0, 0) else own

    return jax.tree.map(part, arrays)


def add_block(total: _Arrays, points: slice, part: _Arrays, axis: int = 0) -> None:
    """Add what a block gave, without its filling, in place: ``total`` is an array of ours."""

    def add(array: np.ndarray, part: Array) -> None:
        own = _along(array, points, axis)
        own += _along(np.asarray(part), slice(own.shape[axis]), axis)

    jax.tree.map(add, total, part)


def by_blocks(function: Callable[[slice], Array], size: int, axis: int = 0) -> np.ndarray:
    """What a function gives for the points of each block, without its filling, along ``axis``."""
    parts = [np.asarray(function(points)) for points in blocks_of(size)]
    return _along(np.concatenate(parts, axis), slice(size), axis)


def _block_size() -> int:
    return GPU_BLOCK if has_accelerator() else BLOCK


def _along(array: np.ndarray, points: slice, axis: int) -> np.ndarray:
    """A view of some points."""
    return array[points] if axis == 0 else array[..., points]
