"""Energy and potential on a GPU: the stages of ``evaluation`` as one program."""

import functools
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cider.conventions import AnyArray, float64
from cider.density import Density
from cider.evaluation import grid_energy, independent_densities, of_all_spins
from cider.features.accelerator import smaller_where_memory_is_short
from cider.features.device_convolution import (
    TILE,
    TILES_TOGETHER,
    DeviceConvolution,
    TracedConvolution,
)
from cider.learned_functional import Fields, LearnedFunctional

_Tree = TypeVar("_Tree")


@float64
def device_energy_and_potential(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: DeviceConvolution,
) -> tuple[float, Density]:
    """As ``evaluation.energy_and_potential``; where memory is short, with fewer points at a time.

    Raises ``ValueError`` where a meta-GGA functional gets no tau.
    """
    total, potentials = 0.0, []
    for own, fraction in independent_densities(functional, x_mix, density):
        run = functools.partial(
            _energy_and_potential,
            functional,
            jax.tree.map(jnp.asarray, own),
            jnp.asarray(fraction * np.asarray(weights)),
            convolution.traced,
        )
        energy, by_own = smaller_where_memory_is_short(run, TILES_TOGETHER)
        total += float(energy)
        potentials.append(jax.tree.map(np.asarray, by_own))
    return total, of_all_spins(potentials)


@eqx.filter_jit
def _energy_and_potential(
    functional: LearnedFunctional,
    scaled: Density,
    weights: Float[Array, " grid"],
    convolution: TracedConvolution,
    together: int,
) -> tuple[Float[Array, ""], Density]:
    """Of spin-scaled densities; the weights contain their fraction."""
    size, count = TILE * together, scaled.num_points
    spins = range(scaled.num_spins)
    blocks = _in_blocks(scaled, size, -1)
    fields = []
    for spin in spins:
        sources = jax.lax.map(lambda x, s=spin: functional.sources(x.of_spin(s)), blocks)
        fields.append(convolution.apply(_joined(sources, count, 0), together))

    def derivatives(
        block: tuple[Array, Density, Fields],
    ) -> tuple[Float[Array, ""], tuple[Density, Fields]]:
        return jax.value_and_grad(grid_energy, argnums=(1, 2))(*block, functional)

    by_point = _in_blocks((weights, tuple(fields)), size, 0)
    energies, by_block = jax.lax.map(derivatives, (by_point[0], blocks, by_point[1]))
    by_density, by_fields = by_block
    pulled = []
    for spin in spins:
        by_sources = convolution.transpose(_joined(by_fields[spin], count, 0), together)

        def pull_back(block: tuple[Density, Array], spin: int = spin) -> Density:
            own, by_own = block
            return jax.vjp(functional.sources, own.of_spin(spin))[1](by_own)[0]

        pulled.append(jax.lax.map(pull_back, (blocks, _in_blocks(by_sources, size, 0))))
    by_sources_of_spins = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *pulled)
    by_density = jax.tree.map(jnp.add, by_density, by_sources_of_spins)
    return energies.sum(), _joined(by_density, count, -1)


def _in_blocks(arrays: _Tree, size: int, axis: int) -> _Tree:
    """The points along ``axis``, the first or the last, in blocks along a new first axis.

    Filled up with zeros, which carry no energy.
    """

    def split(array: Array) -> Array:
        by_point = jnp.moveaxis(array, axis, 0)
        missing = -len(by_point) % size
        filled = jnp.pad(by_point, [(0, missing)] + [(0, 0)] * (by_point.ndim - 1))
        blocks = filled.reshape(-1, size, *by_point.shape[1:])
        return jnp.moveaxis(blocks, 1, axis) if axis else blocks

    return jax.tree.map(split, arrays)


def _joined(blocks: _Tree, count: int, axis: int) -> _Tree:
    """The inverse of ``_in_blocks``."""

    def join(array: Array) -> Array:
        by_point = jnp.moveaxis(array, axis, 1) if axis else array
        joined = by_point.reshape(-1, *by_point.shape[2:])[:count]
        return jnp.moveaxis(joined, 0, axis) if axis else joined

    return jax.tree.map(join, blocks)
