r"""The Gaussian convolution on atom-centred grids of molecules.

The sources are divided among the atoms by a partition of unity and expanded about each in
spherical harmonics on its radial shells. A Gaussian acts on each harmonic by a radial kernel, so
that the fields of an atom are known on its own shells and, for the points of other atoms, as
Chebyshev polynomials on panels of the radius. Every step is linear; the transpose takes them in
reverse. All channels share the kernels of one ladder: :math:`e^{-(\alpha+\beta)u^2}` is itself
expanded in Gaussians :math:`e^{-\gamma u^2}`, of finer ratio.

One atom is worked on after the other, and its points for other atoms in batches of equal size:
memory stays small, and what is compiled depends on the kinds of atoms, not on the molecule.
"""

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cider.conventions import AnyArray, float64
from cider.features.convolution import GaussianConvolution
from cider.features.gaussian_ladder import GaussianLadder, ladder_exponents
from cider.features.spherical import gaussian_radial_kernel, real_spherical_harmonics

LMAX = 10
"""Largest angular momentum of the expansion about an atom."""

ZONES = (
    ((0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0), LMAX),
    ((5.0, 5.75, 6.5, 7.5, 8.5, 10.0, 12.0, 14.0), 6),
)
"""Fields at the points of other atoms: edges of radial panels (bohr), and largest l within.

Far from an atom the high harmonics of its sources have died out; no field beyond the last edge.
"""

PANEL_DEGREE = 5
"""Number of Chebyshev polynomials per panel."""

TILE = 512
"""Grid points of one panel, which share a matrix product."""

BATCH = 8
"""Tiles that are evaluated in one call."""

LARGEST_OFFSITE_EXPONENT = 200.0
"""Largest exponent (bohr^-2) of the fields at the points of other atoms.

Sharper fields follow the density closely, and the partition gives all sources near a nucleus to
that nucleus.
"""

PARTITION_POWER = 6
"""Sharpness of the partition of the sources; see ``partition_of_unity``."""

KERNEL_RATIO = 1.6
"""Ratio of the ladder of kernels."""

TILE_DTYPE = np.float32
"""Precision of the harmonics and polynomials at the points of other atoms.

They are constants of the map: their rounding changes features by 1e-7, saves a third of the time
of the largest step, and is the same in every call and in the transpose. Products with sources and
fields are double: rounded to single they made energies noisy by 1e-8 Ha, which kept an SCF from
converging.
"""


@dataclass(frozen=True)
class AngularGrid:
    """Directions of a spherical quadrature, and the degree up to which it is exact."""

    directions: Float[np.ndarray, "angle xyz"]
    degree: int


@dataclass(frozen=True)
class AtomicGrid:
    """The quadrature of one atom, in shells of ascending radius (bohr).

    ``points[s][a]`` is the index in the whole grid of direction ``a`` on shell ``s``, or -1 where
    the point was pruned. Atoms of equal ``species`` have equal radii.
    """

    species: Hashable
    center: Float[np.ndarray, " xyz"]
    radii: Float[np.ndarray, " shell"]
    angular: tuple[AngularGrid, ...]
    points: tuple[Int[np.ndarray, " _"], ...]


def partition_of_unity(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    centers: Float[np.ndarray, "atom xyz"],
) -> Float[np.ndarray, " grid"]:
    r"""Share of each point's own atom in the sources there.

    .. math:: P_A(\mathbf r) = \frac{r_A^{-k}}{\sum_B r_B^{-k}}

    It leaves nothing of a nucleus's surroundings to other atoms, whose expansions could not resolve
    the core density there (a Becke partition leaves enough to spoil the energy by 5e-6), and is
    smooth enough between atoms for expansions of low order.
    """
    distance = np.empty((len(centers), len(coords)))
    for atom, center in enumerate(centers):
        distance[atom] = np.linalg.norm(coords - center, axis=1)
    own = np.take_along_axis(distance, owner[None], axis=0)[0]
    # As ratios to the own distance: powers of the distances themselves would overflow.
    return 1 / np.sum((own / np.maximum(distance, 1e-10)) ** PARTITION_POWER, axis=0)


class _AngularGroup(eqx.Module):
    """Shells of an atom that share their directions: where they and their points are."""

    shells: Int[np.ndarray, " shell"]
    points: Int[np.ndarray, "shell angle"]
    harmonics: Float[Array, "lm angle"]


class _Species(eqx.Module):
    """What atoms with equal shells have in common: harmonics and radial kernels.

    ``resolved[l]`` are the shells whose quadrature resolves degree 2l, ``restore[l]`` where each
    shell is among them (one past the end: nowhere). Kernels are Gaussians between shells, and
    from shells to the Chebyshev coefficients of each zone's panels (``node``).
    """

    groups: tuple[_AngularGroup, ...]
    point_of_group: Int[np.ndarray, " point"]
    shell_of_group: Int[np.ndarray, " shell"]
    resolved: tuple[Int[np.ndarray, " _"], ...]
    restore: tuple[Int[np.ndarray, " shell"], ...]
    onsite_kernels: tuple[Float[Array, "gamma _ _"], ...]
    zone_kernels: tuple[tuple[Float[Array, "_ _ _"], ...], ...]
    mixing: Float[Array, "gamma source target"]
    offsite_mixing: Float[Array, "offsite_gamma source offsite_target"]

    @property
    def lmax(self) -> int:
        return len(self.resolved) - 1

    def project(self, values: Float[Array, "point c"]) -> list[Float[Array, "_ _ c"]]:
        """Moments of the values at the atom's points, per l."""
        parts = []
        for group in self.groups:
            part = jnp.einsum("ma,sac->smc", group.harmonics, values[group.points])
            missing = (self.lmax + 1) ** 2 - part.shape[1]
            parts.append(jnp.pad(part, ((0, 0), (0, missing), (0, 0))))
        moments = jnp.concatenate(parts)[self.shell_of_group]
        return [moments[self.resolved[l], l * l : (l + 1) ** 2] for l in range(self.lmax + 1)]

    def expand(self, moments: Sequence[Float[Array, "_ _ c"]]) -> Float[Array, "point c"]:
        """The transpose of ``project``: sums of harmonics at the atom's points."""
        every = [
            jnp.pad(part, ((0, 1), (0, 0), (0, 0)))[restore]
            for part, restore in zip(moments, self.restore, strict=True)
        ]
        stacked = jnp.concatenate(every, axis=1)
        parts = []
        for group in self.groups:
            own = stacked[group.shells, : group.harmonics.shape[0]]
            values = jnp.einsum("ma,smc->sac", group.harmonics, own)
            parts.append(values.reshape(-1, values.shape[2]))
        return jnp.concatenate(parts)[self.point_of_group]

    @eqx.filter_jit
    def fields(
        self, charges: Float[Array, "point source"]
    ) -> tuple[Float[Array, "point target"], list[Float[Array, "_ column _"]]]:
        """Fields at the atom's own points, and the panel matrices of each zone."""
        moments = self.project(charges)
        own = self.expand(_mix(self.onsite_kernels, self.mixing, moments))
        zones = []
        for kernels in self.zone_kernels:
            by_l = _mix(kernels, self.offsite_mixing, moments[: len(kernels)])
            nodes = jnp.concatenate(by_l, axis=1)
            panels = nodes.reshape(-1, PANEL_DEGREE, *nodes.shape[1:]).transpose(0, 1, 3, 2)
            zones.append(panels.reshape(panels.shape[0], -1, panels.shape[3]))
        return own, zones

    @eqx.filter_jit
    def fields_transpose(
        self,
        own: Float[Array, "point target"],
        zones: Sequence[Float[Array, "_ column _"]],
    ) -> Float[Array, "point source"]:
        """The transpose of ``fields``."""
        moments = _mix(self.onsite_kernels, self.mixing.transpose(0, 2, 1), self.project(own))
        for kernels, panels in zip(self.zone_kernels, zones, strict=True):
            split = panels.reshape(panels.shape[0] * PANEL_DEGREE, -1, panels.shape[2])
            nodes = split.transpose(0, 2, 1)
            by_l = _mix(
                [kernel.transpose(0, 2, 1) for kernel in kernels],
                self.offsite_mixing.transpose(0, 2, 1),
                [nodes[:, l * l : (l + 1) ** 2] for l in range(len(kernels))],
            )
            moments = [a + b for a, b in zip(moments, by_l, strict=False)] + moments[len(by_l) :]
        return self.expand(moments)


def _mix(
    kernels: Sequence[Float[Array, "gamma _ _"]],
    mixing: Float[Array, "gamma cin cout"],
    moments: Sequence[Float[Array, "_ _ cin"]],
) -> list[Float[Array, "_ _ cout"]]:
    """Per l, the sum over Gaussians of kernel (radial) times mixing (channels) on the moments.

    One Gaussian after the other: the product of all of them with the moments would need much
    memory and a transposition of it.
    """
    pairs = list(zip(kernels, moments, strict=True))
    shapes = [(k.shape[1], x.shape[1], mixing.shape[2]) for k, x in pairs]

    def add_gaussian(
        total: tuple[Array, ...], gaussian: tuple[tuple[Array, ...], Array]
    ) -> tuple[tuple[Array, ...], None]:
        by_l, channels = gaussian
        added = []
        for t, kernel, x, shape in zip(total, by_l, moments, shapes, strict=True):
            radial = kernel @ x.reshape(x.shape[0], -1)
            added.append(t + (radial.reshape(-1, x.shape[2]) @ channels).reshape(shape))
        return tuple(added), None

    zero = tuple(jnp.zeros(shape, mixing.dtype) for shape in shapes)
    return list(jax.lax.scan(add_gaussian, zero, (tuple(kernels), mixing))[0])


@functools.partial(jax.jit, static_argnames=("edges", "lmax"))
def _evaluate_batch(
    offsets: Float[Array, "tile point xyz"],
    panels: Int[Array, " tile"],
    matrices: Float[Array, "panel column lm"],
    edges: tuple[float, ...],
    lmax: int,
) -> Float[Array, "tile point target"]:
    """Fields at points off an atom, from its panel matrices."""

    def fields_of(tile: tuple[Array, Array]) -> Array:
        harmonics, polynomials = _tile_functions(*tile, edges, lmax)
        values = (matrices[tile[1]] @ harmonics).reshape(PANEL_DEGREE, -1, TILE)
        # Unrolled: a fused reduction over the degree was five times slower.
        terms = [polynomials[k][None] * values[k] for k in range(PANEL_DEGREE)]
        return sum(terms[1:], terms[0]).T

    return jax.lax.map(fields_of, (offsets, panels))


@functools.partial(jax.jit, static_argnames=("edges", "lmax"))
def _evaluate_batch_transpose(
    offsets: Float[Array, "tile point xyz"],
    panels: Int[Array, " tile"],
    fields: Float[Array, "tile point target"],
    matrices: Float[Array, "panel column lm"],
    edges: tuple[float, ...],
    lmax: int,
) -> Float[Array, "panel column lm"]:
    """The transpose of ``_evaluate_batch``, added to the matrices."""

    def add_tile(total: Array, tile: tuple[Array, Array, Array]) -> tuple[Array, None]:
        harmonics, polynomials = _tile_functions(*tile[:2], edges, lmax)
        columns = jnp.concatenate([p[None] * tile[2].T for p in polynomials])
        return total.at[tile[1]].add(columns @ harmonics.T), None

    return jax.lax.scan(add_tile, matrices, (offsets, panels, fields))[0]


def _tile_functions(
    offsets: Float[Array, "point xyz"],
    panel: Int[Array, ""],
    edges: tuple[float, ...],
    lmax: int,
) -> tuple[Float[Array, "lm point"], list[Float[Array, " point"]]]:
    """Harmonics and radial Chebyshev polynomials at the points of one tile."""
    distance = jnp.sqrt(jnp.sum(offsets**2, axis=1) + 1e-30)
    low, high = jnp.asarray(edges, TILE_DTYPE)[jnp.stack([panel, panel + 1])]
    # Points that fill up a tile may lie elsewhere.
    x = jnp.clip((2 * distance - low - high) / (high - low), -1, 1)
    polynomials = [jnp.ones_like(x), x]
    for _ in range(2, PANEL_DEGREE):
        polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
    harmonics = real_spherical_harmonics(offsets / distance[:, None], lmax)
    return harmonics.astype(float), [p.astype(float) for p in polynomials]


class _Zone(eqx.Module):
    """Points of other atoms in a range of distances from one atom, in batches of tiles.

    Each tile lies within one panel; what fills it up is the index past the grid.
    """

    points: Int[np.ndarray, "batch tile point"]
    panels: Int[np.ndarray, "batch tile"]
    edges: tuple[float, ...] = eqx.field(static=True)
    lmax: int = eqx.field(static=True)

    def batches(
        self, coords: Float[np.ndarray, "grid xyz"], center: Float[np.ndarray, " xyz"]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Points, offsets from the atom, and panels."""
        for points, panels in zip(self.points, self.panels, strict=True):
            offsets = np.take(coords, points, axis=0, mode="clip") - center
            yield points, offsets.astype(TILE_DTYPE), panels


class _Atom(eqx.Module):
    """One atom of a molecule: its points, and the zones of the other atoms' points."""

    center: Float[np.ndarray, " xyz"]
    points: Int[np.ndarray, " point"]
    zones: tuple[_Zone, ...]
    species: int = eqx.field(static=True)


class AtomCentredConvolution(GaussianConvolution):
    """``GaussianConvolution`` of a molecule; built by ``atom_centred_convolution``.

    It works on concrete arrays: a program that is traced calls it between its traced parts.
    """

    volumes: Float[np.ndarray, " grid"]
    coords: Float[np.ndarray, "grid xyz"]
    atoms: tuple[_Atom, ...]
    species: tuple[_Species, ...]

    def __call__(self, sources: Float[AnyArray, "grid source"]) -> Float[AnyArray, "grid target"]:
        return self.apply(sources)

    @float64
    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        charges = _with_nowhere(self.volumes[:, None] * np.asarray(sources))
        fields = np.zeros((len(charges), self.species[0].mixing.shape[2]))
        for atom in self.atoms:
            own, matrices = self.species[atom.species].fields(charges[atom.points])
            fields[atom.points] += np.asarray(own)
            for zone, matrix in zip(atom.zones, matrices, strict=True):
                for points, offsets, panels in zone.batches(self.coords, atom.center):
                    values = _evaluate_batch(offsets, panels, matrix, zone.edges, zone.lmax)
                    fields[points, : values.shape[2]] += np.asarray(values)
        return fields[:-1]

    @float64
    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[np.ndarray, "grid source"]:
        fields = _with_nowhere(np.asarray(fields))
        sources = np.zeros((len(fields), self.species[0].mixing.shape[1]))
        far = fields[:, : self.species[0].offsite_mixing.shape[2]]
        for atom in self.atoms:
            species = self.species[atom.species]
            num_columns = PANEL_DEGREE * species.offsite_mixing.shape[2]
            matrices = []
            for zone in atom.zones:
                shape = (len(zone.edges) - 1, num_columns, (zone.lmax + 1) ** 2)
                matrix = jnp.zeros(shape)
                for points, offsets, panels in zone.batches(self.coords, atom.center):
                    values = far[points]
                    matrix = _evaluate_batch_transpose(
                        offsets, panels, values, matrix, zone.edges, zone.lmax
                    )
                matrices.append(matrix)
            own = species.fields_transpose(fields[atom.points], matrices)
            sources[atom.points] += np.asarray(own)
        return self.volumes[:, None] * sources[:-1]


def _with_nowhere(values: Float[np.ndarray, "grid c"]) -> Float[np.ndarray, "_ c"]:
    """One more row of zeros, for points that were pruned or fill up a tile."""
    return np.pad(values, ((0, 1), (0, 0)))


@float64
def atom_centred_convolution(
    coords: Float[np.ndarray, "grid xyz"],
    volumes: Float[np.ndarray, " grid"],
    atoms: Sequence[AtomicGrid],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> AtomCentredConvolution:
    """The convolution of the grid ``coords``, which the atoms share out among them.

    ``volumes`` (bohr^3) are the quadrature weights of each atom alone, without any partition of
    space. Points that belong to no atom (padding) have no sources and no fields.
    """
    centers = np.array([atom.center for atom in atoms])
    owner = np.full(len(coords) + 1, -1)
    for index, atom in enumerate(atoms):
        owner[np.concatenate(atom.points)] = index
    owner = np.where(owner[:-1] < 0, -1, owner[:-1])
    owned = owner >= 0
    shares = np.zeros(len(coords))
    shares[owned] = partition_of_unity(coords[owned], owner[owned], centers)

    names = list(dict.fromkeys(atom.species for atom in atoms))
    ladders = (tuple(source_exponents.tolist()), tuple(target_exponents.tolist()))
    zones = ZONES if len(atoms) > 1 else ()
    species = []
    for name in names:
        first = next(atom for atom in atoms if atom.species == name)
        species.append(_species(_Shells(name, first), *ladders, zones))

    def atom_of(index: int, atom: AtomicGrid) -> _Atom:
        kind = names.index(atom.species)
        points = np.concatenate(atom.points)
        own_zones = tuple(
            _zone(coords, owner, index, atom.center, edges, min(lmax, species[kind].lmax))
            for edges, lmax in zones
        )
        return _Atom(atom.center, np.where(points < 0, len(coords), points), own_zones, kind)

    return AtomCentredConvolution(
        volumes=volumes * shares,
        coords=coords,
        atoms=tuple(atom_of(index, atom) for index, atom in enumerate(atoms)),
        species=tuple(species),
    )


@dataclass(frozen=True)
class _Shells:
    """The shells of a species, by which its kernels are kept: equal names mean equal shells."""

    name: Hashable
    atom: AtomicGrid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shells) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@functools.lru_cache(maxsize=16)
def _species(
    shells: _Shells,
    source_exponents: tuple[float, ...],
    target_exponents: tuple[float, ...],
    zones: tuple[tuple[tuple[float, ...], int], ...],
) -> _Species:
    """Kernels depend on the shells alone; they are kept for other molecules and geometries."""
    atom = shells.atom
    mixing, gamma = _kernel_mixing(source_exponents, target_exponents)
    num_targets = int(np.searchsorted(target_exponents, LARGEST_OFFSITE_EXPONENT))
    num_gamma = int(np.searchsorted(gamma, 4 * LARGEST_OFFSITE_EXPONENT))

    degrees = [grid.degree for grid in atom.angular]
    lmax = min(LMAX, max(degrees) // 2)
    first_point = np.cumsum([0, *(len(points) for points in atom.points)])
    groups = []
    for degree in dict.fromkeys(degrees):
        members = np.flatnonzero(np.array(degrees) == degree)
        directions = atom.angular[members[0]].directions
        points = first_point[members][:, None] + np.arange(len(directions))
        harmonics = real_spherical_harmonics(jnp.asarray(directions), min(lmax, degree // 2))
        groups.append(_AngularGroup(members, points, harmonics))

    resolved = [np.flatnonzero(np.array(degrees) // 2 >= l) for l in range(lmax + 1)]
    restore = []
    for chosen in resolved:
        back = np.full(len(degrees), len(chosen))
        back[chosen] = np.arange(len(chosen))
        restore.append(back)
    onsite = gaussian_radial_kernel(gamma, atom.radii, atom.radii, lmax)
    zone_kernels = []
    for edges, zone_lmax in zones:
        kernel = _panel_kernel(gamma[:num_gamma], edges, atom.radii, min(zone_lmax, lmax))
        zone_kernels.append(
            tuple(jnp.asarray(k[:, :, s]) for k, s in zip(kernel, resolved, strict=False))
        )
    return _Species(
        groups=tuple(groups),
        point_of_group=np.argsort(np.concatenate([g.points.ravel() for g in groups])),
        shell_of_group=np.argsort(np.concatenate([g.shells for g in groups])),
        resolved=tuple(resolved),
        restore=tuple(restore),
        onsite_kernels=tuple(
            jnp.asarray(k[:, s][:, :, s]) for k, s in zip(onsite, resolved, strict=True)
        ),
        zone_kernels=tuple(zone_kernels),
        mixing=mixing,
        offsite_mixing=mixing[:num_gamma, :, :num_targets],
    )


def _kernel_mixing(
    source_exponents: tuple[float, ...], target_exponents: tuple[float, ...]
) -> tuple[Float[Array, "gamma source target"], Float[np.ndarray, " gamma"]]:
    """Expansion of all sums of a source and a target exponent in the ladder of kernels."""
    least = source_exponents[0] + target_exponents[0]
    largest = source_exponents[-1] + target_exponents[-1]
    gamma = ladder_exponents(least, 4 * largest, KERNEL_RATIO)
    sums = np.add.outer(np.array(source_exponents), np.array(target_exponents))
    coefficients = GaussianLadder(gamma).coefficients(jnp.asarray(sums))
    return jnp.moveaxis(coefficients, -1, 0), gamma


def _panel_kernel(
    gamma: Float[np.ndarray, " gamma"],
    edges: tuple[float, ...],
    radii: Float[np.ndarray, " shell"],
    lmax: int,
) -> Float[np.ndarray, "l gamma node shell"]:
    """Chebyshev coefficients of the radial kernels on panels; nodes run over panels, degrees."""
    angle = np.pi * (np.arange(PANEL_DEGREE) + 0.5) / PANEL_DEGREE
    to_coefficients = 2 / PANEL_DEGREE * np.cos(np.outer(np.arange(PANEL_DEGREE), angle))
    to_coefficients[0] /= 2
    low, high = np.array(edges[:-1])[:, None], np.array(edges[1:])[:, None]
    points = ((low + high) / 2 + (high - low) / 2 * np.cos(angle)).ravel()
    kernel = gaussian_radial_kernel(gamma, points, radii, lmax)
    split = kernel.reshape(lmax + 1, len(gamma), -1, PANEL_DEGREE, len(radii))
    return (to_coefficients @ split).reshape(kernel.shape)


def _zone(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    atom: int,
    center: Float[np.ndarray, " xyz"],
    edges: tuple[float, ...],
    lmax: int,
) -> _Zone:
    distance = np.linalg.norm(coords - center, axis=1)
    panel = np.searchsorted(edges, distance, side="right") - 1
    panel[(owner == atom) | (owner < 0)] = -1
    tiles = []
    for index in range(len(edges) - 1):
        members = np.flatnonzero(panel == index)
        tiles += [(index, members[i : i + TILE]) for i in range(0, len(members), TILE)]
    num_batches = -(-len(tiles) // BATCH)
    points = np.full((num_batches * BATCH, TILE), len(coords))
    panels = np.zeros(num_batches * BATCH, dtype=int)
    for position, (index, members) in enumerate(tiles):
        points[position, : len(members)] = members
        panels[position] = index
    shape = (num_batches, BATCH)
    return _Zone(points.reshape(*shape, TILE), panels.reshape(shape), edges, lmax)
