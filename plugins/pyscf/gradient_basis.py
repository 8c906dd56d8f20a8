"""Gradients of the orbitals of a cell, as combinations of other Gaussian orbitals."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pyscf.gto import gto_norm
from pyscf.gto.mole import ANG_OF, ATOM_OF, NCTR_OF, NPRIM_OF, PTR_COEFF, PTR_EXP
from pyscf.pbc.gto.cell import estimate_rcut

_EXPONENT_DIGITS = 9
"""PySCF takes exponents of one atom for the same where these digits agree."""


class GradientBasis(NamedTuple):
    """Cartesian Gaussians, and what combinations of these are gradients of orbitals."""

    cell: Any
    """The cell with these Gaussians in the place of its orbitals."""
    derivatives: Float[np.ndarray, "xyz gaussian ao"]


def gradient_basis(cell: Any) -> GradientBasis:
    r"""The Gaussians that gradients of the orbitals of a cell consist of.

    .. math:: \partial_x\, x^a e^{-\alpha r^2}
              = a x^{a-1} e^{-\alpha r^2} - 2 \alpha x^{a+1} e^{-\alpha r^2}

    Bloch sums have gradients of the same coefficients, at every k-point.
    """
    primitives, contraction = cell.decontract_basis(to_cart=True, aggregate=True)
    known = primitives._bas[:, [ATOM_OF, ANG_OF]].tolist()
    exponents = primitives._env[primitives._bas[:, PTR_EXP]].tolist()
    coefficients = primitives._env[primitives._bas[:, PTR_COEFF]]

    targets = [
        {step: (atom, l + step, -round(exponent, _EXPONENT_DIGITS)) for step in _steps(l)}
        for (atom, l), exponent in zip(known, exponents, strict=True)
    ]
    shells = sorted({shell for own in targets for shell in own.values()})
    new_cell, norms = _cell_of_shells(cell, shells)
    offsets = dict(zip(shells, new_cell.ao_loc_nr().tolist(), strict=False))
    norm_of = dict(zip(shells, norms, strict=True))

    derivatives = np.zeros((3, new_cell.nao, primitives.nao))
    column = 0
    for (_, l), exponent, coefficient, own in zip(
        known, exponents, coefficients, targets, strict=True
    ):
        for step, shell in own.items():
            scale = coefficient * _libcint_factor(l)
            scale /= norm_of[shell] * _libcint_factor(l + step)
            block = scale * (1 if step < 0 else -2 * exponent) * _derivatives(l, step)
            rows = slice(offsets[shell], offsets[shell] + block.shape[1])
            derivatives[:, rows, column : column + block.shape[2]] += block
        column += len(_powers(l))
    return GradientBasis(new_cell, derivatives @ contraction)


def _cell_of_shells(
    cell: Any, shells: list[tuple[int, int, float]]
) -> tuple[Any, Float[np.ndarray, " shell"]]:
    """A cell with one normalised Gaussian for each atom, momentum and negative exponent."""
    atoms, momenta, negative = (np.array(column) for column in zip(*shells, strict=True))
    norms = gto_norm(momenta, -negative)
    end = len(cell._env)
    new = cell.copy(deep=False)
    new._bas = np.zeros((len(shells), cell._bas.shape[1]), cell._bas.dtype)
    new._bas[:, ATOM_OF], new._bas[:, ANG_OF] = atoms, momenta
    new._bas[:, NPRIM_OF] = new._bas[:, NCTR_OF] = 1
    new._bas[:, PTR_EXP] = end + np.arange(len(shells))
    new._bas[:, PTR_COEFF] = new._bas[:, PTR_EXP] + len(shells)
    new._env = np.concatenate([cell._env, -negative, norms])
    new.cart = True
    new.rcut = estimate_rcut(new)
    return new, norms


def _steps(l: int) -> tuple[int, ...]:
    return (1, -1) if l else (1,)


def _libcint_factor(l: int) -> float:
    """By what libcint multiplies Cartesian Gaussians of s and p shells."""
    return math.sqrt((2 * l + 1) / (4 * math.pi)) if l < 2 else 1.0


def _powers(l: int) -> list[list[int]]:
    """Of x, y and z, in libcint's order."""
    return [[x, y, l - x - y] for x in range(l, -1, -1) for y in range(l - x, -1, -1)]


@functools.lru_cache
def _derivatives(l: int, step: int) -> Float[np.ndarray, "xyz new old"]:
    """Of powers of momentum l, what is a power lower; or higher, over that of the exponent."""
    new = _powers(l + step)
    matrix = np.zeros((3, len(new), len(_powers(l))))
    for i, powers in enumerate(_powers(l)):
        for axis in range(3):
            changed = [power + step * (axis == x) for x, power in enumerate(powers)]
            if min(changed) >= 0:
                matrix[axis, new.index(changed), i] = powers[axis] if step < 0 else 1
    return matrix
