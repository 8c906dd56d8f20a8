"""Spheres in the cell of a uniform grid: the grid's waves in them, and their charges as waves."""

import dataclasses
from collections.abc import Iterator, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float, Int, Shaped
from scipy.fft import irfftn, rfftn

from cider.conventions import float64
from cider.features.sphere_waves import AtNodes, SphereWaves, radial_functions, sphere_waves
from cider.features.spherical import real_spherical_harmonics
from cider.features.wave_runs import WaveRuns, wave_runs
from cider.features.waves import Waves, waves_of_grid

LMAX = 4
"""Largest angular momentum in a sphere."""

_CHANNELS = 8
"""Channels that are transformed together: they stay in a processor's cache."""

NO_GAUSSIANS = np.zeros(0)

AtShells = Float[np.ndarray, "lm shell _"]
"""Coefficients of spherical harmonics on shells, of each channel."""


class SphericalShells(eqx.Module):
    """Quadrature of a sphere: ``weights`` (bohr^3) of directions on shells (radii in bohr)."""

    radii: Float[np.ndarray, " shell"]
    directions: Float[np.ndarray, "angle xyz"]
    weights: Float[np.ndarray, "angle shell"]

    @property
    def num_points(self) -> int:
        """Directions times shells."""
        return self.weights.size


class Sphere(eqx.Module):
    """Points of a sphere, shells fastest, its harmonics, and the nodes that waves know."""

    shells: SphericalShells
    harmonics: Float[np.ndarray, "lm angle"]
    waves: SphereWaves

    def project(self, values: Float[np.ndarray, "point channel"]) -> AtShells:
        """Sums over directions of values times harmonics."""
        by_shell = values.reshape(*self.shells.weights.shape, -1)
        return np.tensordot(self.harmonics, by_shell, 1)

    def expand(self, coefficients: AtShells, values: Float[np.ndarray, "point channel"]) -> None:
        """Write values of sums of harmonics: the transpose of ``project``."""
        by_direction = values.reshape(self.harmonics.shape[1], -1)
        by_harmonic = coefficients.reshape(len(self.harmonics), -1)
        np.matmul(self.harmonics.T, by_harmonic, out=by_direction)

    def to_nodes(self, at_shells: AtShells) -> AtNodes:
        """Charges on shells as charges at the nodes, which make the same waves."""
        return np.einsum("gk,lgc->lkc", self.waves.interpolation, at_shells, optimize=True)

    def to_shells(self, at_nodes: AtNodes) -> AtShells:
        """Fields at the nodes as fields on shells: the transpose."""
        return np.einsum("gk,lkc->lgc", self.waves.interpolation, at_nodes, optimize=True)


class SpheresInGrid(eqx.Module):
    """A uniform grid, its waves, and spheres about centres in its cell; see ``spheres_in_grid``.

    ``waves`` are those of any direction that the grid holds, at ``indices`` of its transform,
    ordered by length. ``species_of`` is the species of each sphere.
    """

    mesh: tuple[int, int, int] = eqx.field(static=True)
    volume: float = eqx.field(static=True)
    waves: Waves
    indices: Int[np.ndarray, " wave"]
    runs: WaveRuns
    centers: Float[np.ndarray, "atom xyz"]
    species: tuple[Sphere, ...]
    species_of: tuple[int, ...] = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Points of the grid."""
        return int(np.prod(self.mesh))

    @property
    def spheres(self) -> list[Sphere]:
        """That of each atom."""
        return [self.species[index] for index in self.species_of]

    def moved(self, centers: Float[np.ndarray, "atom xyz"]) -> "SpheresInGrid":
        """The same for other centres (bohr)."""
        return eqx.tree_at(lambda own: own.centers, self, centers)

    def of_atoms(self, atoms: Sequence[int]) -> "SpheresInGrid":
        """The same for some of the spheres."""
        species_of = tuple(self.species_of[atom] for atom in atoms)
        kept = eqx.tree_at(lambda own: own.centers, self, self.centers[list(atoms)])
        return dataclasses.replace(kept, species_of=species_of)

    def to_nodes(self, at_shells: Sequence[AtShells]) -> list[AtNodes]:
        """``Sphere.to_nodes`` of each sphere."""
        return [own.to_nodes(values) for own, values in zip(self.spheres, at_shells, strict=True)]

    def waves_of(
        self, nodes: Sequence[AtNodes], num_channels: int
    ) -> Complex[np.ndarray, "wave channel"]:
        """Waves of charges at the nodes of all spheres."""
        total = np.zeros((len(self.indices), num_channels), dtype=complex)
        for own, atoms in self._atoms_of_species():
            total += own.waves.waves_of([nodes[atom] for atom in atoms], self.centers[atoms])
        return total

    def at_nodes(self, waves: Complex[np.ndarray, "wave channel"]) -> list[AtNodes]:
        """Waves at the nodes of each sphere: the transpose."""
        at_nodes: dict[int, AtNodes] = {}
        for own, atoms in self._atoms_of_species():
            at_nodes |= zip(atoms, own.waves.at_nodes(waves, self.centers[atoms]), strict=True)
        return [at_nodes[atom] for atom in range(len(self.centers))]

    def center_derivative(
        self, nodes: Sequence[AtNodes], waves: Complex[np.ndarray, "wave channel"]
    ) -> Float[np.ndarray, "atom xyz"]:
        """Derivative by the centres of nodes times what waves are there (per bohr)."""
        parts = zip(self.spheres, nodes, self.centers, strict=True)
        derivatives = [
            own.waves.center_derivative(values, waves, center) for own, values, center in parts
        ]
        return np.reshape(derivatives, (-1, 3))

    def strain_derivative(
        self, nodes: Sequence[AtNodes], waves: Complex[np.ndarray, "wave channel"]
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of the same by strain, which moves centres and leaves spheres as they are."""
        parts = zip(self.spheres, nodes, self.centers, strict=True)
        derivatives = [
            own.waves.strain_derivative(values, waves, center) for own, values, center in parts
        ]
        return np.sum(derivatives, axis=0) if derivatives else np.zeros((3, 3))

    def transform(
        self, values: Float[np.ndarray, "point channel"]
    ) -> Complex[np.ndarray, "wave channel"]:
        """Waves of values on the grid."""
        waves = np.empty((len(self.indices), values.shape[1]), dtype=complex)
        for some in _channels(values):
            by_mesh = values[:, some].reshape(*self.mesh, -1)
            every_wave = rfftn(by_mesh, axes=(0, 1, 2))
            waves[:, some] = every_wave.reshape(-1, by_mesh.shape[3])[self.indices]
        return waves

    def transform_back(
        self, waves: Complex[np.ndarray, "wave channel"]
    ) -> Float[np.ndarray, "point channel"]:
        """Values of waves on the grid: the inverse, where there are no other waves."""
        nx, ny, nz = self.mesh
        values = np.empty((self.size, waves.shape[1]))
        every_wave = np.zeros((nx * ny * (nz // 2 + 1), _CHANNELS), dtype=complex)
        for some in _channels(waves):
            own = waves[:, some]
            every_wave[self.indices, : own.shape[1]] = own
            by_mesh = every_wave[:, : own.shape[1]].reshape(nx, ny, nz // 2 + 1, -1)
            values[:, some] = irfftn(by_mesh, self.mesh, axes=(0, 1, 2)).reshape(self.size, -1)
        return values

    def _atoms_of_species(self) -> Iterator[tuple[Sphere, list[int]]]:
        for index in sorted(set(self.species_of)):
            atoms = [atom for atom, kind in enumerate(self.species_of) if kind == index]
            yield self.species[index], atoms


def _channels(values: Shaped[np.ndarray, "row channel"]) -> Iterator[slice]:
    """All channels, a few at a time."""
    return (slice(start, start + _CHANNELS) for start in range(0, values.shape[1], _CHANNELS))


@float64
def spheres_in_grid(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: Sequence[int] | Int[np.ndarray, "3"],
    centers: Float[np.ndarray, "atom xyz"],
    shells: Sequence[SphericalShells],
    gammas: Float[np.ndarray, " gamma"] = NO_GAUSSIANS,
) -> SpheresInGrid:
    """``mesh`` points along each lattice vector (rows, bohr), the last fastest, and spheres.

    They have centres (bohr) and shells; those of one species share one object. The runs of waves
    interpolate Gaussians of exponents ``gammas`` (bohr^-2) too.
    """
    nx, ny, nz = (int(count) for count in mesh)
    every_wave = waves_of_grid(lattice, mesh)
    lengths = every_wave.lengths
    order = np.argsort(lengths, kind="stable")
    # Not those of that very length, which would be in or out by rounding.
    indices = order[lengths[order] < (1 - 1e-9) * shortest_wave(lattice, mesh)]
    waves = Waves(*(values[indices] for values in every_wave))
    longest = lengths[indices[-1]]

    def functions(lengths: Float[np.ndarray, " some"]) -> Float[np.ndarray, "function some"]:
        gaussians = np.exp(-(lengths**2) / (4 * gammas[:, None]))
        radii = [own.radii[-1] for own in shells]
        seen = [radial_functions(lengths, longest, max(radii), LMAX)] if radii else []
        return np.concatenate([gaussians, *seen])

    runs = wave_runs(waves.lengths, functions)
    kinds = {id(own): own for own in shells}
    return SpheresInGrid(
        mesh=(nx, ny, nz),
        volume=float(abs(np.linalg.det(lattice))),
        waves=waves,
        indices=indices,
        runs=runs,
        centers=centers,
        species=tuple(
            Sphere(
                shells=own,
                harmonics=real_spherical_harmonics(own.directions, LMAX),
                waves=sphere_waves(waves, runs, own.radii, LMAX),
            )
            for own in kinds.values()
        ),
        species_of=tuple(list(kinds).index(id(own)) for own in shells),
    )


def shortest_wave(
    lattice: Float[np.ndarray, "vector xyz"], mesh: Sequence[int] | Int[np.ndarray, "3"]
) -> float:
    """Length (bohr^-1) below which a grid holds waves of any direction."""
    return float(np.min(np.pi * np.asarray(mesh) / np.linalg.norm(lattice, axis=1)))
