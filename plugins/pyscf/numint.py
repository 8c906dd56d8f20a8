"""Energy, electron number and potential matrix of a learned functional on PySCF's grids."""

import abc
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pyscf import lib
from pyscf.dft import numint
from threadpoolctl import threadpool_limits

from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.functional import CiderFunctional
from cider.plugins.pyscf.atomic_orbitals import ao_blocks
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.libxc import (
    LibxcWithCider,
    libxc_energy_and_potential,
    libxc_energy_density,
    needs_tau,
)
from cider.plugins.pyscf.response import XCKernel, add_density, density_of

NEGATIVE_CHARGE_LIMIT = 1e-2
"""Electrons of negative density that a density matrix may have.

Rounding leaves 1e-10 or less. Negative density carries no energy, so that a density matrix with
more of it than this would get a wrong one.
"""

ROUNDING = 1e-14
"""Eigenvalues of a density matrix below this fraction of the largest are left out.

The energy of so small a change of the matrix is below 1e-11 Ha.
"""


class LearnedNumInt:
    """In front of a numerical integration of PySCF: what learned functionals need of all.

    It collects the density on the whole grid before the functional sees it, as nonlocal features
    need. The linear map of those features depends on the grid alone and is kept until it changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._convolution: tuple[Any, GaussianConvolution] | None = None

    @property
    def libxc(self) -> LibxcWithCider:
        """What answers PySCF's questions about a functional."""
        return LibxcWithCider()

    @libxc.setter
    def libxc(self, library: Any) -> None:
        raise NotImplementedError(
            f"a CiderFunctional takes its remainder from libxc, not from {library}: "
            "assign a string to mf.xc before choosing another library"
        )

    @property
    def omega(self) -> None:
        """No range separation."""
        return None

    @omega.setter
    def omega(self, omega: float | None) -> None:
        if omega is not None:
            raise NotImplementedError(
                f"range separation (omega={omega}) is not available with a learned functional: "
                "assign a string to mf.xc first"
            )

    def reset(self, mol: Any = None) -> "LearnedNumInt":
        """Forget the convolution of the last grid."""
        self._convolution = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {**state, "_convolution": None}

    def _energy_and_potential(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        rho: Float[np.ndarray, "spin ingredient grid"],
    ) -> tuple[float, Float[np.ndarray, "spin ingredient grid"]]:
        """Energy, and its derivative by rho, grad rho and tau at each point."""
        _check_density(rho, grids.weights)
        convolution = self._convolution_for(mol, grids, functional)
        # The convolution takes as many threads as linear algebra, which PySCF does not limit.
        with threadpool_limits(lib.num_threads(), user_api="blas"):
            learned, by_density = functional.learned_energy_and_potential(
                density_of(functional, rho), grids.weights, convolution
            )
        energy, potential = libxc_energy_and_potential(functional, rho, grids.weights)
        add_density(potential, by_density)
        return energy + learned, potential

    def _convolution_for(
        self, mol: Any, grids: Any, functional: CiderFunctional
    ) -> GaussianConvolution | None:
        """What the nonlocal features of a functional need, if it has any."""
        nldf = functional.learned.descriptors.nldf
        return None if nldf is None else self._convolution_of(mol, grids, nldf)

    def _convolution_of(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        key = _fingerprint(mol, grids, nldf)
        if self._convolution is None or self._convolution[0] != key:
            self._convolution = None  # before the new one takes its memory
            self._convolution = (key, self._build_convolution(mol, grids, nldf))
        return self._convolution[1]

    @abc.abstractmethod
    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        """The convolution of a grid."""


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
        matrices = _matrices(mol, (dm,) if np.ndim(dm) == 2 else tuple(dm))
        if grids.coords is None:
            grids.build(with_non0tab=True)
        rho = _densities(mol, grids, matrices, needs_tau(xc_code), max_memory)[:, 0]
        _check_density(rho, grids.weights)
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
        if not isinstance(fxc, XCKernel):
            raise TypeError(
                f"fxc of {functional} is no function of a point: pass on what cache_xc_kernel "
                f"returns, not {type(fxc).__name__}"
            )
        return fxc

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
        matrices = _matrices(mol, dms)
        if grids.coords is None:
            grids.build(with_non0tab=True)
        rho = _densities(mol, grids, matrices, needs_tau(functional), max_memory)
        potential = np.empty_like(rho)
        exc = np.empty(rho.shape[1])
        for i in range(rho.shape[1]):
            exc[i], potential[:, i] = self._energy_and_potential(mol, grids, functional, rho[:, i])
        vmat = _potential_matrices(mol, grids, potential, max_memory)
        return rho[:, :, 0] @ grids.weights, exc, vmat

    def density_and_potential(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        max_memory: float,
    ) -> tuple[
        Float[np.ndarray, "spin ingredient grid"],
        Float[np.ndarray, "spin ingredient grid"],
    ]:
        """rho, grad rho and tau of one density matrix per spin, and the derivative by them.

        Raises as ``nr_rks``.
        """
        for dm in dms:
            _check_density_matrix(mol, dm)
        matrices = np.stack(dms)[:, None]
        rho = _densities(mol, grids, matrices, needs_tau(functional), max_memory)[:, 0]
        return rho, self._energy_and_potential(mol, grids, functional, rho)[1]

    def grid_derivative(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        rho: Float[np.ndarray, "spin ingredient grid"],
    ) -> tuple[Float[np.ndarray, " grid"], Float[np.ndarray, "atom xyz"]]:
        """Derivative of the energy by the quadrature weights, and by the centres of features.

        What the densities at the points do, and the weights, is another matter.
        """
        convolution = self._convolution_for(mol, grids, functional)
        with threadpool_limits(lib.num_threads(), user_api="blas"):
            learned = functional.learned_grid_derivative(
                density_of(functional, rho), grids.weights, convolution
            )
        by_centers = np.zeros((mol.natm, 3))
        if learned.centers is not None:
            by_centers[np.unique(grids.atm_idx[grids.atm_idx >= 0])] = learned.centers
        return learned.weights + libxc_energy_density(functional, rho), by_centers

    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        return becke_convolution(mol, grids, nldf)


def _fingerprint(mol: Any, grids: Any, nldf: Nldf) -> str:
    """Of all that the convolution depends on, by value: PySCF changes grids in place."""
    digest = hashlib.blake2b()
    for array in (
        mol.atom_coords(),
        grids.coords,
        grids.weights,
        nldf.source_ladder.exponents,
        nldf.target_ladder.exponents,
    ):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _max_memory(
    relativity: int = 0, hermi: int = 1, max_memory: float = 2000, verbose: Any = None
) -> float:
    """The only one of PySCF's settings (MB) that changes anything here."""
    return max_memory


def _densities(
    mol: Any,
    grids: Any,
    dms: Float[np.ndarray, "spin set ao ao"],
    with_tau: bool,
    max_memory: float,
) -> Float[np.ndarray, "spin set ingredient grid"]:
    r"""rho, grad rho and tau of density matrices.

    .. math:: \rho = \sum_k n_k \psi_k^2, \quad \nabla\rho = 2 \sum_k n_k \psi_k \nabla\psi_k,
              \quad \tau = \tfrac12 \sum_k n_k |\nabla\psi_k|^2

    The :math:`\psi_k` are eigenvectors of the matrix, few of which have an eigenvalue other than
    zero. They need no orbitals to come with it, and no trust that those are its own.
    """
    orbitals = {index: eigenvectors(dms[index]) for index in np.ndindex(dms.shape[:2])}
    rho = np.zeros((*dms.shape[:2], 5 if with_tau else 4, len(grids.weights)))
    for points, active, ao, _ in ao_blocks(mol, grids, max_memory):
        for index, (occupations, coefficients) in orbitals.items():
            psi = np.stack([lib.ddot(coefficients[:, active], component) for component in ao])
            occupied = occupations[:, None] * psi
            rho[index][:4, points] = np.einsum("kg,ckg->cg", occupied[0], psi)
            if with_tau:
                rho[index][4, points] = np.einsum("ckg,ckg->g", occupied[1:], psi[1:])
    rho[:, :, 1:4] *= 2
    rho[:, :, 4:] *= 0.5
    return rho


def eigenvectors(
    dm: Float[np.ndarray, "ao ao"],
) -> tuple[Float[np.ndarray, " orbital"], Float[np.ndarray, "orbital ao"]]:
    """Eigenvalues and eigenvectors of the symmetric part, without those that are rounding.

    Its orbitals are rows.
    """
    occupations, coefficients = np.linalg.eigh((dm + dm.T) / 2)
    size = abs(occupations)
    occupied = size > ROUNDING * size.max()
    return occupations[occupied], np.ascontiguousarray(coefficients[:, occupied].T)


def _potential_matrices(
    mol: Any,
    grids: Any,
    potential: Float[np.ndarray, "spin set ingredient grid"],
    max_memory: float,
) -> Float[np.ndarray, "spin set ao ao"]:
    r"""Derivative of the energy by each density matrix.

    .. math:: V_{ij} = \sum_g v^\rho \phi_i\phi_j + v^{\nabla\rho} \cdot \nabla(\phi_i\phi_j)
              + \tfrac12 v^\tau \nabla\phi_i \cdot \nabla\phi_j
    """
    vmat = np.zeros((*potential.shape[:2], mol.nao, mol.nao))
    # The sum with the transpose, at the end, doubles what is symmetric already.
    half = np.array([[0.5], [1], [1], [1], [0.25]])[: potential.shape[2]]
    for points, active, ao, room in ao_blocks(mol, grids, max_memory):
        by_point = ao.transpose(0, 2, 1)  # as PySCF has it
        for index in np.ndindex(potential.shape[:2]):
            v = half * potential[index][:, points]
            product = lib.ddot(ao[0], numint._scale_ao(by_point, v[:4], out=room))
            if len(v) == 5:
                for gradient in by_point[1:]:
                    scaled = numint._scale_ao(gradient, v[4], out=room)
                    _add_symmetric(product, gradient.T, scaled)
            vmat[index][np.ix_(active, active)] += product
    return vmat + vmat.swapaxes(-1, -2)


def _add_symmetric(
    total: Float[np.ndarray, "ao ao"],
    left: Float[np.ndarray, "ao grid"],
    right: Float[np.ndarray, "grid ao"],
) -> None:
    """Add ``left @ right``, a symmetric matrix, with its lower blocks added to the upper ones.

    So the sum with the transpose is right, and a third of the work is saved.
    """
    ends = np.linspace(0, len(total), 4).astype(int).tolist()
    for start, stop in itertools.pairwise(ends):
        own = slice(start, stop)
        total[own, own] += lib.ddot(left[own], right[:, own])
        if stop < len(total):
            total[own, stop:] += 2 * lib.ddot(left[own], right[:, stop:])


def _change_of_potential(
    mol: Any,
    grids: Any,
    kernel: XCKernel,
    dms: Sequence[Any],
    max_memory: float,
    triplet: bool = False,
) -> Float[np.ndarray, "spin set ao ao"]:
    """Changes of the potential matrices for changes of the density matrices, some at a time."""
    matrices = _matrices(mol, dms)
    num_spins, num_ingredients, num_points = kernel.rho.shape
    if len(matrices) != num_spins:
        raise ValueError(
            f"the kernel is that of {num_spins} spin densities, and the density matrices are those "
            f"of {len(matrices)}: give cache_xc_kernel the orbitals of each spin for nr_uks_fxc"
        )
    vmat = np.empty_like(matrices)
    together = max(1, int(1e6 * max_memory / (8 * num_spins * num_ingredients * num_points)))
    for start in range(0, matrices.shape[1], together):
        part = slice(start, start + together)
        rho = _densities(mol, grids, matrices[:, part], num_ingredients == 5, max_memory)
        for i in range(rho.shape[1]):
            rho[:, i] = kernel.potential(rho[:, i], triplet)
        vmat[:, part] = _potential_matrices(mol, grids, rho, max_memory)
    return vmat


def _matrices(mol: Any, dms: Sequence[Any]) -> Float[np.ndarray, "spin set ao ao"]:
    """One density matrix or several of each spin, once they are known to make sense."""
    for dm in dms:
        _check_density_matrix(mol, dm)
    return np.stack([np.reshape(dm, (-1, mol.nao, mol.nao)) for dm in dms])


def _check_density_matrix(mol: Any, dm: Any) -> None:
    dm = np.asarray(dm)
    if np.iscomplexobj(dm) or dm.shape[-1] != mol.nao:
        raise NotImplementedError(
            f"a learned functional needs real density matrices over the {mol.nao} orbitals of the "
            f"molecule, not {dm.dtype} of shape {dm.shape}: GKS, DKS and complex orbitals are not "
            "available yet, and the orbitals of another molecule or basis must be projected first"
        )
    if not np.isfinite(dm).all():
        raise ValueError(
            "the density matrix contains NaN or infinity: start the SCF from another guess, "
            "such as mf.kernel(mf.get_init_guess(key='minao')), or check what produced it"
        )


def _check_density(
    rho: Float[np.ndarray, "spin ingredient grid"], weights: Float[np.ndarray, " grid"]
) -> None:
    negative = -float(np.sum(weights * np.minimum(rho[:, 0], 0.0)))
    if negative > NEGATIVE_CHARGE_LIMIT:
        raise ValueError(
            f"the density is negative over {negative:.3g} electrons: the density matrix belongs "
            "to no electronic state; start the SCF from another guess or check what produced it"
        )
