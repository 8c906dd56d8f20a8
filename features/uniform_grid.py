r"""A uniform grid for points anywhere in space, and smooth Gaussians on it.

Sources anywhere in space are spread over the cells around them with a smooth window, convolved on
the grid, and the fields read off with the same window,

.. math:: e^{-\gamma (x - x')^2} \approx \sum_{ij} \phi(x - x_i)\, T_\gamma(i - j)\, \phi(x' - x_j),
          \qquad \hat T_\gamma(k) = \hat g_\gamma(k) / \hat\phi(k)^2,

in each dimension, as in a nonuniform fast Fourier transform (Barnett, Magland, af Klinteberg,
SIAM J. Sci. Comput. 41, C479 (2019)), whose window this is. The Gaussian is a product of its
dimensions, so that dense products with small matrices take the place of Fourier transforms.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import no_type_check

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import circulant
from scipy.special import roots_legendre

from cider.conventions import AnyArray
from cider.features.compiled import compiled

WINDOW = 7
"""Width of the window, in cells."""

WINDOW_SHARPNESS = 2.4 * WINDOW
"""Exponent of the window at its centre; this choice balances truncation against aliasing."""

EDGE = 1e-6
"""Share of the squared half width that is the edge of the window, which falls by 1e-9 there."""

BLOCK = 4
"""Cells per dimension of the blocks by which points are sorted, for the processor's cache."""

PARTS = 4
"""Parts of the points that are worked on in parallel, and added up in order."""

RESOLUTION = 0.2
"""Product of the largest exponent and the squared spacing."""


@compiled
@no_type_check
def window(x: float) -> float:
    """The window at a distance of ``x`` cells: one at zero, zero beyond half its width."""
    inside = 1 - (2 * x / WINDOW) ** 2
    return math.exp(WINDOW_SHARPNESS * (math.sqrt(inside) - 1)) if inside > 0 else 0.0


@compiled
@no_type_check
def window_slope(x: float) -> float:
    """The derivative of the window; zero at its very edge, where the formula has no bound.

    Points of an atom share coordinates: rounding could put many of them there at once.
    """
    inside = 1 - (2 * x / WINDOW) ** 2
    if inside < EDGE:
        return 0.0
    return -4 * WINDOW_SHARPNESS * x / (WINDOW**2 * math.sqrt(inside)) * window(x)


def _window_transform(k: Float[np.ndarray, " wave"]) -> Float[np.ndarray, " wave"]:
    """Fourier transform of the window, of a wave number per cell."""
    x, weights = roots_legendre(100)
    x, weights = WINDOW / 2 * x, WINDOW / 2 * weights
    return (weights * [window(place) for place in x]) @ np.cos(np.outer(x, k))


def _wave_numbers(size: int) -> tuple[Float[np.ndarray, " wave"], Float[np.ndarray, " wave"]]:
    """Quadrature over the wave numbers of a grid, up to pi per cell, for a number of cells."""
    nodes, weights = roots_legendre(2 * size + 100)
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


class UniformGrid(eqx.Module):
    """A box of cells, and the points within it, sorted by where they are.

    ``points`` are indices into the points of the system. Each reaches ``WINDOW`` grid points per
    dimension, of which ``corners`` is the first; ``offsets`` (in cells) are counted from there.
    ``origin`` (bohr) is the first grid point of all.
    """

    shape: tuple[int, int, int] = eqx.field(static=True)
    spacing: float = eqx.field(static=True)
    origin: Float[np.ndarray, " xyz"]
    points: Int[np.ndarray, " held"]
    corners: Int[np.ndarray, "held xyz"]
    offsets: Float[np.ndarray, "held xyz"]
    num_points: int = eqx.field(static=True)

    @property
    def held(self) -> Bool[np.ndarray, " grid"]:
        """The points of the system that are in the box."""
        held = np.zeros(self.num_points, dtype=bool)
        held[self.points] = True
        return held

    def places_along(self, dimension: int) -> Float[np.ndarray, " line"]:
        """Coordinates (bohr) of the grid points in one dimension."""
        return self.origin[dimension] + self.spacing * np.arange(self.shape[dimension])

    def spread(
        self, charges: Float[AnyArray, "grid c"], pool: Executor
    ) -> Float[np.ndarray, "c x y z"]:
        """Charges at the points, spread over the grid; ``pool`` runs parts in parallel."""
        charges = np.asarray(charges)
        nx, ny, nz = self.shape
        num = charges.shape[1]

        def spread_part(part: slice) -> tuple[int, Float[np.ndarray, "x y z_c"]]:
            corners = self.corners[part]
            first, last = corners[:, 0].min(), corners[:, 0].max()
            slab = np.zeros((last - first + WINDOW, ny, nz * num))
            _spread(corners - [first, 0, 0], self.offsets[part], charges[self.points[part]], slab)
            return int(first), slab

        total = np.zeros((nx, ny, nz * num))
        for first, slab in pool.map(spread_part, self._parts()):
            total[first : first + len(slab)] += slab
        return np.ascontiguousarray(np.moveaxis(total.reshape(nx, ny, nz, num), 3, 0))

    def read(
        self, values: Float[np.ndarray, "c x y z"], pool: Executor
    ) -> Float[np.ndarray, "grid c"]:
        """The transpose of ``spread``: values at the points, zero at those outside of the box."""
        by_place = self._by_place(values)
        result = np.zeros((self.num_points, len(values)))

        def read_part(part: slice) -> None:
            own = np.empty((part.stop - part.start, len(values)))
            _read(self.corners[part], self.offsets[part], by_place, own)
            result[self.points[part]] = own

        list(pool.map(read_part, self._parts()))
        return result

    def read_gradients(
        self,
        values: Float[np.ndarray, "c x y z"],
        by_read: Float[AnyArray, "grid c"],
        pool: Executor,
    ) -> Float[np.ndarray, "grid xyz"]:
        """Gradients (per bohr) of ``by_read`` times what each point reads, as it moves."""
        by_place = self._by_place(values)
        by_read = np.asarray(by_read)
        result = np.zeros((self.num_points, 3))

        def gradients_of(part: slice) -> None:
            own = np.empty((part.stop - part.start, 3))
            by_own = by_read[self.points[part]]
            _read_gradients(self.corners[part], self.offsets[part], by_place, by_own, own)
            result[self.points[part]] = own / self.spacing

        list(pool.map(gradients_of, self._parts()))
        return result

    def _by_place(self, values: Float[np.ndarray, "c x y z"]) -> Float[np.ndarray, "x y z_c"]:
        """With the columns of one z after another."""
        by_place = np.ascontiguousarray(np.moveaxis(values, 0, 3))
        return by_place.reshape(*self.shape[:2], -1)

    def _parts(self) -> Iterator[slice]:
        """Neighbours together: sorted points lie in slabs along x."""
        ends = np.linspace(0, len(self.points), PARTS + 1).astype(int).tolist()
        return (slice(*pair) for pair in itertools.pairwise(ends) if pair[0] < pair[1])


@compiled
@no_type_check
def _spread(
    corners: Int[np.ndarray, "point xyz"],
    offsets: Float[np.ndarray, "point xyz"],
    charges: Float[np.ndarray, "point c"],
    total: Float[np.ndarray, "x y z_c"],
) -> None:
    """Add charges to the grid, whose last axis has the columns of one z after another."""
    num = charges.shape[1]
    x, y, z = np.empty(WINDOW), np.empty(WINDOW), np.empty(WINDOW)
    line = np.empty(WINDOW * num)
    for point in range(len(corners)):
        i, j, k = corners[point]
        _windows(offsets[point], x, y, z)
        for c in range(WINDOW):
            for column in range(num):
                line[c * num + column] = z[c] * charges[point, column]
        for a in range(WINDOW):
            for b in range(WINDOW):
                factor = x[a] * y[b]
                row = total[i + a, j + b, k * num : (k + WINDOW) * num]
                for n in range(len(line)):
                    row[n] += factor * line[n]


@compiled
@no_type_check
def _read(
    corners: Int[np.ndarray, "point xyz"],
    offsets: Float[np.ndarray, "point xyz"],
    values: Float[np.ndarray, "x y z_c"],
    result: Float[np.ndarray, "point c"],
) -> None:
    """The transpose of ``_spread``."""
    num = result.shape[1]
    x, y, z = np.empty(WINDOW), np.empty(WINDOW), np.empty(WINDOW)
    line = np.empty(WINDOW * num)
    for point in range(len(corners)):
        i, j, k = corners[point]
        _windows(offsets[point], x, y, z)
        line[:] = 0.0
        for a in range(WINDOW):
            for b in range(WINDOW):
                factor = x[a] * y[b]
                row = values[i + a, j + b, k * num : (k + WINDOW) * num]
                for n in range(len(line)):
                    line[n] += factor * row[n]
        for column in range(num):
            total = 0.0
            for c in range(WINDOW):
                total += z[c] * line[c * num + column]
            result[point, column] = total


@compiled
@no_type_check
def _read_gradients(
    corners: Int[np.ndarray, "point xyz"],
    offsets: Float[np.ndarray, "point xyz"],
    values: Float[np.ndarray, "x y z_c"],
    by_read: Float[np.ndarray, "point c"],
    gradients: Float[np.ndarray, "point xyz"],
) -> None:
    """Write the gradients, per cell, of ``by_read`` times what ``_read`` writes."""
    num = by_read.shape[1]
    x, y, z = np.empty(WINDOW), np.empty(WINDOW), np.empty(WINDOW)
    slope_x, slope_y, slope_z = np.empty(WINDOW), np.empty(WINDOW), np.empty(WINDOW)
    for point in range(len(corners)):
        i, j, k = corners[point]
        _windows(offsets[point], x, y, z)
        _window_slopes(offsets[point], slope_x, slope_y, slope_z)
        along_x, along_y, along_z = 0.0, 0.0, 0.0
        for a in range(WINDOW):
            for b in range(WINDOW):
                row = values[i + a, j + b, k * num : (k + WINDOW) * num]
                read, slope = 0.0, 0.0
                for c in range(WINDOW):
                    total = 0.0
                    for column in range(num):
                        total += by_read[point, column] * row[c * num + column]
                    read += z[c] * total
                    slope += slope_z[c] * total
                along_x += slope_x[a] * y[b] * read
                along_y += x[a] * slope_y[b] * read
                along_z += x[a] * y[b] * slope
        gradients[point, 0] = along_x
        gradients[point, 1] = along_y
        gradients[point, 2] = along_z


@compiled
@no_type_check
def _windows(
    offset: Float[np.ndarray, " xyz"],
    x: Float[np.ndarray, " line"],
    y: Float[np.ndarray, " line"],
    z: Float[np.ndarray, " line"],
) -> None:
    """The window of a point, at the grid points that it reaches in each dimension."""
    for n in range(WINDOW):
        x[n] = window(offset[0] - n)
        y[n] = window(offset[1] - n)
        z[n] = window(offset[2] - n)


@compiled
@no_type_check
def _window_slopes(
    offset: Float[np.ndarray, " xyz"],
    x: Float[np.ndarray, " line"],
    y: Float[np.ndarray, " line"],
    z: Float[np.ndarray, " line"],
) -> None:
    """The derivatives of ``_windows``."""
    for n in range(WINDOW):
        x[n] = window_slope(offset[0] - n)
        y[n] = window_slope(offset[1] - n)
        z[n] = window_slope(offset[2] - n)


def uniform_grid(
    coords: Float[np.ndarray, "grid xyz"],
    box: Float[np.ndarray, "2 xyz"],
    largest_exponent: float,
    excluded: Bool[np.ndarray, " grid"],
) -> UniformGrid:
    """A grid that resolves Gaussians up to an exponent (bohr^-2), and the points in the box.

    The box (least and largest coordinates, bohr) is enlarged to a whole number of cells. Points
    that are ``excluded`` are left out.
    """
    spacing = math.sqrt(RESOLUTION / largest_exponent)
    num_cells = np.ceil((box[1] - box[0]) / spacing).astype(int)
    start = (box[0] + box[1] - num_cells * spacing) / 2
    return _sorted_into_cells((coords - start) / spacing, num_cells, ~excluded, spacing, start)


def periodic_uniform_grid(
    fractions: Float[np.ndarray, "grid 3"], num_cells: Int[np.ndarray, "3"]
) -> UniformGrid:
    """A grid of some cells along each vector of a lattice, in units of these cells.

    ``fractions`` are the points in units of the vectors; the grid has all of them. Its last
    ``WINDOW - 1`` places in each dimension are those where it begins again; see ``wrapped``.
    """
    within = fractions - np.floor(fractions)
    within[within >= 1] = 0.0  # rounded up
    everywhere = np.ones(len(fractions), dtype=bool)
    return _sorted_into_cells(within * num_cells, num_cells, everywhere, 1.0, np.zeros(3))


def wrapped(
    values: Float[np.ndarray, "c _ _ _"], num_cells: Int[np.ndarray, "3"]
) -> Float[np.ndarray, "c x y z"]:
    """Values of a periodic grid, the sum of those at equal places."""
    for axis, size in enumerate(num_cells, start=1):
        places = np.moveaxis(values, axis, 0)
        total = np.zeros((size, *places.shape[1:]))
        for start in range(0, len(places), size):
            part = places[start : start + size]
            total[: len(part)] += part
        values = np.moveaxis(total, 0, axis)
    return values


def unwrapped(values: Float[np.ndarray, "c x y z"]) -> Float[np.ndarray, "c _ _ _"]:
    """The transpose of ``wrapped``: equal values at equal places."""
    for axis in (1, 2, 3):
        places = np.arange(values.shape[axis] + WINDOW - 1)
        values = np.take(values, places, axis, mode="wrap")
    return values


def without_window(num_cells: int) -> Float[np.ndarray, "x x"]:
    r"""What undoes the window, on a periodic line of cells: of charges spread, or before a reading.

    The matrix with the spectrum :math:`1 / \hat\phi(k)`.
    """
    k = 2 * np.pi * np.fft.rfftfreq(num_cells)
    return circulant(np.fft.irfft(1 / _window_transform(k), num_cells))


def along_each_dimension(
    matrices: Sequence[Float[np.ndarray, "_ _"]], values: Float[np.ndarray, "x y z"]
) -> Float[np.ndarray, "_ _ _"]:
    """The product with a matrix in each dimension."""
    along_x, along_y, along_z = matrices
    nx, ny, nz = values.shape
    by_x = along_x @ values.reshape(nx, ny * nz)
    by_z = by_x.reshape(-1, nz) @ along_z.T
    return along_y @ by_z.reshape(len(along_x), ny, len(along_z))


def _sorted_into_cells(
    position: Float[np.ndarray, "grid xyz"],
    num_cells: Int[np.ndarray, "3"],
    chosen: Bool[np.ndarray, " grid"],
    spacing: float,
    start: Float[np.ndarray, " xyz"],
) -> UniformGrid:
    """The grid that begins at ``start`` (bohr), with those chosen points that are in its cells."""
    cell = np.floor(position).astype(int)
    held = np.flatnonzero(np.all((cell >= 0) & (cell < num_cells), axis=1) & chosen)
    points = held[np.lexsort((cell[held] // BLOCK).T[::-1])]
    # In cells: of a point in the first cell, the first grid point that it reaches.
    first = 1 - WINDOW / 2
    corners = cell[points]
    nx, ny, nz = (num_cells + WINDOW - 1).tolist()
    return UniformGrid(
        shape=(nx, ny, nz),
        spacing=spacing,
        origin=start + first * spacing,
        points=points,
        corners=corners,
        offsets=position[points] - corners - first,
        num_points=len(position),
    )
