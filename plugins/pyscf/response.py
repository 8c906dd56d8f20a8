"""f_xc of a learned functional, where PySCF's response code contracts an array."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Inexact

from cider.features.convolution import GaussianConvolution
from cider.functional import CiderFunctional
from cider.plugins.pyscf.learned_part import add_density, density_of, threads_of_pyscf
from cider.plugins.pyscf.libxc import libxc_second_derivative, num_ingredients
from cider.response import LinearResponse


@dataclass(frozen=True)
class XCKernel:
    """The second derivative of the energy at one density, times a factor.

    PySCF passes it on as ``fxc``, and scales it in between. What it takes to contract it, a few
    times the work of one potential, is done when it is first asked for, and kept.
    """

    functional: CiderFunctional
    rho: Float[np.ndarray, "spin ingredient grid"]
    weights: Float[np.ndarray, " grid"]
    convolution: GaussianConvolution | None
    dms: Sequence[Any]
    """The density matrix of each spin."""
    factor: float = 1.0
    coulomb: Callable[[np.ndarray], np.ndarray] | None = None
    """Derivative of the Coulomb energy by the density at each point, where PySCF adds it here."""

    def __mul__(self, factor: float) -> "XCKernel":
        return dataclasses.replace(self, factor=self.factor * factor)

    def require_spins(self, num_spins: int) -> None:
        """Raise ``ValueError`` for density matrices of another number of spins."""
        if num_spins != len(self.rho):
            raise ValueError(
                f"the kernel is that of {len(self.rho)} spin densities, and the density matrices "
                f"are those of {num_spins}: give cache_xc_kernel the orbitals of each spin for "
                "nr_uks_fxc"
            )

    def potential(
        self, rho: Inexact[np.ndarray, "spin ingredient grid"], triplet: bool = False
    ) -> Inexact[np.ndarray, "spin ingredient grid"]:
        """Change of the derivative by rho, grad rho, tau and SDMX features, for one of these.

        ``triplet`` is for a closed shell, of whose spins the second changes by the opposite of the
        first: ``rho`` is then twice the change of spin up, and what is returned is that of its
        potential.
        """
        if np.iscomplexobj(rho):
            return self.potential(rho.real, triplet) + 1j * self.potential(rho.imag, triplet)
        semilocal = self._semilocal_triplet if triplet else self._semilocal
        rows = semilocal.shape[1]
        potential = np.zeros_like(rho)
        potential[:, :rows] = np.einsum("xaybg,ybg->xag", semilocal, rho[:, :rows])
        learned = self._learned_triplet if triplet else self._learned
        with threads_of_pyscf():
            add_density(potential, learned(density_of(self.functional, rho)))
        if self.coulomb is not None and not triplet:
            potential[:, 0] += self.coulomb(rho[:, 0].sum(axis=0))
        return self.factor * potential

    @property
    def by_state(self) -> Float[np.ndarray, "spin ingredient grid"]:
        """Derivative of the learned energy by rho, grad rho, tau and features of the density."""
        return self.factor * self._by_state

    @functools.cached_property
    def _by_state(self) -> Float[np.ndarray, "spin ingredient grid"]:
        potential = np.zeros_like(self.rho)
        with threads_of_pyscf():
            _, by_density = self.functional.learned_energy_and_potential(
                density_of(self.functional, self.rho), self.weights, self.convolution
            )
        add_density(potential, by_density)
        return potential

    @functools.cached_property
    def _learned(self) -> LinearResponse:
        return self._linear_response(triplet=False)

    @functools.cached_property
    def _learned_triplet(self) -> LinearResponse:
        return self._linear_response(triplet=True)

    @functools.cached_property
    def _semilocal(self) -> Float[np.ndarray, "spin ingredient spin ingredient grid"]:
        return libxc_second_derivative(self.functional, self._semilocal_rho, self.weights)

    @functools.cached_property
    def _semilocal_triplet(self) -> Float[np.ndarray, "1 ingredient 1 ingredient grid"]:
        halves = np.concatenate([self._semilocal_rho] * 2) / 2
        by_spins = libxc_second_derivative(self.functional, halves, self.weights)
        return (by_spins[:1, :, :1] - by_spins[:1, :, 1:]) / 2

    @property
    def _semilocal_rho(self) -> Float[np.ndarray, "spin ingredient grid"]:
        return self.rho[:, : num_ingredients(self.functional)]

    def _linear_response(self, triplet: bool) -> LinearResponse:
        with threads_of_pyscf():
            return self.functional.learned_response(
                density_of(self.functional, self.rho),
                self.weights,
                self.convolution,
                triplet=triplet,
            )


def checked_kernel(functional: CiderFunctional, fxc: Any) -> XCKernel:
    """What PySCF hands back as ``fxc``; raises ``TypeError`` for anything else."""
    if not isinstance(fxc, XCKernel):
        raise TypeError(
            f"fxc of {functional} is no function of a point: pass on what cache_xc_kernel "
            f"returns, not {type(fxc).__name__}"
        )
    return fxc
