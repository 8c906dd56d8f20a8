"""Energy, electron number and potential matrix of a learned functional on PySCF's grids."""

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
from cider.plugins.pyscf.learned_numint import LearnedNumInt, check_density
from cider.plugins.pyscf.learned_part import add_density, density_of, threads_of_pyscf
from cider.plugins.pyscf.libxc import libxc_energy_density_and_potential, needs_tau
from cider.plugins.pyscf.response import XCKernel, checked_kernel


class CiderNumInt(LearnedNumInt, numint.NumInt):
    """PySCF's integration on the grids of molecules, also of a ``CiderFunctional``."""

    def nr_rks(
        self, mol: Any, grids: Any, xc_code: Any, dms: Any, *settings: Any, **named: Any
    ) -> tuple[Any, Any, np.ndarray]:
        """Electron number, energy (Ha) and potential matrix for closed shells.

        Arguments and shapes as in PySCF, for one density matrix or a list of them, of which the
        symmetric part counts. Raises ``ValueError`` for a density matrix that is broken,
        ``NotImplementedError`` for a complex or spinor one.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks(mol, grids, xc_code, dms, *settings, **named)
        max_memory = _max_memory(*settings, **named)
        nelec, exc, vmat = self._integrate(mol, grids, xc_code, (dms,), max_memory)
        if vmat.shape[1] == 1:  # as PySCF does, also for a list of one
            return nelec[0, 0], exc[0], vmat[0, 0]
        return nelec[0], exc, vmat[0]

    def nr_uks(
        self, mol: Any, grids: Any, xc_code: Any, dms: Any, *settings: Any, **named: Any
    ) -> tuple[Any, Any, np.ndarray]:
        """As ``nr_rks``, for a pair of density matrices (or of lists of them)."""
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_uks(mol, grids, xc_code, dms, *settings, **named)
        max_memory = _max_memory(*settings, **named)
        dms = numint._format_uks_dm(dms)
        nelec, exc, vmat = self._integrate(mol, grids, xc_code, dms, max_memory)
        if np.ndim(dms[0]) == 2:
            return nelec[:, 0], exc[0], vmat[:, 0]
        return nelec, exc, vmat

    nr_rks_vxc = nr_rks
    nr_uks_vxc = nr_uks

    def cache_xc_kernel(
        self,
        mol: Any,
        grids: Any,
        xc_code: Any,
        mo_coeff: Any,
        mo_occ: Any,
        spin: int = 0,
        max_memory: float = 2000,
    ) -> tuple[Any, Any, Any]:
        """As in PySCF: the third entry is what the methods ``nr_*_fxc`` take as ``fxc``.

        Of a learned functional that is an ``XCKernel``, and the others are None.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().cache_xc_kernel(mol, grids, xc_code, mo_coeff, mo_occ, spin, max_memory)
        if mo_coeff[0].ndim == 1:
            dm = (mo_coeff * mo_occ) @ mo_coeff.T
        else:
            dm = np.stack([(c * n) @ c.T for c, n in zip(mo_coeff, mo_occ, strict=True)])
        return self.cache_xc_kernel1(mol, grids, xc_code, dm, spin, max_memory)

    def cache_xc_kernel1(
        self,
        mol: Any,
        grids: Any,
        xc_code: Any,
        dm: Any,
        spin: int = 0,
        max_memory: float = 2000,
    ) -> tuple[Any, Any, Any]:
        """The same from a density matrix, or a pair of them."""
        if not isinstance(xc_code, CiderFunctional):
            return super().cache_xc_kernel1(mol, grids, xc_code, dm, spin, max_memory)
        dms = (dm,) if np.ndim(dm) == 2 else tuple(dm)
        rho = _densities_on(mol, grids, xc_code, dms, max_memory)[:, 0]
        check_density(rho, grids.weights)
        convolution = self._convolution_for(mol, grids, xc_code)
        return None, None, XCKernel(xc_code, rho, grids.weights, convolution)

    def nr_rks_fxc(
        self,
        mol: Any,
        grids: Any,
        xc_code: Any,
        dm0: Any,
        dms: Any,
        relativity: int = 0,
        hermi: int = 0,
        rho0: Any = None,
        vxc: Any = None,
        fxc: Any = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """Change of the potential matrix of a closed shell, for changes of its density matrix.

        Arguments and shapes as in PySCF; of the changes, the symmetric part counts. Raises as
        ``nr_rks``, and ``TypeError`` for an ``fxc`` that did not come from ``cache_xc_kernel``.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks_fxc(
                mol, grids, xc_code, dm0, dms, relativity, hermi, rho0, vxc, fxc, max_memory
            )
        kernel = self._kernel(mol, grids, xc_code, dm0, fxc, max_memory)
        vmat = _change_of_potential(mol, grids, kernel, (dms,), max_memory)
        return vmat[0].reshape(np.shape(dms))

    def nr_rks_fxc_st(
        self,
        mol: Any,
        grids: Any,
        xc_code: Any,
        dm0: Any,
        dms_alpha: Any,
        hermi: int = 0,
        singlet: bool = True,
        rho0: Any = None,
        vxc: Any = None,
        fxc: Any = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """That of spin up, where spin down changes alike (singlet) or by the opposite (triplet)."""
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks_fxc_st(
                mol, grids, xc_code, dm0, dms_alpha, hermi, singlet, rho0, vxc, fxc, max_memory
            )
        kernel = self._kernel(mol, grids, xc_code, dm0, fxc, max_memory)
        vmat = _change_of_potential(
            mol, grids, kernel, (dms_alpha,), max_memory, triplet=not singlet
        )
        return 2 * vmat[0].reshape(np.shape(dms_alpha))

    def nr_uks_fxc(
        self,
        mol: Any,
        grids: Any,
        xc_code: Any,
        dm0: Any,
        dms: Any,
        relativity: int = 0,
        hermi: int = 0,
        rho0: Any = None,
        vxc: Any = None,
        fxc: Any = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """As ``nr_rks_fxc``, for a pair of density matrices (or of lists of them)."""
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_uks_fxc(
                mol, grids, xc_code, dm0, dms, relativity, hermi, rho0, vxc, fxc, max_memory
            )
        dms = numint._format_uks_dm(dms)
        kernel = self._kernel(mol, grids, xc_code, dm0, fxc, max_memory)
        vmat = _change_of_potential(mol, grids, kernel, dms, max_memory)
        return vmat.reshape(np.shape(dms))

    def _kernel(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dm0: Any,
        fxc: Any,
        max_memory: float,
    ) -> XCKernel:
        """``fxc``, or that of a density matrix."""
        if fxc is None:
            fxc = self.cache_xc_kernel1(mol, grids, functional, dm0, max_memory=max_memory)[2]
        return checked_kernel(functional, fxc)

    def _integrate(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        max_memory: float,
    ) -> tuple[
        Float[np.ndarray, "spin set"],
        Float[np.ndarray, " set"],
        Float[np.ndarray, "spin set ao ao"],
    ]:
        """All of the above, with a spin axis in front; ``dms`` has one entry per spin."""
        rho = _densities_on(mol, grids, functional, dms, max_memory)
        exc, potential = self._energies_and_potentials(mol, grids, functional, rho)
        vmat = potential_matrices(mol, grids, potential, max_memory)
        return rho[:, :, 0] @ grids.weights, exc, vmat

    def potential(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        max_memory: float,
    ) -> Float[np.ndarray, "spin ingredient grid"]:
        """Derivative of the energy by rho, grad rho and tau of one density matrix per spin.

        Raises as ``nr_rks``.
        """
        rho = _densities_on(mol, grids, functional, dms, max_memory)[:, 0]
        return self._energy_and_potential(mol, grids, functional, rho)[1]

    def potential_and_grid_derivative(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        max_memory: float,
    ) -> tuple[
        Float[np.ndarray, "spin ingredient grid"],
        Float[np.ndarray, " grid"],
        Float[np.ndarray, "atom xyz"],
    ]:
        """The same, the derivative by the quadrature weights, and by the centres of features.

        What the densities at the points do, and the weights, is another matter.
        """
        rho = _densities_on(mol, grids, functional, dms, max_memory)[:, 0]
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

    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        return becke_convolution(mol, grids, nldf)


def _max_memory(
    relativity: int = 0, hermi: int = 1, max_memory: float = 2000, verbose: Any = None
) -> float:
    """The only one of PySCF's settings (MB) that changes anything here."""
    return max_memory


def _densities_on(
    mol: Any, grids: Any, functional: CiderFunctional, dms: Sequence[Any], max_memory: float
) -> Float[np.ndarray, "spin set ingredient grid"]:
    """What a functional reads of density matrices, once they are known to make sense."""
    matrices = checked_matrices(mol, dms)
    if grids.coords is None:
        grids.build(with_non0tab=True)
    return densities(mol, grids, matrices, needs_tau(functional), max_memory)


def _change_of_potential(
    mol: Any,
    grids: Any,
    kernel: XCKernel,
    dms: Sequence[Any],
    max_memory: float,
    triplet: bool = False,
) -> Float[np.ndarray, "spin set ao ao"]:
    """Changes of the potential matrices for changes of the density matrices, some at a time."""
    matrices = checked_matrices(mol, dms)
    kernel.require_spins(len(matrices))
    vmat = np.empty_like(matrices)
    together = max(1, int(1e6 * max_memory / (8 * kernel.rho.size)))
    for start in range(0, matrices.shape[1], together):
        part = slice(start, start + together)
        rho = densities(mol, grids, matrices[:, part], kernel.rho.shape[1] == 5, max_memory)
        for i in range(rho.shape[1]):
            rho[:, i] = kernel.potential(rho[:, i], triplet)
        vmat[:, part] = potential_matrices(mol, grids, rho, max_memory)
    return vmat
