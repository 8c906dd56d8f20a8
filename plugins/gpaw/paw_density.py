r"""The density of all electrons, linear in the pseudo density and in atomic density matrices.

.. math:: n(\mathbf r) = \tilde n(\mathbf r) + \sum_a \Delta n_a[D_a](\mathbf r - \mathbf R_a)

It is integrated over the points of the uniform grid, where it is the pseudo density, and in each
augmentation sphere over those of both densities, the pseudo density's with negative weights.
"""

from collections.abc import Mapping

import jax
import numpy as np
from gpaw.core import UGDesc
from jaxtyping import Float

from cider.density import Density
from cider.features.grid_interpolation import grid_interpolation
from cider.features.threads import thread_pool
from cider.plugins.gpaw.augmentation import AugmentationSphere, joined, split
from cider.plugins.gpaw.distributed import on_whole_grid, own_part_of_sum

Matrices = Mapping[int, Float[np.ndarray, "spin packed"]]
"""Packed density matrices of atoms, or the derivatives by them."""


class PawDensity:
    """The linear map to this rank's part of the grid, and to its share of the spheres.

    ``every_sphere`` are those of all atoms but pseudopotentials, about ``centers`` (bohr).
    """

    def __init__(
        self,
        grid: UGDesc,
        every_sphere: Mapping[int, AugmentationSphere],
        centers: Float[np.ndarray, "atom xyz"],
    ):
        self.grid = grid
        self.atoms = list(every_sphere)
        self.spheres = {
            atom: sphere
            for atom, sphere in every_sphere.items()
            if atom % grid.comm.size == grid.comm.rank
        }
        own = [sphere.shells.points for sphere in self.spheres.values()]
        self._offsets = np.concatenate([np.zeros((0, 3)), *own])
        self._ends = np.cumsum([len(points) for points in own])[:-1]
        self.move(centers)

    def move(self, centers: Float[np.ndarray, "atom xyz"]) -> None:
        """New positions (bohr) of the atoms that have spheres."""
        own = [self.atoms.index(atom) for atom in self.spheres]
        sizes = [sphere.shells.num_points for sphere in self.spheres.values()]
        points = self._offsets + np.repeat(centers[own], sizes, axis=0)
        self._interpolation = grid_interpolation(self.grid.cell, self.grid.size, points)

    @property
    def weights(self) -> Float[np.ndarray, " point"]:
        """Weights (bohr^3) of all points of this rank."""
        on_grid = np.full(np.prod(self.grid.mysize_c), self.grid.dv)
        return np.concatenate([on_grid, *(sphere.weights for sphere in self.spheres.values())])

    def apply(self, density: Density, matrices: Matrices) -> Density:
        """Densities at all points: on the grid, and in each sphere."""
        if not self.atoms:
            return density
        with thread_pool() as pool:
            at_points = self._interpolation.apply(self._on_whole_grid(density), pool)
        parts, in_spheres = [density], np.split(at_points, self._ends)
        # Without spheres, np.split leaves one empty part.
        for (atom, sphere), own in zip(self.spheres.items(), in_spheres, strict=False):
            parts.append(sphere.apply(_from_columns(own, density), matrices[atom]))
        return joined(parts)

    def transpose(self, by_points: Density) -> tuple[Density, Matrices]:
        """The transposed map: derivatives by the pseudo density and by this rank's matrices."""
        if not self.atoms:
            return by_points, {}
        by_grid, by_pseudo, by_matrices = self._by_parts(by_points)
        with thread_pool() as pool:
            everywhere = self._interpolation.transpose(by_pseudo, pool)
        by_values = own_part_of_sum(self.grid, everywhere)
        return jax.tree.map(np.add, by_grid, _from_columns(by_values, by_grid)), by_matrices

    def derivative(self, density: Density, by_points: Density) -> Float[np.ndarray, "own xyz"]:
        """Derivative of ``by_points`` times the densities as this rank's spheres move."""
        if not self.atoms:
            return np.zeros((0, 3))
        by_sphere = np.split(self._gradients(density, by_points), self._ends)
        return np.array([own.sum(axis=0) for own in by_sphere])[: len(self.spheres)]

    def strain_derivative(
        self, density: Density, by_points: Density
    ) -> Float[np.ndarray, "xyz xyz"]:
        """The same by strain, the pseudo density on the grid and density matrices unchanged.

        Centres follow it and spheres keep their form: in the crystal, their points move back.
        """
        if not self.atoms:
            return np.zeros((3, 3))
        return -self._gradients(density, by_points).T @ self._offsets

    def _gradients(self, density: Density, by_points: Density) -> Float[np.ndarray, "point xyz"]:
        """Of ``by_points`` times the pseudo density, as each point of the spheres moves."""
        by_pseudo = self._by_parts(by_points)[1]
        with thread_pool() as pool:
            values = self._on_whole_grid(density)
            return self._interpolation.gradients(values, by_pseudo, pool)

    def _on_whole_grid(self, density: Density) -> Float[np.ndarray, "grid channel"]:
        """The pseudo density of all ranks, one column for each ingredient of each spin."""
        return on_whole_grid(self.grid, _columns(density))

    def _by_parts(
        self, by_points: Density
    ) -> tuple[Density, Float[np.ndarray, "point channel"], Matrices]:
        """By the densities on the grid, by the pseudo density in spheres, and by matrices."""
        sizes = [2 * sphere.shells.num_points for sphere in self.spheres.values()]
        by_grid, *by_spheres = split(by_points, [by_points.num_points - sum(sizes), *sizes])
        by_pseudo, by_matrices = [_columns(by_grid)[:0]], {}
        for (atom, sphere), own in zip(self.spheres.items(), by_spheres, strict=True):
            by_own, by_matrices[atom] = sphere.transpose(own)
            by_pseudo.append(_columns(by_own))
        return by_grid, np.concatenate(by_pseudo), by_matrices


def _columns(density: Density) -> Float[np.ndarray, "grid channel"]:
    """All ingredients of all spins, one column each."""
    rows = [np.reshape(leaf, (-1, density.num_points)) for leaf in jax.tree.leaves(density)]
    return np.ascontiguousarray(np.concatenate(rows).T)


def _from_columns(values: Float[np.ndarray, "grid channel"], like: Density) -> Density:
    """The inverse, for the ingredients and spins of another density."""
    leaves, structure = jax.tree.flatten(like)
    rows = np.split(values.T, np.cumsum([leaf[..., 0].size for leaf in leaves])[:-1])
    shaped = [row.reshape(*leaf.shape[:-1], -1) for row, leaf in zip(rows, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)
