"""Says when no step finishes for long, and ends a process that waits in vain for the others.

A collective waits for every process, without a time limit and inside XLA, where Python can neither interrupt nor report
it. So a thread looks at the clock.
"""

import faulthandler
import math
import os
import sys
import threading
import time

import jax

from scmbert_jax.errors import HostError


class StallWatch:
    """While open, reports on standard error when no step has finished for `report_after` s, then 2, 4, 8 times as long.

    After `give_up_after` s it prints where every thread of the process stands and ends the process with the exit code
    of `HostError`: a scheduler starts it again, and the run continues from its newest checkpoint.

    Args:
      step: steps that were finished before.
      report_after, give_up_after: seconds; infinity: never.
    """

    def __init__(self, step: int, report_after: float, give_up_after: float = math.inf):
        self._last = (step, time.monotonic())
        self._report_after, self._give_up_after = report_after, give_up_after
        self._who = f"process {jax.process_index()} of {jax.process_count()}: " if jax.process_count() > 1 else ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)

    def finished(self, step: int) -> None:
        """To be called after every step."""
        self._last = (step, time.monotonic())

    def __enter__(self) -> "StallWatch":
        self._last = (self._last[0], time.monotonic())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        reported: tuple[int, float] | None = None
        report_at = self._report_after
        while not self._closed.wait(min(1.0, self._report_after / 10)):
            step, since = last = self._last
            waited = time.monotonic() - since
            if reported != last:
                reported, report_at = last, self._report_after
            if waited >= self._give_up_after:
                self._give_up(step, waited)
            if waited >= report_at:
                report_at *= 2
                self._say(
                    f"no step finished for {waited:.0f} s (the last was step {step}). It compiles, or waits for data, "
                    "for a checkpoint to be written, or for another host."
                )

    def _give_up(self, step: int, waited: float) -> None:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        self._say(
            f"no step finished for {waited:.0f} s (the last was step {step}): this process ends. The same command "
            "continues from the newest checkpoint; --stall-timeout is how long to wait."
        )
        os._exit(HostError.exit_code)

    def _say(self, message: str) -> None:
        print(f"scmbert: {self._who}{message}", file=sys.stderr, flush=True)
