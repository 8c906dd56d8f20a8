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
