"""Energy and potential of a learned functional on a whole grid, in stages.

Pointwise parts run in blocks of one size, compiled once and with bounded memory; between them
stands the linear map of the grid, which is differentiated by its transpose:

.. math:: \\rho \\to \\theta \\to F = K\\theta \\to E, \\qquad
          \\bar F \\to \\bar\\theta = K^T \\bar F \\to \\bar\\rho
"""

import dataclasses
from collections.abc import Iterator

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from cider.conventions import AnyArray, float64
from cider.density import Density
from cider.exchange import LearnedExchange
from cider.features.convolution import GaussianConvolution

BLOCK = 16384
"""Grid points that are evaluated together."""


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
    if exchange.descriptors.nldf is None:
        convolution = None
    elif convolution is None:
        raise ValueError(f"{exchange.name} needs the convolution of the grid")
    scaled = jax.tree.map(np.asarray, density.spin_scaled())
    weights = x_mix / density.num_spins * np.asarray(weights)
    energy = 0.0
    potential = jax.tree.map(np.zeros_like, scaled)
    for spin in range(density.num_spins):
        own, by_own = scaled.of_spin(spin), potential.of_spin(spin)
        fields, by_fields = None, None
        if convolution is not None:
            fields = np.asarray(convolution.apply(_sources(exchange, own)))
            by_fields = np.empty_like(fields)
        for points, block in _blocks(own):
            part, (by_block, by_block_fields) = _energy_and_derivatives(
                exchange, block, _padded(weights[points]), _padded_or_none(fields, points)
            )
            energy += float(part)
            _add(by_own, points, by_block)
            if by_fields is not None and by_block_fields is not None:
                by_fields[points] = by_block_fields[: points.stop - points.start]
        if convolution is not None and by_fields is not None:
            by_sources = np.asarray(convolution.transpose(by_fields))
            for points, block in _blocks(own):
                _add(by_own, points, _pull_back(exchange, block, _padded(by_sources[points])))
    factor = density.num_spins  # of the spin scaling
    return energy, jax.tree.map(lambda x: factor * x, potential)


def _sources(exchange: LearnedExchange, density: Density) -> Float[np.ndarray, "grid source"]:
    parts = [
        np.asarray(_sources_of_block(exchange, block))[: points.stop - points.start]
        for points, block in _blocks(density)
    ]
    return np.concatenate(parts)


@eqx.filter_jit
def _sources_of_block(exchange: LearnedExchange, block: Density) -> Float[Array, "grid source"]:
    return exchange.sources(block)


@eqx.filter_jit
def _energy_and_derivatives(
    exchange: LearnedExchange,
    block: Density,
    weights: Float[AnyArray, " grid"],
    fields: Float[AnyArray, "grid target"] | None,
) -> tuple[Float[Array, ""], tuple[Density, Float[Array, "grid target"] | None]]:
    def energy(variables: tuple[Density, AnyArray | None]) -> Array:
        return (weights * exchange.energy_density(*variables)).sum()

    return eqx.filter_value_and_grad(energy)((block, fields))


@eqx.filter_jit
def _pull_back(
    exchange: LearnedExchange, block: Density, by_sources: Float[AnyArray, "grid source"]
) -> Density:
    """Derivative by the density from that by the sources."""
    return jax.vjp(exchange.sources, block)[1](by_sources)[0]


def _blocks(density: Density) -> Iterator[tuple[slice, Density]]:
    """Slices of the grid, and the density there, filled up with nothing to one size."""
    for start in range(0, density.rho.shape[1], BLOCK):
        points = slice(start, min(start + BLOCK, density.rho.shape[1]))
        yield points, jax.tree.map(lambda x, p=points: _padded(x[..., p], -1), density)


def _padded(values: Float[np.ndarray, "..."], axis: int = 0) -> Float[np.ndarray, "..."]:
    missing = BLOCK - values.shape[axis]
    if not missing:
        return values
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, missing)
    return np.pad(values, widths)


def _padded_or_none(
    values: Float[np.ndarray, "grid c"] | None, points: slice
) -> Float[np.ndarray, "block c"] | None:
    return None if values is None else _padded(values[points])


def _add(total: Density, points: slice, block: Density) -> None:
    """Add a block's derivative in place: ``total`` is a view of arrays of ours."""
    for field in dataclasses.fields(Density):
        target = getattr(total, field.name)
        if target is not None:
            added = np.asarray(getattr(block, field.name))
            target[..., points] += added[..., : points.stop - points.start]
