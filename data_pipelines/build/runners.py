"""Runs independent tasks: in this process, in several of this machine, or on a cluster (`beam_runner`).

A task is done when its output file is there, which it writes whole or not at all. So a runner returns nothing, a task
that is run twice does no harm, and what a killed build had finished is not done again.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from scmbert_jax.errors import CorpusError

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


class Task(Protocol):
    """Can be pickled, unless it is only run by `InProcess`."""

    @property
    def output(self) -> Path: ...

    def run(self) -> None: ...


class Runner(Protocol):
    """`in_process`: tasks are run where they were made, and may hold anything."""

    in_process: bool

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        """Runs the tasks in any order, and yields as each is done. Raises what a task raises."""
        ...

    def close(self) -> None:
        """Ends what was started; no task runs on."""
        ...


class InProcess:
    """One after the other."""

    in_process = True

    def close(self) -> None:
        """Nothing was started."""

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        for task in tasks:
            task.run()
            yield


class LocalProcesses:
    """Processes of this machine, started when first needed and kept until `close`.

    They hold the reading end of a pipe whose writing end is here: when it closes, by `close` or because this process
    was killed, they end at once. (The queue of an executor would never tell them: they hold both its ends.)
    """

    in_process = False

    def __init__(self, workers: int):
        self._workers = workers
        self._alive: Connection | None = None
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        """As `Runner`. Raises CorpusError when a worker dies."""
        try:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")  # what this process has open and running is not copied
                ended, self._alive = context.Pipe(duplex=False)
                self._pool = ProcessPoolExecutor(self._workers, context, _end_with_the_parent, (ended,))
                # Python (3.11) watches a process that was started by `submit` only after the next result; so all
                # are started, and results waited for, before there is work that takes long.
                wait([self._pool.submit(os.getpid) for _ in range(self._workers)])
            for future in as_completed([self._pool.submit(task.run) for task in tasks]):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise CorpusError(
                f"one of {self._workers} worker processes was killed, by the system if memory ran out. What was "
                "finished is kept: run the same command again to continue, with fewer --workers if memory was short"
            ) from error

    def close(self) -> None:
        """Ends the processes; what they are in the middle of is lost."""
        if self._pool is not None and self._alive is not None:
            self._alive.close()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _end_with_the_parent(ended: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends the workers

    def watch() -> None:
        ended.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def available_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(runner: Runner, stage: str, tasks: Sequence[Task], progress: Progress) -> None:
    """Runs those of the tasks that are not done; `progress` counts all of them."""
    waiting = [task for task in tasks if not task.output.exists()]
    done = len(tasks) - len(waiting)
    progress(stage, done, len(tasks))
    for _ in runner.run(waiting):
        done += 1
        progress(stage, done, len(tasks))
