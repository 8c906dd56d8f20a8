"""The densities inside an augmentation sphere: a linear map of the atomic density matrix."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from gpaw.sphere.lebedev import R_nv, Y_nL, weight_n
from gpaw.xc.mgga import create_kinetic
from gpaw.xc.pawcorrection import rnablaY_nLv
from jaxtyping import Float

from cider.density import Density
from cider.features.augmented_convolution import SphericalShells

STRIDE = 3
"""Radial points of a data set per shell; all of them change the exchange of Ne by 0.03 mHa."""


class PartialWaveDensity(eqx.Module):
    """Density of one kind of partial waves, all-electron or pseudo, on the points of a sphere.

    ``pairs`` are radial products of partial waves, ``slopes`` their derivatives, and ``kinetic``
    the kinetic energy densities of pairs at each point; the ``core`` arrays come on top. Shells
    leave out the nucleus, which has no weight.
    """

    radii: Float[np.ndarray, " shell"]
    pairs: Float[np.ndarray, "pair shell"]
    slopes: Float[np.ndarray, "pair shell"]
    core: Float[np.ndarray, " shell"]
    core_slope: Float[np.ndarray, " shell"]
    core_tau: Float[np.ndarray, " shell"]
    kinetic: Float[np.ndarray, "packed angle shell"] | None
    coupling: Float[np.ndarray, "packed pair lm"]

    def apply(self, matrices: Float[np.ndarray, "spin packed"]) -> Density:
        """Density of packed density matrices, as many points as angles times shells."""
        coefficients = np.einsum("sp,pql->slq", matrices, self.coupling)
        radial, slope = coefficients @ self.pairs, coefficients @ self.slopes
        num_spins = len(matrices)
        radial[:, 0] += self.core * np.sqrt(4 * np.pi) / num_spins
        slope[:, 0] += self.core_slope * np.sqrt(4 * np.pi) / num_spins
        harmonics, gradients = _harmonics(radial.shape[1])
        rho = np.einsum("nl,slg->sng", harmonics, radial)
        grad_rho = R_nv.T[:, :, None] * np.einsum("nl,slg->sng", harmonics, slope)[:, None]
        grad_rho += np.einsum("nlv,slg->svng", gradients, radial / self.radii)
        tau = None
        if self.kinetic is not None:
            tau = np.tensordot(matrices, self.kinetic, 1) + self.core_tau / num_spins
        by_points = rho, grad_rho, tau
        return Density(*jax.tree.map(lambda array: array.reshape(*array.shape[:-2], -1), by_points))

    def transpose(self, by_density: Density) -> Float[np.ndarray, "spin packed"]:
        """The transposed map, of derivatives by the density at each point."""
        shape = len(weight_n), len(self.radii)
        by_points = jax.tree.map(lambda array: array.reshape(*array.shape[:-1], *shape), by_density)
        rho, grad_rho, tau = by_points.rho, by_points.grad_rho, by_points.tau
        harmonics, gradients = _harmonics(self.coupling.shape[2])
        by_radial = np.einsum("nl,sng->slg", harmonics, rho)
        by_radial += np.einsum("nlv,svng->slg", gradients, grad_rho) / self.radii
        by_slope = np.einsum("nl,nv,svng->slg", harmonics, R_nv, grad_rho, optimize=True)
        by_coefficients = by_radial @ self.pairs.T + by_slope @ self.slopes.T
        by_matrices = np.einsum("slq,pql->sp", by_coefficients, self.coupling)
        if tau is not None and self.kinetic is not None:
            by_matrices += np.tensordot(tau, self.kinetic, ((1, 2), (1, 2)))
        return by_matrices


class AugmentationSphere(eqx.Module):
    """All-electron and pseudo densities of a PAW data set, one after the other.

    Both are on the points of the same shells.
    """

    all_electron: PartialWaveDensity
    pseudo: PartialWaveDensity
    shells: SphericalShells

    @property
    def weights(self) -> Float[np.ndarray, " point"]:
        """Weights (bohr^3) of the quadrature, negative for the pseudo density.

        The sum over all points is what the sphere adds to an integral over the grid.
        """
        weights = self.shells.weights.ravel()
        return np.concatenate([weights, -weights])

    def apply(self, matrices: Float[np.ndarray, "spin packed"]) -> Density:
        """Densities of packed density matrices."""
        return joined([self.all_electron.apply(matrices), self.pseudo.apply(matrices)])

    def transpose(self, by_density: Density) -> Float[np.ndarray, "spin packed"]:
        """The transposed map."""
        true, pseudo = split(by_density, [by_density.num_points // 2] * 2)
        return self.all_electron.transpose(true) + self.pseudo.transpose(pseudo)


def augmentation_sphere(correction: Any, needs_tau: bool) -> AugmentationSphere:
    """The sphere of the ``xc_correction`` of a setup.

    It ends where all-electron and pseudo densities are the same. Raises ``NotImplementedError``
    for core holes.
    """
    if correction.nc_corehole_g is not None:
        raise NotImplementedError("data sets with core holes are not available with a learned part")
    kinds = [
        _partial_wave_density(correction, needs_tau, *kind)
        for kind in (
            (correction.phi_jg, correction.n_qg, correction.nc_g, correction.tauc_g),
            (correction.phit_jg, correction.nt_qg, correction.nct_g, correction.tauct_g),
        )
    ]
    volumes = correction.rgd.dv_g[_shells(correction)] * STRIDE
    shells = SphericalShells(kinds[0].radii, R_nv, np.outer(weight_n, volumes))
    return AugmentationSphere(all_electron=kinds[0], pseudo=kinds[1], shells=shells)


def joined(densities: Sequence[Density]) -> Density:
    """Densities at the points of all, in their order."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1), *densities)


def split(density: Density, sizes: Sequence[int]) -> list[Density]:
    """The inverse of ``joined``, for so many points each."""
    ends = np.cumsum(sizes)[:-1]
    leaves, structure = jax.tree.flatten(density)
    parts = zip(*(np.split(leaf, ends, axis=-1) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]


def _partial_wave_density(
    correction: Any,
    needs_tau: bool,
    waves: Sequence[np.ndarray],
    pairs: Float[np.ndarray, "pair radial"],
    core: Float[np.ndarray, " radial"],
    core_tau: Float[np.ndarray, " radial"] | None,
) -> PartialWaveDensity:
    shells = _shells(correction)
    slopes, core_slope = np.empty_like(pairs), np.empty_like(core)
    for pair, slope in zip((*pairs, core), (*slopes, core_slope), strict=True):
        correction.rgd.derivative(pair, slope)
    kinetic = None
    if needs_tau:
        by_angle = np.zeros((len(weight_n), correction.nii, correction.ng))
        create_kinetic(correction, len(weight_n), waves, by_angle)
        kinetic = np.ascontiguousarray(by_angle[:, :, shells].swapaxes(0, 1))
    return PartialWaveDensity(
        radii=correction.rgd.r_g[shells],
        pairs=pairs[:, shells],
        slopes=slopes[:, shells],
        core=core[shells],
        core_slope=core_slope[shells],
        core_tau=_kinetic_core(core_tau, correction.ng)[shells] / np.sqrt(4 * np.pi),
        kinetic=kinetic,
        coupling=correction.B_pqL,
    )


def _shells(correction: Any) -> slice:
    """Every so many radial points up to where all-electron and pseudo densities become the same."""
    both = (
        (np.array(correction.phi_jg), np.array(correction.phit_jg)),
        (correction.nc_g[None], correction.nct_g[None]),
        tuple(
            _kinetic_core(tau, correction.ng)[None]
            for tau in (correction.tauc_g, correction.tauct_g)
        ),
    )
    differs = np.any([np.any(true != pseudo, axis=0) for true, pseudo in both], axis=0)
    return slice(STRIDE, int(np.max(np.nonzero(differs))) + 1, STRIDE)


def _kinetic_core(
    core_tau: Float[np.ndarray, " radial"] | None, size: int
) -> Float[np.ndarray, " radial"]:
    """Zero for data sets without one, which functionals of GGA level may have."""
    return np.zeros(size) if core_tau is None else core_tau


def _harmonics(count: int) -> tuple[Float[np.ndarray, "angle lm"], Float[np.ndarray, "angle lm 3"]]:
    """Spherical harmonics in the directions of the quadrature, and r times their gradients."""
    return Y_nL[:, :count], rnablaY_nLv[:, :count]
