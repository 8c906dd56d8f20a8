"""Semilocal exchange enhancement factors that a learned part corrects."""

import math
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


def chachiyo(rho: Float[Array, " grid"], sigma: Float[Array, " grid"]) -> Float[Array, " grid"]:
    r"""Chachiyo exchange, :math:`1 + 8p/27` at small gradients.

    .. math:: F = \frac{3 x^2 + \pi^2 \ln(1 + x)}{(3 x + \pi^2) \ln(1 + x)}, \qquad
              x = \frac{4\pi}{9} s

    Ref: Chachiyo, Chachiyo, Molecules 25, 3485 (2020).
    """
    p = reduced_gradient_squared(rho, sigma)
    # Keeps the root differentiable at p = 0: what follows multiplies it by p.
    x = 4 * math.pi / 9 * jnp.sqrt(jnp.maximum(p, 1e-30))
    # The formula less one, without the cancellation of 1/ln(1 + x) - 1/x at small gradients.
    is_small = x < _SERIES_BOUND
    large = jnp.where(is_small, 1.0, x)
    series = jnp.polyval(jnp.asarray(_GREGORY), jnp.where(is_small, x, 0.0))
    difference = jnp.where(is_small, series, 1 / jnp.log1p(large) - 1 / large)
    return 1 + 3 * (4 * math.pi / 9) ** 2 * p * difference / (3 * x + math.pi**2)


_SERIES_BOUND = 0.02
_GREGORY = (275 / 24192, -863 / 60480, 3 / 160, -19 / 720, 1 / 24, -1 / 12, 1 / 2)
"""Series of 1/ln(1 + x) - 1/x, highest power first: Gregory's coefficients."""

BASELINES: dict[str, Baseline] = {
    "LDA_X": lda,
    "GGA_X_PBE": pbe,
    "GGA_X_CHACHIYO": chachiyo,
}
"""Enhancement factors by their libxc names."""
