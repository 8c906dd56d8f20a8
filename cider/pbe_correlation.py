r"""PBE correlation of a spin-polarised density, as libxc's ``GGA_C_PBE`` has it.

.. math:: \epsilon_c = \epsilon_c^{PW92}(r_s, \zeta) + H(r_s, \zeta, t)

Ref: Perdew, Burke, Ernzerhof, PRL 77, 3865 (1996), Eqs. 3-8; Perdew, Wang, PRB 45, 13244 (1992),
with the constants of libxc's ``LDA_C_PW_MOD``, which have more digits.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.conventions import DENSITY_CUTOFF

BETA = 0.06672455060314922
GAMMA = (1 - math.log(2)) / math.pi**2

_PARAMAGNETIC = (0.0310907, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294)
_FERROMAGNETIC = (0.01554535, 0.20548, 14.1189, 6.1977, 3.3662, 0.62517)
_STIFFNESS = (0.0168869, 0.11125, 10.357, 3.6231, 0.88026, 0.49671)
"""A, alpha_1, beta_1 to beta_4 of the function G (Table I of Perdew and Wang)."""

_CURVATURE = 1.709920934161365617563962776245
"""Second derivative of the spin interpolation f at zero polarisation, 8/9 / (2^(4/3) - 2)."""


def pbe_correlation(
    rho: Float[Array, "2 grid"], sigma: Float[Array, " grid"]
) -> Float[Array, " grid"]:
    """Correlation energy per volume, Ha/bohr^3; ``sigma`` is that of the total density.

    A spin density below the cutoff is taken as the cutoff, as in libxc, where the derivative by
    it, which diverges as its power -1/3, is finite.
    """
    # The derivative is that at the cutoff, not zero as a maximum's: an empty spin has a potential.
    rho = rho + jax.lax.stop_gradient(jnp.maximum(rho, DENSITY_CUTOFF) - rho)
    total = rho[0] + rho[1]
    fraction = rho / total[None]
    rs = (3 / (4 * math.pi * total)) ** (1 / 3)
    phi = 0.5 * jnp.sum((2 * fraction) ** (2 / 3), axis=0)
    scale = GAMMA * phi**3
    # t = |grad n| / (2 phi k_s n), with k_s^2 = 4 k_F / pi
    k_f = (3 * math.pi**2 * total) ** (1 / 3)
    t2 = math.pi * sigma / (16 * k_f * (phi * total) ** 2)
    damping = jnp.expm1(uniform_gas_correlation(rs, fraction) / scale)
    # Eqs. 7 and 8 in a form without their cancellation at large gradients, where H approaches
    # -epsilon_c: exp((epsilon_c + H)/scale) - 1 = (exp(epsilon_c/scale) - 1)/(1 + A t2 + A^2 t2^2)
    at2 = -BETA / GAMMA * (1 + damping) / damping * t2
    return total * scale * jnp.log1p(damping / (1 + at2 + at2**2))


def uniform_gas_correlation(
    rs: Float[Array, " grid"], fraction: Float[Array, "2 grid"]
) -> Float[Array, " grid"]:
    """Correlation energy per electron (Ha) of the uniform gas, with fractions of the two spins."""
    f = (jnp.sum((2 * fraction) ** (4 / 3), axis=0) - 2) / (2 ** (4 / 3) - 2)
    zeta4 = (fraction[0] - fraction[1]) ** 4
    paramagnetic, ferromagnetic = _g(rs, *_PARAMAGNETIC), _g(rs, *_FERROMAGNETIC)
    stiffness = -_g(rs, *_STIFFNESS) / _CURVATURE
    difference = ferromagnetic - paramagnetic
    return paramagnetic + stiffness * f * (1 - zeta4) + difference * f * zeta4


def _g(
    rs: Float[Array, " grid"], a: float, a1: float, b1: float, b2: float, b3: float, b4: float
) -> Float[Array, " grid"]:
    """Eq. 10 of Perdew and Wang."""
    root = jnp.sqrt(rs)
    polynomial = root * (b1 + root * (b2 + root * (b3 + root * b4)))
    return -2 * a * (1 + a1 * rs) * jnp.log1p(1 / (2 * a * polynomial))
