r"""The learned part of the energy: a function of the pseudo density and of atomic density matrices.

.. math:: E[\tilde n, D] = \int e(\tilde n) + \sum_a \int_a \left(e(n_a[D_a])
          - e(\tilde n_a[D_a])\right)

is one sum over points: those of the uniform grid, and those of all augmentation spheres with the
signs of their two densities. One derivative gives the potential on the grid and the atomic
Hamiltonians.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from gpaw.core import UGDesc
from jaxtyping import Float

from cider.density import Density
from cider.features.augmented_convolution import AugmentedConvolution
from cider.functional import CiderFunctional
from cider.plugins.gpaw.augmentation import (
    augmentation_spheres,
    joined,
    split,
)
from cider.plugins.gpaw.distributed import DistributedConvolution, distributed_convolution

Matrices = Mapping[int, Float[np.ndarray, "spin packed"]]
"""Packed density matrices of atoms, or the derivatives by them."""


class LearnedEnergy:
    """The learned part on this rank's part of the grid, and in its share of the spheres.

    ``relpos_ac`` are the positions of the atoms in units of the lattice vectors.
    """

    def __init__(
        self,
        functional: CiderFunctional,
        grid: UGDesc,
        setups: Sequence[Any],
        relpos_ac: Float[np.ndarray, "atom 3"],
    ):
        self.functional = functional
        self.grid = grid
        all_spheres = augmentation_spheres(setups, functional.needs_tau)
        self.atoms = list(all_spheres)
        self.spheres = {
            atom: sphere
            for atom, sphere in all_spheres.items()
            if atom % grid.comm.size == grid.comm.rank
        }
        nldf = functional.learned.descriptors.nldf
        self.convolution: DistributedConvolution | AugmentedConvolution | None = None
        if nldf is not None:
            self.convolution = distributed_convolution(grid, all_spheres, relpos_ac, nldf)

    def move(self, relpos_ac: Float[np.ndarray, "atom 3"]) -> None:
        """New positions of the atoms, in units of the lattice vectors."""
        if self.convolution is not None:
            self.convolution = self.convolution.moved(relpos_ac[self.atoms] @ self.grid.cell)

    def energy_and_derivatives(
        self, density: Density, matrices: Matrices
    ) -> tuple[float, Density, Matrices]:
        """Energy (Ha), and its derivatives by the density on the grid and by density matrices.

        That by the density is divided by the volume of a grid point, as potentials are. Energy
        and density matrices are of all ranks.
        """
        parts = self._densities(density, matrices)
        energy, by_points = self.functional.learned_energy_and_potential(
            joined(parts), self._weights(density), self.convolution
        )
        by_grid, *by_spheres = split(by_points, [part.num_points for part in parts])
        by_matrices = {atom: np.zeros_like(matrix) for atom, matrix in matrices.items()}
        for atom, by_sphere in zip(self.spheres, by_spheres, strict=True):
            by_matrices[atom] = self.spheres[atom].transpose(by_sphere)
        for atom in sorted(by_matrices):
            self.grid.comm.sum(by_matrices[atom])
        potential = jax.tree.map(lambda array: array / self.grid.dv, by_grid)
        return self.grid.comm.sum_scalar(energy), potential, by_matrices

    def forces(self, density: Density, matrices: Matrices) -> Float[np.ndarray, "atom xyz"]:
        """Forces (Ha/bohr) at fixed pseudo density and density matrices, of all ranks.

        They come from the spheres, between which nonlocal features change as they move.
        """
        forces = np.zeros((len(matrices), 3))
        if self.convolution is not None and self.atoms:
            points, weights = self._points(density, matrices)
            _, derivative = self.functional.learned_potential_and_grid_derivative(
                points, weights, self.convolution
            )
            forces[self.atoms] -= np.asarray(derivative.centers)
        return forces

    def strain_derivative(
        self, density: Density, matrices: Matrices
    ) -> Float[np.ndarray, "xyz xyz"]:
        """This rank's part of what strain makes of the energy (Ha) at unchanged densities."""
        points, weights = self._points(density, matrices)
        on_grid = weights.copy()
        on_grid[density.num_points :] = 0.0
        strain = self.functional.learned_energy(points, on_grid, self.convolution) * np.eye(3)
        if self.convolution is not None:
            of_all = self.functional.learned_strain_derivative(points, weights, self.convolution)
            strain += of_all / self.grid.comm.size
        return strain

    def _points(
        self, density: Density, matrices: Matrices
    ) -> tuple[Density, Float[np.ndarray, " point"]]:
        """Densities at all points of this rank, and their weights."""
        return joined(self._densities(density, matrices)), self._weights(density)

    def _densities(self, density: Density, matrices: Matrices) -> list[Density]:
        """Densities on the grid and in each sphere."""
        return [density, *(sphere.apply(matrices[atom]) for atom, sphere in self.spheres.items())]

    def _weights(self, density: Density) -> Float[np.ndarray, " point"]:
        """Weights (bohr^3) of all points."""
        on_grid = np.full(density.num_points, self.grid.dv)
        return np.concatenate([on_grid, *(sphere.weights for sphere in self.spheres.values())])
