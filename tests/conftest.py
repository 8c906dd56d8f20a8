"""All tests run with array shapes and types checked at run time, and no silent broadcasting."""

import atexit
import os
import shutil
import tempfile

# Molecules of the tests are tiny: threads only wait for each other. Before OpenMP is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# One process runs hundreds of tests: what they left behind is no lack of memory (MB).
os.environ.setdefault("PYSCF_MAX_MEMORY", "16000")

# The processes of one run, those that tests start among them, compile a program once for all.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cider-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import jaxtyping

# Before the first import of cider: it only sees modules that are imported later.
jaxtyping.install_import_hook("cider", "type_checker.check")

import pytest  # noqa: E402
from toy_functionals import toy_exchange, toy_nldf  # noqa: E402

from cider import CiderFunctional  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def toy_functional() -> CiderFunctional:
    """Meta-GGA and nonlocal features, with made-up weights and a libxc correlation."""
    return CiderFunctional(toy_exchange("MGGA", toy_nldf()), correlation="GGA_C_PBE")


@pytest.fixture
def x64():
    """Double precision for tests that call JAX themselves."""
    with jax.enable_x64(True):
        yield
