r"""What strain of a crystal does to the energy through features of the density matrix.

Points and atoms keep their fractions of the lattice vectors, and density matrices are fixed. What
changes is the orbitals of the basis, whose Gaussians stay as they are, and the smoothing S:

.. math:: \frac{dE}{d\epsilon} = 2\, \mathrm{Re}\, \frac{1}{N_k} \sum_{k,i} n_{ki} \sum_R \left[
          \left\langle \frac{d\psi_{ki}}{d\epsilon} \middle| S_R^\dagger q_R + q_R^* S_R
          \middle| \psi_{ki} \right\rangle + \left\langle \frac{dS_R}{d\epsilon} \psi_{ki} \middle|
          q_R \psi_{ki} \right\rangle \right]
"""

import itertools

import numpy as np
from jaxtyping import Complex, Float, Inexact
from pyscf.pbc.grad.rks_stress import _eval_ao_strain_derivatives

from cider.features.truncated_gaussians import strained_gaussians
from cider.features.waves import reciprocal_lattice
from cider.plugins.pyscf.density_matrices import eigenvectors
from cider.plugins.pyscf.periodic_smoothed_density_matrix import PeriodicSmoothing

_EQUALLY_SHORT = 1e-6
"""Relative difference of the lengths of vectors that limit the reach together."""

_POINTS_TOGETHER = 4096


class StrainedSmoothing(PeriodicSmoothing):
    """The same smoothing, and what strain does to energies through it."""

    def strain_derivative(
        self,
        dms: Inexact[np.ndarray, "spin set kpt ao ao"],
        by_features: Float[np.ndarray, "spin set feature grid"],
    ) -> Float[np.ndarray, "xyz xyz"]:
        r"""Derivative (Ha) by strain, from that by features.

        Strain moves points and atoms by :math:`d\mathbf r = \epsilon \mathbf r`.

        Smoothing ends at half of the shortest vector of the repeated lattice. Where several are
        equally short, the energy has a cusp, and this is the mean over them: the derivative by
        every strain that keeps their symmetry, as that of the volume of a cubic crystal.
        """
        total = np.zeros((3, 3))
        by_orbitals = []
        by_smoothed = [
            (index, self._by_spanned(spanned, by_features[index]))
            for index, spanned in self._smoothed(dms)
        ]
        for k, orbitals in self._orbitals(self._kpts):
            waves = self._waves(self._kpts[k])
            by_own = np.zeros(orbitals.shape, complex)
            by_factors = np.zeros((sum(map(len, waves.factors)), *self._mesh))
            by_gradient = np.zeros_like(waves.gradient)
            for index, by_spanned in by_smoothed:
                occupations, vectors = eigenvectors(dms[index][k])
                shares = occupations / len(self._kpts)
                for share, vector, psi in zip(shares, vectors, vectors @ orbitals, strict=True):
                    by_own += share * np.outer(vector.conj(), waves.potential(psi, by_spanned))
                    of_factors, of_gradient = waves.derivative(psi, by_spanned)
                    by_factors += share * of_factors
                    by_gradient += share * of_gradient
            by_orbitals.append(by_own)
            total += self._by_factors(self._kpts[k], by_factors)
            # Waves, and the gradients with them, turn and stretch against the lattice.
            total -= np.einsum("axyz,bxyz->ab", waves.gradient, by_gradient).real
        return total + self._by_orbitals(by_orbitals)

    def _by_factors(
        self, kpt: Float[np.ndarray, " xyz"], by_factors: Float[np.ndarray, "_ x y z"]
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Of transforms, whose waves become longer and whose Gaussians end farther away."""
        vectors = (self._wave_numbers(kpt) @ reciprocal_lattice(self._lattice)).reshape(-1, 3)
        lengths = np.linalg.norm(vectors, axis=1)
        by_length, by_radius = (
            np.sum(by_factors * np.concatenate(self._spanned(self._of_radii(parts))), axis=0)
            for parts in strained_gaussians(lengths, self._sdmx.exponents, self.reach)
        )
        directions = vectors / np.maximum(lengths, np.finfo(float).tiny)[:, None]
        return np.sum(by_radius) * self._strained_reach() - np.einsum(
            "ga,gb,g->ab", directions, directions, by_length.ravel()
        )

    def _strained_reach(self) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of the logarithm of the reach by strain."""
        vectors = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ self._reduced
        lengths = np.linalg.norm(vectors, axis=1)
        shortest = (lengths > 0) & (lengths < 2 * self.reach * (1 + _EQUALLY_SHORT))
        directions = vectors[shortest] / lengths[shortest, None]
        return directions.T @ directions / len(directions)

    def _by_orbitals(
        self, by_orbitals: list[Complex[np.ndarray, "ao grid"]]
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Of the orbitals of the basis at points that move, from the derivative by them."""
        total = np.zeros((3, 3))
        for start in range(0, len(self._grids.weights), _POINTS_TOGETHER):
            points = slice(start, start + _POINTS_TOGETHER)
            coords = self._grids.coords[points]
            moving = _eval_ao_strain_derivatives(self._cell, coords, self._kpts)
            gradients = self._cell.pbc_eval_gto("GTOval_ip", coords, kpts=self._kpts)
            for kpt, by_own, moved, gradient in zip(
                self._kpts, by_orbitals, moving, gradients, strict=True
            ):
                # Of the whole orbitals: the phase of a k-point is fixed at such points.
                by_whole = np.exp(1j * coords @ kpt) * by_own[:, points]
                total += 2 * np.einsum("abgi,ig->ab", moved[:, :, 0].conj(), by_whole).real
                by_points = np.einsum("agi,ig->ag", gradient.conj(), by_whole)
                total += 2 * (by_points @ coords).real
        return total
