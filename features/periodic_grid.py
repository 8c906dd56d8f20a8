r"""The Gaussian convolution of periodic densities, by Fourier transforms on a uniform grid.

.. math:: \hat F_\beta(\mathbf G) = \sum_\alpha
          \left(\frac{\pi}{\alpha + \beta}\right)^{3/2} e^{-G^2 / 4(\alpha + \beta)}\,
          \hat\theta_\alpha(\mathbf G)

It is exact for what waves of the grid can represent, images of the cell included.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from cider.conventions import AnyArray, float64
from cider.features.convolution import GaussianConvolution
from cider.features.waves import Waves, waves_of_grid

_BATCH = 64
"""Waves whose kernels are evaluated together."""


class PeriodicConvolution(GaussianConvolution):
    """``GaussianConvolution`` on a uniform grid of a periodic cell; see ``periodic_convolution``.

    ``waves`` are those that a real transform keeps.
    """

    mesh: tuple[int, int, int] = eqx.field(static=True)
    waves: Waves
    source_exponents: Float[np.ndarray, " source"]
    target_exponents: Float[np.ndarray, " target"]

    @float64
    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[Array, "grid target"]:
        return self._convolve(sources, self.source_exponents, self.target_exponents)

    @float64
    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[Array, "grid source"]:
        return self._convolve(fields, self.target_exponents, self.source_exponents)

    @float64
    def strain_derivative(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> Float[np.ndarray, "xyz xyz"]:
        r"""As in ``GaussianConvolution``.

        .. math:: \frac{\partial G^2}{\partial \epsilon_{xy}} = -2 G_x G_y
        """
        by_squares = np.asarray(self._derivative_by_squares(sources, by_fields))
        vectors = self.waves.vectors
        return -2 * (by_squares * vectors.T) @ vectors

    @eqx.filter_jit
    def _convolve(
        self,
        values: Float[AnyArray, "grid in"],
        exponents_in: Float[AnyArray, " in"],
        exponents_out: Float[AnyArray, " out"],
    ) -> Float[Array, "grid out"]:
        gamma = jnp.add.outer(jnp.asarray(exponents_out), jnp.asarray(exponents_in))

        def mix(wave: tuple[Array, Array]) -> Array:
            square, amplitudes = wave
            return _kernel(square, gamma) @ amplitudes

        in_order = self._squares, self._amplitudes(values)
        mixed = jax.lax.map(mix, in_order, batch_size=_BATCH)
        shape = (-1, *self.mesh[:2], self.mesh[2] // 2 + 1)
        fields = jnp.fft.irfftn(mixed.T.reshape(shape), self.mesh, axes=(1, 2, 3))
        return fields.reshape(len(fields), -1).T

    @eqx.filter_jit
    def _derivative_by_squares(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> Float[Array, " wave"]:
        """Derivative of ``by_fields`` times the fields by the squared length of each wave."""
        gamma = jnp.add.outer(
            jnp.asarray(self.target_exponents), jnp.asarray(self.source_exponents)
        )

        def product(square: Array, amplitudes: Array, by_amplitudes: Array) -> Array:
            return (by_amplitudes.conj() @ _kernel(square, gamma) @ amplitudes).real

        def slope(wave: tuple[Array, Array, Array]) -> Array:
            return jax.grad(product)(*wave)

        in_order = self._squares, self._amplitudes(sources), self._amplitudes(by_fields)
        slopes = jax.lax.map(slope, in_order, batch_size=_BATCH)
        return self.waves.shares * slopes / math.prod(self.mesh)

    @property
    def _squares(self) -> Float[Array, " wave"]:
        return jnp.sum(jnp.asarray(self.waves.vectors) ** 2, axis=1)

    def _amplitudes(self, values: Float[AnyArray, "grid column"]) -> Complex[Array, "wave column"]:
        by_column = jnp.asarray(values).T.reshape(-1, *self.mesh)
        waves = jnp.fft.rfftn(by_column, axes=(1, 2, 3))
        return waves.reshape(len(waves), -1).T


def _kernel(square: Float[Array, ""], gamma: Float[Array, "out in"]) -> Float[Array, "out in"]:
    """The transform of each Gaussian (bohr^3) at a wave of given squared length (bohr^-2)."""
    return (jnp.pi / gamma) ** 1.5 * jnp.exp(-square / (4 * gamma))


def periodic_convolution(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: Sequence[int] | Int[np.ndarray, "3"],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> PeriodicConvolution:
    """The convolution on ``mesh`` points along each lattice vector (rows, bohr), the last fastest.

    Exponents in bohr^-2.
    """
    nx, ny, nz = (int(count) for count in mesh)
    waves = waves_of_grid(lattice, mesh)
    return PeriodicConvolution((nx, ny, nz), waves, source_exponents, target_exponents)
