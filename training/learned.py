"""Trained models of both kinds: energies of observations, with error bars that are calibrated."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cider.gaussian_process import QuadraticGaussianProcess
from cider.input_transform import InputTransform
from cider.models import Model
from cider.training.descriptors import DescriptorReader
from cider.training.evaluation import MILLIHARTREE
from cider.training.fit import Fit, Problem, noise_covariance, parameter_features
from cider.training.integrals import Integrals
from cider.training.model_points import learned_energies, merged_blocks, read_model_points
from cider.training.network import Held, Observed, fit_networks, hold, whiten
from cider.training.observations import Observation, coefficient_matrix
from cider.training.recipe import NetworkChoice, Recipe
from cider.training.smoothness import slope_points, spread_points

_ENOUGH_TUNING = 15
"""Tuning observations that calibrate predicted standard deviations by themselves, to 12 %.

Errors of training molecules left out are half of those of other molecules, where their distorted
geometries stay in the fit.
"""


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What models of both kinds are fitted to.

    ``sample`` are the keys of the densities that tell which inputs there are, ``orbitals`` those of
    spin orbitals among the keys of ``integrals``.
    """

    store: DescriptorReader
    sample: Sequence[str]
    transform: InputTransform
    anchor: Float[np.ndarray, " input"]
    integrals: Integrals
    orbitals: Collection[str]
    training: Sequence[Observation]
    tuning: Sequence[Observation]


@dataclasses.dataclass(frozen=True)
class Learned:
    """A trained model, and what it adds to the baseline's energies.

    ``energies`` gives these and their standard deviations (Ha) for combinations of densities, and
    ``noise`` (Ha) that of a group of observations. ``left_out`` are, by kind, errors of training
    observations over their standard deviations as a fit without them gives them, if it can.
    ``posterior`` is for the functional file, ``facts`` for its provenance and ``summary`` for the
    report.
    """

    model: Model
    energies: Callable[
        [Float[np.ndarray, "observation system"]],
        tuple[Float[np.ndarray, " observation"], Float[np.ndarray, " observation"]],
    ]
    noise: Callable[[str], float]
    left_out: Mapping[str, Float[np.ndarray, " observation"]]
    posterior: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    summary: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Energies of observations and their standard deviations (Ha), by kind times a scale."""

    learned: Learned
    integrals: Integrals
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __call__(
        self, observations: Sequence[Observation]
    ) -> tuple[Float[np.ndarray, " observation"], Float[np.ndarray, " observation"]]:
        combine = coefficient_matrix(observations, self.integrals.keys)
        energies, sigma = self.learned.energies(combine)
        noise = np.array([self.learned.noise(o.noise) for o in observations])
        differences = self.scales.get("aex", 1.0)
        scale = np.array([self.scales.get(o.kind, differences) for o in observations])
        return combine @ self.integrals.baseline + energies, scale * np.hypot(sigma, noise)

    def calibrated(self, tuning: Sequence[Observation]) -> "Predictor":
        """With the scales, by kind, that put 68 % of the errors of unseen molecules within sigma.

        Unseen are the tuning part; where it is small, training molecules left out of the fit join
        it.
        """
        scales = {}
        for kind in ("aex", "total"):
            unseen = [o for o in tuning if o.kind == kind]
            predicted, sigma = self(unseen)
            ratios = np.abs(predicted - [o.value for o in unseen]) / sigma
            if len(unseen) < _ENOUGH_TUNING:
                ratios = np.concatenate([ratios, self.learned.left_out.get(kind, np.zeros(0))])
            scales[kind] = float(np.quantile(ratios, 0.683)) if ratios.size else 1.0
        return dataclasses.replace(self, scales=scales)


def learned_process(fitted: Fit, data: TrainingData) -> Learned:
    """A Gaussian process; its standard deviations are those of the posterior."""
    integrals = data.integrals
    features = parameter_features(integrals.matrices, fitted.num_inputs, fitted.degree)

    def energies(combine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = combine @ features
        return fitted.energies(own), fitted.sigma(own)

    left_out = {}
    for kind, noise in (("aex", "molecule"), ("total", "molecule total")):
        own = np.array([(o.kind, o.noise) == (kind, noise) for o in data.training], bool)
        left_out[kind] = np.abs(fitted.left_out[own]) / fitted.left_out_sigma[own]
    hyperparameters = {k: [float(x) for x in v] for k, v in fitted.hyperparameters.items()}
    noises = dict(zip(fitted.groups, hyperparameters.pop("noise"), strict=True))
    largest = float(np.abs(fitted.quadratic_form).max())
    return Learned(
        QuadraticGaussianProcess(fitted.quadratic_form, data.anchor, fitted.degree),
        energies,
        fitted.noise,
        left_out,
        {"covariance_factor": fitted.covariance_factor},
        {
            "log_likelihood": fitted.log_likelihood,
            "hyperparameters": {**hyperparameters, "noise_mHa": noises},
            "largest_coefficient": largest,
        },
        {
            "largest coefficient": f"{largest:.3g}",
            "log marginal likelihood": f"{fitted.log_likelihood:.2f}",
        },
    )


def learned_networks(
    recipe: Recipe,
    choice: NetworkChoice,
    fitted: Fit,
    problem: Problem,
    data: TrainingData,
    progress: Callable[[str], None],
) -> Learned:
    """Neural networks; their standard deviations are those of the members.

    The noise of the observations is that which the Gaussian process ``fitted`` to them has.
    """
    integrals, transform = data.integrals, data.transform
    used = {key for o in (*data.training, *data.tuning) for key in o.coefficients}
    keys = [key for key in integrals.keys if key in used]

    def observed(observations: Sequence[Observation], covariance: np.ndarray) -> Observed:
        base = coefficient_matrix(observations, integrals.keys) @ integrals.baseline
        exact = np.array([o.value for o in observations])
        return whiten(coefficient_matrix(observations, keys), exact - base, covariance)

    covariance = noise_covariance(problem, fitted.hyperparameters) / MILLIHARTREE**2
    variances = np.array([fitted.noise(o.noise) ** 2 for o in data.tuning])
    trained = fit_networks(
        observed(data.training, covariance),
        observed(data.tuning, np.diag(variances)),
        merged_blocks(data.store, keys, data.orbitals, transform),
        _held(recipe, data),
        data.anchor,
        choice,
        recipe.seed,
        progress,
    )
    members = np.array(
        [
            learned_energies(
                trained.model, read_model_points(data.store, key, transform, key in data.orbitals)
            )
            for key in integrals.keys
        ]
    ).T
    whole = members[:, [integrals.keys.index(key) for key in keys]].mean(axis=0)
    merging = float(np.abs(whole - trained.energies.mean(axis=0)).max()) * MILLIHARTREE

    def energies(combine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = combine @ members.T
        return own.mean(axis=1), own.std(axis=1, ddof=1)

    return Learned(
        trained.model,
        energies,
        fitted.noise,
        {},
        {},
        {
            "steps": list(trained.steps),
            "training_error_over_noise": list(trained.training_error),
            "tuning_error_over_noise": list(trained.tuning_error),
            "merging_error_mHa": merging,
        },
        {
            "steps of the networks": ", ".join(map(str, trained.steps)),
            "largest effect of merged points": f"{merging:.3f} mHa",
        },
    )


def _held(recipe: Recipe, data: TrainingData) -> Held:
    """What holds the learned factor of networks as it holds that of the Gaussian process."""
    choice = recipe.model
    points = np.zeros((data.anchor.size, 0))
    if choice.enhancement_points:
        points = spread_points(
            data.store, data.sample, data.transform, recipe.seed, choice.enhancement_points
        )
    return hold(
        points,
        choice.enhancement_sigma,
        *slope_points(data.store, data.sample, recipe.seed),
        data.transform,
        (choice.semilocal_slope_sigma, choice.nldf_slope_sigma),
        recipe.seed,
    )
