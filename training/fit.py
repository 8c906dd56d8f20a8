r"""The fit: a Gaussian process on linear functionals of the enhancement factor.

The parameters are the coefficients of :math:`T_k(x_i)` (main effects) and of
:math:`T_k(x_i) T_l(x_j)`, i < j, k, l >= 1 (pair effects). Their prior comes from one-dimensional
Gaussian kernels on [-1, 1], :math:`k_i(x, x') \approx \sum_{kl} L^i_{kl} T_k(x) T_l(x')`:

.. math:: \mathrm{cov} = s_i^2 L^i \quad\text{(main)}, \qquad
          s_2^2 s_i^2 s_j^2\, L^i \otimes L^j \quad\text{(pairs)}.

Observations are linear in the parameters with per-system integrals for coefficients, so the fit
and its marginal likelihood never touch a grid. What keeps the fit smooth is a quadratic form of the
parameters, which joins the prior. With a root R of the prior, the precision A of the parameters by
observations and that form is seen through

.. math:: K = 1 + R^T A R

whose size is the number of parameters, however many points the smoothness is asked at. Energies are
in mHa here, so that all numbers are of order one.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import linalg, optimize

from cider.conventions import float64
from cider.training.integrals import Integrals
from cider.training.observations import Observation, coefficient_matrix
from cider.training.recipe import ModelChoice

_MILLI = 1e3
_NODES = 48
_JITTER = 1e-8
_ROOT_JITTER = 1e-13
"""Added to kernels, whose size is about one, so that rounding leaves them positive."""

Hyperparameters = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Observations as the fit sees them, in mHa.

    ``noise_groups`` are indices into the fitted noises; ``same_system`` marks pairs of observations
    that differ by their density alone, whose model error is common. ``names`` are the systems',
    one for each observation. Minus half of the quadratic form ``held`` is the logarithm of a prior
    probability, beside that of the kernels.
    """

    features: Float[np.ndarray, "observation parameter"]
    targets: Float[np.ndarray, " observation"]
    groups: tuple[str, ...]
    noise_groups: np.ndarray
    same_system: np.ndarray
    names: tuple[str, ...]
    held: Float[np.ndarray, "parameter parameter"]
    num_inputs: int
    degree: int

    @property
    def several_densities(self) -> bool:
        """Whether any system is observed at more than one density."""
        return bool(self.same_system.sum() > len(self.targets))


@dataclasses.dataclass(frozen=True)
class Fit:
    """Posterior of the parameters.

    ``covariance_factor`` F gives the covariance F Fᵀ, ``hyperparameters`` what was optimised:
    lengths, amplitudes, noises (mHa). ``left_out`` are the errors (Ha) of the observations when
    their system is left out.
    """

    weights: Float[np.ndarray, " parameter"]
    covariance_factor: Float[np.ndarray, "parameter rank"]
    hyperparameters: Mapping[str, np.ndarray]
    groups: tuple[str, ...]
    log_likelihood: float
    left_out: Float[np.ndarray, " observation"]
    left_out_sigma: Float[np.ndarray, " observation"]
    num_inputs: int
    degree: int

    @property
    def quadratic_form(self) -> Float[np.ndarray, "basis basis"]:
        """The matrix Q of ``QuadraticGaussianProcess``."""
        return quadratic_form(self.weights, self.num_inputs, self.degree)

    def noise(self, group: str) -> float:
        """Fitted noise (Ha) of a group of observations; that of molecules for unknown ones."""
        noises = dict(zip(self.groups, self.hyperparameters["noise"], strict=True))
        value = noises.get(group, noises.get("molecule", max(noises.values())))
        return float(value) / _MILLI

    def energies(self, features: Float[np.ndarray, "any parameter"]) -> Float[np.ndarray, " any"]:
        """Learned energies (Ha)."""
        return features @ self.weights

    def sigma(self, features: Float[np.ndarray, "any parameter"]) -> Float[np.ndarray, " any"]:
        """Standard deviations (Ha) of learned energies by the posterior alone."""
        return np.sqrt(np.sum((features @ self.covariance_factor) ** 2, axis=1))


def parameter_features(
    matrices: Float[np.ndarray, "any basis basis"], num_inputs: int, degree: int
) -> Float[np.ndarray, "any parameter"]:
    """Coefficients of the parameters in the learned energies, from the integrals M."""
    main = matrices[:, 0, 1:]
    blocks = matrices[:, 1:, 1:].reshape(-1, num_inputs, degree, num_inputs, degree)
    pairs = [
        blocks[:, i, :, j, :].reshape(-1, degree**2)
        for i, j in itertools.combinations(range(num_inputs), 2)
    ]
    return np.concatenate([main, *pairs], axis=1)


def quadratic_form(
    weights: Float[np.ndarray, " parameter"], num_inputs: int, degree: int
) -> Float[np.ndarray, "basis basis"]:
    """The symmetric Q whose product with M is the parameters' with their coefficients."""
    size = num_inputs * degree
    q = np.zeros((1 + size, 1 + size))
    q[0, 1:] = weights[:size]
    blocks = q[1:, 1:].reshape(num_inputs, degree, num_inputs, degree)
    pairs = weights[size:].reshape(-1, degree, degree)
    for pair, (i, j) in zip(pairs, itertools.combinations(range(num_inputs), 2), strict=True):
        blocks[i, :, j, :] = pair
    return (q + q.T) / 2


def held_energies(
    observations: Sequence[Observation], integrals: Integrals, degree: int, sigma: float
) -> Float[np.ndarray, "parameter parameter"]:
    """The quadratic form that holds the learned part of what is observed within ``sigma`` (mHa)."""
    num_inputs = (integrals.matrices.shape[1] - 1) // degree
    combine = coefficient_matrix(observations, integrals.keys)
    rows = _MILLI / sigma * (combine @ parameter_features(integrals.matrices, num_inputs, degree))
    return rows.T @ rows


def num_parameters(num_inputs: int, degree: int) -> int:
    """How many coefficients main and pair effects have together."""
    return num_inputs * degree + num_inputs * (num_inputs - 1) // 2 * degree**2


def build_problem(
    observations: Sequence[Observation],
    integrals: Integrals,
    degree: int,
    groups: tuple[str, ...] = (),
    held: Float[np.ndarray, "parameter parameter"] | None = None,
) -> Problem:
    """The observations as linear equations for the parameters.

    ``groups`` are the noise groups of a larger problem, where its hyperparameters will be used.
    """
    num_inputs = (integrals.matrices.shape[1] - 1) // degree
    combine = coefficient_matrix(observations, integrals.keys)
    features = _MILLI * (combine @ parameter_features(integrals.matrices, num_inputs, degree))
    exact = np.array([o.value for o in observations])
    groups = groups or tuple(sorted({o.noise for o in observations}))
    labels = np.array([f"{o.kind} {o.title}" for o in observations])
    return Problem(
        features,
        _MILLI * (exact - combine @ integrals.baseline),
        groups,
        np.array([groups.index(o.noise) for o in observations]),
        labels[:, None] == labels,
        tuple(o.name for o in observations),
        np.zeros((features.shape[1],) * 2) if held is None else held,
        num_inputs,
        degree,
    )


@float64
def fit(problem: Problem, choice: ModelChoice, num_semilocal: int, seed: int) -> Fit:
    """Maximise the marginal likelihood from several starts, and give the posterior.

    Raises:
        ValueError: There are no observations, or no start led to a finite likelihood.
    """
    if not len(problem.targets):
        raise ValueError("there is nothing to fit: no observation of role 'training' has data")
    layout, bounds = _layout(problem, choice, num_semilocal)
    arrays = _as_arrays(problem)

    def unpack(vector: Any) -> dict[str, Any]:
        return {name: jnp.exp(vector[part]) for name, part in layout.items()}

    def objective(vector: Array) -> Array:
        return -log_marginal_likelihood(arrays, unpack(vector)) / len(problem.targets)

    value_and_gradient = jax.jit(jax.value_and_grad(objective))

    def for_scipy(vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(jnp.asarray(vector))
        if not np.isfinite(value):
            return 1e10, np.zeros_like(vector)
        return float(value), np.asarray(gradient)

    random = np.random.default_rng(seed)
    best = None
    for start in range(choice.starts):
        shares = np.full(len(bounds), 0.5) if start == 0 else random.uniform(0.2, 0.8, len(bounds))
        guess = bounds[:, 0] + shares * (bounds[:, 1] - bounds[:, 0])
        found = optimize.minimize(
            for_scipy,
            guess,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": choice.iterations},
        )
        if found.fun < 1e9 and (best is None or found.fun < best.fun):
            best = found
    if best is None:
        raise ValueError("no start of the fit gave a finite likelihood: widen the bounds")
    hyperparameters = {k: np.asarray(v) for k, v in unpack(jnp.asarray(best.x)).items()}
    return posterior(problem, hyperparameters)


@float64
def posterior(problem: Problem, hyperparameters: Mapping[str, np.ndarray]) -> Fit:
    """The posterior of the parameters with given hyperparameters."""
    arrays = _as_arrays(problem)
    given = {k: jnp.asarray(v) for k, v in hyperparameters.items()}
    own = _condition(arrays, given)
    log_likelihood = float(_log_likelihood(own))
    own = jax.tree.map(np.asarray, own)
    prior_root = np.asarray(_times_root(jnp.eye(len(own.factor)), given, problem.num_inputs))
    root = linalg.solve_triangular(own.factor, prior_root.T, lower=True).T
    weights = root @ own.explained
    unexplained = own.features @ root
    inverse = np.eye(len(own.targets)) - unexplained @ unexplained.T
    by_noise = linalg.solve_triangular(own.noise_factor, np.eye(len(inverse)), lower=True)
    left_out, left_out_sigma = _left_out(
        problem,
        by_noise.T @ inverse @ by_noise,
        by_noise.T @ (own.targets - own.features @ weights),
    )
    return Fit(
        weights,
        _of_low_rank(problem, root),
        dict(hyperparameters),
        problem.groups,
        log_likelihood,
        left_out / _MILLI,
        left_out_sigma / _MILLI,
        problem.num_inputs,
        problem.degree,
    )


@float64
def noise_covariance(
    problem: Problem, hyperparameters: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "observation observation"]:
    """That of the errors of the observations which no model explains (mHa^2)."""
    given = {k: jnp.asarray(v) for k, v in hyperparameters.items()}
    return np.asarray(_noise_covariance(_as_arrays(problem), given))


def log_marginal_likelihood(arrays: Mapping[str, Array], given: Hyperparameters) -> Array:
    """Of the observations (mHa), noise included, and of what is held, up to a constant."""
    return _log_likelihood(_condition(arrays, given))


def _log_likelihood(own: "_Conditioned") -> Array:
    size = own.targets.shape[0]
    return (
        -0.5 * (own.targets @ own.targets - own.explained @ own.explained)
        - jnp.sum(jnp.log(jnp.diagonal(own.factor)))
        - jnp.sum(jnp.log(jnp.diagonal(own.noise_factor)))
        - 0.5 * size * jnp.log(2 * jnp.pi)
    )


def chebyshev_kernel(
    lengths: Float[Array, " input"], degree: int
) -> Float[Array, "input degree degree"]:
    """Coefficients L of Gaussian kernels of these lengths on [-1, 1], without the constants."""
    angle = np.pi * (np.arange(_NODES) + 0.5) / _NODES
    nodes = np.cos(angle)
    # The discrete cosine transform, from values at Chebyshev nodes to coefficients 1 to degree.
    transform = 2 / _NODES * np.cos(np.outer(np.arange(1, degree + 1), angle))
    distance = nodes[:, None] - nodes
    kernel = jnp.exp(-0.5 * distance[None] ** 2 / lengths[:, None, None] ** 2)
    return jnp.einsum("kx,ixy,ly->ikl", transform, kernel, transform)


def _layout(
    problem: Problem, choice: ModelChoice, num_semilocal: int
) -> tuple[dict[str, slice], np.ndarray]:
    """Places and (logarithmic) bounds of the hyperparameters in one vector."""
    lengths = [
        choice.semilocal_length_bounds if i < num_semilocal else choice.nldf_length_bounds
        for i in range(problem.num_inputs)
    ]
    special = {"atom": choice.atom_noise_bounds, "orbital": choice.orbital_noise_bounds}
    sizes = {
        "length": lengths,
        "amplitude": [choice.amplitude_bounds] * problem.num_inputs,
        "interaction": [choice.interaction_bounds],
        "noise": [special.get(group, choice.noise_bounds) for group in problem.groups],
    }
    if problem.several_densities:
        sizes["density_noise"] = [choice.density_noise_bounds]
    layout: dict[str, slice] = {}
    bounds: list[tuple[float, float]] = []
    for name, entries in sizes.items():
        layout[name] = slice(len(bounds), len(bounds) + len(entries))
        bounds += entries
    return layout, np.log(np.array(bounds))


def _as_arrays(problem: Problem) -> dict[str, Any]:
    return {
        "features": jnp.asarray(problem.features),
        "targets": jnp.asarray(problem.targets),
        "noise_groups": jnp.asarray(problem.noise_groups),
        "same_system": jnp.asarray(problem.same_system.astype(float)),
        "held": jnp.asarray(problem.held),
        "num_inputs": problem.num_inputs,
    }


class _Conditioned(NamedTuple):
    """Lower triangular factors of the noise and of K; what both make of the rest.

    ``features`` (A) and ``targets`` (y) are whitened by the noise, ``explained`` is what the factor
    of K, inverted, makes of Rᵀ Aᵀ y.
    """

    noise_factor: Array
    features: Array
    targets: Array
    factor: Array
    explained: Array


def _condition(arrays: Mapping[str, Any], given: Hyperparameters) -> _Conditioned:
    noise_factor = jnp.linalg.cholesky(_noise_covariance(arrays, given))
    features, targets = (
        jax.scipy.linalg.solve_triangular(noise_factor, arrays[name], lower=True)
        for name in ("features", "targets")
    )
    num_inputs = arrays["num_inputs"]
    precision = arrays["held"] + features.T @ features
    seen = _times_root(_times_root(precision, given, num_inputs).T, given, num_inputs)
    size = len(precision)
    factor = jnp.linalg.cholesky(jnp.eye(size) + seen)
    projected = _times_root((targets @ features)[None], given, num_inputs)[0]
    explained = jax.scipy.linalg.solve_triangular(factor, projected, lower=True)
    return _Conditioned(noise_factor, features, targets, factor, explained)


def _noise_covariance(arrays: Mapping[str, Any], given: Hyperparameters) -> Array:
    noise = given["noise"][arrays["noise_groups"]]
    variance = jnp.outer(noise, noise) * arrays["same_system"]
    own = _JITTER + (given["density_noise"][0] ** 2 if "density_noise" in given else 0.0)
    return variance + own * jnp.eye(len(variance))


def _times_root(
    rows: Float[Array, "row parameter"], given: Hyperparameters, num_inputs: int
) -> Float[Array, "row parameter"]:
    """Rows times a root R of the parameters' prior covariance R Rᵀ."""
    count = rows.shape[0]
    degree = _degree(rows.shape[1], num_inputs)
    size = num_inputs * degree
    kernels = chebyshev_kernel(given["length"], degree) + _ROOT_JITTER * jnp.eye(degree)[None]
    roots = given["amplitude"][:, None, None] * jnp.linalg.cholesky(kernels)
    main = jnp.einsum("nik,ikl->nil", rows[:, :size].reshape(count, num_inputs, degree), roots)
    first, second = np.triu_indices(num_inputs, 1)
    pairs = rows[:, size:].reshape(count, len(first), degree, degree)
    mixed = jnp.einsum("npkl,pka->npal", pairs, roots[first])
    mixed = jnp.einsum("npal,plb->npab", mixed, roots[second])
    mixed = given["interaction"][0] * mixed
    return jnp.concatenate([main.reshape(count, size), mixed.reshape(count, -1)], axis=1)


def _degree(size: int, num_inputs: int) -> int:
    for degree in range(1, 65):
        if num_parameters(num_inputs, degree) == size:
            return degree
    raise ValueError(f"{size} parameters do not fit {num_inputs} inputs")


def _left_out(
    problem: Problem, inverse: np.ndarray, solved: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Errors and their predicted standard deviations, each system left out with all it has."""
    names = np.array(problem.names)
    errors, sigma = np.empty(len(names)), np.empty(len(names))
    for name in dict.fromkeys(problem.names):
        block = np.flatnonzero(names == name)
        covariance = np.linalg.inv(inverse[np.ix_(block, block)])
        errors[block] = -covariance @ solved[block]  # predicted minus exact
        sigma[block] = np.sqrt(np.diag(covariance))
    return errors, sigma


def _of_low_rank(
    problem: Problem, root: Float[np.ndarray, "parameter parameter"], rank: int = 96
) -> Float[np.ndarray, "parameter rank"]:
    """From a root of the covariance one that keeps the variances of the observed kind."""
    seen = problem.features @ root
    # Directions that no observation sees count a little, in case another molecule does.
    weight = 1e-3 * np.mean(np.sum(problem.features**2, axis=0)) / len(seen)
    metric = seen.T @ seen / len(seen) + weight * root.T @ root
    _, directions = np.linalg.eigh(metric)
    return root @ directions[:, ::-1][:, : min(rank, root.shape[1])]
