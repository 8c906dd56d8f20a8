r"""Convolution with sharp Gaussians on the atom-centred grids of molecules and crystals.

The charges of each atom's points are expanded about it in spherical harmonics on its radial
shells. A Gaussian acts on each harmonic by a radial kernel, so that the fields of an atom are
known on its own shells and, for the points of other atoms nearby, in rings about it; in a crystal,
about each of its images. Every step is linear; the transpose takes them in reverse. All pairs of
exponents share the kernels of one ladder: :math:`e^{-(\alpha+\beta)u^2}` is itself expanded in
Gaussians :math:`e^{-\gamma u^2}`, of finer ratio.

Atoms are worked on in threads, and their fields are added in their order: results do not depend
on the number of threads.
"""

import functools
from collections.abc import Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from cider.conventions import AnyArray
from cider.features.atomic_shells import (
    AtomicGrid,
    Moments,
    SphericalShells,
    spherical_shells,
)
from cider.features.compiled import add_rows
from cider.features.gaussian_ladder import ladder_of_sums
from cider.features.rings import (
    DEGREE,
    RINGS,
    TO_POWERS,
    RingPoints,
    no_ring_matrices,
    num_nodes,
    panel_nodes,
    ring_matrices,
    ring_matrices_transpose,
    ring_points,
)
from cider.features.spherical import gaussian_radial_kernel

LMAX = RINGS[0].lmax
"""Largest angular momentum of the expansion about an atom."""

ONSITE_LMAX = 8
"""Largest angular momentum of an atom's fields at its own points."""

UNRESOLVED = 100.0
"""Product of an exponent and the squared distance between shells where a Gaussian is dropped.

So narrow a Gaussian belongs to densities that these shells do not have; but the ladders reach
beyond the exponents that they expand: with 4 the energy of neon was off by 1e-5, with 40 by 2e-7.
"""


SAME_PLACE = 1e-6
"""Distance (bohr) of places that differ by rounding."""


class _RadialBand(eqx.Module):
    """Gaussians that act on the same innermost shells: how each mixes the channels, and per l its
    radial kernel (out, Gaussian and in)."""

    kernels: tuple[Float[np.ndarray, "_ _"], ...]
    mixing: Float[np.ndarray, "gamma cin cout"]

    def transposed(self) -> "_RadialBand":
        """The band that acts backwards."""
        num_gamma = len(self.mixing)
        kernels = []
        for kernel in self.kernels:
            split = kernel.reshape(len(kernel), num_gamma, -1).transpose(2, 1, 0)
            kernels.append(split.reshape(len(split), -1))
        return _RadialBand(tuple(kernels), np.ascontiguousarray(self.mixing.transpose(0, 2, 1)))

    def add_to(self, total: Moments, moments: Moments) -> None:
        """Add, per l, the sum over Gaussians of kernel times mixing on the moments."""
        for kernel, out, x in zip(self.kernels, total, moments, strict=False):
            inner = x[: kernel.shape[1] // len(self.mixing)]
            mixed = inner.reshape(-1, x.shape[2]) @ self.mixing
            sums = kernel @ mixed.reshape(kernel.shape[1], -1)
            out[: len(kernel)] += sums.reshape(-1, *out.shape[1:])


class _Species(eqx.Module):
    """What atoms with equal shells have in common: harmonics and radial kernels.

    Kernels are Gaussians between shells, and from shells to the powers of the radius in the
    panels of the rings.
    """

    shells: SphericalShells
    onsite: tuple[_RadialBand, ...]
    onsite_transpose: tuple[_RadialBand, ...]
    panels: tuple[_RadialBand, ...]
    panels_transpose: tuple[_RadialBand, ...]
    num_ring_targets: tuple[int, ...] = eqx.field(static=True)

    def fields(
        self, charges: Float[np.ndarray, "point source"]
    ) -> tuple[Float[np.ndarray, "point target"], list[Float[np.ndarray, "_ _ _"]]]:
        """Fields at the atom's own points, and the matrices of the rings."""
        moments = self.shells.project(charges, LMAX)
        num_targets = self.onsite[0].mixing.shape[2]
        own = [np.zeros((*x.shape[:2], num_targets)) for x in moments[: ONSITE_LMAX + 1]]
        for band in self.onsite:
            band.add_to(own, moments)
        return self.shells.expand(own), self._ring_matrices(moments)

    def ring_matrices(
        self, charges: Float[np.ndarray, "point source"]
    ) -> list[Float[np.ndarray, "_ _ _"]]:
        """The matrices of the rings alone."""
        return self._ring_matrices(self.shells.project(charges, LMAX))

    def _ring_matrices(self, moments: Moments) -> list[Float[np.ndarray, "_ _ _"]]:
        if not self.panels:
            return []
        num_targets = self.num_ring_targets[0]
        nodes = [np.zeros((num_nodes(l), x.shape[1], num_targets)) for l, x in enumerate(moments)]
        for band in self.panels:
            band.add_to(nodes, moments)
        return ring_matrices(nodes, self.num_ring_targets)

    def fields_transpose(
        self,
        own: Float[np.ndarray, "point target"],
        matrices: Sequence[Float[np.ndarray, "_ _ _"]],
    ) -> Float[np.ndarray, "point source"]:
        """The transpose of ``fields``; no matrices where there are no other atoms."""
        by_own = self.shells.project(own, ONSITE_LMAX)
        num_sources = self.onsite[0].mixing.shape[1]
        moments = [
            np.zeros((len(shells), 2 * l + 1, num_sources))
            for l, shells in enumerate(self.shells.resolved)
        ]
        for band in self.onsite_transpose:
            band.add_to(moments, by_own)
        if self.panels:
            by_nodes = ring_matrices_transpose(matrices, self.shells.lmax, self.num_ring_targets)
            for band in self.panels_transpose:
                band.add_to(moments, by_nodes)
        return self.shells.expand(moments)


class _Image(eqx.Module):
    """Where an atom is, or one of its images in a crystal, and the points of others around it."""

    center: Float[np.ndarray, " xyz"]
    rings: tuple[RingPoints, ...]


class _Atom(eqx.Module):
    """One atom: its points, and the places that its fields reach."""

    points: Int[np.ndarray, " own"]
    images: tuple[_Image, ...]
    species: int = eqx.field(static=True)


class AtomCentredConvolution(eqx.Module):
    """Convolution of charges with the sharp Gaussians; see ``atom_centred_convolution``.

    It works on concrete arrays: a program that is traced calls it between its traced parts.
    """

    coords: Float[np.ndarray, "grid xyz"]
    atoms: tuple[_Atom, ...]
    species: tuple[_Species, ...]
    num_sources: int = eqx.field(static=True)
    num_targets: int = eqx.field(static=True)

    def apply(
        self, charges: Float[AnyArray, "grid source"], pool: Executor
    ) -> Float[np.ndarray, "grid target"]:
        """Fields of charges, both at the points of the grid; ``pool`` runs atoms in parallel."""
        charges = np.asarray(charges)
        fields = np.zeros((len(charges), self.num_targets))

        def fields_of(atom: _Atom) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
            own, matrices = self.species[atom.species].fields(charges[atom.points])
            return own, [
                (ring.points, ring.evaluate(matrix, self.coords, image.center))
                for image in atom.images
                for ring, matrix in zip(image.rings, matrices, strict=False)
            ]

        for atom, (own, around) in zip(self.atoms, pool.map(fields_of, self.atoms), strict=True):
            fields[atom.points] += own
            for points, values in around:
                add_rows(fields, points, values)
        return fields

    def transpose(
        self, fields: Float[AnyArray, "grid target"], pool: Executor
    ) -> Float[np.ndarray, "grid source"]:
        """The transposed map."""
        fields = np.asarray(fields)
        charges = np.zeros((len(fields), self.num_sources))

        def charges_of(atom: _Atom) -> np.ndarray:
            species = self.species[atom.species]
            matrices = no_ring_matrices(species.num_ring_targets)
            for image in atom.images:
                for ring, matrix in zip(image.rings, matrices, strict=False):
                    ring.add_transpose(matrix, fields, self.coords, image.center)
            return species.fields_transpose(fields[atom.points], matrices)

        for atom, own in zip(self.atoms, pool.map(charges_of, self.atoms), strict=True):
            charges[atom.points] = own
        return charges

    def derivative(
        self,
        charges: Float[AnyArray, "grid source"],
        by_fields: Float[AnyArray, "grid target"],
        owner: Int[np.ndarray, " grid"],
        pool: Executor,
    ) -> Float[np.ndarray, "atom xyz"]:
        """Derivative of ``by_fields`` times the fields of charges, as the atoms move (per bohr).

        Points and charges move with their atoms, of which ``owner`` is the number: an atom's fields
        at its own points stay as they are, and elsewhere they follow the distance.
        """
        charges, by_fields = np.asarray(charges), np.asarray(by_fields)

        def derivative_of(index: int) -> Float[np.ndarray, "atom xyz"]:
            atom = self.atoms[index]
            species = self.species[atom.species]
            derivative = np.zeros((len(self.atoms), 3))
            matrices = species.ring_matrices(charges[atom.points])
            for image in atom.images:
                around = zip(image.rings, matrices, species.num_ring_targets, strict=False)
                for ring, matrix, count in around:
                    own = by_fields[:, :count]
                    gradients = ring.gradients(matrix, own, self.coords, image.center)
                    add_rows(derivative, owner[ring.points], gradients)
                    derivative[index] -= gradients.sum(axis=0)
            return derivative

        parts = pool.map(derivative_of, range(len(self.atoms)))
        return np.sum(list(parts), axis=0)


def atom_centred_convolution(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    own_centers: Float[np.ndarray, "grid xyz"],
    atoms: Sequence[AtomicGrid],
    images: Sequence[Float[np.ndarray, "_ xyz"]],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
    selected: Bool[np.ndarray, "source target"],
) -> AtomCentredConvolution:
    """The convolution with ``exp(-(a + b) u^2)`` for the selected pairs of exponents (bohr^-2).

    The grid ``coords`` is shared out among the atoms: ``owner`` is the atom of each point, -1 for
    points of none, which have no charges and no fields. ``images`` are the places (bohr) of each
    atom: in a molecule one, in a crystal those whose fields reach the grid. The shells of a point
    are about ``own_centers``.
    """
    has_neighbours = sum(map(len, images)) > 1
    names = list(dict.fromkeys(atom.species for atom in atoms))
    gaussians = (
        tuple(source_exponents.tolist()),
        tuple(target_exponents.tolist()),
        tuple(map(tuple, selected.tolist())),
    )
    species = []
    for name in names:
        first = next(atom for atom in atoms if atom.species == name)
        species.append(_species(_Shells(name, first), *gaussians, has_neighbours))

    def image_of(index: int, center: Float[np.ndarray, " xyz"]) -> _Image:
        own = (owner == index) & np.all(abs(own_centers - center) < SAME_PLACE, axis=1)
        distance = np.linalg.norm(coords - center, axis=1)
        return _Image(center, ring_points(distance, own | (owner < 0)))

    def atom_of(index: int, atom: AtomicGrid) -> _Atom:
        around = [image_of(index, center) for center in images[index]] if has_neighbours else []
        reached = tuple(image for image in around if any(len(ring.points) for ring in image.rings))
        return _Atom(np.concatenate(atom.points), reached, names.index(atom.species))

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
    mixing, gamma = ladder_of_sums(
        np.array(source_exponents), np.array(target_exponents), np.array(selected)
    )
    onsite = _radial_bands(radii, spherical.resolved[: ONSITE_LMAX + 1], gamma, mixing)
    panels: tuple[_RadialBand, ...] = ()
    in_rings = np.searchsorted(target_exponents, [ring.largest_exponent for ring in RINGS]).tolist()
    if has_neighbours:
        near = gamma < 4 * RINGS[0].largest_exponent
        own_mixing = mixing[near][:, :, : in_rings[0]]
        panels = _radial_bands(radii, spherical.resolved, gamma[near], own_mixing, panel_nodes())
    return _Species(
        shells=spherical,
        onsite=onsite,
        onsite_transpose=tuple(band.transposed() for band in onsite),
        panels=panels,
        panels_transpose=tuple(band.transposed() for band in panels),
        num_ring_targets=tuple(in_rings),
    )


def _radial_bands(
    radii: Float[np.ndarray, " shell"],
    resolved: Sequence[Int[np.ndarray, " _"]],
    gamma: Float[np.ndarray, " gamma"],
    mixing: Float[np.ndarray, "gamma source target"],
    nodes: Float[np.ndarray, " node"] | None = None,
) -> tuple[_RadialBand, ...]:
    """Gaussians from shells to shells or, by way of their nodes, to the powers in the panels."""
    # Shells on which a Gaussian is resolved, never fewer for a softer one.
    spacing = np.maximum.accumulate(np.diff(radii, prepend=0.0))
    num_shells = np.searchsorted(spacing, np.sqrt(UNRESOLVED / gamma))
    bands = []
    for members in _band_members(num_shells):
        count = num_shells[members[0]]
        inner = [s[: np.searchsorted(s, count)] for s in resolved]
        inner = [s for s in inner if len(s)]
        out = radii[:count] if nodes is None else nodes
        by_l = gaussian_radial_kernel(gamma[members], out, radii[:count], len(inner) - 1)
        kernels = []
        for l, (kernel, shells) in enumerate(zip(by_l, inner, strict=True)):
            rows = kernel[:, shells] if nodes is None else _by_powers(kernel)[:, : num_nodes(l)]
            out_first = rows[:, :, shells].transpose(1, 0, 2)
            kernels.append(out_first.reshape(len(out_first), -1))
        bands.append(_RadialBand(tuple(kernels), np.ascontiguousarray(mixing[members])))
    return tuple(bands)


def _by_powers(
    kernel: Float[np.ndarray, "gamma node shell"],
) -> Float[np.ndarray, "gamma node shell"]:
    """Kernels to the powers of the radius in each panel, from those to its nodes."""
    split = kernel.reshape(len(kernel), -1, DEGREE, kernel.shape[2])
    return (TO_POWERS @ split).reshape(kernel.shape)


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
