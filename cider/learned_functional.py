"""A learned functional: shared descriptors and a sum of energy terms, as one pytree."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cider.conventions import AnyArray
from cider.correlation import CorrelationTerm
from cider.density import Density
from cider.descriptors import Descriptors, safe_ingredients, safe_sdmx
from cider.exchange import ExchangeTerm
from cider.features.convolution import GaussianConvolution

Fields = tuple[Float[AnyArray, "grid target"] | None, ...]
"""What the convolution makes of the sources of each spin; ``None`` for semilocal descriptors."""


class LearnedFunctional(eqx.Module):
    r"""Energy :math:`E = \sum_t \int e_t[n_\uparrow, n_\downarrow]\, d^3r` of its terms.

    All read descriptors of the spin-scaled densities :math:`2 n_\sigma`, which are computed once.
    ``dispersion`` is a correction beside which they were trained, in the notation of PySCF's
    ``mf.disp`` such as "d4:pbe"; hosts add it to the energy.
    """

    name: str = eqx.field(static=True)
    descriptors: Descriptors
    terms: tuple[ExchangeTerm | CorrelationTerm, ...]
    dispersion: str | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if not self.terms:
            raise ValueError(f"{self.name} has no energy terms: give exchange, correlation or both")

    @property
    def has_correlation(self) -> bool:
        """Whether it brings a correlation of its own.

        Without one it obeys spin scaling: its energy is the mean of those of the spin-scaled
        densities, each of which can be computed alone.
        """
        return any(isinstance(term, CorrelationTerm) for term in self.terms)

    @property
    def exchange(self) -> "LearnedFunctional":
        """Its exchange alone."""
        terms = tuple(term for term in self.terms if isinstance(term, ExchangeTerm))
        return LearnedFunctional(self.name, self.descriptors, terms)

    def sources(self, scaled: Density) -> Float[Array, "grid source"]:
        """Sources of the nonlocal features of one spin-scaled density (spin axis of length 1)."""
        if self.descriptors.nldf is None:
            raise ValueError(f"{self.name} has no nonlocal density features, and so no sources")
        return self.descriptors.nldf.sources(*safe_ingredients(scaled, 0))

    def energy_density(self, scaled: Density, fields: Fields) -> Float[Array, " grid"]:
        """Energy (Ha per bohr^3) of spin-scaled densities; zero below the density cutoff.

        ``fields`` are the convolution of the ``sources`` of each.
        """
        features = tuple(
            self.descriptors.nldf_features(*safe_ingredients(scaled, spin), own)
            for spin, own in enumerate(fields)
        )
        return self.energy_density_of_features(scaled, features)

    def energy_density_of_features(
        self, scaled: Density, nldf_features: tuple[Float[Array, "nldf grid"], ...]
    ) -> Float[Array, " grid"]:
        """The same, from the nonlocal features of each spin density: a function of each point."""
        features = tuple(
            self.descriptors.nonlocal_features(
                safe_ingredients(scaled, spin)[0], own, safe_sdmx(scaled, spin)
            )
            for spin, own in enumerate(nldf_features)
        )
        parts = [term.energy_density(self.descriptors, scaled, features) for term in self.terms]
        return sum(parts[1:], start=parts[0])

    def energy(
        self,
        density: Density,
        weights: Float[AnyArray, " grid"],
        convolution: GaussianConvolution | None = None,
    ) -> Float[Array, ""]:
        """Energy in Ha, as one differentiable program.

        ``convolution`` is that of the grid, for nonlocal features. ``evaluation`` computes the
        same in stages, with bounded memory.
        """
        scaled = density.spin_scaled()
        fields: Fields = (None,) * density.num_spins
        if self.descriptors.nldf is not None:
            if convolution is None:
                raise ValueError(f"{self.name} needs the convolution of the grid")
            spins = range(density.num_spins)
            fields = tuple(convolution(self.sources(scaled.of_spin(spin))) for spin in spins)
        return jnp.sum(weights * self.energy_density(scaled, fields))
