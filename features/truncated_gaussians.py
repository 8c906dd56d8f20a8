r"""Fourier transforms of Gaussians of unit integral that end at a radius.

A crystal with a mesh of k-points repeats itself after so many cells, and its density matrix with
it. What smooths the matrix must not reach the repetitions: it ends at the radius of the largest
sphere in their Wigner-Seitz cell, as the Coulomb potential does in calculations of exchange
(Spencer, Alavi, Phys. Rev. B 77, 193110 (2008)).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import wofz

_ALL_INSIDE = 7.0
"""Where a Gaussian has fallen to 1e-21, in units of its root exponent."""


class Transforms(NamedTuple):
    """Transforms of Gaussians, and their derivatives by the logarithms of the exponents."""

    values: Float[np.ndarray, "wave exponent"]
    slopes: Float[np.ndarray, "wave exponent"]


def truncated_gaussians(
    lengths: Float[np.ndarray, " wave"], exponents: Float[np.ndarray, " exponent"], radius: float
) -> Transforms:
    r"""Transforms at waves of given lengths (bohr^-1), of exponents (bohr^-2) and a radius (bohr).

    .. math:: \left(\frac\beta\pi\right)^{3/2} \int_{r < R} e^{-\beta r^2 - i \mathbf k \mathbf r}
              d^3r = e^{-b^2}\, \mathrm{Re}\,\mathrm{erf}(a + i b)
              - \frac{2 a}{\sqrt\pi} e^{-a^2} \frac{\sin kR}{kR},
              \qquad a = \sqrt\beta R, \quad b = \frac{k}{2 \sqrt\beta}
    """
    b = lengths[:, None] / (2 * np.sqrt(exponents))
    values = np.exp(-(b**2))
    slopes = b**2 * values
    ends = np.sqrt(exponents) * radius < _ALL_INSIDE
    a, b = np.sqrt(exponents[ends]) * radius, b[:, ends]
    angle, edge = lengths[:, None] * radius, np.exp(-(a**2))
    phase = np.exp(-1j * angle)
    outside = edge * (phase * wofz(-b + 1j * a)).real
    surface = 2 * a / np.sqrt(np.pi) * edge * np.sinc(angle / np.pi)
    by_limits = edge / np.sqrt(np.pi) * (phase * (a - 1j * b)).real
    values[:, ends] -= outside + surface
    slopes[:, ends] += by_limits - b**2 * outside - (0.5 - a**2) * surface
    return Transforms(values, slopes)
