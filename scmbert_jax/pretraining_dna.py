"""Pre-training on DNA: a corpus of sequences in, a run folder out, through the loop that trains on cells, too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipelines.batches.genome_data import GenomeData, HeldOutSequences, held_out_sequences
from data_pipelines.batches.read_ahead import ReadAhead
from data_pipelines.genome.genome_corpus import GenomeCorpus, open_genome_corpus
from data_pipelines.genome.genome_reader import GenomeReader
from scmbert_jax.dna_config import DnaExperiment
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluators.held_out_losses import HeldOutLosses
from scmbert_jax.finished_run import Run, finished, give_up_after, teller
from scmbert_jax.models.definition import Definition
from scmbert_jax.outputs import check_run_folder
from scmbert_jax.parallel.multihost import check_joined, failing_at_once
from scmbert_jax.parallel.processes import Processes
from scmbert_jax.tasks.sequence_corpus import has_places
from scmbert_jax.training import loop
from scmbert_jax.training.validation import Evaluator, Validation


def pretrain_dna(
    config: DnaExperiment,
    paths: Sequence[str],
    run_dir: Path,
    of_cells: Sequence[str],
    read_ahead: ReadAhead,
    processes: Processes,
    of_loop: dict[str, Any],
) -> Run:
    """`pretraining.pretrain` of an experiment on DNA, which calls this.

    Args:
      paths: one corpus, the .npz of scmbert corpus genome.
      of_cells: options that were given and are of runs on cells only; there must be none.
      of_loop: further arguments of `loop.pretrain`.
    """
    if of_cells:
        raise ConfigError(
            f"{', '.join(sorted(of_cells))}: options of runs on cells, and this experiment is one on DNA. Its corpus "
            "says which regions train, and which are held out; leave them out."
        )
    if len(paths) > 1:
        raise ConfigError(f"{len(paths)} corpora are given; an experiment on DNA reads one (scmbert corpus genome).")
    if Path(paths[0]).is_dir():
        raise ConfigError(
            f"{paths[0]}: a folder, such as a corpus of cells; an experiment on DNA reads the .npz that scmbert corpus "
            "genome writes."
        )
    processes.join()
    with failing_at_once():
        check_joined()
        check_run_folder(run_dir)
        tell = teller(of_loop["show_progress"])
        corpus = open_genome_corpus(paths[0])
        _check_sequences(config, corpus, paths[0])
        process = jax.process_index(), jax.process_count()
        number = config.regions.num_regions if config.objectives.read_regions else 1
        reader = GenomeReader(
            corpus,
            seed=config.seed,
            global_batch_size=config.data.global_batch_size,
            num_streams=config.data.num_streams,
            window_blocks=config.data.window_blocks,
            num_neighbours=number,
            both_strands=config.data.both_strands,
            process_index=process[0],
            process_count=process[1],
        )
        data = GenomeData(reader, read_ahead, paths[0], config.objectives.motif_occurrence.quantile)
        held_out = held_out_sequences(corpus, config.validation.cells, config.data.global_batch_size, number, process)
        training = len(corpus.rows("train"))
        tell(
            f"{training:,} training regions of {len(corpus):,} in {paths[0]}; {reader.steps_per_epoch:,} steps an epoch"
        )
        tell(read_ahead.in_words())
        validation = _validation_of(config, held_out)
        if validation is not None:
            tell(f"judged by {validation.identity}")
        outcome = loop.pretrain(
            config, data, run_dir, validation=validation, give_up_after=give_up_after(processes), **of_loop
        )
    return finished(run_dir, config, outcome, tell)


def _check_sequences(config: DnaExperiment, corpus: GenomeCorpus, path: str) -> None:
    if config.objectives.read_regions and config.regions.num_regions > 1 and not has_places(corpus):
        raise ConfigError(
            f"{path}: sequences without a place in a genome have no regions around them: set --regions.num-regions 1."
        )
    longest, most = corpus.codes.shape[1], config.sequence.most_bases
    if longest > most:
        raise ConfigError(
            f"sequence.most_bases is {most:,}, and {path} has sequences of {longest:,} bases: set "
            f"--sequence.most-bases {longest}, or build the corpus with --width {most}."
        )


def _validation_of(config: DnaExperiment, held_out: HeldOutSequences | None) -> Validation | None:
    """The losses on the validation chromosomes; None where the corpus has no region there."""
    asked = config.validation.schedules()
    for name in asked:
        if name != "loss":
            raise ConfigError(f"validation.evaluators names {name!r}; of DNA there is loss.")
    if held_out is None:
        if any(asked.values()) or config.validation.best:
            raise ConfigError(
                "validation asks for evaluations, but the corpus has no region on a validation chromosome: build it "
                "with --validation-chromosomes, or set --validation.every 0 --validation.best ''."
            )
        return None
    data = held_out

    def make(model: Definition, mesh: Mesh) -> dict[str, Evaluator]:
        return {"loss": HeldOutLosses(model, mesh, data)} if asked else {}

    return Validation(data.identity, make)
