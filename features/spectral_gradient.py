"""The gradient of periodic values on a uniform grid, by Fourier transforms."""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float, Int

from cider.features.waves import reciprocal_lattice, wave_numbers


class SpectralGradient(eqx.Module):
    """A linear map, exact for the waves that the grid holds; built by ``spectral_gradient``."""

    mesh: tuple[int, int, int] = eqx.field(static=True)
    vectors: Float[np.ndarray, "xyz wave"]

    def apply(self, values: Float[np.ndarray, "spin grid"]) -> Float[np.ndarray, "spin xyz grid"]:
        """Gradients (per bohr) of values at the points of the grid."""
        slopes = 1j * self.vectors * self._transform(values)[:, None]
        return self._transform_back(slopes.reshape(-1, slopes.shape[2])).reshape(len(values), 3, -1)

    def transpose(
        self, by_gradients: Float[np.ndarray, "spin xyz grid"]
    ) -> Float[np.ndarray, "spin grid"]:
        """The transposed map, which is less the divergence."""
        components = self._transform(by_gradients.reshape(-1, by_gradients.shape[2]))
        by_component = components.reshape(len(by_gradients), 3, -1)
        return self._transform_back(np.sum(-1j * self.vectors * by_component, axis=1))

    def _transform(self, values: Float[np.ndarray, "c grid"]) -> Complex[np.ndarray, "c wave"]:
        return np.fft.rfftn(values.reshape(-1, *self.mesh), axes=(1, 2, 3)).reshape(len(values), -1)

    def _transform_back(self, waves: Complex[np.ndarray, "c wave"]) -> Float[np.ndarray, "c grid"]:
        nx, ny, nz = self.mesh
        by_mesh = waves.reshape(-1, nx, ny, nz // 2 + 1)
        return np.fft.irfftn(by_mesh, self.mesh, axes=(1, 2, 3)).reshape(len(waves), -1)


def spectral_gradient(
    lattice: Float[np.ndarray, "vector xyz"], mesh: Sequence[int] | Int[np.ndarray, "3"]
) -> SpectralGradient:
    """Of ``mesh`` points along each lattice vector (rows, bohr), the last fastest.

    The shortest wave along a lattice vector, whose slope is zero at all points, has none.
    """
    nx, ny, nz = (int(count) for count in mesh)
    numbers = wave_numbers(mesh)
    numbers[2 * np.abs(numbers) == (nx, ny, nz)] = 0.0
    vectors = numbers @ reciprocal_lattice(lattice)
    return SpectralGradient((nx, ny, nz), np.ascontiguousarray(vectors.T))
