"""A trace of some steps of a run, as jax.profiler writes it: what host and devices did, and when.

It lies in RUN-DIR/profile and opens in TensorBoard (plugin `profile`) or in ui.perfetto.dev.
"""

import sys
from pathlib import Path
from typing import Any

import jax

from scmbert_jax.errors import ConfigError

ProfileSteps = tuple[int, int]  # the first step that is traced, and one past the last


def check_profile_steps(steps: ProfileSteps | None, num_steps: int) -> None:
    """Raises `ConfigError` when some of the steps are none of a run of `num_steps`."""
    if steps is not None and not 0 <= steps[0] < steps[1] <= num_steps:
        raise ConfigError(
            f"--profile-steps {steps[0]}:{steps[1]}: expected A:B with 0 <= A < B <= {num_steps}, the steps of the run "
            "(train.num_steps); steps A to B - 1 are traced."
        )


class StepProfile:
    """Traces `steps` into `folder`; use as `with`, so that a run that ends early leaves what was traced until then.

    A run that continues behind the first of the steps says so and traces what remains: a command that a scheduler
    repeats must not fail for it.

    Args:
      steps: None: none are traced.
      folder: None: nothing is written (processes other than the coordinator).
      start_step: from which the run continues.
    """

    def __init__(self, steps: ProfileSteps | None, folder: Path | None, start_step: int):
        self._folder, self._is_tracing = folder, False
        self._steps = range(0) if steps is None or folder is None else range(*steps)
        if self._steps and self._steps[0] < start_step:
            left = "what remains is traced" if start_step in self._steps else "nothing is traced"
            done = f"the run continues from step {start_step}"
            print(f"scmbert: --profile-steps {self._steps[0]}:{self._steps.stop}: {done}; {left}", file=sys.stderr)

    def dispatched(self, done: int, state: Any) -> None:
        """Called before the first step and after each one, when `done` steps were dispatched and leave `state`."""
        if (done in self._steps) == self._is_tracing:
            return
        jax.block_until_ready(state)  # the devices may still work on steps before `done`
        if self._is_tracing:
            self._end()
        elif self._folder is not None:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True

    def _end(self) -> None:
        jax.profiler.stop_trace()
        self._is_tracing = False

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_tracing:
            self._end()
