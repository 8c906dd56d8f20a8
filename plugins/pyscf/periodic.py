"""Energy, electron number and potential matrix of a learned functional in periodic cells."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pyscf.pbc.dft import numint
from pyscf.pbc.dft.gen_grid import UniformGrids

from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.features.periodic_grid import periodic_convolution
from cider.functional import CiderFunctional
from cider.plugins.pyscf.learned_numint import LearnedNumInt
from cider.plugins.pyscf.libxc import needs_tau


class _Settings(NamedTuple):
    """What PySCF passes on behind the density matrices, in its order."""

    relativity: int = 0
    hermi: int = 1
    kpts: Any = None
    kpts_band: Any = None
    max_memory: float = 2000
    verbose: Any = None


class LearnedPeriodicNumInt(LearnedNumInt):
    """What integrations at one k-point and at several have in common."""

    def nr_rks(
        self, cell: Any, grids: Any, xc_code: Any, dms: Any, *settings: Any, **named: Any
    ) -> tuple[Any, Any, np.ndarray]:
        """Electron number and energy (Ha) per cell, and potential matrix, for closed shells.

        Arguments and shapes as in PySCF. Raises ``NotImplementedError`` for what the uniform grids
        of three-dimensional crystals do not cover, ``ValueError`` for a broken density matrix.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks(cell, grids, xc_code, dms, *settings, **named)
        all_settings = _Settings(*settings, **named)
        nelec, exc, vmat = self._integrate(cell, grids, xc_code, (dms,), all_settings)
        if len(exc) == 1:
            return nelec[0, 0], exc[0], vmat[0, 0]
        return nelec[0], exc, vmat[0]

    def nr_uks(
        self, cell: Any, grids: Any, xc_code: Any, dms: Any, *settings: Any, **named: Any
    ) -> tuple[Any, Any, np.ndarray]:
        """As ``nr_rks``, for a pair of density matrices."""
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_uks(cell, grids, xc_code, dms, *settings, **named)
        all_settings, dms = _Settings(*settings, **named), numint._format_uks_dm(dms)
        nelec, exc, vmat = self._integrate(cell, grids, xc_code, dms, all_settings)
        if len(exc) == 1:
            return nelec[:, 0], exc[0], vmat[:, 0]
        return nelec, exc, vmat

    def _integrate(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: _Settings,
    ) -> tuple[Float[np.ndarray, "spin set"], Float[np.ndarray, " set"], np.ndarray]:
        """All of the above, with a spin axis in front; ``dms`` has one entry per spin."""
        _require_crystal_grid(cell, grids, functional)
        level = "MGGA" if needs_tau(functional) else "GGA"
        evaluators = [self._gen_rho_evaluator(cell, dm, settings.hermi, False) for dm in dms]
        _, num_sets, nao = evaluators[0]

        def blocks() -> Any:
            start = 0
            where = settings.kpts, settings.kpts_band, settings.max_memory
            for ao_band, ao, mask, weights, _ in self.block_loop(cell, grids, nao, 1, *where):
                yield slice(start, start + len(weights)), ao_band, ao, mask
                start += len(weights)

        size = len(grids.weights)
        rho = np.empty((len(dms), num_sets, 5 if level == "MGGA" else 4, size))
        for points, _, ao, mask in blocks():
            for spin, index in np.ndindex(rho.shape[:2]):
                own = evaluators[spin][0](index, ao, mask, level)
                rho[spin, index][:, points] = own.real
        if not np.isfinite(rho).all():
            raise ValueError(
                "the density contains NaN or infinity: start the SCF from another guess, or check "
                "what produced its density matrix"
            )
        exc, potential = self._energies_and_potentials(cell, grids, functional, rho)

        vmat: dict[tuple[int, ...], Any] = dict.fromkeys(np.ndindex(rho.shape[:2]), 0)
        for points, ao_band, _, mask in blocks():
            for spin, index in vmat:
                own = potential[spin, index][:, points].copy()  # PySCF scales it in place
                vmat[spin, index] += self._vxc_mat(
                    cell, ao_band, own, mask, level, (0, cell.nbas), cell.ao_loc, 1
                )
        matrices = np.reshape(list(vmat.values()), (*rho.shape[:2], *vmat[0, 0].shape))
        matrices = matrices + matrices.conj().swapaxes(-1, -2)
        return rho[:, :, 0] @ grids.weights, exc, matrices

    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        return periodic_convolution(
            mol.lattice_vectors(),
            grids.mesh,
            nldf.source_ladder.exponents,
            nldf.target_ladder.exponents,
        )


class CiderPeriodicNumInt(LearnedPeriodicNumInt, numint.NumInt):
    """PySCF's integration at one k-point, also of a ``CiderFunctional``."""

    def _integrate(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: _Settings,
    ) -> tuple[Float[np.ndarray, "spin set"], Float[np.ndarray, " set"], np.ndarray]:
        if settings.kpts_band is None:
            return super()._integrate(cell, grids, functional, dms, settings)
        kpts = np.reshape(np.zeros(3) if settings.kpts is None else settings.kpts, (1, 3))
        dms = [np.reshape(dm, (-1, 1, *np.shape(dm)[-2:])) for dm in dms]
        one_of_several = settings._replace(kpts=kpts)
        return CiderKNumInt()._integrate(cell, grids, functional, dms, one_of_several)


class CiderKNumInt(LearnedPeriodicNumInt, numint.KNumInt):
    """PySCF's integration at several k-points, also of a ``CiderFunctional``."""


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
