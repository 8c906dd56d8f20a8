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
from cider.exchange import LearnedExchange
from cider.features.convolution import GaussianConvolution

BLOCK = 4096
"""Grid points that are evaluated together: as many as stay in a processor's cache."""

_Arrays = TypeVar("_Arrays")
"""One array, several, or none (None): what holds for the points of one spin density."""


@float64
def energy(
    exchange: LearnedExchange,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
) -> float:
    """Energy (Ha) times ``x_mix``; raises as ``energy_and_potential``."""
    scaled, weights = _spin_scaled(density, weights, x_mix)
    total = 0.0
    for spin in range(density.num_spins):
        own = scaled.of_spin(spin)
        fields = _fields(exchange, own, convolution)
        for points in _slices(own):
            variables = _block(own, points, -1), _block(fields, points)
            total += float(_energy_of_block(variables, exchange, _block(weights, points)))
    return total


@float64
def energy_and_potential(
    exchange: LearnedExchange,
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
    scaled, weights = _spin_scaled(density, weights, x_mix)
    total = 0.0
    potential = jax.tree.map(np.zeros_like, scaled)
    for spin in range(density.num_spins):
        own, by_own = scaled.of_spin(spin), potential.of_spin(spin)
        fields = _fields(exchange, own, convolution)
        by_fields = jax.tree.map(np.zeros_like, fields)
        for points in _slices(own):
            variables = _block(own, points, -1), _block(fields, points)
            part, (by_block, by_fields_of_block) = _energy_and_derivatives(
                variables, exchange, _block(weights, points)
            )
            total += float(part)
            _add(by_own, points, by_block, -1)
            _add(by_fields, points, by_fields_of_block)
        if fields is not None and convolution is not None:
            by_sources = np.asarray(convolution.transpose(by_fields))
            for points in _slices(own):
                by_block = _pull_back(exchange, _block(own, points, -1), _block(by_sources, points))
                _add(by_own, points, by_block, -1)
    return total, jax.tree.map(lambda x: density.num_spins * x, potential)


def _spin_scaled(
    density: Density, weights: Float[AnyArray, " grid"], x_mix: float
) -> tuple[Density, Float[np.ndarray, " grid"]]:
    """The densities of spin scaling, and weights that make their mean and the fraction."""
    scaled = jax.tree.map(np.asarray, density.spin_scaled())
    return scaled, x_mix / density.num_spins * np.asarray(weights)


def _fields(
    exchange: LearnedExchange, density: Density, convolution: GaussianConvolution | None
) -> Float[np.ndarray, "grid target"] | None:
    """What nonlocal features read of one spin density; None without such features."""
    if exchange.descriptors.nldf is None:
        return None
    if convolution is None:
        raise ValueError(f"{exchange.name} needs the convolution of the grid")
    return np.asarray(convolution.apply(_sources(exchange, density)))


def _sources(exchange: LearnedExchange, density: Density) -> Float[np.ndarray, "grid source"]:
    parts = [
        np.asarray(_sources_of_block(exchange, _block(density, points, -1)))
        for points in _slices(density)
    ]
    return np.concatenate(parts)[: density.rho.shape[1]]


@eqx.filter_jit
def _sources_of_block(exchange: LearnedExchange, block: Density) -> Float[Array, "grid source"]:
    return exchange.sources(block)


def _energy(
    variables: tuple[Density, Float[AnyArray, "grid target"] | None],
    exchange: LearnedExchange,
    weights: Float[AnyArray, " grid"],
) -> Float[Array, ""]:
    return (weights * exchange.energy_density(*variables)).sum()


_energy_of_block = eqx.filter_jit(_energy)
_energy_and_derivatives = eqx.filter_jit(eqx.filter_value_and_grad(_energy))


@eqx.filter_jit
def _pull_back(
    exchange: LearnedExchange, block: Density, by_sources: Float[AnyArray, "grid source"]
) -> Density:
    """Derivative by the density from that by the sources."""
    return jax.vjp(exchange.sources, block)[1](by_sources)[0]


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
