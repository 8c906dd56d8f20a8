"""Semilocal exchange enhancement factors that a learned part corrects."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.features.semilocal import reduced_gradient_squared

Baseline = Callable[[Float[Array, " grid"], Float[Array, " grid"]], Float[Array, " grid"]]


def lda(rho: Float[Array, " grid"], sigma: Float[Array, " grid"]) -> Float[Array, " grid"]:
    """The uniform gas: one everywhere."""
    return jnp.ones_like(rho)


def pbe(rho: Float[Array, " grid"], sigma: Float[Array, " grid"]) -> Float[Array, " grid"]:
    r"""PBE exchange, :math:`F = 1 + \kappa - \kappa/(1 + \mu p/\kappa)`.

    Ref: Perdew, Burke, Ernzerhof, PRL 77, 3865 (1996), Eq. 14.
    """
    kappa, mu = 0.804, 0.2195149727645171
    p = reduced_gradient_squared(rho, sigma)
    return 1 + kappa - kappa / (1 + mu * p / kappa)


BASELINES: dict[str, Baseline] = {"LDA_X": lda, "GGA_X_PBE": pbe}
"""Enhancement factors by their libxc names."""
