r"""The Gaussian convolution on atom-centred grids of molecules.

The sources are divided among the atoms by a partition of unity and expanded about each in
spherical harmonics on its radial shells. A Gaussian acts on each harmonic by a radial kernel, so
that the fields of an atom are known on its own shells and, for the points of other atoms, as
Chebyshev polynomials on panels of the radius. Every step is linear: ``transpose`` calls the same
three steps (angular, radial, panels) backwards.

All channels share the kernels of one ladder: :math:`e^{-(\alpha+\beta)u^2}` is itself expanded in
Gaussians :math:`e^{-\gamma u^2}`, of finer ratio.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cider.conventions import float64
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

PANEL_DEGREE = 6
"""Number of Chebyshev polynomials per panel."""

TILE = 512
"""Grid points of one panel that are evaluated together."""

LARGEST_OFFSITE_EXPONENT = 200.0
"""Largest exponent (bohr^-2) of the fields at the points of other atoms.

Sharper fields follow the density closely, and the partition gives all sources near a nucleus to
that nucleus.
"""

PARTITION_POWER = 6
"""Sharpness of the partition of the sources; see ``partition_of_unity``."""

KERNEL_RATIO = 1.6
"""Ratio of the ladder of kernels."""


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
    points: tuple[Int[np.ndarray, " angle"], ...]


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
    """All shells, of whatever atom, that share their directions."""

    points: Int[Array, "shell angle"]
    harmonics: Float[Array, "lm angle"]


class _Species(eqx.Module):
    """Atoms with equal shells: which kernels act on their harmonics.

    ``shells[l]`` are the shells whose quadrature resolves degree 2l; ``unpack[l]`` puts them back
    among all shells, with one more index for zero.
    """

    start: int = eqx.field(static=True)
    num_atoms: int = eqx.field(static=True)
    num_shells: int = eqx.field(static=True)
    shells: tuple[Int[Array, " resolved"], ...]
    unpack: tuple[Int[Array, " shell"], ...]
    onsite_kernels: tuple[Float[Array, "gamma resolved resolved"], ...]
    zone_kernels: tuple[tuple[Float[Array, "gamma node resolved"], ...], ...]

    def moments(self, moments: Float[Array, "shell lm c"], lmax: int) -> list[Array]:
        """Per l, the moments of these atoms as (resolved, atom m, c)."""
        own = moments[self.start : self.start + self.num_atoms * self.num_shells]
        own = own.reshape(self.num_atoms, self.num_shells, *own.shape[1:]).transpose(1, 0, 2, 3)
        return [_merge(own[self.shells[l]][:, :, l * l : (l + 1) ** 2], 1) for l in range(lmax + 1)]

    def on_shells(self, by_l: list[Array], size: int) -> Float[Array, "shell lm c"]:
        """The inverse of ``moments``, with zeros where a shell does not resolve an l."""
        parts = []
        for l, part in enumerate(by_l):
            split = part.reshape(part.shape[0], self.num_atoms, 2 * l + 1, part.shape[-1])
            padded = jnp.pad(split, ((0, 1), (0, 0), (0, 0), (0, 0)))
            parts.append(padded[self.unpack[l]])
        stacked = jnp.concatenate(parts, axis=2).transpose(1, 0, 2, 3)
        return jnp.pad(_merge(stacked, 0), ((0, 0), (0, size - stacked.shape[2]), (0, 0)))


class _Zone(eqx.Module):
    """Points of other atoms in a range of distances, in tiles of one radial panel.

    ``slots`` says where among all tile points of an atom a grid point is; one more for nowhere.
    """

    points: Int[Array, "atom tile point"]
    panels: Int[Array, "atom tile"]
    slots: Int[Array, "atom grid"]
    edges: tuple[float, ...] = eqx.field(static=True)
    lmax: int = eqx.field(static=True)

    def evaluate(
        self,
        coords: Float[Array, "grid xyz"],
        centers: Float[Array, "atom xyz"],
        coefficients: Float[Array, "atom node lm c"],
    ) -> Float[Array, "grid c"]:
        """Fields at the grid points from the Chebyshev coefficients of all atoms."""
        num_atoms, _, size, count = coefficients.shape
        matrices = coefficients.reshape(num_atoms, -1, PANEL_DEGREE, size, count)
        matrices = matrices.transpose(0, 1, 3, 2, 4).reshape(
            num_atoms, -1, size, PANEL_DEGREE * count
        )

        def add_atom(total: Array, atom: tuple[Array, ...]) -> tuple[Array, None]:
            center, own, points, panels, slots = atom

            def fields_of(tile: tuple[Array, Array]) -> Array:
                harmonics, polynomials = self._functions(coords, center, *tile)
                values = (harmonics.T @ own[tile[1]]).reshape(TILE, PANEL_DEGREE, count)
                # Unrolled: a fused reduction over the degree was five times slower.
                terms = [polynomials[k][:, None] * values[:, k] for k in range(PANEL_DEGREE)]
                return sum(terms[1:], terms[0])

            tiles = jax.lax.map(fields_of, (points, panels)).reshape(-1, count)
            return total + jnp.pad(tiles, ((0, 1), (0, 0)))[slots], None

        atoms = (centers, matrices, self.points, self.panels, self.slots)
        return jax.lax.scan(add_atom, jnp.zeros((coords.shape[0], count)), atoms)[0]

    def evaluate_transpose(
        self,
        coords: Float[Array, "grid xyz"],
        centers: Float[Array, "atom xyz"],
        fields: Float[Array, "grid c"],
    ) -> Float[Array, "atom node lm c"]:
        """The transpose of ``evaluate``."""
        padded = jnp.pad(fields, ((0, 1), (0, 0)))
        num_panels, size, count = len(self.edges) - 1, (self.lmax + 1) ** 2, fields.shape[1]

        def matrices_of(atom: tuple[Array, ...]) -> Array:
            center, points, panels = atom

            def add_tile(total: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
                harmonics, polynomials = self._functions(coords, center, *tile)
                values = padded[tile[0]]
                columns = jnp.concatenate([p[:, None] * values for p in polynomials], axis=1)
                return total.at[tile[1]].add(harmonics @ columns), None

            zero = jnp.zeros((num_panels, size, PANEL_DEGREE * count))
            return jax.lax.scan(add_tile, zero, (points, panels))[0]

        matrices = jax.lax.map(matrices_of, (centers, self.points, self.panels))
        split = matrices.reshape(-1, num_panels, size, PANEL_DEGREE, count)
        return split.transpose(0, 1, 3, 2, 4).reshape(-1, num_panels * PANEL_DEGREE, size, count)

    def _functions(
        self,
        coords: Float[Array, "grid xyz"],
        center: Float[Array, " xyz"],
        points: Int[Array, " point"],
        panel: Int[Array, ""],
    ) -> tuple[Float[Array, "lm point"], list[Float[Array, " point"]]]:
        """Harmonics and radial Chebyshev polynomials at the points of one tile."""
        offset = jnp.take(coords, points, axis=0, mode="clip") - center
        distance = jnp.sqrt(jnp.sum(offset**2, axis=1) + 1e-30)
        edges = jnp.asarray(self.edges)
        low, high = edges[panel], edges[panel + 1]
        # Points that fill up a tile may lie elsewhere.
        x = jnp.clip((2 * distance - low - high) / (high - low), -1, 1)
        polynomials = [jnp.ones_like(x), x]
        for _ in range(2, PANEL_DEGREE):
            polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
        return real_spherical_harmonics(offset / distance[:, None], self.lmax), polynomials


class AtomCentredConvolution(GaussianConvolution):
    """``GaussianConvolution`` of a molecule; built by ``atom_centred_convolution``."""

    volumes: Float[Array, " grid"]
    groups: tuple[_AngularGroup, ...]
    slot_of_point: Int[Array, " grid"]
    order_of_shells: Int[Array, " shell"]
    species: tuple[_Species, ...]
    zones: tuple[_Zone, ...]
    mixing: Float[Array, "gamma source target"]
    offsite_mixing: Float[Array, "gamma source target"]
    coords: Float[Array, "grid xyz"]
    centers: Float[Array, "atom xyz"]
    lmax: int = eqx.field(static=True)

    def apply(self, sources: Float[Array, "grid source"]) -> Float[Array, "grid target"]:
        moments = self._project(self.volumes[:, None] * sources)
        fields = self._expand(self._mix_onsite(moments, self.mixing))
        for index, zone in enumerate(self.zones):
            coefficients = self._mix_to_zone(index, moments)
            far = zone.evaluate(self.coords, self.centers, coefficients)
            fields = fields.at[:, : far.shape[1]].add(far)
        return fields

    def transpose(self, fields: Float[Array, "grid target"]) -> Float[Array, "grid source"]:
        moments = self._mix_onsite(self._project(fields), self.mixing.transpose(0, 2, 1))
        far = fields[:, : self.offsite_mixing.shape[2]]
        for index, zone in enumerate(self.zones):
            coefficients = zone.evaluate_transpose(self.coords, self.centers, far)
            moments = moments + self._mix_to_zone_transpose(index, coefficients)
        return self.volumes[:, None] * self._expand(moments)

    # Angular step: between points and harmonics on shells. Shells run over species, atoms, radii.

    def _project(self, values: Float[Array, "grid c"]) -> Float[Array, "shell lm c"]:
        padded = jnp.pad(values, ((0, 1), (0, 0)))
        size = (self.lmax + 1) ** 2
        parts = []
        for group in self.groups:
            part = jnp.einsum("ma,sac->smc", group.harmonics, padded[group.points])
            parts.append(jnp.pad(part, ((0, 0), (0, size - part.shape[1]), (0, 0))))
        return jnp.concatenate(parts)[self.order_of_shells]

    def _expand(self, harmonics: Float[Array, "shell lm c"]) -> Float[Array, "grid c"]:
        grouped = harmonics[jnp.argsort(self.order_of_shells)]
        parts, start = [], 0
        for group in self.groups:
            stop = start + group.points.shape[0]
            own = grouped[start:stop, : group.harmonics.shape[0]]
            parts.append(_merge(jnp.einsum("ma,smc->sac", group.harmonics, own), 0))
            start = stop
        parts.append(jnp.zeros_like(parts[0][:1]))
        return jnp.concatenate(parts)[self.slot_of_point]

    # Radial step: Gaussians between shells, and from shells to panels.

    def _mix_onsite(
        self, moments: Float[Array, "shell lm in"], mixing: Float[Array, "gamma in out"]
    ) -> Float[Array, "shell lm out"]:
        parts = []
        for species in self.species:
            mixed = _mix(species.onsite_kernels, mixing, species.moments(moments, self.lmax))
            parts.append(species.on_shells(mixed, (self.lmax + 1) ** 2))
        return jnp.concatenate(parts)

    def _mix_to_zone(
        self, zone: int, moments: Float[Array, "shell lm source"]
    ) -> Float[Array, "atom node lm target"]:
        parts = []
        lmax = self.zones[zone].lmax
        for species in self.species:
            kernels = species.zone_kernels[zone]
            by_l = _mix(kernels, self.offsite_mixing, species.moments(moments, lmax))
            shape = (by_l[0].shape[0], species.num_atoms, -1, by_l[0].shape[-1])
            split = jnp.concatenate([part.reshape(shape) for part in by_l], axis=2)
            parts.append(split.transpose(1, 0, 2, 3))
        return jnp.concatenate(parts)

    def _mix_to_zone_transpose(
        self, zone: int, coefficients: Float[Array, "atom node lm target"]
    ) -> Float[Array, "shell lm source"]:
        parts, start = [], 0
        for species in self.species:
            own = coefficients[start : start + species.num_atoms].transpose(1, 0, 2, 3)
            start += species.num_atoms
            by_l = [
                _merge(own[:, :, l * l : (l + 1) ** 2], 1) for l in range(self.zones[zone].lmax + 1)
            ]
            kernels = tuple(k.transpose(0, 2, 1) for k in species.zone_kernels[zone])
            mixed = _mix(kernels, self.offsite_mixing.transpose(0, 2, 1), by_l)
            parts.append(species.on_shells(mixed, (self.lmax + 1) ** 2))
        return jnp.concatenate(parts)


def _merge(x: Array, axis: int) -> Array:
    """The array with ``axis`` and the next one merged."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _mix(
    kernels: Sequence[Float[Array, "gamma out in"]],
    mixing: Float[Array, "gamma cin cout"],
    moments: Sequence[Float[Array, "in m cin"]],
) -> list[Float[Array, "out m cout"]]:
    """Per l, the sum over Gaussians of kernel (radial) times mixing (channels) on the moments.

    One Gaussian after the other: the product of all of them with the moments would need much
    memory and a transposition of it.
    """
    shapes = [
        (k.shape[1], x.shape[1], mixing.shape[2]) for k, x in zip(kernels, moments, strict=True)
    ]

    def add_gaussian(
        total: tuple[Array, ...], gaussian: tuple[tuple[Array, ...], Array]
    ) -> tuple[tuple[Array, ...], None]:
        by_l, channels = gaussian
        added = []
        for t, kernel, x, shape in zip(total, by_l, moments, shapes, strict=True):
            radial = kernel @ x.reshape(x.shape[0], -1)
            added.append(t + (radial.reshape(-1, x.shape[2]) @ channels).reshape(shape))
        return tuple(added), None

    zero = tuple(jnp.zeros(shape) for shape in shapes)
    return list(jax.lax.scan(add_gaussian, zero, (tuple(kernels), mixing))[0])


@float64
def atom_centred_convolution(
    coords: Float[np.ndarray, "grid xyz"],
    volumes: Float[np.ndarray, " grid"],
    atoms: Sequence[AtomicGrid],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
    lmax: int = LMAX,
) -> AtomCentredConvolution:
    """The convolution of the grid ``coords``, which the atoms share out among them.

    ``volumes`` (bohr^3) are the quadrature weights of each atom alone, without any partition of
    space. Points that belong to no atom (padding) have no sources and no fields.
    """
    species_of = list(dict.fromkeys(atom.species for atom in atoms))
    atoms = sorted(atoms, key=lambda atom: species_of.index(atom.species))
    centers = np.array([atom.center for atom in atoms])
    owner = np.full(len(coords), -1)
    for index, atom in enumerate(atoms):
        for points in atom.points:
            owner[points[points >= 0]] = index
    owned = owner >= 0
    shares = np.zeros(len(coords))
    shares[owned] = partition_of_unity(coords[owned], owner[owned], centers)

    gamma = ladder_exponents(
        source_exponents[0] + target_exponents[0],
        4 * (source_exponents[-1] + target_exponents[-1]),
        KERNEL_RATIO,
    )
    sums = jnp.add.outer(jnp.asarray(source_exponents), jnp.asarray(target_exponents))
    mixing = jnp.moveaxis(GaussianLadder(gamma).coefficients(sums), -1, 0)
    num_targets = int(np.searchsorted(target_exponents, LARGEST_OFFSITE_EXPONENT))
    num_gamma = int(np.searchsorted(gamma, 4 * LARGEST_OFFSITE_EXPONENT))
    zones = [(edges, min(l, lmax)) for edges, l in ZONES] if len(atoms) > 1 else []
    groups, slot_of_point, order_of_shells = _angular_groups(atoms, len(coords), lmax)
    return AtomCentredConvolution(
        volumes=jnp.asarray(volumes * shares),
        groups=groups,
        slot_of_point=slot_of_point,
        order_of_shells=order_of_shells,
        species=_species_kernels(atoms, zones, gamma, num_gamma, lmax),
        zones=tuple(_zone(coords, owner, centers, edges, l) for edges, l in zones),
        mixing=mixing,
        offsite_mixing=mixing[:num_gamma, :, :num_targets],
        coords=jnp.asarray(coords),
        centers=jnp.asarray(centers),
        lmax=lmax,
    )


def _angular_groups(
    atoms: Sequence[AtomicGrid], num_points: int, lmax: int
) -> tuple[tuple[_AngularGroup, ...], Int[Array, " grid"], Int[Array, " shell"]]:
    by_grid: dict[int, list[tuple[int, np.ndarray]]] = {}
    grids: dict[int, AngularGrid] = {}
    shell = 0
    for atom in atoms:
        for angular, points in zip(atom.angular, atom.points, strict=True):
            grids[id(angular)] = angular
            by_grid.setdefault(id(angular), []).append((shell, points))
            shell += 1
    groups, shells, offset = [], [], 0
    slots = np.full(num_points, -1)
    for key, members in by_grid.items():
        points = np.array([points for _, points in members])
        shells += [index for index, _ in members]
        flat = points.ravel()
        slots[flat[flat >= 0]] = offset + np.flatnonzero(flat >= 0)
        offset += flat.size
        l = min(lmax, grids[key].degree // 2)
        harmonics = real_spherical_harmonics(jnp.asarray(grids[key].directions), l)
        padded = np.where(points < 0, num_points, points)
        groups.append(_AngularGroup(jnp.asarray(padded), harmonics))
    slots[slots < 0] = offset
    return tuple(groups), jnp.asarray(slots), jnp.asarray(np.argsort(shells))


def _species_kernels(
    atoms: Sequence[AtomicGrid],
    zones: Sequence[tuple[tuple[float, ...], int]],
    gamma: Float[np.ndarray, " gamma"],
    num_offsite: int,
    lmax: int,
) -> tuple[_Species, ...]:
    result, start = [], 0
    for name in dict.fromkeys(atom.species for atom in atoms):
        members = [atom for atom in atoms if atom.species == name]
        radii = members[0].radii
        resolved = np.array([grid.degree // 2 for grid in members[0].angular])
        shells = [np.flatnonzero(resolved >= l) for l in range(lmax + 1)]
        unpack = []
        for chosen in shells:
            back = np.full(len(radii), len(chosen))
            back[chosen] = np.arange(len(chosen))
            unpack.append(jnp.asarray(back))
        onsite = gaussian_radial_kernel(gamma, radii, radii, lmax)
        onsite_kernels = tuple(jnp.asarray(onsite[l][:, s][:, :, s]) for l, s in enumerate(shells))
        zone_kernels = []
        for edges, l_zone in zones:
            kernel = _panel_coefficients(gamma[:num_offsite], edges, radii, l_zone)
            zone_kernels.append(
                tuple(jnp.asarray(kernel[l][:, :, shells[l]]) for l in range(l_zone + 1))
            )
        result.append(
            _Species(
                start=start,
                num_atoms=len(members),
                num_shells=len(radii),
                shells=tuple(map(jnp.asarray, shells)),
                unpack=tuple(unpack),
                onsite_kernels=onsite_kernels,
                zone_kernels=tuple(zone_kernels),
            )
        )
        start += len(members) * len(radii)
    return tuple(result)


def _panel_coefficients(
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
    nodes = ((low + high) / 2 + (high - low) / 2 * np.cos(angle)).ravel()
    kernel = gaussian_radial_kernel(gamma, nodes, radii, lmax)
    split = kernel.reshape(lmax + 1, len(gamma), -1, PANEL_DEGREE, len(radii))
    return (to_coefficients @ split).reshape(kernel.shape)


def _zone(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    centers: Float[np.ndarray, "atom xyz"],
    edges: tuple[float, ...],
    lmax: int,
) -> _Zone:
    num_points, num_panels = len(coords), len(edges) - 1
    per_atom = []
    for index, center in enumerate(centers):
        distance = np.linalg.norm(coords - center, axis=1)
        panel = np.searchsorted(edges, distance, side="right") - 1
        panel[(owner == index) | (owner < 0)] = -1
        tiles = []
        for p in range(num_panels):
            members = np.flatnonzero(panel == p)
            tiles += [(p, members[i : i + TILE]) for i in range(0, len(members), TILE)]
        per_atom.append(tiles)
    count = max(len(tiles) for tiles in per_atom)
    points = np.full((len(centers), count, TILE), num_points)
    panels = np.zeros((len(centers), count), dtype=int)
    slots = np.full((len(centers), num_points), count * TILE)
    for index, tiles in enumerate(per_atom):
        for position, (panel_index, members) in enumerate(tiles):
            points[index, position, : len(members)] = members
            panels[index, position] = panel_index
            slots[index, members] = position * TILE + np.arange(len(members))
    return _Zone(jnp.asarray(points), jnp.asarray(panels), jnp.asarray(slots), edges, lmax)
