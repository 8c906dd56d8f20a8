"""Energy and potential of a learned functional on a whole grid, in stages.

Pointwise parts run in blocks of one size, compiled once and with bounded memory; between them
stands the linear map of the grid, which is differentiated by its transpose:

.. math:: \\rho \\to \\theta \\to F = K\\theta \\to E, \\qquad
          \\bar F \\to \\bar\\theta = K^T \\bar F \\to \\bar\\rho
"""

from collections.abc import Iterator, Sequence
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
    total, weights = 0.0, np.asarray(weights)
    for own, fraction in independent_densities(functional, x_mix, density):
        fields = fields_of(functional, own, convolution)
        for points in blocks_of(own.num_points):
            variables = take_block(own, points, -1), take_block(fields, points)
            block_weights = take_block(fraction * weights, points)
            total += float(_energy_of_block(block_weights, *variables, functional))
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
    total, weights = 0.0, np.asarray(weights)
    potentials = []
    for own, fraction in independent_densities(functional, x_mix, density):
        fields = fields_of(functional, own, convolution)
        derivatives = pointwise_derivatives(functional, own, fields, fraction * weights)
        energy_density, by_own, by_fields = derivatives
        add_by_sources(by_own, functional, own, derivative_by_sources(by_fields, convolution))
        total += fraction * float(weights @ energy_density)
        potentials.append(by_own)
    return total, of_all_spins(potentials)


class GridDerivative(NamedTuple):
    """Derivative of an energy by the grid, densities at its points unchanged."""

    weights: Float[np.ndarray, " grid"]
    """By the quadrature weights (Ha/bohr^3)."""
    centers: Float[np.ndarray, "atom xyz"] | None
    """By the atoms as centres of nonlocal features (Ha/bohr); None without such features."""


@float64
def potential_and_grid_derivative(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
) -> tuple[Density, GridDerivative]:
    """The potential as in ``energy_and_potential``, and the other derivatives of the energy."""
    weights = np.asarray(weights)
    potentials, by_centers = [], []
    by_weights = np.zeros_like(weights)
    for own, fraction in independent_densities(functional, x_mix, density):
        fields = fields_of(functional, own, convolution)
        derivatives = pointwise_derivatives(functional, own, fields, fraction * weights)
        energy_density, by_own, by_fields = derivatives
        by_sources = derivative_by_sources(by_fields, convolution)
        add_by_sources(by_own, functional, own, by_sources)
        potentials.append(by_own)
        by_weights += fraction * energy_density
        for spin, (by_field, by_source) in enumerate(zip(by_fields, by_sources, strict=True)):
            if convolution is not None and by_field is not None and by_source is not None:
                sources = _sources(functional, own.of_spin(spin))
                by_centers.append(convolution.derivative(sources, by_field, by_source))
    centers = np.sum(by_centers, axis=0) if by_centers else None
    return of_all_spins(potentials), GridDerivative(by_weights, centers)


def of_all_spins(potentials: Sequence[Density]) -> Density:
    """By the densities, from the derivatives by the spin-scaled densities of some spins each."""
    by_scaled: Density = jax.tree.map(lambda *x: np.concatenate(x), *potentials)
    return by_scaled.spin_scaled()


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
    total, weights = np.zeros((3, 3)), np.asarray(weights)
    for own, fraction in independent_densities(functional, x_mix, density):
        fields = fields_of(functional, own, convolution)
        _, _, by_fields = pointwise_derivatives(functional, own, fields, fraction * weights)
        for spin, by_field in enumerate(by_fields):
            if by_field is not None and convolution is not None:
                sources = _sources(functional, own.of_spin(spin))
                total += convolution.strain_derivative(sources, by_field)
    return total


def independent_densities(
    functional: LearnedFunctional, x_mix: float, density: Density
) -> Iterator[tuple[Density, float]]:
    """The spin-scaled densities whose energies add up, with the fraction that each has in the sum.

    All spins are in one, but for exchange each is alone, which takes less memory.
    """
    scaled = jax.tree.map(np.asarray, density.spin_scaled())
    size = scaled.num_spins if functional.has_correlation else 1
    for spin in range(0, scaled.num_spins, size):
        yield scaled.of_spins(slice(spin, spin + size)), x_mix * size / scaled.num_spins


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


def pointwise_derivatives(
    functional: LearnedFunctional,
    scaled: Density,
    fields: Fields,
    weights: Float[np.ndarray, " grid"],
) -> tuple[Float[np.ndarray, " grid"], Density, Fields]:
    """Derivatives of the energy by the weights, by the density at fixed fields and by the fields.

    The first is the energy density (Ha/bohr^3).
    """
    totals = jax.tree.map(np.zeros_like, (weights, scaled, fields))
    energy_density, by_density, by_fields = totals
    for points in blocks_of(scaled.num_points):
        block = take_block(scaled, points, -1), take_block(fields, points)
        by_block = _derivatives_of_block(take_block(weights, points), *block, functional)
        add_block(energy_density, points, by_block[0])
        add_block(by_density, points, by_block[1], -1)
        add_block(by_fields, points, by_block[2])
    return totals


def grid_energy(
    weights: Float[AnyArray, " grid"],
    scaled: Density,
    fields: Fields,
    functional: LearnedFunctional,
) -> Float[Array, ""]:
    return (weights * functional.energy_density(scaled, fields)).sum()


_energy_of_block = eqx.filter_jit(grid_energy)
_derivatives_of_block = eqx.filter_jit(jax.grad(grid_energy, argnums=(0, 1, 2)))


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
