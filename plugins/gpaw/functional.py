"""GPAW's object of the functional on the grid: libxc terms and the learned part."""

from typing import Any

import jax
import numpy as np
from gpaw.core import UGArray
from gpaw.new.xc import GGAFunctional, MGGAFunctional
from gpaw.xc.functional import XCFunctional
from jaxtyping import Float

from cider.density import Density
from cider.features.spectral_gradient import SpectralGradient
from cider.plugins.gpaw.distributed import DistributedGradient, distributed_gradient
from cider.plugins.gpaw.learned_energy import LearnedEnergy
from cider.plugins.gpaw.paw_density import Matrices


class WithLearnedPart:
    """In front of GPAW's functional of the libxc terms: adds the learned part to what it gives.

    Its gradients of the density come from waves, as GPAW's kinetic energy density does: with those
    of finite differences, one orbital would not have the least tau that its density allows.
    ``matrices`` are the atomic density matrices of the density that comes next.
    """

    learned: LearnedEnergy
    gradient: DistributedGradient | SpectralGradient
    matrices: Matrices
    _by_matrices: Matrices

    def calculate(
        self, nt_sr: UGArray, taut_sr: UGArray | None = None
    ) -> tuple[float, UGArray, UGArray | None]:
        """Energy (Ha) and potentials; the learned part's energy is that of the spheres as well."""
        exc, vxct_sr, dedtaut_sr = super().calculate(nt_sr, taut_sr)
        energy, potential, self._by_matrices = self.learned.energy_and_derivatives(
            self._density(nt_sr, taut_sr), self.matrices
        )
        by_density = potential.rho + self.gradient.transpose(np.asarray(potential.grad_rho))
        vxct_sr.data += by_density.reshape(vxct_sr.data.shape)
        if dedtaut_sr is not None and potential.tau is not None:
            dedtaut_sr.data += potential.tau.reshape(dedtaut_sr.data.shape)
        return exc + energy, vxct_sr, dedtaut_sr

    def calculate_paw_correction(
        self, setup: Any, d: np.ndarray, h: np.ndarray | None = None, a: int | None = None
    ) -> float:
        """Energy (Ha) of the libxc terms in a sphere; adds to ``h`` what the whole contributes."""
        if h is None or a is None:
            raise NotImplementedError("a learned functional is evaluated self-consistently only")
        energy = super().calculate_paw_correction(setup, d, h, a=a)
        if setup.xc_correction is not None:
            h += self._by_matrices[a]
        return energy

    def forces(self, nt_sr: UGArray, taut_sr: UGArray | None) -> Float[np.ndarray, "atom xyz"]:
        """Forces (Ha/bohr) of the learned part, densities and matrices unchanged."""
        return self.learned.forces(self._density(nt_sr, taut_sr), self.matrices)

    def _density(self, nt_sr: UGArray, taut_sr: UGArray | None) -> Density:
        reads_tau = taut_sr is not None and self.learned.functional.needs_tau
        rho = _flat(nt_sr)
        return Density(rho, self.gradient.apply(rho), _flat(taut_sr) if reads_tau else None)

    def _stress(self, *arrays: UGArray, **more: Any) -> Float[np.ndarray, "xyz xyz"]:
        """This rank's part of the derivative by strain (Ha), waves and matrices unchanged."""
        density = self._density(arrays[1], arrays[5] if len(arrays) > 5 else None)
        potential, strain = self.learned.potential_and_strain_derivative(density, self.matrices)
        flow = np.einsum("sag,sbg->ab", potential.grad_rho, density.grad_rho)
        compressed = jax.tree.map(lambda x, v: float(np.vdot(x, v)), density, potential)
        stress = -flow - sum(jax.tree.leaves(compressed)) * np.eye(3)
        if potential.tau is not None:
            stress -= self._tau_stress(
                np.asarray(potential.tau), more["taut_swR"], more["interpolate"]
            )
        return super()._stress(*arrays, **more) + stress * self.grid.dv + strain

    def _tau_stress(
        self, by_tau: Float[np.ndarray, "spin grid"], taut_swR: UGArray, interpolate: Any
    ) -> Float[np.ndarray, "xyz xyz"]:
        """What strain makes of tau, whose tensor GPAW gives by its upper triangle."""
        stress = np.zeros((3, 3))
        upper = np.triu_indices(3)
        for own, taut_wR in zip(by_tau, taut_swR, strict=True):
            for a, b, taut_R in zip(*upper, taut_wR, strict=True):
                stress[a, b] += np.vdot(own, interpolate(taut_R).data)
        return stress + stress.T - np.diag(np.diag(stress))


class LearnedGGA(WithLearnedPart, GGAFunctional):
    """Without the kinetic energy density."""


class LearnedMGGA(WithLearnedPart, MGGAFunctional):
    """With the kinetic energy density."""


def learned_functional(semilocal: XCFunctional, learned: LearnedEnergy) -> LearnedGGA | LearnedMGGA:
    """The functional of the level of its libxc terms' object."""
    kind = LearnedMGGA if semilocal.type == "MGGA" else LearnedGGA
    functional = kind(semilocal, learned.grid)
    functional.learned = learned
    functional.gradient = distributed_gradient(learned.grid)
    return functional


def _flat(array: UGArray) -> Float[np.ndarray, "*shape grid"]:
    """With one axis for all points of this rank."""
    return array.data.reshape(*array.dims, -1)
