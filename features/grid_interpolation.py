r"""Values of a periodic uniform grid between its points.

.. math:: f(x) = \sum_i \phi(x - x_i)\, (\hat\phi^{-1} f)(x_i)

in each dimension, with the window of ``cider.features.uniform_grid``: waves of up to half the
shortest one that the grid holds are read to 1e-6, shorter ones less exactly.
"""

from collections.abc import Sequence
from concurrent.futures import Executor

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from cider.conventions import AnyArray
from cider.features.uniform_grid import (
    WINDOW,
    UniformGrid,
    along_each_dimension,
    periodic_uniform_grid,
    unwrapped,
    without_window,
    wrapped,
)


class GridInterpolation(eqx.Module):
    """A linear map from the grid to points in its cell; built by ``grid_interpolation``."""

    mesh: tuple[int, int, int] = eqx.field(static=True)
    cells: Float[np.ndarray, "xyz 3"]
    """How many cells along each lattice vector a displacement (bohr) is."""
    grid: UniformGrid
    without_window: tuple[Float[np.ndarray, "_ _"], ...]

    def apply(
        self, values: Float[AnyArray, "grid channel"], pool: Executor
    ) -> Float[np.ndarray, "point channel"]:
        """Values at the points; ``pool`` runs parts in parallel."""
        return self.grid.read(self._before_reading(values), pool)

    def transpose(
        self, by_points: Float[AnyArray, "point channel"], pool: Executor
    ) -> Float[np.ndarray, "grid channel"]:
        """The transposed map, of derivatives by values at the points."""
        columns = wrapped(self.grid.spread(by_points, pool), np.array(self.mesh))
        return self._without_window(columns).reshape(len(columns), -1).T

    def gradients(
        self,
        values: Float[AnyArray, "grid channel"],
        by_points: Float[AnyArray, "point channel"],
        pool: Executor,
    ) -> Float[np.ndarray, "point xyz"]:
        """Gradients (per bohr) of ``by_points`` times the values there, as each point moves."""
        by_cells = self.grid.read_gradients(self._before_reading(values), by_points, pool)
        return by_cells @ self.cells.T

    def _before_reading(
        self, values: Float[AnyArray, "grid channel"]
    ) -> Float[np.ndarray, "channel _ _ _"]:
        return unwrapped(self._without_window(np.asarray(values).T.reshape(-1, *self.mesh)))

    def _without_window(
        self, columns: Float[np.ndarray, "channel x y z"]
    ) -> Float[np.ndarray, "channel x y z"]:
        return np.stack([along_each_dimension(self.without_window, own) for own in columns])


def grid_interpolation(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: Sequence[int] | Int[np.ndarray, "3"],
    points: Float[np.ndarray, "point xyz"],
) -> GridInterpolation:
    """From ``mesh`` places along each lattice vector (rows, bohr), the last fastest, to points."""
    to_fractions = np.linalg.inv(lattice)
    nx, ny, nz = (int(count) for count in mesh)
    # Places that the window reaches are counted from half its width before a point's own cell.
    shift = (1 - WINDOW / 2) / np.array([nx, ny, nz])
    return GridInterpolation(
        mesh=(nx, ny, nz),
        cells=to_fractions * np.array([nx, ny, nz]),
        grid=periodic_uniform_grid(points @ to_fractions + shift, np.array([nx, ny, nz])),
        without_window=tuple(without_window(count) for count in (nx, ny, nz)),
    )
