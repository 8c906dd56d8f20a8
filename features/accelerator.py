"""The GPU that JAX has, if any, and work in pieces that its memory holds."""

from collections.abc import Callable
from typing import TypeVar

import jax

_T = TypeVar("_T")


def has_accelerator() -> bool:
    """Whether JAX runs on a GPU; ``JAX_PLATFORMS=cpu`` in the environment keeps it from that."""
    return jax.default_backend() == "gpu"


def smaller_where_memory_is_short(run: Callable[[int], _T], largest: int) -> _T:
    """What ``run`` returns, given how much it does at a time: the largest number that is a power
    of two below ``largest`` and for which the memory of the device suffices.

    Raises what ``run`` raises for another reason, or where even one is too many.
    """
    together = largest
    while True:
        try:
            return jax.block_until_ready(run(together))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or together == 1:
                raise
        together //= 2
