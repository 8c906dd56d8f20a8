"""The waves of a uniform grid in a periodic cell."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Waves(NamedTuple):
    """Half of the waves of a uniform grid (bohr^-1), as a transform of real values keeps them.

    ``shares`` say how often each stands for itself and its conjugate.
    """

    vectors: Float[np.ndarray, "wave xyz"]
    shares: Float[np.ndarray, " wave"]

    @property
    def lengths(self) -> Float[np.ndarray, " wave"]:
        """In bohr^-1."""
        return np.linalg.norm(self.vectors, axis=1)

    @property
    def directions(self) -> Float[np.ndarray, "wave xyz"]:
        """Unit vectors; anything where there is no direction."""
        directions = self.vectors / np.maximum(self.lengths, 1e-30)[:, None]
        directions[self.lengths == 0] = 0.0, 0.0, 1.0
        return directions


def waves_of_grid(
    lattice: Float[np.ndarray, "vector xyz"], mesh: Sequence[int] | Int[np.ndarray, "3"]
) -> Waves:
    """Those of ``mesh`` points along each lattice vector (rows, bohr), in a transform's order."""
    numbers = wave_numbers(mesh)
    alone = (numbers[:, 2] == 0) | (2 * numbers[:, 2] == mesh[2])
    return Waves(numbers @ reciprocal_lattice(lattice), np.where(alone, 1.0, 2.0))


def wave_numbers(mesh: Sequence[int] | Int[np.ndarray, "3"]) -> Float[np.ndarray, "wave 3"]:
    """How often each of those waves goes up and down along each lattice vector."""
    nx, ny, nz = (int(count) for count in mesh)
    counts = np.fft.fftfreq(nx, 1 / nx), np.fft.fftfreq(ny, 1 / ny), np.fft.rfftfreq(nz, 1 / nz)
    return np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1).reshape(-1, 3)


def reciprocal_lattice(
    lattice: Float[np.ndarray, "vector xyz"],
) -> Float[np.ndarray, "vector xyz"]:
    r"""Rows :math:`b_i` (bohr^-1) with :math:`a_i \cdot b_j = 2\pi\delta_{ij}`."""
    return 2 * np.pi * np.linalg.inv(lattice).T
