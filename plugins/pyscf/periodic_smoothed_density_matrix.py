r"""The smoothed density matrix of crystals on uniform grids: the linear map S of the design.

.. math:: \rho^0(R; \mathbf r) = \frac{1}{N_k} \sum_{k,i} n_{ki}\, \psi_{ki}(\mathbf r)
          \left(S_R \psi_{ki}\right)^*(\mathbf r)

S_R multiplies the waves of an orbital by the transform of h, which ends where the repetitions of a
mesh of k-points begin; it is exact for what waves of the grid can represent. Only the periodic
parts of orbitals matter here, without the phase of their k-point.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from ase.geometry import minkowski_reduce
from jaxtyping import Complex, Float, Inexact, Int
from pyscf import lib

from cider.features.sdmx import Sdmx
from cider.features.truncated_gaussians import Transforms, truncated_gaussians
from cider.features.waves import reciprocal_lattice
from cider.plugins.pyscf.density_matrices import eigenvectors

_SPAN = 1e-10
"""Size, relative to the largest, of what is left out of the transforms of the radii."""

_SAMPLES = 2.0
"""Waves per radian of the longest reach, among which that is found."""

_POINTS_TOGETHER = 8192

Spanned = list[Complex[np.ndarray, "_ _ grid"]]
"""By parts of ``Sdmx.parts``, each with its components and functions: sums of the latter are the
fields of a smoothed density matrix."""


class PeriodicSmoothing:
    """Features of density matrices at k-points on the uniform grid of a crystal, and the transpose.

    As functions of the waves, the transforms of all radii are sums of fewer functions. Raises
    ``NotImplementedError`` for k-points that are no regular mesh.
    """

    def __init__(
        self, cell: Any, grids: Any, sdmx: Sdmx, kpts: Float[np.ndarray, "kpt xyz"]
    ) -> None:
        self._cell, self._grids, self._sdmx, self._kpts = cell, grids, sdmx, kpts
        self._lattice = cell.lattice_vectors()
        self._mesh = tuple(int(count) for count in grids.mesh)
        repeated = self._lattice * _mesh_of_k_points(self._lattice, kpts)[:, None]
        self._reduced = minkowski_reduce(repeated)[0]
        self.reach = np.linalg.norm(self._reduced, axis=1).min() / 2
        """Where smoothing ends (bohr)."""
        longest = np.linalg.norm(reciprocal_lattice(self._lattice), axis=1) @ self._mesh / 2
        count = math.ceil(2 * _SAMPLES * longest * self.reach)
        self._spans = [_span(part) for part in self._transforms(np.linspace(0.0, longest, count))]

    def features(
        self, dms: Inexact[np.ndarray, "spin set kpt ao ao"]
    ) -> Float[np.ndarray, "spin set feature grid"]:
        """Features H of Hermitian density matrices."""
        shape = *dms.shape[:2], len(self._sdmx.terms), len(self._grids.weights)
        features = np.empty(shape)
        for index, spanned in self._smoothed(dms):
            for points, fields in self._fields(spanned):
                own = self._sdmx.features(fields.real) + self._sdmx.features(fields.imag)
                features[index][:, points] = own
        return features

    def potential_matrices(
        self,
        dms: Inexact[np.ndarray, "spin set kpt ao ao"],
        by_features: Float[np.ndarray, "spin set feature grid"],
        bands: Float[np.ndarray, "band xyz"],
    ) -> Complex[np.ndarray, "spin set band ao ao"]:
        r"""Derivative of an energy by the matrices, from that by their features; at ``bands``.

        With :math:`q_R` the conjugate of half of the derivative by the fields, it is that of

        .. math:: \sum_R \left(S_R^\dagger q_R + q_R^* S_R\right)
        """
        vmat = np.empty((*dms.shape[:2], len(bands), *dms.shape[-2:]), complex)
        by_smoothed = [
            (index, self._by_spanned(spanned, by_features[index]))
            for index, spanned in self._smoothed(dms)
        ]
        for band, orbitals in self._orbitals(bands):
            waves = self._waves(bands[band])
            for index, by_spanned in by_smoothed:
                applied = np.stack([waves.transpose(orbital, by_spanned) for orbital in orbitals])
                half = orbitals.conj() @ applied.T
                vmat[index][band] = half + half.conj().T
        return vmat

    def gradient_matrices(
        self,
        dms: Inexact[np.ndarray, "spin set kpt ao ao"],
        by_features: Float[np.ndarray, "spin set feature grid"],
    ) -> Complex[np.ndarray, "spin set xyz kpt ao ao"]:
        r"""What orbitals that move with their atoms do to the energy, points fixed (Ha/bohr).

        With v the operator of ``potential_matrices``,
        :math:`-\langle \nabla\phi_i | v | \phi_j \rangle`, as ``periodic_gradients`` reads it.
        """
        num_kpts, num_orbitals = dms.shape[2:4]
        matrices = np.empty((*dms.shape[:2], 3, num_kpts, num_orbitals, num_orbitals), complex)
        by_smoothed = [
            (index, self._by_spanned(spanned, by_features[index]))
            for index, spanned in self._smoothed(dms)
        ]
        moving = self._orbitals(self._kpts, "GTOval_ip")
        for (k, orbitals), (_, gradients) in zip(self._orbitals(self._kpts), moving, strict=True):
            waves = self._waves(self._kpts[k])
            for index, by_spanned in by_smoothed:
                applied = np.stack([waves.potential(orbital, by_spanned) for orbital in orbitals])
                matrices[index][:, k] = -gradients.conj() @ applied.T
        return matrices

    def _smoothed(
        self, dms: Inexact[np.ndarray, "spin set kpt ao ao"]
    ) -> Iterator[tuple[tuple[int, ...], Spanned]]:
        """Smoothed density matrices, one after the other."""
        num_points = len(self._grids.weights)
        spanned = {
            index: [
                np.zeros((components, len(span), num_points), complex)
                for components, span in zip(self._sdmx.parts, self._spans, strict=True)
            ]
            for index in np.ndindex(dms.shape[:2])
        }
        for k, orbitals in self._orbitals(self._kpts):
            waves = self._waves(self._kpts[k])
            for index, own in spanned.items():
                occupations, vectors = eigenvectors(dms[index][k])
                for occupation, psi in zip(occupations, vectors @ orbitals, strict=True):
                    waves.add_smoothed(own, occupation / len(self._kpts) * psi, psi)
        yield from spanned.items()

    def _fields(
        self, spanned: Spanned
    ) -> Iterator[tuple[slice, Complex[np.ndarray, "points component radius"]]]:
        """As ``Sdmx.features`` reads them, of some points at a time."""
        for start in range(0, len(self._grids.weights), _POINTS_TOGETHER):
            points = slice(start, start + _POINTS_TOGETHER)
            by_part = [
                np.einsum("cfg,fr->gcr", part[:, :, points], span, optimize=True)
                for part, span in zip(spanned, self._spans, strict=True)
            ]
            yield points, np.concatenate(by_part, axis=1)

    def _by_spanned(
        self, spanned: Spanned, by_features: Float[np.ndarray, "feature grid"]
    ) -> Spanned:
        """The conjugate of half of an energy's derivative by what spans the fields."""
        by_spanned = [np.empty_like(part) for part in spanned]
        ends = np.cumsum(self._sdmx.parts)[:-1]
        for points, fields in self._fields(spanned):
            own = by_features[:, points]
            real, imaginary = (
                self._sdmx.derivative_by_fields(part, own) for part in (fields.real, fields.imag)
            )
            by_parts = np.split((real - 1j * imaginary) / 2, ends, axis=1)
            for total, part, span in zip(by_spanned, by_parts, self._spans, strict=True):
                total[..., points] = np.einsum("gcr,fr->cfg", part, span, optimize=True)
        return by_spanned

    def _orbitals(
        self, kpts: Float[np.ndarray, "kpt xyz"], kind: str = "GTOval"
    ) -> Iterator[tuple[int, Complex[np.ndarray, "*xyz ao grid"]]]:
        """Periodic parts of the orbitals of the basis, by the number of the k-point.

        Those of the gradients, if they are the ``kind`` of PySCF's values.
        """
        coords = self._grids.coords
        for k, ao in enumerate(self._cell.pbc_eval_gto(kind, coords, kpts=kpts)):
            yield k, np.exp(-1j * coords @ kpts[k]) * ao.swapaxes(-1, -2)

    def _waves(self, kpt: Float[np.ndarray, " xyz"]) -> "_Waves":
        """The waves of a k-point, and what smoothing does to them."""
        reciprocal = reciprocal_lattice(self._lattice)
        numbers = self._wave_numbers(kpt)
        lengths = np.linalg.norm(numbers @ reciprocal, axis=-1)
        # The shortest waves are their own opposites, and go nowhere.
        directed = np.where(np.isclose(2 * numbers, -np.array(self._mesh)), 0.0, numbers)
        factors = self._spanned(self._transforms(lengths.ravel()))
        return _Waves(factors, np.moveaxis(1j * directed @ reciprocal, -1, 0))

    def _wave_numbers(self, kpt: Float[np.ndarray, " xyz"]) -> Float[np.ndarray, "x y z 3"]:
        """How often each wave of a k-point goes up and down along each lattice vector."""
        counts = [
            (np.fft.fftfreq(n, 1 / n) + k + n / 2) % n - n / 2
            for n, k in zip(self._mesh, self._lattice @ kpt / (2 * np.pi), strict=True)
        ]
        return np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1)

    def _transforms(
        self, lengths: Float[np.ndarray, " wave"]
    ) -> list[Float[np.ndarray, "wave radius"]]:
        """Those of h of each radius, and, if read, their derivatives by the log. exponents."""
        return self._of_radii(truncated_gaussians(lengths, self._sdmx.exponents, self.reach))

    def _of_radii(self, parts: Transforms) -> list[Float[np.ndarray, "wave radius"]]:
        """From those of Gaussians."""
        return [part @ self._sdmx.kernels for part in parts[: len(self._sdmx.parts)]]

    def _spanned(
        self, transforms: list[Float[np.ndarray, "wave radius"]]
    ) -> list[Float[np.ndarray, "_ x y z"]]:
        """As factors of the functions that span them."""
        return [
            (span @ part.T).reshape(-1, *self._mesh)
            for part, span in zip(transforms, self._spans, strict=True)
        ]


class _Waves(NamedTuple):
    """The waves of a k-point: factors of the functions that smooth them, and their gradients."""

    factors: list[Float[np.ndarray, "_ x y z"]]
    gradient: Complex[np.ndarray, "xyz x y z"]

    def add_smoothed(
        self,
        spanned: Spanned,
        factor: Complex[np.ndarray, " grid"],
        psi: Complex[np.ndarray, " grid"],
    ) -> None:
        """Add an orbital's smoothed conjugates, and their gradients, times a factor."""
        for component, smoothed in self._smoothed(psi, spanned):
            component += factor * smoothed.conj()

    def potential(
        self, psi: Complex[np.ndarray, " grid"], by_spanned: Spanned
    ) -> Complex[np.ndarray, " grid"]:
        r"""An orbital with :math:`\sum (S^\dagger q + q^* S)` applied to it."""
        total = self.transpose(psi, by_spanned)
        for component, smoothed in self._smoothed(psi, by_spanned):
            total += component.conj() * smoothed
        return total

    def transpose(
        self, psi: Complex[np.ndarray, " grid"], by_spanned: Spanned
    ) -> Complex[np.ndarray, " grid"]:
        r"""An orbital with :math:`\sum S^\dagger q` applied to it."""
        total = np.zeros(self.gradient.shape[1:], complex)
        for of_waves, own, _ in self._products(psi, by_spanned):
            total += of_waves * own
        return _transform(scipy.fft.ifftn, total).ravel()

    def derivative(
        self, psi: Complex[np.ndarray, " grid"], by_spanned: Spanned
    ) -> tuple[Float[np.ndarray, "_ x y z"], Complex[np.ndarray, "xyz x y z"]]:
        r"""Derivatives of an orbital's energy by the factors of all parts, and by the gradients.

        The energy is :math:`2\, \mathrm{Re} \sum_{\mathbf r} q\, \psi\, (S \psi)^*`. The real part
        of the latter, times a change of the gradients, is that of the energy.
        """
        waves = 2 / self.gradient[0].size * self._waves_of(psi.copy()).conj()
        by_factors, by_gradient = [], np.zeros_like(self.gradient)
        for of_waves, own, gradients in self._products(psi, by_spanned):
            by_factors.append((waves * own).real)
            for along, component in zip(by_gradient, gradients, strict=False):
                along -= of_waves * waves * component
        return np.stack(by_factors), by_gradient

    def _products(
        self, psi: Complex[np.ndarray, " grid"], by_spanned: Spanned
    ) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
        r"""Factors, the waves that they multiply in :math:`S^\dagger q`, and those of gradients."""
        for part, factors in zip(by_spanned, self.factors, strict=True):
            for function, of_waves in enumerate(factors):
                own, *gradients = (self._waves_of(component[function] * psi) for component in part)
                for along, component in zip(self.gradient, gradients, strict=False):
                    own -= along * component
                yield of_waves, own, gradients

    def _smoothed(
        self, psi: Complex[np.ndarray, " grid"], spanned: Spanned
    ) -> Iterator[tuple[Complex[np.ndarray, " grid"], Complex[np.ndarray, " grid"]]]:
        """Each component of each function, and the smoothed orbital or gradient that it reads."""
        waves = self._waves_of(psi.copy())
        for part, factors in zip(spanned, self.factors, strict=True):
            components = [waves, *(self.gradient * waves)][: len(part)]
            for function, of_waves in enumerate(factors):
                for component, own in enumerate(components):
                    smoothed = _transform(scipy.fft.ifftn, of_waves * own)
                    yield part[component, function], smoothed.ravel()

    def _waves_of(self, values: Complex[np.ndarray, " grid"]) -> Complex[np.ndarray, "x y z"]:
        """They may use the values' memory."""
        return _transform(scipy.fft.fftn, values.reshape(self.gradient.shape[1:]))


def _transform(
    transform: Any, values: Complex[np.ndarray, "x y z"]
) -> Complex[np.ndarray, "x y z"]:
    """It may use the values' memory."""
    return transform(values, overwrite_x=True, workers=lib.num_threads())


def _span(
    transforms: Float[np.ndarray, "wave radius"],
) -> Float[np.ndarray, "function radius"]:
    """Orthonormal rows, whose products with the transforms are all that these are made of."""
    _, sizes, rows = np.linalg.svd(transforms, full_matrices=False)
    return rows[sizes > _SPAN * sizes[0]]


def _mesh_of_k_points(
    lattice: Float[np.ndarray, "vector xyz"], kpts: Float[np.ndarray, "kpt xyz"]
) -> Int[np.ndarray, "3"]:
    """How many there are along each reciprocal vector, wherever the mesh begins."""
    fractions = np.round((kpts - kpts[0]) @ lattice.T / (2 * np.pi), 6) % 1
    counts = np.array([len(np.unique(own)) for own in fractions.T])
    if np.prod(counts) != len(kpts):
        raise NotImplementedError(
            "features of the density matrix need a regular mesh of k-points, as cell.make_kpts "
            f"makes it, not {len(kpts)} with {counts.tolist()} along the reciprocal vectors"
        )
    return counts
