"""Numerical integration of a learned functional on the grids of molecules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pyscf.dft import numint

from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.functional import CiderFunctional
from cider.plugins.pyscf.density_matrices import (
    checked_matrices,
    densities,
    potential_matrices,
)
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.learned_numint import LearnedNumInt, Settings, check_density
from cider.plugins.pyscf.learned_part import add_density, density_of, threads_of_pyscf
from cider.plugins.pyscf.libxc import (
    libxc_energy_density_and_potential,
    needs_tau,
    num_ingredients,
)
from cider.plugins.pyscf.response import XCKernel
from cider.plugins.pyscf.smoothed_density_matrix import (
    Fields,
    sdmx_changes,
    sdmx_features,
    sdmx_potential_matrices,
)


class CiderNumInt(LearnedNumInt, numint.NumInt):
    """PySCF's integration on the grids of molecules, also of a ``CiderFunctional``."""

    _matrix_ndim = 2
    _kept: Fields | None = None
    """Of the density matrices that are integrated, meanwhile."""

    def _integrate(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._kept = {}
        try:
            return super()._integrate(*arguments)
        finally:
            self._kept = None

    def potential_and_grid_derivative(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> tuple[
        Float[np.ndarray, "spin ingredient grid"],
        Float[np.ndarray, " grid"],
        Float[np.ndarray, "atom xyz"],
    ]:
        """``potential``, the derivative by the quadrature weights, and by the centres of features.

        What the densities at the points do, and the weights, is another matter.
        """
        rho = self._densities_of_states(mol, grids, functional, dms, settings)[:, 0]
        check_density(rho, grids.weights)
        convolution = self._convolution_for(mol, grids, functional)
        with threads_of_pyscf():
            by_density, by_grid = functional.learned_potential_and_grid_derivative(
                density_of(functional, rho), grids.weights, convolution
            )
        semilocal = libxc_energy_density_and_potential(functional, rho, grids.weights)
        energy_density, potential = semilocal
        add_density(potential, by_density)
        by_centers = np.zeros((mol.natm, 3))
        if by_grid.centers is not None:
            by_centers[np.unique(grids.atm_idx[grids.atm_idx >= 0])] = by_grid.centers
        return potential, by_grid.weights + energy_density, by_centers

    def _densities_of_states(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        if grids.coords is None:
            grids.build(with_non0tab=True)
        rho = self._densities(mol, grids, dms, needs_tau(functional), settings)
        sdmx = functional.learned.descriptors.sdmx
        if sdmx is None:
            return rho
        matrices = checked_matrices(mol, dms)
        features = sdmx_features(mol, grids, sdmx, matrices, settings.max_memory, self._kept)
        return np.concatenate([rho, features], axis=2)

    def _matrices_at(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        potential: Float[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ao ao"]:
        products = [(checked_matrices(mol, dms), potential[:, :, num_ingredients(functional) :])]
        return self._matrices_of(mol, grids, functional, potential, products, settings)

    def _changes(
        self, mol: Any, grids: Any, kernel: XCKernel, dms: Sequence[Any], settings: Settings
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        rho = super()._changes(mol, grids, kernel, dms, settings)
        sdmx = kernel.functional.learned.descriptors.sdmx
        if sdmx is None or kernel.matrices is None:
            return rho
        matrices = kernel.matrices[:, None], checked_matrices(mol, dms)
        features = sdmx_changes(mol, grids, sdmx, *matrices, settings.max_memory)
        return np.concatenate([rho, features], axis=2)

    def _changes_of_matrices(
        self,
        mol: Any,
        grids: Any,
        kernel: XCKernel,
        dms: Sequence[Any],
        potential: Float[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ao ao"]:
        functional, changes = kernel.functional, checked_matrices(mol, dms)
        products = []
        if kernel.matrices is not None:
            # The derivative of a quadratic form is linear in the matrix and in the form's weight.
            by_changed = potential[:, :, num_ingredients(functional) :]
            by_unchanged = np.broadcast_to(kernel.by_features[:, None], by_changed.shape)
            unchanged = np.broadcast_to(kernel.matrices[:, None], changes.shape)
            products = [(unchanged, by_changed), (changes, by_unchanged)]
        return self._matrices_of(mol, grids, functional, potential, products, settings)

    def _matrices_of(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        potential: Float[np.ndarray, "spin set ingredient grid"],
        products: Sequence[tuple[np.ndarray, np.ndarray]],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ao ao"]:
        """Of the potential; SDMX features add products of matrices and derivatives by them."""
        of_density = potential[:, :, : num_ingredients(functional)]
        vmat = self._potential_matrices(mol, grids, of_density, settings)
        sdmx = functional.learned.descriptors.sdmx
        if sdmx is None:
            return vmat
        for matrices, by_features in products:
            vmat += sdmx_potential_matrices(
                mol, grids, sdmx, matrices, by_features, settings.max_memory, self._kept
            )
        return vmat

    def _densities(
        self, mol: Any, grids: Any, dms: Sequence[Any], with_tau: bool, settings: Settings
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        matrices = checked_matrices(mol, dms)
        return densities(mol, grids, matrices, with_tau, settings.max_memory)

    def _potential_matrices(
        self,
        mol: Any,
        grids: Any,
        potential: Float[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ao ao"]:
        return potential_matrices(mol, grids, potential, settings.max_memory)

    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        return becke_convolution(mol, grids, nldf)
