r"""What a model's energies depend on: its inputs at grid points, and the energies that it scales.

The learned energy of a density is :math:`\sum_g e_g\, g(x_g)` with LDA exchange energies
:math:`e_g`, less in tails, its derivative by the occupation of an orbital
:math:`\sum_g e'_g\, g(x_g) + e_g\, x'_g \cdot \nabla g(x_g)`.

Points of atom-centred grids hold much of a density many times over. Those in one cell of the
inputs, a small cube, become one at the mean :math:`\bar x` of their inputs, of the same sums

.. math:: E = \sum_g e'_g, \qquad V = \sum_g e_g x'_g + e'_g (x_g - \bar x)

(the latter vanishes for a density): exact for linear functions, and for others off by the square of
the cell's size, nearly so where :math:`x'_g` varies within a cell.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cider.blocks import blocks_of, by_blocks, take_block
from cider.conventions import AnyArray, float64
from cider.input_transform import InputTransform
from cider.neural_network import NeuralNetworkEnsemble
from cider.training.descriptors import DescriptorReader, PointSet, corrected_energy, points_of
from cider.training.orbitals import orbital_points_of

CELL = 0.03
"""Side of the cells, of inputs within [-1, 1].

A quarter of the points are left. Energies of networks whose values vary by 0.05 over a density,
steeper ones than are trained, moved by 0.02 mHa on average and by 0.1 mHa at most.
"""

BLOCK = 1024
"""Points that are evaluated together."""

_LEAST_SHARE = 1e-300


class ModelPoints(NamedTuple):
    """The points of a density, or of the change with an orbital's occupation.

    ``energies`` (Ha) multiply the learned factor, ``slopes`` (Ha) its derivatives by the inputs.
    """

    inputs: Float[AnyArray, "*block input point"]
    energies: Float[AnyArray, "*block point"]
    slopes: Float[AnyArray, "*block input point"] | None = None


class PointBlocks(eqx.Module):
    """Points of several densities or orbitals, in blocks of one each, filled up with zeros.

    Blocks are the first axis of all arrays of ``points``; ``places`` are those of the densities in
    a list of ``num_places``.
    """

    points: ModelPoints
    places: Int[np.ndarray, " block"]
    num_places: int = eqx.field(static=True)


def read_model_points(
    store: DescriptorReader, key: str, transform: InputTransform, is_orbital: bool
) -> ModelPoints:
    """The points of a density ``<density>/<system>``, or of a spin orbital of it."""
    if not is_orbital:
        points = points_of(store, key)
        return ModelPoints(_in_blocks(_inputs, transform, points), _energies(points))
    orbital = orbital_points_of(store, key)
    points, change = orbital.points, orbital.change
    energies = _change_of_energies(points, change)
    slopes = _energies(points) * _in_blocks(_change_of_inputs, transform, points, change)
    return ModelPoints(_in_blocks(_inputs, transform, points), energies, slopes)


def merge(points: ModelPoints) -> ModelPoints:
    """The points of each cell as one."""
    cells = np.ascontiguousarray(np.round(points.inputs.T / CELL).astype(np.int16))
    labels = cells.view(np.dtype((np.void, cells.itemsize * cells.shape[1]))).ravel()
    _, cell = np.unique(labels, return_inverse=True)
    # Energies of a change have both signs: the mean is by the sizes of what a point contributes.
    share = np.abs(points.energies) + _LEAST_SHARE
    if points.slopes is not None:
        share += np.abs(points.slopes).sum(axis=0)
    mean = _sums(cell, share * np.asarray(points.inputs)) / np.bincount(cell, share)
    energies = np.bincount(cell, points.energies)
    if points.slopes is None:
        return ModelPoints(mean, energies)
    beside = points.energies * (points.inputs - mean[:, cell])
    return ModelPoints(mean, energies, _sums(cell, np.asarray(points.slopes + beside)))


def point_blocks(
    parts: Sequence[ModelPoints], places: Sequence[int], num_places: int
) -> PointBlocks:
    """Blocks of at least one density, each at its place in a list."""

    def in_blocks(array: np.ndarray) -> np.ndarray:
        filling = -array.shape[-1] % BLOCK
        padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, filling)])
        return np.moveaxis(padded.reshape(*array.shape[:-1], -1, BLOCK), -2, 0)

    blocks = [jax.tree.map(in_blocks, part) for part in parts]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *blocks)
    counts = [len(block.energies) for block in blocks]
    return PointBlocks(joined, np.repeat(np.asarray(places), counts), num_places)


def merged_blocks(
    store: DescriptorReader,
    keys: Sequence[str],
    orbitals: Collection[str],
    transform: InputTransform,
) -> tuple[PointBlocks, ...]:
    """The merged points of the densities among ``keys``, and of the spin orbitals if there are."""
    parts = []
    for are_orbitals in (False, True):
        own = [place for place, key in enumerate(keys) if (key in orbitals) == are_orbitals]
        read = (read_model_points(store, keys[place], transform, are_orbitals) for place in own)
        if own:
            parts.append(point_blocks([merge(points) for points in read], own, len(keys)))
    return tuple(parts)


@float64
def learned_energies(
    model: NeuralNetworkEnsemble, points: ModelPoints
) -> Float[np.ndarray, " member"]:
    """What each member adds to an energy (Ha), or to its derivative by an occupation."""
    total = np.zeros(len(model.readout))
    for part in blocks_of(points.energies.size):
        total += np.asarray(_weighted_sum(model, take_block(points, part, -1)))
    return total


def weighted_sum(model: NeuralNetworkEnsemble, points: ModelPoints) -> Float[Array, " member"]:
    """The sum over points of what each member gives: a JAX function."""
    if points.slopes is None:
        return model.members(jnp.asarray(points.inputs)) @ points.energies
    values, along = jax.jvp(model.members, (points.inputs,), (points.slopes,))
    return values @ points.energies + along.sum(axis=1)


_weighted_sum = eqx.filter_jit(weighted_sum)


@float64
def _energies(points: PointSet) -> Float[np.ndarray, " point"]:
    return np.asarray(corrected_energy(points.lda_energy, points.semilocal))


@float64
def _change_of_energies(points: PointSet, change: PointSet) -> Float[np.ndarray, " point"]:
    of_points, of_change = ((part.lda_energy, part.semilocal) for part in (points, change))
    return np.asarray(jax.jvp(corrected_energy, of_points, of_change)[1])


@eqx.filter_jit
def _inputs(transform: InputTransform, descriptors: tuple[Array, Array]) -> Array:
    return transform(*descriptors)


@eqx.filter_jit
def _change_of_inputs(
    transform: InputTransform, descriptors: tuple[Array, Array], change: tuple[Array, Array]
) -> Array:
    return jax.jvp(transform, descriptors, change)[1]


@float64
def _in_blocks(
    function: Callable[..., Array], transform: InputTransform, *points: PointSet
) -> Float[np.ndarray, "input point"]:
    descriptors = tuple((part.semilocal, part.nonlocal_) for part in points)

    def of_block(part: slice) -> Array:
        own = jax.tree.map(jnp.asarray, take_block(descriptors, part, -1))
        return function(transform, *own)

    return by_blocks(of_block, points[0].rho.size, -1)


def _sums(
    cell: Int[np.ndarray, " point"], rows: Float[np.ndarray, "input point"]
) -> Float[np.ndarray, "input merged"]:
    return np.array([np.bincount(cell, row) for row in rows])
