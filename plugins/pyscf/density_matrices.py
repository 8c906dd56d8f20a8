"""Densities of density matrices on the grid, and matrices of potentials."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Inexact, Int
from pyscf.dft import numint

from cider.plugins.pyscf.atomic_orbitals import AOBlock, map_ao_blocks

ROUNDING = 1e-14
"""Eigenvalues of a density matrix below this fraction of the largest are left out.

The energy of so small a change of the matrix is below 1e-11 Ha.
"""

POTENTIAL_SHARES = np.array([[0.5], [1.0], [1.0], [1.0], [0.25]])
"""What products with rho, grad rho and tau contribute to a matrix that is added to its transpose.

The sum doubles what is symmetric already.
"""


def checked_matrices(mol: Any, dms: Sequence[Any]) -> Float[np.ndarray, "spin set ao ao"]:
    """One density matrix or several of each spin, once they are known to make sense.

    Raises ``NotImplementedError`` for complex or spinor ones, ``ValueError`` for NaN or infinity.
    """
    for dm in dms:
        _check_density_matrix(mol, dm)
    return np.stack([np.reshape(dm, (-1, mol.nao, mol.nao)) for dm in dms])


def _check_density_matrix(mol: Any, dm: Any) -> None:
    dm = np.asarray(dm)
    if np.iscomplexobj(dm) or dm.shape[-1] != mol.nao:
        raise NotImplementedError(
            f"a learned functional needs real density matrices over the {mol.nao} orbitals of the "
            f"molecule, not {dm.dtype} of shape {dm.shape}: GKS, DKS and complex orbitals are not "
            "available yet, and the orbitals of another molecule or basis must be projected first"
        )
    if not np.isfinite(dm).all():
        raise ValueError(
            "the density matrix contains NaN or infinity: start the SCF from another guess, "
            "such as mf.kernel(mf.get_init_guess(key='minao')), or check what produced it"
        )


def densities(
    mol: Any,
    grids: Any,
    dms: Float[np.ndarray, "spin set ao ao"],
    with_tau: bool,
    max_memory: float,
) -> Float[np.ndarray, "spin set ingredient grid"]:
    r"""rho, grad rho and tau of density matrices.

    .. math:: \rho = \sum_k n_k \psi_k^2, \quad \nabla\rho = 2 \sum_k n_k \psi_k \nabla\psi_k,
              \quad \tau = \tfrac12 \sum_k n_k |\nabla\psi_k|^2

    The :math:`\psi_k` are eigenvectors of the matrix, few of which have an eigenvalue other than
    zero. They need no orbitals to come with it, and no trust that those are its own.
    """
    orbitals = {index: eigenvectors(dms[index]) for index in np.ndindex(dms.shape[:2])}
    rho = np.zeros((*dms.shape[:2], 5 if with_tau else 4, len(grids.weights)))

    def fill(block: AOBlock) -> None:
        points, active, ao, _ = block
        for index, (occupations, coefficients) in orbitals.items():
            psi = coefficients[:, active] @ ao
            occupied = occupations[:, None] * psi
            rho[index][:4, points] = np.einsum("kg,ckg->cg", occupied[0], psi)
            if with_tau:
                rho[index][4, points] = np.einsum("ckg,ckg->g", occupied[1:], psi[1:])

    list(map_ao_blocks(fill, mol, grids, max_memory))
    rho[:, :, 1:4] *= 2
    rho[:, :, 4:] *= 0.5
    return rho


def eigenvectors(
    dm: Inexact[np.ndarray, "ao ao"],
) -> tuple[Float[np.ndarray, " orbital"], Inexact[np.ndarray, "orbital ao"]]:
    """Eigenvalues and eigenvectors of the Hermitian part, without those that are rounding.

    Its orbitals are rows.
    """
    occupations, coefficients = np.linalg.eigh((dm + dm.conj().T) / 2)
    size = abs(occupations)
    occupied = size > ROUNDING * size.max()
    return occupations[occupied], np.ascontiguousarray(coefficients[:, occupied].T)


def potential_matrices(
    mol: Any,
    grids: Any,
    potential: Float[np.ndarray, "spin set ingredient grid"],
    max_memory: float,
) -> Float[np.ndarray, "spin set ao ao"]:
    r"""Derivative of the energy by each density matrix.

    .. math:: V_{ij} = \sum_g v^\rho \phi_i\phi_j + v^{\nabla\rho} \cdot \nabla(\phi_i\phi_j)
              + \tfrac12 v^\tau \nabla\phi_i \cdot \nabla\phi_j
    """
    vmat = np.zeros((*potential.shape[:2], mol.nao, mol.nao))
    shares = POTENTIAL_SHARES[: potential.shape[2]]

    def products(block: AOBlock) -> tuple[Int[np.ndarray, " active"], list[np.ndarray]]:
        points, active, ao, room = block
        by_point = ao.transpose(0, 2, 1)  # as PySCF has it
        result = []
        for index in np.ndindex(potential.shape[:2]):
            v = shares * potential[index][:, points]
            product = ao[0] @ numint._scale_ao(by_point, v[:4], out=room)
            if len(v) == 5:
                for gradient in by_point[1:]:
                    scaled = numint._scale_ao(gradient, v[4], out=room)
                    _add_symmetric(product, gradient.T, scaled)
            result.append(product)
        return active, result

    for active, of_block in map_ao_blocks(products, mol, grids, max_memory):
        for index, product in zip(np.ndindex(potential.shape[:2]), of_block, strict=True):
            vmat[index][np.ix_(active, active)] += product
    return vmat + vmat.swapaxes(-1, -2)


def _add_symmetric(
    total: Float[np.ndarray, "ao ao"],
    left: Float[np.ndarray, "ao grid"],
    right: Float[np.ndarray, "grid ao"],
) -> None:
    """Add ``left @ right``, a symmetric matrix, with its lower blocks added to the upper ones.

    So the sum with the transpose is right, and a third of the work is saved.
    """
    ends = np.linspace(0, len(total), 4).astype(int).tolist()
    for start, stop in itertools.pairwise(ends):
        own = slice(start, stop)
        total[own, own] += left[own] @ right[:, own]
        if stop < len(total):
            total[own, stop:] += 2 * (left[own] @ right[:, stop:])
