"""What every numerical integration of a learned functional in PySCF has in common."""

import abc
import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float

from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.functional import CiderFunctional
from cider.plugins.pyscf.learned_part import add_density, density_of, threads_of_pyscf
from cider.plugins.pyscf.libxc import LibxcWithCider, libxc_energy_density_and_potential

NEGATIVE_CHARGE_LIMIT = 1e-2
"""Electrons of negative density that a density matrix may have.

Rounding leaves 1e-10 or less. Negative density carries no energy, so that a density matrix with
more of it than this would get a wrong one.
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
    def _build_convolution(self, mol: Any, grids: Any, nldf: Nldf) -> GaussianConvolution:
        """The convolution of a grid."""


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
