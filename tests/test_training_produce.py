"""Production is parallel, resumable after a kill at any moment, and survives failing systems."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from cider.training import produce, systems
from cider.training.produce import Job, plan_jobs, produce_references
from cider.training.reference import ReferenceSettings
from cider.training.store import DiskFullError, Store
from cider.training.systems import System
from cider.training.workers import run_tasks

SETTINGS = ReferenceSettings(basis="sto-3g", molecule_grid_level=0, atom_grid_level=0)
H = System("H", "atom", ("H",), ((0.0, 0.0, 0.0),), spin=1)
HE = System("He", "atom", ("He",), ((0.0, 0.0, 0.0),))
H2 = System("H2", "molecule", ("H", "H"), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.74)))
CHAIN = tuple(
    dataclasses.replace(H2, name=f"H2_{i}", positions=((0.0, 0.0, 0.0), (0.0, 0.0, 0.6 + 0.01 * i)))
    for i in range(60)
)


@pytest.fixture
def console():
    return Console(file=io.StringIO())


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run", SETTINGS.to_dict())


def test_order_of_the_work():
    jobs = plan_jobs(systems.default_systems(), ("PBE", "HF"))
    first = [job.system.kind for job in jobs if job.density == "PBE"]
    assert [job.density for job in jobs] == ["PBE"] * len(first) + ["HF"] * (36 + 148)
    assert first[:36] == ["atom"] * 36 and first[36:184] == ["molecule"] * 148


def test_two_workers_make_everything_once(store, console):
    jobs = plan_jobs((H, HE, H2), ("PBE", "HF"))
    summary = produce_references(store, jobs, SETTINGS, workers=2, console=console)
    assert sorted(summary.made) == sorted(job.label for job in jobs)
    assert not summary.failed
    assert len(store.keys()) == 6
    times = {key: store.path(key).stat().st_mtime_ns for key in store.keys("reference/")}
    again = produce_references(store, jobs, SETTINGS, workers=2, console=console)
    assert again.made == () and len(again.present) == 6
    assert times == {key: store.path(key).stat().st_mtime_ns for key in times}


def test_failing_systems_are_recorded_and_counted(store, console):
    broken = System("Og", "atom", ("Og",), ((0.0, 0.0, 0.0),))
    jobs = plan_jobs((broken, HE), ("PBE",))
    summary = produce_references(store, jobs, SETTINGS, console=console)
    assert summary.made == ("PBE/He",)
    assert "cannot be built in sto-3g" in summary.failed["PBE/Og"]
    again = produce_references(store, jobs, SETTINGS, console=console)
    assert again.failed == summary.failed and again.made == ()


def test_a_changed_geometry_is_refused(store, console):
    produce_references(store, plan_jobs((HE,), ("HF",)), SETTINGS, console=console)
    moved = dataclasses.replace(HE, charge=1, spin=1)
    with pytest.raises(ValueError, match="another geometry, charge or spin of 'He'"):
        produce_references(store, plan_jobs((moved,), ("HF",)), SETTINGS, console=console)


def test_killed_and_resumed(store, console):
    """The whole process group is killed with SIGKILL in the middle of a run of two workers."""
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "import test_training_produce as t\n"
        "if __name__ == '__main__':\n"
        "    jobs = t.plan_jobs(t.CHAIN, ('HF',))\n"
        "    t.produce_references(t.Store(sys.argv[1]), jobs, t.SETTINGS, workers=2)\n"
    )
    path = store.folder.parent / "run.py"
    path.write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(path), str(store.folder), os.path.dirname(__file__)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(store.keys()) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {key: store.path(key).stat().st_mtime_ns for key in store.keys("")}
    assert 3 <= len(finished) < len(CHAIN)
    jobs = plan_jobs(CHAIN, ("HF",))
    summary = produce_references(store, jobs, SETTINGS, workers=2, console=console)
    assert len(summary.present) == len(finished)
    assert len(summary.made) + len(finished) == len(CHAIN)
    for key, moment in finished.items():
        assert store.path(key).stat().st_mtime_ns == moment
    assert all(record.facts["status"] == "converged" for record in store.records())


def _square_or_die(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise ArithmeticError("three is too many")
    return number**2, os.environ["OMP_NUM_THREADS"]


def test_a_dead_worker_costs_one_task():
    outcomes = {o.task: o for o in run_tasks(_square_or_die, range(6), workers=2)}
    assert outcomes[2].died and "-9" in outcomes[2].error
    assert outcomes[3].error == "three is too many" and outcomes[3].error_type == "ArithmeticError"
    assert {n: outcomes[n].result for n in (0, 1, 4, 5)} == {n: (n**2, "1") for n in (0, 1, 4, 5)}


def _disk_full(task):
    raise DiskFullError("no space left")


def test_a_full_disk_ends_the_run(console):
    with pytest.raises(DiskFullError, match="no space left"):
        produce.with_progress(_disk_full, [Job(HE, "HF")], 1, "work", str, console)


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="0 workers"):
        next(run_tasks(_square_or_die, [1], workers=0))
