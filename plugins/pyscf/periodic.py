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
from cider.functional import CiderFunctional
from cider.plugins.pyscf.learned_numint import LearnedNumInt, Settings
from cider.plugins.pyscf.libxc import needs_tau
from cider.plugins.pyscf.periodic_densities import densities, potential_matrices


class LearnedPeriodicNumInt(LearnedNumInt):
    """What integrations at one k-point and at several have in common."""

    def _densities_of_states(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        _require_crystal_grid(mol, grids, functional)
        rho = self._densities(mol, grids, dms, needs_tau(functional), settings).real
        if not np.isfinite(rho).all():
            raise ValueError(
                "the density contains NaN or infinity: start the SCF from another guess, or check "
                "what produced its density matrix"
            )
        return rho

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
        kpts = np.reshape(np.zeros(3) if settings.kpts is None else settings.kpts, (1, 3))
        dms = [np.reshape(dm, (-1, 1, *np.shape(dm)[-2:])) for dm in dms]
        one_of_several = settings._replace(kpts=kpts)
        return CiderKNumInt()._integrate(cell, grids, functional, dms, one_of_several)


class CiderKNumInt(LearnedPeriodicNumInt, numint.KNumInt):
    """PySCF's integration at several k-points, also of a ``CiderFunctional``.

    Where symmetry leaves some of them, density matrices are those of the irreducible ones.
    """

    _matrix_ndim = 3

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


def _require_crystal_grid(cell: Any, grids: Any, functional: CiderFunctional) -> None:
    if functional.learned.descriptors.nldf is None:
        return
    if not isinstance(grids, UniformGrids):
        raise NotImplementedError(
            f"{functional} has nonlocal features, which need uniform grids in a periodic cell, not "
            f"{type(grids).__name__} (density_fit() chooses those): set "
            "mf.grids = pyscf.pbc.dft.UniformGrids(cell)"
        )
    if cell.dimension != 3:
        raise NotImplementedError(
            f"{functional} has nonlocal features, which are periodic in three dimensions, not in "
            f"{cell.dimension}: put the molecule or slab into a cell of dimension 3 with vacuum"
        )


def require_all_k_points(mf: Any, feature: str) -> None:
    """Raise ``NotImplementedError`` where symmetry leaves some of the k-points out."""
    if isinstance(mf.kpts, KPoints):
        raise NotImplementedError(
            f"{feature} of irreducible k-points is not available with {mf.xc}: take mf.to_khf(), "
            "which has all k-points"
        )
