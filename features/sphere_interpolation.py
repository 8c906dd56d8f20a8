"""Values on a uniform grid at the points of spheres in its cell."""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Float

from cider.features.spheres_in_grid import AtNodes, SpheresInGrid


class SphereInterpolation(eqx.Module):
    """A linear map: the waves of a grid, to harmonics of l up to ``LMAX`` in each sphere."""

    spheres: SpheresInGrid

    def apply(
        self, values: Float[np.ndarray, "grid channel"]
    ) -> list[Float[np.ndarray, "point channel"]]:
        """Values at the points of each sphere."""
        waves = self.spheres.transform(values) / self.spheres.size
        at_points = []
        for own, nodes in zip(self.spheres.spheres, self.spheres.at_nodes(waves), strict=True):
            at_points.append(np.empty((own.shells.num_points, values.shape[1])))
            own.expand(own.to_shells(nodes), at_points[-1])
        return at_points

    def transpose(
        self, by_points: Sequence[Float[np.ndarray, "point channel"]], num_channels: int
    ) -> Float[np.ndarray, "grid channel"]:
        """The transposed map, of derivatives by values at the points."""
        waves = self.spheres.waves_of(self._at_nodes(by_points), num_channels)
        return self.spheres.transform_back(waves)

    def derivative(
        self,
        values: Float[np.ndarray, "grid channel"],
        by_points: Sequence[Float[np.ndarray, "point channel"]],
    ) -> Float[np.ndarray, "atom xyz"]:
        """Derivative of ``by_points`` times values there, as spheres move (per bohr)."""
        waves = self.spheres.transform(values) / self.spheres.size
        return self.spheres.center_derivative(self._at_nodes(by_points), waves)

    def strain_derivative(
        self,
        values: Float[np.ndarray, "grid channel"],
        by_points: Sequence[Float[np.ndarray, "point channel"]],
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of the same as the cell is strained; centres follow, spheres keep their form.

        Values at the points of the grid stay as they are.
        """
        waves = self.spheres.transform(values) / self.spheres.size
        return self.spheres.strain_derivative(self._at_nodes(by_points), waves)

    def moved(self, centers: Float[np.ndarray, "atom xyz"]) -> "SphereInterpolation":
        """The same for other centres (bohr)."""
        return SphereInterpolation(self.spheres.moved(centers))

    def _at_nodes(self, by_points: Sequence[Float[np.ndarray, "point channel"]]) -> list[AtNodes]:
        at_shells = [
            own.project(values) for own, values in zip(self.spheres.spheres, by_points, strict=True)
        ]
        return self.spheres.to_nodes(at_shells)
