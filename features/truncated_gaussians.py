r"""Fourier transforms of Gaussians of unit integral that end at a radius.

A crystal with a mesh of k-points repeats itself after so many cells, and its density matrix with
it. What smooths the matrix must not reach the repetitions: it ends at the radius of the largest
sphere in their Wigner-Seitz cell, as the Coulomb potential does in calculations of exchange
(Spencer, Alavi, Phys. Rev. B 77, 193110 (2008)).
"""

from collections.abc import Iterator
from itertools import islice
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
    values, slopes = islice(_by_log_exponents(lengths, exponents, radius), 2)
    return Transforms(values, slopes)


class StrainedTransforms(NamedTuple):
    """Derivatives of transforms by the logarithms of the waves' lengths and of the radius."""

    by_lengths: Transforms
    by_radius: Transforms


def strained_gaussians(
    lengths: Float[np.ndarray, " wave"], exponents: Float[np.ndarray, " exponent"], radius: float
) -> StrainedTransforms:
    r"""Derivatives of ``truncated_gaussians`` by what a strain of the crystal changes.

    .. math:: \frac{\partial T}{\partial \ln R} = \frac{4 a^3}{\sqrt\pi} e^{-a^2}
              \frac{\sin kR}{kR}, \qquad
              \frac{\partial T}{\partial \ln k} = \frac{\partial T}{\partial \ln R}
              - 2 \frac{\partial T}{\partial \ln \beta}

    The latter because a and b are all that T depends on.
    """
    _, slopes, curvatures = _by_log_exponents(lengths, exponents, radius)
    a = np.sqrt(exponents) * radius
    values_by_radius = 4 * a**3 * _surfaces(lengths, a, radius)
    slopes_by_radius = (1.5 - a**2) * values_by_radius
    by_radius = Transforms(values_by_radius, slopes_by_radius)
    by_lengths = Transforms(values_by_radius - 2 * slopes, slopes_by_radius - 2 * curvatures)
    return StrainedTransforms(by_lengths, by_radius)


def _by_log_exponents(
    lengths: Float[np.ndarray, " wave"], exponents: Float[np.ndarray, " exponent"], radius: float
) -> Iterator[Float[np.ndarray, "wave exponent"]]:
    """Values, and their first and second derivatives by the logarithms of the exponents."""
    ends = np.sqrt(exponents) * radius < _ALL_INSIDE
    b = lengths[:, None] / (2 * np.sqrt(exponents))
    a, b_ends = np.sqrt(exponents[ends]) * radius, b[:, ends]
    edge, phase = np.exp(-(a**2)), np.exp(-1j * lengths[:, None] * radius)
    inside = np.exp(-(b**2))
    inside[:, ends] -= edge * (phase * wofz(-b_ends + 1j * a)).real
    surface = 2 * a * _surfaces(lengths, a, radius)
    values = inside.copy()
    values[:, ends] -= surface
    yield values
    cosine, sine = (edge / np.sqrt(np.pi) * part for part in (phase.real, -phase.imag))
    by_limits = a * cosine - b_ends * sine
    slopes = b**2 * inside
    slopes[:, ends] += by_limits - (0.5 - a**2) * surface
    yield slopes
    curvatures = b**2 * (b**2 - 1) * inside
    curvatures[:, ends] += (b_ends**2 - a**2) * by_limits + (a * cosine + b_ends * sine) / 2
    curvatures[:, ends] -= ((0.5 - a**2) ** 2 - a**2) * surface
    yield curvatures


def _surfaces(
    lengths: Float[np.ndarray, " wave"], a: Float[np.ndarray, " exponent"], radius: float
) -> Float[np.ndarray, "wave exponent"]:
    r""":math:`e^{-a^2} \sin(kR) / (\sqrt\pi\, kR)`."""
    return np.exp(-(a**2)) / np.sqrt(np.pi) * np.sinc(lengths[:, None] * radius / np.pi)
