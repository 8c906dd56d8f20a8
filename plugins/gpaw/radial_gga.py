"""GPAW's sums of a GGA over an augmentation sphere, at all directions at once.

GPAW evaluates one direction after the other, and derives each. Radial derivatives are linear: they
follow after the sum over directions, of fewer harmonics.
"""

from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from gpaw.sphere.lebedev import Y_nL, weight_n
from gpaw.xc.gga import GGA
from gpaw.xc.lda import calculate_paw_correction
from gpaw.xc.mgga import MGGA
from gpaw.xc.pawcorrection import rnablaY_nLv
from jaxtyping import Float


def _at_all_directions(
    kernel: Any,
    rgd: Any,
    D_sLq: Float[np.ndarray, "spin lm product"],
    n_qg: Float[np.ndarray, "product radial"],
    nc0_sg: Float[np.ndarray, "spin radial"] | int,
) -> tuple[float, Float[np.ndarray, "spin product lm"]]:
    """A density's energy (Ha) in a sphere, and its derivatives: what ``GGARadialExpansion`` gives.

    ``kernel`` is GPAW's interface of pointwise functionals.
    """
    n_sLg = D_sLq @ n_qg
    n_sLg[:, 0] += nc0_sg
    num_spins, num_lm, _ = n_sLg.shape
    harmonics, across = Y_nL[:, :num_lm], np.moveaxis(rnablaY_nLv[:, :num_lm], 2, 0)

    density = harmonics @ n_sLg
    along_ray = harmonics @ _along_radius(rgd.derivative, n_sLg)
    across_ray = across[:, None] @ n_sLg
    sigma = np.empty((2 * num_spins - 1, *density.shape[1:]))
    for pair, (one, other) in enumerate(combinations_with_replacement(range(num_spins), 2)):
        squares = np.sum(across_ray[:, one] * across_ray[:, other], axis=0)
        sigma[pair] = _divided(squares, rgd.r_g**2) + along_ray[one] * along_ray[other]

    energy_density, by_density = np.zeros_like(density[0]), np.zeros_like(density)
    by_sigma = np.zeros_like(sigma)
    kernel.calculate(
        energy_density.reshape(-1),
        density.reshape(num_spins, -1),
        by_density.reshape(num_spins, -1),
        sigma.reshape(len(sigma), -1),
        by_sigma.reshape(len(sigma), -1),
    )

    weighted = weight_n[:, None] * harmonics
    by_slopes = weighted.T @ _by_gradient(by_sigma, along_ray)
    weighted_across = (weight_n[:, None] * across).swapaxes(1, 2)
    by_across = weighted_across[:, None] @ _by_gradient(by_sigma, across_ray)
    flow = _divided(_along_radius(rgd.derivative2, -rgd.dv_g * by_slopes), rgd.dv_g)
    by_lm = rgd.dv_g * (weighted.T @ by_density + flow)
    by_lm += 4 * np.pi * rgd.dr_g * by_across.sum(axis=0)
    return rgd.integrate(weight_n @ energy_density), (by_lm @ n_qg.T).swapaxes(1, 2)


def _divided(
    values: Float[np.ndarray, "*shape radial"], by: Float[np.ndarray, " radial"]
) -> Float[np.ndarray, "*shape radial"]:
    """A quotient whose divisor vanishes at the nucleus: there it is that of the next radius."""
    result = np.empty_like(values)
    np.divide(values[..., 1:], by[1:], out=result[..., 1:])
    result[..., 0] = result[..., 1]
    return result


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
        expansion = partial(_at_all_directions, self.kernel)
        return calculate_paw_correction(expansion, setup, D_sp, dEdD_sp, addcoredensity, a)


class WithoutTauInSpheres(MGGA):
    """Terms that do not read the kinetic energy density, where the learned part does."""

    calculate_paw_correction = RadialGGA.calculate_paw_correction
