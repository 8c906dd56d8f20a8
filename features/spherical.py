"""Spherical harmonics and the radial kernels of a Gaussian in them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def real_spherical_harmonics(
    direction: Float[Array, "grid xyz"], lmax: int
) -> Float[Array, "lm grid"]:
    r"""Real orthonormal spherical harmonics of unit vectors, index ``l² + l + m``.

    Evaluated as polynomials in x, y, z, so that they have no pole on the axis. The recurrences run
    in scans: unrolled, the compiler would repeat them for every row of the result.
    """
    x, y, z = direction.T
    multiply, lower, diagonal = _legendre_coefficients(lmax, x.dtype)

    def azimuth(previous: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        cosine, sine = previous
        return (x * cosine - y * sine, x * sine + y * cosine), jnp.stack(previous)

    def legendre(
        previous: tuple[Array, Array], row: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        a, b, d = (c[:, None] for c in row)
        current = a * (z[None] * previous[0] - b * previous[1]) + d
        return (current, previous[0]), current

    _, azimuths = jax.lax.scan(azimuth, (jnp.ones_like(x), jnp.zeros_like(x)), None, lmax + 1)
    zero = jnp.zeros((lmax + 1, x.shape[0]), x.dtype)
    _, legendres = jax.lax.scan(legendre, (zero, zero), (multiply, lower, diagonal))
    l, m = np.array([(l, m) for l in range(lmax + 1) for m in range(-l, l + 1)]).T
    norm = np.where(m == 0, 1.0, math.sqrt(2)).astype(x.dtype)[:, None]
    return legendres[l, abs(m)] * (norm * azimuths[abs(m), (m < 0).astype(int)])


def _legendre_coefficients(lmax: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Recurrence of normalised Legendre functions without sin(theta)^m, as arrays [l, m]."""
    multiply, lower, diagonal = np.zeros((3, lmax + 1, lmax + 1))
    for m in range(lmax + 1):
        diagonal[m, m] = (
            diagonal[m - 1, m - 1] * math.sqrt((2 * m + 1) / (2 * m))
            if m
            else 0.5 / math.sqrt(math.pi)
        )
        for l in range(m + 1, lmax + 1):
            multiply[l, m] = math.sqrt((4 * l * l - 1) / (l * l - m * m))
            lower[l, m] = math.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1))
    return jnp.asarray(multiply, dtype), jnp.asarray(lower, dtype), jnp.asarray(diagonal, dtype)


def scaled_spherical_bessel(
    x: Float[np.ndarray, "*shape"], lmax: int
) -> Float[np.ndarray, "l *shape"]:
    r"""Modified spherical Bessel functions :math:`e^{-x} i_l(x)` for x >= 0, l = 0 to ``lmax``."""
    safe = np.maximum(x, 1e-8)  # i_l(x) ~ x^l / (2l+1)!! is below rounding there, but for l = 0
    zeroth = -np.expm1(-2 * safe) / (2 * safe)
    # Upward recurrence loses digits where l > x; downward (Miller) costs more steps where l < x.
    up = [zeroth, ((1 + np.exp(-2 * safe)) / 2 - zeroth) / safe]
    for l in range(1, lmax):
        up.append(up[l - 1] - (2 * l + 1) / safe * up[l])
    # Below the threshold the recurrence starts high enough for full precision.
    threshold = 2.0 * lmax + 10
    low = np.minimum(safe, threshold)
    start = int(lmax + 25 + threshold)
    down = [np.zeros_like(low)] * (lmax + 1)
    above, current = np.zeros_like(low), np.full_like(low, 1e-280)
    for l in range(start, 0, -1):
        above, current = current, above + (2 * l + 1) / low * current
        too_large = np.abs(current) > 1e200
        if np.any(too_large):
            factor = np.where(too_large, 1e-200, 1.0)
            above, current = above * factor, current * factor
            down = [row * factor for row in down]
        if l - 1 <= lmax:
            down[l - 1] = current
    ratio = zeroth / down[0]
    return np.stack(
        [
            np.where(safe < threshold, d * ratio, u)
            for d, u in zip(down, up[: lmax + 1], strict=True)
        ]
    )


def gaussian_radial_kernel(
    gamma: Float[np.ndarray, " gaussian"],
    r_out: Float[np.ndarray, " out"],
    r_in: Float[np.ndarray, " in"],
    lmax: int,
) -> Float[np.ndarray, "l gaussian out in"]:
    r"""Radial parts of a Gaussian between two points, dimensionless.

    .. math:: e^{-\gamma |\mathbf r - \mathbf r'|^2} = \sum_{lm} k_l(r, r')\,
              Y_{lm}(\hat r) Y_{lm}(\hat r'), \qquad
              k_l = 4\pi e^{-\gamma (r - r')^2}\, e^{-x} i_l(x), \quad x = 2\gamma r r'
    """
    g, r, s = gamma[:, None, None], r_out[:, None], r_in
    kernel = 4 * np.pi * np.exp(-g * (r - s) ** 2) * scaled_spherical_bessel(2 * g * r * s, lmax)
    # Numbers near the least that there is would make products with them twice as slow.
    return np.where(kernel < 1e-100, 0.0, kernel)
