r"""The Gaussian convolution of periodic densities with sharp parts inside spheres about atoms.

A density is what a uniform grid holds of it, and in each sphere the difference of an all-electron
and a pseudo density, on radial shells. So are sources,

.. math:: \theta(\mathbf r) = \tilde\theta(\mathbf r)
          + \sum_a \Delta\theta^a(\mathbf r - \mathbf R_a),

and the Gaussians are expanded on a ladder, :math:`e^{-(\alpha+\beta)u^2} = \sum_\gamma
M_{\gamma\alpha\beta}\, e^{-\gamma u^2}`. Of the differences, the grid takes what smooth Gaussians
make, by Fourier transforms; sharp ones, which reach hardly further than the sphere, act inside it,
harmonic by harmonic and on its all-electron density alone. On the grid and for the pseudo density
the fields are thus smooth, and the same.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float, Int, Shaped
from scipy.fft import irfftn, rfftn

from cider.conventions import AnyArray, float64
from cider.features.convolution import GaussianConvolution
from cider.features.gaussian_ladder import ladder_of_sums
from cider.features.sphere_waves import AtNodes, SphereWaves, radial_functions, sphere_waves
from cider.features.spherical import gaussian_radial_kernel, real_spherical_harmonics
from cider.features.wave_runs import WaveRuns, wave_runs
from cider.features.waves import Waves, waves_of_grid

LMAX = 4
"""Largest angular momentum of sources and fields in a sphere."""

UNRESOLVED_WAVE = 1e-3
"""A Gaussian is smooth where this is all that is left of it in the shortest wave of the grid.

With 1e-6 too much of what sharper ones make outside the sphere was missed (14 mHa of the exchange
of N2 at 400 eV), with 0.1 the grid did not resolve them (28 mHa); 0.01 differed by 3 mHa.
"""

_NEGLIGIBLE = 1e-17
"""Value of a sharp Gaussian, beside its largest, that is left out."""

_BLOCK = 16
"""Shells that are treated alike."""

_CHANNELS = 8
"""Channels that are transformed together: they stay in a processor's cache."""

AtShells = Float[np.ndarray, "lm shell _"]
"""Coefficients of spherical harmonics on shells, of each exponent."""


class SphericalShells(eqx.Module):
    """Quadrature of a sphere: ``weights`` (bohr^3) of directions on shells (radii in bohr)."""

    radii: Float[np.ndarray, " shell"]
    directions: Float[np.ndarray, "angle xyz"]
    weights: Float[np.ndarray, "angle shell"]

    @property
    def num_points(self) -> int:
        """Directions times shells."""
        return self.weights.size

    @property
    def points(self) -> Float[np.ndarray, "point xyz"]:
        """From the centre (bohr), shells fastest."""
        return (self.directions[:, None] * self.radii[:, None]).reshape(-1, 3)


class _Species(eqx.Module):
    """What equal spheres have in common; ``kernels`` are the sharp Gaussians of each l."""

    shells: SphericalShells
    harmonics: Float[np.ndarray, "lm angle"]
    waves: SphereWaves
    kernels: tuple["_SharpKernels", ...]

    def project(self, values: Float[np.ndarray, "point channel"]) -> AtShells:
        """Sums over directions of values times harmonics."""
        by_shell = values.reshape(*self.shells.weights.shape, -1)
        return np.tensordot(self.harmonics, by_shell, 1)

    def expand(self, coefficients: AtShells, values: Float[np.ndarray, "point channel"]) -> None:
        """Write values of sums of harmonics: the transpose of ``project``."""
        by_direction = values.reshape(self.harmonics.shape[1], -1)
        by_harmonic = coefficients.reshape(len(self.harmonics), -1)
        np.matmul(self.harmonics.T, by_harmonic, out=by_direction)

    def charges(self, values: Float[np.ndarray, "point channel"]) -> AtShells:
        """Projection of values with their quadrature weights."""
        return self.project(self.shells.weights.reshape(-1, 1) * values)

    def charges_transpose(
        self, by_charges: AtShells, values: Float[np.ndarray, "point channel"]
    ) -> None:
        """Write the transpose."""
        self.expand(by_charges, values)
        values *= self.shells.weights.reshape(-1, 1)

    def to_nodes(self, at_shells: AtShells) -> AtNodes:
        """Charges on shells as charges at the nodes, which make the same waves."""
        return np.einsum("gk,lgc->lkc", self.waves.interpolation, at_shells, optimize=True)

    def to_shells(self, at_nodes: AtNodes) -> AtShells:
        """Fields at the nodes as fields on shells: the transpose."""
        return np.einsum("gk,lkc->lgc", self.waves.interpolation, at_nodes, optimize=True)

    def sharp_fields(
        self, charges: AtShells, mixing: Float[np.ndarray, "gamma cin cout"]
    ) -> AtShells:
        """What sharp Gaussians make of charges on shells."""
        num_shells, num_channels = charges.shape[1], mixing.shape[2]
        fields = np.zeros((num_shells, charges.shape[0], num_channels))
        for l, kernels in enumerate(self.kernels):
            own = slice(l * l, (l + 1) ** 2)
            by_shell = charges[own].swapaxes(0, 1).reshape(-1, charges.shape[2])
            total = np.zeros((num_shells, (2 * l + 1) * num_channels))
            for matrix, blocks in zip(mixing, kernels, strict=True):
                mixed = (by_shell @ matrix).reshape(num_shells, -1)
                for rows, columns, kernel in blocks:
                    total[rows] += kernel @ mixed[columns]
            fields[:, own] = total.reshape(num_shells, -1, num_channels)
        return fields.swapaxes(0, 1)


class _SharpKernels(eqx.Module):
    """Kernels of sharp Gaussians between shells, by ``_BLOCK`` rows, without what is negligible.

    ``values`` are those of all blocks, whose columns are ``columns`` of each Gaussian.
    """

    num_shells: int = eqx.field(static=True)
    values: Float[np.ndarray, " value"]
    columns: tuple[tuple[tuple[int, int], ...], ...] = eqx.field(static=True)

    def __iter__(self) -> Iterator[list[tuple[slice, slice, Float[np.ndarray, "row column"]]]]:
        """Of each Gaussian: rows, columns and the kernel of them, of each block."""
        end, values, num_shells = 0, self.values, self.num_shells
        for columns in self.columns:
            blocks = []
            for number, (first, beyond) in enumerate(columns):
                rows = slice(number * _BLOCK, min((number + 1) * _BLOCK, num_shells))
                shape = rows.stop - rows.start, beyond - first
                own = values[end : (end := end + shape[0] * shape[1])].reshape(shape)
                blocks.append((rows, slice(first, beyond), own))
            yield blocks


def _sharp_kernels(kernels: Float[np.ndarray, "gamma shell shell"]) -> _SharpKernels:
    """The sharpest Gaussians reach a few shells."""
    values: list[Float[np.ndarray, " value"]] = []
    columns: list[list[tuple[int, int]]] = []
    for kernel in kernels:
        columns.append([])
        for start in range(0, len(kernel), _BLOCK):
            rows = kernel[start : start + _BLOCK]
            reached = np.flatnonzero(np.max(rows, axis=0) > _NEGLIGIBLE * kernel.max())
            columns[-1].append((int(reached[0]), int(reached[-1]) + 1))
            values.append(rows[:, slice(*columns[-1][-1])].ravel())
    return _SharpKernels(
        kernels.shape[1], np.concatenate(values), tuple(tuple(own) for own in columns)
    )


class _Linearised(NamedTuple):
    """Sources and derivatives by their fields, as waves and at the nodes of each sphere."""

    charges: list[AtNodes]
    by_nodes: list[AtNodes]
    on_grid: Complex[np.ndarray, "wave source"]
    by_waves: Complex[np.ndarray, "wave target"]


class AugmentedConvolution(GaussianConvolution):
    """``GaussianConvolution`` on a uniform grid and in spheres; see ``augmented_convolution``.

    Points are those of the grid, then for each sphere those of its all-electron density, then of
    its pseudo density, shells fastest. ``waves`` are those of any direction that the grid holds,
    at ``indices`` of its transform, ordered by length.
    """

    mesh: tuple[int, int, int] = eqx.field(static=True)
    volume: float = eqx.field(static=True)
    waves: Waves
    indices: Int[np.ndarray, " wave"]
    centers: Float[np.ndarray, "atom xyz"]
    species: tuple[_Species, ...]
    species_of: tuple[int, ...] = eqx.field(static=True)
    gammas: Float[np.ndarray, " gamma"]
    num_smooth: int = eqx.field(static=True)
    mixing: Float[np.ndarray, "gamma source target"]
    runs: WaveRuns
    smooth: Float[np.ndarray, "sample source target"]
    sharp: Float[np.ndarray, "sample source target"]

    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        on_grid, *in_spheres = np.split(np.asarray(sources), self._ends)
        charges = self._charges(in_spheres)
        waves = self._fields(self._transform(on_grid), self._to_nodes(charges))
        fields = np.empty((self.num_points, waves.shape[1]))
        fields_on_grid, *fields_in_spheres = np.split(fields, self._ends)
        fields_on_grid[:] = self._transform_back(waves)
        mixing = self.mixing[self.num_smooth :]
        at_nodes = self._at_nodes(waves / self._size)
        written = fields_in_spheres[::2], fields_in_spheres[1::2]
        parts = zip(self._spheres, at_nodes, charges, *written, strict=True)
        for own, own_fields, own_charges, true, pseudo in parts:
            smooth = own.to_shells(own_fields)
            own.expand(smooth + own.sharp_fields(own_charges, mixing), true)
            own.expand(smooth, pseudo)
        return fields

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[np.ndarray, "grid source"]:
        on_grid, *in_spheres = np.split(np.asarray(fields), self._ends)
        by_shells = self._by_shells(in_spheres)
        waves = self._transform(on_grid)
        waves += self._waves_of(self._to_nodes(by_shells), waves.shape[1])
        by_smooth = self._by_smooth(waves)
        by_sharp = self.runs.matrix_product(waves, self.sharp.swapaxes(1, 2))
        sources = np.empty((self.num_points, by_smooth.shape[1]))
        by_grid, *by_spheres = np.split(sources, self._ends)
        by_grid[:] = self._transform_back(by_smooth * self.volume + by_sharp)
        mixing = self.mixing[self.num_smooth :].swapaxes(1, 2)
        by_nodes = self._at_nodes(by_smooth)
        written = by_spheres[::2], by_spheres[1::2]
        parts = zip(self._spheres, in_spheres[::2], by_nodes, *written, strict=True)
        for own, true, by_own, by_true, by_pseudo in parts:
            by_charges = own.to_shells(by_own)
            by_charges += own.sharp_fields(own.project(true), mixing)
            own.charges_transpose(by_charges, by_true)
            np.negative(by_true, out=by_pseudo)
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
        return np.reshape(derivatives, (-1, 3))

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
        return strain

    def moved(self, centers: Float[np.ndarray, "atom xyz"]) -> "AugmentedConvolution":
        """The same for other centres (bohr)."""
        return eqx.tree_at(lambda own: own.centers, self, centers)

    @property
    def num_points(self) -> int:
        """Those of the grid and of all spheres."""
        return self._size + sum(2 * own.shells.num_points for own in self._spheres)

    @property
    def _size(self) -> int:
        return int(np.prod(self.mesh))

    @property
    def _spheres(self) -> list[_Species]:
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

    def _by_shells(self, in_spheres: Sequence[np.ndarray]) -> list[AtShells]:
        """What acts on the smooth fields in each sphere, which both densities see."""
        parts = zip(self._spheres, in_spheres[::2], in_spheres[1::2], strict=True)
        return [own.project(true + pseudo) for own, true, pseudo in parts]

    def _to_nodes(self, at_shells: Sequence[AtShells]) -> list[AtNodes]:
        return [own.to_nodes(values) for own, values in zip(self._spheres, at_shells, strict=True)]

    def _linearised(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> _Linearised:
        on_grid, *in_spheres = np.split(np.asarray(sources), self._ends)
        by_grid, *by_spheres = np.split(np.asarray(by_fields), self._ends)
        by_nodes = self._to_nodes(self._by_shells(by_spheres))
        by_waves = self._transform(by_grid)
        by_waves += self._waves_of(by_nodes, by_waves.shape[1])
        charges = self._to_nodes(self._charges(in_spheres))
        return _Linearised(charges, by_nodes, self._transform(on_grid), by_waves)

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

    def _atoms_of_species(self) -> Iterator[tuple[_Species, list[int]]]:
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

    runs = wave_runs(waves.lengths, functions)
    smooth, sharp = _matrices(runs.samples, gammas, mixing, num_smooth)
    kinds = {id(own): own for own in shells}
    return AugmentedConvolution(
        mesh=(nx, ny, nz),
        volume=float(abs(np.linalg.det(lattice))),
        waves=waves,
        indices=indices,
        centers=centers,
        species=tuple(_species(own, waves, runs, gammas[num_smooth:]) for own in kinds.values()),
        species_of=tuple(list(kinds).index(id(own)) for own in shells),
        gammas=gammas,
        num_smooth=num_smooth,
        mixing=mixing,
        runs=runs,
        smooth=smooth,
        sharp=sharp,
    )


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


def _species(
    shells: SphericalShells, waves: Waves, runs: WaveRuns, sharp: Float[np.ndarray, " gamma"]
) -> _Species:
    return _Species(
        shells=shells,
        harmonics=real_spherical_harmonics(shells.directions, LMAX),
        waves=sphere_waves(waves, runs, shells.radii, LMAX),
        kernels=tuple(
            _sharp_kernels(own)
            for own in gaussian_radial_kernel(sharp, shells.radii, shells.radii, LMAX)
        ),
    )
