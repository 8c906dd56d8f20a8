"""The report of a training run: Markdown tables and PNG figures in one folder."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cider.training.evaluation import (
    HELD_OUT,
    Evaluation,
    calibrate,
    display_unit,
    summarize,
)

_KIND_TITLES = {
    "aex": "Atomisation exchange energy",
    "total": "Total exchange energy",
    "difference": "Ions and excited atoms, against the ground-state atom",
    "crystal": "Crystals at other volumes, against the first of their formula",
    "reaction": "Reaction exchange energy",
    "orbital": "Exchange part of orbital energies",
    "gap": "Exchange part of gaps between HOMO and LUMO",
}
_ROLE_TITLES = {
    "training": "training",
    "tuning": "tuning",
    "test": "test",
    "ten": "the ten",
}
# Distinct for every kind of colour vision (Okabe and Ito).
_ROLE_COLOURS = {"training": "#999999", "tuning": "#E69F00", "test": "#0072B2", "ten": "#D55E00"}


@dataclasses.dataclass(frozen=True)
class LearningPoint:
    """Held-out AEX error (kcal/mol) of a fit to ``systems`` training systems."""

    systems: int
    mae: float
    largest: float = math.nan


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report is made of. ``evaluations`` go by density; the first is the main one.

    ``compared`` are those of several models of the same data, by name, this one among them.
    """

    title: str
    evaluations: Mapping[str, Evaluation]
    learning_curve: Sequence[LearningPoint] = ()
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compared: Mapping[str, Mapping[str, Evaluation]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ValueError("a report needs the evaluation of at least one density")


def write_report(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.md`` and its figures to ``folder``; the path of the Markdown file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"parity": _parity_figure(report), "uncertainty": _uncertainty_figure(report)}
    if report.learning_curve:
        figures["learning-curve"] = _learning_figure(report.learning_curve)
    for name, figure in figures.items():
        # Without a fixed "Software" entry the same run would not give the same file.
        FigureCanvasAgg(figure).print_png(folder / f"{name}.png", metadata={"Software": "cider"})
    path = folder / "report.md"
    path.write_text(render_markdown(report, tuple(figures)), encoding="utf-8")
    return path


def render_markdown(report: Report, figures: Iterable[str] = ()) -> str:
    """The report's Markdown; ``figures`` are names of PNG files beside it."""
    parts = [f"# {report.title}"]
    if report.provenance:
        parts.append(_table(("", ""), list(report.provenance.items())))
    for density, evaluation in report.evaluations.items():
        parts += [f"## Errors at {density} densities", error_tables(evaluation)]
    if report.compared:
        parts += ["## Models of the same data (MAE)", comparison_table(report.compared)]
    parts += ["## Predicted standard deviation", calibration_table(report.evaluations)]
    if report.learning_curve:
        curve = [
            (str(p.systems), _number(p.mae), _number(p.largest)) for p in report.learning_curve
        ]
        header = ("training systems", "held-out AEX MAE", "max")
        parts += ["## Learning curve (kcal/mol)", _table(header, curve)]
    parts += [f"![{name}]({name}.png)" for name in figures]
    parts += ["## Every system", *_system_tables(report.evaluations)]
    if report.failures:
        count = f"{len(report.failures)} left out"
        parts += ["## Left out", _table((count, "reason"), sorted(report.failures.items()))]
    return "\n\n".join(parts) + "\n"


def error_tables(evaluation: Evaluation) -> str:
    """Tables of errors by role, then of held-out errors by class, beside semilocal functionals."""
    parts = []
    for kind, title in _KIND_TITLES.items():
        present = evaluation.mask(kind=kind)
        if not present.any():
            continue
        unit, _ = display_unit(kind)
        groups = {
            _ROLE_TITLES[role]: evaluation.mask(kind=kind, role=role) for role in _ROLE_TITLES
        }
        header = ("", "n", "MAE", "mean", "max", *(f"{n} MAE" for n in evaluation.semilocal))
        parts += [f"### {title} ({unit})", _table(header, _rows(evaluation, groups, kind))]
        by_class = {
            name: evaluation.mask(kind=kind, role=HELD_OUT, classes=name)
            for name in sorted(set(evaluation.classes))
        }
        rows = _rows(evaluation, by_class, kind)
        if rows:
            parts += ["Held-out systems (test and the ten) by class:", _table(header, rows)]
    return "\n\n".join(parts)


def comparison_table(models: Mapping[str, Mapping[str, Evaluation]]) -> str:
    """Errors of several models by density, kind and role, and how true their error bars are."""
    rows = []
    (first, *_) = models.values()
    for density, kind, role in itertools.product(first, _KIND_TITLES, _ROLE_TITLES):
        mask = first[density].mask(kind=kind, role=role)
        if not mask.any():
            continue
        unit, factor = display_unit(kind)
        cells = []
        for evaluations in models.values():
            own = evaluations[density]
            within = calibrate(own.error[mask], own.sigma[mask]).within_one
            cells += [summarize(own.error[mask] * factor).mae, within]
        label = f"{_KIND_TITLES[kind]} ({unit})"
        rows.append((density, label, _ROLE_TITLES[role], str(mask.sum()), *map(_number, cells)))
    names = (title for name in models for title in (name, f"{name} within 1σ"))
    return _table(("density", "energy", "part", "n", *names), rows)


def calibration_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Shares of errors within the predicted standard deviation, by density and role."""
    rows = []
    for density, evaluation in evaluations.items():
        for kind in ("aex", "total"):
            for role, title in _ROLE_TITLES.items():
                mask = evaluation.mask(kind=kind, role=role)
                if not mask.any():
                    continue
                c = calibrate(evaluation.error[mask], evaluation.sigma[mask])
                cells = (c.within_one, c.within_two, c.scale, c.spearman)
                label = kind.upper() if kind == "aex" else kind
                rows.append((density, label, title, str(c.count), *map(_number, cells)))
    header = ("density", "energy", "part", "n", "within 1σ", "within 2σ", "rms error/σ", "Spearman")
    return _table(header, rows)


def _rows(
    evaluation: Evaluation, groups: Mapping[str, Bool[np.ndarray, " observation"]], kind: str
) -> list[tuple[str, ...]]:
    factor = display_unit(kind)[1]
    rows = []
    for name, mask in groups.items():
        if not mask.any():
            continue
        s = summarize(evaluation.error[mask] * factor)
        others = (
            summarize(evaluation.semilocal_error(other)[mask] * factor).mae
            for other in evaluation.semilocal
        )
        cells = map(_number, (s.mae, s.mean, s.largest, *others))
        rows.append((name, str(s.count), *cells))
    return rows


def _system_tables(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """One table per kind of energy, the largest errors of the main density first."""
    density, evaluation = next(iter(evaluations.items()))
    parts = []
    for kind, title in _KIND_TITLES.items():
        indices = np.flatnonzero(evaluation.mask(kind=kind))
        if indices.size == 0:
            continue
        unit, factor = display_unit(kind)
        rows = []
        for i in indices[np.argsort(-np.abs(evaluation.error[indices]), kind="stable")]:
            o = evaluation.observations[i]
            values = (
                o.value * factor,
                evaluation.error[i] * factor,
                evaluation.sigma[i] * factor,
                *(evaluation.semilocal_error(n)[i] * factor for n in evaluation.semilocal),
            )
            part = _ROLE_TITLES[o.role]
            rows.append((o.title, part, evaluation.classes[i], *map(_number, values)))
        names = (f"{n} error" for n in evaluation.semilocal)
        header = ("system", "part", "class", "exact", "error", "σ", *names)
        parts += [f"### {title} at {density} densities ({unit})", _table(header, rows)]
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"


def _figure(columns: int) -> tuple[Figure, Sequence[matplotlib.axes.Axes]]:
    figure = Figure(figsize=(5.2 * columns, 4.2), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _parity_figure(report: Report) -> Figure:
    """Predicted against exact energies; total energies span decades, hence their errors."""
    evaluation = next(iter(report.evaluations.values()))
    figure, (left, right) = _figure(2)
    for role, colour in _ROLE_COLOURS.items():
        aex = evaluation.mask(kind="aex", role=role)
        unit, factor = display_unit("aex")
        left.plot(
            evaluation.exact[aex] * factor,
            evaluation.predicted[aex] * factor,
            "o",
            ms=3,
            color=colour,
            label=_ROLE_TITLES[role],
        )
        left.set(xlabel=f"exact AEX ({unit})", ylabel=f"predicted AEX ({unit})")
        total = evaluation.mask(kind="total", role=role)
        unit, factor = display_unit("total")
        size = np.abs(evaluation.exact[total])
        right.plot(size, evaluation.error[total] * factor, "o", ms=3, color=colour)
        right.set(xlabel=r"$|E_x|$ (Ha)", ylabel=f"error of total $E_x$ ({unit})")
    left.axline((0, 0), slope=1, color="black", lw=0.6)
    right.axhline(0, color="black", lw=0.6)
    left.legend(frameon=False)
    return figure


def _uncertainty_figure(report: Report) -> Figure:
    """Absolute AEX errors against their predicted standard deviation."""
    evaluation = next(iter(report.evaluations.values()))
    unit, factor = display_unit("aex")
    figure, (axes,) = _figure(1)
    largest = 1e-3
    for role, colour in _ROLE_COLOURS.items():
        mask = evaluation.mask(kind="aex", role=role)
        sigma = evaluation.sigma[mask] * factor
        largest = max(largest, *sigma) if sigma.size else largest
        error = np.abs(evaluation.error[mask]) * factor
        axes.plot(sigma, error, "o", ms=3, color=colour, label=_ROLE_TITLES[role])
    for multiple, style in ((1, "-"), (2, "--")):
        line = [0, multiple * largest]
        axes.plot([0, largest], line, style, color="black", lw=0.6, label=f"{multiple}σ")
    axes.set(xlabel=f"predicted σ ({unit})", ylabel=f"absolute AEX error ({unit})")
    axes.legend(frameon=False)
    return figure


def _learning_figure(points: Sequence[LearningPoint]) -> Figure:
    figure, (axes,) = _figure(1)
    axes.loglog([p.systems for p in points], [p.mae for p in points], "o-", color="#0072B2")
    axes.set(xlabel="training systems", ylabel="held-out AEX MAE (kcal/mol)")
    return figure
