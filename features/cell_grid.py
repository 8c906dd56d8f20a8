r"""Convolution of charges anywhere in a periodic cell with smooth Gaussians.

The charges are spread over a uniform grid of the cell with a window, whose shape is taken from
them there; Fourier transforms sum the Gaussians of all images,

.. math:: F = \Phi^T\, \hat\phi^{-1} K \hat\phi^{-1}\, \Phi\, q ,

with :math:`\Phi` the spreading, in fractions of the lattice vectors.
"""

from concurrent.futures import Executor

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy.fft import next_fast_len

from cider.conventions import AnyArray
from cider.features.grid_interpolation import GridInterpolation, grid_interpolation
from cider.features.periodic_grid import PeriodicConvolution, periodic_convolution
from cider.features.uniform_grid import RESOLUTION


class CellGridConvolution(eqx.Module):
    """``SmoothConvolution`` of a crystal; built by ``cell_grid_convolution``."""

    interpolation: GridInterpolation
    convolution: PeriodicConvolution
    density: float = eqx.field(static=True)
    """Places of the grid per volume (bohr^-3)."""

    def apply(
        self, charges: Float[AnyArray, "grid source"], pool: Executor
    ) -> Float[np.ndarray, "grid target"]:
        """Fields of charges, of smooth exponents alone; ``pool`` runs parts in parallel."""
        own = charges[:, : len(self.convolution.source_exponents)]
        return self.interpolation.apply(self.convolution.apply(self._spread(own, pool)), pool)

    def transpose(
        self, fields: Float[AnyArray, "grid target"], pool: Executor
    ) -> Float[np.ndarray, "grid source"]:
        """The transposed map."""
        own = fields[:, : len(self.convolution.target_exponents)]
        return self.interpolation.apply(self.convolution.transpose(self._spread(own, pool)), pool)

    def _spread(
        self, charges: Float[AnyArray, "grid c"], pool: Executor
    ) -> Float[np.ndarray, "place c"]:
        """The density that makes the waves of charges, at the places of the grid."""
        return self.density * self.interpolation.transpose(charges, pool)


def cell_grid_convolution(
    lattice: Float[np.ndarray, "vector xyz"],
    coords: Float[np.ndarray, "grid xyz"],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
    largest_exponent: float,
) -> CellGridConvolution:
    """The convolution with ``exp(-(a + b) u^2)`` for all exponents up to a largest one (bohr^-2).

    Exponents ascend. Rows of ``lattice`` are its vectors (bohr).
    """
    spacing = np.sqrt(RESOLUTION / (2 * largest_exponent))
    mesh = np.array(
        [next_fast_len(int(n)) for n in np.ceil(np.linalg.norm(lattice, axis=1) / spacing)]
    )
    return CellGridConvolution(
        interpolation=grid_interpolation(lattice, mesh, coords),
        convolution=periodic_convolution(
            lattice,
            mesh,
            source_exponents[source_exponents <= largest_exponent],
            target_exponents[target_exponents <= largest_exponent],
        ),
        density=float(np.prod(mesh) / abs(np.linalg.det(lattice))),
    )
