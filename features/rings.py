r"""Fields of an atom at the points of other atoms.

In panels of the radius they are polynomials times spherical harmonics. The panels form rings
about the atom: the farther a ring, the fewer harmonics and the fewer exponents have fields there.
Points are worked on in tiles of equal size, so that what is compiled is the same for all
molecules.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cider.features.spherical import real_spherical_harmonics


class Ring(NamedTuple):
    """Radii (bohr) about an atom, and the fields that its sources have there."""

    inner: float
    outer: float
    lmax: int
    """Largest angular momentum."""
    largest_exponent: float
    """Largest exponent (bohr^-2) of the fields."""

    @property
    def num_panels(self) -> int:
        """Number of panels."""
        return round((self.outer - self.inner) / PANEL_WIDTH)


RINGS = (
    Ring(0.0, 3.0, lmax=14, largest_exponent=200.0),
    Ring(3.0, 4.0, lmax=10, largest_exponent=30.0),
    Ring(4.0, 5.0, lmax=8, largest_exponent=10.0),
    Ring(5.0, 6.0, lmax=6, largest_exponent=3.0),
)
"""Everything of an atom's sharp Gaussians that reaches the points of others.

Sharp fields follow the density closely, and the partition leaves an atom no sources near other
nuclei and few beyond 3 bohr. What is left out is 2e-5 of benzene's sharpest feature and 1e-7 of
its energy.
"""

PANEL_WIDTH = 0.5
"""Width of a panel (bohr)."""

DEGREE = 5
"""Number of powers of the radius in each panel."""

TILE = 128
"""Grid points of one panel, which share a matrix product.

No more: larger products would be split among threads, which atoms have already.
"""

BATCH = 16
"""Tiles that are evaluated in one call."""


def panel_nodes() -> Float[np.ndarray, " node"]:
    """Radii (bohr) where the fields of an atom fix their polynomials, panel after panel."""
    starts = np.arange(0.0, RINGS[-1].outer, PANEL_WIDTH)
    return (starts[:, None] + PANEL_WIDTH / 2 * (1 + _CHEBYSHEV_POINTS)).ravel()


def num_nodes(l: int) -> int:
    """Number of those radii in the rings that have harmonics of ``l``."""
    return DEGREE * sum(ring.num_panels for ring in RINGS if ring.lmax >= l)


_CHEBYSHEV_POINTS = np.cos(np.pi * (np.arange(DEGREE) + 0.5) / DEGREE)

TO_POWERS = np.linalg.inv(np.vander(_CHEBYSHEV_POINTS, increasing=True))
"""Coefficients of the powers of a panel's coordinate, from -1 to 1, by the values at its nodes."""


class RingPoints(eqx.Module):
    """The points of other atoms in one ring about an atom, in batches of tiles.

    Each tile lies within one panel; what fills it up is the index past the grid.
    """

    ring: Ring = eqx.field(static=True)
    points: Int[np.ndarray, "batch tile point"]
    panels: Int[np.ndarray, "batch tile"]

    def evaluate(
        self,
        matrices: Float[np.ndarray, "panel column lm"],
        coords: Float[np.ndarray, "grid xyz"],
        center: Float[np.ndarray, " xyz"],
    ) -> Iterator[tuple[Int[np.ndarray, "tile point"], Float[np.ndarray, "tile point target"]]]:
        """Points, batch by batch, and the fields there; ``matrices`` are per panel."""
        for points, offsets, panels in self._batches(coords, center):
            fields = _evaluate(offsets, panels, matrices, self.ring.inner, self.ring.lmax)
            yield points, np.asarray(fields)

    def transpose(
        self,
        fields: Float[np.ndarray, "_ target"],
        coords: Float[np.ndarray, "grid xyz"],
        center: Float[np.ndarray, " xyz"],
    ) -> Float[np.ndarray, "panel column lm"]:
        """The transpose of ``evaluate``; ``fields`` have one row more than the grid."""
        num_targets, num_harmonics = fields.shape[1], (self.ring.lmax + 1) ** 2
        matrices = jnp.zeros((self.ring.num_panels, DEGREE * num_targets, num_harmonics))
        for points, offsets, panels in self._batches(coords, center):
            matrices = _evaluate_transpose(
                offsets, panels, fields[points], matrices, self.ring.inner, self.ring.lmax
            )
        return np.asarray(matrices)

    def _batches(
        self, coords: Float[np.ndarray, "grid xyz"], center: Float[np.ndarray, " xyz"]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Points, offsets from the atom, and panels."""
        for points, panels in zip(self.points, self.panels, strict=True):
            yield points, np.take(coords, points, axis=0, mode="clip") - center, panels


@functools.partial(jax.jit, static_argnames="lmax")
def _evaluate(
    offsets: Float[Array, "tile point xyz"],
    panels: Int[Array, " tile"],
    matrices: Float[Array, "panel column lm"],
    inner: float | Float[Array, ""],
    lmax: int,
) -> Float[Array, "tile point target"]:
    def fields_of(tile: tuple[Array, Array]) -> Array:
        harmonics, x = _tile_functions(*tile, inner, lmax)
        values = (matrices[tile[1]] @ harmonics).reshape(DEGREE, -1, TILE)
        result = values[-1]
        for coefficient in values[-2::-1]:
            result = coefficient + x[None] * result
        return result.T

    return jax.lax.map(fields_of, (offsets, panels))


@functools.partial(jax.jit, static_argnames="lmax")
def _evaluate_transpose(
    offsets: Float[Array, "tile point xyz"],
    panels: Int[Array, " tile"],
    fields: Float[Array, "tile point target"],
    matrices: Float[Array, "panel column lm"],
    inner: float | Float[Array, ""],
    lmax: int,
) -> Float[Array, "panel column lm"]:
    """The transpose of ``_evaluate``, added to the matrices."""

    def add_tile(total: Array, tile: tuple[Array, Array, Array]) -> tuple[Array, None]:
        harmonics, x = _tile_functions(*tile[:2], inner, lmax)
        columns = [tile[2].T]
        for _ in range(DEGREE - 1):
            columns.append(x[None] * columns[-1])
        return total.at[tile[1]].add(jnp.concatenate(columns) @ harmonics.T), None

    return jax.lax.scan(add_tile, matrices, (offsets, panels, fields))[0]


def _tile_functions(
    offsets: Float[Array, "point xyz"],
    panel: Int[Array, ""],
    inner: float | Float[Array, ""],
    lmax: int,
) -> tuple[Float[Array, "lm point"], Float[Array, " point"]]:
    """Harmonics, and the coordinate of the panel, at the points of one tile."""
    distance = jnp.sqrt(jnp.sum(offsets**2, axis=1) + 1e-30)
    x = 2 / PANEL_WIDTH * (distance - inner) - 2 * panel - 1
    # Points that fill up a tile may lie elsewhere.
    return real_spherical_harmonics(offsets / distance[:, None], lmax), jnp.clip(x, -1, 1)


def ring_points(
    distance: Float[np.ndarray, " grid"], excluded: Bool[np.ndarray, " grid"]
) -> tuple[RingPoints, ...]:
    """All points by their distance (bohr) from an atom, but those ``excluded`` (a mask)."""
    return tuple(_ring_points(ring, distance, excluded) for ring in RINGS)


def _ring_points(
    ring: Ring, distance: Float[np.ndarray, " grid"], excluded: np.ndarray
) -> RingPoints:
    panel = np.floor((distance - ring.inner) / PANEL_WIDTH).astype(int)
    panel[excluded] = -1
    tiles = []
    for index in range(ring.num_panels):
        members = np.flatnonzero(panel == index)
        tiles += [(index, members[i : i + TILE]) for i in range(0, len(members), TILE)]
    num_batches = -(-len(tiles) // BATCH)
    points = np.full((num_batches * BATCH, TILE), len(distance))
    panels = np.zeros(num_batches * BATCH, dtype=int)
    for position, (index, members) in enumerate(tiles):
        points[position, : len(members)] = members
        panels[position] = index
    return RingPoints(ring, points.reshape(num_batches, BATCH, TILE), panels.reshape(-1, BATCH))


def ring_matrices(
    nodes: Sequence[Float[np.ndarray, "_ _ _"]], num_targets: Sequence[int]
) -> list[Float[np.ndarray, "_ _ _"]]:
    """Matrices (panel, degree and target, lm) of each ring, from what the nodes have per l.

    ``nodes[l]`` has shape (node, m, target); ``num_targets`` are those of each ring.
    """
    matrices = []
    for ring, (start, stop), count in zip(RINGS, _node_ranges(), num_targets, strict=True):
        parts = [x[start:stop, :, :count] for x in nodes[: ring.lmax + 1]]
        columns = np.concatenate(parts, axis=1).transpose(0, 2, 1)
        full = np.zeros((ring.num_panels, DEGREE * count, (ring.lmax + 1) ** 2))
        full[..., : columns.shape[2]] = columns.reshape(ring.num_panels, DEGREE * count, -1)
        matrices.append(full)
    return matrices


def ring_matrices_transpose(
    matrices: Sequence[Float[np.ndarray, "_ _ _"]], lmax: int, num_targets: Sequence[int]
) -> list[Float[np.ndarray, "_ _ _"]]:
    """The transpose of ``ring_matrices``, up to ``lmax``."""
    nodes = [np.zeros((num_nodes(l), 2 * l + 1, num_targets[0])) for l in range(lmax + 1)]
    for matrix, (start, stop), count in zip(matrices, _node_ranges(), num_targets, strict=True):
        columns = matrix.reshape(stop - start, count, -1).transpose(0, 2, 1)
        for l, x in enumerate(nodes):
            if len(x) >= stop:
                x[start:stop, :, :count] = columns[:, l * l : (l + 1) ** 2]
    return nodes


def _node_ranges() -> list[tuple[int, int]]:
    """Nodes of each ring."""
    ends = itertools.accumulate((DEGREE * ring.num_panels for ring in RINGS), initial=0)
    return list(itertools.pairwise(ends))
