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
from jaxtyping import Complex, Float, Int

from cider.conventions import AnyArray, float64
from cider.features.convolution import GaussianConvolution
from cider.features.gaussian_ladder import ladder_of_sums
from cider.features.sphere_waves import AtNodes
from cider.features.spheres_in_grid import (
    LMAX,
    AtShells,
    Sphere,
    SpheresInGrid,
    SphericalShells,
    shortest_wave,
    spheres_in_grid,
)
from cider.features.spherical import gaussian_radial_kernel

UNRESOLVED_WAVE = 1e-3
"""A Gaussian is smooth where this is all that is left of it in the shortest wave of the grid.

With 1e-6 too much of what sharper ones make outside the sphere was missed (14 mHa of the exchange
of N2 at 400 eV), with 0.1 the grid did not resolve them (28 mHa); 0.01 differed by 3 mHa.
"""

_NEGLIGIBLE = 1e-17
"""Value of a sharp Gaussian, beside its largest, that is left out."""

_BLOCK = 16
"""Shells that are treated alike."""


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


def _sharp_fields(
    kernels: Sequence[_SharpKernels],
    charges: AtShells,
    mixing: Float[np.ndarray, "gamma cin cout"],
) -> AtShells:
    """What sharp Gaussians, by kernels of each l, make of charges on shells."""
    num_shells, num_channels = charges.shape[1], mixing.shape[2]
    fields = np.zeros((num_shells, charges.shape[0], num_channels))
    for l, of_l in enumerate(kernels):
        own = slice(l * l, (l + 1) ** 2)
        by_shell = charges[own].swapaxes(0, 1).reshape(-1, charges.shape[2])
        total = np.zeros((num_shells, (2 * l + 1) * num_channels))
        for matrix, blocks in zip(mixing, of_l, strict=True):
            mixed = (by_shell @ matrix).reshape(num_shells, -1)
            for rows, columns, kernel in blocks:
                total[rows] += kernel @ mixed[columns]
        fields[:, own] = total.reshape(num_shells, -1, num_channels)
    return fields.swapaxes(0, 1)


def _charges(sphere: Sphere, values: Float[np.ndarray, "point channel"]) -> AtShells:
    """Projection of values with their quadrature weights."""
    return sphere.project(sphere.shells.weights.reshape(-1, 1) * values)


def _charges_transpose(
    sphere: Sphere, by_charges: AtShells, values: Float[np.ndarray, "point channel"]
) -> None:
    """Write the transpose."""
    sphere.expand(by_charges, values)
    values *= sphere.shells.weights.reshape(-1, 1)


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
    its pseudo density, shells fastest. ``kernels`` are the sharp Gaussians of each species and l.
    """

    spheres: SpheresInGrid
    kernels: tuple[tuple[_SharpKernels, ...], ...]
    gammas: Float[np.ndarray, " gamma"]
    num_smooth: int = eqx.field(static=True)
    mixing: Float[np.ndarray, "gamma source target"]
    smooth: Float[np.ndarray, "sample source target"]
    sharp: Float[np.ndarray, "sample source target"]

    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        spheres = self.spheres
        on_grid, *in_spheres = np.split(np.asarray(sources), self._ends)
        charges = self._charges(in_spheres)
        waves = self._fields(spheres.transform(on_grid), spheres.to_nodes(charges))
        fields = np.empty((self.num_points, waves.shape[1]))
        fields_on_grid, *fields_in_spheres = np.split(fields, self._ends)
        fields_on_grid[:] = spheres.transform_back(waves)
        mixing = self.mixing[self.num_smooth :]
        at_nodes = spheres.at_nodes(waves / spheres.size)
        written = fields_in_spheres[::2], fields_in_spheres[1::2]
        parts = zip(spheres.spheres, self._kernels, at_nodes, charges, *written, strict=True)
        for own, kernels, own_fields, own_charges, true, pseudo in parts:
            smooth = own.to_shells(own_fields)
            own.expand(smooth + _sharp_fields(kernels, own_charges, mixing), true)
            own.expand(smooth, pseudo)
        return fields

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[np.ndarray, "grid source"]:
        spheres = self.spheres
        on_grid, *in_spheres = np.split(np.asarray(fields), self._ends)
        by_shells = self._by_shells(in_spheres)
        waves = spheres.transform(on_grid)
        waves += spheres.waves_of(spheres.to_nodes(by_shells), waves.shape[1])
        by_smooth = self._by_smooth(waves)
        by_sharp = spheres.runs.matrix_product(waves, self.sharp.swapaxes(1, 2))
        sources = np.empty((self.num_points, by_smooth.shape[1]))
        by_grid, *by_spheres = np.split(sources, self._ends)
        by_grid[:] = spheres.transform_back(by_smooth * spheres.volume + by_sharp)
        mixing = self.mixing[self.num_smooth :].swapaxes(1, 2)
        by_nodes = spheres.at_nodes(by_smooth)
        written = by_spheres[::2], by_spheres[1::2]
        seen = in_spheres[::2], by_nodes, *written
        parts = zip(spheres.spheres, self._kernels, *seen, strict=True)
        for own, kernels, true, by_own, by_true, by_pseudo in parts:
            by_charges = own.to_shells(by_own)
            by_charges += _sharp_fields(kernels, own.project(true), mixing)
            _charges_transpose(own, by_charges, by_true)
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
        fields = self._fields(state.on_grid, state.charges) / self.spheres.size
        by_smooth = self._by_smooth(state.by_waves)
        return self.spheres.center_derivative(
            state.by_nodes, fields
        ) + self.spheres.center_derivative(state.charges, by_smooth)

    def strain_derivative(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of ``by_fields`` times the fields, as the cell is strained.

        The points of the grid and the centres follow the strain, spheres keep their form.
        """
        spheres, state = self.spheres, self._linearised(sources, by_fields)
        fields = self._fields(state.on_grid, state.charges) / spheres.size
        by_smooth = self._by_smooth(state.by_waves)
        by_gamma = self.mixing / (2 * self.gammas[:, None, None])
        matrices = _matrices(spheres.runs.samples, self.gammas, by_gamma, self.num_smooth)
        slopes = self._mixed(state.on_grid, state.charges, *matrices) / spheres.size
        vectors, shares = spheres.waves
        by_square = shares * np.sum(state.by_waves.conj() * slopes, axis=1).real
        strain = np.einsum("g,ga,gb->ab", by_square, vectors, vectors)
        strain += spheres.strain_derivative(state.by_nodes, fields)
        strain += spheres.strain_derivative(state.charges, by_smooth)
        # The density of waves that charges make goes with the inverse of the volume.
        at_nodes = spheres.at_nodes(by_smooth)
        work = sum(np.vdot(*pair) for pair in zip(state.charges, at_nodes, strict=True))
        return strain - work * np.eye(3)

    def moved(self, centers: Float[np.ndarray, "atom xyz"]) -> "AugmentedConvolution":
        """The same for other centres (bohr)."""
        return eqx.tree_at(lambda own: own.spheres, self, self.spheres.moved(centers))

    @property
    def num_points(self) -> int:
        """Those of the grid and of all spheres."""
        return self.spheres.size + sum(2 * own.shells.num_points for own in self.spheres.spheres)

    @property
    def _kernels(self) -> list[tuple[_SharpKernels, ...]]:
        """Of each sphere."""
        return [self.kernels[index] for index in self.spheres.species_of]

    @property
    def _ends(self) -> Int[np.ndarray, " part"]:
        """Where the points of each part but the last end."""
        sizes = [own.shells.num_points for own in self.spheres.spheres for _ in range(2)]
        return np.cumsum([self.spheres.size, *sizes])[:-1]

    def _charges(self, in_spheres: Sequence[np.ndarray]) -> list[AtShells]:
        """All-electron less pseudo charges of each sphere."""
        parts = zip(self.spheres.spheres, in_spheres[::2], in_spheres[1::2], strict=True)
        return [_charges(own, true - pseudo) for own, true, pseudo in parts]

    def _by_shells(self, in_spheres: Sequence[np.ndarray]) -> list[AtShells]:
        """What acts on the smooth fields in each sphere, which both densities see."""
        parts = zip(self.spheres.spheres, in_spheres[::2], in_spheres[1::2], strict=True)
        return [own.project(true + pseudo) for own, true, pseudo in parts]

    def _linearised(
        self, sources: Float[AnyArray, "grid source"], by_fields: Float[AnyArray, "grid target"]
    ) -> _Linearised:
        spheres = self.spheres
        on_grid, *in_spheres = np.split(np.asarray(sources), self._ends)
        by_grid, *by_spheres = np.split(np.asarray(by_fields), self._ends)
        by_nodes = spheres.to_nodes(self._by_shells(by_spheres))
        by_waves = spheres.transform(by_grid)
        by_waves += spheres.waves_of(by_nodes, by_waves.shape[1])
        charges = spheres.to_nodes(self._charges(in_spheres))
        return _Linearised(charges, by_nodes, spheres.transform(on_grid), by_waves)

    def _by_smooth(
        self, by_waves: Complex[np.ndarray, "wave target"]
    ) -> Complex[np.ndarray, "wave source"]:
        """What acts on the waves of charges in spheres."""
        product = self.spheres.runs.matrix_product(by_waves, self.smooth.swapaxes(1, 2))
        return product / self.spheres.volume

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
        spheres = self.spheres
        by_spheres = spheres.waves_of(charges, on_grid.shape[1]) * (spheres.size / spheres.volume)
        mixed = spheres.runs.matrix_product(on_grid + by_spheres, smooth)
        return mixed + spheres.runs.matrix_product(on_grid, sharp)


@float64
def augmented_convolution(
    lattice: Float[np.ndarray, "vector xyz"],
    mesh: Sequence[int] | Int[np.ndarray, "3"],
    centers: Float[np.ndarray, "atom xyz"],
    shells: Sequence[SphericalShells],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> AugmentedConvolution:
    """The convolution on a grid and in spheres as of ``spheres_in_grid``; exponents in bohr^-2."""
    mixing, gammas = ladder_of_sums(source_exponents, target_exponents)
    spheres = spheres_in_grid(lattice, mesh, centers, shells, gammas)
    widest = shortest_wave(lattice, mesh) ** 2 / (4 * -math.log(UNRESOLVED_WAVE))
    num_smooth = int(np.searchsorted(gammas, widest))
    smooth, sharp = _matrices(spheres.runs.samples, gammas, mixing, num_smooth)
    kernels = [
        gaussian_radial_kernel(gammas[num_smooth:], own.shells.radii, own.shells.radii, LMAX)
        for own in spheres.species
    ]
    return AugmentedConvolution(
        spheres=spheres,
        kernels=tuple(tuple(_sharp_kernels(of_l) for of_l in own) for own in kernels),
        gammas=gammas,
        num_smooth=num_smooth,
        mixing=mixing,
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
