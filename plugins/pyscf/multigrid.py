"""PySCF's multigrid integration in periodic cells, also of a learned functional.

PySCF's own sums tau orbital by orbital on every grid. Here it is half the density of orbitals'
gradients, which are Gaussians again and go the way of the density.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Inexact
from pyscf import lib
from pyscf.pbc import tools
from pyscf.pbc.dft.gen_grid import UniformGrids
from pyscf.pbc.dft.multigrid import MultiGridNumInt
from pyscf.pbc.dft.multigrid.multigrid import _eval_rhoG, _get_j_pass2

from cider.functional import CiderFunctional
from cider.plugins.pyscf.gradient_basis import GradientBasis, gradient_basis
from cider.plugins.pyscf.learned_numint import Settings
from cider.plugins.pyscf.periodic import LearnedPeriodicNumInt, k_points
from cider.plugins.pyscf.response import XCKernel


class LearnedMultiGridNumInt(LearnedPeriodicNumInt, MultiGridNumInt):
    """In front of PySCF's multigrid integration, at one k-point or several.

    As there, matrices hold the Coulomb potential too while ``xc_with_j``, and the points are those
    of ``mesh``, whatever ``mf.grids``.
    """

    _coulomb_energies: Float[np.ndarray, " set"]
    """Of the last integration (Ha)."""

    def reset(self, mol: Any = None) -> "LearnedMultiGridNumInt":
        """As in PySCF; also forgets the convolution."""
        MultiGridNumInt.reset(self, mol)
        self.__dict__.pop("_gradients", None)
        super().reset(mol)
        return self

    def nr_rks(self, cell: Any, grids: Any, xc_code: Any, *args: Any, **named: Any) -> Any:
        """As in PySCF, and as ``LearnedNumInt.nr_rks``."""
        nelec, exc, vmat = super().nr_rks(cell, grids, xc_code, *args, **named)
        return nelec, exc, self._with_energies(xc_code, exc, vmat)

    def nr_uks(self, cell: Any, grids: Any, xc_code: Any, *args: Any, **named: Any) -> Any:
        """As in PySCF, and as ``LearnedNumInt.nr_uks``."""
        nelec, exc, vmat = super().nr_uks(cell, grids, xc_code, *args, **named)
        return nelec, exc, self._with_energies(xc_code, exc, vmat)

    def _with_energies(self, xc_code: Any, exc: Any, vmat: np.ndarray) -> np.ndarray:
        if not (self.xc_with_j and isinstance(xc_code, CiderFunctional)):
            return vmat
        ecoul = self._coulomb_energies
        return lib.tag_array(vmat, ecoul=ecoul if np.ndim(exc) else ecoul[0], exc=exc)

    def _own_grids(self, given: Any) -> UniformGrids:
        grids = UniformGrids(self.cell)
        grids.mesh = self.mesh
        return grids

    def _kernel_at(
        self, cell: Any, grids: Any, functional: CiderFunctional, dm: Any, settings: Settings
    ) -> XCKernel:
        kernel = super()._kernel_at(cell, grids, functional, dm, settings)
        coulomb = self._coulomb_potential if self.xc_with_j else None
        return dataclasses.replace(kernel, coulomb=coulomb)

    def _energies_and_potentials(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        rho: Float[np.ndarray, "spin set ingredient grid"],
    ) -> tuple[Float[np.ndarray, " set"], Float[np.ndarray, "spin set ingredient grid"]]:
        exc, potential = super()._energies_and_potentials(cell, grids, functional, rho)
        if self.xc_with_j:
            density = rho[:, :, 0].sum(axis=0)
            by_density = self._coulomb_potential(density)
            self._coulomb_energies = np.sum(density * by_density, axis=-1) / 2
            potential[:, :, 0] += by_density
        return exc, potential

    def _coulomb_potential(
        self, density: Float[np.ndarray, "*set grid"]
    ) -> Float[np.ndarray, "*set grid"]:
        """Derivative of the Coulomb energy by the density at each point (Ha bohr^3)."""
        weight = self.cell.vol / np.prod(self.mesh)
        flat = density.reshape(-1, density.shape[-1])
        waves = tools.fft(flat, self.mesh) * tools.get_coulG(self.cell, mesh=self.mesh)
        return weight * tools.ifft(waves, self.mesh).real.reshape(density.shape)

    def _densities(
        self, cell: Any, grids: Any, dms: Sequence[Any], with_tau: bool, settings: Settings
    ) -> Inexact[np.ndarray, "spin set ingredient grid"]:
        kpts = k_points(settings.kpts)
        matrices = self._matrices(cell, dms)
        if settings.hermi == 1:
            return self._densities_of_hermitian(matrices, kpts, with_tau)
        parts = self._hermitian_parts(matrices)
        if np.isrealobj(matrices) and not kpts.any():
            parts = parts[:1]  # the other one has no density
        densities = [
            factor * self._densities_of_hermitian(part, kpts, with_tau) for factor, part in parts
        ]
        return np.sum(densities, axis=0)

    def _densities_of_hermitian(
        self,
        dms: Inexact[np.ndarray, "spin set kpt ao ao"],
        kpts: Float[np.ndarray, "kpt xyz"],
        with_tau: bool,
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        density = _density_waves(self, dms, kpts)
        rows = [density, *(1j * g * density for g in self.cell.get_Gv(self.mesh).T)]
        if with_tau:
            basis, of_gradients = self._of_gradients
            kinetic = sum(d @ dms @ d.T for d in basis.derivatives) / 2
            rows.append(_density_waves(of_gradients, kinetic, kpts))
        waves = np.stack(rows, axis=2)
        weight = self.cell.vol / np.prod(self.mesh)  # of a point, that PySCF's waves have
        values = tools.ifft(waves.reshape(-1, waves.shape[-1]), self.mesh).real / weight
        return values.reshape(waves.shape)

    def _potential_matrices(
        self,
        cell: Any,
        grids: Any,
        potential: Inexact[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> np.ndarray:
        if np.iscomplexobj(potential):
            real = self._potential_matrices(cell, grids, potential.real, settings)
            return real + 1j * self._potential_matrices(cell, grids, potential.imag, settings)
        one_band = settings.kpts_band is None
        bands = k_points(settings.kpts if one_band else settings.kpts_band)
        flat = potential.reshape(-1, potential.shape[-1])
        waves = tools.fft(flat, self.mesh).reshape(-1, *potential.shape[2:])
        by_density = waves[:, 0] - 1j * np.einsum(
            "sxw,wx->sw", waves[:, 1:4], self.cell.get_Gv(self.mesh)
        )
        vmat = _get_j_pass2(self, by_density, 1, bands)
        if waves.shape[1] == 5:
            basis, of_gradients = self._of_gradients
            by_gradients = _get_j_pass2(of_gradients, waves[:, 4], 1, bands)
            vmat = vmat + sum(d.T @ by_gradients @ d for d in basis.derivatives) / 2
        shape = vmat.shape[1:] if self._matrix_ndim == 3 or not one_band else vmat.shape[2:]
        return vmat.reshape(*potential.shape[:2], *shape)

    @property
    def _of_gradients(self) -> tuple[GradientBasis, MultiGridNumInt]:
        """Gradients of the orbitals, and what integrates products of the Gaussians in them."""
        basis, integrator = self._gradients
        integrator.mesh = self.mesh  # which may be set at any time
        return basis, integrator

    @functools.cached_property
    def _gradients(self) -> tuple[GradientBasis, MultiGridNumInt]:
        basis = gradient_basis(self.cell)
        return basis, MultiGridNumInt(basis.cell)


class CiderMultiGridNumInt(LearnedMultiGridNumInt):
    """At one k-point."""

    _matrix_ndim = 2


class CiderKMultiGridNumInt(LearnedMultiGridNumInt):
    """At several k-points."""

    _matrix_ndim = 3


def _density_waves(
    integrator: MultiGridNumInt,
    dms: Inexact[np.ndarray, "spin set kpt ao ao"],
    kpts: Float[np.ndarray, "kpt xyz"],
) -> Complex[np.ndarray, "spin set wave"]:
    """Fourier transform of the densities of Hermitian matrices, times the weight of a point."""
    waves = _eval_rhoG(integrator, dms.reshape(-1, *dms.shape[2:]), 1, kpts, deriv=0)
    return waves[:, 0].reshape(*dms.shape[:2], -1)
