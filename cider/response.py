r"""Second derivative of the energy: f_xc, the linear map from a change of density to potential.

A change of the density changes the sources, these the fields at all points, and both the
potential. Nonlinear is only what happens at each point. The features there,

.. math:: G_i = \sum_\beta p_\beta(a_i) F_\beta,

depend on the fields, to second order in all changes, only by their values and slopes at the
exponents :math:`a_i^0` of the unchanged density,

.. math:: G_i = M_{i0} + M_{i1} (a_i - a_i^0) + \tfrac12 M_{i2} (a_i - a_i^0)^2 + \dots, \qquad
          M_{ik} = \sum_\beta \frac{d^k p_\beta}{da^k}(a_i^0)\, F_\beta,

since a change of :math:`M_{i2}` enters in third order. So the energy of a point is a function of
a few numbers, the density ingredients x and the moments :math:`M_{i0}, M_{i1}`. Its second
derivative H, which here contains that of the sources, is all that has to be kept:

.. math:: \delta x \to \delta\theta \to \delta F = K \delta\theta \to \delta M, \qquad
          (\bar x, \bar M) = H (\delta x, \delta M), \qquad
          \bar M \to \bar F \to \bar\theta = K^T \bar F \to \bar x

Features of the density matrix are among the ingredients x here; that they are quadratic in it is
for the host to add.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cider.blocks import add_block, blocks_of, by_blocks, take_block
from cider.conventions import AnyArray, float64
from cider.density import Density
from cider.descriptors import safe_ingredients
from cider.evaluation import (
    Sources,
    add_by_sources,
    derivative_by_sources,
    fields_of,
    independent_densities,
    of_all_spins,
    pointwise_derivatives,
)
from cider.features.convolution import GaussianConvolution
from cider.features.nldf import Nldf
from cider.learned_functional import Fields, LearnedFunctional

_Tree = TypeVar("_Tree")


class LinearResponse(eqx.Module):
    """The second derivative of the energy of a learned functional at one density.

    ``curvatures`` are those of each of the densities whose energies add up: the upper triangle of
    a symmetric matrix at each point.
    """

    functional: LearnedFunctional
    densities: tuple[Density, ...]
    curvatures: tuple[Float[np.ndarray, "pair grid"], ...]
    convolution: GaussianConvolution | None

    @float64
    def __call__(self, change: Density) -> Density:
        """The change of the potential that a change of the density makes.

        Like the potential it is the derivative of the grid sum, with the quadrature weights in it.
        """
        scaled = jax.tree.map(np.asarray, change.spin_scaled())
        responses, spin = [], 0
        for density, curvature in zip(self.densities, self.curvatures, strict=True):
            own = scaled.of_spins(slice(spin, spin + density.num_spins))
            responses.append(self._response(density, curvature, own))
            spin += density.num_spins
        return of_all_spins(responses)

    def _response(
        self, density: Density, curvature: Float[np.ndarray, "pair grid"], change: Density
    ) -> Density:
        fields = self._change_of_fields(density, change)
        by_density, by_fields = jax.tree.map(np.zeros_like, (change, fields))
        for points in blocks_of(density.num_points):
            by_block, by_fields_of_block = _response_of_block(
                self.functional,
                take_block(density, points, -1),
                take_block(curvature, points, -1),
                take_block(change, points, -1),
                take_block(fields, points),
            )
            add_block(by_density, points, by_block, -1)
            add_block(by_fields, points, by_fields_of_block)
        by_sources = derivative_by_sources(by_fields, self.convolution)
        add_by_sources(by_density, self.functional, density, by_sources)
        return by_density

    def _change_of_fields(self, density: Density, change: Density) -> Fields:
        if self.convolution is None:
            return (None,) * density.num_spins
        fields = []
        for spin in range(density.num_spins):
            sources = _change_of_sources(
                self.functional, density.of_spin(spin), change.of_spin(spin)
            )
            fields.append(np.asarray(self.convolution.apply(sources)))
        return tuple(fields)


@float64
def linear_response(
    functional: LearnedFunctional,
    x_mix: float,
    density: Density,
    weights: Float[AnyArray, " grid"],
    convolution: GaussianConvolution | None = None,
    *,
    triplet: bool = False,
) -> LinearResponse:
    """Second derivative of the energy (Ha) times ``x_mix``; raises as ``energy_and_potential``.

    ``triplet`` is for a closed shell (spin axis of length 1): instead of the response of both
    spins to equal changes, that of spin up to a change of which spin down has the opposite, both
    for twice the change of spin up. Exchange does not tell them apart.
    """
    if triplet and density.num_spins != 1:
        raise ValueError("triplets are changes of a closed shell: the density has two spins")
    opposite = triplet and functional.has_correlation
    densities, curvatures = [], []
    for own, fraction in independent_densities(functional, x_mix, density):
        own_weights = fraction * np.asarray(weights)
        fields = fields_of(functional, own, convolution)
        by_sources: Sources = (None,) * own.num_spins
        if convolution is not None:
            _, _, by_fields = pointwise_derivatives(functional, own, fields, own_weights)
            by_sources = derivative_by_sources(by_fields, convolution)
        densities.append(own)
        curvatures.append(_curvature(functional, opposite, own, fields, by_sources, own_weights))
    return LinearResponse(functional, tuple(densities), tuple(curvatures), convolution)


def _change_of_sources(
    functional: LearnedFunctional, density: Density, change: Density
) -> Float[np.ndarray, "grid source"]:
    def of_block(points: slice) -> Float[Array, "grid source"]:
        both = take_block((density, change), points, -1)
        return _change_of_sources_of_block(functional, *both)

    return by_blocks(of_block, density.num_points)


@eqx.filter_jit
def _change_of_sources_of_block(
    functional: LearnedFunctional, block: Density, change: Density
) -> Float[Array, "grid source"]:
    return jax.jvp(functional.sources, (block,), (change,))[1]


@eqx.filter_jit
def _response_of_block(
    functional: LearnedFunctional,
    block: Density,
    curvature: Float[AnyArray, "pair grid"],
    change: Density,
    fields: Fields,
) -> tuple[Density, Fields]:
    """Change of the derivatives by the density at fixed fields, and by the fields."""
    moments, transpose = jax.vjp(lambda own: _moments(functional, block, own, 2), fields)
    variables = (change, moments)
    rows = _rows(variables)
    matrix = curvature[_symmetric(len(rows))]
    by_density, by_moments = _like(variables, jnp.einsum("ijg,jg->ig", matrix, rows))
    return by_density, transpose(by_moments)[0]


def _curvature(
    functional: LearnedFunctional,
    opposite: bool,
    density: Density,
    fields: Fields,
    by_sources: Sources,
    weights: Float[np.ndarray, " grid"],
) -> Float[np.ndarray, "pair grid"]:
    def of_block(points: slice) -> Float[Array, "pair grid"]:
        by_point = take_block((fields, by_sources, weights), points)
        return _curvature_of_block(functional, opposite, take_block(density, points, -1), *by_point)

    return by_blocks(of_block, density.num_points, -1)


@eqx.filter_jit
def _curvature_of_block(
    functional: LearnedFunctional,
    opposite: bool,
    block: Density,
    fields: Fields,
    by_sources: Sources,
    weights: Float[AnyArray, " grid"],
) -> Float[Array, "pair grid"]:
    """Second derivative at each point by density ingredients and moments.

    ``opposite`` is for the density of spin up, while that of spin down changes by the opposite.
    """
    moments = _moments(functional, block, fields, 3)
    exponents = _exponents(functional, block)
    variables = (block, moments[:, :2])

    def energy(rows: Float[Array, "variable grid"]) -> Float[Array, ""]:
        """Energy and sources to second order about the present variables."""
        changed, pulled = _like(variables, rows), by_sources
        if opposite:
            changed = jax.tree.map(_with_opposite, changed, variables)
            pulled = jax.tree.map(lambda x: x / 2, (*by_sources, *by_sources))
        density, (values, slopes) = changed[0], jnp.moveaxis(changed[1], 1, 0)
        shifts = _exponents(functional, density) - exponents
        features = values + slopes * shifts + moments[:, 2] * shifts**2 / 2
        total = jnp.sum(weights * functional.energy_density_of_features(density, tuple(features)))
        for spin, own in enumerate(pulled):
            if own is not None:
                total = total + jnp.sum(own * functional.sources(density.of_spin(spin)))
        return total

    return _second_derivative(energy, _rows(variables))


def _with_opposite(
    changed: Float[Array, "1 *shape"], present: Float[Array, "1 *shape"]
) -> Float[Array, "2 *shape"]:
    """Of both spins, where the second changes by the opposite of the first."""
    return jnp.concatenate([changed, 2 * present - changed])


def _exponents(functional: LearnedFunctional, scaled: Density) -> Float[Array, "spin feature grid"]:
    """Exponents of the features of each spin density."""
    nldf = functional.descriptors.nldf
    if nldf is None:
        return jnp.zeros((scaled.num_spins, 0, scaled.num_points))
    spins = range(scaled.num_spins)
    return jnp.stack([nldf.target_exponents(*safe_ingredients(scaled, spin)) for spin in spins])


def _moments(
    functional: LearnedFunctional, scaled: Density, fields: Fields, order: int
) -> Float[Array, "spin order feature grid"]:
    """Features and their derivatives by the exponents, below some order."""
    nldf, exponents = functional.descriptors.nldf, _exponents(functional, scaled)
    both = zip(exponents, fields, strict=True)
    return jnp.stack([_moments_of_spin(nldf, *own, order) for own in both])


def _moments_of_spin(
    nldf: Nldf | None,
    exponents: Float[Array, "feature grid"],
    fields: Float[AnyArray, "grid target"] | None,
    order: int,
) -> Float[Array, "order feature grid"]:
    if nldf is None or fields is None:
        return jnp.zeros((order, *exponents.shape))
    derivative: Callable[[Array], Array] = functools.partial(nldf.expand, fields=fields)
    moments = [derivative(exponents)]
    while len(moments) < order:
        derivative = _slope(derivative)
        moments.append(derivative(exponents))
    return jnp.stack(moments)


def _slope(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Derivative of a function that acts on each entry by itself."""
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def _rows(variables: Any) -> Float[Array, "variable grid"]:
    """All arrays over the grid as one."""
    leaves = jax.tree.leaves(variables)
    return jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves])


def _like(variables: _Tree, rows: Float[Array, "variable grid"]) -> _Tree:
    """The inverse of ``_rows``, for variables of known shapes."""
    leaves, structure = jax.tree.flatten(variables)
    ends = np.cumsum([math.prod(leaf.shape[:-1]) for leaf in leaves])
    parts = jnp.split(rows, ends[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def _second_derivative(
    energy: Callable[[Array], Array], rows: Float[Array, "variable grid"]
) -> Float[Array, "pair grid"]:
    """Of a sum over points, by the variables of each point: the upper triangle."""
    _, derivative_along = jax.linearize(jax.grad(energy), rows)

    def derivative_by(unit: Float[Array, " variable"]) -> Float[Array, "variable grid"]:
        return derivative_along(jnp.broadcast_to(unit[:, None], rows.shape))

    columns = jax.lax.map(derivative_by, jnp.eye(len(rows)))
    return columns[np.triu_indices(len(rows))]


def _symmetric(size: int) -> Int[np.ndarray, "variable variable"]:
    """Where the upper triangle of a symmetric matrix has each of its entries."""
    index = np.zeros((size, size), dtype=int)
    index[np.triu_indices(size)] = np.arange(size * (size + 1) // 2)
    return np.maximum(index, index.T)
