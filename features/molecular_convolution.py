r"""The Gaussian convolution of a molecule: smooth Gaussians on uniform grids, sharp ones on atoms.

A Gaussian :math:`e^{-(\alpha + \beta) u^2}` belongs to the coarsest uniform grid that resolves both
exponents, or else to the atoms, whose expansions it does not leave by more than a few bohr. So
smooth fields cost the same for each point however large the molecule, and the expansions need
no harmonics for what is far away.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

from cider.conventions import AnyArray, float64
from cider.features.atom_centred import AtomCentredConvolution, atom_centred_convolution
from cider.features.atomic_shells import (
    AtomicGrid,
    partition_of_unity,
    partition_of_unity_derivative,
)
from cider.features.compiled import add_rows
from cider.features.convolution import GaussianConvolution
from cider.features.nested_grids import (
    NestedGridsConvolution,
    Reach,
    nested_grids_convolution,
)
from cider.features.threads import thread_pool

GRIDS = ((0.075, 10.0), (0.5, 6.0))
"""Largest exponent (bohr^-2) of each uniform grid, and how far it reaches (bohr) beyond spheres of
twice the covalent radius about the atoms.

Beyond, the density is too thin for exponents above those of the coarser grid: 1e-6 Ha for H-, less
for all else that was tried. A reach of 5 bohr for every element left the features of calcium's s
electrons off by 6 %.
"""

MERGED = 0.125
"""Exponents below this times the sharpest smooth one are merged for the sharp Gaussians."""

MERGED_NODES = 3
"""Number of exponents that stand for the merged ones."""


class MolecularConvolution(GaussianConvolution):
    """``GaussianConvolution`` of a molecule; built by ``molecular_convolution``.

    It works on concrete arrays: a program that is traced calls it between its traced parts.
    ``merge_sources`` and ``merge_targets`` express the exponents by those of the atomic part.
    """

    coords: Float[np.ndarray, "grid xyz"]
    owner: Int[np.ndarray, " grid"]
    centers: Float[np.ndarray, "atom xyz"]
    volumes: Float[np.ndarray, " grid"]
    smooth: NestedGridsConvolution
    sharp: AtomCentredConvolution
    merge_sources: Float[np.ndarray, "source merged_source"]
    merge_targets: Float[np.ndarray, "target merged_target"]

    def __call__(self, sources: Float[AnyArray, "grid source"]) -> Float[AnyArray, "grid target"]:
        return self.apply(sources)

    def apply(self, sources: Float[AnyArray, "grid source"]) -> Float[np.ndarray, "grid target"]:
        charges = self.volumes[:, None] * np.asarray(sources)
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
        return self.volumes[:, None] * charges

    def derivative(
        self,
        sources: Float[AnyArray, "grid source"],
        by_fields: Float[AnyArray, "grid target"],
        by_sources: Float[AnyArray, "grid source"],
    ) -> Float[np.ndarray, "atom xyz"]:
        """As in ``GaussianConvolution``; the points' shares in the partition change too.

        The uniform grids stay where they are: that they follow the atoms changes nothing to
        within their accuracy.
        """
        sources, by_fields = np.asarray(sources), np.asarray(by_fields)
        charges = self.volumes[:, None] * sources
        with thread_pool() as pool:
            by_points = self.smooth.derivative_by_points(charges, by_fields, pool)
            derivative = self.sharp.derivative(
                charges @ self.merge_sources, by_fields @ self.merge_targets, self.owner, pool
            )
        owned = self.owner >= 0
        add_rows(derivative, self.owner[owned], by_points[owned])
        by_log_shares = np.einsum("gs,gs->g", sources, by_sources)
        return derivative + partition_of_unity_derivative(
            self.coords[owned], self.owner[owned], self.centers, by_log_shares[owned]
        )


@float64
def molecular_convolution(
    coords: Float[np.ndarray, "grid xyz"],
    volumes: Float[np.ndarray, " grid"],
    atoms: Sequence[AtomicGrid],
    source_exponents: Float[np.ndarray, " source"],
    target_exponents: Float[np.ndarray, " target"],
) -> MolecularConvolution:
    """The convolution of the grid ``coords``, which the atoms share out among them.

    ``volumes`` (bohr^3) are the quadrature weights of each atom alone, without any partition of
    space. Points that belong to no atom (padding) have no sources and no fields. Exponents
    (bohr^-2) ascend.
    """
    centers = np.array([atom.center for atom in atoms])
    reach = 2 * np.array([[atom.covalent_radius] for atom in atoms])
    owner = np.full(len(coords), -1)
    for index, atom in enumerate(atoms):
        owner[np.concatenate(atom.points)] = index
    owned = owner >= 0
    shares = np.zeros(len(coords))
    shares[owned] = partition_of_unity(coords[owned], owner[owned], centers)

    reaches = []
    for largest, margin in GRIDS:
        lowest, highest = centers - reach - margin, centers + reach + margin
        reaches.append(Reach(largest, np.array([lowest.min(axis=0), highest.max(axis=0)])))
    done = reaches[-1].largest_exponent
    merged_sources, merge_sources = _merged(source_exponents, MERGED * done)
    merged_targets, merge_targets = _merged(target_exponents, MERGED * done)
    selected = np.maximum.outer(merged_sources, merged_targets) > done
    return MolecularConvolution(
        coords=coords,
        owner=owner,
        centers=centers,
        volumes=volumes * shares,
        smooth=nested_grids_convolution(coords, reaches, source_exponents, target_exponents),
        sharp=atom_centred_convolution(
            coords, owner, atoms, merged_sources, merged_targets, selected
        ),
        merge_sources=merge_sources,
        merge_targets=merge_targets,
    )


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
