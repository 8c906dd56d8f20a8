"""A training run from recipe to functional file: the stages in their order."""

import dataclasses
import hashlib
import importlib.metadata
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from cider.conventions import KCAL_PER_MOL
from cider.exchange import GRADIENT_CUTOFF, ExchangeTerm
from cider.files import save_functional
from cider.input_transform import InputTransform
from cider.learned_functional import LearnedFunctional
from cider.training.configuration import RecipeError, to_table
from cider.training.crystals import CrystalDensities
from cider.training.descriptors import (
    DescriptorReader,
    NonlocalMaps,
    descriptors_of,
    open_descriptors,
    points_of,
    produce_descriptors,
)
from cider.training.evaluation import (
    Evaluation,
    calibrate,
    display_unit,
    evaluate,
    summarize,
)
from cider.training.fit import (
    Fit,
    build_problem,
    fit,
    held_energies,
    num_parameters,
    parameter_features,
    posterior,
)
from cider.training.integrals import (
    enhancement_range,
    integrate_all,
    sampled_transform,
    uniform_gas_anchor,
)
from cider.training.learned import (
    Predictor,
    TrainingData,
    learned_networks,
    learned_process,
)
from cider.training.observations import (
    Observation,
    build_observations,
    exchange_energies,
    orbital_observations,
    orientation_differences,
    spin_orbital_key,
    system_key,
    total_observations,
)
from cider.training.orbitals import orbital_key, produce_orbitals
from cider.training.produce import Job, produce_references
from cider.training.recipe import Recipe
from cider.training.reference import SEMILOCAL_EXCHANGE, is_round, reference_key
from cider.training.report import LearningPoint, Report, write_report
from cider.training.smoothness import (
    ISOORBITAL,
    one_orbital_points,
    slope_form,
    slope_points,
    slope_sigmas,
    spread_points,
    values_at_points,
)
from cider.training.store import Store, content_hash
from cider.training.systems import System

ORIENTATIONS = 8
"""Orientations in which a density meets the grid, where a recipe holds what they change."""

_PACKAGES = ("cider-xc", "jax", "numpy", "pyscf", "scipy")
_SEMILOCAL = {"PBE": "PBE_X", "r2SCAN": "R2SCAN_X"}


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run made: the functional, its file and report, and what had to be left out."""

    functional: LearnedFunctional
    path: Path
    report: Path
    evaluations: Mapping[str, Evaluation]
    failures: Mapping[str, str]


def train(
    recipe: Recipe,
    maps: NonlocalMaps | None = None,
    folder: Path | None = None,
    references: Path | None = None,
    descriptors: Path | None = None,
    workers: int = 1,
    console: Console | None = None,
    crystal_densities: CrystalDensities | None = None,
) -> Trained:
    """Make (or complete) the data of ``recipe``, fit, validate, and write file and report.

    Everything lies in ``folder``; ``references`` may be the store of another run with the same
    reference settings, ``descriptors`` one of those references with at least these features. What
    is finished is not computed again. ``crystal_densities`` are GPAW's, for crystals.

    Raises:
        RecipeError: The recipe's systems give nothing to fit.
        ValueError: Densities of crystals are missing, and so is GPAW.
        StoreError: A folder holds the data of another recipe, or a record is damaged.
        DiskFullError: There is no space left; what is finished is intact.
    """
    console = console or Console(stderr=True)
    folder = folder or recipe.folder
    jobs = recipe.jobs()

    reference_store = Store(references or folder / "references", recipe.reference.to_dict())
    made = produce_references(
        reference_store, jobs, recipe.reference, workers, console, crystal_densities
    )
    failures = dict(made.failed)

    described = open_descriptors(
        descriptors or folder / "descriptors", recipe.features, reference_store
    )
    facts = _facts(reference_store, [system_key(j.density, j.system.name) for j in jobs])
    energies = exchange_energies(facts)
    ready = [job for job in jobs if job.label in energies]
    turned = _turned_jobs(recipe, reference_store, ready)
    done = produce_descriptors(
        described.store,
        reference_store,
        [*ready, *turned],
        described.held,
        maps,
        workers,
        console,
    )
    failures |= done.failed
    keys = [job.label for job in ready if job.label not in done.failed]
    turned = [job for job in turned if job.label not in done.failed]
    observed = [job for job in recipe.orbital_jobs() if job.label in keys]
    made_orbitals = produce_orbitals(
        described.store,
        reference_store,
        observed,
        described.held,
        recipe.orbitals,
        maps,
        workers,
        console,
    )
    failures |= {f"orbitals of {label}": why for label, why in made_orbitals.failed.items()}
    orbitals = _orbital_facts(
        described.store, [j.label for j in observed if j.label not in made_orbitals.failed], recipe
    )
    data = _Data(described, {k: facts[k] for k in keys}, orbitals, turned)
    return _train_on(recipe, folder, data, failures, console)


@dataclasses.dataclass(frozen=True)
class _Data:
    """Descriptors, and the facts of densities and of spin orbitals that are among them, by key.

    ``turned`` are the densities in other orientations.
    """

    store: DescriptorReader
    facts: Mapping[str, Mapping[str, Any]]
    orbitals: Mapping[str, Mapping[str, Any]]
    turned: Sequence[Job]


def _turned_jobs(recipe: Recipe, references: Store, jobs: Sequence[Job]) -> list[Job]:
    """Other orientations of the atoms and ions among ``jobs`` whose densities are not round."""
    if not recipe.model.orientation_sigma:
        return []
    return [
        dataclasses.replace(job, orientation=number)
        for job in jobs
        if job.system.kind in ("atom", "ion") and job.density == recipe.densities[0]
        if not is_round(references.read(reference_key(job.system, job.density)))
        for number in range(1, ORIENTATIONS + 1)
    ]


def _train_on(
    recipe: Recipe,
    folder: Path,
    data: _Data,
    failures: Mapping[str, str],
    console: Console,
) -> Trained:
    """The stages after all descriptors are there."""
    systems, choice, store = recipe.all_systems(), recipe.model, data.store
    energies, derivatives = (exchange_energies(facts) for facts in (data.facts, data.orbitals))
    observations, skipped = build_observations(
        energies, systems, recipe.densities, recipe.reactions
    )
    every = {system_key(d, s.name) for d in recipe.densities for s in systems}
    unplanned = every - {job.label for job in recipe.jobs()}
    failures = {**{s.name: s.reason for s in skipped if s.name not in unplanned}, **failures}
    of_orbitals = orbital_observations(derivatives, systems, recipe.densities[0])
    training = [o for o in observations if o.role == "training"]
    orbitals = [o for o in of_orbitals if (o.role, o.kind) == ("training", "orbital")]
    if not choice.orbital_sigma:
        training += orbitals
    if choice.total_energies:
        training += _total_energies(energies, systems, recipe.densities)
    if not training:
        raise RecipeError(
            "no observation of role 'training' has data: the recipe needs atoms, and molecules "
            "made of them"
        )

    def show(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    show(f"fit to {len(training)} observations")

    main = recipe.densities[0]
    # No molecule has pseudo densities, which crystals have in their spheres.
    sampled = {s.name for s in systems if s.role == "training" and s.kind != "crystal"}
    names = [key.split("/", 1) for key in energies]
    sample = [f"{d}/{n}" for d, n in names if d == main and n in sampled]
    descriptors = descriptors_of(recipe.features)
    transform = sampled_transform(store, sample, recipe.seed)
    anchor = uniform_gas_anchor(descriptors, transform)
    integrals = integrate_all(
        folder / "integrals",
        store,
        [*energies, *(job.label for job in data.turned)],
        transform,
        anchor,
        choice.baseline,
        choice.chebyshev_degree,
        list(derivatives),
    )
    degree = choice.chebyshev_degree
    held = _held(recipe, store, sample, transform, anchor)
    if choice.orbital_sigma:
        held += held_energies(orbitals, integrals, degree, choice.orbital_sigma)
    if choice.orientation_sigma:
        differences = orientation_differences(data.turned)
        held += held_energies(differences, integrals, degree, 1e-3 * choice.orientation_sigma)
    totals = [o for d in recipe.densities for o in total_observations(energies, systems, d)]
    tuning = [o for o in (*observations, *totals, *of_orbitals) if o.role == "tuning"]
    fitted_to = TrainingData(
        store, sample, transform, anchor, integrals, derivatives.keys(), training, tuning
    )
    problem = build_problem(training, integrals, degree, held=held)
    fitted = fit(problem, choice, len(descriptors.ueg[0]), recipe.seed)
    models = {"Gaussian process": learned_process(fitted, fitted_to)}
    if recipe.network is not None:
        models["neural networks"] = learned_networks(
            recipe, recipe.network, fitted, problem, fitted_to, show
        )

    semilocal = {
        label: exchange_energies({**data.facts, **data.orbitals}, name)
        for label, name in _SEMILOCAL.items()
    }
    shown = {
        density: (
            *(o for o in observations if o.density == density and o.kind != "total"),
            *(o for o in (*totals, *of_orbitals) if o.density == density),
        )
        for density in recipe.densities
    }
    predictors = {
        name: Predictor(learned, integrals).calibrated(tuning) for name, learned in models.items()
    }
    compared = {
        name: {
            density: evaluate(of_density, systems, *predict(of_density), semilocal)
            for density, of_density in shown.items()
            if of_density
        }
        for name, predict in predictors.items()
    }
    # The functional is the last of the models: the networks, where the recipe asks for them.
    kind = list(models)[-1]
    learned, evaluations, scales = models[kind], compared[kind], predictors[kind].scales
    exchange = ExchangeTerm(choice.baseline, transform, learned.model, GRADIENT_CUTOFF)
    functional = LearnedFunctional(recipe.name, descriptors, (exchange,))

    rows = _error_rows(evaluations)
    ranges = [
        enhancement_range(points_of(store, k), choice.baseline, transform, learned.model)
        for k in sample
    ]
    values = {**energies, **derivatives}
    provenance = {
        "recipe": {k: v for k, v in to_table(recipe).items() if k not in ("origin", "output")},
        "recipe_hash": recipe.hash(),
        "data_hash": content_hash({key: values[key] for key in sorted(values)}),
        "descriptor_hash": store.recipe_hash,
        "observations": len(training),
        "densities": {d: sum(k.startswith(f"{d}/") for k in energies) for d in recipe.densities},
        "left_out": len(failures),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        **learned.facts,
        "calibration": scales,
        "enhancement_factor_range": [
            float(np.nanmin([low for low, _ in ranges])),
            float(np.nanmax([high for _, high in ranges])),
        ],
        "errors": rows,
    }
    path = folder / f"{recipe.name}.h5"
    posterior_arrays = {
        **learned.posterior,
        "noise": np.array([learned.noise("molecule")]),
        "calibration": np.array([scales["aex"], scales["total"]]),
    }
    save_functional(path, functional, provenance, posterior_arrays)
    report = Report(
        f"{recipe.name}: exchange, trained by cider-train",
        evaluations,
        _learning_curve(recipe, fitted, fitted_to, observations, held),
        {**_summary(provenance, path), **learned.summary},
        failures,
        compared if len(compared) > 1 else {},
    )
    return Trained(functional, path, write_report(report, folder / "report"), evaluations, failures)


def _held(
    recipe: Recipe,
    store: DescriptorReader,
    sample: Sequence[str],
    transform: InputTransform,
    anchor: Float[np.ndarray, " input"],
) -> Float[np.ndarray, "parameter parameter"]:
    """The quadratic form of the parameters by which the recipe holds the learned factor."""
    choice, degree = recipe.model, recipe.model.chebyshev_degree
    held = np.zeros((num_parameters(anchor.size, degree),) * 2)
    if choice.enhancement_points:
        inputs = spread_points(store, sample, transform, recipe.seed, choice.enhancement_points)
        values = parameter_features(values_at_points(inputs, anchor, degree), anchor.size, degree)
        held += values.T @ values / choice.enhancement_sigma**2
    if choice.semilocal_slope_sigma or choice.nldf_slope_sigma:
        semilocal, nonlocal_ = slope_points(store, sample, recipe.seed)
        sigmas = slope_sigmas(
            choice.semilocal_slope_sigma, choice.nldf_slope_sigma, len(semilocal), len(nonlocal_)
        )
        held += slope_form(semilocal, nonlocal_, transform, degree, sigmas)
    if choice.isoorbital_slope_sigma:
        points = one_orbital_points(store, sample, recipe.seed)
        sigma = choice.isoorbital_slope_sigma
        held += slope_form(*points, transform, degree, {ISOORBITAL: sigma})
    return held


def _total_energies(
    energies: Mapping[str, float], systems: Sequence[System], densities: Sequence[str]
) -> list[Observation]:
    """Total energies of the training molecules, with a noise of their own."""
    molecules = [s for s in systems if s.kind == "molecule" and s.role == "training"]
    return [
        dataclasses.replace(o, noise="molecule total")
        for density in densities
        for o in total_observations(energies, molecules, density)
    ]


def _learning_curve(
    recipe: Recipe,
    fitted: Fit,
    data: TrainingData,
    observations: Sequence[Observation],
    held: Float[np.ndarray, "parameter parameter"],
) -> tuple[LearningPoint, ...]:
    """Errors of fits to nested shares of the training systems, with all the atoms.

    The hyperparameters stay those of the whole fit. It is drawn for Gaussian processes alone.
    """
    training, integrals = data.training, data.integrals
    test = [
        o
        for o in observations
        if (o.role, o.kind, o.density) == ("test", "aex", recipe.densities[0])
    ]
    atoms = {s.name for s in recipe.all_systems() if s.kind == "atom"}
    names = sorted({o.name for o in training} - atoms)
    if recipe.network is not None or not test or len(names) < 8:
        return ()
    order = np.random.default_rng(recipe.seed).permutation(len(names))
    exact = np.array([o.value for o in test])
    model, points = recipe.model, []
    for share in (0.125, 0.25, 0.5, 1.0):
        count = round(share * len(names))
        chosen = {names[i] for i in order[:count]} | atoms
        part = [o for o in training if o.name in chosen]
        problem = build_problem(part, integrals, model.chebyshev_degree, fitted.groups, held)
        smaller = posterior(problem, fitted.hyperparameters)
        process = learned_process(smaller, dataclasses.replace(data, training=part))
        predicted, _ = Predictor(process, integrals)(test)
        errors = summarize((predicted - exact) * KCAL_PER_MOL)
        points.append(LearningPoint(count, errors.mae, errors.largest))
    return tuple(points)


def _error_rows(evaluations: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    parts = {"held-out": "test", "the ten": "ten"}
    rows: list[dict[str, Any]] = []
    quantities = ("aex", "total", "orbital", "gap")
    for density, quantity, part in itertools.product(evaluations, quantities, parts):
        evaluation = evaluations[density]
        mask = evaluation.mask(kind=quantity, role=parts[part])
        if not mask.any():
            continue
        unit, factor = display_unit(quantity)
        errors = summarize(evaluation.error[mask] * factor)
        within = calibrate(evaluation.error[mask], evaluation.sigma[mask]).within_one
        rows.append(
            {
                "quantity": quantity,
                "density": density,
                "part": part,
                "count": errors.count,
                "mae": errors.mae,
                "max": errors.largest,
                "within_1_sigma": within,
                "unit": unit,
            }
        )
    return rows


def _summary(provenance: Mapping[str, Any], path: Path) -> dict[str, str]:
    low, high = provenance["enhancement_factor_range"]
    return {
        "functional file": f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
        "recipe": provenance["recipe_hash"],
        "data": provenance["data_hash"],
        "observations": str(provenance["observations"]),
        "enhancement factor where rho > 1e-3": f"{low:.3f} to {high:.3f}",
        "calibration of sigma": ", ".join(
            f"{kind} {scale:.3f}" for kind, scale in provenance["calibration"].items()
        ),
        "versions": ", ".join(f"{n} {v}" for n, v in provenance["versions"].items()),
    }


def _facts(store: Store, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    facts = {}
    for label in labels:
        density, name = label.split("/", 1)
        key = reference_key(name, density)
        if key in store:
            facts[label] = dict(store.read(key).facts)
    return facts


def _orbital_facts(
    store: Store, labels: Sequence[str], recipe: Recipe
) -> dict[str, dict[str, Any]]:
    """What ``exchange_energies`` reads, of each spin orbital."""
    found = {}
    for label, name in itertools.product(labels, recipe.orbitals):
        facts = store.read(orbital_key(label, name)).facts
        for place, spin in enumerate(facts["spins"]):
            found[spin_orbital_key(label, name, spin)] = {
                "status": "converged",
                **{key: facts[key][place] for key in ("exact_exchange", *SEMILOCAL_EXCHANGE)},
            }
    return found
