"""The Gaussian convolution of a crystal on the grids of its atoms.

Points are those of whole atomic shells, each taken to the one cell about the origin whose points
have fractions of the lattice vectors from -1/2 to 1/2. Smooth Gaussians are convolved by Fourier
transforms on a uniform grid of this cell; the fields of sharp ones are summed over the images of
the atoms that reach it.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cider.conventions import float64
from cider.features.atomic_shells import (
    PARTITION_LENGTH,
    AtomicGrid,
    owners_of_points,
    partition_of_unity,
)
from cider.features.cell_grid import cell_grid_convolution
from cider.features.rings import RINGS
from cider.features.split_convolution import SplitConvolution, sharp_part
from cider.features.waves import reciprocal_lattice

SHARPEST_SMOOTH = 1.0
"""Largest exponent (bohr^-2) that belongs to the uniform grid.

Crystals have electrons far from all atoms, whose sharp fields the rings about these cut off: with
0.5, as in molecules, the energy of silicon was off by 3 mHa, and no sooner computed.
"""

_NEGLIGIBLE_SHARE = 1e-12
"""Share of an atom in the sources at a point that does not count."""


def images_near_cell(
    lattice: Float[np.ndarray, "vector xyz"], center: Float[np.ndarray, " xyz"], reach: float
) -> Float[np.ndarray, "image xyz"]:
    """Places of an atom and its images (bohr), all of those within ``reach`` of the cell."""
    fractions = center @ np.linalg.inv(lattice)
    heights = 2 * np.pi / np.linalg.norm(reciprocal_lattice(lattice), axis=1)
    margin = 0.5 + reach / heights
    steps = [
        np.arange(math.ceil(-most - own), math.floor(most - own) + 1)
        for own, most in zip(fractions, margin, strict=True)
    ]
    return center + np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3) @ lattice


def crystal_partition(
    lattice: Float[np.ndarray, "vector xyz"],
    coords: Float[np.ndarray, "grid xyz"],
    own_centers: Float[np.ndarray, "grid xyz"],
    centers: Float[np.ndarray, "atom xyz"],
) -> Float[np.ndarray, " grid"]:
    """``partition_of_unity`` among all atoms of a crystal, of points in the cell."""
    corners = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]) @ lattice / 2
    # Nowhere is the nearest atom farther than that; those that matter beside it are within:
    farthest = np.linalg.norm(corners, axis=1).max()
    reach = math.sqrt(farthest**2 - PARTITION_LENGTH**2 * math.log(_NEGLIGIBLE_SHARE))
    images = [images_near_cell(lattice, center, reach) for center in centers]
    return partition_of_unity(coords, own_centers, np.concatenate(images))


@float64
def crystal_convolution(
    lattice: Float[np.ndarray, "vector xyz"],
    coords: Float[np.ndarray, "grid xyz"],
    own_centers: Float[np.ndarray, "grid xyz"],
    weights: Float[np.ndarray, " grid"],
    atoms: Sequence[AtomicGrid],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> SplitConvolution:
    """The convolution of the grid ``coords``, in the cell, which the atoms share out among them.

    ``own_centers`` is the atom, or the image of one, whose shells a point is on; ``weights``
    (bohr^3) are those of ``crystal_partition``. Exponents (bohr^-2) ascend.
    """
    owner = owners_of_points(atoms, len(coords))
    images = [images_near_cell(lattice, atom.center, RINGS[-1].outer) for atom in atoms]
    where = coords, owner, own_centers, atoms, images
    exponents = source_exponents, target_exponents
    return SplitConvolution(
        weights=weights,
        smooth=cell_grid_convolution(lattice, coords, *exponents, SHARPEST_SMOOTH),
        **sharp_part(*where, *exponents, SHARPEST_SMOOTH)._asdict(),
    )
