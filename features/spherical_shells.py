"""Shells about an atom: their quadrature, and what Gaussians make of charges on them."""

from collections.abc import Iterator

import equinox as eqx
import numpy as np
from jaxtyping import Float

from cider.features.length_runs import LengthRuns
from cider.features.sphere_waves import AtNodes, SphereWaves, sphere_waves
from cider.features.spherical import gaussian_radial_kernel, real_spherical_harmonics
from cider.features.waves import Waves

LMAX = 4
"""Largest angular momentum of sources and fields in a sphere."""

_NEGLIGIBLE = 1e-17
"""Value of a Gaussian, beside its largest, that is left out."""

_BLOCK = 16
"""Radii that are treated alike."""

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


class RadialKernels(eqx.Module):
    """Gaussians between equal radii, for each l, by ``_BLOCK`` rows, without what is negligible.

    ``values`` are those of all blocks, whose columns are ``columns`` of each Gaussian.
    """

    num_radii: int = eqx.field(static=True)
    values: tuple[Float[np.ndarray, " _"], ...]
    columns: tuple[tuple[tuple[tuple[int, int], ...], ...], ...] = eqx.field(static=True)

    def convolve(
        self,
        charges: Float[np.ndarray, "lm radius atom cin"],
        mixing: Float[np.ndarray, "gamma cin cout"],
    ) -> Float[np.ndarray, "lm radius atom cout"]:
        """Fields at the radii: of each Gaussian, what it makes of its mixture of the channels."""
        num_lm, num_radii, num_atoms, num_channels = charges.shape
        fields = np.empty((num_radii, num_lm, num_atoms, mixing.shape[2]))
        for l in range(len(self.values)):
            own = slice(l * l, (l + 1) ** 2)
            by_radius = charges[own].swapaxes(0, 1).reshape(-1, num_channels)
            total = np.zeros((num_radii, (2 * l + 1) * num_atoms * mixing.shape[2]))
            for matrix, blocks in zip(mixing, self._blocks(l), strict=True):
                mixed = (by_radius @ matrix).reshape(num_radii, -1)
                for rows, columns, kernel in blocks:
                    total[rows] += kernel @ mixed[columns]
            fields[:, own] = total.reshape(num_radii, -1, num_atoms, mixing.shape[2])
        return fields.swapaxes(0, 1)

    def _blocks(
        self, l: int
    ) -> Iterator[list[tuple[slice, slice, Float[np.ndarray, "row column"]]]]:
        """Of each Gaussian: rows, columns and the kernel of them, of each block."""
        end, values = 0, self.values[l]
        for columns in self.columns[l]:
            blocks = []
            for number, (first, beyond) in enumerate(columns):
                rows = slice(number * _BLOCK, min((number + 1) * _BLOCK, self.num_radii))
                shape = rows.stop - rows.start, beyond - first
                own = values[end : (end := end + shape[0] * shape[1])].reshape(shape)
                blocks.append((rows, slice(first, beyond), own))
            yield blocks


def radial_kernels(
    gammas: Float[np.ndarray, " gamma"], radii: Float[np.ndarray, " radius"]
) -> RadialKernels:
    """Those of exponents (bohr^-2) between radii (bohr); the sharpest reach a few of them."""
    values, columns = [], []
    for kernels in gaussian_radial_kernel(gammas, radii, radii, LMAX):
        own_values: list[Float[np.ndarray, " _"]] = [np.zeros(0)]
        own_columns: list[tuple[tuple[int, int], ...]] = []
        for kernel in kernels:
            blocks = []
            for start in range(0, len(kernel), _BLOCK):
                rows = kernel[start : start + _BLOCK]
                reached = np.flatnonzero(np.max(rows, axis=0) > _NEGLIGIBLE * kernel.max())
                blocks.append((int(reached[0]), int(reached[-1]) + 1))
                own_values.append(rows[:, slice(*blocks[-1])].ravel())
            own_columns.append(tuple(blocks))
        values.append(np.concatenate(own_values))
        columns.append(tuple(own_columns))
    return RadialKernels(len(radii), tuple(values), tuple(columns))


class Species(eqx.Module):
    """What equal spheres have in common; built by ``species``.

    ``sharp`` are Gaussians between shells, ``smooth`` those between the nodes of ``waves``.
    """

    shells: SphericalShells
    harmonics: Float[np.ndarray, "lm angle"]
    waves: SphereWaves
    sharp: RadialKernels
    smooth: RadialKernels

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


def species(
    shells: SphericalShells,
    waves: Waves,
    runs: LengthRuns,
    gammas: Float[np.ndarray, " gamma"],
    num_smooth: int,
) -> Species:
    """That of spheres among waves, the first ``num_smooth`` exponents (bohr^-2) being smooth."""
    of_waves = sphere_waves(waves, runs, shells.radii, LMAX)
    return Species(
        shells=shells,
        harmonics=real_spherical_harmonics(shells.directions, LMAX),
        waves=of_waves,
        sharp=radial_kernels(gammas[num_smooth:], shells.radii),
        smooth=radial_kernels(gammas[:num_smooth], of_waves.nodes.radii),
    )
