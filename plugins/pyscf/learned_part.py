"""The learned part of a functional, on PySCF's arrays and with its threads."""

import numpy as np
from jaxtyping import Float
from pyscf import lib
from threadpoolctl import threadpool_limits

from cider.density import Density
from cider.functional import CiderFunctional
from cider.plugins.pyscf.libxc import num_ingredients


def threads_of_pyscf() -> threadpool_limits:
    """In this context the convolution takes as many threads as PySCF, and not more.

    It follows the linear algebra of NumPy, which PySCF does not limit.
    """
    return threadpool_limits(lib.num_threads(), user_api="blas")


def density_of(
    functional: CiderFunctional, rho: Float[np.ndarray, "spin ingredient grid"]
) -> Density:
    """What the learned part reads of rho, grad rho, tau and, in the last rows, SDMX features."""
    tau = rho[:, 4] if functional.needs_tau else None
    features = None
    if functional.reads_density_matrix:
        features = rho[:, num_ingredients(functional) :]
    return Density(rho[:, 0], rho[:, 1:4], tau, features)


def add_density(rho: Float[np.ndarray, "spin ingredient grid"], density: Density) -> None:
    """Add in place what a learned part contributes."""
    rho[:, 0] += density.rho
    rho[:, 1:4] += density.grad_rho
    if density.tau is not None:
        rho[:, 4] += density.tau
    if density.sdmx is not None:
        rho[:, -density.sdmx.shape[1] :] += density.sdmx
