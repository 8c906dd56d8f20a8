r"""Plane waves of charges inside a sphere, harmonic by harmonic, and back.

.. math:: \int_{sphere} \rho(\mathbf r)\, e^{-i \mathbf G \cdot (\mathbf R + \mathbf r)}\, d^3r
          = 4\pi\, e^{-i \mathbf G \cdot \mathbf R} \sum_{lm} (-i)^l\, Y_{lm}(\hat G)
            \int j_l(G r)\, \rho_{lm}(r)\, r^2 dr
"""

from collections.abc import Iterator, Sequence
from typing import no_type_check

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float, Int
from scipy.special import spherical_jn

from cider.features.compiled import compiled
from cider.features.length_runs import LengthRun, LengthRuns
from cider.features.radial_nodes import RadialNodes
from cider.features.spherical import (
    fill_harmonics_gradients,
    harmonics_recurrence,
    real_spherical_harmonics,
)
from cider.features.waves import Waves

AtNodes = Float[np.ndarray, "lm _ _"]
"""Coefficients of spherical harmonics at nodes, of each channel."""

_TOGETHER = 2**22
"""Numbers of all atoms at the samples of runs that are treated together."""


class SphereWaves(eqx.Module):
    """Waves of charges at a few nodes of the radius (bohr), which stand for all radii of a sphere.

    ``interpolation`` makes what waves are at the nodes to what they are on the sphere's shells;
    ``harmonics`` are those of even l, then of odd l; ``bessel`` are the spherical Bessel functions
    of each l, at the samples of ``runs``.
    """

    waves: Waves
    runs: LengthRuns
    harmonics: tuple[Float[np.ndarray, "wave even_lm"], Float[np.ndarray, "wave odd_lm"]]
    interpolation: Float[np.ndarray, "shell node"]
    nodes: RadialNodes
    bessel: tuple[Float[np.ndarray, "node sample"], ...]

    def waves_of(
        self, charges: Sequence[AtNodes], centers: Float[np.ndarray, "atom xyz"]
    ) -> Complex[np.ndarray, "wave channel"]:
        """Waves of charges at the nodes about each centre (bohr), in all."""
        of_atoms, num_channels = np.concatenate(charges, axis=2), charges[0].shape[2]
        vectors, harmonics, columns = self.waves.vectors, self.harmonics, of_atoms.shape[2]
        total = np.empty((len(vectors), num_channels), dtype=complex)
        for samples, runs in self._blocks(columns):
            radial = [own[:, samples] for own in self.bessel]
            by_parity = [_at_samples(of_atoms, radial, ls) for ls in self._parities]
            for run in runs:
                even, odd = (
                    run.spread(lms[run.vectors]) @ own[run.samples].reshape(-1, columns)
                    for lms, own in zip(harmonics, by_parity, strict=True)
                )
                phases = 4 * np.pi * _phases(vectors[run.vectors], centers)
                _sum_over_centers(phases, even, odd, total[run.vectors])
        return total

    def at_nodes(
        self, waves: Complex[np.ndarray, "wave channel"], centers: Float[np.ndarray, "atom xyz"]
    ) -> list[AtNodes]:
        """Sums over waves and their conjugates at the nodes: the transpose of ``waves_of``."""
        (vectors, shares), harmonics = self.waves, self.harmonics
        columns = len(centers) * waves.shape[1]
        at_nodes = np.zeros((len(self.bessel) ** 2, self.nodes.count, columns))
        for samples, runs in self._blocks(columns):
            num_samples = samples.stop - samples.start
            by_parity = [np.empty((num_samples, lms.shape[1], columns)) for lms in harmonics]
            for run in runs:
                factors = _factors(vectors[run.vectors], shares[run.vectors], centers)
                parts = _parts(waves[run.vectors], factors)
                for lms, part, own in zip(harmonics, parts, by_parity, strict=True):
                    by_run = run.spread(lms[run.vectors]).T @ part
                    own[run.samples] = by_run.reshape(-1, *own.shape[1:])
            for ls, own in zip(self._parities, by_parity, strict=True):
                ends = np.cumsum([2 * l + 1 for l in ls])[:-1]
                for l, of_l in zip(ls, np.split(own, ends, axis=1), strict=True):
                    seen = np.tensordot(_sign(l) * self.bessel[l][:, samples], of_l, 1)
                    at_nodes[_harmonics_of(l)] += seen.swapaxes(0, 1)
        return np.split(at_nodes, len(centers), axis=2)

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
        vectors, shares = self.waves
        seen = _parts(waves, _factors(vectors, shares, center[None]))
        arguments = np.outer(self.nodes.radii, self.runs.samples)
        slopes = [
            self.nodes.radii[:, None] * spherical_jn(l, arguments, derivative=True)
            for l in range(len(self.bessel))
        ]
        by_harmonics = self._by_harmonics(seen, charges, self.bessel)
        by_slopes = self._by_harmonics(seen, charges, slopes)
        along_length = sum(
            np.sum(by_slopes[_all_harmonics_of(ls)].T * harmonics, axis=1)
            for ls, harmonics in zip(self._parities, self.harmonics, strict=True)
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
        return -vectors.T @ by_wave

    def _by_harmonics(
        self,
        seen: Sequence[Float[np.ndarray, "wave channel"]],
        charges: AtNodes,
        radial: Sequence[Float[np.ndarray, "node sample"]],
    ) -> Float[np.ndarray, "lm wave"]:
        """Derivatives by the harmonics of each wave."""
        result = np.empty((len(charges), len(seen[0])))
        for parts, ls in zip(seen, self._parities, strict=True):
            of_length, lms = _at_samples(charges, radial, ls), _all_harmonics_of(ls)
            for run in self.runs:
                own = np.tensordot(of_length[run.samples], parts[run.vectors], ((2,), (1,)))
                result[lms, run.vectors] = np.einsum("gs,smg->mg", run.coefficients, own)
        return result

    def _blocks(self, columns: int) -> Iterator[tuple[slice, list[LengthRun]]]:
        """Runs that are treated together, for so many columns of each harmonic."""
        return self.runs.blocks(_TOGETHER // (columns * len(self.bessel) ** 2))

    @property
    def _parities(self) -> list[range]:
        return _parities(len(self.bessel) - 1)


def _at_samples(
    charges: AtNodes, radial: Sequence[Float[np.ndarray, "node sample"]], ls: Sequence[int]
) -> Float[np.ndarray, "sample some_lm channel"]:
    """What charges make of each harmonic of some l, at the lengths of samples."""
    by_l = [np.tensordot(_sign(l) * radial[l], charges[_harmonics_of(l)], ((0,), (1,))) for l in ls]
    return np.concatenate(by_l, axis=1)


def _phases(
    vectors: Float[np.ndarray, "wave xyz"], centers: Float[np.ndarray, "atom xyz"]
) -> Complex[np.ndarray, "wave atom"]:
    return np.exp(-1j * (vectors @ centers.T))


def _factors(
    vectors: Float[np.ndarray, "wave xyz"],
    shares: Float[np.ndarray, " wave"],
    centers: Float[np.ndarray, "atom xyz"],
) -> Complex[np.ndarray, "wave atom"]:
    """Of waves as harmonics about each centre see them, each with its conjugate."""
    return 4 * np.pi * shares[:, None] * _phases(vectors, centers).conj()


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


def _all_harmonics_of(ls: Sequence[int]) -> Int[np.ndarray, " some_lm"]:
    return np.concatenate([np.arange(l * l, (l + 1) ** 2) for l in ls])


def _parities(lmax: int) -> list[range]:
    """Even l and odd l."""
    return [range(parity, lmax + 1, 2) for parity in range(2)]


def sphere_waves(
    waves: Waves, runs: LengthRuns, radii: Float[np.ndarray, " shell"], lmax: int
) -> SphereWaves:
    """The waves in a sphere of shells (ascending radii in bohr).

    ``runs`` interpolate ``radial_functions`` of this radius or of a larger one.
    """
    nodes = _nodes(radii[-1], waves.lengths.max())
    harmonics = real_spherical_harmonics(waves.directions, lmax)
    even, odd = (np.ascontiguousarray(harmonics[_all_harmonics_of(ls)].T) for ls in _parities(lmax))
    return SphereWaves(
        waves=waves,
        runs=runs,
        harmonics=(even, odd),
        interpolation=nodes.interpolation(radii),
        nodes=nodes,
        bessel=tuple(_bessel(nodes, runs.samples, lmax)),
    )


def radial_functions(
    lengths: Float[np.ndarray, " wave"], longest: float, radius: float, lmax: int
) -> Float[np.ndarray, "function wave"]:
    """Of the lengths of waves (bohr^-1, up to ``longest``): all that spheres of a radius see."""
    return np.concatenate(_bessel(_nodes(radius, longest), lengths, lmax))


def _bessel(
    nodes: RadialNodes, lengths: Float[np.ndarray, " wave"], lmax: int
) -> list[Float[np.ndarray, "node wave"]]:
    """Spherical Bessel functions of each l."""
    return [spherical_jn(l, np.outer(nodes.radii, lengths)) for l in range(lmax + 1)]


def _nodes(radius: float, longest: float) -> RadialNodes:
    """Enough for the shortest wave to full precision."""
    return RadialNodes(float(radius), int(longest * radius / 2) + 16)
