"""The exchange of a learned functional."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.baselines import BASELINES
from cider.conventions import DENSITY_CUTOFF, LDA_EXCHANGE_PREFACTOR, AnyArray, float64
from cider.density import Density
from cider.descriptors import Descriptors, safe_ingredients
from cider.features.semilocal import GRADIENT_SCALE
from cider.input_transform import FractionTransform, InputTransform
from cider.models import Model

GRADIENT_CUTOFF = 400.0
"""The ``gradient_cutoff`` of functionals of ours.

Exchange energies of light atoms and molecules change by at most 9e-6 Ha with it. Without one the
potential diverges in the minority spin of Li.
"""


def share_of_correction(
    bounded_gradient: Float[AnyArray, " grid"], cutoff: float
) -> Float[AnyArray, " grid"]:
    r"""What is left of a learned correction, :math:`1 / (1 + (p / p_0)^2)`, at the cutoff p_0."""
    below = (1 - bounded_gradient) ** 2
    return below / (below + ((1 + bounded_gradient) / (GRADIENT_SCALE * cutoff)) ** 2)


class ExchangeTerm(eqx.Module):
    r"""Exchange energy :math:`E_x = \int e_x^{LDA} (F_{base} + w(p)\, g(x))\, d^3r`.

    The energy obeys spin scaling and (within the bounds of the length scales) uniform scaling by
    construction. Gaussian processes and networks of ours vanish in the uniform gas; what another
    model leaves there is in ``uniform_gas_correction``.

    In tails and nodes of a spin of few electrons the potential of a correction that depends on tau
    diverges, although it moves no energy there. The weight w is one wherever energy is: it falls to
    a half where :math:`p = s^2` is ``gradient_cutoff``. It is one everywhere without a cutoff.
    """

    baseline: str = eqx.field(static=True)
    transform: InputTransform | FractionTransform
    model: Model
    gradient_cutoff: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}: one of {', '.join(BASELINES)}")
        if self.gradient_cutoff is not None and not self.gradient_cutoff > 0:
            raise ValueError(f"gradient_cutoff must be positive: got {self.gradient_cutoff}")

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
            semilocal, bounded = descriptors.bounded(rho, sigma, tau, nonlocal_)
            correction = self.model(self.transform(semilocal, bounded))
            if self.gradient_cutoff is not None:
                correction *= share_of_correction(semilocal[0], self.gradient_cutoff)
            enhancement = BASELINES[self.baseline](rho, sigma) + correction
            occupied = scaled.rho[spin] > DENSITY_CUTOFF
            e_x = LDA_EXCHANGE_PREFACTOR * rho ** (4 / 3) * enhancement
            total = total + jnp.where(occupied, e_x, 0.0)
        return total / scaled.num_spins
