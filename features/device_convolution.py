r"""The Gaussian convolution of a molecule as one program of JAX, for a GPU.

It is ``MolecularConvolution`` with the same grids, shells and panels, whose loops over points have
become products of small dense matrices: points in tiles, those of a tile near each other on a
uniform grid, or in one panel about one atom. The transpose is JAX's own. Arrays have sizes out of
a short list, so that a program compiled for one geometry fits others.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cider.conventions import AnyArray, float64
from cider.features.accelerator import smaller_where_memory_is_short
from cider.features.atom_centred import AtomCentredConvolution
from cider.features.convolution import GaussianConvolution
from cider.features.molecular_convolution import MolecularConvolution
from cider.features.nested_grids import NestedGridsConvolution
from cider.features.rings import DEGREE, PANEL_WIDTH, RINGS, Ring, num_nodes, ring_matrices
from cider.features.spherical import harmonics_recurrence
from cider.features.uniform_grid import BLOCK, WINDOW, WINDOW_SHARPNESS, UniformGrid

TILE = 64
"""Points of a tile."""

TILES_TOGETHER = 1024
"""Tiles that are worked on at a time, if the memory suffices: about 1 GB."""

TILES_PER_ATOM = 128
"""Tiles that take the memory of one atom."""

SPAN = WINDOW + BLOCK - 1
"""Grid points per dimension that the points of a tile reach."""

_MULTIPLE = 16
"""Uniform grids have a multiple of this many points in each dimension."""


class _Tiles(eqx.Module):
    """Points in tiles; places in tiles that no point fills have an index beyond all points."""

    points: Int[AnyArray, "tile place"]
    positions: Float[AnyArray, "tile place xyz"]
    """In units of what the tile lies in, from where it begins."""
    homes: Int[AnyArray, "tile _"]
    """What each tile lies in."""

    def map(
        self,
        function: Callable[[Float[Array, "some place xyz"], Int[Array, "some _"]], Array],
        together: int,
    ) -> Float[Array, "tile place c"]:
        """What a function makes of positions and homes of some tiles, for all of them."""
        together = math.gcd(together, len(self.points))
        parts = jax.tree.map(
            lambda x: x.reshape(-1, together, *x.shape[1:]), (self.positions, self.homes)
        )
        values = jax.lax.map(lambda part: function(*part), parts)
        return values.reshape(-1, *values.shape[2:])

    def add_to(
        self, total: Float[Array, "grid _"], values: Float[Array, "tile place c"]
    ) -> Float[Array, "grid _"]:
        """Values at the points added to the first columns of all."""
        return total.at[self.points, : values.shape[2]].add(values, mode="drop")


class _Grid(eqx.Module):
    """A uniform grid and the pairs of exponents that it convolves, as ``nested_grids`` has them."""

    shape: tuple[int, int, int] = eqx.field(static=True)
    num_sources: int = eqx.field(static=True)
    num_targets: int = eqx.field(static=True)
    tiles: _Tiles
    pairs: Int[AnyArray, "pair 2"]
    sequences: Float[AnyArray, "pair size"]
    coarsen: tuple[Float[AnyArray, "_ _"], ...] | None

    def read(
        self, values: Float[Array, "c x y z"], num_points: int, together: int
    ) -> Float[Array, "grid c"]:
        """Values at the points, zero at those that the grid does not hold."""
        by_place = jnp.moveaxis(values, 0, 3).reshape(-1, len(values))
        span = np.arange(SPAN)
        strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1])
        around = (np.indices((SPAN, SPAN, SPAN)).reshape(3, -1).T * strides).sum(axis=1)

        def read_tiles(
            positions: Float[Array, "some place xyz"], corners: Int[Array, "some xyz"]
        ) -> Float[Array, "some place c"]:
            x, y, z = jnp.moveaxis(_window(positions[..., None] - span[None, None, None]), 2, 0)
            windows = jnp.einsum("tpx,tpy,tpz->tpxyz", x, y, z).reshape(*x.shape[:2], -1)
            first = (corners * strides[None]).sum(axis=1)
            return windows @ by_place[first[:, None] + around[None]]

        own = self.tiles.map(read_tiles, together)
        return self.tiles.add_to(jnp.zeros((num_points, len(values))), own)

    def spread(self, charges: Float[Array, "grid c"], together: int) -> Float[Array, "c x y z"]:
        """The transpose of ``read``."""
        like = jax.ShapeDtypeStruct((charges.shape[1], *self.shape), charges.dtype)
        read = jax.linear_transpose(lambda v: self.read(v, len(charges), together), like)
        return read(charges)[0]

    def convolve(self, spread: Float[Array, "source x y z"]) -> Float[Array, "target x y z"]:
        """Sum over pairs of columns."""

        def add_pair(
            total: Float[Array, "target x y z"],
            pair: tuple[Int[AnyArray, "2"], Float[AnyArray, " size"]],
        ) -> tuple[Float[Array, "target x y z"], None]:
            (source, target), sequence = pair
            matrices = (sequence[_distances(size)] for size in self.shape)
            return total.at[target].add(_along_each(matrices, spread[source])), None

        total = jnp.zeros((self.num_targets, *self.shape))
        return jax.lax.scan(add_pair, total, (self.pairs, self.sequences))[0]

    def from_finer(self, spread: Float[Array, "c _ _ _"]) -> Float[Array, "c x y z"]:
        """What is spread on the next finer grid, on this one."""
        matrices = self.coarsen or ()
        return jax.vmap(lambda column: _along_each(matrices, column))(spread)

    def to_finer(self, fields: Float[Array, "c x y z"]) -> Float[Array, "c _ _ _"]:
        """Fields of this grid on the next finer one: the transpose."""
        matrices = [matrix.T for matrix in self.coarsen or ()]
        return jax.vmap(lambda column: _along_each(matrices, column))(fields)


class _Species(eqx.Module):
    """Atoms of one species: their points and, per l, kernels between their shells."""

    points: Int[AnyArray, "atom own"]
    numbers: Int[np.ndarray, " atom"]
    """Which of all atoms they are."""
    group_shells: tuple[Int[AnyArray, " _"], ...]
    group_points: tuple[Int[AnyArray, "_ _"], ...]
    group_harmonics: tuple[Float[AnyArray, "_ _"], ...]
    resolved: tuple[Int[AnyArray, " _"], ...]
    onsite: "_Kernels"
    panels: "_Kernels | None"
    num_ring_targets: tuple[int, ...] = eqx.field(static=True)

    def fields(
        self, charges: Float[Array, "own source"]
    ) -> tuple[Float[Array, "own target"], tuple[Float[Array, "_ _ _"], ...]]:
        """Fields at an atom's own points, and the matrices of its rings."""
        moments = self._project(charges)
        own = self._expand(self.onsite.apply(moments))
        if self.panels is None:
            return own, ()
        nodes = self.panels.apply(moments)
        return own, tuple(ring_matrices(nodes, self.num_ring_targets))

    def _project(self, charges: Float[Array, "own c"]) -> list[Float[Array, "_ _ c"]]:
        size = max(len(h) for h in self.group_harmonics)
        moments = jnp.zeros((self._num_shells, size, charges.shape[1]))
        for shells, points, harmonics in self._groups:
            own = jnp.einsum("la,sac->slc", harmonics, charges[points])
            moments = moments.at[shells, : len(harmonics)].set(own, unique_indices=True)
        return [moments[s, l * l : (l + 1) ** 2] for l, s in enumerate(self.resolved)]

    def _expand(self, moments: Sequence[Float[Array, "_ _ c"]]) -> Float[Array, "own c"]:
        size, num_channels = len(moments) ** 2, moments[0].shape[2]
        every = jnp.zeros((self._num_shells, size, num_channels))
        for l, part in enumerate(moments):
            every = every.at[self.resolved[l], l * l : (l + 1) ** 2].set(part, unique_indices=True)
        values = jnp.zeros((self.points.shape[1], num_channels))
        for shells, points, harmonics in self._groups:
            own = jnp.einsum("la,slc->sac", harmonics[:size], every[shells, : len(harmonics)])
            values = values.at[points].set(own, unique_indices=True)
        return values

    @property
    def _groups(self) -> Iterable[tuple[AnyArray, AnyArray, AnyArray]]:
        return zip(self.group_shells, self.group_points, self.group_harmonics, strict=True)

    @property
    def _num_shells(self) -> int:
        return sum(len(shells) for shells in self.group_shells)


class _Kernels(eqx.Module):
    """Per l, what Gaussians of a ladder do between shells, and how each mixes the channels."""

    by_l: tuple[Float[AnyArray, "_ gamma _"], ...]
    mixing: Float[AnyArray, "gamma cin cout"]

    def apply(self, moments: Sequence[Float[Array, "_ _ cin"]]) -> list[Float[Array, "_ _ cout"]]:
        """The sum over Gaussians of kernel times mixing on the moments."""
        return [
            jnp.einsum("ogi,gimd->omd", kernel, jnp.einsum("imc,gcd->gimd", x, self.mixing))
            for kernel, x in zip(self.by_l, moments, strict=False)
        ]


class TracedConvolution(eqx.Module):
    """The map for traced programs, which work on so many tiles of points at a time."""

    weights: Float[AnyArray, " grid"]
    merge_sources: Float[AnyArray, "source merged_source"]
    merge_targets: Float[AnyArray, "target merged_target"]
    grids: tuple[_Grid, ...]
    species: tuple[_Species, ...]
    rings: tuple[_Tiles, ...]

    def apply(
        self, sources: Float[Array, "grid source"], together: int = TILES_TOGETHER
    ) -> Float[Array, "grid target"]:
        """Fields of sources."""
        charges = jnp.asarray(self.weights)[:, None] * sources
        sharp = _sharp_fields(self.species, self.rings, charges @ self.merge_sources, together)
        smooth = _smooth_fields(self.grids, charges, together)
        return (sharp @ self.merge_targets.T).at[:, : smooth.shape[1]].add(smooth)

    def transpose(
        self, fields: Float[Array, "grid target"], together: int = TILES_TOGETHER
    ) -> Float[Array, "grid source"]:
        """The transposed map."""
        like = jax.ShapeDtypeStruct((len(fields), len(self.merge_sources)), fields.dtype)
        return jax.linear_transpose(lambda x: self.apply(x, together), like)(fields)[0]


class DeviceConvolution(GaussianConvolution):
    """A ``MolecularConvolution`` on one device; built by ``device_convolution``.

    Where the memory of the device does not suffice, fewer points are worked on at a time. Forces
    come from ``host``, on the processor.
    """

    host: MolecularConvolution
    traced: TracedConvolution

    @float64
    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[Array, "grid target"]:
        return smaller_where_memory_is_short(
            functools.partial(_apply, self.traced, jnp.asarray(sources)), TILES_TOGETHER
        )

    @float64
    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[Array, "grid source"]:
        return smaller_where_memory_is_short(
            functools.partial(_transpose, self.traced, jnp.asarray(fields)), TILES_TOGETHER
        )

    def derivative(
        self,
        sources: Float[AnyArray, "grid source"],
        by_fields: Float[AnyArray, "grid target"],
        by_sources: Float[AnyArray, "grid source"],
    ) -> Float[np.ndarray, "atom xyz"]:
        """As in ``MolecularConvolution``."""
        arrays = (np.asarray(x) for x in (sources, by_fields, by_sources))
        return self.host.derivative(*arrays)


_apply = eqx.filter_jit(TracedConvolution.apply)
_transpose = eqx.filter_jit(TracedConvolution.transpose)


def _smooth_fields(
    grids: Sequence[_Grid], charges: Float[Array, "grid source"], together: int
) -> Float[Array, "grid target"]:
    """Those of the uniform grids, which descend from the finest."""
    spreads: list[Float[Array, "_ _ _ _"]] = []
    for grid in grids:
        spread = grid.spread(charges[:, : grid.num_sources], together)
        if grid.coarsen is not None:
            spread = _add_columns(spread, grid.from_finer(spreads[-1]))
        spreads.append(spread)
    fields = [grid.convolve(spread) for grid, spread in zip(grids, spreads, strict=True)]
    for index in range(len(grids) - 1, 0, -1):
        fields[index - 1] = _add_columns(fields[index - 1], grids[index].to_finer(fields[index]))
    total = jnp.zeros((len(charges), max((len(own) for own in fields), default=0)))
    for grid, values in zip(grids, fields, strict=True):
        read = grid.read(values, len(charges), together)
        total = total.at[:, : len(values)].add(read)
    return total


def _add_columns(
    total: Float[Array, "_ x y z"], values: Float[Array, "_ x y z"]
) -> Float[Array, "_ x y z"]:
    """The first of them, as many as both have."""
    count = min(len(total), len(values))
    return total.at[:count].add(values[:count])


def _sharp_fields(
    every_species: Sequence[_Species],
    rings: Sequence[_Tiles],
    charges: Float[Array, "grid source"],
    together: int,
) -> Float[Array, "grid target"]:
    """Those of the atoms: at their own points, and in rings about them."""
    total = jnp.zeros((len(charges), every_species[0].onsite.mixing.shape[2]))
    num_atoms = sum(len(species.numbers) for species in every_species)
    matrices: list[Array | None] = [None] * len(RINGS)
    atoms_together = max(1, together // TILES_PER_ATOM)
    for species in every_species:
        own, around = jax.lax.map(
            species.fields, charges[species.points], batch_size=atoms_together
        )
        total = total.at[species.points].add(own)
        for index, matrix in enumerate(around):
            every = matrices[index]
            if every is None:
                every = jnp.zeros((num_atoms, *matrix.shape[1:]))
            matrices[index] = every.at[species.numbers].set(matrix, unique_indices=True)
    for ring, tiles, matrix in zip(RINGS, rings, matrices, strict=True):
        if matrix is not None:
            by_panel = matrix.reshape(-1, *matrix.shape[2:])
            values = tiles.map(
                lambda *tile, ring=ring, m=by_panel: _values_in_panels(ring, m, *tile), together
            )
            total = tiles.add_to(total, values)
    return total


def _values_in_panels(
    ring: Ring,
    matrices: Float[Array, "panel column lm"],
    positions: Float[Array, "tile place xyz"],
    panels: Int[Array, "tile 1"],
) -> Float[Array, "tile place target"]:
    """Fields in the panels: ``RingPoints.evaluate`` of tiles."""
    distance = jnp.linalg.norm(positions, axis=2)
    direction = positions / jnp.maximum(distance, 1e-15)[..., None]
    inner = ring.inner + panels % ring.num_panels * PANEL_WIDTH
    x = 2 / PANEL_WIDTH * (distance - inner) - 1
    harmonics = _harmonics(direction, ring.lmax)
    columns = jnp.einsum("tpl,tcl->tpc", harmonics, matrices[panels[:, 0]])
    by_power = columns.reshape(*x.shape, DEGREE, -1)
    total = by_power[:, :, -1]
    for power in range(DEGREE - 2, -1, -1):
        total = by_power[:, :, power] + x[..., None] * total
    return total


def _harmonics(direction: Float[Array, "*shape xyz"], lmax: int) -> Float[Array, "*shape lm"]:
    """``real_spherical_harmonics`` for JAX: polynomials in z times functions of the azimuth."""
    x, y, z = jnp.moveaxis(direction, -1, 0)
    azimuths = [jnp.ones_like(x), jnp.zeros_like(x)]
    for _ in range(lmax):
        cosine, sine = azimuths[-2:]
        azimuths += [x * cosine - y * sine, x * sine + y * cosine]
    powers = jnp.stack([z**n for n in range(lmax + 1)], axis=-1)
    polynomials, which = _harmonics_polynomials(lmax)
    return (powers @ polynomials) * jnp.stack(azimuths, axis=-1)[..., which]


@functools.cache
def _harmonics_polynomials(
    lmax: int,
) -> tuple[Float[np.ndarray, "power lm"], Int[np.ndarray, " lm"]]:
    """Coefficients of the powers of z, and which azimuth belongs to them.

    They are up to 1e4 for l = 14, and cost as many digits.
    """
    multiply, lower, diagonal = harmonics_recurrence(lmax)
    polynomials = np.zeros((lmax + 1, (lmax + 1) ** 2))
    which = np.zeros((lmax + 1) ** 2, dtype=int)
    for m in range(lmax + 1):
        before, current = np.zeros(lmax + 1), diagonal[m, m] * np.eye(lmax + 1)[0]
        for l in range(m, lmax + 1):
            for sign in (1, -1):
                polynomials[:, l * l + l + sign * m] = current
                which[l * l + l + sign * m] = 2 * m + (sign < 0 < m)
            if l < lmax:
                above = np.roll(current, 1) - lower[l + 1, m] * before
                before, current = current, multiply[l + 1, m] * above
    return polynomials, which


def _window(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``uniform_grid.window`` for JAX."""
    inside = 1 - (2 * x / WINDOW) ** 2
    value = jnp.exp(WINDOW_SHARPNESS * (jnp.sqrt(jnp.maximum(inside, 0.0)) - 1))
    return jnp.where(inside > 0, value, 0.0)


def _along_each(
    matrices: Iterable[Float[AnyArray, "_ _"]], values: Float[Array, "x y z"]
) -> Float[Array, "_ _ _"]:
    """``uniform_grid.along_each_dimension`` for JAX."""
    for matrix in matrices:  # each takes the first axis, and puts its own last
        values = jnp.tensordot(values, matrix, axes=(0, 1))
    return values


def _distances(size: int) -> Int[np.ndarray, "size size"]:
    places = np.arange(size)
    return abs(places[:, None] - places)


@float64
def device_convolution(host: MolecularConvolution) -> DeviceConvolution:
    """The same map for the device of JAX (its default one)."""
    traced = TracedConvolution(
        weights=host.weights,
        merge_sources=host.merge_sources,
        merge_targets=host.merge_targets,
        grids=_grids(host.smooth),
        species=_all_species(host.sharp),
        rings=_rings(host.sharp),
    )
    return DeviceConvolution(host, jax.tree.map(jnp.asarray, traced))


def _grids(smooth: NestedGridsConvolution) -> tuple[_Grid, ...]:
    grids: list[_Grid] = []
    for level in smooth.levels:
        x, y, z = (-(-(n + BLOCK) // _MULTIPLE) * _MULTIPLE for n in level.grid.shape)
        shape = x, y, z
        coarsen = level.coarsen
        if coarsen is not None:
            finer = grids[-1].shape
            coarsen = tuple(map(_padded, coarsen, zip(shape, finer, strict=True)))
        grids.append(
            _Grid(
                shape=shape,
                num_sources=level.num_sources,
                num_targets=level.num_targets,
                tiles=_tiles_of_grid(level.grid),
                pairs=level.pairs,
                sequences=_padded(level.sequences, (len(level.pairs), max(shape))),
                coarsen=coarsen,
            )
        )
    return tuple(grids)


def _padded(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Filled up with zeros."""
    return np.pad(array, [(0, n - own) for n, own in zip(shape, array.shape, strict=True)])


def _tiles_of_grid(grid: UniformGrid) -> _Tiles:
    """Tiles of the points in one block of cells each."""
    blocks = grid.corners // BLOCK
    ends = np.flatnonzero(np.any(np.diff(blocks, axis=0) != 0, axis=1)) + 1
    members = np.split(np.arange(len(blocks)), ends) if len(blocks) else []
    homes = BLOCK * blocks[np.array([own[0] for own in members], dtype=int)]
    positions = grid.offsets + (grid.corners - BLOCK * blocks)
    return _tiles(grid.points, positions, members, homes, grid.num_points)


def _rings(sharp: AtomCentredConvolution) -> tuple[_Tiles, ...]:
    """For each ring, tiles of the points in one panel about one atom each."""
    rings = []
    for index, ring in enumerate(RINGS):
        points, positions = [np.zeros(0, dtype=int)], [np.zeros((0, 3))]
        members, count = [], 0
        homes: list[int] = []
        for number, atom in enumerate(sharp.atoms):
            for image in atom.images:
                own = image.rings[index]
                points.append(own.points)
                positions.append(sharp.coords[own.points] - image.center)
                members += np.split(count + np.arange(len(own.points)), own.starts[1:-1])
                homes += range(number * ring.num_panels, (number + 1) * ring.num_panels)
                count += len(own.points)
        where = np.concatenate(points), np.concatenate(positions)
        panels = np.array(homes, dtype=int)[:, None]
        rings.append(_tiles(*where, members, panels, len(sharp.coords)))
    return tuple(rings)


def _tiles(
    points: Int[np.ndarray, " held"],
    positions: Float[np.ndarray, "held xyz"],
    members: Sequence[Int[np.ndarray, " _"]],
    homes: Int[np.ndarray, "some home"],
    num_points: int,
) -> _Tiles:
    """Tiles of the points with equal homes, as many as a number out of a short list."""
    parts = [
        (own[first : first + TILE], home)
        for own, home in zip(members, homes, strict=True)
        for first in range(0, len(own), TILE)
    ]
    count = _rounded_up(max(1, len(parts)))
    tiles = _Tiles(
        points=np.full((count, TILE), num_points),
        positions=np.zeros((count, TILE, 3)),
        homes=np.zeros((count, homes.shape[1]), dtype=int),
    )
    for index, (own, home) in enumerate(parts):
        tiles.points[index, : len(own)] = points[own]
        tiles.positions[index, : len(own)] = positions[own]
        tiles.homes[index] = home
    return tiles


def _rounded_up(number: int) -> int:
    """To a number of three binary digits, and zeros behind them."""
    step = 1 << max(0, number.bit_length() - 3)
    return -(-number // step) * step


def _all_species(sharp: AtomCentredConvolution) -> tuple[_Species, ...]:
    result = []
    for index, species in enumerate(sharp.species):
        numbers = [n for n, atom in enumerate(sharp.atoms) if atom.species == index]
        shells = species.shells
        onsite = _kernels(species.onsite, list(map(len, shells.resolved)), shells.resolved)
        panels = None
        if species.panels:
            nodes = [num_nodes(l) for l in range(len(shells.resolved))]
            panels = _kernels(species.panels, nodes, shells.resolved)
        result.append(
            _Species(
                points=np.stack([sharp.atoms[number].points for number in numbers]),
                numbers=np.array(numbers),
                group_shells=tuple(group.shells for group in shells.groups),
                group_points=tuple(group.points for group in shells.groups),
                group_harmonics=tuple(group.harmonics for group in shells.groups),
                resolved=shells.resolved,
                onsite=onsite,
                panels=panels,
                num_ring_targets=species.num_ring_targets,
            )
        )
    return tuple(result)


def _kernels(
    bands: Sequence[Any], num_out: Sequence[int], resolved: Sequence[Int[np.ndarray, " _"]]
) -> _Kernels:
    """Those of all bands, with zeros where a Gaussian does not act."""
    by_l = []
    for l in range(max(len(band.kernels) for band in bands)):
        parts = []
        for band in bands:
            num_gamma = len(band.mixing)
            part = np.zeros((num_out[l], num_gamma, len(resolved[l])))
            if l < len(band.kernels):
                own = band.kernels[l].reshape(len(band.kernels[l]), num_gamma, -1)
                part[: len(own), :, : own.shape[2]] = own
            parts.append(part)
        by_l.append(np.concatenate(parts, axis=1))
    return _Kernels(tuple(by_l), np.concatenate([band.mixing for band in bands]))
