r"""Neural networks trained on linear functionals of the enhancement factor.

A network of parameters :math:`\theta` minimises what a Gaussian process of the same data minimises,
with a prior of its own,

.. math:: \big|L^{-1}(y - C E(\theta))\big|^2 + \sum_k \Big(\frac{g(x_k)}{\sigma}\Big)^2
          + \Big\langle \sum_d \Big(\frac{1}{\sigma_d}
          \frac{\partial g}{\partial d}\Big)^2 \Big\rangle
          + \sum_i \Big(\frac{\theta_i - \theta_i^0}{s_i}\Big)^2

where C combines learned energies E of densities to observations y with noise covariance
:math:`L L^T`, and the terms that hold g and its slopes are those of ``cider.training.smoothness``.
All are squares, which Levenberg and Marquardt's method makes use of: energies of tens of hartree,
known to a millihartree, are a narrow valley. With 52 systems, four steps of it led to where 450 of
Adam with a cosine schedule had led, at the same cost each; after 130, the objective was 45 times
lower.

Members of an ensemble start from, and are drawn to, their own :math:`\theta^0` of the prior
distribution: where observations say little, they differ. What ends the training is the error of
observations that are not fitted (the tuning part), if there are any.

Ref: Madsen, Nielsen, Tingleff, Methods for Non-Linear Least Squares Problems (2004), Algorithm
3.16; for the ensemble, Pearce et al., AISTATS 2020 (arXiv:1810.05546).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import linalg

from cider.conventions import float64
from cider.input_transform import InputTransform
from cider.neural_network import NeuralNetworkEnsemble, network_shapes
from cider.training.model_points import ModelPoints, PointBlocks, weighted_sum
from cider.training.recipe import NetworkChoice
from cider.training.smoothness import slope_direction, slope_sigmas

_FIRST_DAMPING = 1e-3
"""Of the first step, beside the largest diagonal element of the normal matrix."""

_MOST_SLOPES = 1000
"""Points at which slopes are held, chosen among those that the Gaussian process is held at."""

_CONVERGED = 1e-5
"""Steps end where none promises to lower the objective by more than this, relative to it."""


class Observed(eqx.Module):
    """Observations as the network sees them: ``combine`` times learned energies are ``targets``.

    Both are divided by a root of the noise covariance, so that errors of one are expected.
    """

    combine: Float[np.ndarray, "observation system"]
    targets: Float[np.ndarray, " observation"]


class Held(eqx.Module):
    """Where the learned factor shall vanish within ``sigma``, and where its slopes are held.

    ``tangents`` are derivatives of the inputs at ``slope_points`` by each descriptor, over its
    sigma and the root of the number of points: squares of slopes along them add up to their mean.
    """

    points: Float[np.ndarray, "held input"]
    sigma: float = eqx.field(static=True)
    slope_points: Float[np.ndarray, "slope input"]
    tangents: Float[np.ndarray, "slope descriptor input"]


@dataclasses.dataclass(frozen=True)
class NetworkFit:
    """The trained ensemble, and of each member how many steps it took and where it ended.

    ``energies`` are the learned ones (Ha). ``training_error`` and ``tuning_error`` are root mean
    squares over the noise; without tuning observations there is none of the latter.
    """

    model: NeuralNetworkEnsemble
    energies: Float[np.ndarray, "member system"]
    steps: tuple[int, ...]
    training_error: tuple[float, ...]
    tuning_error: tuple[float, ...] = ()


def whiten(
    combine: Float[np.ndarray, "observation system"],
    targets: Float[np.ndarray, " observation"],
    covariance: Float[np.ndarray, "observation observation"],
) -> Observed:
    """Observations (Ha) of learned energies (Ha) with a noise covariance (Ha^2)."""
    root = np.linalg.cholesky(covariance)
    return Observed(
        linalg.solve_triangular(root, combine, lower=True),
        linalg.solve_triangular(root, targets, lower=True),
    )


@float64
def hold(
    points: Float[np.ndarray, "input held"],
    sigma: float,
    semilocal: Float[np.ndarray, "semilocal slope"],
    nonlocal_: Float[np.ndarray, "nonlocal slope"],
    transform: InputTransform,
    sigmas: tuple[float, float],
    seed: int,
) -> Held:
    """What holds a network, from points of ``cider.training.smoothness`` and their sigmas.

    Slopes are by semilocal descriptors and by logarithms of nonlocal features; a sigma of 0 leaves
    them free.
    """
    count = semilocal.shape[1]
    chosen = np.sort(
        np.random.default_rng(seed).choice(count, min(count, _MOST_SLOPES), replace=False)
    )
    u, z = jnp.asarray(semilocal[:, chosen]), jnp.asarray(nonlocal_[:, chosen])
    inputs, tangents = transform(u, z), []
    for descriptor, sigma_d in slope_sigmas(*sigmas, len(u), len(z)).items():
        _, tangent = jax.jvp(transform, (u, z), slope_direction(u, z, descriptor))
        tangents.append(tangent.T / (sigma_d * np.sqrt(chosen.size)))
    stacked = np.stack(tangents, 1) if tangents else np.zeros((chosen.size, 0, len(inputs)))
    return Held(points.T, sigma, np.asarray(inputs).T, stacked)


@float64
def fit_networks(
    observed: Observed,
    tuning: Observed,
    points: tuple[PointBlocks, ...],
    held: Held,
    anchor: Float[np.ndarray, " input"],
    choice: NetworkChoice,
    seed: int,
    progress: Callable[[str], None] = lambda line: None,
) -> NetworkFit:
    """Train an ensemble; ``progress`` hears of every member.

    ``observed`` and ``tuning`` (which may be empty) combine the densities of ``points``.
    """
    data = jax.tree.map(jnp.asarray, _Data(observed, points, held))
    prior, trained = _prior(anchor, choice), []
    for member in range(choice.members):
        own = prior.drawn_to_a_sample(np.random.default_rng((seed, member)))
        found = _fit_member(own, data, tuning, choice)
        trained.append(found)
        tuned = (
            "" if found.tuning_error is None else f", of the tuning part {found.tuning_error:.2f}"
        )
        progress(
            f"network {member + 1} of {choice.members}: {found.steps} steps, error over noise "
            f"{found.training_error:.2f}{tuned}"
        )
    weights, biases, readout = jax.tree.map(
        lambda *parts: np.concatenate(parts), *(_trained(m.network) for m in trained)
    )
    return NetworkFit(
        NeuralNetworkEnsemble(weights, biases, readout, anchor, choice.bound),
        np.array([m.energies for m in trained]),
        tuple(m.steps for m in trained),
        tuple(m.training_error for m in trained),
        tuple(m.tuning_error for m in trained if m.tuning_error is not None),
    )


def _trained(network: NeuralNetworkEnsemble) -> tuple[Any, ...]:
    """What is trained of a network."""
    return network.weights, network.biases, network.readout


class _Prior(eqx.Module):
    """Where the parameters of a network are drawn to, with which standard deviations.

    ``template`` is any one network of its layers.
    """

    template: NeuralNetworkEnsemble
    centre: Float[Array, " parameter"]
    scales: Float[Array, " parameter"]

    def drawn_to_a_sample(self, random: np.random.Generator) -> "_Prior":
        sample = np.asarray(self.scales) * random.normal(size=self.scales.shape)
        return dataclasses.replace(self, centre=jnp.asarray(sample))

    def network_of(self, parameters: Float[Array, " parameter"]) -> NeuralNetworkEnsemble:
        leaves, structure = jax.tree.flatten(_trained(self.template))
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = jnp.split(parameters, ends)
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return eqx.tree_at(_trained, self.template, jax.tree.unflatten(structure, shaped))


class _Data(eqx.Module):
    observed: Observed
    points: tuple[PointBlocks, ...]
    held: Held


class _Expansion(NamedTuple):
    """The objective, half a sum of squares, at some parameters, and of second order about them."""

    energies: Float[Array, " system"]
    value: Float[Array, ""]
    gradient: Float[Array, " parameter"]
    normal: Float[Array, "parameter parameter"]


class _Member(NamedTuple):
    network: NeuralNetworkEnsemble
    energies: Float[np.ndarray, " system"]
    steps: int
    training_error: float
    tuning_error: float | None


def _prior(anchor: Float[np.ndarray, " input"], choice: NetworkChoice) -> _Prior:
    sizes = (anchor.size, *choice.hidden)
    shapes = network_shapes(1, sizes)
    layers = len(choice.hidden)
    scales = (
        tuple(
            np.full(shape, choice.weight_sigma / np.sqrt(shape[-1])) for shape in shapes[:layers]
        ),
        tuple(np.full(shape, choice.weight_sigma) for shape in shapes[layers:]),
        np.full((1, sizes[-1]), choice.readout_sigma / np.sqrt(sizes[-1])),
    )
    template = NeuralNetworkEnsemble(*scales, anchor, choice.bound)
    flat = jnp.concatenate([part.ravel() for part in jax.tree.leaves(scales)])
    return _Prior(template, jnp.zeros_like(flat), flat)


def _fit_member(prior: _Prior, data: _Data, tuning: Observed, choice: NetworkChoice) -> _Member:
    """Steps until the tuning error has not fallen for ``patience`` of them; the best parameters."""
    parameters = prior.centre
    here = _expand(prior, parameters, data)
    damping, growth = _FIRST_DAMPING * float(jnp.max(jnp.diagonal(here.normal))), 2.0
    best, best_parameters, best_step, steps = here, parameters, 0, 0

    def score(at: _Expansion) -> float:
        return _error(at, tuning) if tuning.targets.size else float(at.value)

    for _ in range(choice.iterations):
        step = _damped_step(here, damping)
        expected = float(step @ (damping * step - here.gradient)) / 2
        if expected < _CONVERGED * float(here.value) or steps - best_step >= choice.patience:
            break
        decrease = float(here.value - _value(prior, parameters + step, data))
        if not decrease > 0:
            damping, growth = damping * growth, 2 * growth
            continue
        parameters, steps = parameters + step, steps + 1
        here = _expand(prior, parameters, data)
        damping, growth = damping * max(1 / 3, 1 - (2 * decrease / expected - 1) ** 3), 2.0
        if score(here) < score(best):
            best, best_parameters, best_step = here, parameters, steps
    return _Member(
        jax.tree.map(np.asarray, prior.network_of(best_parameters)),
        np.asarray(best.energies),
        best_step,
        _error(best, data.observed),
        score(best) if tuning.targets.size else None,
    )


def _error(at: _Expansion, observed: Observed) -> float:
    """Root mean square error over the noise."""
    errors = np.asarray(observed.combine) @ np.asarray(at.energies) - np.asarray(observed.targets)
    return float(np.sqrt(np.mean(errors**2)))


@jax.jit
def _damped_step(here: _Expansion, damping: Array | float) -> Float[Array, " parameter"]:
    damped = here.normal + damping * jnp.eye(len(here.gradient))
    return jax.scipy.linalg.solve(damped, -here.gradient, assume_a="pos")


def _expansion(prior: _Prior, parameters: Float[Array, " parameter"], data: _Data) -> _Expansion:
    held = data.held

    def block_energy(own: Array, points: ModelPoints) -> Array:
        return weighted_sum(prior.network_of(own), points)[0]

    def value(own: Array, x: Array) -> Array:
        return prior.network_of(own).members(x[:, None])[0, 0]

    def slope(own: Array, x: Array, tangent: Array) -> Array:
        return jax.jvp(lambda y: value(own, y), (x,), (tangent,))[1]

    def of_blocks(blocks: PointBlocks) -> list[Array]:
        of_one = functools.partial(jax.value_and_grad(block_energy), parameters)
        by_block = jax.lax.map(of_one, blocks.points)
        return [jax.ops.segment_sum(p, blocks.places, blocks.num_places) for p in by_block]

    parts = [of_blocks(blocks) for blocks in data.points]
    energies, rows = (sum(own[1:], own[0]) for own in zip(*parts, strict=True))
    at_points = jax.vmap(jax.value_and_grad(value), (None, 0))
    along = jax.vmap(jax.value_and_grad(slope), (None, None, 0))
    slopes, slope_rows = jax.vmap(along, (None, 0, 0))(parameters, held.slope_points, held.tangents)
    values, value_rows = at_points(parameters, held.points)
    terms = (
        (data.observed.combine @ energies - data.observed.targets, data.observed.combine @ rows),
        (values / held.sigma, value_rows / held.sigma),
        (slopes.ravel(), slope_rows.reshape(-1, len(parameters))),
    )
    beyond = (parameters - prior.centre) / prior.scales
    return _Expansion(
        energies,
        sum((r @ r for r, _ in terms), start=beyond @ beyond) / 2,
        sum((rows.T @ r for r, rows in terms), start=beyond / prior.scales),
        sum((rows.T @ rows for _, rows in terms), start=jnp.diag(prior.scales**-2)),
    )


_expand = eqx.filter_jit(_expansion)
_value = eqx.filter_jit(lambda *arguments: _expansion(*arguments).value)
