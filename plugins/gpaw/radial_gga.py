"""GPAW's sums of a GGA over an augmentation sphere, at all directions at once.

GPAW evaluates one direction after the other, and derives each. Radial derivatives are linear: they
follow after the sum over directions, of fewer harmonics.
"""

from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from gpaw.sphere.lebedev import Y_nL, weight_n
from gpaw.xc.gga import GGA
from gpaw.xc.lda import calculate_paw_correction
from gpaw.xc.mgga import MGGA
from gpaw.xc.pawcorrection import rnablaY_nLv
from jaxtyping import Float


class _AtAllDirections:
    """A density's energy (Ha) in a sphere, and its derivatives: what ``GGARadialExpansion`` gives.

    ``kernel`` is GPAW's interface of pointwise functionals.
    """

    def __init__(self, kernel: Any):
        self.kernel = kernel

    def __call__(
        self,
        rgd: Any,
        D_sLq: Float[np.ndarray, "spin lm product"],
        n_qg: Float[np.ndarray, "product radial"],
        nc0_sg: Float[np.ndarray, "spin radial"] | int,
    ) -> tuple[float, Float[np.ndarray, "spin product lm"]]:
        n_sLg = D_sLq @ n_qg
        n_sLg[:, 0] += nc0_sg
        slopes = _along_radius(rgd.derivative, n_sLg)
        num_spins, num_lm, num_radii = n_sLg.shape
        harmonics, across = Y_nL[:, :num_lm], np.moveaxis(rnablaY_nLv[:, :num_lm], 2, 0)

        density = harmonics @ n_sLg
        along_ray = harmonics @ slopes
        across_ray = across[:, None] @ n_sLg
        sigma = np.empty((2 * num_spins - 1, *density.shape[1:]))
        for pair, (one, other) in enumerate(combinations_with_replacement(range(num_spins), 2)):
            own = np.sum(across_ray[:, one] * across_ray[:, other], axis=0)
            own[:, 1:] /= rgd.r_g[1:] ** 2
            own[:, 0] = own[:, 1]
            sigma[pair] = own + along_ray[one] * along_ray[other]

        energy_density = np.zeros(density[0].size)
        by_density, by_sigma = np.zeros_like(density), np.zeros_like(sigma)
        self.kernel.calculate(
            energy_density,
            density.reshape(num_spins, -1),
            by_density.reshape(num_spins, -1),
            sigma.reshape(len(sigma), -1),
            by_sigma.reshape(len(sigma), -1),
        )

        weighted = weight_n[:, None] * harmonics
        by_slopes = weighted.T @ _by_gradient(by_sigma, along_ray)
        by_across = (weight_n[:, None] * across).swapaxes(1, 2)[:, None] @ _by_gradient(
            by_sigma, across_ray
        )
        flow = _along_radius(rgd.derivative2, -rgd.dv_g * by_slopes)
        flow[..., 1:] /= rgd.dv_g[1:]
        flow[..., 0] = flow[..., 1]
        by_lm = rgd.dv_g * (weighted.T @ by_density + flow)
        by_lm += 4 * np.pi * rgd.dr_g * by_across.sum(axis=0)
        energy = rgd.integrate(weight_n @ energy_density.reshape(-1, num_radii))
        return energy, (by_lm @ n_qg.T).swapaxes(1, 2)


def _along_radius(
    derivative: Any, values: Float[np.ndarray, "spin lm radial"]
) -> Float[np.ndarray, "spin lm radial"]:
    """A derivative of GPAW's radial grid, of each harmonic."""
    result = np.empty_like(values)
    for index in np.ndindex(values.shape[:2]):
        derivative(values[index], result[index])
    return result


def _by_gradient(
    by_sigma: Float[np.ndarray, "pair direction radial"],
    gradients: Float[np.ndarray, "*xyz spin direction radial"],
) -> Float[np.ndarray, "*xyz spin direction radial"]:
    """Derivatives by components of the gradients of each spin."""
    result = 2 * by_sigma[::2] * gradients
    if len(by_sigma) == 3:
        result += by_sigma[1] * gradients[..., ::-1, :, :]
    return result


class RadialGGA(GGA):
    """GPAW's GGA, but for its sums over spheres."""

    def calculate_paw_correction(
        self,
        setup: Any,
        D_sp: np.ndarray,
        dEdD_sp: np.ndarray | None = None,
        addcoredensity: bool = True,
        a: int | None = None,
    ) -> float:
        """Energy (Ha) of the sphere; its derivatives by the density matrix are added."""
        expansion = _AtAllDirections(self.kernel)
        return calculate_paw_correction(expansion, setup, D_sp, dEdD_sp, addcoredensity, a)


class WithoutTauInSpheres(MGGA):
    """Terms that do not read the kinetic energy density, where the learned part does."""

    calculate_paw_correction = RadialGGA.calculate_paw_correction
