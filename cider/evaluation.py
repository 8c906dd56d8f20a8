"""Energy and potential of a learned functional on a whole grid, in stages.

Pointwise parts run in blocks of one size, compiled once and with bounded memory; between them
stands the linear map of the grid, which is differentiated by its transpose:

.. math:: \\rho \\to \\theta \\to F = K\\theta \\to E, \\qquad
          \\bar F \\to \\bar\\theta = K^T \\bar F \\to \\bar\\rho
"""

from collections.abc import Iterator
from typing import TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from cider.conventions import AnyArray, float64
from cider.density import Density
from cider.features.convolution import GaussianConvolution
from cider.learned_functional import Fields, LearnedFunctional

BLOCK = 4096
"""Grid points that are evaluated together: as many as stay in a processor's cache."""

_Arrays = TypeVar("_Arrays")
"""One array, several, or none (None): what holds for the points of the grid."""


@float64
def energy(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
) -> float:
    """Energy (Ha) times ``x_mix``; raises as ``energy_and_potential``."""
    scaled = _spin_scaled(density)
    total = 0.0
    for spins in _spins_together(functional, scaled):
        own = scaled.of_spins(spins)
        own_weights = x_mix * own.num_spins / scaled.num_spins * np.asarray(weights)
        fields = _fields(functional, own, convolution)
        for points in _slices(own):
            variables = _block(own, points, -1), _block(fields, points)
            total += float(_energy_of_block(variables, functional, _block(own_weights, points)))
    return total


@float64
def energy_and_potential(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
) -> tuple[float, Density]:
    """Energy (Ha) times ``x_mix``, and its derivative by each density ingredient.

    The derivative is that of the grid sum: it contains the quadrature weights, and what the
    nonlocal features of all points say of each. Raises ``ValueError`` where a nonlocal functional
    gets no convolution, or a meta-GGA one no tau.
    """
    scaled = _spin_scaled(density)
    total = 0.0
    potential = jax.tree.map(np.zeros_like, scaled)
    for spins in _spins_together(functional, scaled):
        own, by_own = scaled.of_spins(spins), potential.of_spins(spins)
        own_weights = x_mix * own.num_spins / scaled.num_spins * np.asarray(weights)
        fields = _fields(functional, own, convolution)
        by_fields = jax.tree.map(np.zeros_like, fields)
        for points in _slices(own):
            variables = _block(own, points, -1), _block(fields, points)
            part, (by_block, by_fields_of_block) = _energy_and_derivatives(
                variables, functional, _block(own_weights, points)
            )
            total += float(part)
            _add(by_own, points, by_block, -1)
            _add(by_fields, points, by_fields_of_block)
        for spin, by_field in enumerate(by_fields):
            if by_field is not None and convolution is not None:
                by_sources = np.asarray(convolution.transpose(by_field))
                _add_by_sources(by_own.of_spin(spin), functional, own.of_spin(spin), by_sources)
    return total, jax.tree.map(lambda x: density.num_spins * x, potential)


def _spin_scaled(density: Density) -> Density:
    return jax.tree.map(np.asarray, density.spin_scaled())


def _spins_together(functional: LearnedFunctional, scaled: Density) -> tuple[slice, ...]:
    """The spins whose energy is one: all, but for exchange each alone, which takes less memory."""
    if functional.has_correlation:
        return (slice(scaled.num_spins),)
    return tuple(slice(spin, spin + 1) for spin in range(scaled.num_spins))


def _fields(
    functional: LearnedFunctional, scaled: Density, convolution: GaussianConvolution | None
) -> Fields:
    """What nonlocal features read of each spin density; None without such features."""
    if functional.descriptors.nldf is None:
        return (None,) * scaled.num_spins
    if convolution is None:
        raise ValueError(f"{functional.name} needs the convolution of the grid")
    spins = range(scaled.num_spins)
    sources = (_sources(functional, scaled.of_spin(spin)) for spin in spins)
    return tuple(np.asarray(convolution.apply(own)) for own in sources)


def _sources(functional: LearnedFunctional, density: Density) -> Float[np.ndarray, "grid source"]:
    parts = [
        np.asarray(_sources_of_block(functional, _block(density, points, -1)))
        for points in _slices(density)
    ]
    return np.concatenate(parts)[: density.rho.shape[1]]


@eqx.filter_jit
def _sources_of_block(functional: LearnedFunctional, block: Density) -> Float[Array, "grid source"]:
    return functional.sources(block)


def _energy(
    variables: tuple[Density, Fields],
    functional: LearnedFunctional,
    weights: Float[AnyArray, " grid"],
) -> Float[Array, ""]:
    return (weights * functional.energy_density(*variables)).sum()


_energy_of_block = eqx.filter_jit(_energy)
_energy_and_derivatives = eqx.filter_jit(eqx.filter_value_and_grad(_energy))


def _add_by_sources(
    by_density: Density,
    functional: LearnedFunctional,
    density: Density,
    by_sources: Float[np.ndarray, "grid source"],
) -> None:
    """Add in place what the derivative by the sources makes of that by one spin density."""
    for points in _slices(density):
        blocks = _block(density, points, -1), _block(by_sources, points)
        _add(by_density, points, _pull_back(functional, *blocks), -1)


@eqx.filter_jit
def _pull_back(
    functional: LearnedFunctional, block: Density, by_sources: Float[AnyArray, "grid source"]
) -> Density:
    """Derivative by the density from that by the sources."""
    return jax.vjp(functional.sources, block)[1](by_sources)[0]


def _slices(density: Density) -> Iterator[slice]:
    size = density.rho.shape[1]
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _block(arrays: _Arrays, points: slice, axis: int = 0) -> _Arrays:
    """The points along ``axis``, filled up with zeros to one size, so that one program fits all."""

    def part(array: np.ndarray) -> np.ndarray:
        own = _along(array, points, axis)
        widths = [(0, 0)] * own.ndim
        widths[axis] = (0, BLOCK - own.shape[axis])
        return np.pad(own, widths) if widths[axis] != (0, 0) else own

    return jax.tree.map(part, arrays)


def _add(total: _Arrays, points: slice, block: _Arrays, axis: int = 0) -> None:
    """Add a block's derivative in place: ``total`` is a view of arrays of ours."""

    def add(array: np.ndarray, part: Array) -> None:
        own = _along(array, points, axis)
        own += _along(np.asarray(part), slice(own.shape[axis]), axis)

    jax.tree.map(add, total, block)


def _along(array: np.ndarray, points: slice, axis: int) -> np.ndarray:
    """A view of some points."""
    return array[points] if axis == 0 else array[..., points]
