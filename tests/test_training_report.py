"""Reports state the errors that the arrays hold."""

import dataclasses

import numpy as np
import pytest

from cider.conventions import KCAL_PER_MOL
from cider.training import systems
from cider.training.evaluation import calibrate, chemical_class, evaluate, summarize
from cider.training.observations import build_observations, system_key, total_observations
from cider.training.report import (
    LearningPoint,
    Report,
    comparison_table,
    error_tables,
    write_report,
)


@pytest.fixture(scope="module")
def evaluation():
    chosen = systems.small_systems()
    rng = np.random.default_rng(0)
    exact = {system_key("PBE", s.name): -float(s.electrons) for s in chosen}
    semilocal = {k: e + 0.01 for k, e in exact.items()}
    observations = build_observations(exact, chosen, ("PBE",))[0]
    observations += tuple(o for o in total_observations(exact, chosen, "PBE") if o.noise != "atom")
    sigma = rng.uniform(1e-3, 3e-3, len(observations))
    values = np.array([o.value for o in observations])
    predicted = values + sigma * rng.standard_normal(len(observations))
    return evaluate(observations, chosen, predicted, sigma, {"PBE_X": semilocal})


def test_report_is_written_and_repeats(evaluation, tmp_path):
    report = Report(
        "x-test",
        {"PBE": evaluation},
        (LearningPoint(10, 4.0), LearningPoint(20, 2.0, 5.0)),
        {"recipe": "abc"},
        {"PBE/XY": "SCF | no"},
    )
    path = write_report(report, tmp_path / "report")
    text = path.read_text()
    for part in ("# x-test", "Atomisation exchange energy (kcal/mol)", "the ten", "PBE_X MAE"):
        assert part in text
    assert r"SCF \| no" in text
    assert "nan" not in text
    for name in ("parity", "uncertainty", "learning-curve"):
        content = (path.parent / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and f"({name}.png)" in text
    write_report(report, tmp_path / "again")
    for file in path.parent.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_models_of_the_same_data_are_compared(evaluation, tmp_path):
    exact = np.array([o.value for o in evaluation.observations])
    closer = dataclasses.replace(evaluation, predicted=(evaluation.predicted + exact) / 2)
    models = {"one": {"PBE": evaluation}, "another": {"PBE": closer}}
    report = Report("x-test", models["another"], compared=models)
    text = write_report(report, tmp_path / "report").read_text()
    assert "## Models of the same data (MAE)" in text
    mask = evaluation.mask(kind="aex", role="ten")
    mae = np.abs(evaluation.error[mask]).mean() * KCAL_PER_MOL
    (row,) = (
        line.split(" | ")
        for line in comparison_table(models).splitlines()
        if line.startswith("| PBE | Atomisation exchange energy (kcal/mol) | the ten")
    )
    assert row[3] == str(mask.sum())
    assert (row[4], row[6]) == (f"{mae:.2f}", f"{mae / 2:.2f}")


def test_tables_hold_the_errors(evaluation):
    mask = evaluation.mask(kind="aex", role="ten")
    mae = np.abs(evaluation.error[mask]).mean() * KCAL_PER_MOL
    row = next(x for x in error_tables(evaluation).splitlines() if x.startswith("| the ten"))
    assert row.split(" | ")[2] == f"{mae:.2f}"


def test_semilocal_errors_are_the_combination(evaluation):
    """Every energy is 0.01 Ha too high, so an AEX is (atoms - 1) x 0.01 Ha too high."""
    counts = {s.name: len(s.symbols) for s in systems.small_systems()}
    for o, error in zip(evaluation.observations, evaluation.semilocal_error("PBE_X"), strict=True):
        expected = 0.01 if o.kind == "total" else 0.01 * (counts[o.name] - 1)
        assert error == pytest.approx(expected, abs=1e-12)


def test_summary_and_calibration_of_known_errors():
    summary = summarize(np.array([1.0, -3.0]))
    assert (summary.count, summary.mae, summary.mean, summary.largest) == (2, 2.0, -1.0, 3.0)
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.5, 2.0, 4000)
    true = calibrate(sigma * rng.standard_normal(4000), sigma)
    # The standard error of a share of 4000 is below 0.008.
    assert true.within_one == pytest.approx(0.683, abs=0.03)
    assert true.within_two == pytest.approx(0.954, abs=0.015)
    assert true.scale == pytest.approx(1, abs=0.04)
    assert true.spearman > 0.2
    assert np.isnan(calibrate(np.array([]), np.array([])).within_one)
    assert np.isnan(summarize(np.array([])).mae)


def test_broken_predictions_are_named(evaluation):
    predicted = evaluation.predicted.copy()
    predicted[0] = np.nan
    name = evaluation.observations[0].name
    with pytest.raises(ValueError, match=f"predicted of {name} is not finite"):
        dataclasses.replace(evaluation, predicted=predicted)
    # ValueError in production; under jaxtyping's hook the shapes in the signature come first.
    with pytest.raises((ValueError, TypeError), match="sigma"):
        dataclasses.replace(evaluation, sigma=evaluation.sigma[:-1])
    with pytest.raises(ValueError, match="at least one density"):
        Report("x", {})


def test_chemical_classes():
    classes = {s.name: chemical_class(s) for s in systems.default_systems()}
    assert classes["C6H6"] == "hydrocarbons"
    assert classes["CH3OH"] == "substituted hydrocarbons"
    assert classes["H2O"] == classes["H2"] == "inorganic hydrides"
    assert classes["CO"] == "no hydrogen"
    assert classes["O2"] == classes["CH3"] == "radicals and triplets"
    assert classes["Ne"] == "atom"
