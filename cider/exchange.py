"""A learned exchange functional: descriptors, baseline and model, as one pytree."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.additive_spline import AdditiveSpline
from cider.baselines import BASELINES
from cider.conventions import DENSITY_CUTOFF, LDA_EXCHANGE_PREFACTOR, AnyArray, float64
from cider.density import Density
from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.features.semilocal import bounded_gradient, bounded_isoorbital
from cider.gaussian_process import QuadraticGaussianProcess
from cider.input_transform import FractionTransform, InputTransform, bounded_ratio


class Descriptors(eqx.Module):
    """What a model reads of a closed-shell (or spin-scaled) density."""

    level: str = eqx.field(static=True)
    nldf: Nldf | None = None

    def __check_init__(self) -> None:
        if self.level not in ("GGA", "MGGA"):
            raise ValueError(f"level must be 'GGA' or 'MGGA': got {self.level!r}")

    @property
    def needs_tau(self) -> bool:
        """Whether the kinetic energy density enters."""
        return self.level == "MGGA" or (self.nldf is not None and self.nldf.needs_tau)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the descriptors, semilocal ones first."""
        semilocal = ("p",) if self.level == "GGA" else ("p", "alpha")
        return semilocal + (() if self.nldf is None else self.nldf.names)

    @property
    def ueg(self) -> tuple[Float[np.ndarray, "semilocal 1"], Float[np.ndarray, "nonlocal 1"]]:
        """Bounded descriptors in the uniform gas (p = 0, alpha = 1)."""
        semilocal = [-1.0] if self.level == "GGA" else [-1.0, 0.0]
        count = 0 if self.nldf is None else len(self.nldf.exponents)
        return np.array(semilocal)[:, None], np.zeros((count, 1))

    def __call__(
        self,
        rho: Float[Array, " grid"],
        sigma: Float[Array, " grid"],
        tau: Float[Array, " grid"] | None,
        fields: Float[AnyArray, "grid target"] | None,
    ) -> tuple[Float[Array, "semilocal grid"], Float[Array, "nonlocal grid"]]:
        """Bounded semilocal and nonlocal descriptors of points; ``rho`` at least the cutoff.

        ``fields`` are what the convolution of the grid makes of ``sources``.
        """
        if self.needs_tau and tau is None:
            raise ValueError(
                f"the descriptors {', '.join(self.names)} need tau but the density has none; "
                "compute a meta-GGA density or choose a GGA-level functional"
            )
        semilocal = [bounded_gradient(rho, sigma)]
        if self.level == "MGGA" and tau is not None:  # checked above; said for the type checker
            semilocal.append(bounded_isoorbital(rho, sigma, tau))
        if self.nldf is None:
            return jnp.stack(semilocal), jnp.zeros((0, rho.shape[0]))
        if fields is None:
            raise ValueError("nonlocal density features need the fields of their sources")
        features = self.nldf.features(rho, sigma, tau, fields)
        reference = jnp.asarray(self.nldf.ueg)[:, None]
        return jnp.stack(semilocal), bounded_ratio(features, reference)


class LearnedExchange(eqx.Module):
    r"""Exchange energy :math:`E_x = \int e_x^{LDA} (F_{base} + g(x))\, d^3r`.

    The energy obeys spin scaling and (within the bounds of the length scales) uniform scaling by
    construction. A ``QuadraticGaussianProcess`` vanishes in the uniform gas; what an
    ``AdditiveSpline`` leaves there is in ``uniform_gas_correction``.
    """

    name: str = eqx.field(static=True)
    baseline: str = eqx.field(static=True)
    descriptors: Descriptors
    transform: InputTransform | FractionTransform
    model: QuadraticGaussianProcess | AdditiveSpline

    def __check_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}: one of {', '.join(BASELINES)}")

    @float64
    def uniform_gas_correction(self) -> float:
        """The learned correction g in the uniform gas; zero where that limit is exact."""
        inputs = self.transform(*map(jnp.asarray, self.descriptors.ueg))
        return float(self.model(inputs)[0])

    def sources(self, density: Density) -> Float[Array, "grid source"]:
        """Sources of the nonlocal features of one spin-scaled density (spin axis of length 1)."""
        if self.descriptors.nldf is None:
            raise ValueError(f"{self.name} is semilocal: it has no sources")
        return self.descriptors.nldf.sources(*safe_ingredients(density, 0))

    def energy_density(
        self, density: Density, fields: Float[AnyArray, "grid target"] | None
    ) -> Float[Array, " grid"]:
        """Exchange energy (Ha per bohr^3) of one spin-scaled density (spin axis of length 1).

        Zero below the density cutoff. ``fields`` are the convolution of ``sources``.
        """
        rho, sigma, tau = safe_ingredients(density, 0)
        inputs = self.transform(*self.descriptors(rho, sigma, tau, fields))
        enhancement = BASELINES[self.baseline](rho, sigma) + self.model(inputs)
        occupied = density.rho[0] > DENSITY_CUTOFF
        return jnp.where(occupied, LDA_EXCHANGE_PREFACTOR * rho ** (4 / 3) * enhancement, 0.0)

    def energy(
        self,
        density: Density,
        weights: Float[AnyArray, " grid"],
        convolution: GaussianConvolution | None = None,
    ) -> Float[Array, ""]:
        """Exchange energy in Ha, as one differentiable program.

        ``convolution`` is that of the grid, for nonlocal features. ``evaluation`` computes the
        same in stages, with bounded memory.
        """
        scaled = density.spin_scaled()
        total = jnp.zeros(())
        for spin in range(density.num_spins):
            own = scaled.of_spin(spin)
            fields = None
            if self.descriptors.nldf is not None:
                if convolution is None:
                    raise ValueError(f"{self.name} needs the convolution of the grid")
                fields = convolution(self.sources(own))
            total = total + jnp.sum(weights * self.energy_density(own, fields))
        return total / density.num_spins


def safe_ingredients(
    scaled: Density, spin: int
) -> tuple[Float[Array, " grid"], Float[Array, " grid"], Float[Array, " grid"] | None]:
    """rho, sigma and tau of one spin, with a uniform gas of cutoff density where there is none.

    Keeps every formula and its derivative finite at points that carry no energy.
    """
    occupied = scaled.rho[spin] > DENSITY_CUTOFF
    rho = jnp.where(occupied, scaled.rho[spin], DENSITY_CUTOFF)
    # The inner selection keeps the derivative of an infinite or NaN gradient out.
    sigma = jnp.sum(jnp.where(occupied, scaled.grad_rho[spin], 0.0) ** 2, axis=0)
    tau = None if scaled.tau is None else jnp.where(occupied, scaled.tau[spin], 0.0)
    return rho, sigma, tau
