"""The correlation of a learned functional."""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.conventions import DENSITY_CUTOFF
from cider.density import Density
from cider.descriptors import Descriptors
from cider.input_transform import FractionTransform, InputTransform
from cider.models import Model
from cider.pbe_correlation import pbe_correlation

CORRELATION_BASELINES: dict[
    str, Callable[[Float[Array, "2 grid"], Float[Array, " grid"]], Float[Array, " grid"]]
] = {"GGA_C_PBE": pbe_correlation}
"""Correlation energies of two spin densities and sigma of their sum, by their libxc names."""


class CorrelationTerm(eqx.Module):
    r"""Correlation energy :math:`E_c = \int e_c^{base}(n_\uparrow, n_\downarrow) (1 + g)\, d^3r`.

    The learned part g reads the descriptors of the mean over spins of rho, sigma, tau and nonlocal
    features of the spin-scaled densities. Since correlation does not scale as exchange does, the
    density itself is its last input: :math:`(1 + \kappa n)^{-1/3}`, a Seitz radius that is bounded
    by one, with ``density_scale`` for :math:`\kappa` (bohr^3).
    """

    baseline: str = eqx.field(static=True)
    density_scale: float = eqx.field(static=True)
    transform: InputTransform | FractionTransform
    model: Model

    def __check_init__(self) -> None:
        if self.baseline not in CORRELATION_BASELINES:
            raise ValueError(
                f"unknown correlation baseline {self.baseline!r}: one of "
                f"{', '.join(CORRELATION_BASELINES)}"
            )
        if not (self.density_scale > 0 and math.isfinite(self.density_scale)):
            raise ValueError(f"density_scale must be positive: got {self.density_scale!r}")

    def energy_density(
        self,
        descriptors: Descriptors,
        scaled: Density,
        features: tuple[Float[Array, "nonlocal grid"], ...],
    ) -> Float[Array, " grid"]:
        """Correlation energy (Ha per bohr^3), from the spin-scaled densities.

        Zero where the total density is below the cutoff. ``features`` are the nonlocal ones of
        each spin.
        """
        occupied = jnp.mean(scaled.rho, axis=0) > DENSITY_CUTOFF
        rho_of_spins = jnp.where(occupied[None], scaled.rho, DENSITY_CUTOFF)
        gradients = jnp.where(occupied[None, None], scaled.grad_rho, 0.0)
        rho = jnp.mean(rho_of_spins, axis=0)
        sigma = jnp.mean(jnp.sum(gradients**2, axis=1), axis=0)
        tau = None
        if scaled.tau is not None:
            tau = jnp.mean(jnp.where(occupied[None], scaled.tau, 0.0), axis=0)
        mean_features = sum(features[1:], start=features[0]) / len(features)
        inputs = self.transform(*descriptors.bounded(rho, sigma, tau, mean_features))
        seitz = (1 + self.density_scale * rho) ** (-1 / 3)
        correction = self.model(jnp.concatenate([inputs, seitz[None]]))
        # A closed shell's scaled density is its total one, of which each spin has half.
        halves = jnp.broadcast_to(rho_of_spins / 2, (2, rho.shape[0]))
        total_sigma = jnp.sum(jnp.mean(gradients, axis=0) ** 2, axis=0)
        e_c = CORRELATION_BASELINES[self.baseline](halves, total_sigma)
        return jnp.where(occupied, e_c * (1 + correction), 0.0)
