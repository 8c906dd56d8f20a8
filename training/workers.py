"""Worker processes that compute independent tasks, each with one thread.

Small and strict where ``concurrent.futures`` is not: a worker that dies (killed, out of memory)
costs its one task, and the others go on.
"""

import dataclasses
import multiprocessing
import os
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a task: its ``result``, or the ``error`` that ended it.

    ``died`` marks a worker process that ended without an answer.
    """

    task: Any
    result: Any = None
    error: str = ""
    error_type: str = ""
    died: bool = False


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    on_start: Callable[[Any], None] = lambda task: None,
) -> Generator[Outcome, None, None]:
    """Outcomes of ``function(task)`` as they come, from ``workers`` one-thread processes.

    Tasks start in the given order. Function, tasks and results must survive pickling between
    processes of one machine; the function is imported anew in each worker ("spawn"), so that
    thread counts are set before NumPy, PySCF and JAX read them.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers cannot do anything; ask for at least one")
    queue = list(reversed(tasks))
    running: dict[Connection, tuple[multiprocessing.process.BaseProcess, Any]] = {}

    def hand_out(
        connection: Connection, process: multiprocessing.process.BaseProcess, task: Any
    ) -> None:
        connection.send(task)
        running[connection] = (process, task)
        on_start(task)

    try:
        while queue and len(running) < workers:
            hand_out(*_start(function), queue.pop())
        while running:
            for connection in cast(list[Connection], wait(list(running))):
                process, task = running.pop(connection)
                try:
                    outcome = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    yield Outcome(
                        task, error=f"its process ended with {process.exitcode}", died=True
                    )
                    if queue:
                        hand_out(*_start(function), queue.pop())
                    continue
                if queue:
                    hand_out(connection, process, queue.pop())
                else:
                    connection.close()
                    process.join()
                yield outcome
    finally:
        for connection, (process, _) in running.items():
            process.terminate()
            process.join()
            connection.close()


def _start(
    function: Callable[[Any], Any],
) -> tuple[Connection, multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    theirs.close()
    return ours, process


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    while True:
        try:
            task = connection.recv()
        except (EOFError, KeyboardInterrupt):  # the run has ended, or its process was killed
            return
        try:
            outcome = Outcome(task, result=function(task))
        except KeyboardInterrupt:
            return
        except Exception as error:
            text = str(error) or traceback.format_exc(limit=-1)
            outcome = Outcome(task, error=text, error_type=type(error).__name__)
        try:
            connection.send(outcome)
        except OSError:
            return
