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
          H^{1d}_j = 4\pi \int R^{6-j} |\partial_R \rho^1|^2 dR, \qquad
          H^{1rd}_j = 4\pi \int R^{4-j} |\partial_R (R \rho^1)|^2 dR.

Ref: Bystrom, Falletta, Kozinsky, J. Chem. Theory Comput. 20, 7516 (2024).
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LARGEST_RADIUS = 64.0
"""In bohr. Where a density matrix reaches farther, its features no longer scale exactly."""


@dataclasses.dataclass(frozen=True)
class SdmxRadii:
    """Radii of the quadrature, from the largest down: how many, and how many in each octave.

    Against converged quadratures, features of two radii in an octave of the families 0 and 0d are
    off by up to 1e-5 within 2 bohr of an atom, those of 1 by 2e-5, those of 1d by 2e-4 and those of
    1rd by 4e-4; in the uniform gas, those of 0d by 3e-4. The smallest radius is for the nuclei,
    whose orbitals are sharp: with 27 radii, features of j = 2 are off by 0.01 at oxygen and 0.1 at
    sulphur. 54 radii, three in an octave, leave 2e-5 of all, also there.
    """

    count: int = 35
    per_octave: int = 2

    @property
    def step(self) -> float:
        """Of the logarithms of the radii."""
        return math.log(2) / self.per_octave

    @property
    def values(self) -> Float[np.ndarray, " radius"]:
        """The radii (bohr), in falling order."""
        return LARGEST_RADIUS * np.exp(-self.step * np.arange(self.count))


_SECOND = 2**-1.5
"""Share of the second Gaussian in h, both of unit integral and before h is normalised."""


class SdmxFamily(NamedTuple):
    r"""What one family makes of the density matrix, or of its gradient, smoothed to f(R).

    .. math:: 4\pi \int R^{p-j} \left|v f + s R\,\partial_R f\right|^2 d\ln R
              = 4\pi \int R^{p-j} \left[\big(v^2 - (p - j) v s\big) |f|^2
              + s^2 |R\,\partial_R f|^2\right] d\ln R

    with v the ``value``, s the ``slope``, and p three, or five of the gradient.
    """

    of_gradient: bool
    value: int
    slope: int

    @property
    def power(self) -> int:
        """The power p."""
        return 5 if self.of_gradient else 3

    def squares(self, j: int) -> tuple[int, int]:
        """How much of the squared value and of the squared slope is in a feature."""
        return self.value**2 - (self.power - j) * self.value * self.slope, self.slope**2


FAMILIES = {
    "0": SdmxFamily(False, 1, 0),
    "0d": SdmxFamily(False, 0, 1),
    "1": SdmxFamily(True, 1, 0),
    "1d": SdmxFamily(True, 0, 1),
    "1rd": SdmxFamily(True, 1, 1),
}
"""The families by their names."""

_DECAY = 10
"""Squares of values and slopes go as R to minus this for large radii."""

_SLOPE_ONSET = 4
"""Squares of slopes go as this power of R for small radii, those of values are constant."""


class Sdmx(eqx.Module):
    """Features, each a family and a power j, from the smoothed density matrix.

    Raises ``ValueError`` for a family or power that does not exist, for a feature given twice, and
    for a number of radii beyond all sense.
    """

    terms: tuple[tuple[str, int], ...] = eqx.field(static=True)
    radii: SdmxRadii = eqx.field(static=True, default=SdmxRadii())

    def __check_init__(self) -> None:
        for family, j in self.terms:
            if family not in FAMILIES or j not in (0, 1, 2):
                raise ValueError(
                    f"no SDMX feature of family {family!r} and j = {j}: families are "
                    f"{', '.join(FAMILIES)}, and j is 0, 1 or 2"
                )
        if not (2 <= self.radii.count <= 100 and 1 <= self.radii.per_octave <= 10):
            raise ValueError(
                f"SDMX features need 2 to 100 radii, 1 to 10 in each octave: got {self.radii}"
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
        return 2.0 ** (self._doublings / self.radii.per_octave) * 2 / LARGEST_RADIUS**2

    @property
    def kernels(self) -> Float[np.ndarray, "exponent radius"]:
        """How much of each Gaussian, of unit integral, is in h of each radius."""
        kernels = np.zeros((len(self._doublings), self.radii.count))
        radius = np.arange(self.radii.count)
        for shift, share in ((0, 1.0), (self.radii.per_octave, -_SECOND)):
            kernels[np.searchsorted(self._doublings, 2 * radius + shift), radius] = share
        return kernels / (1 - _SECOND)

    @property
    def _doublings(self) -> Int[np.ndarray, " exponent"]:
        """How often the smallest exponent is doubled, times the radii in an octave.

        Each octave of radii has two of exponents; those of the second Gaussian of h are doubled
        once more.
        """
        first = 2 * np.arange(self.radii.count)
        return np.unique([first, first + self.radii.per_octave])

    @property
    def parts(self) -> tuple[int, ...]:
        """Components of the fields: of the smoothed density matrix, and of its slopes, if read.

        One, or four with the gradient.
        """
        families = [FAMILIES[family] for family, _ in self.terms]
        slopes = [family for family in families if family.slope]
        values = [family for family in families if family.value]
        parts = (values, slopes) if slopes else (values,)
        return tuple(4 if any(own.of_gradient for own in part) else 1 for part in parts)

    @property
    def forms(self) -> Float[np.ndarray, "feature component radius"]:
        """How much each feature has of the square of each component of the fields."""
        forms = np.zeros((len(self.terms), sum(self.parts), self.radii.count))
        for form, (family, j) in zip(forms, self.terms, strict=True):
            own = FAMILIES[family]
            of_value, of_slope = own.squares(j)
            for share, is_slope in ((of_value, False), (of_slope, True)):
                if share:
                    start = self.parts[0] if is_slope else 0
                    components = slice(start + 1, start + 4) if own.of_gradient else start
                    form[components] = share * _weights(self.radii, own.power - j, is_slope)
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
def _weights(radii: SdmxRadii, power: int, is_slope: bool) -> Float[np.ndarray, " radius"]:
    """Of the trapezoidal rule in ln R, with what lies beyond its ends added to these.

    The integrand is that power of R times the square of a value or slope; a power law on a
    geometric grid is a geometric series.
    """
    weights = 4 * math.pi * radii.step * radii.values**power
    if is_slope:
        weights *= 4  # R = (2/b)^(1/2), so that R d/dR is -2 d/dln b
    weights[0] /= 1 - math.exp(-radii.step * (_DECAY - power))
    weights[-1] /= 1 - math.exp(-radii.step * (power + (_SLOPE_ONSET if is_slope else 0)))
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
    first, second = (
        (own.value - own.slope * y**2 / width) * h for width, h in ((4, first), (8, second))
    )
    smoothed = 3 * ((first - second) / (1 - _SECOND)) @ (t_weights * t**2)
    integral = np.trapezoid(np.exp((own.power - j) * log_x) * smoothed**2, log_x)
    return float(4 * math.pi * (3 * math.pi**2) ** (j / 3 - 1) * integral)
