"""Loops compiled to machine code, which run outside of Python's interpreter lock."""

from collections.abc import Callable
from functools import partial
from typing import Any, no_type_check

import numba
import numpy as np
from jaxtyping import Float, Int


def compiled(function: Callable[..., Any], reorder_sums: bool = False) -> Callable[..., Any]:
    """Compile a function of arrays and numbers when it is first called, and keep that on disk.

    Put ``typing.no_type_check`` beneath: what is compiled cannot check its arguments. Sums over
    many numbers are several times faster where their order is free.
    """
    # A division by zero is no exception; a * b + c is one instruction.
    allowed = {"contract", "reassoc"} if reorder_sums else {"contract"}
    compiler = partial(numba.njit, nogil=True, error_model="numpy", fastmath=allowed)
    try:
        return compiler(cache=True)(function)
    except RuntimeError:  # no folder can be written to: compiled in each process
        return compiler()(function)


@compiled
@no_type_check
def add_rows(
    total: Float[np.ndarray, "row _"],
    rows: Int[np.ndarray, " some"],
    values: Float[np.ndarray, "some c"],
) -> None:
    """Add values to the first columns of some rows, each of which may come more than once."""
    for index in range(len(rows)):
        own = total[rows[index]]
        for column in range(values.shape[1]):
            own[column] += values[index, column]
