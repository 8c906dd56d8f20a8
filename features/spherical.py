"""Spherical harmonics and the radial kernels of a Gaussian in them."""

import functools
import math
from typing import no_type_check

import numpy as np
from jaxtyping import Float

from cider.features.compiled import compiled


def real_spherical_harmonics(
    direction: Float[np.ndarray, "grid xyz"], lmax: int
) -> Float[np.ndarray, "lm grid"]:
    r"""Real orthonormal spherical harmonics of unit vectors, index ``l² + l + m``."""
    harmonics = np.empty(((lmax + 1) ** 2, len(direction)))
    fill_harmonics(np.ascontiguousarray(direction.T), harmonics_recurrence(lmax), harmonics)
    return harmonics


@compiled
@no_type_check
def fill_harmonics(
    direction: Float[np.ndarray, "xyz grid"],
    recurrence: Float[np.ndarray, "3 l m"],
    harmonics: Float[np.ndarray, "lm grid"],
) -> None:
    """Write ``real_spherical_harmonics``, as polynomials in x, y, z: no pole on the axis."""
    x, y, z = direction[0], direction[1], direction[2]
    cosine, sine = np.ones(len(x)), np.zeros(len(x))
    for m in range(recurrence.shape[1]):
        for sign in (1, -1):
            if m == 0 and sign < 0:
                continue
            azimuth = cosine if sign > 0 else sine
            first = harmonics[m * m + m + sign * m]
            for n in range(len(x)):
                first[n] = recurrence[2, m, m] * azimuth[n]
            for l in range(m + 1, recurrence.shape[1]):
                a, b = recurrence[0, l, m], recurrence[1, l, m]
                row = harmonics[l * l + l + sign * m]
                above = harmonics[(l - 1) ** 2 + l - 1 + sign * m]
                if l == m + 1:
                    for n in range(len(x)):
                        row[n] = a * z[n] * above[n]
                    continue
                before = harmonics[(l - 2) ** 2 + l - 2 + sign * m]
                for n in range(len(x)):
                    row[n] = a * (z[n] * above[n] - b * before[n])
        for n in range(len(x)):
            rotated = x[n] * cosine[n] - y[n] * sine[n]
            sine[n] = x[n] * sine[n] + y[n] * cosine[n]
            cosine[n] = rotated


@compiled
@no_type_check
def fill_harmonics_gradients(
    direction: Float[np.ndarray, "xyz grid"],
    recurrence: Float[np.ndarray, "3 l m"],
    coefficients: Float[np.ndarray, "lm grid"],
    gradients: Float[np.ndarray, "xyz grid"],
) -> None:
    """Write gradients along the unit sphere of sums of harmonics, with coefficients of each point.

    With the azimuth (x + iy)^m the harmonics are polynomials in space; of their gradients, the
    part along the direction is taken away.
    """
    for n in range(direction.shape[1]):
        x, y, z = direction[:, n]
        cosine, sine, lower_cosine, lower_sine = 1.0, 0.0, 0.0, 0.0
        along_x, along_y, along_z = 0.0, 0.0, 0.0
        for m in range(recurrence.shape[1]):
            legendre, legendre_before, slope, slope_before = recurrence[2, m, m], 0.0, 0.0, 0.0
            even, even_slope, odd, odd_slope = 0.0, 0.0, 0.0, 0.0
            for l in range(m, recurrence.shape[1]):
                if l > m:
                    a, b = recurrence[0, l, m], recurrence[1, l, m]
                    above, above_slope = legendre, slope
                    legendre = a * (z * above - b * legendre_before)
                    slope = a * (above + z * above_slope - b * slope_before)
                    legendre_before, slope_before = above, above_slope
                even += coefficients[l * l + l + m, n] * legendre
                even_slope += coefficients[l * l + l + m, n] * slope
                if m > 0:
                    odd += coefficients[l * l + l - m, n] * legendre
                    odd_slope += coefficients[l * l + l - m, n] * slope
            along_x += m * (even * lower_cosine + odd * lower_sine)
            along_y += m * (odd * lower_cosine - even * lower_sine)
            along_z += even_slope * cosine + odd_slope * sine
            lower_cosine, lower_sine = cosine, sine
            cosine = x * lower_cosine - y * lower_sine
            sine = x * lower_sine + y * lower_cosine
        radial = x * along_x + y * along_y + z * along_z
        gradients[0, n] = along_x - x * radial
        gradients[1, n] = along_y - y * radial
        gradients[2, n] = along_z - z * radial


@functools.cache
def harmonics_recurrence(lmax: int) -> Float[np.ndarray, "3 l m"]:
    """Of normalised Legendre functions: two factors of the recurrence in l, and where it starts."""
    multiply, lower, diagonal = factors = np.zeros((3, lmax + 1, lmax + 1))
    legendre = 0.5 / math.sqrt(math.pi)
    for m in range(lmax + 1):
        legendre *= math.sqrt((2 * m + 1) / (2 * m)) if m else 1.0
        diagonal[m, m] = legendre * (math.sqrt(2) if m else 1.0)
        for l in range(m + 1, lmax + 1):
            multiply[l, m] = math.sqrt((4 * l * l - 1) / (l * l - m * m))
            lower[l, m] = math.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1))
    return factors


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
