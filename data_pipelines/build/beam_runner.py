"""The tasks of a build as Apache Beam pipelines: on Dataflow, Flink or Spark, or in this process.

Every stage is one pipeline over its tasks. The tasks are small; what they read and write are files, so that sources and
corpus must lie where all machines of the cluster see them under the same path.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.build.hand_over import close_all
from data_pipelines.build.runners import Task
from data_pipelines.files.atomic_files import growing_file
from scmbert_jax import errors
from scmbert_jax.errors import ConfigError, CorpusError, UserError

_LOCAL = "--runner=FnApiRunner"  # what Beam's DirectRunner runs, without looking for another to download


class BeamPipelines:
    """Beam with these options (`--runner=FlinkRunner`, ...); without a runner among them, in this process.

    Args:
      options: as on a command line.
      failures: a folder that all machines see: Beam does not carry errors as they are.

    Raises:
      ConfigError: Beam is not installed.
    """

    in_process = False

    def __init__(self, options: Sequence[str], failures: Path):
        try:
            import apache_beam  # noqa: F401
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ConfigError(
                "--runner beam: Apache Beam is not installed; pip install 'scmbert_jax[beam]', or leave --runner out"
            ) from error
        named = any(option.split("=")[0] == "--runner" for option in options)
        flags = [*options] if named else [_LOCAL, *options]
        self._options = PipelineOptions(flags)
        self._failures = failures

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        import apache_beam as beam

        if not tasks:
            return
        for path in self._failures.glob("failure-*"):
            path.unlink()
        try:
            with beam.Pipeline(options=self._options) as pipeline:
                (
                    pipeline
                    | beam.Create(list(tasks))
                    | beam.Reshuffle()  # else one machine would have them all
                    | beam.Map(_run, str(self._failures))
                )
        except Exception as error:
            for path in sorted(self._failures.glob("failure-*")):
                raise _failure(path) from error
            raise CorpusError(
                f"the Beam pipeline failed ({error}). What was finished is kept: run the same command again to continue"
            ) from error
        missing = [task.output for task in tasks if not task.output.exists()]
        if missing:
            raise CorpusError(
                f"{missing[0]}: Beam finished, and the file is not here; sources and corpus must lie where all "
                "machines of the cluster see them under the same path"
            )
        yield from (None for _ in tasks)

    def close(self) -> None:
        """A pipeline is over when `run` is; what its tasks opened in this process is closed."""
        close_all()


def _run(task: Any, failures: str) -> None:  # Beam checks annotations, and `Task` is a protocol
    try:
        task.run()
    except UserError as error:
        with growing_file(Path(failures) / f"failure-{task.output.name}") as file:
            file.write(json.dumps([type(error).__name__, str(error)]).encode())
        raise


def _failure(path: Path) -> UserError:
    """The error that a task left, of the kind it was; of a kind nobody knows, a `CorpusError`."""
    try:
        kind, message = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return CorpusError(f"{path}: a task of the Beam pipeline failed, and its message cannot be read ({error})")
    cls = getattr(errors, kind, None) if isinstance(kind, str) else None
    return (cls if isinstance(cls, type) and issubclass(cls, UserError) else CorpusError)(str(message))
