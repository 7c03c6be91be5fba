"""Pre-training as users ask for it, from the command line and from Python: corpora in, a run folder out.

Opens the corpora, leaves out what they lack, makes the mixture and its batches, and hands them to the loop
(training/loop.py), which knows nothing of files of counts.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.read_ahead import DEFAULT_PREFETCH, DEFAULT_THREADS, ReadAhead
from data_pipelines.batches.trained_cells import trained_cells
from data_pipelines.batches.training_data import MixtureData
from data_pipelines.batches.validation_data import held_out_mixture
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features.feature_embeddings import load_feature_embeddings
from data_pipelines.sampling.mixture import Mixture, MixtureOptions
from scmbert_jax.config import ExperimentConfig, batch_covariates, compared_within, with_fields, without_modalities
from scmbert_jax.dna_config import DnaExperiment, Experiment
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluators.table import validation_of
from scmbert_jax.experiment_files import load_any_experiment
from scmbert_jax.finished_run import Run, finished, give_up_after, teller
from scmbert_jax.outputs import check_run_folder
from scmbert_jax.parallel.multihost import check_joined, failing_at_once, from_process_zero
from scmbert_jax.parallel.processes import ALONE, Processes
from scmbert_jax.pretraining_dna import pretrain_dna
from scmbert_jax.run_networks import run_networks
from scmbert_jax.run_regions import run_region_vectors
from scmbert_jax.training import loop
from scmbert_jax.warm_start import warm_start

ALL_CELLS = MixtureOptions()


def pretrain(
    config: Experiment | str | Path,
    corpus: str | Path | Sequence[str | Path],
    run_dir: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    mixture: MixtureOptions = ALL_CELLS,
    validation: str | Path | None = None,
    init_from: str | Path | None = None,
    reader: Literal["auto", "tfdata", "threads", "grain"] = "auto",
    reader_threads: int = DEFAULT_THREADS,
    reader_prefetch: int = DEFAULT_PREFETCH,
    cache_dir: str | Path | None = None,
    cache_gigabytes: float | None = None,
    restore_step: int | None = None,
    profile_steps: tuple[int, int] | None = None,
    log_to: Sequence[str] = (),
    processes: Processes = ALONE,
    progress: bool = True,
    started: float | None = None,
) -> Run:
    """What `scmbert pretrain` does: trains on a corpus; continues by itself when `run_dir` has a checkpoint.

        run = scmbert_jax.pretrain("tiny", "my_corpus", "runs/1", changes={"train.num_steps": 200})
        model = run.export("my_model")

    SIGTERM, SIGINT (Ctrl-C, or a notebook's stop button) and SIGHUP save, and the run returns as `interrupted`; in
    other threads than the main one signals stay the caller's.

    Args:
      config: an `ExperimentConfig` or `DnaExperiment`, the name of an experiment, or the path of an experiment's file.
      corpus: a corpus folder or the URL of a copy; or several, whose cells are drawn together. On DNA, the .npz of
        scmbert corpus genome.
      run_dir: the folder of the run; made when missing.
      changes: dotted fields of the configuration -> values, as --train.num-steps 200 on the command line. A modality
        whose `num_tokens` stands here must be in the corpus; others that it lacks are left out, which is told.
      mixture: which cells, how often; its `together` is set by the objectives.
      validation: a corpus of cells by which the run is judged, and on which it does not train; None: those that
        `mixture` or the corpora hold out, if any (`config.validation` says how often it is judged, and by what).
      init_from: a model folder, or a run folder with a checkpoint, whose weights a new run starts from: features are
        found by id, all else must have the same shape (training/init_from.py). What the model did not have starts
        fresh, which is told. A run that has a checkpoint continues from that, with the same option or without it.
      reader: how batches are read ahead: by tf.data, threads, or Grain; "auto": tf.data where TensorFlow is installed,
        else threads, which is told. All give the same batches.
      reader_threads, reader_prefetch: threads that make batches, and batches that wait beside those being made.
      cache_dir, cache_gigabytes: where blocks that were read once are kept, and the most they take (`open_corpus`).
      restore_step: continue from the checkpoint of this step; later ones are moved to `run_dir`/set_aside.
      profile_steps: (A, B): steps A .. B - 1 are traced by jax.profiler into `run_dir`/profile.
      log_to: "wandb", "mlflow": services that get the rows of metrics.jsonl, too (training/trackers.py); their own
        environment variables say where, as whom and under which name. One that is away never stops the training.
      processes: of which this is one.
      progress: tell on standard error what is trained, and how far; with False nothing is printed.
      started: `time.monotonic()` when the process began, for the ledger of time; None: now.

    Raises:
      ConfigError: an experiment, a field or an option that does not fit; or `run_dir` is of another run
        (training/continuation.py says what may change).
      CorpusError, InputError: a corpus that cannot be read, or that lacks what was asked for.
      CheckpointError: `run_dir` belongs to other data, or a checkpoint cannot be read.
      RunInProgress: another process trains in `run_dir`.
      TrainingError: a loss that is not finite, or a disk that refuses.
      HostError: the other processes cannot be reached. One of several processes that fails ends at once, as the others
        wait for it.
    """
    started = time.monotonic() if started is None else started
    experiment = load_any_experiment(str(config)) if isinstance(config, str | Path) else config
    experiment = with_fields(experiment, changes or {})
    read_ahead = ReadAhead(reader, reader_threads, reader_prefetch)
    paths = [str(path) for path in ([corpus] if isinstance(corpus, str | Path) else corpus)]
    if not paths:
        raise ConfigError("no corpus is given; give the folder of one (made by scmbert corpus build).")
    in_both: dict[str, Any] = {
        "restore_step": restore_step,
        "profile_steps": profile_steps,
        "started": started,
        "show_progress": progress,
        "report_stall_after": min(60.0, processes.host_timeout / 2),  # before JAX gives a host up for dead
        "log_to": log_to,
    }
    if isinstance(experiment, DnaExperiment):
        given = {"validation": validation, "init_from": init_from, "cache_dir": cache_dir}
        of_cells = [name for name, value in {**given, "cache_gigabytes": cache_gigabytes}.items() if value is not None]
        of_cells += [own.name for own in fields(mixture) if getattr(mixture, own.name) != getattr(ALL_CELLS, own.name)]
        return pretrain_dna(experiment, paths, Path(run_dir), of_cells, read_ahead, processes, in_both)
    config = experiment
    if config.model.gene_head:
        raise ConfigError("model.gene_head: no objective trains it; scmbert annotate fit --method scbert does.")
    for path in paths:
        if path.endswith(".npz"):
            raise ConfigError(
                f"{path}: a corpus of sequences, which experiments on DNA read (genebert); this one is on cells."
            )
    run_dir = Path(run_dir)
    processes.join()
    with failing_at_once(), ExitStack() as opened:
        check_joined()
        check_run_folder(run_dir)
        tell = teller(progress)
        # Closed at the end, so that nothing that was read ahead keeps the process waiting.
        corpora = [
            opened.enter_context(closing(open_corpus(path, cache_dir=cache_dir, cache_gigabytes=cache_gigabytes)))
            for path in paths
        ]
        absent = _absent_modalities(config, changes or {}, {name for corpus in corpora for name in corpus.modalities})
        if absent:
            tell(f"{', '.join(absent)}: not in {' '.join(paths)}; trained without, as with num_tokens 0")
            config = without_modalities(config, absent)
        in_use = config.modalities.in_use()
        together = compared_within(config, {name for corpus in corpora for name in corpus.vocabularies})
        mixed = Mixture(corpora, replace(mixture, together=together), list(in_use))
        batches = BatchReader(
            mixed,
            {
                name: TokenSampling(own.num_tokens, own.zero_fraction, profile_tokens=config.profile_tokens)
                for name, own in in_use.items()
            },
            seed=config.seed,
            global_batch_size=config.data.global_batch_size,
            num_streams=config.data.num_streams,
            window_blocks=config.data.window_blocks,
            covariates=batch_covariates(config, mixed.joined.vocabularies),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        lonely = _lonely(batches.fraction_together())
        for line in [*(mixed.in_words() or [f"{mixed.num_cells:,} cells of {' '.join(paths)}"]), *lonely]:
            tell(line)
        tell(read_ahead.in_words())
        judged_by = None
        if validation is not None:
            there = open_corpus(str(validation), cache_dir=cache_dir, cache_gigabytes=cache_gigabytes)
            judged_by = opened.enter_context(closing(there))
        not_trained_on = held_out_mixture(mixed, judged_by)
        held_out = validation_of(config, batches, not_trained_on)
        if held_out is not None:
            tell(f"judged by held-out cells: {held_out.identity}")
        target_sums = {name: modality.target_sum for name, modality in in_use.items()}
        beginning = None
        if init_from is not None:
            vocabularies = {name: mixed.joined.vocabularies[name] for name in batches.covariates}
            beginning = warm_start(Path(init_from), config, mixed.joined.feature_space, vocabularies)
            if not_trained_on is not None:
                for line in beginning.knows(trained_cells(not_trained_on, list(in_use))):
                    tell(line)
        start_rows = None
        if config.model.feature_embeddings:
            table, space = Path(config.model.feature_embeddings), mixed.joined.feature_space
            start_rows = load_feature_embeddings(table, space, config.model.embed_dim)
            known = int(np.isfinite(start_rows).all(axis=1).sum())
            tell(f"{known:,} of {len(start_rows):,} rows of the feature table start from {table}, the others at random")
        networks = run_networks(config, mixed.joined.feature_space, run_dir)
        for line in [] if networks is None else networks.words:
            tell(line)
        region_vectors = run_region_vectors(config, mixed.joined.feature_space, run_dir, tell)
        data = MixtureData(
            batches,
            read_ahead,
            target_sums,
            started_run=run_dir,
            made_once=from_process_zero,
            linear_path=config.model.linear_path,
            start_rows=start_rows,
            region_vectors=region_vectors,
            networks=networks,
            with_earlier=(lambda own: own) if beginning is None else beginning.trained_cells,
        )
        outcome = loop.pretrain(
            config,
            data,
            run_dir,
            validation=held_out,
            init_from=None if beginning is None else beginning.model,
            give_up_after=give_up_after(processes),
            **in_both,
        )
    return finished(run_dir, config, outcome, tell)


def _lonely(fraction_together: float | None) -> list[str]:
    """What to say where few cells of a batch meet another of their technical batch. Raises `ConfigError`: none does."""
    if fraction_together is None or fraction_together >= 0.5:
        return []
    found = (
        "objectives.contrastive_alignment tells a cell apart from others of its technical batch, and of the cells of a "
        f"batch {fraction_together:.1%} meet one"
    )
    remedy = (
        "raise --data.window-blocks or --data.global-batch-size, or set "
        "--objectives.contrastive-alignment.negatives all (the batch effect is then part of the answer)"
    )
    if fraction_together == 0:
        raise ConfigError(f"{found}: nothing would be learned; {remedy}")
    return [f"note: {found}: the others weigh nothing; {remedy}"]


def _absent_modalities(config: ExperimentConfig, changes: Collection[str], present: Collection[str]) -> list[str]:
    """Modalities that the experiment reads and the corpora lack; none where one was asked for by name, or none would
    be left: then it is an error, which the reader of the corpora raises."""
    asked = config.modalities.in_use()
    absent = [name for name in asked if name not in present]
    told = any(f"modalities.{name}.num_tokens" in changes for name in absent)
    return [] if told or len(absent) == len(asked) else absent
