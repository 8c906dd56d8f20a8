"""Energy, potential and response matrices of a learned functional, for any grids of PySCF."""

import abc
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Inexact
from pyscf.dft.numint import _format_uks_dm

from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.features.sdmx import Sdmx
from cider.functional import CiderFunctional
from cider.plugins.pyscf.learned_part import add_density, density_of, threads_of_pyscf
from cider.plugins.pyscf.libxc import (
    LibxcWithCider,
    libxc_energy_density_and_potential,
    needs_tau,
    num_ingredients,
)
from cider.plugins.pyscf.response import XCKernel, checked_kernel

NEGATIVE_CHARGE_LIMIT = 1e-2
"""Electrons of negative density that a density matrix may have.

Rounding leaves 1e-10 or less. Negative density carries no energy, so that a density matrix with
more of it than this would get a wrong one.
"""


_OTHER_NAMES = {"dm_kpts": "dms"}
"""Of arguments, in PySCF's multigrid integration."""


class Settings(NamedTuple):
    """What changes anything here, of all that PySCF passes on behind the density matrices.

    ``hermi`` and k-points matter in cells alone; ``max_memory`` in MB.
    """

    hermi: int = 1
    kpts: Any = None
    kpts_band: Any = None
    max_memory: float = 2000

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Settings":
        """From arguments by name; where there is one k-point, PySCF calls it ``kpt``."""
        named = {**given, **given.get("kwargs", {})}
        if named.get("kpts") is None:
            named["kpts"] = named.get("kpt")
        return cls(**{name: named[name] for name in cls._fields if name in named})


def _of_learned(method: Callable[..., Any]) -> Callable[..., Any]:
    """Leave to PySCF what is no ``CiderFunctional``, and read the arguments of what is.

    PySCF's order of arguments behind the functional, and its defaults, are those of the method in
    front of which this one stands; they reach it as one mapping.
    """

    @functools.wraps(method)
    def either(
        self: "LearnedNumInt", mol: Any, grids: Any, xc_code: Any, *arguments: Any, **named: Any
    ) -> Any:
        ordinary = getattr(super(LearnedNumInt, self), method.__name__)
        if not isinstance(xc_code, CiderFunctional):
            return ordinary(mol, grids, xc_code, *arguments, **named)
        given = inspect.signature(ordinary).bind(mol, grids, xc_code, *arguments, **named)
        given.apply_defaults()
        by_name = {_OTHER_NAMES.get(name, name): value for name, value in given.arguments.items()}
        return method(self, mol, self._own_grids(grids), xc_code, by_name)

    return either


class LearnedNumInt(abc.ABC):
    """In front of a numerical integration of PySCF: what learned functionals need of all.

    It collects the density on the whole grid before the functional sees it, as nonlocal features
    need. The linear map of those features depends on the grid alone and is kept until it changes.
    """

    _matrix_ndim: int
    """Axes of a density matrix."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
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

    @_of_learned
    def nr_rks(
        self, mol: Any, grids: Any, functional: CiderFunctional, given: Mapping[str, Any]
    ) -> tuple[Any, Any, np.ndarray]:
        """Electron number, energy (Ha) and potential matrix for closed shells; per cell if any.

        Arguments and shapes as in PySCF, for one density matrix or a list of them. Of those of
        molecules, the symmetric part counts.

        Raises:
            ValueError: A density matrix is broken.
            NotImplementedError: It is a complex or spinor one of a molecule, or the grid of a cell
                is not one that nonlocal features cover.
        """
        settings = Settings.of(given)
        nelec, exc, vmat = self._integrate(mol, grids, functional, (given["dms"],), settings)
        if len(exc) == 1:  # as PySCF does, also for a list of one
            return nelec[0, 0], exc[0], vmat[0, 0]
        return nelec[0], exc, vmat[0]

    @_of_learned
    def nr_uks(
        self, mol: Any, grids: Any, functional: CiderFunctional, given: Mapping[str, Any]
    ) -> tuple[Any, Any, np.ndarray]:
        """As ``nr_rks``, for a pair of density matrices (or of lists of them)."""
        dms = _format_uks_dm(given["dms"])
        nelec, exc, vmat = self._integrate(mol, grids, functional, dms, Settings.of(given))
        if np.ndim(dms[0]) == self._matrix_ndim:
            return nelec[:, 0], exc[0], vmat[:, 0]
        return nelec, exc, vmat

    @_of_learned
    def cache_xc_kernel(
        self, mol: Any, grids: Any, functional: CiderFunctional, given: Mapping[str, Any]
    ) -> tuple[None, None, XCKernel]:
        """As in PySCF: the third entry is what the methods ``nr_*_fxc`` take as ``fxc``.

        Of a learned functional that is an ``XCKernel``, and the others are None.
        """
        dm = _density_matrix(given["mo_coeff"], given["mo_occ"])
        return None, None, self._kernel_at(mol, grids, functional, dm, Settings.of(given))

    @_of_learned
    def cache_xc_kernel1(
        self, mol: Any, grids: Any, functional: CiderFunctional, given: Mapping[str, Any]
    ) -> tuple[None, None, XCKernel]:
        """The same from a density matrix, or a pair of them."""
        settings = Settings.of(given)
        return None, None, self._kernel_at(mol, grids, functional, given["dm"], settings)

    @_of_learned
    def nr_rks_fxc(
        self, mol: Any, grids: Any, functional: CiderFunctional, given: Mapping[str, Any]
    ) -> np.ndarray:
        """Change of the potential matrix of a closed shell, for changes of its density matrix.

        Arguments and shapes as in PySCF; of the changes in molecules, the symmetric part counts.
        Raises as ``nr_rks``, and ``TypeError`` for an ``fxc`` that did not come from
        ``cache_xc_kernel``.
        """
        vmat = self._change_of_potential(mol, grids, functional, (given["dms"],), given)
        return vmat[0].reshape(np.shape(given["dms"]))

    @_of_learned
    def nr_rks_fxc_st(
        self, mol: Any, grids: Any, functional: CiderFunctional, given: Mapping[str, Any]
    ) -> np.ndarray:
        """That of spin up, where spin down changes alike (singlet) or by the opposite (triplet)."""
        dms, triplet = given["dms_alpha"], not given["singlet"]
        vmat = self._change_of_potential(mol, grids, functional, (dms,), given, triplet)
        return 2 * vmat[0].reshape(np.shape(dms))

    @_of_learned
    def nr_uks_fxc(
        self, mol: Any, grids: Any, functional: CiderFunctional, given: Mapping[str, Any]
    ) -> np.ndarray:
        """As ``nr_rks_fxc``, for a pair of density matrices (or of lists of them)."""
        dms = _format_uks_dm(given["dms"])
        vmat = self._change_of_potential(mol, grids, functional, dms, given)
        return vmat.reshape(np.shape(dms))

    def potential(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> Float[np.ndarray, "spin ingredient grid"]:
        """Derivative of the energy by rho, grad rho, tau and SDMX features of one state per spin.

        Raises as ``nr_rks``.
        """
        rho = self._densities_of_states(mol, grids, functional, dms, settings)[:, 0]
        return self._energy_and_potential(mol, grids, functional, rho)[1]

    def _own_grids(self, given: Any) -> Any:
        """Where to integrate: what PySCF passes on, but where an integration has its own."""
        return given

    def _integrate(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> tuple[Float[np.ndarray, "spin set"], Float[np.ndarray, " set"], np.ndarray]:
        """Electrons, energies and potential matrices (spin, set, ...), of one entry per spin."""
        rho = self._densities_of_states(mol, grids, functional, dms, settings)
        exc, potential = self._energies_and_potentials(mol, grids, functional, rho)
        products = [(dms, potential)]
        vmat = self._matrices_of(mol, grids, functional, potential, products, settings)
        return rho[:, :, 0] @ grids.weights, exc, vmat

    def _densities_of_states(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set ingredient grid"]:
        """What a functional reads of density matrices; raises where these make no sense."""
        self._require_grid(mol, grids, functional)
        rho = self._densities(mol, grids, dms, needs_tau(functional), settings).real
        if not np.isfinite(rho).all():
            raise ValueError(
                "the density contains NaN or infinity: start the SCF from another guess, or check "
                "what produced its density matrix"
            )
        sdmx = functional.learned.descriptors.sdmx
        if sdmx is None:
            return rho
        matrices = self._matrices(mol, dms)
        features = self._sdmx_features(mol, grids, sdmx, matrices, settings)
        return np.concatenate([rho, features], axis=2)

    def _matrices_of(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        potential: Inexact[np.ndarray, "spin set ingredient grid"],
        products: Sequence[tuple[Sequence[Any], np.ndarray]],
        settings: Settings,
    ) -> np.ndarray:
        """Of the potential; SDMX features add products of matrices and derivatives by them."""
        rows = num_ingredients(functional)
        vmat = self._potential_matrices(mol, grids, potential[:, :, :rows], settings)
        sdmx = functional.learned.descriptors.sdmx
        if sdmx is None:
            return vmat
        for dms, by_features in products:
            own = self._matrices(mol, dms), by_features[:, :, rows:]
            vmat = vmat + self._sdmx_potential_matrices(mol, grids, sdmx, *own, settings)
        return vmat

    def _kernel_at(
        self, mol: Any, grids: Any, functional: CiderFunctional, dm: Any, settings: Settings
    ) -> XCKernel:
        dms = (dm,) if np.ndim(dm) == self._matrix_ndim else tuple(dm)
        rho = self._densities_of_states(mol, grids, functional, dms, settings)[:, 0]
        check_density(rho, grids.weights)
        convolution = self._convolution_for(mol, grids, functional)
        return XCKernel(functional, rho, grids.weights, convolution, dms)

    def _change_of_potential(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        dms: Sequence[Any],
        given: Mapping[str, Any],
        triplet: bool = False,
    ) -> np.ndarray:
        """Changes of the potential matrices for changes of the density matrices, some at a time."""
        settings, fxc = Settings.of(given), given["fxc"]
        if fxc is None:
            hermitian = settings._replace(hermi=1)
            fxc = self._kernel_at(mol, grids, functional, given["dm0"], hermitian)
        kernel = checked_kernel(functional, fxc)
        kernel.require_spins(len(dms))
        lists = [np.reshape(dm, (-1, *np.shape(dm)[-self._matrix_ndim :])) for dm in dms]
        together = max(1, int(1e6 * settings.max_memory / (16 * kernel.rho.size)))
        vmat = []
        for start in range(0, len(lists[0]), together):
            some = [own[start : start + together] for own in lists]
            rho = self._changes(mol, grids, kernel, some, settings)
            for i in range(rho.shape[1]):
                rho[:, i] = kernel.potential(rho[:, i], triplet)
            vmat.append(self._changes_of_matrices(mol, grids, kernel, some, rho, settings))
        return np.concatenate(vmat, axis=1)

    def _changes(
        self, mol: Any, grids: Any, kernel: XCKernel, dms: Sequence[Any], settings: Settings
    ) -> Inexact[np.ndarray, "spin set ingredient grid"]:
        """What a functional reads of changes of the density matrices.

        SDMX features are quadratic in these, so that differences of any size are their first-order
        changes; of the size of the matrices for the sake of rounding.
        """
        rho = self._densities(mol, grids, dms, needs_tau(kernel.functional), settings)
        sdmx = kernel.functional.learned.descriptors.sdmx
        if sdmx is None:
            return rho
        unchanged = self._matrices(mol, kernel.dms)
        features = 0.0
        for factor, changes in self._hermitian_parts(self._matrices(mol, dms)):
            axes = 0, *range(2, changes.ndim)
            size = np.sqrt(np.sum(abs(changes) ** 2, axis=axes, keepdims=True))
            steps = np.linalg.norm(unchanged) / np.where(size > 0, size, 1.0)
            high, low = (
                self._sdmx_features(mol, grids, sdmx, unchanged + sign * steps * changes, settings)
                for sign in (1, -1)
            )
            features = features + factor * (high - low) / (2 * steps.reshape(1, -1, 1, 1))
        return np.concatenate([rho, features], axis=2)

    def _hermitian_parts(
        self, matrices: Inexact[np.ndarray, "spin set *kpt ao ao"]
    ) -> Sequence[tuple[complex, np.ndarray]]:
        """Factors and Hermitian matrices, whose sum these are; of molecules, what counts of it."""
        return [(1, matrices)]

    def _changes_of_matrices(
        self,
        mol: Any,
        grids: Any,
        kernel: XCKernel,
        dms: Sequence[Any],
        potential: Inexact[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> np.ndarray:
        """Changes of the derivatives by density matrices, for changes of these.

        The derivative of a quadratic form is linear in the matrix and in the form's weight.
        """
        products = []
        if kernel.functional.reads_density_matrix:
            sets = potential.shape[1]
            unchanged = [np.stack([dm] * sets) for dm in kernel.dms]
            by_unchanged = np.broadcast_to(kernel.by_state[:, None], potential.shape)
            products = [(unchanged, potential), (dms, by_unchanged)]
        return self._matrices_of(mol, grids, kernel.functional, potential, products, settings)

    def _energies_and_potentials(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        rho: Float[np.ndarray, "spin set ingredient grid"],
    ) -> tuple[Float[np.ndarray, " set"], Float[np.ndarray, "spin set ingredient grid"]]:
        """``_energy_and_potential`` of several densities."""
        exc, potential = np.empty(rho.shape[1]), np.empty_like(rho)
        for i in range(rho.shape[1]):
            exc[i], potential[:, i] = self._energy_and_potential(mol, grids, functional, rho[:, i])
        return exc, potential

    def _energy_and_potential(
        self,
        mol: Any,
        grids: Any,
        functional: CiderFunctional,
        rho: Float[np.ndarray, "spin ingredient grid"],
    ) -> tuple[float, Float[np.ndarray, "spin ingredient grid"]]:
        """Energy, and its derivative by rho, grad rho and tau at each point."""
        check_density(rho, grids.weights)
        convolution = self._convolution_for(mol, grids, functional)
        with threads_of_pyscf():
            learned, by_density = functional.learned_energy_and_potential(
                density_of(functional, rho), grids.weights, convolution
            )
        semilocal = libxc_energy_density_and_potential(functional, rho, grids.weights)
        energy_density, potential = semilocal
        add_density(potential, by_density)
        return float(grids.weights @ energy_density) + learned, potential

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
    def _require_grid(self, mol: Any, grids: Any, functional: CiderFunctional) -> None:
        """Build the grid where it is missing; raise where it does not serve the functional."""

    @abc.abstractmethod
    def _matrices(self, mol: Any, dms: Sequence[Any]) -> Inexact[np.ndarray, "spin set *kpt ao ao"]:
        """One density matrix or several of each spin; raises where these make no sense."""

    @abc.abstractmethod
    def _sdmx_features(
        self,
        mol: Any,
        grids: Any,
        sdmx: Sdmx,
        dms: Inexact[np.ndarray, "spin set *kpt ao ao"],
        settings: Settings,
    ) -> Float[np.ndarray, "spin set feature grid"]:
        """Features H of density matrices."""

    @abc.abstractmethod
    def _sdmx_potential_matrices(
        self,
        mol: Any,
        grids: Any,
        sdmx: Sdmx,
        dms: Inexact[np.ndarray, "spin set *kpt ao ao"],
        by_features: Float[np.ndarray, "spin set feature grid"],
        settings: Settings,
    ) -> np.ndarray:
        """Derivatives of an energy by these matrices, from that by their features."""

    @abc.abstractmethod
    def _densities(
        self, mol: Any, grids: Any, dms: Sequence[Any], with_tau: bool, settings: Settings
    ) -> Inexact[np.ndarray, "spin set ingredient grid"]:
        """rho, grad rho and tau of a list of density matrices of each spin, or of changes."""

    @abc.abstractmethod
    def _potential_matrices(
        self,
        mol: Any,
        grids: Any,
        potential: Inexact[np.ndarray, "spin set ingredient grid"],
        settings: Settings,
    ) -> np.ndarray:
        """Derivatives of the energy by each density matrix: its axes behind (spin, set)."""

    @abc.abstractmethod
    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        """The convolution of a grid."""


def _density_matrix(mo_coeff: Any, mo_occ: Any) -> np.ndarray:
    """At one k-point or several, of one spin or two, with the axes of the orbitals."""
    if np.ndim(mo_occ[0]) == 0:
        return (mo_coeff * mo_occ) @ mo_coeff.conj().T
    return np.stack([_density_matrix(c, n) for c, n in zip(mo_coeff, mo_occ, strict=True)])


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


def check_density(
    rho: Float[np.ndarray, "spin ingredient grid"], weights: Float[np.ndarray, " grid"]
) -> None:
    """Raise ``ValueError`` for densities that are negative over more than rounding."""
    negative = -float(np.sum(weights * np.minimum(rho[:, 0], 0.0)))
    if negative > NEGATIVE_CHARGE_LIMIT:
        raise ValueError(
            f"the density is negative over {negative:.3g} electrons: the density matrix belongs "
            "to no electronic state; start the SCF from another guess or check what produced it"
        )
