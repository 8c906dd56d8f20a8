"""Reference data of many systems: parallel, resumable, with a progress bar."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cider.training.store import DiskFullError, Store
from cider.training.systems import System
from cider.training.workers import Outcome, run_tasks


@dataclasses.dataclass(frozen=True)
class Job:
    """One record to make: a system and the method of its density.

    With an ``orientation`` from 1 on the density is turned against the grid by a rotation that is
    the same for all systems.
    """

    system: System
    density: str
    orientation: int = 0

    @property
    def label(self) -> str:
        """The job's name for people, e.g. ``PBE/H2O``, or turned ``PBE/O/turned-1``."""
        turned = f"/turned-{self.orientation}" if self.orientation else ""
        return f"{self.density}/{self.system.name}{turned}"


@dataclasses.dataclass(frozen=True)
class ProductionSummary:
    """Labels of the records that a run made, found finished, or failed to make (and why)."""

    made: tuple[str, ...]
    present: tuple[str, ...]
    failed: dict[str, str]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], present: tuple[str, ...]) -> "ProductionSummary":
        """The summary of the outcomes of jobs."""
        failed = {o.task.label: o.error for o in outcomes if o.error}
        made = tuple(o.task.label for o in outcomes if not o.error)
        return cls(made, present, failed)


def plan_jobs(systems: Sequence[System], densities: Sequence[str]) -> tuple[Job, ...]:
    """All systems with the first density; atoms and molecules also with the other ones.

    The order is that of the computation: a run stopped early leaves the most useful part.
    """
    first = [Job(system, densities[0]) for system in systems]
    rest = [
        Job(system, density)
        for density in densities[1:]
        for system in systems
        if system.kind in ("atom", "molecule")
    ]
    return tuple(first + rest)


def produce_references(
    store: Store,
    jobs: Sequence[Job],
    settings: Any,
    workers: int = 1,
    console: Console | None = None,
    crystal_densities: Callable[..., Any] | None = None,
) -> ProductionSummary:
    """Make the reference records that ``store`` does not hold yet.

    A system whose SCF does not converge, or that cannot be built, is recorded as failed with the
    reason and counted. One whose worker process died is reported and tried again by the next run.
    ``settings`` is a :class:`~cider.training.reference.ReferenceSettings`; crystals need what a
    plugin makes of them (:data:`~cider.training.crystals.CrystalDensities`).

    Raises:
        ValueError: Crystals are missing, and so is what makes them.
        DiskFullError: There is no space left; finished records are intact.
        StoreError: A record that is already there is corrupted or foreign.
    """
    from cider.training.reference import reference_key

    def describe(result: dict[str, Any]) -> str:
        if result["status"] == "failed":
            return f"failed: {result['reason']}"
        seconds = sum(value for name, value in result.items() if name.endswith("seconds"))
        exact, semilocal = result["exact_exchange"], result["PBE_X"]
        return f"E_x = {exact:.6f} Ha, PBE_X {semilocal:.6f}, {seconds:.1f} s"

    made, present, failed = [], [], {}
    missing = []
    for job in jobs:
        key = reference_key(job.system, job.density)
        if key not in store:
            missing.append(job)
            continue
        facts = store.read(key).facts
        if not System.from_dict(facts["system"]).same_calculation(job.system):
            raise ValueError(
                f"{store.path(key)} holds another geometry, charge or spin of {job.system.name!r}; "
                "rename the system, delete the record or choose another output folder"
            )
        if facts["status"] == "failed":
            failed[job.label] = facts["reason"]
        present.append(job.label)
    if crystal_densities is None and any(job.system.cell for job in missing):
        raise ValueError("crystals need GPAW: pip install 'cider-xc[gpaw]', see docs/gpaw.md")
    function = functools.partial(_make, str(store.folder), settings, crystal_densities)
    for outcome in with_progress(function, missing, workers, "reference data", describe, console):
        label = outcome.task.label
        if outcome.error:
            failed[label] = outcome.error
        elif outcome.result["status"] == "failed":
            failed[label] = outcome.result["reason"]
        else:
            made.append(label)
    return ProductionSummary(tuple(made), tuple(present), failed)


def with_progress(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    title: str,
    describe: Callable[[Any], str],
    console: Console | None = None,
) -> list[Outcome]:
    """Outcomes of all tasks, with a progress bar (or lines, where the output is no terminal).

    Raises:
        DiskFullError: A worker found the disk full.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    outcomes = []
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        contextlib.closing(run_tasks(function, tasks, workers)) as running,
    ):
        bar = progress.add_task(title, total=len(tasks))
        for outcome in running:
            outcomes.append(outcome)
            progress.advance(bar)
            if outcome.error_type == DiskFullError.__name__:
                raise DiskFullError(outcome.error)
            line = f"not done: {outcome.error}" if outcome.error else describe(outcome.result)
            if outcome.error or not console.is_terminal:
                console.print(
                    f"[{len(outcomes)}/{len(tasks)}] {outcome.task.label}: {line}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    return outcomes


def _make(folder: str, settings: Any, crystal_densities: Any, job: Job) -> dict[str, Any]:
    from cider.training import crystals, reference

    reference.limit_threads(1)
    store = Store(folder)
    try:
        if job.system.cell:
            record = crystals.compute_crystal_reference(
                job.system, job.density, settings, crystal_densities
            )
        else:
            record = reference.compute_reference(job.system, job.density, settings)
    except (reference.UnconvergedError, ValueError) as error:
        record = reference.failed_reference(job.system, job.density, str(error))
    store.write(record)
    return dict(record.facts)
