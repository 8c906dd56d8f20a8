"""Numerical integration of a learned functional in periodic cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Inexact
from pyscf.pbc.dft import numint
from pyscf.pbc.dft.gen_grid import UniformGrids
from pyscf.pbc.lib.kpts import KPoints

from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.features.periodic_grid import periodic_convolution
from cider.features.sdmx import Sdmx
from cider.functional import CiderFunctional
from cider.plugins.pyscf.crystal_grids import CrystalGrids, crystal_grids_convolution
from cider.plugins.pyscf.learned_numint import LearnedNumInt, Settings
from cider.plugins.pyscf.periodic_densities import densities, potential_matrices
from cider.plugins.pyscf.periodic_smoothed_density_matrix import PeriodicSmoothing


class LearnedPeriodicNumInt(LearnedNumInt):
    """What integrations at one k-point and at several have in common.

    Where symmetry leaves some k-points out, density matrices are those of the irreducible ones.
    """

    def _integrate(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> tuple[Float[np.ndarray, "spin set"], Float[np.ndarray, " set"], np.ndarray]:
        if isinstance(settings.kpts, KPoints):
            dms = [settings.kpts.transform_dm(dm) for dm in dms]
            settings = settings._replace(kpts=settings.kpts.kpts)
        return super()._integrate(cell, grids, functional, dms, settings)

    def _require_grid(self, mol: Any, grids: Any, functional: CiderFunctional) -> None:
        if isinstance(grids, CrystalGrids) and grids.coords is None:
            grids.build(with_non0tab=True)
        _require_crystal_grid(mol, grids, functional)

    def _matrices(self, mol: Any, dms: Sequence[Any]) -> Inexact[np.ndarray, "spin set kpt ao ao"]:
        kpts = (1,) if self._matrix_ndim == 2 else np.shape(dms[0])[-3:-2]
        return np.stack([np.reshape(dm, (-1, *kpts, mol.nao, mol.nao)) for dm in dms])

    def _sdmx_features(
        self,
        mol: Any,
        grids: Any,
        sdmx: Sdmx,
        dms: Inexact[np.ndarray, "spin set kpt ao ao"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set feature grid"]:
        return PeriodicSmoothing(mol, grids, sdmx, k_points(settings.kpts)).features(dms)

    def _sdmx_potential_matrices(
        self,
        mol: Any,
        grids: Any,
        sdmx: Sdmx,
        dms: Inexact[np.ndarray, "spin set kpt ao ao"],
        by_features: Inexact[np.ndarray, "spin set feature grid"],
        settings: Settings,
    ) -> np.ndarray:
        kpts = k_points(settings.kpts)
        bands = kpts if settings.kpts_band is None else k_points(settings.kpts_band)
        smoothing = PeriodicSmoothing(mol, grids, sdmx, kpts)
        shape = *dms.shape[:2], len(bands), *dms.shape[-2:]
        vmat = np.zeros(shape, complex)
        for factor, own in self._hermitian_parts(dms):
            for unit, part in ((1, by_features.real), (1j, by_features.imag)):
                if part.any():
                    vmat += factor * unit * smoothing.potential_matrices(own, part, bands)
        if self._matrix_ndim == 3:
            return vmat
        real = np.isrealobj(dms) and np.isrealobj(by_features) and not np.any(bands)
        return vmat[:, :, 0].real if real else vmat[:, :, 0]

    def _hermitian_parts(
        self, matrices: Inexact[np.ndarray, "spin set kpt ao ao"]
    ) -> Sequence[tuple[complex, np.ndarray]]:
        hermitian = (matrices + matrices.conj().swapaxes(-1, -2)) / 2
        rest = -1j * (matrices - hermitian)
        return [(1, hermitian), (1j, rest)] if rest.any() else [(1, hermitian)]

    def _densities(
        self, mol: Any, grids: Any, dms: Sequence[Any], with_tau: bool, settings: Settings
    ) -> Inexact[np.ndarray, "spin set ingredient grid"]:
        return densities(self, mol, grids, dms, settings, with_tau)

    def _potential_matrices(
        self,
        mol: Any,
        grids: Any,
        potential: Inexact[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> np.ndarray:
        return potential_matrices(self, mol, grids, potential, settings)

    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        if isinstance(grids, CrystalGrids):
            return crystal_grids_convolution(mol, grids, nldf)
        return periodic_convolution(
            mol.lattice_vectors(),
            grids.mesh,
            nldf.source_ladder.exponents,
            nldf.target_ladder.exponents,
        )


class CiderPeriodicNumInt(LearnedPeriodicNumInt, numint.NumInt):
    """PySCF's integration at one k-point, also of a ``CiderFunctional``."""

    _matrix_ndim = 2

    def _integrate(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> tuple[Float[np.ndarray, "spin set"], Float[np.ndarray, " set"], np.ndarray]:
        if settings.kpts_band is None:
            return super()._integrate(cell, grids, functional, dms, settings)
        kpts = k_points(settings.kpts)
        dms = [np.reshape(dm, (-1, 1, *np.shape(dm)[-2:])) for dm in dms]
        one_of_several = settings._replace(kpts=kpts)
        return CiderKNumInt()._integrate(cell, grids, functional, dms, one_of_several)


class CiderKNumInt(LearnedPeriodicNumInt, numint.KNumInt):
    """PySCF's integration at several k-points, also of a ``CiderFunctional``."""

    _matrix_ndim = 3


def _require_crystal_grid(cell: Any, grids: Any, functional: CiderFunctional) -> None:
    descriptors = functional.learned.descriptors
    if descriptors.sdmx is not None and not isinstance(grids, UniformGrids):
        raise NotImplementedError(
            f"{functional} reads the density matrix, which needs uniform grids in a periodic cell, "
            f"not {type(grids).__name__} (density_fit() chooses those): set "
            "mf.grids = pyscf.pbc.dft.UniformGrids(cell)"
        )
    if descriptors.nldf is not None and not isinstance(grids, UniformGrids | CrystalGrids):
        raise NotImplementedError(
            f"{functional} has nonlocal features, which need uniform grids or whole atomic shells "
            f"in a periodic cell, not {type(grids).__name__}: take "
            "pyscf.pbc.dft.UniformGrids(cell), or cider.plugins.pyscf.crystal_grids."
            "CrystalGrids(cell), which an assignment to mf.grids makes of BeckeGrids"
        )
    if descriptors.nldf is None and descriptors.sdmx is None:
        return
    if cell.dimension != 3:
        raise NotImplementedError(
            f"{functional} has nonlocal features, which are periodic in three dimensions, not in "
            f"{cell.dimension}: put the molecule or slab into a cell of dimension 3 with vacuum"
        )


def k_points(kpts: Any) -> Float[np.ndarray, "kpt xyz"]:
    """One k-point or several; the origin where PySCF passes none (1/bohr)."""
    return np.reshape(np.zeros(3) if kpts is None else kpts, (-1, 3))


def require_all_k_points(mf: Any, feature: str) -> None:
    """Raise ``NotImplementedError`` where symmetry leaves some of the k-points out."""
    if isinstance(mf.kpts, KPoints):
        raise NotImplementedError(
            f"{feature} of irreducible k-points is not available with {mf.xc}: take mf.to_khf(), "
            "which has all k-points"
        )
