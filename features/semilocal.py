r"""Semilocal descriptors of a closed-shell (or spin-scaled) density.

All are invariant under uniform scaling :math:`\rho(\mathbf r) \to \gamma^3 \rho(\gamma \mathbf r)`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.conventions import REDUCED_GRADIENT_PREFACTOR, THOMAS_FERMI_PREFACTOR

GRADIENT_SCALE = 0.25
"""The bounded gradient is zero where p is one over this."""

_LEAST_ALPHA = -0.01
"""Orbitals have alpha >= 0, and tau as well. Less comes from densities that are none of orbitals:
interpolated ones, pseudo densities in a sphere. From -0.5, models went far beyond what they were
trained on (1.3 mHa of the exchange of He in GPAW); at 0, rounding would decide over derivatives of
one orbital's density."""


def reduced_gradient_squared(
    rho: Float[Array, "*shape"], sigma: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Squared reduced gradient :math:`p = s^2`, dimensionless.

    .. math:: p = \sigma / \left(4 (3\pi^2)^{2/3} \rho^{8/3}\right)

    Grows without bound in density tails. Ref: Perdew, Burke, Ernzerhof, PRL 77, 3865 (1996).
    """
    return REDUCED_GRADIENT_PREFACTOR * sigma / rho ** (8 / 3)


def thomas_fermi_tau(rho: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Kinetic energy density of the uniform gas, :math:`\tau_0`, Ha/bohr^3."""
    return THOMAS_FERMI_PREFACTOR * rho ** (5 / 3)


def weizsaecker_tau(
    rho: Float[Array, "*shape"], sigma: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Kinetic energy density of one orbital, :math:`\tau_W = \sigma / 8\rho`, Ha/bohr^3."""
    return sigma / (8 * rho)


def isoorbital_indicator(
    rho: Float[Array, "*shape"], sigma: Float[Array, "*shape"], tau: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Iso-orbital indicator :math:`\alpha = (\tau - \tau_W)/\tau_0`, dimensionless.

    Zero for one orbital, one for the uniform gas. Ref: Sun et al., PRL 111, 106401 (2013).
    """
    alpha = (tau - weizsaecker_tau(rho, sigma)) / thomas_fermi_tau(rho)
    return _above_least(alpha)


def bounded_gradient(
    rho: Float[Array, "*shape"], sigma: Float[Array, "*shape"], scale: float = GRADIENT_SCALE
) -> Float[Array, "*shape"]:
    """Reduced gradient mapped to [-1, 1): ``(scale p - 1) / (scale p + 1)``."""
    p = scale * reduced_gradient_squared(rho, sigma)
    return 1 - 2 / (p + 1)


def bounded_isoorbital(
    rho: Float[Array, "*shape"], sigma: Float[Array, "*shape"], tau: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Iso-orbital indicator mapped to (-1, 1): ``(alpha - 1) / (alpha + 1)``."""
    return 1 - 2 / (isoorbital_indicator(rho, sigma, tau) + 1)


def bounded_kinetic_ratio(
    rho: Float[Array, "*shape"], sigma: Float[Array, "*shape"], tau: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Kinetic energy density mapped to [-1, 1): :math:`(\tau - \tau_0)/(\tau + \tau_0)`."""
    ratio = _above_least(tau / thomas_fermi_tau(rho))
    return 1 - 2 / (ratio + 1)


def _above_least(alpha: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Values above half of the least as they are; others go to it, without kinks in derivatives.

    Closer to zero, second derivatives would follow the rounding of one orbital's density.
    """
    half = _LEAST_ALPHA / 2
    return jnp.where(alpha < half, half + half * jnp.tanh(alpha / half - 1), alpha)
