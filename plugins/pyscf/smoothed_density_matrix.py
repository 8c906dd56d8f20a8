r"""The smoothed density matrix on PySCF's grids: the linear map S of the design.

.. math:: P_\beta(\mathbf r) = \left(\frac{\beta}{\pi}\right)^{3/2}
          \int e^{-\beta |\mathbf r - \mathbf r'|^2}\, n_1(\mathbf r', \mathbf r)\, d^3r'
          = \sum_{ij} \gamma_{ij}\, \phi_i(\mathbf r)\, \tilde\phi_j(\beta; \mathbf r)

The smoothed orbitals, many more numbers than the fields that come of them, live for some hundred
points at a time. The fields stay from the features, which are quadratic forms of them, to the
potential, if there is room for them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pyscf import lib
from pyscf.dft import numint
from pyscf.gto import ANG_OF, ATOM_OF, BAS_SLOTS, NCTR_OF, NPRIM_OF, PTR_COEFF, PTR_EXP

from cider.features.sdmx import Sdmx
from cider.features.smoothed_orbitals import Shell, SmoothedOrbitals, SmoothedShells
from cider.features.threads import thread_pool
from cider.plugins.pyscf.atomic_orbitals import ao_blocks
from cider.plugins.pyscf.density_matrices import eigenvectors

POINTS_TOGETHER = 512
"""Points whose smoothed orbitals are there at the same time, in each thread."""

Fields = dict[tuple[int, ...], Float[np.ndarray, "grid component kernel"]]
"""Of density matrices, by spin and set."""


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
    shells = smoothed_shells(mol, sdmx)
    shape = len(grids.weights), sum(shells.parts), shells.kernels.shape[1]
    if kept is not None and 8e-6 * math.prod(dms.shape[:2] + shape) < max_memory / 2:
        kept.update((index, np.empty(shape)) for index in np.ndindex(dms.shape[:2]))
    for block in _blocks(mol, grids, dms, max_memory):

        def fill(part: slice, smoothed: SmoothedOrbitals, block: _Block = block) -> None:
            for index, coefficients in block.coefficients.items():
                fields = smoothed.apply(coefficients[:, part])
                features[index][:, block.points][:, part] = sdmx.features(fields)
                if kept:
                    kept[index][block.points][part] = fields

        _for_parts(fill, mol, grids, shells, block)
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
    given = mol, grids, sdmx, dms, by_features, max_memory
    for block, by_coefficients in _transposes(*given, kept=kept):
        for index, (own,) in by_coefficients.items():
            vmat[index][block.active] += lib.ddot(block.ao[0], np.ascontiguousarray(own.T))
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
    given = mol, grids, sdmx, dms[:, None], by_features[:, None], max_memory
    for block, by_coefficients in _transposes(*given, moving=True):
        for (spin, _), (own, *gradients) in by_coefficients.items():
            coefficients = block.coefficients[spin, 0]
            by_orbitals = lib.ddot(np.ascontiguousarray(dms[spin][block.active]), own)
            own_by_point = np.ascontiguousarray(own.T)
            ao_by_point = np.ascontiguousarray(block.ao[0].T)
            for x, (gradient, ao_gradient) in enumerate(zip(gradients, block.ao[1:], strict=True)):
                total = matrices[spin, x]
                total[block.active] -= lib.ddot(ao_gradient, own_by_point) / 2
                total[:, block.active] -= lib.ddot(gradient, ao_by_point) / 2
                by_points[x, block.points] += np.sum(ao_gradient * by_orbitals, axis=0)
                by_points[x, block.points] += np.sum(gradient * coefficients, axis=0)
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


class _Block(NamedTuple):
    """Some points of the grid, the orbitals there, and their smoothed ones' coefficients.

    ``coefficients`` are sums over the orbitals of each density matrix times their values.
    """

    points: slice
    active: Int[np.ndarray, " active"]
    ao: Float[np.ndarray, "component active grid"]
    coefficients: dict[tuple[int, ...], Float[np.ndarray, "ao grid"]]


def _blocks(
    mol: Any,
    grids: Any,
    dms: Float[np.ndarray, "spin set ao ao"],
    max_memory: float,
    deriv: int = 0,
) -> Iterator[_Block]:
    orbitals = {index: eigenvectors(dms[index]) for index in np.ndindex(dms.shape[:2])}
    for points, active, ao, _ in ao_blocks(mol, grids, max_memory, deriv):
        coefficients = {}
        for index, (occupations, vectors) in orbitals.items():
            psi = lib.ddot(np.ascontiguousarray(vectors[:, active]), ao[0])
            coefficients[index] = lib.ddot(vectors.T, occupations[:, None] * psi)
        yield _Block(points, active, ao, coefficients)


def _transposes(
    mol: Any,
    grids: Any,
    sdmx: Sdmx,
    dms: Float[np.ndarray, "spin set ao ao"],
    by_features: Float[np.ndarray, "spin set feature grid"],
    max_memory: float,
    moving: bool = False,
    kept: Fields | None = None,
) -> Iterator[tuple[_Block, dict[tuple[int, ...], Float[np.ndarray, "derivative ao grid"]]]]:
    """Derivatives of an energy by the coefficients of each block, and their gradients.

    There are gradients, also of the orbitals, if these are ``moving``.
    """
    shells = smoothed_shells(mol, sdmx, moving)
    for block in _blocks(mol, grids, dms, max_memory, deriv=int(moving)):
        shape = 4 if moving else 1, *next(iter(block.coefficients.values())).shape
        by_coefficients = {index: np.empty(shape) for index in block.coefficients}

        def fill(
            part: slice,
            smoothed: SmoothedOrbitals,
            block: _Block = block,
            by_coefficients: dict[Any, np.ndarray] = by_coefficients,
        ) -> None:
            for index, coefficients in block.coefficients.items():
                if kept:
                    fields = kept[index][block.points][part]
                else:
                    fields = smoothed.apply(coefficients[:, part])
                by_own = by_features[index][:, block.points][:, part]
                values = smoothed.transpose(sdmx.derivative_by_fields(fields, by_own))
                by_coefficients[index][..., part] = values

        _for_parts(fill, mol, grids, shells, block)
        yield block, by_coefficients


def _for_parts(
    function: Callable[[slice, SmoothedOrbitals], None],
    mol: Any,
    grids: Any,
    shells: SmoothedShells,
    block: _Block,
) -> None:
    """Call a function with parts of a block and the smoothed orbitals there, in threads."""
    coords = grids.coords[block.points]

    def run(start: int) -> None:
        part = slice(start, min(start + POINTS_TOGETHER, len(coords)))
        with lib.with_omp_threads(1):
            smoothed = smoothed_orbitals(mol, shells, coords[part])
        function(part, smoothed)

    with thread_pool() as pool:
        list(pool.map(run, range(0, len(coords), POINTS_TOGETHER)))


def _solid_harmonics(mol: Any, shells: SmoothedShells) -> Any:
    """A molecule whose orbitals are solid harmonics: PySCF's Gaussians of exponent zero."""
    harmonics = mol.copy(deep=False)
    rows = np.zeros((len(shells.harmonics), BAS_SLOTS), dtype=np.int32)
    rows[:, [ATOM_OF, ANG_OF]] = shells.harmonics
    rows[:, [NPRIM_OF, NCTR_OF]] = 1
    rows[:, PTR_EXP], rows[:, PTR_COEFF] = len(mol._env), len(mol._env) + 1
    harmonics._bas, harmonics._env = rows, np.append(mol._env, [0.0, 1.0])
    return harmonics
