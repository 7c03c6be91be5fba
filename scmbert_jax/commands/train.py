"""Verbs from a corpus to a model folder: pretrain, export."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scmbert_jax.commands.data import field_values
from scmbert_jax.commands.terminal import RunFolder, show
from scmbert_jax.errors import INTERRUPTED, ConfigError, EvaluationError
from scmbert_jax.parallel.processes import ALONE, Processes

CellChoice = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE,...")]


@dataclass(frozen=True)
class Pretrain:
    """Pre-train an experiment on a corpus; continues by itself when RUN-DIR has a checkpoint.

    SIGTERM, SIGINT and SIGHUP save and stop the run: exit code 75, and the same command continues.

    Any field of the configuration can be changed: --model.embed-dim 128 (all of them: --fields).

    Example:  scmbert pretrain pbmc_demo --corpus my_corpus --run-dir runs/1 --train.num-steps 2000
              scmbert pretrain tiny --corpus blood --run-dir runs/2 --only assay=10x --exclude 'cell_type=B cell,NK'
              scmbert pretrain tiny --corpus blood brain liver --corpus-weights 2,1,1 --run-dir runs/3
              scmbert pretrain genebert --corpus regions.npz --run-dir runs/5 --steps 10000
              scmbert pretrain tiny --corpus blood --balance-by cell_type --max-repeats 5 --run-dir runs/4
    """

    experiment: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="EXPERIMENT")]]
    """Name of a file in experiments/, or the path of one."""
    corpus: tuple[str, ...] = ()
    """Corpus folders (scmbert corpus build), or URLs of copies (scmbert corpus copy): s3://, gs://, https://. Cells of
    several are drawn together, their features joined by id. On DNA, the .npz of scmbert corpus genome."""
    run_dir: Path | None = None
    """Folder of the run; made when missing."""
    cache_dir: Path | None = None
    """Where blocks of the corpus that were read once are kept on this machine; shared by all processes here. Default
    for a corpus at a URL: $SCMBERT_CACHE_DIR, else the user's cache folder. A local corpus is cached only on
    request."""
    cache_gigabytes: float | None = None
    """Size limit of that cache; 0: no limit. Default: 32, or half of the free disk space if that is less."""
    steps: int | None = None
    """Short for --train.num-steps."""
    only: CellChoice = ()
    """Only cells that have one of the values, as for scmbert corpus build; of all corpora."""
    exclude: CellChoice = ()
    """No cells that have one of the values."""
    corpus_weights: str | None = None
    """How often each corpus is drawn, e.g. 2,1,1. Default: by --corpus-temperature."""
    corpus_temperature: float = 1.0
    """Corpora are drawn in proportion to cells^(1/T): 1 by size, inf equally."""
    balance_by: str | None = None
    """Field of the cells, such as cell_type, whose values are drawn equally often (see --balance-temperature)."""
    balance_temperature: float = float("inf")
    """Values of --balance-by are drawn in proportion to cells^(1/T)."""
    max_fraction: float | None = None
    """No corpus (with --balance-by: no value) has more than this fraction of the draws."""
    max_repeats: float | None = None
    """No corpus (with --balance-by: no value) is drawn more often than this while all cells would be drawn once."""
    held_out: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=FRACTION")] = ()
    """Cells that are not trained on, in place of those that the rules of the corpora name: cell=0.05, donor=0.2
    (decided by a hash, so the same in every run) or dataset=NAME,NAME. The run is judged by them (--validation.every).
    `none`: no cell is held out."""
    validation: str | None = None
    """A corpus whose cells the run is judged by; the run must not train on them, and must have all its features."""
    init_from: Path | None = None
    """Start a new run from the weights of a model folder, or of a run folder with a checkpoint, on any corpus of the
    same species: features are found by id; new ones start from their linked genes or fresh, and a message says so."""
    reader: Literal["auto", "tfdata", "threads", "grain"] = "auto"
    """How batches are read ahead; `auto`: by tf.data where TensorFlow is installed, else by threads. All give the same
    batches."""
    reader_threads: int = 2
    """Threads that make batches. Two keep a GPU busy; more help on large hosts."""
    reader_prefetch: int = 4
    """Finished batches that are kept ready, besides those that are being made; each takes memory."""
    restore_step: int | None = None
    """Continue from the checkpoint of this step; later ones are moved to RUN-DIR/set_aside. Done once: repeated, the
    command continues from the newest."""
    profile_steps: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = None
    """Trace steps A to B - 1 with jax.profiler into RUN-DIR/profile, for TensorBoard or ui.perfetto.dev. The first step
    of a start includes compilation."""
    log_to: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Services that also get the rows of metrics.jsonl (extras [wandb], [mlflow]); their own environment variables
    (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, ...) say where."""
    processes: tyro.conf.OmitArgPrefixes[Processes] = ALONE
    fields: bool = False
    """List the fields of the configuration with their values, and stop."""
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        started = time.monotonic()
        from scmbert_jax.config import differing_fields
        from scmbert_jax.experiment_files import load_any_experiment

        default = load_any_experiment(self.experiment)
        arguments = ["--help"] if self.fields else [*self.overrides]
        if self.steps is not None:
            arguments += ["--train.num-steps", str(self.steps)]
        config = tyro.cli(type(default), default=default, args=arguments, prog=f"scmbert pretrain {self.experiment}")
        if not self.corpus or self.run_dir is None:
            raise ConfigError("pretrain needs --corpus DIR and --run-dir DIR.")

        from data_pipelines.cells.cell_selection import CellSelection
        from data_pipelines.sampling.mixture import MixtureOptions
        from scmbert_jax.pretraining import pretrain

        run = pretrain(
            default,
            self.corpus,
            self.run_dir,
            changes={name: value for name, (_, value) in differing_fields(default, config).items()},
            mixture=MixtureOptions(
                selection=CellSelection(field_values("--only", self.only), field_values("--exclude", self.exclude)),
                corpus_weights=_numbers("--corpus-weights", self.corpus_weights),
                corpus_temperature=self.corpus_temperature,
                balance_by=self.balance_by,
                balance_temperature=self.balance_temperature,
                max_fraction=self.max_fraction,
                max_repeats=self.max_repeats,
                held_out=() if self.held_out == ("none",) else self.held_out or None,
            ),
            validation=self.validation,
            init_from=self.init_from,
            reader=self.reader,
            reader_threads=self.reader_threads,
            reader_prefetch=self.reader_prefetch,
            cache_dir=self.cache_dir,
            cache_gigabytes=self.cache_gigabytes,
            restore_step=self.restore_step,
            profile_steps=_steps("--profile-steps", self.profile_steps),
            log_to=self.log_to,
            processes=self.processes,
            started=started,
        )
        if run.interrupted:
            return INTERRUPTED
        if run.failed_evaluations:
            raise EvaluationError(
                f"{self.run_dir}: {run.failed_evaluations} evaluations failed; metrics.jsonl says which and why "
                '("validation/NAME/error"). The training is done.'
            )
        return 0


def _steps(option: str, text: str | None) -> tuple[int, int] | None:
    """10:20 -> (10, 20)."""
    if text is None:
        return None
    first, _, stop = text.partition(":")
    if not (first.isdecimal() and stop.isdecimal()):
        raise ConfigError(f"{option} {text}: expected A:B, two steps of the run, e.g. 10:20.")
    return int(first), int(stop)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """2,1,1 -> (2.0, 1.0, 1.0)."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: expected numbers with commas between them, e.g. 2,1,1.") from None


@dataclass(frozen=True)
class Export:
    """Write the newest checkpoint of a run as a self-contained model folder.

    Example:  scmbert export runs/1 my_model
    """

    run_dir: tyro.conf.Positional[RunFolder]
    """Written by scmbert pretrain."""
    model_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL_DIR")]]
    """Folder to write."""
    step: int | None = None
    """Step of the checkpoint. Default: the newest."""
    best: bool = False
    """Export the checkpoint that was best on the held-out cells (--validation.best of pretrain)."""
    unfinished: bool = False
    """Export even if the run has not reached its last step."""
    attention: str | None = None
    """Attention backend, if it is to run on other hardware than that of training; xla_chunked runs anywhere."""
    overwrite: bool = False
    """Replace MODEL_DIR if it is a model folder."""

    def run(self) -> int:
        from scmbert_jax.dna_config import DnaExperiment, load_any_config
        from scmbert_jax.pretrained import export_model
        from scmbert_jax.pretrained_dna import export_dna_model

        config = self.run_dir / "config.json"
        if config.is_file() and isinstance(load_any_config(config), DnaExperiment):
            of_dna = export_dna_model(
                self.run_dir,
                self.model_dir,
                self.step,
                best=self.best,
                unfinished=self.unfinished,
                attention=self.attention,
                overwrite=self.overwrite,
            )
            show(f"{self.model_dir}: model of DNA, step {of_dna.steps_in_words()}")
            return 0
        model = export_model(
            self.run_dir,
            self.model_dir,
            self.step,
            best=self.best,
            unfinished=self.unfinished,
            attention=self.attention,
            overwrite=self.overwrite,
        )
        features = f"{model.feature_space.num_features:,} features"
        show(f"{self.model_dir}: model of step {model.steps_in_words()}, {features}")
        return 0
