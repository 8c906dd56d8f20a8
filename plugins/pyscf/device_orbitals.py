"""Densities of density matrices and matrices of potentials on a GPU, by JAX.

Only matrices, the ingredients of the density and their potentials cross to it and back. Orbitals
are evaluated in blocks of points; products are made with those that reach the block.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pyscf import gto
from pyscf.dft import numint

from cider.conventions import AnyArray, float64
from cider.features.accelerator import smaller_where_memory_is_short
from cider.plugins.pyscf.atomic_orbitals import screening_table
from cider.plugins.pyscf.density_matrices import POTENTIAL_SHARES, eigenvectors

POINTS_TOGETHER = 8192
"""Points of a block, if the memory suffices: 1 GB for a thousand orbitals."""

ORBITALS_IN_STEPS = 128
"""Blocks have a multiple of this many orbitals, so that few programs are compiled."""


class _Shells(eqx.Module):
    """Contracted shells of one angular momentum, with equal numbers of Gaussians."""

    l: int = eqx.field(static=True)
    centers: Float[AnyArray, "shell xyz"]
    exponents: Float[AnyArray, "shell primitive"]
    coefficients: Float[AnyArray, "shell primitive contraction"]
    angular: Float[AnyArray, "m cartesian"]
    """Of the solid harmonics, in terms of Cartesian monomials."""

    def __call__(self, coords: Float[Array, "grid xyz"]) -> Float[Array, "component ao grid"]:
        """Values and gradients, ordered by shell, contraction and m."""
        offsets = coords.T[None] - self.centers[..., None]
        squared = jnp.sum(offsets**2, axis=1)
        gaussians = jnp.exp(-self.exponents[..., None] * squared[:, None])
        radial = jnp.einsum("spc,spg->scg", self.coefficients, gaussians)
        slopes = jnp.einsum(
            "spc,spg->scg", -2 * self.exponents[..., None] * self.coefficients, gaussians
        )
        powers = [jnp.ones_like(offsets)]
        for _ in range(self.l):
            powers.append(powers[-1] * offsets)
        degrees = _cartesian_degrees(self.l)
        values = self._harmonics(
            [powers[n][:, axis] for axis, n in enumerate(of)] for of in degrees
        )
        components = [radial[:, :, None] * values[:, None]]
        for axis in range(3):
            derivatives = []
            for of in degrees:
                factors = [powers[n][:, other] for other, n in enumerate(of)]
                factors[axis] = of[axis] * powers[max(of[axis] - 1, 0)][:, axis]
                derivatives.append(factors)
            along = self._harmonics(derivatives)
            scaled = slopes * offsets[:, None, axis]
            components.append(
                scaled[:, :, None] * values[:, None] + radial[:, :, None] * along[:, None]
            )
        return jnp.stack(components).reshape(4, -1, len(coords))

    def _harmonics(self, monomials: Any) -> Float[Array, "shell m grid"]:
        products = jnp.stack([x * y * z for x, y, z in monomials], axis=1)
        return jnp.einsum("mn,sng->smg", self.angular, products)


class GaussianBasis(eqx.Module):
    """The atomic orbitals of a molecule, ordered as PySCF does; see ``gaussian_basis``."""

    groups: tuple[_Shells, ...]
    order: Int[AnyArray, " ao"]
    """Where each orbital of PySCF stands among those of the groups."""

    def __call__(self, coords: Float[Array, "grid xyz"]) -> Float[Array, "component ao grid"]:
        """Values and gradients, as ``eval_ao`` gives them."""
        return jnp.concatenate([own(coords) for own in self.groups], axis=1)[:, self.order]


@float64
def gaussian_basis(mol: Any) -> GaussianBasis:
    """That of a molecule, on the device of JAX."""
    shells: dict[tuple[int, int, int], list[int]] = {}
    for shell in range(mol.nbas):
        kind = mol.bas_angular(shell), mol.bas_nprim(shell), mol.bas_nctr(shell)
        shells.setdefault(kind, []).append(shell)
    first, groups, order = mol.ao_loc_nr(), [], []
    for (l, *_), members in shells.items():
        order += [np.arange(first[shell], first[shell + 1]) for shell in members]
        groups.append(
            _Shells(
                l=l,
                centers=np.array([mol.bas_coord(shell) for shell in members]),
                exponents=np.array([mol.bas_exp(shell) for shell in members]),
                coefficients=np.array([mol._libcint_ctr_coeff(shell) for shell in members]),
                angular=_angular(l, mol.cart),
            )
        )
    basis = GaussianBasis(tuple(groups), np.argsort(np.concatenate(order)))
    return jax.tree.map(jnp.asarray, basis)


def _cartesian_degrees(l: int) -> list[tuple[int, int, int]]:
    """Powers of x, y and z in the order of PySCF."""
    return [(i, j, l - i - j) for i in range(l, -1, -1) for j in range(l - i, -1, -1)]


def _angular(l: int, cartesian: bool) -> Float[np.ndarray, "m cartesian"]:
    """Solid harmonics by monomials; s and p are normalised, of Cartesian orbitals only these."""
    factor = {0: np.sqrt(1 / (4 * np.pi)), 1: np.sqrt(3 / (4 * np.pi))}.get(l, 1.0)
    if cartesian or l < 2:
        return factor * np.eye((l + 1) * (l + 2) // 2)
    return np.ascontiguousarray(gto.cart2sph(l).T)


class _Block(NamedTuple):
    """Points, filled up with others, and orbitals, filled up with the first one."""

    points: slice
    coords: Float[np.ndarray, "place xyz"]
    active: Int[np.ndarray, " active"]
    valid: Float[np.ndarray, " active"]
    """One, or zero for what fills up."""


def _blocks(mol: Any, grids: Any, size: int) -> Iterator[_Block]:
    """All points but those where every orbital vanishes."""
    screening = screening_table(mol, grids)
    shell_sizes = np.diff(mol.ao_loc_nr())
    rows_together = max(1, size // numint.BLKSIZE)
    size = rows_together * numint.BLKSIZE
    for row in range(0, len(screening), rows_together):
        present = screening[row : row + rows_together].any(axis=0)
        active = np.flatnonzero(np.repeat(present, shell_sizes))
        if len(active):
            start = row * numint.BLKSIZE
            points = slice(start, min(start + size, len(grids.coords)))
            missing = size - (points.stop - start)
            coords = np.pad(grids.coords[points], ((0, missing), (0, 0)))
            filling = -len(active) % ORBITALS_IN_STEPS
            valid = np.repeat([1.0, 0.0], [len(active), filling])
            yield _Block(points, coords, np.pad(active, (0, filling)), valid)


@float64
def device_densities(
    mol: Any, grids: Any, dms: Float[np.ndarray, "spin set ao ao"], with_tau: bool
) -> Float[np.ndarray, "spin set ingredient grid"]:
    """As ``density_matrices.densities``."""
    basis = gaussian_basis(mol)
    orbitals = [eigenvectors(dm) for dm in dms.reshape(-1, *dms.shape[2:])]
    largest = max(len(occupations) for occupations, _ in orbitals)
    size = -(-largest // ORBITALS_IN_STEPS) * ORBITALS_IN_STEPS
    occupations = np.stack([np.pad(n, (0, size - len(n))) for n, _ in orbitals])
    coefficients = np.stack([np.pad(c, ((0, size - len(c)), (0, 0))) for _, c in orbitals])
    given = basis, jnp.asarray(occupations), jnp.asarray(coefficients)

    def run(together: int) -> np.ndarray:
        rho = np.zeros((len(orbitals), 5 if with_tau else 4, len(grids.weights)))
        for points, *block in _blocks(mol, grids, together):
            own = np.asarray(_densities_of_block(with_tau, *given, *block))
            rho[:, :, points] = own[:, :, : points.stop - points.start]
        return rho

    rho = smaller_where_memory_is_short(run, POINTS_TOGETHER)
    return rho.reshape(*dms.shape[:2], *rho.shape[1:])


@eqx.filter_jit
def _densities_of_block(
    with_tau: bool,
    basis: GaussianBasis,
    occupations: Float[Array, "set orbital"],
    coefficients: Float[Array, "set orbital ao"],
    coords: Float[AnyArray, "grid xyz"],
    active: Int[AnyArray, " active"],
    valid: Float[AnyArray, " active"],
) -> Float[Array, "set ingredient grid"]:
    ao = basis(jnp.asarray(coords))[:, active]

    def density(
        orbitals: tuple[Float[Array, " orbital"], Float[Array, "orbital ao"]],
    ) -> Float[Array, "ingredient grid"]:
        own_occupations, own = orbitals
        psi = jnp.einsum("oa,cag->cog", own[:, active] * valid[None], ao)
        occupied = own_occupations[None, :, None] * psi
        factors = jnp.array([1.0, 2.0, 2.0, 2.0])[:, None]
        rho = factors * jnp.einsum("og,cog->cg", occupied[0], psi)
        if not with_tau:
            return rho
        tau = jnp.einsum("cog,cog->g", occupied[1:], psi[1:]) / 2
        return jnp.concatenate([rho, tau[None]])

    return jax.lax.map(density, (occupations, coefficients))


@float64
def device_potential_matrices(
    mol: Any, grids: Any, potential: Float[np.ndarray, "spin set ingredient grid"]
) -> Float[np.ndarray, "spin set ao ao"]:
    """As ``density_matrices.potential_matrices``."""
    basis = gaussian_basis(mol)
    num_rows = potential.shape[2]
    rows = POTENTIAL_SHARES[:num_rows] * potential.reshape(-1, *potential.shape[2:])

    def run(together: int) -> Float[Array, "set ao ao"]:
        total = jnp.zeros((len(rows), mol.nao, mol.nao))
        for points, *block in _blocks(mol, grids, together):
            missing = len(block[0]) - (points.stop - points.start)
            own = np.pad(rows[:, :, points], ((0, 0), (0, 0), (0, missing)))
            total = _with_block(total, basis, own, *block)
        return total

    total = np.asarray(smaller_where_memory_is_short(run, POINTS_TOGETHER))
    return (total + total.swapaxes(1, 2)).reshape(*potential.shape[:2], *total.shape[1:])


@eqx.filter_jit
def _with_block(
    total: Float[Array, "set ao ao"],
    basis: GaussianBasis,
    rows: Float[AnyArray, "set ingredient grid"],
    coords: Float[AnyArray, "grid xyz"],
    active: Int[AnyArray, " active"],
    valid: Float[AnyArray, " active"],
) -> Float[Array, "set ao ao"]:
    ao = basis(jnp.asarray(coords))[:, active] * valid[None, :, None]

    def product(own: Float[Array, "ingredient grid"]) -> Float[Array, "active active"]:
        matrix = ao[0] @ jnp.einsum("cg,cag->ga", own[:4], ao)
        if len(own) == 5:
            matrix = matrix + jnp.einsum("cag,cbg->ab", ao[1:], own[4][None, None] * ao[1:])
        return matrix

    products = jax.lax.map(product, jnp.asarray(rows))
    return total.at[:, active[:, None], active].add(products)
