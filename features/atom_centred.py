r"""Convolution with sharp Gaussians on the atom-centred grids of molecules.

The charges of each atom's points are expanded about it in spherical harmonics on its radial
shells. A Gaussian acts on each harmonic by a radial kernel, so that the fields of an atom are
known on its own shells and, for the points of other atoms nearby, as Chebyshev polynomials on
panels of the radius. Every step is linear; the transpose takes them in reverse. All pairs of
exponents share the kernels of one ladder: :math:`e^{-(\alpha+\beta)u^2}` is itself expanded in
Gaussians :math:`e^{-\gamma u^2}`, of finer ratio.

One atom is worked on after the other, and its points for other atoms in batches of equal size:
memory stays small, and what is compiled is the same for all molecules.
"""

import functools
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cider.conventions import AnyArray
from cider.features.atomic_shells import (
    AtomicGrid,
    Moments,
    SphericalShells,
    spherical_shells,
)
from cider.features.gaussian_ladder import GaussianLadder, ladder_exponents
from cider.features.spherical import gaussian_radial_kernel, real_spherical_harmonics

LMAX = 12
"""Largest angular momentum of the expansion about an atom."""

PANELS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0)
"""Edges of the radial panels (bohr) for points of other atoms; there are no fields beyond."""

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

KERNEL_RATIO = 1.6
"""Ratio of the ladder of kernels."""

UNRESOLVED = 100.0
"""Product of an exponent and the squared distance between shells where a Gaussian is dropped.

So narrow a Gaussian belongs to densities that these shells do not have; but the ladders reach
beyond the exponents that they expand: with 4 the energy of neon was off by 1e-5, with 40 by 2e-7.
"""

TILE_DTYPE = np.float32
"""Precision of the harmonics and polynomials at the points of other atoms.

They are constants of the map: their rounding changes features by 1e-7, saves a third of the time
of the largest step, and is the same in every call and in the transpose. Products with sources and
fields are double: rounded to single they made energies noisy by 1e-8 Ha, which kept an SCF from
converging.
"""


class _RadialBand(eqx.Module):
    """Gaussians that act on the same innermost shells: radial kernels per l, and the mixing of
    channels by each."""

    kernels: tuple[Float[np.ndarray, "gamma _ _"], ...]
    mixing: Float[np.ndarray, "gamma cin cout"]

    @property
    def transposed(self) -> "_RadialBand":
        """The band that acts backwards."""
        kernels = tuple(kernel.transpose(0, 2, 1) for kernel in self.kernels)
        return _RadialBand(kernels, self.mixing.transpose(0, 2, 1))

    def add_to(self, total: Moments, moments: Moments) -> None:
        """Add, per l, the sum over Gaussians of kernel times mixing on the moments."""
        inputs = [x[: k.shape[2]] for k, x in zip(self.kernels, moments, strict=False)]
        inputs = [x.reshape(x.shape[0], -1) for x in inputs]
        outputs = [t[: k.shape[1]] for k, t in zip(self.kernels, total, strict=False)]
        ends = np.cumsum([0] + [x.shape[0] * x.shape[1] for x in outputs])
        radial = np.empty((ends[-1], self.mixing.shape[1]))
        mixed = np.zeros((ends[-1], self.mixing.shape[2]))
        parts = [slice(*pair) for pair in itertools.pairwise(ends)]
        for gaussian, channels in enumerate(self.mixing):
            for kernel, x, part in zip(self.kernels, inputs, parts, strict=True):
                out = radial[part].reshape(kernel.shape[1], -1)
                np.matmul(kernel[gaussian], x, out=out)
            mixed += radial @ channels
        for out, part in zip(outputs, parts, strict=True):
            out += mixed[part].reshape(out.shape)


class _Species(eqx.Module):
    """What atoms with equal shells have in common: harmonics and radial kernels.

    Kernels are Gaussians between shells, and from shells to the Chebyshev coefficients of the
    panels (nodes run over panels, then degrees).
    """

    shells: SphericalShells
    onsite: tuple[_RadialBand, ...]
    panels: tuple[_RadialBand, ...]

    @property
    def panel_shape(self) -> tuple[int, int, int]:
        """Shape of the panel matrices: panels, columns (degrees and targets), harmonics."""
        num_far = self.panels[0].mixing.shape[2] if self.panels else 0
        return len(PANELS) - 1, PANEL_DEGREE * num_far, (self.shells.lmax + 1) ** 2

    def fields(
        self, charges: Float[np.ndarray, "point source"]
    ) -> tuple[Float[np.ndarray, "point target"], Float[np.ndarray, "panel column lm"]]:
        """Fields at the atom's own points, and the panel matrices of the points of others."""
        moments = self.shells.project(charges)
        num_targets = self.onsite[0].mixing.shape[2]
        own = [np.zeros((*x.shape[:2], num_targets)) for x in moments]
        for band in self.onsite:
            band.add_to(own, moments)
        num_panels, num_columns, _ = self.panel_shape
        num_nodes, num_far = num_panels * PANEL_DEGREE, num_columns // PANEL_DEGREE
        nodes = [np.zeros((num_nodes, x.shape[1], num_far)) for x in moments]
        for band in self.panels:
            band.add_to(nodes, moments)
        columns = np.concatenate(nodes, axis=1).transpose(0, 2, 1)
        return self.shells.expand(own), columns.reshape(self.panel_shape)

    def fields_transpose(
        self,
        own: Float[np.ndarray, "point target"],
        panels: Float[np.ndarray, "panel column lm"],
    ) -> Float[np.ndarray, "point source"]:
        """The transpose of ``fields``."""
        by_own = self.shells.project(own)
        num_sources = self.onsite[0].mixing.shape[1]
        moments = [np.zeros((*x.shape[:2], num_sources)) for x in by_own]
        for band in self.onsite:
            band.transposed.add_to(moments, by_own)
        num_panels, _, num_harmonics = self.panel_shape
        nodes = panels.reshape(num_panels * PANEL_DEGREE, -1, num_harmonics).transpose(0, 2, 1)
        by_nodes = [nodes[:, l * l : (l + 1) ** 2] for l in range(len(moments))]
        for band in self.panels:
            band.transposed.add_to(moments, by_nodes)
        return self.shells.expand(moments)


@functools.partial(jax.jit, static_argnames="lmax")
def _evaluate_batch(
    offsets: Float[Array, "tile point xyz"],
    panels: Int[Array, " tile"],
    matrices: Float[Array, "panel column lm"],
    lmax: int,
) -> Float[Array, "tile point target"]:
    """Fields at points off an atom, from its panel matrices."""

    def fields_of(tile: tuple[Array, Array]) -> Array:
        harmonics, polynomials = _tile_functions(*tile, lmax)
        values = (matrices[tile[1]] @ harmonics).reshape(PANEL_DEGREE, -1, TILE)
        # Unrolled: a fused reduction over the degree was five times slower.
        terms = [polynomials[k][None] * values[k] for k in range(PANEL_DEGREE)]
        return sum(terms[1:], terms[0]).T

    return jax.lax.map(fields_of, (offsets, panels))


@functools.partial(jax.jit, static_argnames="lmax")
def _evaluate_batch_transpose(
    offsets: Float[Array, "tile point xyz"],
    panels: Int[Array, " tile"],
    fields: Float[Array, "tile point target"],
    matrices: Float[Array, "panel column lm"],
    lmax: int,
) -> Float[Array, "panel column lm"]:
    """The transpose of ``_evaluate_batch``, added to the matrices."""

    def add_tile(total: Array, tile: tuple[Array, Array, Array]) -> tuple[Array, None]:
        harmonics, polynomials = _tile_functions(*tile[:2], lmax)
        columns = jnp.concatenate([p[None] * tile[2].T for p in polynomials])
        return total.at[tile[1]].add(columns @ harmonics.T), None

    return jax.lax.scan(add_tile, matrices, (offsets, panels, fields))[0]


def _tile_functions(
    offsets: Float[Array, "point xyz"], panel: Int[Array, ""], lmax: int
) -> tuple[Float[Array, "lm point"], list[Float[Array, " point"]]]:
    """Harmonics and radial Chebyshev polynomials at the points of one tile."""
    distance = jnp.sqrt(jnp.sum(offsets**2, axis=1) + 1e-30)
    low, high = jnp.asarray(PANELS, TILE_DTYPE)[jnp.stack([panel, panel + 1])]
    # Points that fill up a tile may lie elsewhere.
    x = jnp.clip((2 * distance - low - high) / (high - low), -1, 1)
    polynomials = [jnp.ones_like(x), x]
    for _ in range(2, PANEL_DEGREE):
        polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
    harmonics = real_spherical_harmonics(offsets / distance[:, None], lmax)
    return harmonics.astype(float), [p.astype(float) for p in polynomials]


class _Atom(eqx.Module):
    """One atom of a molecule: its points, and those of other atoms around it, in batches of tiles.

    Each tile lies within one panel; what fills it up is the index past the grid.
    """

    center: Float[np.ndarray, " xyz"]
    points: Int[np.ndarray, " own"]
    around: Int[np.ndarray, "batch tile point"]
    panels: Int[np.ndarray, "batch tile"]
    species: int = eqx.field(static=True)

    def batches(
        self, coords: Float[np.ndarray, "grid xyz"]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Points, offsets from the atom, and panels."""
        for points, panels in zip(self.around, self.panels, strict=True):
            offsets = np.take(coords, points, axis=0, mode="clip") - self.center
            yield points, offsets.astype(TILE_DTYPE), panels


class AtomCentredConvolution(eqx.Module):
    """Convolution of charges with the sharp Gaussians; see ``atom_centred_convolution``.

    It works on concrete arrays: a program that is traced calls it between its traced parts.
    """

    coords: Float[np.ndarray, "grid xyz"]
    atoms: tuple[_Atom, ...]
    species: tuple[_Species, ...]
    num_sources: int = eqx.field(static=True)
    num_targets: int = eqx.field(static=True)

    def apply(self, charges: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        """Fields of charges, both at the points of the grid."""
        charges = _with_nowhere(charges)
        fields = np.zeros((len(charges), self.num_targets))
        for atom in self.atoms:
            species = self.species[atom.species]
            own, matrices = species.fields(charges[atom.points])
            fields[atom.points] += own
            for points, offsets, panels in atom.batches(self.coords):
                values = _evaluate_batch(offsets, panels, matrices, species.shells.lmax)
                fields[points, : values.shape[2]] += np.asarray(values)
        return fields[:-1]

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[np.ndarray, "grid source"]:
        """The transposed map."""
        fields = _with_nowhere(fields)
        charges = np.zeros((len(fields), self.num_sources))
        for atom in self.atoms:
            species = self.species[atom.species]
            num_far, lmax = species.panel_shape[1] // PANEL_DEGREE, species.shells.lmax
            matrices = jnp.zeros(species.panel_shape)
            for points, offsets, panels in atom.batches(self.coords):
                values = fields[points, :num_far]
                matrices = _evaluate_batch_transpose(offsets, panels, values, matrices, lmax)
            own = species.fields_transpose(fields[atom.points], np.asarray(matrices))
            charges[atom.points] += own
        return charges[:-1]


def _with_nowhere(values: Float[AnyArray, "grid c"]) -> Float[np.ndarray, "_ c"]:
    """One more row of zeros, for points that fill up a tile."""
    return np.pad(np.asarray(values), ((0, 1), (0, 0)))


def atom_centred_convolution(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    atoms: Sequence[AtomicGrid],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
    selected: Bool[np.ndarray, "source target"],
) -> AtomCentredConvolution:
    """The convolution with ``exp(-(a + b) u^2)`` for the selected pairs of exponents (bohr^-2).

    The grid ``coords`` is shared out among the atoms: ``owner`` is the atom of each point, -1 for
    points of none, which have no charges and no fields.
    """
    names = list(dict.fromkeys(atom.species for atom in atoms))
    gaussians = (
        tuple(source_exponents.tolist()),
        tuple(target_exponents.tolist()),
        tuple(map(tuple, selected.tolist())),
    )
    species = []
    for name in names:
        first = next(atom for atom in atoms if atom.species == name)
        species.append(_species(_Shells(name, first), *gaussians, len(atoms) > 1))

    def atom_of(index: int, atom: AtomicGrid) -> _Atom:
        around, panels = _tiles_around(coords, owner, index, atom.center)
        kind = names.index(atom.species)
        return _Atom(atom.center, np.concatenate(atom.points), around, panels, kind)

    return AtomCentredConvolution(
        coords=coords,
        atoms=tuple(atom_of(index, atom) for index, atom in enumerate(atoms)),
        species=tuple(species),
        num_sources=len(source_exponents),
        num_targets=len(target_exponents),
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
    selected: tuple[tuple[bool, ...], ...],
    has_neighbours: bool,
) -> _Species:
    """Kernels depend on the shells alone; they are kept for other molecules and geometries."""
    radii = shells.atom.radii
    spherical = spherical_shells(shells.atom.angular, LMAX)
    mixing, gamma = _kernel_mixing(source_exponents, target_exponents, np.array(selected))
    # Shells on which a Gaussian is resolved, never fewer for a softer one.
    spacing = np.maximum.accumulate(np.diff(radii, prepend=0.0))
    num_shells = np.searchsorted(spacing, np.sqrt(UNRESOLVED / gamma))

    def bands(nodes: Float[np.ndarray, " node"] | None, chosen: slice, columns: slice) -> tuple:
        result = []
        for members in _band_members(num_shells[chosen]):
            count = num_shells[members[0]]
            inner = [s[: np.searchsorted(s, count)] for s in spherical.resolved]
            inner = [s for s in inner if len(s)]
            kernel = _radial_kernel(gamma[members], nodes, radii[:count], len(inner) - 1)
            kernels = tuple(
                np.ascontiguousarray(k[:, s][:, :, s] if nodes is None else k[:, :, s])
                for k, s in zip(kernel, inner, strict=True)
            )
            result.append(_RadialBand(kernels, mixing[members][:, :, columns]))
        return tuple(result)

    num_far_targets = int(np.searchsorted(target_exponents, LARGEST_OFFSITE_EXPONENT))
    num_far_gamma = int(np.searchsorted(gamma, 4 * LARGEST_OFFSITE_EXPONENT))
    every = slice(None)
    return _Species(
        shells=spherical,
        onsite=bands(None, every, every),
        panels=bands(_panel_nodes(), slice(num_far_gamma), slice(num_far_targets))
        if has_neighbours
        else (),
    )


def _band_members(num_shells: Int[np.ndarray, " gamma"]) -> list[Int[np.ndarray, " _"]]:
    """Runs of Gaussians whose numbers of shells differ by less than a third."""
    runs: list[list[int]] = []
    for index, count in enumerate(num_shells):
        if count == 0:
            break
        if runs and count > 2 / 3 * num_shells[runs[-1][0]]:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [np.array(run) for run in runs]


def _kernel_mixing(
    source_exponents: tuple[float, ...],
    target_exponents: tuple[float, ...],
    selected: Bool[np.ndarray, "source target"],
) -> tuple[Float[np.ndarray, "gamma source target"], Float[np.ndarray, " gamma"]]:
    """Expansion of the sums of selected exponents in the ladder of kernels."""
    sums = np.add.outer(np.array(source_exponents), np.array(target_exponents))
    # Margins on both sides, where the expansion is poor.
    gamma = ladder_exponents(sums[selected].min() / 2, 4 * sums.max(), KERNEL_RATIO)
    coefficients = np.asarray(GaussianLadder(gamma).coefficients(jnp.asarray(sums)))
    return np.ascontiguousarray(np.moveaxis(coefficients * selected[..., None], -1, 0)), gamma


def _panel_nodes() -> Float[np.ndarray, " node"]:
    """Chebyshev points of all panels."""
    low, high = np.array(PANELS[:-1])[:, None], np.array(PANELS[1:])[:, None]
    return ((low + high) / 2 + (high - low) / 2 * np.cos(_panel_angles())).ravel()


def _panel_angles() -> Float[np.ndarray, " node"]:
    return np.pi * (np.arange(PANEL_DEGREE) + 0.5) / PANEL_DEGREE


def _radial_kernel(
    gamma: Float[np.ndarray, " gamma"],
    nodes: Float[np.ndarray, " node"] | None,
    radii: Float[np.ndarray, " shell"],
    lmax: int,
) -> Float[np.ndarray, "l gamma out shell"]:
    """Radial kernels between shells, or from shells to Chebyshev coefficients of the panels."""
    if nodes is None:
        return gaussian_radial_kernel(gamma, radii, radii, lmax)
    degrees = np.arange(PANEL_DEGREE)
    to_coefficients = 2 / PANEL_DEGREE * np.cos(np.outer(degrees, _panel_angles()))
    to_coefficients[0] /= 2
    kernel = gaussian_radial_kernel(gamma, nodes, radii, lmax)
    split = kernel.reshape(lmax + 1, len(gamma), -1, PANEL_DEGREE, len(radii))
    return (to_coefficients @ split).reshape(kernel.shape)


def _tiles_around(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    atom: int,
    center: Float[np.ndarray, " xyz"],
) -> tuple[Int[np.ndarray, "batch tile point"], Int[np.ndarray, "batch tile"]]:
    """Points of other atoms within the panels of one, and the panel of each tile."""
    distance = np.linalg.norm(coords - center, axis=1)
    panel = np.searchsorted(PANELS, distance, side="right") - 1
    panel[(owner == atom) | (owner < 0)] = -1
    tiles = []
    for index in range(len(PANELS) - 1):
        members = np.flatnonzero(panel == index)
        tiles += [(index, members[i : i + TILE]) for i in range(0, len(members), TILE)]
    num_batches = -(-len(tiles) // BATCH)
    points = np.full((num_batches * BATCH, TILE), len(coords))
    panels = np.zeros(num_batches * BATCH, dtype=int)
    for position, (index, members) in enumerate(tiles):
        points[position, : len(members)] = members
        panels[position] = index
    return points.reshape(num_batches, BATCH, TILE), panels.reshape(num_batches, BATCH)
