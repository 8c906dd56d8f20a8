"""The fit is exact Gaussian process regression on integrals, and the pipeline delivers it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import dft

from cider.exchange import GRADIENT_CUTOFF, ExchangeTerm
from cider.gaussian_process import QuadraticGaussianProcess, chebyshev_basis
from cider.input_transform import InputTransform, fit_input_transform
from cider.learned_functional import LearnedFunctional
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.smoothed_density_matrix import sdmx_features
from cider.training import fit as fitting
from cider.training import smoothness
from cider.training.descriptors import (
    NonlocalMaps,
    compute_descriptors,
    density_on_grid,
    descriptors_of,
    read_points,
)
from cider.training.fit import Problem, fit, posterior, quadratic_form
from cider.training.integrals import (
    baseline_energy,
    enhancement_range,
    integrate,
    uniform_gas_anchor,
)
from cider.training.recipe import FeatureChoice, ModelChoice
from cider.training.reference import ReferenceSettings, compute_reference, read_density
from cider.training.smoothness import slope_form, slope_points, spread_points, values_at_points
from cider.training.store import Record, Store
from cider.training.systems import System

DEGREE, INPUTS, OBSERVATIONS = 4, 3, 9
HYPERPARAMETERS = {
    "length": np.array([0.5, 0.8, 1.2]),
    "amplitude": np.array([0.7, 0.4, 0.9]),
    "interaction": np.array([1.5]),
    "noise": np.array([0.3, 0.6]),
    "density_noise": np.array([0.2]),
}
FEATURES = FeatureChoice(
    "mgga",
    ((0.5, 0.0, 0.015625), (2.0, 0.0, 0.0625)),
    (0.5, 0.0, 0.015625),
    molecule_grid_level=0,
    atom_grid_level=0,
    sdmx=(("0", 1), ("1", 0)),
)
MAPS = NonlocalMaps(becke_convolution, sdmx_features)
OH = System("OH", "molecule", ("O", "H"), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.97)), spin=1)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(1)
    size = INPUTS * DEGREE + 3 * DEGREE**2
    names = np.array([0, 0, 1, 2, 3, 3, 4, 5, 6])
    return Problem(
        random.normal(size=(OBSERVATIONS, size)),
        random.normal(size=OBSERVATIONS),
        ("atom", "molecule"),
        np.array([0, 0, 0, 1, 1, 1, 1, 1, 1]),
        names[:, None] == names,
        tuple(str(name) for name in names),
        np.zeros((size, size)),
        INPUTS,
        DEGREE,
    )


def _dense_prior():
    """The kernel written out by hand, parameter by parameter."""
    angle = np.pi * (np.arange(200) + 0.5) / 200
    x = np.cos(angle)
    polynomials = np.cos(np.outer(np.arange(1, DEGREE + 1), angle))
    blocks = []
    for length, amplitude in zip(
        HYPERPARAMETERS["length"], HYPERPARAMETERS["amplitude"], strict=True
    ):
        kernel = np.exp(-0.5 * (x[:, None] - x) ** 2 / length**2)
        blocks.append(amplitude**2 * (polynomials @ kernel @ polynomials.T) * (2 / 200) ** 2)
    pairs = [
        HYPERPARAMETERS["interaction"][0] ** 2 * np.kron(blocks[i], blocks[j])
        for i, j in itertools.combinations(range(INPUTS), 2)
    ]
    size = sum(len(b) for b in [*blocks, *pairs])
    prior, start = np.zeros((size, size)), 0
    for block in [*blocks, *pairs]:
        prior[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return prior


def _dense_covariance(problem):
    prior = _dense_prior()
    covariance = problem.features @ prior @ problem.features.T
    for a, b in itertools.product(range(OBSERVATIONS), repeat=2):
        if problem.same_system[a, b]:
            noise = HYPERPARAMETERS["noise"][problem.noise_groups[[a, b]]]
            covariance[a, b] += noise[0] * noise[1]
    return prior, covariance + 0.2**2 * np.eye(OBSERVATIONS)


def test_posterior_is_dense_regression(problem):
    prior, covariance = _dense_covariance(problem)
    found = posterior(problem, HYPERPARAMETERS)
    gain = prior @ problem.features.T @ np.linalg.inv(covariance)
    # The jitter of the fit, 1e-8 mHa^2, is all that differs.
    np.testing.assert_allclose(found.weights, gain @ problem.targets, rtol=0, atol=1e-6)
    exact = prior - gain @ problem.features @ prior
    np.testing.assert_allclose(
        found.covariance_factor @ found.covariance_factor.T, exact, rtol=0, atol=1e-6
    )


def test_posterior_keeps_its_digits(problem):
    """Energies of 1e5 mHa known to 1 mHa: the variance of what is left is not lost in rounding."""
    large = dataclasses.replace(problem, features=1e5 * problem.features)
    factor = posterior(large, HYPERPARAMETERS).covariance_factor
    noise = np.hypot(np.array(HYPERPARAMETERS["noise"])[problem.noise_groups], 0.2)
    sigma = np.linalg.norm(large.features @ factor, axis=1)
    # As well known as the observation by itself, or better by that of the same system.
    assert (sigma < 1.001 * noise).all() and (sigma > 0.3 * noise).all()


def test_leaving_out_is_a_fit_without_the_system(problem):
    found = posterior(problem, HYPERPARAMETERS)
    for row in range(OBSERVATIONS):
        kept = ~problem.same_system[row]
        smaller = dataclasses.replace(
            problem,
            features=problem.features[kept],
            targets=problem.targets[kept],
            noise_groups=problem.noise_groups[kept],
            same_system=problem.same_system[np.ix_(kept, kept)],
            names=tuple(itertools.compress(problem.names, kept)),
        )
        weights = posterior(smaller, HYPERPARAMETERS).weights
        error = 1e-3 * (problem.features[row] @ weights - problem.targets[row])
        assert found.left_out[row] == pytest.approx(error, abs=1e-8)


def test_marginal_likelihood_and_its_gradient(problem):
    _, covariance = _dense_covariance(problem)
    y = problem.targets
    expected = -0.5 * (
        y @ np.linalg.solve(covariance, y)
        + np.linalg.slogdet(covariance)[1]
        + OBSERVATIONS * np.log(2 * np.pi)
    )
    arrays = fitting._as_arrays(problem)

    def likelihood(given):
        return fitting.log_marginal_likelihood(arrays, given)

    given = {name: jnp.asarray(values) for name, values in HYPERPARAMETERS.items()}
    assert float(likelihood(given)) == pytest.approx(expected, abs=1e-6)
    gradient = jax.grad(likelihood)(given)
    step = 1e-5
    for name, values in given.items():
        for i in range(len(values)):
            plus, minus = (
                likelihood({**given, name: values.at[i].add(sign * step)}) for sign in (1, -1)
            )
            numeric = (plus - minus) / (2 * step)
            assert float(gradient[name][i]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-6)


def test_fit_is_deterministic_and_likely(problem):
    choice = ModelChoice(chebyshev_degree=DEGREE, starts=2, noise_bounds=(0.1, 20.0))
    first, second = (fit(problem, choice, 1, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert first.log_likelihood >= posterior(problem, HYPERPARAMETERS).log_likelihood - 1
    low, high = choice.nldf_length_bounds
    assert (first.hyperparameters["length"][1:] >= low * 0.999).all()
    assert (first.hyperparameters["length"] <= high * 1.001).all()


def test_what_is_held_is_observed_to_vanish(problem):
    """Rows of a quadratic form are observations of zero with a noise of one."""
    count = 5
    rows = 1e3 * problem.features[:count]
    held = dataclasses.replace(problem, held=rows.T @ rows)
    same = np.eye(OBSERVATIONS + count, dtype=bool)
    same[:OBSERVATIONS, :OBSERVATIONS] = problem.same_system
    observed = dataclasses.replace(
        problem,
        features=np.concatenate([problem.features, rows]),
        targets=np.concatenate([problem.targets, np.zeros(count)]),
        groups=(*problem.groups, "zero"),
        noise_groups=np.concatenate([problem.noise_groups, np.full(count, 2)]),
        same_system=same,
        names=(*problem.names, *(f"zero {i}" for i in range(count))),
    )
    found = posterior(held, HYPERPARAMETERS)
    # With the noise of different densities, which every observation has, that of zeros is one.
    noise = np.append(HYPERPARAMETERS["noise"], np.sqrt(1 - 0.2**2))
    expected = posterior(observed, {**HYPERPARAMETERS, "noise": noise})
    # The jitter of the fit, 1e-8 mHa^2, is all that differs.
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        found.left_out, expected.left_out[:OBSERVATIONS], rtol=1e-6, atol=1e-9
    )
    # The constant of the normal distributions of what is held is left out.
    constant = -0.5 * count * np.log(2 * np.pi)
    assert found.log_likelihood + constant == pytest.approx(expected.log_likelihood, abs=1e-6)
    assert np.abs(rows @ found.weights).max() < 3.0


def test_spread_points_are_far_from_one_another(points, tmp_path):
    exchange = _functional(points).terms[0]
    arrays = dataclasses.asdict(points)
    store = Store(tmp_path, {"content": "descriptors"})
    store.write(Record("descriptors/PBE/OH", arrays, {}))
    inputs = spread_points(store, ["PBE/OH"], exchange.transform, 0, 12)
    assert inputs.shape == (6, 12) and (np.abs(inputs) < 1).all()
    distance = np.linalg.norm(inputs[:, :, None] - inputs[:, None, :], axis=0)
    assert distance[~np.eye(12, dtype=bool)].min() > 0.1
    values = values_at_points(inputs, exchange.model.anchor, DEGREE)
    expected = np.asarray(exchange.model(jnp.asarray(inputs)))
    found = np.einsum("pab,ab->p", values, exchange.model.quadratic_form)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigmas", [{0: 0.5, 1: 0.5}, {1: 0.1}, {1: 0.5, 2: 0.2, 5: 0.3}])
def test_slope_form_is_the_mean_square_slope(points, tmp_path, sigmas):
    """Of the learned factor, against finite differences in the descriptors."""
    exchange = _functional(points).terms[0]
    store = Store(tmp_path, {"content": "descriptors"})
    store.write(Record("descriptors/PBE/OH", dataclasses.asdict(points), {}))
    u, z = slope_points(store, ["PBE/OH"], 0)
    form_of_slopes = slope_form(u, z, exchange.transform, DEGREE, sigmas)
    form = exchange.model.quadratic_form
    pairs = itertools.combinations(range(6), 2)
    blocks = form[1:, 1:].reshape(6, DEGREE, 6, DEGREE)
    weights = 2 * np.concatenate([form[0, 1:], *(blocks[i, :, j].ravel() for i, j in pairs)])
    # A parameter is the entry of Q and of its transpose; blocks of one input have none.
    for i in range(6):
        blocks[i, :, i] = 0
    model = QuadraticGaussianProcess(form, exchange.model.anchor, DEGREE)

    def learned(u, z):
        return np.asarray(model(exchange.transform(jnp.asarray(u), jnp.asarray(z))))

    expected, h = 0.0, 1e-5
    for i, sigma in sigmas.items():
        step = np.zeros((6, 1))
        step[i] = h
        ratio = (1 + z) / (1 - z)  # G/G_0
        changed = [
            learned(u + s * step[:2], 1 - 2 / (1 + ratio * np.exp(s * step[2:]))) for s in (1, -1)
        ]
        expected += np.mean(((changed[0] - changed[1]) / (2 * h * sigma)) ** 2)
    assert weights @ form_of_slopes @ weights == pytest.approx(expected, rel=1e-3)


def test_one_orbital_is_alone_where_the_indicator_vanishes(points, tmp_path):
    """Points are drawn from such ones only, and none where there are none."""
    store = Store(tmp_path, {"content": "descriptors"})
    alone = points.semilocal[1] < smoothness.ONE_ORBITAL
    dense = points.rho > smoothness.LEAST_DENSITY
    assert 0 < (alone & dense).sum() < dense.sum()
    store.write(Record("descriptors/PBE/OH", dataclasses.asdict(points), {}))
    u, z = smoothness.one_orbital_points(store, ["PBE/OH"], 0)
    assert u.shape[1] == z.shape[1] > 0 and (u[1] < smoothness.ONE_ORBITAL).all()
    crowded = dataclasses.replace(points, semilocal=np.maximum(points.semilocal, -0.9))
    store.write(Record("descriptors/PBE/OH", dataclasses.asdict(crowded), {}))
    u, z = smoothness.one_orbital_points(store, ["PBE/OH"], 0)
    assert u.shape == (2, 0) and z.shape == (4, 0)
    exchange = _functional(points).terms[0]
    assert not slope_form(u, z, exchange.transform, DEGREE, {1: 0.1}).any()


def test_quadratic_form_and_parameters_agree():
    random = np.random.default_rng(0)
    t = random.normal(size=(5, 1 + INPUTS * DEGREE))
    matrices = np.einsum("ga,gb->gab", t, t)
    features = fitting.parameter_features(matrices, INPUTS, DEGREE)
    weights = random.normal(size=features.shape[1])
    form = quadratic_form(weights, INPUTS, DEGREE)
    np.testing.assert_allclose(
        features @ weights, np.einsum("gab,ab->g", matrices, form), rtol=1e-12
    )
    blocks = form[1:, 1:].reshape(INPUTS, DEGREE, INPUTS, DEGREE)
    assert all((blocks[i, :, i] == 0).all() for i in range(INPUTS))


@pytest.fixture(scope="module")
def reference():
    return compute_reference(OH, "PBE", ReferenceSettings("def2-svp", 0, 0))


@pytest.fixture(scope="module")
def points(reference):
    return read_points(compute_descriptors(reference, FEATURES, MAPS))


def _functional(points):
    with jax.enable_x64(True):
        transform = fit_input_transform(
            points.semilocal, points.nonlocal_, np.abs(points.lda_energy)
        )
        descriptors = descriptors_of(FEATURES)
        anchor = uniform_gas_anchor(descriptors, transform)
        half = 0.02 * np.random.default_rng(2).normal(size=(1 + 6 * DEGREE,) * 2)
        model = QuadraticGaussianProcess(half + half.T, anchor, DEGREE)
        exchange = ExchangeTerm("GGA_X_PBE", transform, model, GRADIENT_CUTOFF)
        return LearnedFunctional("test", descriptors, (exchange,))


def test_integrals_give_the_energy_of_the_functional(reference, points):
    functional = _functional(points)
    exchange = functional.terms[0]
    mol, dm = read_density(reference)
    grids = dft.gen_grid.Grids(mol)
    grids.level = 0
    grids.build()
    nldf = functional.descriptors.nldf
    sdmx = sdmx_features(mol, grids, functional.descriptors.sdmx, dm[:, None], 1000)[:, 0]
    density = dataclasses.replace(density_on_grid(mol, grids.coords, dm), sdmx=sdmx)
    linear_map = becke_convolution(mol, grids, nldf)
    direct = functional.energy(density, jnp.asarray(grids.weights), linear_map)
    matrix = integrate(points, exchange.transform, exchange.model.anchor, DEGREE)
    learned = np.sum(matrix * exchange.model.quadratic_form)
    # Single precision of the stored descriptors and the dropped points: 1e-7 Ha each at most.
    energy = baseline_energy(points, "GGA_X_PBE") + learned
    assert energy == pytest.approx(float(direct), abs=2e-7)
    low, high = enhancement_range(points, "GGA_X_PBE", exchange.transform, exchange.model)
    assert low < high


def test_the_uniform_gas_is_exact(points):
    functional = _functional(points)
    exchange = functional.terms[0]
    inputs = exchange.transform(*map(jnp.asarray, functional.descriptors.ueg))
    assert float(jnp.abs(exchange.model(inputs))[0]) < 1e-14
    t = chebyshev_basis(inputs, DEGREE)
    assert t.shape == (1, 1 + 6 * DEGREE)
    assert isinstance(exchange.transform, InputTransform)
