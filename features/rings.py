r"""Fields of an atom at the points of other atoms.

In panels of the radius they are polynomials times spherical harmonics. The panels form rings
about the atom: the farther a ring, the fewer harmonics and the fewer exponents have fields there.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar, no_type_check

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cider.features.compiled import compiled
from cider.features.spherical import (
    fill_harmonics,
    fill_harmonics_gradients,
    harmonics_recurrence,
)

_Array = TypeVar("_Array", np.ndarray, Array)
"""NumPy's, or those of a program that JAX traces."""


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
    Ring(0.0, 3.5, lmax=14, largest_exponent=200.0),
    Ring(3.5, 4.5, lmax=10, largest_exponent=30.0),
    Ring(4.5, 5.5, lmax=8, largest_exponent=10.0),
    Ring(5.5, 6.5, lmax=6, largest_exponent=3.0),
)
"""Everything of an atom's sharp Gaussians that reaches the points of others.

Sharp fields follow the density closely, and the partition leaves an atom no sources near other
nuclei and few beyond 3 bohr. What is left out is 2e-5 of benzene's sharpest feature and 1e-7 of
its energy. Without the half bohr where fields fade, forces were off by 7e-5 Ha/bohr in a complex
of zinc, and the energy of water strayed by 2e-4 Ha in 20 fs of dynamics.
"""

PANEL_WIDTH = 0.5
"""Width of a panel (bohr)."""

DEGREE = 8
"""Number of powers of the radius in each panel.

With 5 the energy of HF jumped by 2e-6 Ha where points pass from panel to panel; with 8 by 1e-7,
and with nodes at their ends not at all.
"""

TILE = 128
"""Points of one panel that are worked on together, as many as stay in a processor's cache."""

NARROW = 1e-6
"""What the polynomial of a tile, narrower than its panel, may leave of one of order one.

Most tiles of benzene need three or four powers then instead of eight, and energies of water and
benzene change by 6e-11 Ha; by 4e-9 with 1e-5.
"""


def panel_nodes() -> Float[np.ndarray, " node"]:
    """Radii (bohr) where the fields of an atom fix their polynomials, panel after panel."""
    starts = np.arange(0.0, RINGS[-1].outer, PANEL_WIDTH)
    return (starts[:, None] + PANEL_WIDTH / 2 * (1 + _CHEBYSHEV_POINTS)).ravel()


def num_nodes(l: int) -> int:
    """Number of those radii in the rings that have harmonics of ``l``."""
    return DEGREE * sum(ring.num_panels for ring in RINGS if ring.lmax >= l)


_CHEBYSHEV_POINTS = np.cos(np.pi * np.arange(DEGREE) / (DEGREE - 1))
"""Of the second kind: both ends are among them, where neighbouring panels thus agree.

Else fields jump by the error of the interpolation where points pass from panel to panel: the energy
of water by up to 5e-8 Ha, several times in 0.01 bohr, and in dynamics it strays.
"""

TO_POWERS = np.linalg.inv(np.vander(_CHEBYSHEV_POINTS, increasing=True))
"""Coefficients of the powers of a panel's coordinate, from -1 to 1, by the values at its nodes."""


def _interpolations() -> tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _ _"]]:
    """For each number of nodes where they are, and powers by the values there."""
    nodes, powers = np.zeros((DEGREE + 1, DEGREE)), np.zeros((DEGREE + 1, DEGREE, DEGREE))
    for count in range(2, DEGREE + 1):
        nodes[count, :count] = np.cos(np.pi * np.arange(count) / (count - 1))
        vandermonde = np.vander(nodes[count, :count], increasing=True)
        powers[count, :count, :count] = np.linalg.inv(vandermonde)
    return nodes, powers


_NODES, _POWERS_BY_NODES = _interpolations()


def _fading() -> Float[np.ndarray, "power power"]:
    """Takes a polynomial in a panel, by its powers, to its product with what falls from 1 to 0.

    The product is interpolated at the nodes of the panel, and is exact there.
    """
    x = _CHEBYSHEV_POINTS
    powers = np.vander(x, increasing=True)
    falling = (2 + x) * (1 - x) ** 2 / 4  # with zero slope at both ends
    return np.linalg.solve(powers, falling[:, None] * powers)


class RingPoints(eqx.Module):
    """The points of other atoms in one ring about an atom, by their distance.

    Those of a panel are the points from its entry of ``starts`` to the next.
    """

    ring: Ring = eqx.field(static=True)
    points: Int[np.ndarray, " near"]
    starts: Int[np.ndarray, " _"]

    def evaluate(
        self,
        matrices: Float[np.ndarray, "panel column lm"],
        coords: Float[np.ndarray, "grid xyz"],
        center: Float[np.ndarray, " xyz"],
    ) -> Float[np.ndarray, "near target"]:
        """The fields at the points; ``matrices`` are per panel."""
        fields = np.empty((len(self.points), matrices.shape[1] // DEGREE))
        _evaluate(*self._geometry(coords, center), matrices, fields)
        return fields

    def add_transpose(
        self,
        matrices: Float[np.ndarray, "panel column lm"],
        fields: Float[np.ndarray, "grid _"],
        coords: Float[np.ndarray, "grid xyz"],
        center: Float[np.ndarray, " xyz"],
    ) -> None:
        """Add the transpose of ``evaluate``, of as many fields as this ring has."""
        own = fields[self.points, : matrices.shape[1] // DEGREE]
        _evaluate_transpose(*self._geometry(coords, center), own, matrices)

    def gradients(
        self,
        matrices: Float[np.ndarray, "panel column lm"],
        by_fields: Float[np.ndarray, "grid target"],
        coords: Float[np.ndarray, "grid xyz"],
        center: Float[np.ndarray, " xyz"],
    ) -> Float[np.ndarray, "near xyz"]:
        """Gradients at the points (per bohr) of ``by_fields`` times the fields."""
        gradients = np.empty((len(self.points), 3))
        geometry = self._geometry(coords, center)
        _evaluate_gradients(*geometry, matrices, by_fields[self.points], gradients)
        return gradients

    def _geometry(
        self, coords: Float[np.ndarray, "grid xyz"], center: Float[np.ndarray, " xyz"]
    ) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        """Offsets from the atom, starts of panels, innermost radius, recurrence of harmonics."""
        offsets = np.ascontiguousarray((coords[self.points] - center).T)
        return offsets, self.starts, self.ring.inner, harmonics_recurrence(self.ring.lmax)


@compiled
@no_type_check
def _evaluate(
    offsets: Float[np.ndarray, "xyz near"],
    starts: Int[np.ndarray, " _"],
    inner: float,
    recurrence: Float[np.ndarray, "3 l m"],
    matrices: Float[np.ndarray, "panel column lm"],
    fields: Float[np.ndarray, "near target"],
) -> None:
    num_targets = fields.shape[1]
    harmonics = np.empty((matrices.shape[2], TILE))
    direction, x = np.zeros((3, TILE)), np.zeros(TILE)
    powers = np.empty((matrices.shape[1], TILE))
    for panel in range(len(matrices)):
        of_panel = matrices[panel].reshape(DEGREE, -1)
        for first in range(starts[panel], starts[panel + 1], TILE):
            tile = slice(first, min(first + TILE, starts[panel + 1]))
            _place_in_panel(offsets[:, tile], inner + panel * PANEL_WIDTH, direction, x)
            fill_harmonics(direction, recurrence, harmonics)
            narrowing = _narrow(x, tile.stop - first)
            count = len(narrowing)
            local = np.dot(narrowing, of_panel).reshape(count * num_targets, -1)
            np.dot(local, harmonics, powers[: count * num_targets])
            for target in range(num_targets):
                total = powers[(count - 1) * num_targets + target]
                for power in range(count - 2, -1, -1):
                    coefficient = powers[power * num_targets + target]
                    for n in range(TILE):
                        total[n] = coefficient[n] + x[n] * total[n]
                for n in range(tile.start, tile.stop):
                    fields[n, target] = total[n - first]


@compiled
@no_type_check
def _evaluate_transpose(
    offsets: Float[np.ndarray, "xyz near"],
    starts: Int[np.ndarray, " _"],
    inner: float,
    recurrence: Float[np.ndarray, "3 l m"],
    fields: Float[np.ndarray, "near target"],
    matrices: Float[np.ndarray, "panel column lm"],
) -> None:
    """Add the transpose of ``_evaluate`` to the matrices."""
    num_targets = fields.shape[1]
    harmonics = np.empty((matrices.shape[2], TILE))
    direction, x = np.zeros((3, TILE)), np.zeros(TILE)
    powers = np.empty((matrices.shape[1], TILE))
    product = np.empty(matrices.shape[1:])
    for panel in range(len(matrices)):
        of_panel = matrices[panel].reshape(DEGREE, -1)
        for first in range(starts[panel], starts[panel + 1], TILE):
            tile = slice(first, min(first + TILE, starts[panel + 1]))
            _place_in_panel(offsets[:, tile], inner + panel * PANEL_WIDTH, direction, x)
            fill_harmonics(direction, recurrence, harmonics)
            narrowing = _narrow(x, tile.stop - first)
            count = len(narrowing)
            rows = count * num_targets
            _multiply_by_powers(fields[tile], x, powers[:rows])
            np.dot(powers[:rows], harmonics.T, product[:rows])
            of_panel += np.dot(narrowing.T, product[:rows].reshape(count, -1))


@compiled
@no_type_check
def _narrow(x: Float[np.ndarray, " tile"], num_points: int) -> Float[np.ndarray, "power degree"]:
    """Powers in the part of its panel where a tile's points are, by those in the panel.

    Coordinates change to those of that part, from -1 to 1, where few powers interpolate; in what is
    left of the tile they are zero.
    """
    low, high = x[0], x[num_points - 1]
    middle, half = (low + high) / 2, max((high - low) / 2, 1e-9)
    count = min(max(math.ceil(math.log(NARROW) / math.log(half / 2)), 2), DEGREE)
    x[:num_points] = (x[:num_points] - middle) / half
    x[num_points:] = 0.0
    values = np.empty((count, DEGREE))
    for node in range(count):
        values[node, 0] = 1.0
        for power in range(1, DEGREE):
            values[node, power] = values[node, power - 1] * (middle + half * _NODES[count, node])
    return np.dot(np.ascontiguousarray(_POWERS_BY_NODES[count, :count, :count]), values)


@compiled
@no_type_check
def _evaluate_gradients(
    offsets: Float[np.ndarray, "xyz near"],
    starts: Int[np.ndarray, " _"],
    inner: float,
    recurrence: Float[np.ndarray, "3 l m"],
    matrices: Float[np.ndarray, "panel column lm"],
    by_fields: Float[np.ndarray, "near target"],
    gradients: Float[np.ndarray, "near xyz"],
) -> None:
    """Write the gradients of ``by_fields`` times what ``_evaluate`` writes."""
    num_targets = by_fields.shape[1]
    harmonics = np.empty((matrices.shape[2], TILE))
    coefficients, slopes = np.empty_like(harmonics), np.empty_like(harmonics)
    direction, x, angular = np.zeros((3, TILE)), np.zeros(TILE), np.empty((3, TILE))
    powers = np.empty((matrices.shape[1], TILE))
    by_powers = np.zeros_like(powers)
    for panel in range(len(matrices)):
        for first in range(starts[panel], starts[panel + 1], TILE):
            tile = slice(first, min(first + TILE, starts[panel + 1]))
            _place_in_panel(offsets[:, tile], inner + panel * PANEL_WIDTH, direction, x)
            fill_harmonics(direction, recurrence, harmonics)
            _multiply_by_powers(by_fields[tile], x, powers)
            for power in range(1, DEGREE):
                for target in range(num_targets):
                    lower = powers[(power - 1) * num_targets + target]
                    by_powers[power * num_targets + target] = power * lower
            np.dot(matrices[panel].T, powers, coefficients)
            np.dot(matrices[panel].T, by_powers, slopes)
            fill_harmonics_gradients(direction, recurrence, coefficients, angular)
            for n in range(tile.start, tile.stop):
                m = n - first
                distance = inner + (panel + (x[m] + 1) / 2) * PANEL_WIDTH
                radial = 2 / PANEL_WIDTH * np.sum(slopes[:, m] * harmonics[:, m])
                for axis in range(3):
                    along = angular[axis, m] / max(distance, 1e-15)
                    gradients[n, axis] = direction[axis, m] * radial + along


@compiled
@no_type_check
def _multiply_by_powers(
    values: Float[np.ndarray, "point target"],
    x: Float[np.ndarray, " tile"],
    powers: Float[np.ndarray, "column tile"],
) -> None:
    """Write values times powers of the panel's coordinate, zero in what is left of the tile."""
    num_targets = values.shape[1]
    for target in range(num_targets):
        current = powers[target]
        current[:] = 0.0
        for n in range(len(values)):
            current[n] = values[n, target]
        for power in range(1, len(powers) // num_targets):
            lower, current = current, powers[power * num_targets + target]
            for n in range(TILE):
                current[n] = x[n] * lower[n]


@compiled
@no_type_check
def _place_in_panel(
    offsets: Float[np.ndarray, "xyz point"],
    inner: float,
    direction: Float[np.ndarray, "xyz tile"],
    x: Float[np.ndarray, " tile"],
) -> None:
    """Write directions, and the coordinate of a panel from -1 to 1, of the points of one tile.

    What is left of the tile keeps values of other points.
    """
    for n in range(offsets.shape[1]):
        distance = math.sqrt(offsets[0, n] ** 2 + offsets[1, n] ** 2 + offsets[2, n] ** 2)
        x[n] = 2 / PANEL_WIDTH * (distance - inner) - 1
        for axis in range(3):
            direction[axis, n] = offsets[axis, n] / max(distance, 1e-15)


def ring_points(
    distance: Float[np.ndarray, " grid"], excluded: Bool[np.ndarray, " grid"]
) -> tuple[RingPoints, ...]:
    """All points by their distance (bohr) from an atom, but those ``excluded`` (a mask)."""
    return tuple(_ring_points(ring, distance, excluded) for ring in RINGS)


def _ring_points(
    ring: Ring, distance: Float[np.ndarray, " grid"], excluded: Bool[np.ndarray, " grid"]
) -> RingPoints:
    panel = np.floor((distance - ring.inner) / PANEL_WIDTH).astype(int)
    members = np.flatnonzero((panel >= 0) & (panel < ring.num_panels) & ~excluded)
    points = members[np.argsort(distance[members], kind="stable")]
    starts = np.searchsorted(panel[points], np.arange(ring.num_panels + 1))
    return RingPoints(ring, points, starts)


def no_ring_matrices(num_targets: Sequence[int]) -> list[Float[np.ndarray, "_ _ _"]]:
    """Zeros for the matrices (panel, degree and target, lm) of each ring."""
    return [
        np.zeros((ring.num_panels, DEGREE * count, (ring.lmax + 1) ** 2))
        for ring, count in zip(RINGS, num_targets, strict=True)
    ]


def ring_matrices(
    nodes: Sequence[Float[_Array, "_ _ _"]], num_targets: Sequence[int]
) -> list[Float[_Array, "_ _ _"]]:
    """Matrices (panel, degree and target, lm) of each ring, from what the nodes have per l.

    ``nodes[l]`` has shape (node, m, target); ``num_targets`` are those of each ring. In the
    last panel of a ring, fields that the next one has not fade: where points pass, the energy
    would jump.
    """
    xp = nodes[0].__array_namespace__()
    matrices = []
    for index, (ring, (start, stop)) in enumerate(zip(RINGS, node_ranges(), strict=True)):
        count = num_targets[index]
        parts: list[_Array] = [x[start:stop, :, :count] for x in nodes[: ring.lmax + 1]]
        missing = (ring.lmax + 1) ** 2 - len(parts) ** 2
        columns = xp.concatenate([*parts, xp.zeros((stop - start, missing, count))], axis=1)
        columns = _faded(columns, _fading(), index, num_targets).transpose(0, 2, 1)
        matrices.append(columns.reshape(ring.num_panels, DEGREE * count, -1))
    return matrices


def ring_matrices_transpose(
    matrices: Sequence[Float[np.ndarray, "_ _ _"]], lmax: int, num_targets: Sequence[int]
) -> list[Float[np.ndarray, "_ _ _"]]:
    """The transpose of ``ring_matrices``, up to ``lmax``."""
    nodes = [np.zeros((num_nodes(l), 2 * l + 1, num_targets[0])) for l in range(lmax + 1)]
    for index, (matrix, (start, stop)) in enumerate(zip(matrices, node_ranges(), strict=True)):
        count = num_targets[index]
        columns = matrix.reshape(stop - start, count, -1).transpose(0, 2, 1)
        columns = _faded(columns, _fading().T, index, num_targets)
        for l, x in enumerate(nodes):
            if len(x) >= stop:
                x[start:stop, :, :count] = columns[:, l * l : (l + 1) ** 2]
    return nodes


def _faded(
    columns: Float[_Array, "node lm target"],
    fading: Float[np.ndarray, "power power"],
    index: int,
    num_targets: Sequence[int],
) -> Float[_Array, "node lm target"]:
    """With ``fading`` on what a ring has in its last panel, and the next ring has not."""
    xp = columns.__array_namespace__()
    kept = np.zeros(columns.shape[1:], dtype=bool)
    if index + 1 < len(RINGS):
        kept[: (RINGS[index + 1].lmax + 1) ** 2, : num_targets[index + 1]] = True
    last = columns[-DEGREE:]
    faded = xp.where(kept, last, xp.tensordot(fading, last, axes=1))
    return xp.concatenate([columns[:-DEGREE], faded])


def node_ranges() -> list[tuple[int, int]]:
    """Nodes of each ring."""
    ends = itertools.accumulate((DEGREE * ring.num_panels for ring in RINGS), initial=0)
    return list(itertools.pairwise(ends))
