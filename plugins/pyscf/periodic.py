"""Energy, potential and response matrices of a learned functional in periodic cells."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Inexact
from pyscf.pbc.dft import numint
from pyscf.pbc.dft.gen_grid import UniformGrids
from pyscf.pbc.lib.kpts import KPoints

from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.features.periodic_grid import periodic_convolution
from cider.functional import CiderFunctional
from cider.plugins.pyscf.learned_numint import LearnedNumInt, check_density
from cider.plugins.pyscf.libxc import needs_tau
from cider.plugins.pyscf.periodic_densities import Settings, densities, potential_matrices
from cider.plugins.pyscf.response import XCKernel, checked_kernel


class _KernelSettings(NamedTuple):
    """What PySCF passes on behind the orbitals, in its order."""

    spin: int = 0
    kpts: Any = None
    max_memory: float = 2000


_AnySettings = TypeVar("_AnySettings", Settings, _KernelSettings)


class LearnedPeriodicNumInt(LearnedNumInt):
    """What integrations at one k-point and at several have in common."""

    _matrix_ndim: int
    """Axes of a density matrix."""

    def nr_rks(
        self, cell: Any, grids: Any, xc_code: Any, dms: Any, *settings: Any, **named: Any
    ) -> tuple[Any, Any, np.ndarray]:
        """Electron number and energy (Ha) per cell, and potential matrix, for closed shells.

        Arguments and shapes as in PySCF. Raises ``NotImplementedError`` for what the uniform grids
        of three-dimensional crystals do not cover, ``ValueError`` for a broken density matrix.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks(cell, grids, xc_code, dms, *settings, **named)
        all_settings = _read(Settings, settings, named)
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
        all_settings, dms = _read(Settings, settings, named), numint._format_uks_dm(dms)
        nelec, exc, vmat = self._integrate(cell, grids, xc_code, dms, all_settings)
        if len(exc) == 1:
            return nelec[:, 0], exc[0], vmat[:, 0]
        return nelec, exc, vmat

    def cache_xc_kernel(
        self,
        cell: Any,
        grids: Any,
        xc_code: Any,
        mo_coeff: Any,
        mo_occ: Any,
        *settings: Any,
        **named: Any,
    ) -> tuple[Any, Any, Any]:
        """As in PySCF: the third entry is what the methods ``nr_*_fxc`` take as ``fxc``.

        Of a learned functional that is an ``XCKernel``, and the others are None.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().cache_xc_kernel(
                cell, grids, xc_code, mo_coeff, mo_occ, *settings, **named
            )
        dm = _density_matrix(mo_coeff, mo_occ)
        return self.cache_xc_kernel1(cell, grids, xc_code, dm, *settings, **named)

    def cache_xc_kernel1(
        self, cell: Any, grids: Any, xc_code: Any, dm: Any, *settings: Any, **named: Any
    ) -> tuple[Any, Any, Any]:
        """The same from a density matrix, or a pair of them."""
        if not isinstance(xc_code, CiderFunctional):
            return super().cache_xc_kernel1(cell, grids, xc_code, dm, *settings, **named)
        _, kpts, max_memory = _read(_KernelSettings, settings, named)
        dms = (dm,) if np.ndim(dm) == self._matrix_ndim else tuple(dm)
        where = Settings(kpts=kpts, max_memory=max_memory)
        rho = self._real_densities(cell, grids, xc_code, dms, where)[:, 0]
        check_density(rho, grids.weights)
        convolution = self._convolution_for(cell, grids, xc_code)
        return None, None, XCKernel(xc_code, rho, grids.weights, convolution)

    def nr_rks_fxc(
        self,
        cell: Any,
        grids: Any,
        xc_code: Any,
        dm0: Any,
        dms: Any,
        relativity: int = 0,
        hermi: int = 0,
        rho0: Any = None,
        vxc: Any = None,
        fxc: Any = None,
        kpts: Any = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """Change of the potential matrix of a closed shell, for changes of its density matrix.

        Arguments and shapes as in PySCF. Raises as ``nr_rks``, and ``TypeError`` for an ``fxc``
        that did not come from ``cache_xc_kernel``.
        """
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks_fxc(
                cell, grids, xc_code, dm0, dms, relativity, hermi, rho0, vxc, fxc, kpts, max_memory
            )
        where = Settings(hermi=hermi, kpts=kpts, max_memory=max_memory)
        kernel = self._kernel(cell, grids, xc_code, dm0, fxc, where)
        vmat = self._change_of_potential(cell, grids, kernel, (dms,), where)
        return vmat[0].reshape(np.shape(dms))

    def nr_rks_fxc_st(
        self,
        cell: Any,
        grids: Any,
        xc_code: Any,
        dm0: Any,
        dms_alpha: Any,
        hermi: int = 0,
        singlet: bool = True,
        rho0: Any = None,
        vxc: Any = None,
        fxc: Any = None,
        kpts: Any = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """That of spin up, where spin down changes alike (singlet) or by the opposite (triplet)."""
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_rks_fxc_st(
                cell,
                grids,
                xc_code,
                dm0,
                dms_alpha,
                hermi,
                singlet,
                rho0,
                vxc,
                fxc,
                kpts,
                max_memory,
            )
        where = Settings(hermi=hermi, kpts=kpts, max_memory=max_memory)
        kernel = self._kernel(cell, grids, xc_code, dm0, fxc, where)
        vmat = self._change_of_potential(
            cell, grids, kernel, (dms_alpha,), where, triplet=not singlet
        )
        return 2 * vmat[0].reshape(np.shape(dms_alpha))

    def nr_uks_fxc(
        self,
        cell: Any,
        grids: Any,
        xc_code: Any,
        dm0: Any,
        dms: Any,
        relativity: int = 0,
        hermi: int = 0,
        rho0: Any = None,
        vxc: Any = None,
        fxc: Any = None,
        kpts: Any = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """As ``nr_rks_fxc``, for a pair of density matrices (or of lists of them)."""
        if not isinstance(xc_code, CiderFunctional):
            return super().nr_uks_fxc(
                cell, grids, xc_code, dm0, dms, relativity, hermi, rho0, vxc, fxc, kpts, max_memory
            )
        where = Settings(hermi=hermi, kpts=kpts, max_memory=max_memory)
        kernel = self._kernel(cell, grids, xc_code, dm0, fxc, where)
        vmat = self._change_of_potential(cell, grids, kernel, tuple(dms), where)
        return vmat.reshape(np.shape(dms))

    def _kernel(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dm0: Any,
        fxc: Any,
        settings: Settings,
    ) -> XCKernel:
        """``fxc``, or that of a density matrix."""
        if fxc is None:
            where = {"kpts": settings.kpts, "max_memory": settings.max_memory}
            fxc = self.cache_xc_kernel1(cell, grids, functional, dm0, **where)[2]
        return checked_kernel(functional, fxc)

    def _integrate(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> tuple[Float[np.ndarray, "spin set"], Float[np.ndarray, " set"], np.ndarray]:
        """All of the above, with a spin axis in front; ``dms`` has one entry per spin."""
        rho = self._real_densities(cell, grids, functional, dms, settings)
        exc, potential = self._energies_and_potentials(cell, grids, functional, rho)
        vmat = potential_matrices(self, cell, grids, potential, settings)
        return rho[:, :, 0] @ grids.weights, exc, vmat

    def potential(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        kpts: Any,
        max_memory: float,
    ) -> Float[np.ndarray, "spin ingredient grid"]:
        """Derivative of the energy by rho, grad rho and tau at each point; raises as ``nr_rks``."""
        where = Settings(kpts=kpts, max_memory=max_memory)
        rho = self._real_densities(cell, grids, functional, dms, where)[:, 0]
        return self._energy_and_potential(cell, grids, functional, rho)[1]

    def _real_densities(
        self,
        cell: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        """Those of states; raises where the grid or the density matrices make no sense."""
        _require_crystal_grid(cell, grids, functional)
        rho = densities(self, cell, grids, dms, settings, needs_tau(functional)).real
        if not np.isfinite(rho).all():
            raise ValueError(
                "the density contains NaN or infinity: start the SCF from another guess, or check "
                "what produced its density matrix"
            )
        return rho

    def _change_of_potential(
        self,
        cell: Any,
        grids: Any,
        kernel: XCKernel,
        dms: Sequence[Any],
        settings: Settings,
        triplet: bool = False,
    ) -> np.ndarray:
        """Changes of the potential matrices for changes of the density matrices, some at a time."""
        kernel.require_spins(len(dms))
        lists = [np.reshape(dm, (-1, *np.shape(dm)[-self._matrix_ndim :])) for dm in dms]
        together = max(1, int(1e6 * settings.max_memory / (16 * kernel.rho.size)))
        vmat = []
        for start in range(0, len(lists[0]), together):
            some = [own[start : start + together] for own in lists]
            rho = densities(self, cell, grids, some, settings, kernel.rho.shape[1] == 5)
            for i in range(rho.shape[1]):
                rho[:, i] = _potential_of(kernel, rho[:, i], triplet)
            vmat.append(potential_matrices(self, cell, grids, rho, settings))
        return np.concatenate(vmat, axis=1)

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


def _read(
    kind: type[_AnySettings], settings: tuple[Any, ...], named: dict[str, Any]
) -> _AnySettings:
    """PySCF's arguments; where there is one k-point, it calls it ``kpt``."""
    return kind(*settings, **{"kpts" if key == "kpt" else key: x for key, x in named.items()})


def _density_matrix(mo_coeff: Any, mo_occ: Any) -> np.ndarray:
    """At one k-point or several, of one spin or two, with the axes of the orbitals."""
    if np.ndim(mo_occ[0]) == 0:
        return (mo_coeff * mo_occ) @ mo_coeff.conj().T
    return np.stack([_density_matrix(c, n) for c, n in zip(mo_coeff, mo_occ, strict=True)])


def _potential_of(
    kernel: XCKernel, rho: Inexact[np.ndarray, "spin ingredient grid"], triplet: bool
) -> Inexact[np.ndarray, "spin ingredient grid"]:
    """Change of the potential for a change of the density, which may be complex."""
    if np.isrealobj(rho):
        return kernel.potential(rho, triplet)
    return kernel.potential(rho.real, triplet) + 1j * kernel.potential(rho.imag, triplet)


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
