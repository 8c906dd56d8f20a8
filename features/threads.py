"""Threads for work that runs outside of Python's interpreter lock: linear algebra, JAX."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


@contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as NumPy's linear algebra would take, which takes one in each of them.

    ``OMP_NUM_THREADS`` and the like hold as they do for NumPy. A matrix product of a few
    microseconds gains nothing from threads of its own, and waits for them on a busy machine.
    """
    libraries = _linear_algebra()
    number = max((library["num_threads"] for library in libraries.info()), default=1)
    with libraries.limit(limits=1), ThreadPoolExecutor(number) as pool:
        yield pool


@functools.cache
def _linear_algebra() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
