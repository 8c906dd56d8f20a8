r"""The Gaussian convolution on grids of atoms: uniform grids for smooth Gaussians, atoms for sharp.

A Gaussian :math:`e^{-(\alpha + \beta) u^2}` belongs to the coarsest uniform grid that resolves both
exponents, or else to the atoms, whose expansions it does not leave by more than a few bohr. So
smooth fields cost the same for each point however large the system, and the expansions need
no harmonics for what is far away. Molecules and crystals differ by their uniform grids and by the
places of their atoms.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from cider.conventions import AnyArray
from cider.features.atom_centred import AtomCentredConvolution, atom_centred_convolution
from cider.features.atomic_shells import AtomicGrid
from cider.features.convolution import GaussianConvolution
from cider.features.threads import thread_pool

MERGED = 0.125
"""Exponents below this times the sharpest smooth one are merged for the sharp Gaussians."""

MERGED_NODES = 3
"""Number of exponents that stand for the merged ones."""


@runtime_checkable
class SmoothConvolution(Protocol):
    """What uniform grids do: fields of charges at the points of the grid.

    It takes all columns of exponents, and returns those of the smooth ones; ``pool`` runs parts of
    the work in parallel.
    """

    def apply(
        self, charges: Float[AnyArray, "grid source"], pool: Executor
    ) -> Float[np.ndarray, "grid _"]:
        """Fields of charges."""

    def transpose(
        self, fields: Float[AnyArray, "grid target"], pool: Executor
    ) -> Float[np.ndarray, "grid _"]:
        """The transposed map."""


class SplitConvolution(GaussianConvolution):
    """``GaussianConvolution`` on grids of atoms.

    It works on concrete arrays: a program that is traced calls it between its traced parts.
    ``weights`` (bohr^3) are those of the sources; ``merge_sources`` and ``merge_targets`` express
    the exponents by those of the atomic part.
    """

    weights: Float[np.ndarray, " grid"]
    smooth: SmoothConvolution
    sharp: AtomCentredConvolution
    merge_sources: Float[np.ndarray, "source merged_source"]
    merge_targets: Float[np.ndarray, "target merged_target"]

    def __call__(self, sources: Float[AnyArray, "grid source"]) -> Float[AnyArray, "grid target"]:
        return self.apply(sources)

    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        charges = self.weights[:, None] * np.asarray(sources)
        with thread_pool() as pool, ThreadPoolExecutor(1) as other:
            # What it does itself is little; it waits for the pool.
            smooth = other.submit(self.smooth.apply, charges, pool)
            fields = self.sharp.apply(charges @ self.merge_sources, pool) @ self.merge_targets.T
            values = smooth.result()
        fields[:, : values.shape[1]] += values
        return fields

    def transpose(self, fields: Float[AnyArray, "grid target"]) -> Float[np.ndarray, "grid source"]:
        fields = np.asarray(fields)
        with thread_pool() as pool, ThreadPoolExecutor(1) as other:
            smooth = other.submit(self.smooth.transpose, fields, pool)
            charges = self.sharp.transpose(fields @ self.merge_targets, pool) @ self.merge_sources.T
            values = smooth.result()
        charges[:, : values.shape[1]] += values
        return self.weights[:, None] * charges


class SharpPart(NamedTuple):
    """The atomic part of a convolution, and how its exponents make up all of them."""

    sharp: AtomCentredConvolution
    merge_sources: Float[np.ndarray, "source merged_source"]
    merge_targets: Float[np.ndarray, "target merged_target"]


def sharp_part(
    coords: Float[np.ndarray, "grid xyz"],
    owner: Int[np.ndarray, " grid"],
    own_centers: Float[np.ndarray, "grid xyz"],
    atoms: Sequence[AtomicGrid],
    images: Sequence[Float[np.ndarray, "_ xyz"]],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
    sharpest_smooth: float,
) -> SharpPart:
    """That of all pairs of exponents (bohr^-2) but those that uniform grids take.

    These are up to ``sharpest_smooth``. Points and places of atoms are those of
    ``atom_centred_convolution``.
    """
    merged_sources, merge_sources = _merged(source_exponents, MERGED * sharpest_smooth)
    merged_targets, merge_targets = _merged(target_exponents, MERGED * sharpest_smooth)
    selected = np.maximum.outer(merged_sources, merged_targets) > sharpest_smooth
    where = coords, owner, own_centers, atoms, images
    sharp = atom_centred_convolution(*where, merged_sources, merged_targets, selected)
    return SharpPart(sharp, merge_sources, merge_targets)


def _merged(
    exponents: Float[np.ndarray, " exponent"], bound: float
) -> tuple[Float[np.ndarray, " merged"], Float[np.ndarray, "exponent merged"]]:
    r"""Fewer exponents, and the matrix that expresses the Gaussians of all by theirs.

    Over the reach of a much sharper Gaussian, :math:`e^{-a u^2}` is a polynomial of low order in
    ``a`` below the bound, which its values at a few Chebyshev points give.
    """
    few = exponents < bound
    num_others = int(np.sum(~few))
    if len(exponents) - num_others <= MERGED_NODES:
        return exponents, np.eye(len(exponents))
    angle = np.pi * (np.arange(MERGED_NODES) + 0.5) / MERGED_NODES
    nodes = bound / 2 * (1 - np.cos(angle))
    matrix = np.zeros((len(exponents), MERGED_NODES + num_others))
    for column, node in enumerate(nodes):
        others = np.delete(nodes, column)
        factors = (exponents[few, None] - others) / (node - others)
        matrix[few, column] = factors.prod(axis=1)
    matrix[~few, MERGED_NODES:] = np.eye(num_others)
    return np.concatenate([nodes, exponents[~few]]), matrix
