r"""Plane waves of charges inside a sphere, harmonic by harmonic, and back.

.. math:: \int_{sphere} \rho(\mathbf r)\, e^{-i \mathbf G \cdot (\mathbf R + \mathbf r)}\, d^3r
          = 4\pi\, e^{-i \mathbf G \cdot \mathbf R} \sum_{lm} (-i)^l\, Y_{lm}(\hat G)
            \int j_l(G r)\, \rho_{lm}(r)\, r^2 dr
"""

import math

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float
from scipy.special import spherical_jn

from cider.features.spherical import (
    fill_harmonics_gradients,
    harmonics_recurrence,
    real_spherical_harmonics,
)
from cider.features.waves import Waves

AtNodes = Float[np.ndarray, "lm node channel"]
"""Coefficients of spherical harmonics at nodes, of each channel."""


class SphereWaves(eqx.Module):
    """Waves of charges at a few nodes of the radius (bohr), which stand for all radii of a sphere.

    ``interpolation`` makes what waves are at the nodes to what they are on the sphere's shells;
    ``bessel`` are the spherical Bessel functions of each l.
    """

    waves: Waves
    harmonics: Float[np.ndarray, "lm wave"]
    interpolation: Float[np.ndarray, "shell node"]
    nodes: Float[np.ndarray, " node"]
    bessel: tuple[Float[np.ndarray, "node wave"], ...]

    def waves_of(
        self, charges: AtNodes, center: Float[np.ndarray, " xyz"]
    ) -> Complex[np.ndarray, "wave channel"]:
        """Waves of charges at the nodes about a centre (bohr)."""
        parts = np.zeros((2, len(self.waves.shares), charges.shape[2]))
        for lm, values in enumerate(self.harmonics):
            l = math.isqrt(lm)
            radial = (_SIGNS[l % 4] * values)[:, None] * (self.bessel[l].T @ charges[lm])
            parts[l % 2] += radial
        return 4 * np.pi * self._phases(center) * (parts[0] - 1j * parts[1])

    def at_nodes(
        self, waves: Complex[np.ndarray, "wave channel"], center: Float[np.ndarray, " xyz"]
    ) -> AtNodes:
        """Sums over waves and their conjugates at the nodes: the transpose of ``waves_of``."""
        parts = self._parts(waves, center)
        return np.stack(
            [
                self.bessel[math.isqrt(lm)] @ (values[:, None] * parts[math.isqrt(lm) % 4])
                for lm, values in enumerate(self.harmonics)
            ]
        )

    def center_derivative(
        self,
        charges: AtNodes,
        waves: Complex[np.ndarray, "wave channel"],
        center: Float[np.ndarray, " xyz"],
    ) -> Float[np.ndarray, " xyz"]:
        """Derivative by the centre of charges times what waves are at the nodes (per bohr)."""
        products = np.sum(self.waves_of(charges, center).conj() * waves, axis=1)
        return -(self.waves.shares * products.imag) @ self.waves.vectors

    def strain_derivative(
        self,
        charges: AtNodes,
        waves: Complex[np.ndarray, "wave channel"],
        center: Float[np.ndarray, " xyz"],
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of the same by strain, which changes waves and leaves the sphere."""
        parts = self._parts(waves, center)
        arguments = np.outer(self.nodes, self.waves.lengths)
        bessel_slopes = [
            self.nodes[:, None] * spherical_jn(l, arguments, derivative=True)
            for l in range(len(self.bessel))
        ]
        values = np.empty_like(self.harmonics)
        slopes = np.empty_like(self.harmonics)
        for lm, own in enumerate(charges):
            part = parts[math.isqrt(lm) % 4]
            values[lm] = np.sum((self.bessel[math.isqrt(lm)].T @ own) * part, axis=1)
            slopes[lm] = np.sum((bessel_slopes[math.isqrt(lm)].T @ own) * part, axis=1)
        directions = self.waves.directions
        along_sphere = np.empty((3, len(directions)))
        recurrence = harmonics_recurrence(math.isqrt(len(values)) - 1)
        fill_harmonics_gradients(
            np.ascontiguousarray(directions.T), recurrence, values, along_sphere
        )
        by_wave = directions * np.sum(self.harmonics * slopes, axis=0)[:, None]
        by_wave += along_sphere.T / np.maximum(self.waves.lengths, 1e-30)[:, None]
        by_wave[self.waves.lengths == 0] = 0.0
        return -self.waves.vectors.T @ by_wave

    def _parts(
        self, waves: Complex[np.ndarray, "wave channel"], center: Float[np.ndarray, " xyz"]
    ) -> list[Float[np.ndarray, "wave channel"]]:
        """What harmonics of l = 0, 1, 2, 3 (and so on, in turn) see of waves."""
        factors = 4 * np.pi * self.waves.shares[:, None] * self._phases(center).conj()
        shifted = factors * waves
        even, odd = shifted.real.copy(), -shifted.imag
        return [even, odd, -even, -odd]

    def _phases(self, center: Float[np.ndarray, " xyz"]) -> Complex[np.ndarray, "wave 1"]:
        return np.exp(-1j * (self.waves.vectors @ center))[:, None]


_SIGNS = 1.0, 1.0, -1.0, -1.0
"""Of (-i)^l, apart from -i where l is odd."""


def sphere_waves(waves: Waves, radii: Float[np.ndarray, " shell"], lmax: int) -> SphereWaves:
    """The waves in a sphere of shells (ascending radii in bohr)."""
    lengths, outermost = waves.lengths, radii[-1]
    # Chebyshev nodes, enough for the shortest wave to full precision.
    count = int(lengths.max() * outermost / 2) + 16
    angles = np.pi * (np.arange(count) + 0.5) / count
    nodes = outermost * (1 - np.cos(angles)) / 2
    return SphereWaves(
        waves=waves,
        harmonics=real_spherical_harmonics(waves.directions, lmax),
        interpolation=_interpolation(radii, nodes, angles),
        nodes=nodes,
        bessel=tuple(spherical_jn(l, np.outer(nodes, lengths)) for l in range(lmax + 1)),
    )


def _interpolation(
    radii: Float[np.ndarray, " shell"],
    nodes: Float[np.ndarray, " node"],
    angles: Float[np.ndarray, " node"],
) -> Float[np.ndarray, "shell node"]:
    """Values of the polynomial through Chebyshev nodes, by the barycentric formula."""
    distances = radii[:, None] - nodes
    distances[np.abs(distances) < 1e-13] = 1e-13
    terms = (-1.0) ** np.arange(len(nodes)) * np.sin(angles) / distances
    return terms / terms.sum(axis=1, keepdims=True)
