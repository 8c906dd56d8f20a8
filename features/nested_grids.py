r"""Convolution with smooth Gaussians on uniform grids, without periodicity.

The smoother the Gaussians, the coarser a grid they need, and the farther it reaches. Points are
spread on the finest grid whose box they are in; a coarser grid takes over what is spread on the
finer one, so that each point is visited once however many grids there are:

.. math:: b_c = b + C_x C_y C_z\, b_f, \qquad
          V_f = \sum T_\gamma\, b_f + C_x^T C_y^T C_z^T\, V_c .
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeAlias

import equinox as eqx
import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from cider.conventions import AnyArray
from cider.features.uniform_grid import (
    UniformGrid,
    along_each_dimension,
    coarsening,
    grid_gaussians,
    uniform_grid,
)

_Matrices: TypeAlias = tuple[Float[np.ndarray, "_ _"], ...]
"""A matrix for each dimension."""


class Reach(NamedTuple):
    """What a grid is for: Gaussians up to an exponent (bohr^-2), in a box.

    The box has the least and the largest coordinates (bohr).
    """

    largest_exponent: float
    box: Float[np.ndarray, "2 xyz"]


class _Level(eqx.Module):
    """One grid and the pairs of exponents that it convolves.

    ``pairs`` are (source, target) columns; ``sequences`` the Gaussian of each pair's exponent,
    for the longest dimension of the grid. ``coarsen`` acts on what is spread on the next finer
    grid; the finest has none.
    """

    grid: UniformGrid
    pairs: Int[np.ndarray, "pair 2"]
    sequences: Float[np.ndarray, "pair size"]
    num_sources: int = eqx.field(static=True)
    num_targets: int = eqx.field(static=True)
    coarsen: _Matrices | None

    def transposed(self) -> "_Level":
        """The level that acts backwards."""
        return dataclasses.replace(
            self,
            pairs=self.pairs[:, ::-1],
            num_sources=self.num_targets,
            num_targets=self.num_sources,
        )

    def spread(
        self,
        values: Float[AnyArray, "grid _"],
        finer: Float[np.ndarray, "_ x y z"] | None,
        pool: Executor,
    ) -> Float[np.ndarray, "source _ _ _"]:
        """Values at the own points, and what is spread on the finer grid, spread on this one."""
        total = self.grid.spread(values[:, : self.num_sources], pool)
        if self.coarsen is not None and finer is not None:
            for own, column in zip(total, finer, strict=False):
                own += along_each_dimension(self.coarsen, column)
        return total

    def convolve(
        self, spread: Float[np.ndarray, "source x y z"], pool: Executor
    ) -> Float[np.ndarray, "target x y z"]:
        """Sum over pairs of columns; ``pool`` runs targets in parallel."""

        def field(target: int) -> Float[np.ndarray, "x y z"]:
            total = np.zeros(self.grid.shape)
            for index in np.flatnonzero(self.pairs[:, 1] == target):
                gaussian = scipy.linalg.toeplitz(self.sequences[index])
                matrices = tuple(gaussian[:size, :size] for size in self.grid.shape)
                total += along_each_dimension(matrices, spread[self.pairs[index, 0]])
            return total

        return np.stack(list(pool.map(field, range(self.num_targets))))

    def refine(
        self, fields: Float[np.ndarray, "target x y z"], finer: Float[np.ndarray, "_ _ _ _"]
    ) -> None:
        """Add fields of this grid to those of the next finer one."""
        assert self.coarsen is not None
        matrices = tuple(matrix.T for matrix in self.coarsen)
        for column, total in zip(fields, finer, strict=False):
            total += along_each_dimension(matrices, column)


class NestedGridsConvolution(eqx.Module):
    """Convolution with the Gaussians of all pairs of exponents that some uniform grid resolves.

    The levels descend from the finest grid.
    """

    levels: tuple[_Level, ...]

    def apply(
        self, charges: Float[AnyArray, "grid source"], pool: Executor
    ) -> Float[np.ndarray, "grid target"]:
        """Fields of charges, both at the points; further columns are left aside.

        ``pool`` runs parts of the work in parallel; it must not run this itself.
        """
        return _convolve(self.levels, charges, pool)

    def transpose(
        self, fields: Float[AnyArray, "grid target"], pool: Executor
    ) -> Float[np.ndarray, "grid source"]:
        """The transposed map."""
        return _convolve(self._transposed_levels, fields, pool)

    def derivative_by_points(
        self,
        charges: Float[AnyArray, "grid source"],
        by_fields: Float[AnyArray, "grid target"],
        pool: Executor,
    ) -> Float[np.ndarray, "grid xyz"]:
        """Derivative of ``by_fields`` times the fields of charges, as the points move (per bohr).

        A point takes its charge with it, and the place where its fields are.
        """
        derivative = np.zeros((len(charges), 3))
        for levels, values, by_read in (
            (self.levels, charges, by_fields),
            (self._transposed_levels, by_fields, charges),
        ):
            for level, fields in zip(levels, _grid_fields(levels, values, pool), strict=True):
                own = by_read[:, : level.num_targets]
                derivative += level.grid.read_gradients(fields, own, pool)
        return derivative

    @property
    def _transposed_levels(self) -> tuple[_Level, ...]:
        return tuple(level.transposed() for level in self.levels)


def _convolve(
    levels: Sequence[_Level], values: Float[AnyArray, "grid _"], pool: Executor
) -> Float[np.ndarray, "grid target"]:
    result = np.zeros((len(values), max((level.num_targets for level in levels), default=0)))
    for level, own in zip(levels, _grid_fields(levels, values, pool), strict=True):
        result[:, : level.num_targets] += level.grid.read(own, pool)
    return result


def _grid_fields(
    levels: Sequence[_Level], values: Float[AnyArray, "grid _"], pool: Executor
) -> list[Float[np.ndarray, "_ _ _ _"]]:
    """Fields on each grid, for the points that it holds."""
    spreads: list[Float[np.ndarray, "_ _ _ _"]] = []
    for level in levels:
        spreads.append(level.spread(values, spreads[-1] if spreads else None, pool))
    fields = [level.convolve(spread, pool) for level, spread in zip(levels, spreads, strict=True)]
    for index in range(len(levels) - 1, 0, -1):
        levels[index].refine(fields[index], fields[index - 1])
    return fields


def nested_grids_convolution(
    coords: Float[np.ndarray, "grid xyz"],
    reaches: Sequence[Reach],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> NestedGridsConvolution:
    """The convolution with ``exp(-(a + b) u^2)`` for all exponents that the finest grid resolves.

    The grids ascend by their largest exponent, as the exponents (bohr^-2) do. Points outside of
    all boxes have no charges and no fields.
    """
    levels: list[_Level] = []
    held = np.zeros(len(coords), dtype=bool)
    for index in range(len(reaches) - 1, -1, -1):
        largest, box = reaches[index]
        coarser = reaches[index - 1].largest_exponent if index else 0.0
        sources = source_exponents[source_exponents <= largest]
        targets = target_exponents[target_exponents <= largest]
        pairs = np.argwhere(np.maximum.outer(sources, targets) > coarser)
        if not len(pairs):
            continue
        grid = uniform_grid(coords, box, 2 * largest, held)
        held |= grid.held
        gammas = (sources[pairs[:, 0]] + targets[pairs[:, 1]]) * grid.spacing**2
        coarsen = None
        if levels:
            finer = levels[-1].grid
            coarsen = tuple(
                coarsening(finer.places_along(axis), grid.places_along(axis)) for axis in range(3)
            )
        sequences = grid_gaussians(gammas, max(grid.shape))
        levels.append(_Level(grid, pairs, sequences, len(sources), len(targets), coarsen))
    return NestedGridsConvolution(tuple(levels))
