"""Polynomials of the radius by their values at Chebyshev nodes."""

import equinox as eqx
import numpy as np
from jaxtyping import Float


class RadialNodes(eqx.Module):
    """``count`` nodes between the centre of a sphere and its ``radius`` (bohr).

    The barycentric formula interpolates between them. Ref: Berrut, Trefethen, SIAM Rev. 46, 501
    (2004).
    """

    radius: float = eqx.field(static=True)
    count: int = eqx.field(static=True)

    @property
    def radii(self) -> Float[np.ndarray, " node"]:
        """Ascending, in bohr."""
        return self.radius * (1 - np.cos(self._angles)) / 2

    def interpolation(self, radii: Float[np.ndarray, " some"]) -> Float[np.ndarray, "some node"]:
        """What makes values at radii (bohr) of values at the nodes."""
        distances = radii[:, None] - self.radii
        distances[np.abs(distances) < 1e-13] = 1e-13
        terms = self._weights / distances
        return terms / terms.sum(axis=1, keepdims=True)

    @property
    def slopes(self) -> Float[np.ndarray, "node node"]:
        """What makes derivatives at the nodes (per bohr) of values there."""
        distances = self.radii[:, None] - self.radii
        np.fill_diagonal(distances, 1.0)
        slopes = self._weights / self._weights[:, None] / distances
        np.fill_diagonal(slopes, 0.0)
        np.fill_diagonal(slopes, -slopes.sum(axis=1))
        return slopes

    @property
    def _angles(self) -> Float[np.ndarray, " node"]:
        return np.pi * (np.arange(self.count) + 0.5) / self.count

    @property
    def _weights(self) -> Float[np.ndarray, " node"]:
        return (-1.0) ** np.arange(self.count) * np.sin(self._angles)
