r"""Plane waves of charges inside a sphere, harmonic by harmonic, and back.

.. math:: \int_{sphere} \rho(\mathbf r)\, e^{-i \mathbf G \cdot (\mathbf R + \mathbf r)}\, d^3r
          = 4\pi\, e^{-i \mathbf G \cdot \mathbf R} \sum_{lm} (-i)^l\, Y_{lm}(\hat G)
            \int j_l(G r)\, \rho_{lm}(r)\, r^2 dr
"""

from collections.abc import Sequence
from typing import no_type_check

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float, Int
from scipy.special import spherical_jn

from cider.features.compiled import compiled
from cider.features.spherical import (
    fill_harmonics_gradients,
    harmonics_recurrence,
    real_spherical_harmonics,
)
from cider.features.wave_runs import WaveRuns
from cider.features.waves import Waves

AtNodes = Float[np.ndarray, "lm _ channel"]
"""Coefficients of spherical harmonics at nodes, of each channel."""


class SphereWaves(eqx.Module):
    """Waves of charges at a few nodes of the radius (bohr), which stand for all radii of a sphere.

    ``interpolation`` makes what waves are at the nodes to what they are on the sphere's shells;
    ``harmonics`` are those of even l, then of odd l; ``bessel`` are the spherical Bessel functions
    of each l, at the samples of ``runs``.
    """

    waves: Waves
    runs: WaveRuns
    harmonics: tuple[Float[np.ndarray, "wave even_lm"], Float[np.ndarray, "wave odd_lm"]]
    interpolation: Float[np.ndarray, "shell node"]
    nodes: Float[np.ndarray, " node"]
    bessel: tuple[Float[np.ndarray, "node sample"], ...]

    def waves_of(
        self, charges: Sequence[AtNodes], centers: Float[np.ndarray, "atom xyz"]
    ) -> Complex[np.ndarray, "wave channel"]:
        """Waves of charges at the nodes about each centre (bohr), in all."""
        phases, num_channels = 4 * np.pi * self._phases(centers), charges[0].shape[2]
        of_length = np.concatenate([self._at_samples(own, self.bessel) for own in charges], axis=2)
        pairs = [
            (harmonics, of_length[:, lms].copy())
            for harmonics, lms in zip(self.harmonics, self._parities, strict=True)
        ]
        total = np.empty((len(phases), num_channels), dtype=complex)
        for run in self.runs:
            even, odd = (
                run.spread(harmonics[run.waves]) @ own[run.samples].reshape(-1, own.shape[2])
                for harmonics, own in pairs
            )
            _sum_over_centers(phases[run.waves], even, odd, total[run.waves])
        return total

    def at_nodes(
        self, waves: Complex[np.ndarray, "wave channel"], centers: Float[np.ndarray, "atom xyz"]
    ) -> list[AtNodes]:
        """Sums over waves and their conjugates at the nodes: the transpose of ``waves_of``."""
        factors = self._factors(centers)
        columns = len(centers) * waves.shape[1]
        parities = [np.empty((len(self.runs.samples), len(lms), columns)) for lms in self._parities]
        pairs = list(zip(parities, self.harmonics, strict=True))
        for run in self.runs:
            parts = _parts(waves[run.waves], factors[run.waves])
            for (own, harmonics), part in zip(pairs, parts, strict=True):
                by_run = run.spread(harmonics[run.waves]).T @ part
                own[run.samples] = by_run.reshape(-1, own.shape[1], columns)
        of_length = np.empty((len(self.runs.samples), len(self.bessel) ** 2, columns))
        for own, lms in zip(parities, self._parities, strict=True):
            of_length[:, lms] = own
        at_nodes = [
            np.tensordot(_sign(l) * bessel, of_length[:, _harmonics_of(l)], 1)
            for l, bessel in enumerate(self.bessel)
        ]
        return np.split(np.concatenate(at_nodes, axis=1).swapaxes(0, 1), len(centers), axis=2)

    def center_derivative(
        self,
        charges: AtNodes,
        waves: Complex[np.ndarray, "wave channel"],
        center: Float[np.ndarray, " xyz"],
    ) -> Float[np.ndarray, " xyz"]:
        """Derivative by the centre of charges times what waves are at the nodes (per bohr)."""
        products = np.sum(self.waves_of([charges], center[None]).conj() * waves, axis=1)
        return -(self.waves.shares * products.imag) @ self.waves.vectors

    def strain_derivative(
        self,
        charges: AtNodes,
        waves: Complex[np.ndarray, "wave channel"],
        center: Float[np.ndarray, " xyz"],
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of the same by strain, which changes waves and leaves the sphere."""
        seen = _parts(waves, self._factors(center[None]))
        arguments = np.outer(self.nodes, self.runs.samples)
        slopes = [
            self.nodes[:, None] * spherical_jn(l, arguments, derivative=True)
            for l in range(len(self.bessel))
        ]
        by_harmonics = self._by_harmonics(seen, self._at_samples(charges, self.bessel))
        by_slopes = self._by_harmonics(seen, self._at_samples(charges, slopes))
        along_length = sum(
            np.sum(by_slopes[lms].T * harmonics, axis=1)
            for lms, harmonics in zip(self._parities, self.harmonics, strict=True)
        )
        directions = self.waves.directions
        along_sphere = np.empty((3, len(directions)))
        fill_harmonics_gradients(
            np.ascontiguousarray(directions.T),
            harmonics_recurrence(len(self.bessel) - 1),
            by_harmonics,
            along_sphere,
        )
        by_wave = directions * along_length[:, None]
        by_wave += along_sphere.T / np.maximum(self.waves.lengths, 1e-30)[:, None]
        by_wave[self.waves.lengths == 0] = 0.0
        return -self.waves.vectors.T @ by_wave

    def _at_samples(
        self, charges: AtNodes, radial: Sequence[Float[np.ndarray, "node sample"]]
    ) -> Float[np.ndarray, "sample lm channel"]:
        """What charges make of each harmonic, at the lengths of samples."""
        by_l = [
            np.tensordot(_sign(l) * own, charges[_harmonics_of(l)], ((0,), (1,)))
            for l, own in enumerate(radial)
        ]
        return np.concatenate(by_l, axis=1)

    def _by_harmonics(
        self,
        seen: Sequence[Float[np.ndarray, "wave channel"]],
        of_length: Float[np.ndarray, "sample lm channel"],
    ) -> Float[np.ndarray, "lm wave"]:
        """Derivatives by the harmonics of each wave."""
        result = np.empty((of_length.shape[1], len(seen[0])))
        for parts, lms in zip(seen, self._parities, strict=True):
            for run in self.runs:
                own = np.tensordot(of_length[run.samples, lms], parts[run.waves], ((2,), (1,)))
                result[lms, run.waves] = np.einsum("gs,smg->mg", run.coefficients, own)
        return result

    @property
    def _parities(self) -> list[Int[np.ndarray, " lm"]]:
        return _parities(len(self.bessel) - 1)

    def _factors(self, centers: Float[np.ndarray, "atom xyz"]) -> Complex[np.ndarray, "wave atom"]:
        """Of waves as harmonics about each centre see them, each with its conjugate."""
        return 4 * np.pi * self.waves.shares[:, None] * self._phases(centers).conj()

    def _phases(self, centers: Float[np.ndarray, "atom xyz"]) -> Complex[np.ndarray, "wave atom"]:
        return np.exp(-1j * (self.waves.vectors @ centers.T))


def _parts(
    waves: Complex[np.ndarray, "wave channel"], factors: Complex[np.ndarray, "wave atom"]
) -> tuple[Float[np.ndarray, "wave atom_channel"], Float[np.ndarray, "wave atom_channel"]]:
    """What harmonics of even l and of odd l see of waves, for each of their factors."""
    shape = len(waves), factors.shape[1] * waves.shape[1]
    even, odd = np.empty(shape), np.empty(shape)
    _fill_parts(waves, factors, even, odd)
    return even, odd


@compiled
@no_type_check
def _fill_parts(
    waves: Complex[np.ndarray, "wave channel"],
    factors: Complex[np.ndarray, "wave atom"],
    even: Float[np.ndarray, "wave atom_channel"],
    odd: Float[np.ndarray, "wave atom_channel"],
) -> None:
    num_channels = waves.shape[1]
    for wave in range(len(waves)):
        for atom in range(factors.shape[1]):
            real, imag = factors[wave, atom].real, factors[wave, atom].imag
            start = atom * num_channels
            for channel in range(num_channels):
                own = waves[wave, channel]
                even[wave, start + channel] = real * own.real - imag * own.imag
                odd[wave, start + channel] = -real * own.imag - imag * own.real


@compiled
@no_type_check
def _sum_over_centers(
    phases: Complex[np.ndarray, "wave atom"],
    even: Float[np.ndarray, "wave atom_channel"],
    odd: Float[np.ndarray, "wave atom_channel"],
    total: Complex[np.ndarray, "wave channel"],
) -> None:
    """Write the sum of phases times ``even - 1j * odd``."""
    num_channels = total.shape[1]
    for wave in range(len(total)):
        total[wave] = 0.0
        for atom in range(phases.shape[1]):
            phase = phases[wave, atom]
            start = atom * num_channels
            for channel in range(num_channels):
                value = complex(even[wave, start + channel], -odd[wave, start + channel])
                total[wave, channel] += phase * value


def _sign(l: int) -> float:
    """Of (-i)^l, apart from -i where l is odd."""
    return (1.0, 1.0, -1.0, -1.0)[l % 4]


def _harmonics_of(l: int) -> slice:
    return slice(l * l, (l + 1) ** 2)


def _parities(lmax: int) -> list[Int[np.ndarray, " lm"]]:
    """Numbers of the harmonics of even l and of odd l."""
    l = np.sqrt(np.arange((lmax + 1) ** 2)).astype(int)
    return [np.flatnonzero(l % 2 == parity) for parity in range(2)]


def sphere_waves(
    waves: Waves, runs: WaveRuns, radii: Float[np.ndarray, " shell"], lmax: int
) -> SphereWaves:
    """The waves in a sphere of shells (ascending radii in bohr).

    ``runs`` interpolate ``radial_functions`` of this radius or of a larger one.
    """
    angles, nodes = _nodes(radii[-1], waves.lengths.max())
    harmonics = real_spherical_harmonics(waves.directions, lmax)
    even, odd = (np.ascontiguousarray(harmonics[lms].T) for lms in _parities(lmax))
    return SphereWaves(
        waves=waves,
        runs=runs,
        harmonics=(even, odd),
        interpolation=_interpolation(radii, nodes, angles),
        nodes=nodes,
        bessel=tuple(_bessel(nodes, runs.samples, lmax)),
    )


def radial_functions(
    lengths: Float[np.ndarray, " wave"], longest: float, radius: float, lmax: int
) -> Float[np.ndarray, "function wave"]:
    """Of the lengths of waves (bohr^-1, up to ``longest``): all that spheres of a radius see."""
    _, nodes = _nodes(radius, longest)
    return np.concatenate(_bessel(nodes, lengths, lmax))


def _bessel(
    nodes: Float[np.ndarray, " node"], lengths: Float[np.ndarray, " wave"], lmax: int
) -> list[Float[np.ndarray, "node wave"]]:
    """Spherical Bessel functions of each l."""
    return [spherical_jn(l, np.outer(nodes, lengths)) for l in range(lmax + 1)]


def _nodes(
    radius: float, longest: float
) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
    """Angles and radii of Chebyshev nodes: enough for the shortest wave to full precision."""
    count = int(longest * radius / 2) + 16
    angles = np.pi * (np.arange(count) + 0.5) / count
    return angles, radius * (1 - np.cos(angles)) / 2


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
