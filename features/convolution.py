r"""The interface of the one nonlocal step: a linear map from sources to fields.

.. math:: F_\beta(\mathbf r)
          = \sum_\alpha \int e^{-(\alpha + \beta) |\mathbf r - \mathbf r'|^2}
            \theta_\alpha(\mathbf r')\, d^3r'

A host implements it for its grid: on grids of atoms, uniform grids for smooth Gaussians and
atom-centred expansions for sharp ones, in crystals with all images; FFTs for periodic uniform
grids. Everything before and after it is pointwise.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.conventions import AnyArray


class GaussianConvolution(eqx.Module):
    """Linear map from sources to fields on one grid, with its transpose.

    ``apply`` takes sources on the grid points (the map knows the quadrature weights), one column
    per source exponent, and returns fields on the same points, one column per target exponent.
    """

    @abc.abstractmethod
    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[AnyArray, "grid target"]:
        """Fields (dimension of the sources times bohr^3) of the sources of one spin density."""

    @abc.abstractmethod
    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[AnyArray, "grid source"]:
        """The transposed map, applied to derivatives of an energy by the fields."""

    def derivative(
        self,
        sources: Float[AnyArray, "grid source"],
        by_fields: Float[AnyArray, "grid target"],
        by_sources: Float[AnyArray, "grid source"],
    ) -> Float[np.ndarray, "atom xyz"]:
        """Derivative of ``by_fields`` times the fields of sources, as the atoms move (per bohr).

        ``by_sources`` is the transpose of ``by_fields``. Points and sources move with their atoms.
        Raises ``NotImplementedError`` where the map knows no atoms.
        """
        raise NotImplementedError(f"{type(self).__name__} does not know how its points move")

    def strain_derivative(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> Float[np.ndarray, "xyz xyz"]:
        r"""Derivative of ``by_fields`` times the fields of sources by a strain of the crystal.

        It takes points and lattice vectors from :math:`r_x` to
        :math:`\sum_y (\delta_{xy} + \epsilon_{xy}) r_y`; sources stay as they are. Raises
        ``NotImplementedError`` where the map knows no crystal.
        """
        raise NotImplementedError(f"{type(self).__name__} is not that of a crystal")

    def __call__(self, sources: Float[AnyArray, "grid source"]) -> Float[AnyArray, "grid target"]:
        """``apply``, differentiable in both modes by way of ``transpose``."""
        return jax.custom_derivatives.linear_call(
            lambda convolution, x: convolution.apply(x),
            lambda convolution, y: convolution.transpose(y),
            self,
            sources,
        )


class DirectConvolution(GaussianConvolution):
    """The sum over all pairs of points: exact on its grid, and quadratic in the number of points.

    The reference of the tests, and good enough for atoms on small grids.
    """

    coords: Float[AnyArray, "grid xyz"]
    weights: Float[AnyArray, " grid"]
    source_exponents: Float[AnyArray, " source"]
    target_exponents: Float[AnyArray, " target"]
    block: int = eqx.field(static=True, default=256)

    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[Array, "grid target"]:
        return self._convolve(self._weights * sources, self.source_exponents, self.target_exponents)

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[Array, "grid source"]:
        return self._weights * self._convolve(fields, self.target_exponents, self.source_exponents)

    @property
    def _weights(self) -> Float[Array, "grid 1"]:
        return jnp.asarray(self.weights)[:, None]

    @eqx.filter_jit
    def _convolve(
        self,
        charges: Float[AnyArray, "grid in"],
        exponents_in: Float[AnyArray, " in"],
        exponents_out: Float[AnyArray, " out"],
    ) -> Float[Array, "grid out"]:
        beta_in, beta_out = jnp.asarray(exponents_in), jnp.asarray(exponents_out)

        def field_at(point: Float[Array, " xyz"]) -> Float[Array, " out"]:
            distance_squared = jnp.sum((self.coords - point[None]) ** 2, axis=1)
            # exp(-(a + b) u^2) factorises at fixed u.
            source_sum = jnp.sum(jnp.exp(-jnp.outer(distance_squared, beta_in)) * charges, 1)
            return source_sum @ jnp.exp(-jnp.outer(distance_squared, beta_out))

        return jax.lax.map(field_at, self.coords, batch_size=self.block)
