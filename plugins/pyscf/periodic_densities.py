"""Densities of density matrices in periodic cells, and matrices of potentials.

Matrices have an axis of k-points where the integration has several.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Inexact

from cider.plugins.pyscf.learned_numint import Settings


def densities(
    integrator: Any,
    cell: Any,
    grids: Any,
    dms: Sequence[Any],
    settings: Settings,
    with_tau: bool,
) -> Inexact[np.ndarray, "spin set ingredient grid"]:
    """rho, grad rho and tau of one density matrix, or a list of them, of each spin.

    Complex for matrices that are not Hermitian, unless they and the orbitals are real.
    """
    level = "MGGA" if with_tau else "GGA"
    evaluators = [integrator._gen_rho_evaluator(cell, dm, settings.hermi, False) for dm in dms]
    _, num_sets, nao = evaluators[0]
    where = settings.kpts, None, settings.max_memory
    blocks = [
        np.stack([[rho(i, ao, mask, level) for i in range(num_sets)] for rho, *_ in evaluators])
        for _, ao, mask, *_ in integrator.block_loop(cell, grids, nao, 1, *where)
    ]
    return np.concatenate(blocks, axis=-1)


def potential_matrices(
    integrator: Any,
    cell: Any,
    grids: Any,
    potential: Inexact[np.ndarray, "spin set ingredient grid"],
    settings: Settings,
) -> np.ndarray:
    """Derivative of the energy by each density matrix, at each k-point or band."""
    level = "MGGA" if potential.shape[2] == 5 else "GGA"
    # With this, PySCF returns what is to be added to its Hermitian conjugate.
    hermitian = np.isrealobj(potential)
    shells = (0, cell.nbas), cell.ao_loc, int(hermitian)
    vmat: dict[tuple[int, ...], Any] = dict.fromkeys(np.ndindex(potential.shape[:2]), 0)
    start = 0
    where = settings.kpts, settings.kpts_band, settings.max_memory
    for ao, _, mask, weights, _ in integrator.block_loop(cell, grids, cell.nao, 1, *where):
        points = slice(start, start + len(weights))
        for index in vmat:
            own = potential[index][:, points].copy()  # PySCF scales it in place
            vmat[index] += integrator._vxc_mat(cell, ao, own, mask, level, *shells)
        start = points.stop
    matrices = np.reshape(list(vmat.values()), (*potential.shape[:2], *vmat[0, 0].shape))
    return matrices + matrices.conj().swapaxes(-1, -2) if hermitian else matrices
