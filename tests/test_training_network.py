"""Networks are fitted by least squares to what a Gaussian process is fitted to."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_functionals import toy_networks

from cider.input_transform import InputTransform, fit_input_transform
from cider.neural_network import NeuralNetworkEnsemble
from cider.training import network
from cider.training.model_points import (
    CELL,
    ModelPoints,
    learned_energies,
    merge,
    point_blocks,
)
from cider.training.network import Held, Observed, fit_networks, hold, whiten
from cider.training.recipe import NetworkChoice

pytestmark = pytest.mark.usefixtures("x64")

ANCHOR = np.array([0.1, -0.3])
CHOICE = NetworkChoice(hidden=(4, 3), members=2, iterations=40)
FREE = Held(np.zeros((0, 2)), 1.0, np.zeros((0, 2)), np.zeros((0, 0, 2)))


def some_points(seed: int, count: int = 1500, orbital: bool = False) -> ModelPoints:
    """Many in few cells; energies of both signs and slopes for an orbital."""
    random = np.random.default_rng(seed)
    inputs = np.clip(
        random.normal(0.3, 0.2, size=(2, 1)) + random.normal(0, 0.1, (2, count)), -1, 1
    )
    energies = -random.uniform(size=count) / count
    if not orbital:
        return ModelPoints(inputs, energies)
    signed = energies * random.choice([-1.0, 1.0], size=count)
    return ModelPoints(inputs, signed, random.normal(size=(2, count)) / count)


SYSTEMS = (*(some_points(i) for i in range(5)), some_points(5, orbital=True))


def blocks():
    densities, orbital = list(range(5)), [5]
    return tuple(
        point_blocks([SYSTEMS[i] for i in places], places, 6) for places in (densities, orbital)
    )


def truth(model: NeuralNetworkEnsemble) -> np.ndarray:
    return np.array([learned_energies(model, points).mean() for points in SYSTEMS])


def problem(noise: float) -> tuple[Observed, Observed]:
    """Energies of a network and differences of them to fit; others of it, for tuning."""
    exact = truth(toy_networks(ANCHOR, size=0.5))
    combine = np.eye(6)[[0, 1, 2, 5]]
    combine[2, 0] = -1
    tuning = np.eye(6)[3:5]
    covariance = noise**2 * (np.eye(4) + 0.5)
    return (
        whiten(combine, combine @ exact, covariance),
        whiten(tuning, tuning @ exact, noise**2 * np.eye(2)),
    )


@pytest.mark.parametrize("orbital", [False, True])
def test_merged_points_keep_sums_and_linear_functions(orbital: bool) -> None:
    points = some_points(3, orbital=orbital)
    merged = merge(points)
    assert merged.energies.size < points.energies.size / 2
    assert (merged.slopes is None) != orbital

    def of_linear(own: ModelPoints) -> float:
        slopes = 0.0 if own.slopes is None else np.sum(np.array([[2.0], [-3.0]]) * own.slopes)
        return np.sum(own.energies * (1 + 2 * own.inputs[0] - 3 * own.inputs[1])) + slopes

    assert of_linear(merged) == pytest.approx(of_linear(points), abs=1e-13)
    model = toy_networks(ANCHOR, size=0.5)
    # A mean over points with second derivatives of about one, half a cell away from its centre.
    bound = (CELL / 2 if orbital else CELL**2 / 4) * np.abs(points.energies).sum()
    np.testing.assert_allclose(
        learned_energies(model, merged), learned_energies(model, points), rtol=0, atol=bound
    )


def test_learned_energies_are_sums_over_points() -> None:
    """For an orbital, the derivative of the sum as its points move and their energies change."""
    model, points = toy_networks(ANCHOR, size=0.5), some_points(5, orbital=True)
    density = some_points(4)
    direct = np.asarray(model.members(jnp.asarray(density.inputs))) @ density.energies
    np.testing.assert_allclose(learned_energies(model, density), direct, rtol=1e-12)
    # Slopes are energies times the motion; with energies of one, the motion itself.
    ones, step = np.ones_like(points.energies), 1e-4

    def at(h: float) -> np.ndarray:
        inputs = jnp.asarray(points.inputs + h * points.slopes)
        return np.asarray(model.members(inputs)) @ (ones + h * points.energies)

    np.testing.assert_allclose(
        learned_energies(model, points), (at(step) - at(-step)) / (2 * step), rtol=1e-6
    )


def what_holds() -> tuple[Held, jax.Array, InputTransform, tuple[jax.Array, jax.Array]]:
    """Points and slopes to hold, the points, the transform and the descriptors of the slopes."""
    random = np.random.default_rng(2)
    semilocal, nonlocal_ = random.uniform(-0.9, 0.9, size=(2, 1, 200))
    transform = fit_input_transform(semilocal, nonlocal_, np.ones(200))
    points = random.uniform(-1, 1, size=(2, 30))
    held = hold(points, 0.002, semilocal, nonlocal_, transform, (0.005, 0.002), 0)
    return held, jnp.asarray(points), transform, (jnp.asarray(semilocal), jnp.asarray(nonlocal_))


def test_expansion_is_that_of_the_objective() -> None:
    """The gradient against differences of the value."""
    random, held = np.random.default_rng(0), what_holds()[0]
    observed, _ = problem(1e-2)
    prior = network._prior(ANCHOR, CHOICE).drawn_to_a_sample(random)
    data = jax.tree.map(jnp.asarray, network._Data(observed, blocks(), held))
    here = prior.centre + 0.1 * jnp.asarray(random.normal(size=prior.centre.size))
    found = network._expand(prior, here, data)
    for _ in range(3):
        along = jnp.asarray(random.normal(size=here.size))
        values = [float(network._value(prior, here + h * along, data)) for h in (1e-5, 0, -1e-5)]
        assert (values[0] - values[2]) / 2e-5 == pytest.approx(
            float(found.gradient @ along), rel=1e-6
        )
    assert values[1] == pytest.approx(float(found.value), rel=1e-13)


def test_normal_matrix_is_the_second_derivative_where_residuals_vanish() -> None:
    observed, _ = problem(1e-2)
    random = np.random.default_rng(0)
    prior = network._prior(ANCHOR, CHOICE).drawn_to_a_sample(random)
    data = jax.tree.map(jnp.asarray, network._Data(observed, blocks(), FREE))
    here, energies = prior.centre, network._expand(prior, prior.centre, data).energies
    exact = observed.combine @ np.asarray(energies)
    data = eqx.tree_at(lambda d: d.observed.targets, data, jnp.asarray(exact))
    along, step = jnp.asarray(random.normal(size=here.size)), 1e-4
    high, low = (network._expand(prior, here + h * along, data).gradient for h in (step, -step))
    expected = network._expand(prior, here, data).normal @ along
    np.testing.assert_allclose(
        (high - low) / (2 * step), expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max())
    )


def test_observations_of_a_network_are_learned() -> None:
    observed, tuning = problem(1e-3)
    found = fit_networks(observed, tuning, blocks(), FREE, ANCHOR, CHOICE, 0)
    assert max(found.training_error) < 1
    again = fit_networks(observed, tuning, blocks(), FREE, ANCHOR, CHOICE, 0)
    np.testing.assert_array_equal(again.model.readout, found.model.readout)
    other = fit_networks(observed, tuning, blocks(), FREE, ANCHOR, CHOICE, 1)
    assert np.abs(other.model.readout - found.model.readout).max() > 1e-3
    own = np.array([learned_energies(found.model, points) for points in SYSTEMS]).T
    np.testing.assert_allclose(found.energies, own, rtol=0, atol=1e-12)


def test_training_ends_where_the_tuning_error_is_least() -> None:
    """Contradicting tuning observations end it early, and no later step is kept."""
    observed, tuning = problem(1e-4)
    against = Observed(tuning.combine, -tuning.targets)
    stopped = fit_networks(observed, against, blocks(), FREE, ANCHOR, CHOICE, 0)
    without = Observed(np.zeros((0, 6)), np.zeros(0))
    to_the_end = fit_networks(observed, without, blocks(), FREE, ANCHOR, CHOICE, 0)
    assert max(to_the_end.training_error) < min(stopped.training_error)
    assert to_the_end.tuning_error == () and len(stopped.tuning_error) == 2
    errors = against.combine @ stopped.energies.T - against.targets[:, None]
    np.testing.assert_allclose(
        np.sqrt(np.mean(errors**2, axis=0)), stopped.tuning_error, rtol=1e-12
    )
    errors = against.combine @ to_the_end.energies.T - against.targets[:, None]
    assert (np.sqrt(np.mean(errors**2, axis=0)) >= stopped.tuning_error).all()


def test_held_values_and_slopes_are_as_small_as_they_shall_be() -> None:
    """Where observations say nothing, beside a prior that lets them be large."""
    held, points, transform, (u, z) = what_holds()
    nothing = Observed(np.zeros((0, 6)), np.zeros(0))
    observed, _ = problem(1e3)

    def rms_over_sigma(held: Held) -> tuple[float, float]:
        model = fit_networks(observed, nothing, blocks(), held, ANCHOR, CHOICE, 0).model

        def learned(u: jax.Array, z: jax.Array) -> jax.Array:
            return model(transform(u, z))

        by_u = jax.jvp(lambda u: learned(u, z), (u,), (jnp.ones_like(u),))[1]
        # z = tanh(ln(G/G_0)/2)
        by_z = jax.jvp(lambda z: learned(u, z), (z,), ((1 - z**2) / 2,))[1]
        slopes = (by_u / 0.005) ** 2 + (by_z / 0.002) ** 2
        return float(jnp.std(model(points) / 0.002)), float(jnp.sqrt(slopes.mean()))

    assert min(rms_over_sigma(FREE)) > 3
    assert max(rms_over_sigma(held)) < 1
