"""Verbs from a corpus to a model folder: pretrain, export."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scmbert_jax.commands.data import field_values
from scmbert_jax.commands.terminal import ModelFolder, RunFolder, say, show
from scmbert_jax.errors import INTERRUPTED, ConfigError
from scmbert_jax.outputs import check_run_folder

if TYPE_CHECKING:
    from data_pipelines.mixture import MixtureOptions
    from scmbert_jax.config import ExperimentConfig

CellChoice = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE,...")]


@dataclass(frozen=True)
class Pretrain:
    """Pre-train an experiment on a corpus; continues by itself when RUN-DIR has a checkpoint.

    SIGTERM, SIGINT and SIGHUP save and stop the run: exit code 75, and the same command continues.

    Any field of the configuration can be changed: --model.embed-dim 128 (all of them: --fields).

    Example:  scmbert pretrain pbmc_demo --corpus my_corpus --run-dir runs/1 --train.num-steps 2000
              scmbert pretrain tiny --corpus blood --run-dir runs/2 --only assay=10x --exclude 'cell_type=B cell,NK'
              scmbert pretrain tiny --corpus blood brain liver --corpus-weights 2,1,1 --run-dir runs/3
              scmbert pretrain tiny --corpus blood --balance-by cell_type --max-repeats 5 --run-dir runs/4
    """

    experiment: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="EXPERIMENT")]]
    """Name of a file in experiments/, or the path of one."""
    corpus: tuple[str, ...] = ()
    """Corpus folders (scmbert corpus build), or URLs of copies (scmbert corpus copy): s3://, gs://, https://. Cells of
    several are drawn together, their features joined by id."""
    run_dir: Path | None = None
    """Folder of the run; made when missing."""
    cache_dir: Path | None = None
    """Where blocks of the corpus that were read once are kept on this machine; shared by all processes here. For a
    corpus at a URL also $SCMBERT_CACHE_DIR, else the user's cache folder; a local corpus is cached only on request."""
    cache_gigabytes: float | None = None
    """Size limit of that cache; 0 for none. When left out, 32 or half of what the disk has free."""
    steps: int | None = None
    """Short for --train.num-steps."""
    only: CellChoice = ()
    """Only cells that have one of the values, as for scmbert corpus build; of all corpora."""
    exclude: CellChoice = ()
    """No cells that have one of the values."""
    corpus_weights: str | None = None
    """How often each corpus is drawn, e.g. 2,1,1; left out: by --corpus-temperature."""
    corpus_temperature: float = 1.0
    """Corpora are drawn in proportion to cells^(1/T): 1 by size, inf equally."""
    balance_by: str | None = None
    """Field of the cells, such as cell_type, whose values are drawn equally often (see --balance-temperature)."""
    balance_temperature: float = float("inf")
    """Values of --balance-by are drawn in proportion to cells^(1/T)."""
    max_share: float | None = None
    """No corpus (with --balance-by: no value) has more than this share of the draws."""
    max_repeats: float | None = None
    """No corpus (with --balance-by: no value) is drawn more often than this while all cells would be drawn once."""
    reader: Literal["tfdata", "threads", "grain"] = "tfdata"
    """How batches are read ahead; `threads` needs neither TensorFlow nor Grain. All give the same batches."""
    restore_step: int | None = None
    """Continue from the checkpoint of this step; later ones are moved to RUN-DIR/set_aside. Done once: repeated, the
    command continues from the newest."""
    multihost: bool = False
    """One of several processes with this same command, started by Cloud TPU, GKE, Slurm or Open MPI."""
    coordinator: str | None = None
    """Elsewhere: HOST:PORT of process 0, for a run of several processes."""
    num_processes: int = 1
    """Started with the same command but for --process-index; all see the same CORPUS and RUN_DIR."""
    process_index: int = 0
    """Which of them this is, from 0."""
    join_timeout: int = 300
    """Of several processes: seconds to wait for all to start."""
    host_timeout: int = 100
    """Of several processes: seconds without a heartbeat after which one is dead, and all others end."""
    stall_timeout: float = 1800
    """Of several processes: seconds without a finished step after which the process ends (exit code 7)."""
    fields: bool = False
    """List the fields of the configuration with their values, and stop."""
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        started = time.monotonic()
        from experiments import load_experiment
        from scmbert_jax.config import ExperimentConfig

        default = load_experiment(self.experiment)
        arguments = ["--help"] if self.fields else [*self.overrides]
        if self.steps is not None:
            arguments += ["--train.num-steps", str(self.steps)]
        config = tyro.cli(ExperimentConfig, default=default, args=arguments, prog=f"scmbert pretrain {self.experiment}")
        if not self.corpus or self.run_dir is None:
            raise ConfigError("pretrain needs --corpus DIR and --run-dir DIR.")
        if self.join_timeout < 1 or self.host_timeout < 1 or self.stall_timeout <= 0:
            raise ConfigError("--join-timeout, --host-timeout and --stall-timeout are seconds, above 0.")
        if self.multihost and (self.coordinator is not None or self.num_processes > 1):
            raise ConfigError("--multihost finds the others itself: leave out --coordinator and --num-processes.")
        if self.num_processes < 1 or (self.num_processes == 1 and self.coordinator is not None):
            raise ConfigError(f"--num-processes {self.num_processes}: with --coordinator it must be 2 or more.")

        from scmbert_jax.parallel.multihost import failing_at_once, join, join_cluster

        timeouts = {"host_timeout": self.host_timeout, "join_timeout": self.join_timeout}
        if self.multihost:
            join_cluster(**timeouts)
        elif self.num_processes > 1:
            join(self.coordinator, self.num_processes, self.process_index, **timeouts)
        with failing_at_once():
            return self._train(config, default, self.run_dir, started)

    def _train(self, config: "ExperimentConfig", default: "ExperimentConfig", run_dir: Path, started: float) -> int:
        import jax

        from data_pipelines.batch_reader import BatchReader
        from data_pipelines.collate import TokenSampling
        from data_pipelines.corpus import open_corpus
        from data_pipelines.mixture import Mixture
        from data_pipelines.training_data import MixtureData
        from scmbert_jax.config import batch_covariates, compared_within, without_modalities
        from scmbert_jax.parallel.multihost import check_joined, from_process_zero
        from scmbert_jax.training.goodput import read_goodput
        from scmbert_jax.training.loop import pretrain

        check_joined()
        check_run_folder(run_dir)
        corpora = [
            open_corpus(path, cache_dir=self.cache_dir, cache_gigabytes=self.cache_gigabytes) for path in self.corpus
        ]
        absent = _absent_modalities(config, default, {name for corpus in corpora for name in corpus.modalities})
        if absent:
            if jax.process_index() == 0:
                say(f"{', '.join(absent)}: not in {' '.join(self.corpus)}; trained without, as with num_tokens 0")
            config = without_modalities(config, absent)
        in_use = config.modalities.in_use()
        together = compared_within(config, {name for corpus in corpora for name in corpus.vocabularies})
        mixture = Mixture(corpora, self._mixture_options(together), list(in_use))
        reader = BatchReader(
            mixture,
            {name: TokenSampling(modality.num_tokens, modality.zero_fraction) for name, modality in in_use.items()},
            seed=config.seed,
            global_batch_size=config.data.global_batch_size,
            num_streams=config.data.num_streams,
            window_blocks=config.data.window_blocks,
            covariates=batch_covariates(config, mixture.joined.vocabularies),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        lonely = _lonely(reader.share_together())
        if jax.process_index() == 0:
            for line in [*(mixture.in_words() or [f"{mixture.num_cells:,} cells of {' '.join(self.corpus)}"]), *lonely]:
                say(line)
        target_sums = {name: modality.target_sum for name, modality in in_use.items()}
        data = MixtureData(reader, self.reader, target_sums, started_run=run_dir, made_once=from_process_zero)
        outcome = pretrain(
            config,
            data,
            run_dir,
            restore_step=self.restore_step,
            started=started,
            report_stall_after=min(60.0, self.host_timeout / 2),  # before JAX gives a host up for dead
            give_up_after=self.stall_timeout if jax.process_count() > 1 else math.inf,
        )
        for corpus in corpora:
            corpus.close()  # nothing that was read ahead keeps the process waiting
        if jax.process_index() == 0:
            how = "stopped by a signal; the same command continues" if outcome.interrupted else "done"
            goodput = read_goodput(run_dir)
            if goodput is not None:
                say(goodput.text())
            say(f"{run_dir}: step {outcome.step} of {config.train.num_steps}, {how}")
        return INTERRUPTED if outcome.interrupted else 0

    def _mixture_options(self, together: str | None) -> "MixtureOptions":
        from data_pipelines.cell_selection import CellSelection
        from data_pipelines.mixture import MixtureOptions

        return MixtureOptions(
            selection=CellSelection(field_values("--only", self.only), field_values("--exclude", self.exclude)),
            corpus_weights=_numbers("--corpus-weights", self.corpus_weights),
            corpus_temperature=self.corpus_temperature,
            balance_by=self.balance_by,
            balance_temperature=self.balance_temperature,
            max_share=self.max_share,
            max_repeats=self.max_repeats,
            together=together,
        )


def _lonely(share_together: float | None) -> list[str]:
    """What to say where few cells of a batch meet another of their technical batch. Raises `ConfigError`: none does."""
    if share_together is None or share_together >= 0.5:
        return []
    found = (
        "objectives.contrastive_alignment tells a cell apart from others of its technical batch, and of the cells of a "
        f"batch {share_together:.1%} meet one"
    )
    remedy = (
        "raise --data.window-blocks or --data.global-batch-size, or set "
        "--objectives.contrastive-alignment.negatives all (the batch effect is then part of the answer)"
    )
    if share_together == 0:
        raise ConfigError(f"{found}: nothing would be learned; {remedy}")
    return [f"note: {found}: the others weigh nothing; {remedy}"]


def _absent_modalities(config: "ExperimentConfig", default: "ExperimentConfig", present: set[str]) -> list[str]:
    """Modalities that the experiment reads and the corpora lack; none where one was asked for on the command line, or
    none would be left: then it is an error, which the reader of the corpora raises."""
    asked = config.modalities.in_use()
    absent = [name for name in asked if name not in present]
    told = any(asked[name].num_tokens != getattr(default.modalities, name).num_tokens for name in absent)
    return [] if told or len(absent) == len(asked) else absent


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
    model_dir: tyro.conf.Positional[ModelFolder]
    """Folder to write."""
    step: int | None = None
    """Of another checkpoint than the newest."""
    unfinished: bool = False
    """Also where the newest checkpoint is not of the run's last step."""
    attention: str | None = None
    """Another backend than that of training, for other hardware; xla_chunked runs anywhere."""
    overwrite: bool = False
    """Replace MODEL_DIR if it is a model folder."""

    def run(self) -> int:
        from scmbert_jax.pretrained import export_model

        model = export_model(
            self.run_dir,
            self.model_dir,
            self.step,
            unfinished=self.unfinished,
            attention=self.attention,
            overwrite=self.overwrite,
        )
        features = f"{model.feature_space.num_features:,} features"
        show(f"{self.model_dir}: model of step {model.steps_in_words()}, {features}")
        return 0
