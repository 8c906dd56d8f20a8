r"""Features of the smoothed density matrix (SDMX).

.. math:: \rho^0(R; \mathbf r) = \int h(u; R)\, n_1(\mathbf r', \mathbf r)\, d^3r', \qquad
          \rho^1(R; \mathbf r) = \int \nabla h(u; R)\, n_1(\mathbf r', \mathbf r)\, d^3r', \qquad
          u = |\mathbf r' - \mathbf r|

with the density matrix :math:`n_1` and the difference of two Gaussians

.. math:: h(u; R) = \left(\frac2\pi\right)^{3/2} \frac{4}{4 - \sqrt2}
          \frac{e^{-2 u^2/R^2} (1 - e^{-2 u^2/R^2})}{R^3}, \qquad \int h\, d^3u = 1.

The features are quadratic forms of these in the radius R, by family and j = 0, 1, 2:

.. math:: H^0_j = 4\pi \int R^{2-j} |\rho^0|^2 dR, \qquad
          H^{0d}_j = 4\pi \int R^{4-j} |\partial_R \rho^0|^2 dR, \qquad
          H^1_j = 4\pi \int R^{4-j} |\rho^1|^2 dR, \qquad
          H^{1d}_j = 4\pi \int R^{6-j} |\partial_R \rho^1|^2 dR.

Ref: Bystrom, Falletta, Kozinsky, J. Chem. Theory Comput. 20, 7516 (2024).
"""

import functools
import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LARGEST_RADIUS = 64.0
"""In bohr. Where a density matrix reaches farther, its features no longer scale exactly."""

NUM_RADII = 27
"""Radii of the quadrature, each smaller than the last by the root of two.

The second Gaussian of a radius is then the first of the next. Against finer quadratures, features
of the families 0 and 0d are off by up to 1e-5 within 2 bohr of an atom, those of 1 by 2e-5 and
those of 1d by 2e-4; in the uniform gas, those of 0d by 3e-4.
"""

_STEP = 0.5 * math.log(2)
_SECOND = 2**-1.5
"""Share of the second Gaussian in h, both of unit integral and before h is normalised."""


class SdmxFamily(NamedTuple):
    r"""What one family makes of the density matrix.

    The integrand by ln R is :math:`R^{p - j}`, with p the ``power``, times a square that goes as
    :math:`R^{2q}` for small radii, q the ``onset``, and as :math:`R^{-10}` for large ones.
    """

    of_gradient: bool
    of_slope: bool
    power: int
    onset: int


FAMILIES = {
    "0": SdmxFamily(False, False, 3, 0),
    "0d": SdmxFamily(False, True, 3, 2),
    "1": SdmxFamily(True, False, 5, 0),
    "1d": SdmxFamily(True, True, 5, 2),
}
"""The families by their names; the slope is :math:`R\\, \\partial_R`."""

_DECAY = 10


class Sdmx(eqx.Module):
    """Features, each a family and a power j, from the smoothed density matrix.

    Raises ``ValueError`` for a family or power that does not exist, and for a feature given twice.
    """

    terms: tuple[tuple[str, int], ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        for family, j in self.terms:
            if family not in FAMILIES or j not in (0, 1, 2):
                raise ValueError(
                    f"no SDMX feature of family {family!r} and j = {j}: families are "
                    f"{', '.join(FAMILIES)}, and j is 0, 1 or 2"
                )
        if not self.terms or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"SDMX needs one or more different features: got {self.terms}")

    @property
    def names(self) -> tuple[str, ...]:
        """One name per feature."""
        return tuple(f"sdmx_{family}[j={j}]" for family, j in self.terms)

    @property
    def usp(self) -> tuple[int, ...]:
        """Uniform scaling power of each feature H."""
        return tuple(3 + j for _, j in self.terms)

    @property
    def ueg(self) -> Float[np.ndarray, " feature"]:
        r"""Values of :math:`H_j / n^{1 + j/3}` in the uniform gas; zero without a direction."""
        return np.array([_uniform_gas(family, j) for family, j in self.terms])

    @property
    def reference(self) -> Float[np.ndarray, " feature"]:
        """Values of the same that set its scale: the uniform gas's, or one where that is zero."""
        return np.where(self.ueg > 0, self.ueg, 1.0)

    @property
    def exponents(self) -> Float[np.ndarray, " exponent"]:
        """Exponents (bohr^-2) of the Gaussians that smooth the density matrix, in rising order."""
        return 2.0 ** np.arange(NUM_RADII + 1) * 2 / LARGEST_RADIUS**2

    @property
    def kernels(self) -> Float[np.ndarray, "exponent radius"]:
        """How much of each Gaussian, of unit integral, is in h of each radius."""
        first, second = np.eye(NUM_RADII + 1)[:-1], np.eye(NUM_RADII + 1)[1:]
        return ((first - _SECOND * second) / (1 - _SECOND)).T

    @property
    def parts(self) -> tuple[int, ...]:
        """Components of the fields: of the smoothed density matrix, and of its slopes, if read.

        One, or four with the gradient.
        """
        families = [FAMILIES[family] for family, _ in self.terms]
        slopes = [family for family in families if family.of_slope]
        values = [family for family in families if not family.of_slope]
        parts = (values, slopes) if slopes else (values,)
        return tuple(4 if any(own.of_gradient for own in part) else 1 for part in parts)

    @property
    def forms(self) -> Float[np.ndarray, "feature component radius"]:
        """How much each feature has of the square of each component of the fields."""
        forms = np.zeros((len(self.terms), sum(self.parts), NUM_RADII))
        for form, (family, j) in zip(forms, self.terms, strict=True):
            start = self.parts[0] if FAMILIES[family].of_slope else 0
            components = slice(start + 1, start + 4) if FAMILIES[family].of_gradient else start
            form[components] = _weights(family, j)
        return forms

    def features(
        self, fields: Float[np.ndarray, "grid component radius"]
    ) -> Float[np.ndarray, "feature grid"]:
        r"""Features H (:math:`\mathrm{bohr}^{-(3+j)}`) of points.

        ``fields`` are the density matrix smoothed by h of each radius: the ``parts`` of it and of
        its derivative by the logarithms of the exponents, each the value, and its gradient by
        :math:`\mathbf r'`.
        """
        squares = np.square(fields).reshape(len(fields), -1)
        return self.forms.reshape(len(self.terms), -1) @ squares.T

    def derivative_by_fields(
        self,
        fields: Float[np.ndarray, "grid component radius"],
        by_features: Float[np.ndarray, "feature grid"],
    ) -> Float[np.ndarray, "grid component radius"]:
        """Derivative of an energy by the fields of points, from that by their features."""
        forms = self.forms.reshape(len(self.terms), -1)
        return 2 * fields * (by_features.T @ forms).reshape(fields.shape)

    def scaled(
        self, rho: Float[Array, " grid"], features: Float[Array, "feature grid"]
    ) -> Float[Array, "feature grid"]:
        """The same without dimension: over powers of the density, which is at least the cutoff."""
        powers = jnp.array([1 + j / 3 for _, j in self.terms])
        return features / rho[None] ** powers[:, None]


@functools.cache
def _weights(family: str, j: int) -> Float[np.ndarray, " radius"]:
    """Of the trapezoidal rule in ln R, with what lies beyond its ends added to these.

    A power law on a geometric grid is a geometric series.
    """
    own = FAMILIES[family]
    power = own.power - j
    radii = LARGEST_RADIUS * np.exp(-_STEP * np.arange(NUM_RADII))
    weights = 4 * math.pi * _STEP * radii**power
    if own.of_slope:
        weights *= 4  # R = (2/b)^(1/2), so that R d/dR is -2 d/dln b
    weights[0] /= 1 - math.exp(-_STEP * (_DECAY - power))
    weights[-1] /= 1 - math.exp(-_STEP * (power + 2 * own.onset))
    return weights


@functools.cache
def _uniform_gas(family: str, j: int) -> float:
    r"""By quadrature: in :math:`x = k_F R` the smoothed density matrix is that of h's transform.

    .. math:: \frac{\rho^0}{n} = 3 \int_0^1 t^2\, \hat h(t x)\, dt, \qquad
              \hat h(y) = \frac{e^{-y^2/8} - 2^{-3/2} e^{-y^2/16}}{1 - 2^{-3/2}}
    """
    own = FAMILIES[family]
    if own.of_gradient:
        return 0.0
    nodes, node_weights = np.polynomial.legendre.leggauss(80)
    t, t_weights = (nodes + 1) / 2, node_weights / 2
    log_x = np.linspace(math.log(1e-8), math.log(100), 2001)
    y = np.outer(np.exp(log_x), t)
    first, second = np.exp(-(y**2) / 8), _SECOND * np.exp(-(y**2) / 16)
    if own.of_slope:
        first, second = -(y**2) / 4 * first, -(y**2) / 8 * second
    smoothed = 3 * ((first - second) / (1 - _SECOND)) @ (t_weights * t**2)
    integral = np.trapezoid(np.exp((own.power - j) * log_x) * smoothed**2, log_x)
    return float(4 * math.pi * (3 * math.pi**2) ** (j / 3 - 1) * integral)
