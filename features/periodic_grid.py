r"""The Gaussian convolution of periodic densities, by Fourier transforms on a uniform grid.

.. math:: \hat F_\beta(\mathbf G) = \sum_\alpha
          \left(\frac{\pi}{\alpha + \beta}\right)^{3/2} e^{-G^2 / 4(\alpha + \beta)}\,
          \hat\theta_\alpha(\mathbf G)

It is exact for what waves of the grid can represent, images of the cell included.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cider.conventions import AnyArray, float64
from cider.features.convolution import GaussianConvolution

_BATCH = 64
"""Waves whose kernels are evaluated together."""


class PeriodicConvolution(GaussianConvolution):
    """``GaussianConvolution`` on a uniform grid of a periodic cell; see ``periodic_convolution``.

    ``squares`` are the squared lengths (bohr^-2) of the waves that a real transform keeps.
    """

    mesh: tuple[int, int, int] = eqx.field(static=True)
    squares: Float[np.ndarray, " wave"]
    source_exponents: Float[np.ndarray, " source"]
    target_exponents: Float[np.ndarray, " target"]

    @float64
    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[Array, "grid target"]:
        return self._convolve(sources, self.source_exponents, self.target_exponents)

    @float64
    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[Array, "grid source"]:
        return self._convolve(fields, self.target_exponents, self.source_exponents)

    @eqx.filter_jit
    def _convolve(
        self,
        values: Float[AnyArray, "grid in"],
        exponents_in: Float[AnyArray, " in"],
        exponents_out: Float[AnyArray, " out"],
    ) -> Float[Array, "grid out"]:
        gamma = jnp.add.outer(jnp.asarray(exponents_out), jnp.asarray(exponents_in))
        by_column = jnp.asarray(values).T.reshape(-1, *self.mesh)
        waves = jnp.fft.rfftn(by_column, axes=(1, 2, 3))

        def mix(wave: tuple[Array, Array]) -> Array:
            square, amplitudes = wave
            return ((jnp.pi / gamma) ** 1.5 * jnp.exp(-square / (4 * gamma))) @ amplitudes

        in_order = jnp.asarray(self.squares), waves.reshape(len(waves), -1).T
        mixed = jax.lax.map(mix, in_order, batch_size=_BATCH)
        fields = jnp.fft.irfftn(mixed.T.reshape(-1, *waves.shape[1:]), self.mesh, axes=(1, 2, 3))
        return fields.reshape(len(fields), -1).T


def periodic_convolution(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: Sequence[int] | Int[np.ndarray, "3"],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> PeriodicConvolution:
    """The convolution on ``mesh`` points along each lattice vector (rows, bohr), the last fastest.

    Exponents in bohr^-2.
    """
    reciprocal = 2 * np.pi * np.linalg.inv(lattice).T
    nx, ny, nz = (int(count) for count in mesh)
    counts = np.fft.fftfreq(nx, 1 / nx), np.fft.fftfreq(ny, 1 / ny), np.fft.rfftfreq(nz, 1 / nz)
    waves = np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1).reshape(-1, 3) @ reciprocal
    return PeriodicConvolution(
        (nx, ny, nz), np.sum(waves**2, axis=1), source_exponents, target_exponents
    )
