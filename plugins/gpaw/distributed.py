"""Linear maps of points that are spread over the ranks of a domain decomposition."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from gpaw.core import UGDesc
from jaxtyping import Float, Int

from cider.conventions import AnyArray
from cider.features.augmented_convolution import AugmentedConvolution, augmented_convolution
from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.features.spectral_gradient import SpectralGradient, spectral_gradient
from cider.plugins.gpaw.augmentation import AugmentationSphere


class DistributedConvolution(GaussianConvolution):
    """Every rank knows the sources of all, and takes the fields at its own ``points``."""

    whole: AugmentedConvolution
    points: Int[np.ndarray, " grid"]
    comm: Any = eqx.field(static=True)

    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        return self.whole.apply(self._gathered(sources))[self.points]

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[np.ndarray, "grid source"]:
        return self.whole.transpose(self._gathered(fields))[self.points]

    def derivative(
        self,
        sources: Float[AnyArray, "grid source"],
        by_fields: Float[AnyArray, "grid target"],
        by_sources: Float[AnyArray, "grid source"],
    ) -> Float[np.ndarray, "atom xyz"]:
        """As in ``GaussianConvolution``, of the points of all ranks."""
        arrays = (self._gathered(array) for array in (sources, by_fields, by_sources))
        return self.whole.derivative(*arrays)

    def strain_derivative(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> Float[np.ndarray, "xyz xyz"]:
        """As in ``GaussianConvolution``, of the points of all ranks."""
        return self.whole.strain_derivative(self._gathered(sources), self._gathered(by_fields))

    def moved(self, centers: Float[np.ndarray, "atom xyz"]) -> "DistributedConvolution":
        """The same for other positions (bohr) of the atoms."""
        return DistributedConvolution(self.whole.moved(centers), self.points, self.comm)

    def _gathered(
        self, values: Float[AnyArray, "grid channel"]
    ) -> Float[np.ndarray, "all channel"]:
        return _gathered(values, self.points, self.whole.num_points, self.comm)


class DistributedGradient(eqx.Module):
    """The gradient on a grid, of which every rank takes its own ``points``."""

    whole: SpectralGradient
    points: Int[np.ndarray, " grid"]
    comm: Any = eqx.field(static=True)

    def apply(self, values: Float[np.ndarray, "spin grid"]) -> Float[np.ndarray, "spin xyz grid"]:
        """As ``SpectralGradient.apply``."""
        return self.whole.apply(self._gathered(values))[..., self.points]

    def transpose(
        self, by_gradients: Float[np.ndarray, "spin xyz grid"]
    ) -> Float[np.ndarray, "spin grid"]:
        """As ``SpectralGradient.transpose``."""
        return self.whole.transpose(self._gathered(by_gradients))[..., self.points]

    def _gathered(
        self, values: Float[np.ndarray, "*shape grid"]
    ) -> Float[np.ndarray, "*shape all"]:
        everywhere = np.zeros((*values.shape[:-1], math.prod(self.whole.mesh)))
        everywhere[..., self.points] = values
        self.comm.sum(everywhere)
        return everywhere


def distributed_gradient(grid: UGDesc) -> DistributedGradient | SpectralGradient:
    """The gradient on a grid, of which each rank has its part."""
    whole = spectral_gradient(grid.cell, grid.size)
    if grid.comm.size == 1:
        return whole
    return DistributedGradient(whole, _points_of_rank(grid), grid.comm)


def distributed_convolution(
    grid: UGDesc,
    spheres: Mapping[int, AugmentationSphere],
    centers: Float[np.ndarray, "atom xyz"],
    nldf: Nldf,
) -> DistributedConvolution | AugmentedConvolution:
    """The convolution of the grid and of all spheres, of which each rank has its share."""
    whole = augmented_convolution(
        grid.cell,
        grid.size,
        centers,
        [sphere.shells for sphere in spheres.values()],
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    )
    if grid.comm.size == 1:
        return whole
    points, start = [_points_of_rank(grid)], math.prod(grid.size)
    for atom, sphere in spheres.items():
        end = start + 2 * sphere.shells.num_points
        if atom % grid.comm.size == grid.comm.rank:
            points.append(np.arange(start, end))
        start = end
    return DistributedConvolution(whole, np.concatenate(points), grid.comm)


def on_whole_grid(
    grid: UGDesc, values: Float[np.ndarray, "own channel"]
) -> Float[np.ndarray, "all channel"]:
    """Values at the points of a grid, of which each rank has its part."""
    if grid.comm.size == 1:
        return values
    return _gathered(values, _points_of_rank(grid), math.prod(grid.size), grid.comm)


def own_part_of_sum(
    grid: UGDesc, values: Float[np.ndarray, "all channel"]
) -> Float[np.ndarray, "own channel"]:
    """The transpose: this rank's part of the sum of what all have for the whole grid."""
    if grid.comm.size == 1:
        return values
    everywhere = np.ascontiguousarray(values)
    grid.comm.sum(everywhere)
    return everywhere[_points_of_rank(grid)]


def _gathered(
    values: Float[AnyArray, "own channel"], points: Int[np.ndarray, " own"], size: int, comm: Any
) -> Float[np.ndarray, "all channel"]:
    """Values at the points of all ranks."""
    everywhere = np.zeros((size, values.shape[1]))
    everywhere[points] = values
    comm.sum(everywhere)
    return everywhere


def _points_of_rank(grid: UGDesc) -> Int[np.ndarray, " grid"]:
    """The number of each point of this rank among those of the whole grid."""
    numbers = np.arange(math.prod(grid.size)).reshape(grid.size)
    ranges = [slice(*ends) for ends in zip(grid.start_c, grid.end_c, strict=True)]
    return numbers[tuple(ranges)].ravel()
