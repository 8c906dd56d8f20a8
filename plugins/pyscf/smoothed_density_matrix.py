r"""The smoothed density matrix on PySCF's grids: the linear map S of the design.

.. math:: P_\beta(\mathbf r) = \left(\frac{\beta}{\pi}\right)^{3/2}
          \int e^{-\beta |\mathbf r - \mathbf r'|^2}\, n_1(\mathbf r', \mathbf r)\, d^3r'
          = \sum_{ij} \gamma_{ij}\, \phi_i(\mathbf r)\, \tilde\phi_j(\beta; \mathbf r)

The smoothed orbitals, many more numbers than the fields that come of them, live for some hundred
points at a time. The fields stay from the features, which are quadratic forms of them, to the
potential, if there is room for them.
"""

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from pyscf.dft import numint
from pyscf.gto import ANG_OF, ATOM_OF, BAS_SLOTS, NCTR_OF, NPRIM_OF, PTR_COEFF, PTR_EXP

from cider.features.sdmx import Sdmx
from cider.features.smoothed_orbitals import Shell, SmoothedOrbitals, SmoothedShells
from cider.plugins.pyscf.atomic_orbitals import AOBlock, map_ao_blocks
from cider.plugins.pyscf.density_matrices import eigenvectors

POINTS_TOGETHER = 560
"""Points whose smoothed orbitals are there at the same time, in each thread: half of a block."""

_Index: TypeAlias = tuple[int, ...]
"""Spin and set of a density matrix."""

Fields: TypeAlias = dict[_Index, Float[np.ndarray, "grid component kernel"]]
"""Of density matrices."""


def sdmx_features(
    mol: Any,
    grids: Any,
    sdmx: Sdmx,
    dms: Float[np.ndarray, "spin set ao ao"],
    max_memory: float,
    kept: Fields | None = None,
) -> Float[np.ndarray, "spin set feature grid"]:
    """Features H of density matrices; raises as ``smoothed_shells``.

    Their fields are ``kept``, if that is given and they take less than half of the memory (MB).
    """
    features = np.zeros((*dms.shape[:2], len(sdmx.terms), len(grids.weights)))
    smoothing = _Smoothing(mol, grids, sdmx, dms)
    shells = smoothing.shells
    shape = len(grids.weights), sum(shells.parts), shells.kernels.shape[1]
    if kept is not None and 8e-6 * math.prod(dms.shape[:2] + shape) < max_memory / 2:
        kept.update((index, np.empty(shape)) for index in np.ndindex(dms.shape[:2]))

    def fill(block: AOBlock) -> None:
        every = smoothing.coefficients(block)
        for part, points, smoothed in smoothing.parts(block):
            for index, coefficients in every.items():
                fields = smoothed.apply(coefficients[:, part])
                features[index][:, points] = sdmx.features(fields)
                if kept:
                    kept[index][points] = fields

    list(map_ao_blocks(fill, mol, grids, max_memory, deriv=0))
    return features


def sdmx_potential_matrices(
    mol: Any,
    grids: Any,
    sdmx: Sdmx,
    dms: Float[np.ndarray, "spin set ao ao"],
    by_features: Float[np.ndarray, "spin set feature grid"],
    max_memory: float,
    kept: Fields | None = None,
) -> Float[np.ndarray, "spin set ao ao"]:
    """Derivative of an energy by the density matrices, from that by their features.

    It is faster where the fields of these are ``kept``.
    """
    vmat = np.zeros_like(dms)
    smoothing = _Smoothing(mol, grids, sdmx, dms)

    def products(block: AOBlock) -> tuple[Int[np.ndarray, " active"], dict[_Index, np.ndarray]]:
        coefficients = None if kept else smoothing.coefficients(block)
        derivatives = smoothing.by_coefficients(block, coefficients, by_features, kept)
        return block.active, {index: block.ao[0] @ own.T for index, (own,) in derivatives.items()}

    for active, of_block in map_ao_blocks(products, mol, grids, max_memory, deriv=0):
        for index, product in of_block.items():
            vmat[index][active] += product
    return (vmat + vmat.swapaxes(-1, -2)) / 2


def sdmx_gradients(
    mol: Any,
    grids: Any,
    sdmx: Sdmx,
    dms: Float[np.ndarray, "spin ao ao"],
    by_features: Float[np.ndarray, "spin feature grid"],
    max_memory: float,
) -> tuple[Float[np.ndarray, "spin xyz ao ao"], Float[np.ndarray, "xyz grid"]]:
    r"""What moving orbitals do to an energy through the features, and moving points (Ha/bohr).

    With :math:`t_j` the derivative of the energy of a point by the coefficient
    :math:`\sum_i \gamma_{ij} \phi_i` of the smoothed orbital j, a sum of :math:`\tilde\phi_j`,

    .. math:: V_{ij} = -\tfrac12 \sum_g \left(\nabla\phi_i\, t_j + \nabla t_i\, \phi_j\right),

    to be read as ``gradient_matrices``. Points move against all orbitals at once.
    """
    matrices = np.zeros((len(dms), 3, *dms.shape[1:]))
    by_points = np.zeros((3, len(grids.weights)))
    smoothing = _Smoothing(mol, grids, sdmx, dms[:, None], moving=True)

    def products(block: AOBlock) -> tuple[Int[np.ndarray, " active"], list[tuple[np.ndarray, Any]]]:
        points, active, ao, _ = block
        every = smoothing.coefficients(block)
        derivatives = smoothing.by_coefficients(block, every, by_features[:, None])
        result = []
        for (spin, _), (own, *gradients) in derivatives.items():
            by_orbitals = dms[spin][active] @ own
            for x, (gradient, ao_gradient) in enumerate(zip(gradients, ao[1:], strict=True)):
                by_points[x, points] += np.sum(ao_gradient * by_orbitals, axis=0)
                by_points[x, points] += np.sum(gradient * every[spin, 0], axis=0)
            result.append((np.stack([x @ own.T for x in ao[1:]]), np.stack(gradients) @ ao[0].T))
        return active, result

    for active, of_block in map_ao_blocks(products, mol, grids, max_memory, deriv=1):
        for total, (by_left, by_right) in zip(matrices, of_block, strict=True):
            total[:, active] -= by_left / 2
            total[:, :, active] -= by_right / 2
    return matrices, by_points


def smoothed_shells(mol: Any, sdmx: Sdmx, moving: bool = False) -> SmoothedShells:
    """The shells of a molecule with what smooths them, and, if ``moving``, what motion needs.

    Raises ``NotImplementedError`` for Cartesian d and higher functions, which are no solid
    harmonics.
    """
    shells = []
    for row in mol._bas:
        atom, l, primitives, contractions = row[[ATOM_OF, ANG_OF, NPRIM_OF, NCTR_OF]]
        if mol.cart and l > 1:
            raise NotImplementedError(
                f"{', '.join(sdmx.names)} of Cartesian d functions are not available yet: "
                "build the molecule with cart=False"
            )
        exponents = mol._env[row[PTR_EXP] :][:primitives]
        coefficients = mol._env[row[PTR_COEFF] :][: primitives * contractions]
        for own in coefficients.reshape(contractions, primitives):
            shells.append(Shell(int(atom), int(l), exponents, own))
    return SmoothedShells(shells, sdmx.exponents, sdmx.kernels, sdmx.parts, moving)


def smoothed_orbitals(
    mol: Any, shells: SmoothedShells, coords: Float[np.ndarray, "grid xyz"]
) -> SmoothedOrbitals:
    """The smoothed orbitals of a molecule at some points (bohr)."""
    harmonics = numint.eval_ao(_solid_harmonics(mol, shells), coords, deriv=shells.order)
    by_component = harmonics.reshape(-1, len(coords), harmonics.shape[-1])
    offsets = coords[:, None] - mol.atom_coords()
    return SmoothedOrbitals(shells, by_component.transpose(0, 2, 1), offsets)


class _Smoothing:
    """What smooths density matrices over the orbitals of a molecule, block by block."""

    def __init__(
        self,
        mol: Any,
        grids: Any,
        sdmx: Sdmx,
        dms: Float[np.ndarray, "spin set ao ao"],
        moving: bool = False,
    ):
        self.shells = smoothed_shells(mol, sdmx, moving)
        self._mol, self._grids, self._sdmx = mol, grids, sdmx
        self._orbitals = {index: eigenvectors(dms[index]) for index in np.ndindex(dms.shape[:2])}

    def coefficients(self, block: AOBlock) -> dict[_Index, Float[np.ndarray, "ao point"]]:
        """Of the smoothed orbitals: sums over the orbitals of each matrix times their values."""
        return {
            index: vectors.T @ (occupations[:, None] * (vectors[:, block.active] @ block.ao[0]))
            for index, (occupations, vectors) in self._orbitals.items()
        }

    def parts(self, block: AOBlock) -> Iterator[tuple[slice, slice, SmoothedOrbitals]]:
        """Some points at a time: which they are of the block, and of all; the orbitals there."""
        size = block.ao.shape[2]
        for start in range(0, size, POINTS_TOGETHER):
            part = slice(start, min(start + POINTS_TOGETHER, size))
            points = slice(block.points.start + part.start, block.points.start + part.stop)
            yield (
                part,
                points,
                smoothed_orbitals(self._mol, self.shells, self._grids.coords[points]),
            )

    def by_coefficients(
        self,
        block: AOBlock,
        coefficients: dict[_Index, Float[np.ndarray, "ao point"]] | None,
        by_features: Float[np.ndarray, "spin set feature grid"],
        kept: Fields | None = None,
    ) -> dict[_Index, Float[np.ndarray, "derivative ao point"]]:
        """Derivatives of an energy by the coefficients, and their gradients if these are moving.

        Fields come from the coefficients, unless they are ``kept``.
        """
        shape = 4 if self.shells.moving else 1, self._mol.nao, block.ao.shape[2]
        derivatives = {index: np.empty(shape) for index in self._orbitals}
        for part, points, smoothed in self.parts(block):
            for index, derivative in derivatives.items():
                if kept:
                    fields = kept[index][points]
                else:
                    assert coefficients is not None
                    fields = smoothed.apply(coefficients[index][:, part])
                by_fields = self._sdmx.derivative_by_fields(fields, by_features[index][:, points])
                derivative[..., part] = smoothed.transpose(by_fields)
        return derivatives


def _solid_harmonics(mol: Any, shells: SmoothedShells) -> Any:
    """A molecule whose orbitals are solid harmonics: PySCF's Gaussians of exponent zero."""
    harmonics = mol.copy(deep=False)
    rows = np.zeros((len(shells.harmonics), BAS_SLOTS), dtype=np.int32)
    rows[:, [ATOM_OF, ANG_OF]] = shells.harmonics
    rows[:, [NPRIM_OF, NCTR_OF]] = 1
    rows[:, PTR_EXP], rows[:, PTR_COEFF] = len(mol._env), len(mol._env) + 1
    harmonics._bas, harmonics._env = rows, np.append(mol._env, [0.0, 1.0])
    return harmonics
