"""The command line: the verbs, their arguments, and which function does the work. It holds no logic of its own.

Heavy libraries are imported inside the functions, so that `scmbert --help` answers at once.
"""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from scmbert_jax import __version__
from scmbert_jax.errors import CheckpointError, ConfigError, InputError, UserError

Organism = Literal["human", "mouse"] | None
CorpusFolder = Annotated[Path, tyro.conf.arg(metavar="CORPUS")]
RunFolder = Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]
ModelFolder = Annotated[Path, tyro.conf.arg(metavar="MODEL_DIR")]
CountsFile = Annotated[str, tyro.conf.arg(metavar="FILE")]
CountsFiles = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE...")]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _print_json(document: Any) -> None:
    import json

    print(json.dumps(document, indent=2, allow_nan=False))


@dataclass(frozen=True)
class Doctor:
    """Check counts files: raw counts? known features? duplicates? A report; exit code 2 if one cannot be used.

    Example:  scmbert doctor cells.h5ad
              scmbert doctor rna.h5ad+atac.h5ad --assembly mm10 --json
    """

    files: tyro.conf.Positional[CountsFiles]
    """.h5ad, .h5mu or 10x .h5 files, A+B (files of the same cells), or example:pbmc_mosaic."""
    organism: Organism = None
    """Taken from the gene names when left out."""
    assembly: str | None = None
    """Genome build of regions (hg38, mm10, ...); needed for peaks unless the file names it."""
    min_genes: int = 200
    """Cells with fewer detected genes would be dropped."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        import json

        from data_pipelines.input_check import check_dataset
        from data_pipelines.readers import open_dataset

        if not self.files:
            raise InputError("doctor: no files given; give at least one .h5ad, .h5mu, 10x .h5 or example:pbmc_mosaic.")
        reports = [
            check_dataset(open_dataset(file), organism=self.organism, assembly=self.assembly, min_genes=self.min_genes)
            for file in self.files
        ]
        if self.json:
            documents = [json.loads(report.to_json()) for report in reports]
            _print_json(documents[0] if len(documents) == 1 else documents)
        else:
            print("\n\n".join(report.to_text() for report in reports))
        return 0 if all(report.usable for report in reports) else 2


@dataclass(frozen=True)
class CorpusBuild:
    """Build a corpus: checked, mapped, globally shuffled blocks of cells. Written whole or not at all.

    Example:  scmbert corpus build my_corpus cells_1.h5ad cells_2.h5ad
              scmbert corpus build cortex rna.h5ad+atac.h5ad --assembly mm10
    """

    out: tyro.conf.Positional[CorpusFolder]
    """Folder to write."""
    files: tyro.conf.Positional[CountsFiles]
    """One data set each: a file, or A+B for files of the same cells."""
    organism: Organism = None
    """Taken from the gene names when left out."""
    assembly: str | None = None
    """Genome build of regions (hg38, mm10, ...)."""
    min_genes: int = 200
    """Drop cells with fewer detected genes."""
    min_coverage: float = 0.5
    """Refuse a file of which a smaller share of features is known."""
    block_size: int = 256
    """Cells per block; smaller for small corpora, so that there are enough blocks to shuffle."""
    codec: Literal["zstd", "none"] = "zstd"
    seed: int = 0
    """Of the global shuffle."""
    obs_field: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=COLUMN")] = ()
    """Which column of obs holds cell_type, technical_batch, donor, ...; e.g. cell_type=my_labels."""
    overwrite: bool = False
    """Replace OUT if it is a corpus."""

    def run(self) -> int:
        from data_pipelines.build_corpus import build_corpus
        from data_pipelines.corpus import describe_corpus, describe_text

        pairs = [text.partition("=") for text in self.obs_field]
        if any(not equals for _, equals, _ in pairs):
            raise ConfigError(f"--obs-field {' '.join(self.obs_field)}: expected NAME=COLUMN, e.g. cell_type=labels.")
        build_corpus(
            self.out,
            list(self.files),
            organism=self.organism,
            assembly=self.assembly,
            min_genes=self.min_genes,
            min_coverage=self.min_coverage,
            block_size=self.block_size,
            codec=self.codec,
            seed=self.seed,
            obs_fields={name: column for name, _, column in pairs} or None,
            overwrite=self.overwrite,
            progress=_staged_progress(),
        )
        print(describe_text(describe_corpus(self.out)))
        return 0


@dataclass(frozen=True)
class CorpusInfo:
    """Say what a corpus holds.

    Example:  scmbert corpus info my_corpus
    """

    folder: tyro.conf.Positional[CorpusFolder]
    """Written by scmbert corpus build."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from data_pipelines.corpus import describe_corpus, describe_text

        description = describe_corpus(self.folder)
        _print_json(description) if self.json else print(describe_text(description))
        return 0


@dataclass(frozen=True)
class CorpusVerify:
    """Read every block of a corpus and check it; names each damaged shard and block.

    Example:  scmbert corpus verify my_corpus
    """

    folder: tyro.conf.Positional[CorpusFolder]
    """Written by scmbert corpus build."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from data_pipelines.corpus import verify_corpus

        report = verify_corpus(self.folder, _progress("verify"))
        if self.json:
            _print_json({**report._asdict(), "path": str(report.path), "ok": report.ok})
        elif report.ok:
            print(f"{report.path}: {report.num_cells:,} cells in {report.num_blocks:,} blocks, all intact")
        else:
            print("\n".join(report.problems))
        return 0 if report.ok else 3


@dataclass(frozen=True)
class Pretrain:
    """Pre-train an experiment on a corpus; continues by itself when RUN-DIR has a checkpoint.

    Any field of the configuration can be changed: --model.embed-dim 128 (all of them: --fields).

    Example:  scmbert pretrain pbmc_demo --corpus my_corpus --run-dir runs/1 --train.num-steps 2000
    """

    experiment: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="EXPERIMENT")]]
    """Name of a file in experiments/, or the path of one."""
    corpus: Path | None = None
    """Corpus folder (scmbert corpus build)."""
    run_dir: Path | None = None
    """Folder of the run; made when missing."""
    steps: int | None = None
    """Short for --train.num-steps."""
    reader: Literal["tfdata", "threads"] = "tfdata"
    """How batches are read ahead; `threads` needs no TensorFlow. Both give the same batches."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for a run of several processes."""
    num_processes: int = 1
    """Started with the same command but for --process-index; all see the same CORPUS and RUN_DIR."""
    process_index: int = 0
    """Which of them this is, from 0."""
    fields: bool = False
    """List the fields of the configuration with their values, and stop."""
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from experiments import load_experiment
        from scmbert_jax.config import ExperimentConfig

        default = load_experiment(self.experiment)
        arguments = ["--help"] if self.fields else [*self.overrides]
        if self.steps is not None:
            arguments += ["--train.num-steps", str(self.steps)]
        config = tyro.cli(ExperimentConfig, default=default, args=arguments, prog=f"scmbert pretrain {self.experiment}")
        if self.corpus is None or self.run_dir is None:
            raise ConfigError("pretrain needs --corpus DIR and --run-dir DIR.")
        if self.num_processes > 1:
            from scmbert_jax.parallel.multihost import join

            join(self.coordinator, self.num_processes, self.process_index)

        from data_pipelines.collate import TokenSampling
        from data_pipelines.corpus import open_corpus
        from data_pipelines.input_pipeline import BatchReader
        from data_pipelines.training_data import CorpusData
        from scmbert_jax.training.loop import pretrain

        corpus = open_corpus(self.corpus)
        in_use = config.modalities.in_use()
        reader = BatchReader(
            corpus,
            {name: TokenSampling(modality.num_tokens, modality.zero_fraction) for name, modality in in_use.items()},
            seed=config.seed,
            global_batch_size=config.data.global_batch_size,
            num_streams=config.data.num_streams,
            window_blocks=config.data.window_blocks,
            covariates=config.model.covariates,
            process_index=self.process_index,
            process_count=self.num_processes,
        )
        target_sums = {name: modality.target_sum for name, modality in in_use.items()}
        outcome = pretrain(config, CorpusData(corpus, reader, self.reader, target_sums), self.run_dir)
        if self.process_index == 0:
            how = "stopped by a signal; the same command continues" if outcome.interrupted else "done"
            _say(f"{self.run_dir}: step {outcome.step} of {config.train.num_steps}, {how}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write the newest checkpoint of a run as a self-contained model folder.

    Example:  scmbert export runs/1 my_model
    """

    run_dir: tyro.conf.Positional[RunFolder]
    """Written by scmbert pretrain."""
    model_dir: tyro.conf.Positional[ModelFolder]
    """Folder to write; must not exist."""
    step: int | None = None
    """Of another checkpoint than the newest."""

    def run(self) -> int:
        from scmbert_jax.pretrained import export_model

        model = export_model(self.run_dir, self.model_dir, self.step)
        print(f"{self.model_dir}: model of step {model.info['step']}, {model.feature_space.num_features:,} features")
        return 0


@dataclass(frozen=True)
class Embed:
    """Add cell embeddings to a copy of a file, as obsm["X_scmbert"].

    Example:  scmbert embed my_model cells.h5ad -o embedded.h5ad
    """

    model_dir: tyro.conf.Positional[ModelFolder]
    """Written by scmbert export."""
    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """.h5ad (or .h5mu for an .h5mu)."""
    organism: Organism = None
    """Taken from the gene names when left out."""
    assembly: str | None = None
    """Genome build of regions; the model's when left out."""
    batch_size: int = 64
    """Cells per device call; changes speed and memory only."""

    def run(self) -> int:
        from scmbert_jax.pretrained import load_model
        from scmbert_jax.tasks.embed import embed_dataset
        from scmbert_jax.tasks.write_embedding import check_output, write_embedding

        check_output(self.output, self.file)
        model = load_model(self.model_dir)
        result = embed_dataset(
            model,
            self.file,
            organism=self.organism,
            assembly=self.assembly,
            batch_size=self.batch_size,
            progress=_progress("embed"),
        )
        for name, overlap in result.overlaps.items():
            _say(f"{name}: {overlap.summary()}")
        if result.num_empty:
            _say(f"{result.num_empty:,} cells have no counts of the model's features: their embedding is nan")
        write_embedding(self.output, self.file, model, result)
        print(f"{self.output}: obsm['X_scmbert'] of {len(result.embeddings):,} cells x {result.embeddings.shape[1]}")
        return 0


@dataclass(frozen=True)
class EvaluateProbe:
    """Score embeddings by linear and kNN probes of the cell type on held-out technical batches.

    Beside the trained model stand the same model untrained, PCA and the majority class.

    Example:  scmbert evaluate probe --model my_model --report report.html
              scmbert evaluate probe --model my_model --data cells.h5ad --json
    """

    model: Path
    """Model folder (scmbert export)."""
    data: str = "example:pbmc_mosaic"
    """Labelled cells: obs columns for cell_type and technical_batch."""
    num_seeds: int = 5
    """Embeddings of the trained model, and untrained models, that are scored; the spread gives the interval."""
    organism: Organism = None
    """Taken from the gene names when left out."""
    assembly: str | None = None
    """Genome build of regions; the model's when left out."""
    run_dir: Path | None = None
    """Run folder, for the loss curve of the report."""
    report: Path | None = None
    """Write report.html here."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from scmbert_jax.evaluation.probe_suite import probe_model, write_probe_report
        from scmbert_jax.pretrained import load_model
        from scmbert_jax.training.run_folder import read_metrics

        if self.num_seeds < 1:
            raise ConfigError(f"--num-seeds {self.num_seeds}: expected 1 or more.")
        # Whatever can be refused is refused before the work, which takes minutes.
        if self.report is not None and not os.access(self.report.parent, os.W_OK):
            raise ConfigError(f"--report {self.report}: {self.report.parent} is no folder that can be written to.")
        rows = []
        if self.run_dir is not None:
            if not (self.run_dir / "metrics.jsonl").is_file():
                raise CheckpointError(f"{self.run_dir}: not a run folder (no metrics.jsonl in it).")
            rows = read_metrics(self.run_dir / "metrics.jsonl")
        model = load_model(self.model)
        result = probe_model(
            model, self.data, num_seeds=self.num_seeds, organism=self.organism, assembly=self.assembly, say=_say
        )
        _print_json(result.to_dict()) if self.json else print(result.text())
        if self.report is not None:
            info = {"model": str(self.model), "step": model.info["step"], **model.info["provenance"]}
            write_probe_report(self.report, result, info, rows)
            _say(f"report: {self.report}")
        return 0


VERBS: dict[str, Any] = {
    "doctor": Doctor,
    "corpus": {"build": CorpusBuild, "info": CorpusInfo, "verify": CorpusVerify},
    "pretrain": Pretrain,
    "export": Export,
    "embed": Embed,
    "evaluate": {"probe": EvaluateProbe},
}


def _progress(what: str) -> Callable[[int, int], None] | None:
    """A progress bar for a terminal; None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    task = progress.add_task(what, total=None)
    progress.start()

    def update(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)
        if done >= total:
            progress.stop()

    return update


def _staged_progress() -> Callable[[str, int, int], None] | None:
    """As `_progress`, for work in several stages: one bar each."""
    bars: dict[str, Callable[[int, int], None] | None] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = _progress(stage)
        bar = bars[stage]
        if bar is not None:
            bar(done, total)

    return update if sys.stderr.isatty() else None


def _group_help(prog: str, group: dict[str, Any]) -> str:
    lines = [f"usage: {prog} VERB ...    ({prog} VERB --help says more, with an example)", ""]
    for name, verb in group.items():
        if isinstance(verb, dict):
            lines += [f"  {name + ' ' + inner:18} {_summary(cls)}" for inner, cls in verb.items()]
        else:
            lines.append(f"  {name:18} {_summary(verb)}")
    if prog == "scmbert":
        lines += ["", "  --debug            show the traceback of an error", "  --version"]
    return "\n".join(lines)


def _summary(verb: type) -> str:
    return (verb.__doc__ or "").splitlines()[0]


def _parse(arguments: list[str]) -> Any:
    """The verb with its arguments. Prints help and exits for --help; raises `ConfigError` for an unknown verb."""
    node, prog = VERBS, "scmbert"
    while isinstance(node, dict):
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_group_help(prog, node))
            raise SystemExit(0 if arguments else 2)
        word, *arguments = arguments
        if word not in node:
            near = difflib.get_close_matches(word, node, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{prog} {word}: no such verb; there are {', '.join(node)}.{hint}")
        node, prog = node[word], f"{prog} {word}"
    if node is Pretrain:
        verb, overrides = tyro.cli(Pretrain, args=arguments, prog=prog, return_unknown_args=True)
        return replace(verb, overrides=tuple(overrides))
    return tyro.cli(node, args=arguments, prog=prog)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `scmbert`; the exit code. Errors a user can cause are printed without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(__version__)
        return 0
    debug = "--debug" in arguments
    try:
        return _parse([argument for argument in arguments if argument != "--debug"]).run()
    except UserError as error:
        if debug:
            raise
        _say(f"scmbert: {error}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _say("scmbert: interrupted")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
