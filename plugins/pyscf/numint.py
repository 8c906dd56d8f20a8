"""Numerical integration of a learned functional on the grids of molecules, by processor or GPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pyscf.dft import numint

from cider.features.accelerator import has_accelerator
from cider.features.convolution import GaussianConvolution
from cider.features.device_convolution import device_convolution
from cider.features.nldf import Nldf
from cider.features.sdmx import Sdmx
from cider.functional import CiderFunctional
from cider.plugins.pyscf.density_matrices import (
    checked_matrices,
    densities,
    potential_matrices,
)
from cider.plugins.pyscf.device_orbitals import device_densities, device_potential_matrices
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.learned_numint import LearnedNumInt, Settings, check_density
from cider.plugins.pyscf.learned_part import add_density, density_of, threads_of_pyscf
from cider.plugins.pyscf.libxc import libxc_energy_density_and_potential
from cider.plugins.pyscf.smoothed_density_matrix import (
    Fields,
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

    def _require_grid(self, mol: Any, grids: Any, functional: CiderFunctional) -> None:
        if grids.coords is None:
            grids.build(with_non0tab=True)

    def _matrices(self, mol: Any, dms: Sequence[Any]) -> Float[np.ndarray, "spin set ao ao"]:
        return checked_matrices(mol, dms)

    def _sdmx_features(
        self,
        mol: Any,
        grids: Any,
        sdmx: Sdmx,
        dms: Float[np.ndarray, "spin set ao ao"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set feature grid"]:
        return sdmx_features(mol, grids, sdmx, dms, settings.max_memory, self._kept)

    def _sdmx_potential_matrices(
        self,
        mol: Any,
        grids: Any,
        sdmx: Sdmx,
        dms: Float[np.ndarray, "spin set ao ao"],
        by_features: Float[np.ndarray, "spin set feature grid"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ao ao"]:
        given = dms, by_features, settings.max_memory
        return sdmx_potential_matrices(mol, grids, sdmx, *given, self._kept)

    def _densities(
        self, mol: Any, grids: Any, dms: Sequence[Any], with_tau: bool, settings: Settings
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        matrices = checked_matrices(mol, dms)
        if has_accelerator():
            return device_densities(mol, grids, matrices, with_tau)
        return densities(mol, grids, matrices, with_tau, settings.max_memory)

    def _potential_matrices(
        self,
        mol: Any,
        grids: Any,
        potential: Float[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ao ao"]:
        if has_accelerator():
            return device_potential_matrices(mol, grids, potential)
        return potential_matrices(mol, grids, potential, settings.max_memory)

    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        convolution = becke_convolution(mol, grids, nldf)
        return device_convolution(convolution) if has_accelerator() else convolution
