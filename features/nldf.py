r"""Nonlocal density features (NLDF) of version j.

.. math:: G_i(\mathbf r) = \int e^{-(a_i(\mathbf r) + a_0(\mathbf r')) |\mathbf r - \mathbf r'|^2}
          n(\mathbf r')\, d^3r'

with length scales set by the density itself, so that :math:`G_i` is invariant under uniform
scaling. Ref: Bystrom, Kozinsky, Phys. Rev. B 110, 075130 (2024).
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.conventions import DENSITY_CUTOFF, AnyArray
from cider.features.gaussian_ladder import GaussianLadder, ladder_exponents
from cider.features.semilocal import thomas_fermi_tau, weizsaecker_tau


class NldfExponent(eqx.Module):
    r"""Exponent function :math:`a(\mathbf r)` in bohr^-2, the inverse square of a local length.

    .. math:: a = \pi (n/2)^{2/3} \left[A + B \frac{\tau_W}{\tau_0}
              + C \left(\frac{\tau}{\tau_0} - 1\right)\right]

    It is kept smoothly between ``A * FLOOR`` and ``A * CEILING``, which densities of 1e-4 and 4e5
    bohr^-3 reach. Between them it scales exactly but for what the bounds still change: 1e-6 of
    the exponent at 0.01 bohr^-3, 4e-4 at 0.001, 2e-5 at 1e4.
    """

    FLOOR = 0.004
    CEILING = 10000.0

    A: float = eqx.field(static=True)
    B: float = eqx.field(static=True, default=0.0)
    C: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        if not (self.A > 0 and self.B >= 0 and self.C >= 0 and math.isfinite(self.A + self.B)):
            raise ValueError(
                f"an NLDF exponent needs A > 0, B >= 0 and C >= 0 to stay positive: got "
                f"A={self.A}, B={self.B}, C={self.C}"
            )
        if self.C > self.A:
            raise ValueError(f"C={self.C} above A={self.A} can make the exponent negative")

    @property
    def needs_tau(self) -> bool:
        """Whether the kinetic energy density enters."""
        return self.C != 0

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest value (bohr^-2)."""
        return self.A * self.FLOOR, self.A * self.CEILING

    def __call__(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
    ) -> Float[Array, " grid"]:
        """The exponent on the grid; ``rho`` at least the density cutoff."""
        tau_0 = thomas_fermi_tau(rho)
        bracket = jnp.full_like(rho, self.A)
        if self.B:
            bracket = bracket + self.B * weizsaecker_tau(rho, sigma) / tau_0
        if self.C:
            if tau is None:
                raise ValueError(
                    f"the NLDF exponent with C={self.C} needs tau but the density has none; "
                    "compute a meta-GGA density"
                )
            bracket = bracket + self.C * (tau / tau_0 - 1)
        a = math.pi * (rho / 2) ** (2 / 3) * bracket
        floor, ceiling = self.bounds
        # Two roots take a fraction of the time of a power of one quarter and its derivative.
        return jnp.sqrt(jnp.sqrt((a**4 + floor**4) / (1 + (a / ceiling) ** 4)))


class Nldf(eqx.Module):
    """Version-j features of one closed-shell (or spin-scaled) density.

    ``sources`` feed a ``GaussianConvolution``; ``features`` read its fields.
    """

    source_exponent: NldfExponent
    exponents: tuple[NldfExponent, ...]
    source_ladder: GaussianLadder
    target_ladder: GaussianLadder

    def __init__(self, source_exponent: NldfExponent, exponents: tuple[NldfExponent, ...]):
        if not exponents:
            raise ValueError("NLDF features need at least one exponent")
        self.source_exponent = source_exponent
        self.exponents = tuple(exponents)
        self.source_ladder = _ladder_around((source_exponent,))
        self.target_ladder = _ladder_around(self.exponents)

    @property
    def needs_tau(self) -> bool:
        """Whether the kinetic energy density enters."""
        return any(a.needs_tau for a in (self.source_exponent, *self.exponents))

    @property
    def names(self) -> tuple[str, ...]:
        """One name per feature, with its constants."""
        return tuple(f"nldf_j[A={a.A:g},B={a.B:g},C={a.C:g}]" for a in self.exponents)

    @property
    def usp(self) -> tuple[float, ...]:
        """Uniform scaling power of each feature."""
        return (0.0,) * len(self.exponents)

    @property
    def ueg(self) -> Float[np.ndarray, " feature"]:
        r"""Values in the uniform gas, :math:`2/(A_i + A_0)^{3/2}`."""
        return np.array([2 / (a.A + self.source_exponent.A) ** 1.5 for a in self.exponents])

    @property
    def reference(self) -> Float[np.ndarray, " feature"]:
        """Values that set the scale of each feature: the uniform gas's."""
        return self.ueg

    def sources(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
    ) -> Float[Array, "grid source"]:
        r"""Sources :math:`\theta_\alpha = n\, p_\alpha(a_0)`; zero below the density cutoff."""
        a = self.source_exponent(rho, sigma, tau)
        density = jnp.where(rho > DENSITY_CUTOFF, rho, 0.0)
        return density[:, None] * self.source_ladder.coefficients(a)

    def features(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
        fields: Float[AnyArray, "grid target"],
    ) -> Float[Array, "feature grid"]:
        r"""Features :math:`G_i = \sum_\beta p_\beta(a_i) F_\beta`, dimensionless."""
        return self.expand(self.target_exponents(rho, sigma, tau), fields)

    def target_exponents(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
    ) -> Float[Array, "feature grid"]:
        """Exponents :math:`a_i` (bohr^-2) of the features; ``rho`` at least the cutoff."""
        return jnp.stack([a(rho, sigma, tau) for a in self.exponents])

    def expand(
        self, exponents: Float[Array, "feature grid"], fields: Float[AnyArray, "grid target"]
    ) -> Float[Array, "feature grid"]:
        """Features of given exponents (bohr^-2): linear in the fields."""
        return jnp.stack([self.target_ladder.expand(a, fields) for a in exponents])


def _ladder_around(exponents: tuple[NldfExponent, ...]) -> GaussianLadder:
    """The part of the absolute ladder that represents all values of the exponents.

    Narrow margins suffice, since only tails and innermost cores come near the bounds: five more
    exponents change energies by less than 1e-7 of the exchange energy.
    """
    least = min(a.bounds[0] for a in exponents)
    largest = max(a.bounds[1] for a in exponents)
    return GaussianLadder(ladder_exponents(0.5 * least, 1.5 * largest))
