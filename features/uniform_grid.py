r"""Convolution with smooth Gaussians on a uniform grid, without periodicity.

Sources anywhere in space are spread over the cells around them with a smooth window, convolved on
the grid, and the fields read off with the same window,

.. math:: e^{-\gamma (x - x')^2} \approx \sum_{ij} \phi(x - x_i)\, T_\gamma(i - j)\, \phi(x' - x_j),
          \qquad \hat T_\gamma(k) = \hat g_\gamma(k) / \hat\phi(k)^2,

in each dimension, as in a nonuniform fast Fourier transform (Barnett, Magland, af Klinteberg,
SIAM J. Sci. Comput. 41, C479 (2019)), whose window this is. The Gaussian is a product of its
dimensions, so that dense products with small matrices take the place of Fourier transforms.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cider.conventions import AnyArray

WINDOW = 6
"""Width of the window, in cells."""

WINDOW_SHARPNESS = 2.3 * WINDOW
"""Exponent of the window at its centre; this choice balances truncation against aliasing."""

BLOCK = 3
"""Cells per dimension of the blocks by which points are sorted."""

PATCH = BLOCK + WINDOW - 1
"""Grid points per dimension that the points of a block reach."""

TILE = 128
"""Points of one block that share a matrix product."""

BATCH = 16
"""Tiles that are worked on together."""

RESOLUTION = 0.2
"""Product of the largest exponent and the squared spacing."""


def window(x: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """The window at a distance of ``x`` cells: one at zero, zero beyond half its width."""
    inside = jnp.maximum(1 - (2 * x / WINDOW) ** 2, 0.0)
    # The derivative of the root at zero is infinite; there the window is cut off.
    root = jnp.sqrt(jnp.where(inside > 0, inside, 1.0))
    return jnp.where(inside > 0, jnp.exp(WINDOW_SHARPNESS * (root - 1)), 0.0)


def grid_gaussians(
    gammas: Float[np.ndarray, " pair"], size: int
) -> Float[np.ndarray, "pair size size"]:
    r"""The matrices :math:`T_\gamma(i - j)`; ``gammas`` in units of the inverse squared spacing."""
    nodes, weights = np.polynomial.legendre.leggauss(2 * size + 100)
    k = np.pi * nodes
    x, w = np.polynomial.legendre.leggauss(100)
    x, w = WINDOW / 2 * x, WINDOW / 2 * w
    transform = (w * np.asarray(window(x))) @ np.cos(np.outer(x, k))
    gamma = gammas[:, None]
    spectrum = np.sqrt(np.pi / gamma) * np.exp(-(k**2) / (4 * gamma)) / transform**2
    sequences = (weights * spectrum) @ np.cos(np.outer(k, np.arange(size))) / 2
    index = np.arange(size)
    return sequences[:, abs(index[:, None] - index)]


class UniformGrid(eqx.Module):
    """A box of cells and the points within it, sorted by blocks into tiles of equal size.

    ``points`` are indices into the points of the system; what fills up a tile is one past them.
    ``places`` says where each point is among the tiles (one past them if outside of the box).
    """

    shape: tuple[int, int, int] = eqx.field(static=True)
    spacing: float = eqx.field(static=True)
    corners: Int[np.ndarray, "tile xyz"]
    points: Int[np.ndarray, "tile point"]
    offsets: Float[np.ndarray, "tile point xyz"]
    places: Int[np.ndarray, " grid"]

    @eqx.filter_jit
    def spread(self, charges: Float[AnyArray, "grid c"]) -> Float[Array, "x y z c"]:
        """Charges at the points, spread over the grid."""
        padded = jnp.pad(jnp.asarray(charges), ((0, 1), (0, 0)))
        num = padded.shape[1]

        def add_batch(total: Array, batch: tuple[Array, Array, Array]) -> tuple[Array, None]:
            corners, points, offsets = batch
            plane, line = _windows(offsets)
            columns = (line[..., None] * padded[points][:, :, None]).reshape(BATCH, TILE, -1)
            patches = jnp.einsum("tpi,tpj->tij", plane, columns)
            patches = patches.reshape(BATCH, PATCH, PATCH, PATCH, num)
            for corner, patch in zip(corners, patches, strict=True):
                start = (*corner, 0)
                old = jax.lax.dynamic_slice(total, start, patch.shape)
                total = jax.lax.dynamic_update_slice(total, old + patch, start)
            return total, None

        zero = jnp.zeros((*self.shape, num), padded.dtype)
        return jax.lax.scan(add_batch, zero, self._batches())[0]

    @eqx.filter_jit
    def read(self, values: Float[Array, "x y z c"]) -> Float[Array, "grid c"]:
        """The transpose of ``spread``: values at the points, zero outside of the box."""
        num = values.shape[3]

        def read_batch(batch: tuple[Array, Array, Array]) -> Array:
            corners, _, offsets = batch
            plane, line = _windows(offsets)
            patches = jnp.stack(
                [
                    jax.lax.dynamic_slice(values, (*corner, 0), (PATCH, PATCH, PATCH, num))
                    for corner in corners
                ]
            )
            lines = jnp.einsum("tpi,tij->tpj", plane, patches.reshape(BATCH, PATCH**2, -1))
            lines = lines.reshape(BATCH, TILE, PATCH, num)
            terms = [line[:, :, k, None] * lines[:, :, k] for k in range(PATCH)]
            return sum(terms[1:], terms[0])

        by_tile = jax.lax.map(read_batch, self._batches()).reshape(-1, num)
        return jnp.pad(by_tile, ((0, 1), (0, 0)))[self.places]

    def _batches(self) -> tuple[Array, Array, Array]:
        def split(x: AnyArray) -> Array:
            return jnp.reshape(x, (-1, BATCH, *x.shape[1:]))

        return split(self.corners), split(self.points), split(self.offsets)


def _windows(
    offsets: Float[Array, "tile point xyz"],
) -> tuple[Float[Array, "tile point plane"], Float[Array, "tile point line"]]:
    """Window of points in x and y, and in z, at the grid points of their patch."""
    distance = offsets[..., None] - jnp.arange(PATCH, dtype=offsets.dtype)[None, None, None]
    x, y, z = jnp.moveaxis(window(distance), 2, 0)
    plane = x[..., :, None] * y[..., None, :]
    return plane.reshape(*plane.shape[:2], -1), z


def uniform_grid(
    coords: Float[np.ndarray, "grid xyz"],
    box: Float[np.ndarray, "2 xyz"],
    largest_exponent: float,
) -> UniformGrid:
    """A grid that resolves Gaussians up to an exponent (bohr^-2), and the points in the box.

    The box (least and largest coordinates, bohr) is enlarged to a whole number of blocks.
    """
    spacing = math.sqrt(RESOLUTION / largest_exponent)
    # A multiple of four, so that molecules of like size share what is compiled.
    num_blocks = 4 * np.ceil((box[1] - box[0]) / (4 * BLOCK * spacing)).astype(int)
    origin = (box[0] + box[1] - num_blocks * BLOCK * spacing) / 2
    position = (coords - origin) / spacing  # in cells
    block = np.floor(position / BLOCK).astype(int)
    inside = np.all((block >= 0) & (block < num_blocks), axis=1)
    tiles, corners = _sort_into_tiles(block, inside, num_blocks)
    num_tiles = _rounded_up(len(tiles))
    points = np.full((num_tiles, TILE), len(coords))
    points[: len(tiles)] = tiles
    corner = np.zeros((num_tiles, 3), dtype=int)
    corner[: len(corners)] = corners * BLOCK
    offsets = position[np.minimum(points, len(coords) - 1)] - corner[:, None]
    # The first grid point of a patch lies half a window before the block.
    offsets += WINDOW / 2 - 1
    places = np.full(len(coords) + 1, num_tiles * TILE)
    places[points.ravel()] = np.arange(num_tiles * TILE)
    nx, ny, nz = (num_blocks * BLOCK + WINDOW - 1).tolist()
    return UniformGrid((nx, ny, nz), spacing, corner, points, offsets, places[:-1])


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
    """A number of tiles that few molecules do not share: whole batches, in steps of an eighth."""
    step = max(BATCH, 2 ** max(0, count.bit_length() - 3))
    return -(-count // step) * step


class UniformGridConvolution(eqx.Module):
    """Convolution with the Gaussians of some pairs of exponents, on one uniform grid.

    ``pairs`` are (source, target) columns; ``matrices`` the Gaussian of each pair's exponent,
    for the longest dimension of the grid.
    """

    grid: UniformGrid
    pairs: Int[np.ndarray, "pair 2"]
    matrices: Float[np.ndarray, "pair size size"]
    num_sources: int = eqx.field(static=True)
    num_targets: int = eqx.field(static=True)

    def apply(self, charges: Float[AnyArray, "grid source"]) -> Float[Array, "grid target"]:
        """Fields of charges, both at the points of the grid."""
        return self.grid.read(self._convolve(self.grid.spread(charges), self.num_targets, False))

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[Array, "grid source"]:
        """The transposed map."""
        return self.grid.read(self._convolve(self.grid.spread(fields), self.num_sources, True))

    @eqx.filter_jit
    def _convolve(
        self, values: Float[Array, "x y z in"], num_out: int, backward: bool
    ) -> Float[Array, "x y z out"]:
        values = jnp.moveaxis(values, 3, 0)
        nx, ny, nz = self.grid.shape
        pairs = self.pairs[:, ::-1] if backward else self.pairs

        def add_pair(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            (column_in, column_out), matrix = pair
            by_x = matrix[:nx, :nx] @ values[column_in].reshape(nx, -1)
            by_z = by_x.reshape(-1, nz) @ matrix[:nz, :nz]
            by_y = jnp.einsum("ij,xjz->xiz", matrix[:ny, :ny], by_z.reshape(nx, ny, nz))
            return total.at[column_out].add(by_y), None

        zero = jnp.zeros((num_out, nx, ny, nz), values.dtype)
        total, _ = jax.lax.scan(add_pair, zero, (jnp.asarray(pairs), jnp.asarray(self.matrices)))
        return jnp.moveaxis(total, 0, 3)


def uniform_grid_convolution(
    grid: UniformGrid,
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
    selected: Bool[np.ndarray, "source target"],
) -> UniformGridConvolution:
    """The convolution with ``exp(-(a + b) u^2)`` for the selected pairs of exponents (bohr^-2)."""
    pairs = np.argwhere(selected)
    gammas = (source_exponents[pairs[:, 0]] + target_exponents[pairs[:, 1]]) * grid.spacing**2
    matrices = grid_gaussians(gammas, max(grid.shape))
    return UniformGridConvolution(
        grid, pairs, matrices, len(source_exponents), len(target_exponents)
    )
