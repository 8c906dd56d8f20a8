"""Excitation energies in PySCF: what a learned functional does differently."""

from typing import Any

import numpy as np
from pyscf import lib

from cider.functional import CiderFunctional
from cider.plugins.pyscf.libxc import raise_not_yet


def excitations_of_learned_functional(excitations: Any) -> Any:
    """PySCF's TDA or TDDFT object of a Kohn-Sham object, with ``CiderExcitations`` in front."""
    if not isinstance(excitations, CiderExcitations):
        lib.set_class(excitations, (CiderExcitations, excitations.__class__))
    return excitations


class CiderExcitations:
    """In front of a TDA or TDDFT class of PySCF.

    Excitation energies need but the response of the Kohn-Sham object. What evaluates the kernel
    point by point is replaced, or raises ``NotImplementedError`` by name.
    """

    __name_mixin__ = "Cider"

    def get_ab(self, mf: Any = None, frozen: Any = None) -> Any:
        r"""Matrices A and B (Ha) of TDDFT, in the shapes of PySCF.

        The response to each excitation is a row of A. Without exact exchange, and with real
        orbitals, :math:`B = A - (\epsilon_a - \epsilon_i)`.
        """
        mf = self._scf if mf is None else mf
        frozen = self.frozen if frozen is None else frozen
        if not isinstance(mf.xc, CiderFunctional):
            return super().get_ab(mf, frozen)
        if hasattr(self, "kshift_lst") or np.iscomplexobj(mf.mo_coeff):
            raise_not_yet("get_ab of k-points is", mf.xc)
        tda = mf.TDA(frozen)
        apply, differences = tda.gen_vind()
        a = apply(np.eye(len(differences)))
        b = a - np.diag(differences)
        masks = tda.get_frozen_mask()
        if np.ndim(mf.mo_occ) == 1:
            sizes = [_size(mf.mo_occ[masks])]
            return _blocks(a, sizes)[0][0], _blocks(b, sizes)[0][0]
        sizes = [_size(occ[mask]) for occ, mask in zip(mf.mo_occ, masks, strict=True)]
        spins = (0, 0), (0, 1), (1, 1)
        return tuple(tuple(_blocks(x, sizes)[s][t] for s, t in spins) for x in (a, b))

    def Gradients(self) -> Any:
        """Not available yet with a learned functional."""
        if isinstance(self._scf.xc, CiderFunctional):
            raise_not_yet("gradients of excited states are", self._scf.xc)
        return super().Gradients()

    nuc_grad_method = Gradients

    def to_gpu(self) -> Any:
        """Not available yet with a learned functional."""
        if isinstance(self._scf.xc, CiderFunctional):
            raise_not_yet("gpu4pyscf is", self._scf.xc)
        return super().to_gpu()

    def __reduce__(self) -> tuple[Any, ...]:
        # The class of this object was made at run time; pickle finds only PySCF's own by name.
        plain = self.copy()
        plain.__class__ = lib.drop_class(plain.__class__, CiderExcitations)
        return excitations_of_learned_functional, (plain,)


def _size(mo_occ: np.ndarray) -> tuple[int, int]:
    """Numbers of occupied and of virtual orbitals."""
    return int(np.sum(mo_occ > 0)), int(np.sum(mo_occ == 0))


def _blocks(matrix: np.ndarray, sizes: list[tuple[int, int]]) -> list[list[np.ndarray]]:
    """Of each pair of spins, over occupied and virtual orbitals."""
    ends = np.cumsum([occupied * virtual for occupied, virtual in sizes])[:-1]
    return [
        [
            block.reshape(*own, *other)
            for other, block in zip(sizes, np.split(rows, ends, axis=1), strict=True)
        ]
        for own, rows in zip(sizes, np.split(matrix, ends), strict=True)
    ]
