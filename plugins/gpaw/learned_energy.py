"""The learned part of the energy: a function of the pseudo density and of atomic density matrices.

It is one sum over the points of ``PawDensity``, whose transpose gives the potential on the grid and
the atomic Hamiltonians at once.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from gpaw.core import UGDesc
from jaxtyping import Float

from cider.density import Density
from cider.features.augmented_convolution import AugmentedConvolution
from cider.functional import CiderFunctional
from cider.plugins.gpaw.augmentation import augmentation_spheres
from cider.plugins.gpaw.distributed import DistributedConvolution, distributed_convolution
from cider.plugins.gpaw.paw_density import Matrices, PawDensity


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
        spheres = augmentation_spheres(setups, functional.needs_tau)
        centers = relpos_ac[list(spheres)] @ grid.cell
        self.all_electrons = PawDensity(grid, spheres, centers)
        nldf = functional.learned.descriptors.nldf
        self.convolution: DistributedConvolution | AugmentedConvolution | None = None
        if nldf is not None:
            self.convolution = distributed_convolution(grid, spheres, centers, nldf)

    def move(self, relpos_ac: Float[np.ndarray, "atom 3"]) -> None:
        """New positions of the atoms, in units of the lattice vectors."""
        centers = relpos_ac[self.all_electrons.atoms] @ self.grid.cell
        self.all_electrons.move(centers)
        if self.convolution is not None:
            self.convolution = self.convolution.moved(centers)

    def energy_and_derivatives(
        self, density: Density, matrices: Matrices
    ) -> tuple[float, Density, Matrices]:
        """Energy (Ha), and its derivatives by the density on the grid and by density matrices.

        That by the density is divided by the volume of a grid point, as potentials are. Energy
        and density matrices are of all ranks.
        """
        energy, by_points = self.functional.learned_energy_and_potential(
            *self._points(density, matrices), self.convolution
        )
        by_grid, by_own = self.all_electrons.transpose(by_points)
        by_matrices = {atom: by_own.get(atom, np.zeros_like(own)) for atom, own in matrices.items()}
        for atom in sorted(by_matrices):
            self.grid.comm.sum(by_matrices[atom])
        return self.grid.comm.sum_scalar(energy), self._potential(by_grid), by_matrices

    def forces(self, density: Density, matrices: Matrices) -> Float[np.ndarray, "atom xyz"]:
        """Forces (Ha/bohr) at fixed pseudo density and density matrices, of all ranks.

        They come from the spheres, which see another part of the pseudo density as they move, and
        between which nonlocal features change.
        """
        by_points, derivative = self.functional.learned_potential_and_grid_derivative(
            *self._points(density, matrices), self.convolution
        )
        forces = np.zeros((len(matrices), 3))
        forces[list(self.all_electrons.spheres)] = -self.all_electrons.derivative(
            density, by_points
        )
        self.grid.comm.sum(forces)
        if derivative.centers is not None:
            forces[self.all_electrons.atoms] -= np.asarray(derivative.centers)
        return forces

    def potential_and_strain_derivative(
        self, density: Density, matrices: Matrices
    ) -> tuple[Density, Float[np.ndarray, "xyz xyz"]]:
        """The potential, and this rank's part of what strain makes of the energy (Ha).

        The derivative is that at unchanged densities.
        """
        points, weights = self._points(density, matrices)
        _, by_points = self.functional.learned_energy_and_potential(
            points, weights, self.convolution
        )
        strain = self.all_electrons.strain_derivative(density, by_points)
        on_grid = weights.copy()
        on_grid[density.num_points :] = 0.0
        strain += self.functional.learned_energy(points, on_grid, self.convolution) * np.eye(3)
        if self.convolution is not None:
            of_all = self.functional.learned_strain_derivative(points, weights, self.convolution)
            strain += of_all / self.grid.comm.size
        return self._potential(self.all_electrons.transpose(by_points)[0]), strain

    def _potential(self, by_grid: Density) -> Density:
        """The derivative by the density on the grid, divided by the volume of a point."""
        return jax.tree.map(lambda array: array / self.grid.dv, by_grid)

    def _points(
        self, density: Density, matrices: Matrices
    ) -> tuple[Density, Float[np.ndarray, " point"]]:
        """Densities at all points of this rank, and their weights."""
        return self.all_electrons.apply(density, matrices), self.all_electrons.weights
