"""Errors of predicted exchange energies, and whether the predicted error bars are true."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from cider.conventions import EV, KCAL_PER_MOL
from cider.training.observations import Observation
from cider.training.systems import System

MILLIHARTREE = 1e3
"""One Hartree in mHa."""

HELD_OUT = ("test", "ten")
"""Roles that had no part in fitting or tuning."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Exact and predicted values (Ha) of observations, entry by entry.

    ``sigma`` is the predicted standard deviation. ``semilocal`` holds the same quantities from
    hand-made functionals, by name. ``classes`` are chemical classes for the tables.

    Raises:
        ValueError: The lengths differ, or a value is not finite.
    """

    observations: tuple[Observation, ...]
    classes: tuple[str, ...]
    predicted: Float[np.ndarray, " observation"]
    sigma: Float[np.ndarray, " observation"]
    semilocal: Mapping[str, Float[np.ndarray, " observation"]]

    def __post_init__(self) -> None:
        count = len(self.observations)
        columns = {"predicted": self.predicted, "sigma": self.sigma, **self.semilocal}
        for name, values in columns.items():
            if values.shape != (count,):
                raise ValueError(f"{count} observations but {name} has shape {values.shape}")
            if not np.isfinite(values).all():
                broken = self.observations[int(np.argmin(np.isfinite(values)))].name
                raise ValueError(f"{name} of {broken} is not finite")
        if len(self.classes) != count:
            raise ValueError(f"{count} observations but {len(self.classes)} classes")

    @property
    def exact(self) -> Float[np.ndarray, " observation"]:
        """Exact values (Ha)."""
        return np.array([o.value for o in self.observations])

    @property
    def error(self) -> Float[np.ndarray, " observation"]:
        """Predicted minus exact values (Ha)."""
        return self.predicted - self.exact

    def semilocal_error(self, name: str) -> Float[np.ndarray, " observation"]:
        """Errors (Ha) of the hand-made functional ``name``."""
        return self.semilocal[name] - self.exact

    def mask(self, **criteria: str | Sequence[str]) -> Bool[np.ndarray, " observation"]:
        """Which observations have these fields, e.g. ``mask(kind="aex", role=HELD_OUT)``."""
        found = np.ones(len(self.observations), dtype=bool)
        for field, wanted in criteria.items():
            allowed = (wanted,) if isinstance(wanted, str) else tuple(wanted)
            values = (
                self.classes
                if field == "classes"
                else [getattr(o, field) for o in self.observations]
            )
            found &= np.array([value in allowed for value in values], dtype=bool)
        return found


@dataclasses.dataclass(frozen=True)
class ErrorSummary:
    """Count, mean absolute, signed mean and largest absolute error, in the unit of the input."""

    count: int
    mae: float
    mean: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How true predicted standard deviations are.

    ``within_one`` and ``within_two`` are the shares of errors within 1 and 2 sigma (0.683 and 0.954
    for a true normal one), ``scale`` the root mean square of error/sigma, ``spearman`` the rank
    correlation of sigma with the absolute error.
    """

    count: int
    within_one: float
    within_two: float
    scale: float
    spearman: float


def evaluate(
    observations: Sequence[Observation],
    systems: Sequence[System],
    predicted: Float[np.ndarray, " observation"],
    sigma: Float[np.ndarray, " observation"],
    semilocal: Mapping[str, Mapping[str, float]],
) -> Evaluation:
    """An evaluation; ``semilocal`` maps a functional's name to energies (Ha) by system key."""
    classes = {system.name: chemical_class(system) for system in systems}
    return Evaluation(
        tuple(observations),
        tuple(classes.get(o.name, o.kind) for o in observations),
        np.asarray(predicted, dtype=float),
        np.asarray(sigma, dtype=float),
        {
            name: np.array([o.of(energies) for o in observations])
            for name, energies in semilocal.items()
        },
    )


def summarize(errors: Float[np.ndarray, " observation"]) -> ErrorSummary:
    """The summary of some errors; NaN where there are none."""
    if errors.size == 0:
        return ErrorSummary(0, np.nan, np.nan, np.nan)
    size = np.abs(errors)
    return ErrorSummary(errors.size, float(size.mean()), float(errors.mean()), float(size.max()))


def calibrate(
    errors: Float[np.ndarray, " observation"], sigma: Float[np.ndarray, " observation"]
) -> Calibration:
    """The calibration of predicted standard deviations; NaN where there is too little data."""
    if errors.size == 0:
        return Calibration(0, np.nan, np.nan, np.nan, np.nan)
    ratio = np.abs(errors) / np.maximum(sigma, 1e-300)
    varied = errors.size > 2 and np.ptp(sigma) > 0 and np.ptp(np.abs(errors)) > 0
    spearman = float(stats.spearmanr(sigma, np.abs(errors)).statistic) if varied else np.nan
    return Calibration(
        errors.size,
        float((ratio <= 1).mean()),
        float((ratio <= 2).mean()),
        float(np.sqrt((ratio**2).mean())),
        spearman,
    )


def chemical_class(system: System) -> str:
    """The class of a system for the tables, after the classes of the G2/97 set."""
    if system.kind != "molecule":
        return system.kind
    elements = set(system.symbols)
    if system.spin:
        return "radicals and triplets"
    if elements == {"C", "H"}:
        return "hydrocarbons"
    if {"C", "H"} <= elements:
        return "substituted hydrocarbons"
    return "inorganic hydrides" if "H" in elements else "no hydrogen"


def display_unit(kind: str) -> tuple[str, float]:
    """Unit and factor from Ha: mHa for totals and crystals, eV for orbitals, else kcal/mol."""
    if kind in ("orbital", "gap"):
        return "eV", EV
    return ("mHa", MILLIHARTREE) if kind in ("total", "crystal") else ("kcal/mol", KCAL_PER_MOL)
