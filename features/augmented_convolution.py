r"""The Gaussian convolution of periodic densities with sharp parts inside spheres about atoms.

A density is what a uniform grid holds of it, and in each sphere the difference of an all-electron
and a pseudo density, on radial shells. So are sources,

.. math:: \theta(\mathbf r) = \tilde\theta(\mathbf r)
          + \sum_a \Delta\theta^a(\mathbf r - \mathbf R_a),

and the Gaussians are expanded on a ladder, :math:`e^{-(\alpha+\beta)u^2} = \sum_\gamma
M_{\gamma\alpha\beta}\, e^{-\gamma u^2}`. Of the differences, the grid takes what smooth Gaussians
make, by Fourier transforms; sharp ones, which reach hardly further than the sphere, act inside it,
harmonic by harmonic and on its all-electron density alone.

An energy on the grid and that of the pseudo density in spheres cancel as far as the grid resolves
what they are of. All-electron sources make steep fields about their nucleus, of which a functional
makes something steeper still. So under a window in each sphere both do without the fields of its
own charges, which only the all-electron density sees.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float, Int, Shaped
from scipy.fft import irfftn, rfftn

from cider.conventions import AnyArray, float64
from cider.features.convolution import GaussianConvolution
from cider.features.gaussian_ladder import ladder_of_sums
from cider.features.length_runs import LengthRuns, length_runs
from cider.features.sphere_waves import AtNodes, radial_functions
from cider.features.spherical_shells import LMAX, AtShells, Species, SphericalShells, species
from cider.features.waves import Waves, waves_of_grid
from cider.features.windowed_field import WINDOW, WindowedField, windowed_field

UNRESOLVED_WAVE = 1e-3
"""A Gaussian is smooth where this is all that is left of it in the shortest wave of the grid.

With 1e-4 too much of what sharper ones make outside the sphere is missed on coarse grids (3 mHa of
the exchange of N2, 40 of LiF); 0.01 leaves up to 2 mHa that change with the grid, 0.1 tens of them.
"""

_CHANNELS = 8
"""Channels that are transformed together: they stay in a processor's cache."""


class _Linearised(NamedTuple):
    """Sources and derivatives by their fields, as waves and at the nodes of each sphere.

    ``own_fields`` are those that the grid does without.
    """

    charges: list[AtNodes]
    own_fields: list[AtNodes]
    by_nodes: list[AtNodes]
    on_grid: Complex[np.ndarray, "wave source"]
    by_waves: Complex[np.ndarray, "wave target"]


class AugmentedConvolution(GaussianConvolution):
    """``GaussianConvolution`` on a uniform grid and in spheres; see ``augmented_convolution``.

    Points are those of the grid, then for each sphere those of its all-electron density, then of
    its pseudo density, shells fastest. ``waves`` are those of any direction that the grid holds,
    at ``indices`` of its transform, ordered by length. ``near`` are the points of the grid in each
    sphere.
    """

    lattice: Float[np.ndarray, "vector xyz"]
    mesh: tuple[int, int, int] = eqx.field(static=True)
    waves: Waves
    indices: Int[np.ndarray, " wave"]
    centers: Float[np.ndarray, "atom xyz"]
    near: tuple[WindowedField, ...]
    species: tuple[Species, ...]
    species_of: tuple[int, ...] = eqx.field(static=True)
    gammas: Float[np.ndarray, " gamma"]
    num_smooth: int = eqx.field(static=True)
    mixing: Float[np.ndarray, "gamma source target"]
    runs: LengthRuns
    smooth: Float[np.ndarray, "sample source target"]
    sharp: Float[np.ndarray, "sample source target"]

    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        on_grid, *in_spheres = np.split(np.asarray(sources), self._ends)
        charges = self._charges(in_spheres)
        at_nodes = self._to_nodes(charges)
        waves = self._fields(self._transform(on_grid), at_nodes)
        fields = np.empty((self.num_points, waves.shape[1]))
        fields_on_grid, *fields_in_spheres = np.split(fields, self._ends)
        fields_on_grid[:] = self._transform_back(waves)
        seen, removed = self._at_nodes(waves / self._size), self._own_smooth(at_nodes, self.mixing)
        sharp = self._own_sharp(charges, self.mixing)
        written = fields_in_spheres[::2], fields_in_spheres[1::2]
        parts = zip(self._spheres, self.near, seen, removed, sharp, *written, strict=True)
        for own, near, own_seen, own_removed, own_sharp, true, pseudo in parts:
            smooth = own.to_shells(own_seen)
            own.expand(smooth + own_sharp, true)
            own.expand(smooth - _windowed(own, own.to_shells(own_removed)), pseudo)
            np.subtract.at(fields_on_grid, near.indices, near.apply(own_removed))
        return fields

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[np.ndarray, "grid source"]:
        on_grid, *in_spheres = np.split(np.asarray(fields), self._ends)
        by_seen, by_removed = self._by_nodes(on_grid, in_spheres)
        waves = self._transform(on_grid)
        waves += self._waves_of(by_seen, waves.shape[1])
        by_smooth = self._by_smooth(waves)
        by_sharp = self.runs.matrix_product(waves, self.sharp.swapaxes(1, 2))
        sources = np.empty((self.num_points, by_smooth.shape[1]))
        by_grid, *by_spheres = np.split(sources, self._ends)
        by_grid[:] = self._transform_back(by_smooth * self.volume + by_sharp)
        mixing = self.mixing.swapaxes(1, 2)
        by_true = [own.project(x) for own, x in zip(self._spheres, in_spheres[::2], strict=True)]
        smooth, removed = self._at_nodes(by_smooth), self._own_smooth(by_removed, mixing)
        sharp, written = self._own_sharp(by_true, mixing), (by_spheres[::2], by_spheres[1::2])
        parts = zip(self._spheres, smooth, removed, sharp, *written, strict=True)
        for own, own_smooth, own_removed, own_sharp, true, pseudo in parts:
            own.charges_transpose(own.to_shells(own_smooth - own_removed) + own_sharp, true)
            np.negative(true, out=pseudo)
        return sources

    def derivative(
        self,
        sources: Float[AnyArray, "grid source"],
        by_fields: Float[AnyArray, "grid target"],
        by_sources: Float[AnyArray, "grid source"],
    ) -> Float[np.ndarray, "atom xyz"]:
        """As in ``GaussianConvolution``: spheres move with their atoms, the grid does not."""
        state = self._linearised(sources, by_fields)
        fields = self._fields(state.on_grid, state.charges) / self._size
        by_smooth = self._by_smooth(state.by_waves)
        derivatives = [
            own.waves.center_derivative(by_own, fields, center)
            + own.waves.center_derivative(charges, by_smooth, center)
            for own, center, charges, by_own in zip(
                self._spheres, self.centers, state.charges, state.by_nodes, strict=True
            )
        ]
        # Where centres go on, points fall back, and the field of the own charges is subtracted.
        removed = [gradients.sum(axis=0) for gradients in self._gradients(state, by_fields)]
        return np.reshape(derivatives, (-1, 3)) + np.reshape(removed, (-1, 3))

    def strain_derivative(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of ``by_fields`` times the fields, as the cell is strained.

        The points of the grid and the centres follow the strain, spheres keep their form.
        """
        state = self._linearised(sources, by_fields)
        fields = self._fields(state.on_grid, state.charges) / self._size
        by_smooth = self._by_smooth(state.by_waves)
        by_gamma = self.mixing / (2 * self.gammas[:, None, None])
        matrices = _matrices(self.runs.samples, self.gammas, by_gamma, self.num_smooth)
        slopes = self._mixed(state.on_grid, state.charges, *matrices) / self._size
        by_square = self.waves.shares * np.sum(state.by_waves.conj() * slopes, axis=1).real
        strain = np.einsum("g,ga,gb->ab", by_square, self.waves.vectors, self.waves.vectors)
        for own, center, charges, by_own in zip(
            self._spheres, self.centers, state.charges, state.by_nodes, strict=True
        ):
            strain += own.waves.strain_derivative(by_own, fields, center)
            strain += own.waves.strain_derivative(charges, by_smooth, center)
            # The density of waves that charges make goes with the inverse of the volume.
            strain -= np.vdot(charges, *own.waves.at_nodes(by_smooth, center[None])) * np.eye(3)
        for near, gradients in zip(self.near, self._gradients(state, by_fields), strict=True):
            strain -= gradients.T @ near.offsets
        return strain

    def moved(self, centers: Float[np.ndarray, "atom xyz"]) -> "AugmentedConvolution":
        """The same for other centres (bohr)."""
        near = _near(self.lattice, self.mesh, centers, self._spheres)
        return eqx.tree_at(lambda own: (own.centers, own.near), self, (centers, near))

    @property
    def volume(self) -> float:
        """Of the cell, in bohr^3."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def num_points(self) -> int:
        """Those of the grid and of all spheres."""
        return self._size + sum(2 * own.shells.num_points for own in self._spheres)

    @property
    def _size(self) -> int:
        return int(np.prod(self.mesh))

    @property
    def _spheres(self) -> list[Species]:
        return [self.species[index] for index in self.species_of]

    @property
    def _ends(self) -> Int[np.ndarray, " part"]:
        """Where the points of each part but the last end."""
        sizes = [own.shells.num_points for own in self._spheres for _ in range(2)]
        return np.cumsum([self._size, *sizes])[:-1]

    def _charges(self, in_spheres: Sequence[np.ndarray]) -> list[AtShells]:
        """All-electron less pseudo charges of each sphere."""
        parts = zip(self._spheres, in_spheres[::2], in_spheres[1::2], strict=True)
        return [own.charges(true - pseudo) for own, true, pseudo in parts]

    def _by_nodes(
        self, on_grid: Float[np.ndarray, "point target"], in_spheres: Sequence[np.ndarray]
    ) -> tuple[list[AtNodes], list[AtNodes]]:
        """What acts on the smooth fields in each sphere, and on those that are removed."""
        by_seen, by_removed = [], []
        parts = zip(self._spheres, self.near, in_spheres[::2], in_spheres[1::2], strict=True)
        for own, near, true, pseudo in parts:
            of_pseudo = own.project(pseudo)
            by_seen.append(own.to_nodes(own.project(true) + of_pseudo))
            by_removed.append(own.to_nodes(_windowed(own, of_pseudo)))
            by_removed[-1] += near.transpose(on_grid[near.indices])
        return by_seen, by_removed

    def _own_smooth(
        self, charges: Sequence[AtNodes], mixing: Float[np.ndarray, "gamma cin cout"]
    ) -> list[AtNodes]:
        """What smooth Gaussians make of the charges of each sphere about itself."""
        smooth = mixing[: self.num_smooth]
        return self._of_species(charges, lambda own, values: own.smooth.convolve(values, smooth))

    def _own_sharp(
        self, charges: Sequence[AtShells], mixing: Float[np.ndarray, "gamma cin cout"]
    ) -> list[AtShells]:
        """The same of sharp ones, on shells."""
        sharp = mixing[self.num_smooth :]
        return self._of_species(charges, lambda own, values: own.sharp.convolve(values, sharp))

    def _of_species(
        self,
        values: Sequence[np.ndarray],
        function: Callable[[Species, Float[np.ndarray, "lm radius atom cin"]], np.ndarray],
    ) -> list[np.ndarray]:
        """A function of the values of all spheres of a species at once."""
        results: dict[int, np.ndarray] = {}
        for own, atoms in self._atoms_of_species():
            of_atoms = function(own, np.stack([values[atom] for atom in atoms], axis=2))
            results |= zip(atoms, np.moveaxis(of_atoms, 2, 0), strict=True)
        return [results[atom] for atom in range(len(self.centers))]

    def _gradients(
        self, state: _Linearised, by_fields: Float[AnyArray, "grid target"]
    ) -> list[Float[np.ndarray, "point xyz"]]:
        """Of ``by_fields`` times the removed fields, as the points of the grid near each move."""
        by_grid = np.asarray(by_fields)[: self._size]
        return [
            near.gradients(removed, by_grid[near.indices])
            for near, removed in zip(self.near, state.own_fields, strict=True)
        ]

    def _to_nodes(self, at_shells: Sequence[AtShells]) -> list[AtNodes]:
        return [own.to_nodes(values) for own, values in zip(self._spheres, at_shells, strict=True)]

    def _linearised(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> _Linearised:
        on_grid, *in_spheres = np.split(np.asarray(sources), self._ends)
        by_grid, *by_spheres = np.split(np.asarray(by_fields), self._ends)
        by_nodes, _ = self._by_nodes(by_grid, by_spheres)
        by_waves = self._transform(by_grid)
        by_waves += self._waves_of(by_nodes, by_waves.shape[1])
        charges = self._to_nodes(self._charges(in_spheres))
        own_fields, waves = self._own_smooth(charges, self.mixing), self._transform(on_grid)
        return _Linearised(charges, own_fields, by_nodes, waves, by_waves)

    def _by_smooth(
        self, by_waves: Complex[np.ndarray, "wave target"]
    ) -> Complex[np.ndarray, "wave source"]:
        """What acts on the waves of charges in spheres."""
        return self.runs.matrix_product(by_waves, self.smooth.swapaxes(1, 2)) / self.volume

    def _fields(
        self, on_grid: Complex[np.ndarray, "wave source"], charges: Sequence[AtNodes]
    ) -> Complex[np.ndarray, "wave target"]:
        """Fields of all sources."""
        return self._mixed(on_grid, charges, self.smooth, self.sharp)

    def _mixed(
        self,
        on_grid: Complex[np.ndarray, "wave source"],
        charges: Sequence[AtNodes],
        smooth: Float[np.ndarray, "sample source target"],
        sharp: Float[np.ndarray, "sample source target"],
    ) -> Complex[np.ndarray, "wave target"]:
        """What matrices make of all sources; sharp ones do not act on those in spheres."""
        by_spheres = self._waves_of(charges, on_grid.shape[1]) * (self._size / self.volume)
        mixed = self.runs.matrix_product(on_grid + by_spheres, smooth)
        return mixed + self.runs.matrix_product(on_grid, sharp)

    def _waves_of(
        self, nodes: Sequence[AtNodes], num_channels: int
    ) -> Complex[np.ndarray, "wave channel"]:
        """Waves of charges at the nodes of all spheres."""
        total = np.zeros((len(self.indices), num_channels), dtype=complex)
        for own, atoms in self._atoms_of_species():
            total += own.waves.waves_of([nodes[atom] for atom in atoms], self.centers[atoms])
        return total

    def _at_nodes(self, waves: Complex[np.ndarray, "wave channel"]) -> list[AtNodes]:
        """Waves at the nodes of each sphere."""
        at_nodes: dict[int, AtNodes] = {}
        for own, atoms in self._atoms_of_species():
            at_nodes |= zip(atoms, own.waves.at_nodes(waves, self.centers[atoms]), strict=True)
        return [at_nodes[atom] for atom in range(len(self.centers))]

    def _atoms_of_species(self) -> Iterator[tuple[Species, list[int]]]:
        for index, own in enumerate(self.species):
            yield own, [atom for atom, kind in enumerate(self.species_of) if kind == index]

    def _transform(
        self, values: Float[np.ndarray, "point channel"]
    ) -> Complex[np.ndarray, "wave channel"]:
        waves = np.empty((len(self.indices), values.shape[1]), dtype=complex)
        for some in _channels(values):
            by_mesh = values[:, some].reshape(*self.mesh, -1)
            every_wave = rfftn(by_mesh, axes=(0, 1, 2))
            waves[:, some] = every_wave.reshape(-1, by_mesh.shape[3])[self.indices]
        return waves

    def _transform_back(
        self, waves: Complex[np.ndarray, "wave channel"]
    ) -> Float[np.ndarray, "point channel"]:
        nx, ny, nz = self.mesh
        values = np.empty((self._size, waves.shape[1]))
        every_wave = np.zeros((nx * ny * (nz // 2 + 1), _CHANNELS), dtype=complex)
        for some in _channels(waves):
            own = waves[:, some]
            every_wave[self.indices, : own.shape[1]] = own
            by_mesh = every_wave[:, : own.shape[1]].reshape(nx, ny, nz // 2 + 1, -1)
            values[:, some] = irfftn(by_mesh, self.mesh, axes=(0, 1, 2)).reshape(self._size, -1)
        return values


def _channels(values: Shaped[np.ndarray, "row channel"]) -> Iterator[slice]:
    """All channels, a few at a time."""
    return (slice(start, start + _CHANNELS) for start in range(0, values.shape[1], _CHANNELS))


@float64
def augmented_convolution(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: Sequence[int] | Int[np.ndarray, "3"],
    centers: Float[np.ndarray, "atom xyz"],
    shells: Sequence[SphericalShells],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> AugmentedConvolution:
    """The convolution on ``mesh`` points along each lattice vector (rows, bohr), the last fastest.

    Spheres have centres (bohr) and shells; those of one species share one object. Exponents in
    bohr^-2.
    """
    nx, ny, nz = (int(count) for count in mesh)
    every_wave = waves_of_grid(lattice, mesh)
    lengths = every_wave.lengths
    shortest = np.min(np.pi * np.array([nx, ny, nz]) / np.linalg.norm(lattice, axis=1))
    order = np.argsort(lengths, kind="stable")
    # Not those of that very length, which would be in or out by rounding.
    indices = order[lengths[order] < (1 - 1e-9) * shortest]
    waves = Waves(*(values[indices] for values in every_wave))
    longest = lengths[indices[-1]]
    mixing, gammas = ladder_of_sums(source_exponents, target_exponents)
    num_smooth = int(np.searchsorted(gammas, shortest**2 / (4 * -math.log(UNRESOLVED_WAVE))))

    def functions(lengths: Float[np.ndarray, " some"]) -> Float[np.ndarray, "function some"]:
        gaussians = np.exp(-(lengths**2) / (4 * gammas[:, None]))
        radii = [own.radii[-1] for own in shells]
        seen = [radial_functions(lengths, longest, max(radii), LMAX)] if radii else []
        return np.concatenate([gaussians, *seen])

    runs = length_runs(waves.lengths, functions)
    smooth, sharp = _matrices(runs.samples, gammas, mixing, num_smooth)
    kinds = {id(own): own for own in shells}
    of_kinds = {key: species(own, waves, runs, gammas, num_smooth) for key, own in kinds.items()}
    return AugmentedConvolution(
        lattice=lattice,
        mesh=(nx, ny, nz),
        waves=waves,
        indices=indices,
        centers=centers,
        near=_near(lattice, (nx, ny, nz), centers, [of_kinds[id(own)] for own in shells]),
        species=tuple(of_kinds.values()),
        species_of=tuple(list(kinds).index(id(own)) for own in shells),
        gammas=gammas,
        num_smooth=num_smooth,
        mixing=mixing,
        runs=runs,
        smooth=smooth,
        sharp=sharp,
    )


def _near(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: tuple[int, int, int],
    centers: Float[np.ndarray, "atom xyz"],
    spheres: Sequence[Species],
) -> tuple[WindowedField, ...]:
    """The points of the grid in each sphere."""
    return tuple(
        windowed_field(lattice, mesh, center, own.waves.nodes, LMAX)
        for own, center in zip(spheres, centers, strict=True)
    )


def _windowed(own: Species, at_shells: AtShells) -> AtShells:
    """Fields or derivatives on shells under the window of removed fields."""
    return WINDOW(own.shells.radii / own.waves.nodes.radius)[:, None] * at_shells


def _matrices(
    lengths: Float[np.ndarray, " sample"],
    gammas: Float[np.ndarray, " gamma"],
    mixing: Float[np.ndarray, "gamma source target"],
    num_smooth: int,
) -> list[Float[np.ndarray, "sample source target"]]:
    """What smooth and what sharp Gaussians make of waves of these lengths."""
    gaussians = (np.pi / gammas) ** 1.5 * np.exp(-np.outer(lengths**2, 1 / (4 * gammas)))
    parts = slice(num_smooth), slice(num_smooth, None)
    return [np.tensordot(gaussians[:, part], mixing[part], 1) for part in parts]
