r"""A uniform grid for points anywhere in space, and smooth Gaussians on it, without periodicity.

Sources anywhere in space are spread over the cells around them with a smooth window, convolved on
the grid, and the fields read off with the same window,

.. math:: e^{-\gamma (x - x')^2} \approx \sum_{ij} \phi(x - x_i)\, T_\gamma(i - j)\, \phi(x' - x_j),
          \qquad \hat T_\gamma(k) = \hat g_\gamma(k) / \hat\phi(k)^2,

in each dimension, as in a nonuniform fast Fourier transform (Barnett, Magland, af Klinteberg,
SIAM J. Sci. Comput. 41, C479 (2019)), whose window this is. The Gaussian is a product of its
dimensions, so that dense products with small matrices take the place of Fourier transforms.
"""

import math
from concurrent.futures import Executor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cider.conventions import AnyArray, float64

WINDOW = 7
"""Width of the window, in cells."""

WINDOW_SHARPNESS = 2.4 * WINDOW
"""Exponent of the window at its centre; this choice balances truncation against aliasing."""

BLOCK = 3
"""Cells per dimension of the blocks by which points are sorted."""

PATCH = BLOCK + WINDOW - 1
"""Grid points per dimension that the points of a block reach."""

TILE = 32
"""Points of one block that share a matrix product."""

PARTS = 4
"""Parts of the points that are worked on in parallel, and added up in order."""

RESOLUTION = 0.2
"""Product of the largest exponent and the squared spacing."""


def window(x: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """The window at a distance of ``x`` cells: one at zero, zero beyond half its width."""
    inside = jnp.maximum(1 - (2 * x / WINDOW) ** 2, 0.0)
    # The derivative of the root at zero is infinite; there the window is cut off.
    root = jnp.sqrt(jnp.where(inside > 0, inside, 1.0))
    return jnp.where(inside > 0, jnp.exp(WINDOW_SHARPNESS * (root - 1)), 0.0)


def _window_transform(k: Float[np.ndarray, " wave"]) -> Float[np.ndarray, " wave"]:
    """Fourier transform of the window, of a wave number per cell."""
    x, weights = np.polynomial.legendre.leggauss(100)
    x, weights = WINDOW / 2 * x, WINDOW / 2 * weights
    return (weights * np.asarray(window(x))) @ np.cos(np.outer(x, k))


def _wave_numbers(size: int) -> tuple[Float[np.ndarray, " wave"], Float[np.ndarray, " wave"]]:
    """Quadrature over the wave numbers of a grid, up to pi per cell, for a number of cells."""
    nodes, weights = np.polynomial.legendre.leggauss(2 * size + 100)
    return np.pi * nodes, np.pi * weights


def grid_gaussians(gammas: Float[np.ndarray, " pair"], size: int) -> Float[np.ndarray, "pair size"]:
    r"""The sequences :math:`T_\gamma(n)`; ``gammas`` in units of the inverse squared spacing."""
    k, weights = _wave_numbers(size)
    gamma = gammas[:, None]
    spectrum = np.sqrt(np.pi / gamma) * np.exp(-(k**2) / (4 * gamma)) / _window_transform(k) ** 2
    return (weights * spectrum) @ np.cos(np.outer(k, np.arange(size))) / (2 * np.pi)


def coarsening(
    fine: Float[np.ndarray, " fine"], coarse: Float[np.ndarray, " coarse"]
) -> Float[np.ndarray, "coarse fine"]:
    r"""What turns charges spread over one grid into those spread over a coarser one.

    Of ``fine`` and ``coarse`` (bohr), the equidistant places of the grid points in one dimension.
    The spectrum of the matrix, :math:`\hat\phi_c(k) / \hat\phi_f(k)`, replaces one window by the
    other for the waves that the finer grid has; smoother Gaussians have no others.
    """
    spacing, ratio = fine[1] - fine[0], (coarse[1] - coarse[0]) / (fine[1] - fine[0])
    distance = np.subtract.outer(coarse, fine) / spacing
    k, weights = _wave_numbers(int(abs(distance).max()) + 1)
    spectrum = ratio * _window_transform(ratio * k) / _window_transform(k)
    # cos(k (X - x)), as the product that it is.
    angle_coarse, angle_fine = np.outer(coarse / spacing, k), np.outer(fine / spacing, k)
    weighted = weights * spectrum / (2 * np.pi)
    return (np.cos(angle_coarse) * weighted) @ np.cos(angle_fine).T + (
        np.sin(angle_coarse) * weighted
    ) @ np.sin(angle_fine).T


class Tiles(eqx.Module):
    """Points sorted by blocks of cells into tiles of equal size.

    ``points`` are indices into the points of the system; what fills up a tile is one past them.
    """

    corners: Int[np.ndarray, "tile xyz"]
    points: Int[np.ndarray, "tile point"]
    offsets: Float[np.ndarray, "tile point xyz"]


class UniformGrid(eqx.Module):
    """A box of cells, and the points within it in a few parts of as many tiles.

    ``origin`` (bohr) is where the first grid point lies.
    """

    shape: tuple[int, int, int] = eqx.field(static=True)
    spacing: float = eqx.field(static=True)
    origin: Float[np.ndarray, " xyz"]
    parts: tuple[Tiles, ...]
    num_points: int = eqx.field(static=True)

    @property
    def held(self) -> Bool[np.ndarray, " grid"]:
        """The points that are in some tile."""
        held = np.zeros(self.num_points + 1, dtype=bool)
        for part in self.parts:
            held[part.points] = True
        return held[:-1]

    def places_along(self, dimension: int) -> Float[np.ndarray, " line"]:
        """Coordinates (bohr) of the grid points in one dimension."""
        return self.origin[dimension] + self.spacing * np.arange(self.shape[dimension])

    def spread(
        self, charges: Float[AnyArray, "grid c"], pool: Executor
    ) -> Float[np.ndarray, "c x y z"]:
        """Charges at the points, spread over the grid; ``pool`` runs parts in parallel."""
        total = np.zeros((charges.shape[1], *self.shape))
        for part in pool.map(lambda part: _spread(part, charges, self.shape), self.parts):
            total += part
        return total

    def read(
        self, values: Float[np.ndarray, "c x y z"], pool: Executor
    ) -> Float[np.ndarray, "grid c"]:
        """The transpose of ``spread``: values at the points, zero at those in no tile."""
        result = np.zeros((self.num_points + 1, len(values)))
        by_part = pool.map(lambda part: _read(part, values), self.parts)
        for part, own in zip(self.parts, by_part, strict=True):
            result[part.points] = own
        result[-1] = 0.0
        return result[:-1]


@float64
def _spread(
    tiles: Tiles, charges: Float[AnyArray, "grid c"], shape: tuple[int, int, int]
) -> Float[np.ndarray, "c x y z"]:
    return np.asarray(_compiled_spread(tiles, charges, shape))


@float64
def _read(tiles: Tiles, values: Float[np.ndarray, "c x y z"]) -> Float[np.ndarray, "tile point c"]:
    return np.asarray(_compiled_read(tiles, values))


@eqx.filter_jit
def _compiled_spread(
    tiles: Tiles, charges: Float[AnyArray, "grid c"], shape: tuple[int, int, int]
) -> Float[Array, "c x y z"]:
    padded = jnp.pad(jnp.asarray(charges), ((0, 1), (0, 0)))
    num = padded.shape[1]

    def add_tile(total: Array, tile: tuple[Array, Array, Array]) -> tuple[Array, None]:
        corner, own, offsets = tile
        x, plane = _windows(offsets)
        columns = own.T[:, None] * x[None]
        patch = (columns.reshape(-1, TILE) @ plane.T).reshape(num, PATCH, PATCH, PATCH)
        start = (0, *corner)
        old = jax.lax.dynamic_slice(total, start, patch.shape)
        return jax.lax.dynamic_update_slice(total, old + patch, start), None

    # Gathered here: within the loop it would be split among threads, and be slower.
    sequence = jnp.asarray(tiles.corners), padded[tiles.points], jnp.asarray(tiles.offsets)
    return jax.lax.scan(add_tile, jnp.zeros((num, *shape), padded.dtype), sequence)[0]


@eqx.filter_jit
def _compiled_read(
    tiles: Tiles, values: Float[AnyArray, "c x y z"]
) -> Float[Array, "tile point c"]:
    values = jnp.asarray(values)
    num = values.shape[0]

    def read_tile(tile: tuple[Array, Array]) -> Array:
        corner, offsets = tile
        x, plane = _windows(offsets)
        patch = jax.lax.dynamic_slice(values, (0, *corner), (num, PATCH, PATCH, PATCH))
        columns = (patch.reshape(num * PATCH, -1) @ plane).reshape(num, PATCH, TILE)
        terms = [columns[:, k] * x[k][None] for k in range(PATCH)]
        return sum(terms[1:], terms[0]).T

    return jax.lax.map(read_tile, (jnp.asarray(tiles.corners), jnp.asarray(tiles.offsets)))


def _windows(
    offsets: Float[Array, "point xyz"],
) -> tuple[Float[Array, "line point"], Float[Array, "plane point"]]:
    """Window of points in x, and in y and z, at the grid points of their patch."""
    places = jnp.arange(PATCH, dtype=offsets.dtype)
    x, y, z = window(offsets.T[:, None] - places[None, :, None])
    return x, (y[:, None] * z[None]).reshape(PATCH**2, -1)


def uniform_grid(
    coords: Float[np.ndarray, "grid xyz"],
    box: Float[np.ndarray, "2 xyz"],
    largest_exponent: float,
    excluded: Bool[np.ndarray, " grid"],
) -> UniformGrid:
    """A grid that resolves Gaussians up to an exponent (bohr^-2), and the points in the box.

    The box (least and largest coordinates, bohr) is enlarged to a whole number of blocks. Points
    that are ``excluded`` are left out.
    """
    spacing = math.sqrt(RESOLUTION / largest_exponent)
    # An even number, so that molecules of like size share what is compiled.
    num_blocks = 2 * np.ceil((box[1] - box[0]) / (2 * BLOCK * spacing)).astype(int)
    origin = (box[0] + box[1] - num_blocks * BLOCK * spacing) / 2
    position = (coords - origin) / spacing  # in cells
    block = np.floor(position / BLOCK).astype(int)
    inside = np.all((block >= 0) & (block < num_blocks), axis=1) & ~excluded
    tiles, corners = _sort_into_tiles(block, inside, num_blocks)
    num_tiles = _rounded_up(len(tiles))
    points = np.full((num_tiles, TILE), len(coords))
    points[: len(tiles)] = tiles
    corner = np.zeros((num_tiles, 3), dtype=int)
    corner[: len(corners)] = corners * BLOCK
    offsets = position[np.minimum(points, len(coords) - 1)] - corner[:, None]
    # The first grid point of a patch lies half a window before the block.
    offsets += WINDOW / 2 - 1
    size = num_tiles // PARTS
    parts = tuple(
        Tiles(*(array[start : start + size] for array in (corner, points, offsets)))
        for start in range(0, num_tiles, size or 1)
    )
    nx, ny, nz = (num_blocks * BLOCK + WINDOW - 1).tolist()
    first = origin - (WINDOW / 2 - 1) * spacing
    return UniformGrid((nx, ny, nz), spacing, first, parts, len(coords))


def _sort_into_tiles(
    block: Int[np.ndarray, "grid xyz"],
    inside: Bool[np.ndarray, " grid"],
    num_blocks: Int[np.ndarray, " xyz"],
) -> tuple[Int[np.ndarray, "tile point"], Int[np.ndarray, "tile xyz"]]:
    """Points of each tile (filled up with one past all), and its block."""
    members = np.flatnonzero(inside)
    number = np.ravel_multi_index(tuple(block[members].T), tuple(num_blocks))
    order = np.argsort(number, kind="stable")
    members, number = members[order], number[order]
    blocks, first, count = np.unique(number, return_index=True, return_counts=True)
    tiles_of_block = -(-count // TILE)
    first_tile = np.cumsum(tiles_of_block) - tiles_of_block
    rank = np.arange(len(members)) - np.repeat(first, count)
    tile = np.repeat(first_tile, count) + rank // TILE
    tiles = np.full((tiles_of_block.sum(), TILE), len(block))
    tiles[tile, rank % TILE] = members
    corners = np.stack(np.unravel_index(np.repeat(blocks, tiles_of_block), tuple(num_blocks)), 1)
    return tiles, corners


def _rounded_up(count: int) -> int:
    """A number of tiles that molecules of like size share, an eighth larger at most.

    A multiple of ``PARTS``.
    """
    step = max(PARTS, 2 ** (count.bit_length() - 4) if count > 8 else 1)
    return -(-count // step) * step
