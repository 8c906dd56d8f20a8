"""The exchange of a learned functional."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.baselines import BASELINES
from cider.conventions import DENSITY_CUTOFF, LDA_EXCHANGE_PREFACTOR, float64
from cider.density import Density
from cider.descriptors import Descriptors, safe_ingredients
from cider.input_transform import FractionTransform, InputTransform
from cider.models import Model


class ExchangeTerm(eqx.Module):
    r"""Exchange energy :math:`E_x = \int e_x^{LDA} (F_{base} + g(x))\, d^3r`.

    The energy obeys spin scaling and (within the bounds of the length scales) uniform scaling by
    construction. Gaussian processes and networks of ours vanish in the uniform gas; what another
    model leaves there is in ``uniform_gas_correction``.
    """

    baseline: str = eqx.field(static=True)
    transform: InputTransform | FractionTransform
    model: Model

    def __check_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}: one of {', '.join(BASELINES)}")

    @float64
    def uniform_gas_correction(self, descriptors: Descriptors) -> float:
        """The learned correction g in the uniform gas; zero where that limit is exact."""
        inputs = self.transform(*map(jnp.asarray, descriptors.ueg))
        return float(self.model(inputs)[0])

    def energy_density(
        self,
        descriptors: Descriptors,
        scaled: Density,
        features: tuple[Float[Array, "nonlocal grid"], ...],
    ) -> Float[Array, " grid"]:
        """Exchange energy (Ha per bohr^3): the mean over the spin-scaled densities.

        Zero below the density cutoff. ``features`` are the nonlocal ones of each spin.
        """
        total = jnp.zeros(scaled.rho.shape[1])
        for spin, nonlocal_ in enumerate(features):
            rho, sigma, tau = safe_ingredients(scaled, spin)
            inputs = self.transform(*descriptors.bounded(rho, sigma, tau, nonlocal_))
            enhancement = BASELINES[self.baseline](rho, sigma) + self.model(inputs)
            occupied = scaled.rho[spin] > DENSITY_CUTOFF
            e_x = LDA_EXCHANGE_PREFACTOR * rho ** (4 / 3) * enhancement
            total = total + jnp.where(occupied, e_x, 0.0)
        return total / scaled.num_spins
