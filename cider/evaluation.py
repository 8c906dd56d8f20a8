"""Energy and potential of a learned functional on a whole grid, in stages.

Pointwise parts run in blocks of one size, compiled once and with bounded memory; between them
stands the linear map of the grid, which is differentiated by its transpose:

.. math:: \\rho \\to \\theta \\to F = K\\theta \\to E, \\qquad
          \\bar F \\to \\bar\\theta = K^T \\bar F \\to \\bar\\rho
"""

from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from cider.blocks import add_block, blocks_of, by_blocks, take_block
from cider.conventions import AnyArray, float64
from cider.density import Density
from cider.features.convolution import GaussianConvolution
from cider.learned_functional import Fields, LearnedFunctional

Sources = tuple[Float[AnyArray, "grid source"] | None, ...]
"""Of each spin density, or the derivative by them; ``None`` for semilocal descriptors."""


@float64
def energy(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
) -> float:
    """Energy (Ha) times ``x_mix``; raises as ``energy_and_potential``."""
    total = 0.0
    for own, own_weights in independent_densities(functional, x_mix, density, weights):
        fields = fields_of(functional, own, convolution)
        for points in blocks_of(own.num_points):
            variables = take_block(own, points, -1), take_block(fields, points)
            block_weights = take_block(own_weights, points)
            total += float(_energy_of_block(variables, functional, block_weights))
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
    total = 0.0
    potentials = []
    for own, own_weights in independent_densities(functional, x_mix, density, weights):
        fields = fields_of(functional, own, convolution)
        part, by_own, by_fields = energy_and_derivatives(functional, own, fields, own_weights)
        add_by_sources(by_own, functional, own, derivative_by_sources(by_fields, convolution))
        total += part
        potentials.append(by_own)
    return total, jax.tree.map(lambda *x: density.num_spins * np.concatenate(x), *potentials)


class GridDerivative(NamedTuple):
    """Derivative of an energy by the grid, densities at its points unchanged."""

    weights: Float[np.ndarray, " grid"]
    """By the quadrature weights (Ha/bohr^3)."""
    centers: Float[np.ndarray, "atom xyz"] | None
    """By the atoms as centres of nonlocal features (Ha/bohr); None without such features."""


@float64
def grid_derivative(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
) -> GridDerivative:
    """Derivative of the energy times ``x_mix`` by the grid; raises as ``energy_and_potential``."""
    weights = np.asarray(weights)
    by_weights = np.zeros_like(weights)
    by_centers: list[Float[np.ndarray, "atom xyz"]] = []
    everywhere = np.ones_like(weights)
    for own, fraction in independent_densities(functional, x_mix, density, everywhere):
        fields = fields_of(functional, own, convolution)
        by_weights += fraction * _energy_density(functional, own, fields)
        _, _, by_fields = energy_and_derivatives(functional, own, fields, fraction * weights)
        for spin, by_field in enumerate(by_fields):
            if by_field is not None and convolution is not None:
                sources = _sources(functional, own.of_spin(spin))
                by_centers.append(convolution.derivative(sources, by_field))
    return GridDerivative(by_weights, np.sum(by_centers, axis=0) if by_centers else None)


@float64
def strain_derivative(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
) -> Float[np.ndarray, "xyz xyz"]:
    """Derivative of the energy (Ha) times ``x_mix`` by a strain of the crystal.

    Densities at the points, which move with the crystal, are unchanged, and so are the weights:
    zero without nonlocal features. Raises as ``energy_and_potential``.
    """
    total = np.zeros((3, 3))
    for own, own_weights in independent_densities(functional, x_mix, density, weights):
        fields = fields_of(functional, own, convolution)
        _, _, by_fields = energy_and_derivatives(functional, own, fields, own_weights)
        for spin, by_field in enumerate(by_fields):
            if by_field is not None and convolution is not None:
                sources = _sources(functional, own.of_spin(spin))
                total += convolution.strain_derivative(sources, by_field)
    return total


def independent_densities(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
) -> Iterator[tuple[Density, Float[np.ndarray, " grid"]]]:
    """The spin-scaled densities whose energies add up, with the weights that they have in the sum.

    All spins are in one, but for exchange each is alone, which takes less memory.
    """
    scaled = jax.tree.map(np.asarray, density.spin_scaled())
    size = scaled.num_spins if functional.has_correlation else 1
    for spin in range(0, scaled.num_spins, size):
        yield (
            scaled.of_spins(slice(spin, spin + size)),
            x_mix * size / scaled.num_spins * np.asarray(weights),
        )


def fields_of(
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
    def of_block(points: slice) -> Float[Array, "grid source"]:
        return _sources_of_block(functional, take_block(density, points, -1))

    return by_blocks(of_block, density.num_points)


@eqx.filter_jit
def _sources_of_block(functional: LearnedFunctional, block: Density) -> Float[Array, "grid source"]:
    return functional.sources(block)


def _energy_density(
    functional: LearnedFunctional, scaled: Density, fields: Fields
) -> Float[np.ndarray, " grid"]:
    def of_block(points: slice) -> Float[Array, " grid"]:
        variables = take_block(scaled, points, -1), take_block(fields, points)
        return _energy_density_of_block(functional, *variables)

    return by_blocks(of_block, scaled.num_points)


@eqx.filter_jit
def _energy_density_of_block(
    functional: LearnedFunctional, block: Density, fields: Fields
) -> Float[Array, " grid"]:
    return functional.energy_density(block, fields)


def energy_and_derivatives(
    functional: LearnedFunctional,
    scaled: Density,
    fields: Fields,
    weights: Float[np.ndarray, " grid"],
) -> tuple[float, Density, Fields]:
    """Energy (Ha), and its derivatives by the density at fixed fields and by the fields."""
    total = 0.0
    by_density, by_fields = jax.tree.map(np.zeros_like, (scaled, fields))
    for points in blocks_of(scaled.num_points):
        variables = take_block(scaled, points, -1), take_block(fields, points)
        part, (by_block, by_fields_of_block) = _energy_and_derivatives(
            variables, functional, take_block(weights, points)
        )
        total += float(part)
        add_block(by_density, points, by_block, -1)
        add_block(by_fields, points, by_fields_of_block)
    return total, by_density, by_fields


def _energy(
    variables: tuple[Density, Fields],
    functional: LearnedFunctional,
    weights: Float[AnyArray, " grid"],
) -> Float[Array, ""]:
    return (weights * functional.energy_density(*variables)).sum()


_energy_of_block = eqx.filter_jit(_energy)
_energy_and_derivatives = eqx.filter_jit(eqx.filter_value_and_grad(_energy))


def derivative_by_sources(by_fields: Fields, convolution: GaussianConvolution | None) -> Sources:
    """The derivative by the sources of each spin density from that by the fields."""
    return tuple(
        None if own is None or convolution is None else np.asarray(convolution.transpose(own))
        for own in by_fields
    )


def add_by_sources(
    by_density: Density, functional: LearnedFunctional, scaled: Density, by_sources: Sources
) -> None:
    """Add in place what the derivative by the sources makes of that by the densities."""
    for spin, own in enumerate(by_sources):
        if own is not None:
            density = scaled.of_spin(spin)
            for points in blocks_of(density.num_points):
                block, by_block = take_block(density, points, -1), take_block(own, points)
                add_block(
                    by_density.of_spin(spin), points, _pull_back(functional, block, by_block), -1
                )


@eqx.filter_jit
def _pull_back(
    functional: LearnedFunctional, block: Density, by_sources: Float[AnyArray, "grid source"]
) -> Density:
    """Derivative by the density from that by the sources."""
    return jax.vjp(functional.sources, block)[1](by_sources)[0]
