"""Verbs for the types of cells: annotate fit, annotate predict, annotate once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scmbert_jax.commands.terminal import (
    CountsFile,
    LowCoverage,
    ModelAssembly,
    Organism,
    Output,
    Overwrite,
    progress,
    show,
)
from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import say

if TYPE_CHECKING:
    from scmbert_jax.annotation.annotator import Annotator
    from scmbert_jax.annotation.fit import FitOptions
    from scmbert_jax.annotation.predict import Annotations
    from scmbert_jax.annotation.representation import Reading
    from scmbert_jax.pretrained import PretrainedModel

AnnotatorFolder = Annotated[Path, tyro.conf.arg(metavar="ANNOTATOR_DIR")]


@dataclass(frozen=True)
class FitArguments:
    """How an annotator is fitted to labelled cells."""

    method: str | None = None
    """pca: principal components of the labelled cells, no model. probe: the frozen model's embedding. full, last:N,
    lora:R: fine-tune all, the last N blocks, or matrices of rank R. scbert: scBERT's head on the states of all genes.
    Default: probe, without a model pca."""
    label_key: str | None = None
    """Column of obs that holds the types. Default: what looks like it (cell_type, celltype, ...)."""
    labels: Path | None = None
    """.csv or .tsv of cell id and label, where the types are not in the file."""
    donor_key: str | None = None
    """Column of obs that holds the donors, who are held out whole. Default: what looks like it (donor, ...)."""
    hierarchy: str | None = None
    """cell-ontology, or a table with columns child,parent: which type is a kind of which. A coarse label then teaches
    that its cell is one of the types below it."""
    min_cells: int = 5
    """Types of fewer labelled cells are left out."""
    balance: float = 0.0
    """0: types have say by their cells; 1: all equally."""
    logit_adjustment: float = 0.0
    """Times the log of each type's fraction, added to logits while fitting: rare types are found; 1 is usual."""
    focal: float = 0.0
    """Gamma of the focal loss, by which cells that are easily told weigh less; 2 is usual."""
    components: int | None = None
    """Principal components of each modality, for --method pca. Default: 30, of ATAC 50."""
    ranks: bool = False
    """--method pca of RNA by ranks within the cell instead of log counts: labelled cells and others of different depth
    or chemistry compare better. Give a file of chosen genes: ranks of rarely expressed ones are noise."""
    coverage: float = 0.9
    """The fraction of the cells of a type whose sets are to hold it."""
    novelty: Literal["combined", "mahalanobis", "energy", "max_softmax", "knn"] = "combined"
    """How unlike all types a cell is."""
    novelty_quantile: float = 0.98
    """The fraction of held-out cells that are not to be called novel."""
    steps: int = 500
    """Of fine-tuning at most; it stops early when held-out cells get no better."""
    learning_rate: float | None = None
    """Of fine-tuning, at its peak. Default: by the method."""
    seed: int = 0
    """Of what is held out, and of fine-tuning."""


@dataclass(frozen=True)
class ReadingArguments:
    """How files are read."""

    organism: Organism = None
    assembly: ModelAssembly = None
    batch_size: int = 64
    """Cells per device call, fewer where cells are long; changes speed and memory only."""
    num_tokens: int | None = None
    """Most tokens of a cell, for each modality. Default: 4,096, or what training had."""
    allow_low_coverage: LowCoverage = False


@dataclass(frozen=True)
class AnnotateFit:
    """Fit an annotator to labelled cells.

    It is calibrated on donors that are held out where the file knows donors, else on cells.

    Example:  scmbert annotate fit labelled.h5ad -o my_annotator --method pca --label-key cell_type
              scmbert annotate fit labelled.h5ad --model my_model -o my_annotator --method last:1
    """

    file: tyro.conf.Positional[CountsFile]
    """Raw counts with labels; whatever scmbert doctor takes."""
    output: Output
    """Folder of the annotator."""
    model: Path | None = None
    """Model folder (scmbert export); --method pca needs none."""
    fit: Annotated[FitArguments, tyro.conf.arg(name="")] = FitArguments()
    read: Annotated[ReadingArguments, tyro.conf.arg(name="")] = ReadingArguments()
    work_dir: Path | None = None
    """Where fine-tuning keeps its checkpoints: the same command continues from them."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.outputs import ANNOTATOR, check_output_folder

        inputs = [self.file, self.model, self.fit.labels, self.fit.hierarchy]
        check_output_folder(self.output, ANNOTATOR, inputs, self.overwrite)
        annotator = _fitted(self.model, self.file, self.fit, self.read, self.work_dir)
        annotator.save(self.output, self.overwrite)
        _show_fit(self.output, annotator)
        return 0


@dataclass(frozen=True)
class AnnotatePredict:
    """Add the type of every cell to a copy of a file.

    Writes obs["scmbert_label"], its probability, the set of types it may be of, how novel the cell is, and a status:
    assigned, ambiguous, novel or unsupported.

    Example:  scmbert annotate predict example:blood_types cells.h5ad -o annotated.h5ad
              scmbert annotate predict my_annotator cells.h5ad -o annotated.h5ad --majority-voting leiden
    """

    annotator_dir: tyro.conf.Positional[AnnotatorFolder]
    """Written by scmbert annotate fit, or example:blood_types: types of human blood, with the package."""
    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    output: Output
    """.h5ad (or .h5mu for an .h5mu). For a 10x or .zarr FILE it holds cells, metadata and types, no counts."""
    majority_voting: str | None = None
    """Column of obs with a clustering: obs["scmbert_majority_voting"] is the label that most of a cluster have."""
    read: Annotated[ReadingArguments, tyro.conf.arg(name="")] = ReadingArguments()
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.annotation.annotator import load_annotator
        from scmbert_jax.tasks.write_embedding import check_output

        check_output(self.output, self.file, self.overwrite)
        annotator = load_annotator(self.annotator_dir)
        _predict(annotator, self.file, self.output, self.majority_voting, self.read, self.overwrite)
        return 0


@dataclass(frozen=True)
class AnnotateOnce:
    """Fit to labelled cells and annotate others, in one call; `once` may be left out.

    Example:  scmbert annotate once --reference labelled.h5ad --query cells.h5ad -o annotated.h5ad
              scmbert annotate once --reference labelled.h5ad --query cells.h5ad --model my_model -o annotated.h5ad
    """

    reference: CountsFile
    """Raw counts with labels."""
    query: CountsFile
    """Raw counts of the cells to be annotated."""
    output: Output
    """.h5ad (or .h5mu for an .h5mu query)."""
    model: Path | None = None
    """Model folder (scmbert export). Default: none, principal components of the reference."""
    annotator: Path | None = None
    """Also keep the annotator, in this folder."""
    majority_voting: str | None = None
    """Column of obs of the query with a clustering, whose clusters get one label each."""
    fit: Annotated[FitArguments, tyro.conf.arg(name="")] = FitArguments()
    read: Annotated[ReadingArguments, tyro.conf.arg(name="")] = ReadingArguments()
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.outputs import ANNOTATOR, check_output_folder
        from scmbert_jax.tasks.write_embedding import check_output

        check_output(self.output, self.query, self.overwrite)
        if self.annotator is not None:
            inputs = [self.reference, self.query, self.model, self.fit.labels, self.fit.hierarchy]
            check_output_folder(self.annotator, ANNOTATOR, inputs, self.overwrite)
        annotator = _fitted(self.model, self.reference, self.fit, self.read, None)
        if self.annotator is not None:
            annotator.save(self.annotator, self.overwrite)
            _show_fit(self.annotator, annotator)
        _predict(annotator, self.query, self.output, self.majority_voting, self.read, self.overwrite)
        return 0


def _fitted(
    model_dir: Path | None, file: str, given: FitArguments, read: ReadingArguments, work_dir: Path | None
) -> "Annotator":
    from scmbert_jax.annotation.fit import fit

    options = _options(given, model_dir)
    if work_dir is not None and options.is_linear:
        raise ConfigError(f"--work-dir {work_dir}: of fine-tuning; --method {options.method} takes seconds.")
    reading = _reading(read)._replace(progress=progress("embed"))
    return fit(
        _model(model_dir, read),
        file,
        options,
        reading=reading,
        work_folder=work_dir,
        steps_progress=None if options.is_linear else progress("fine-tune"),
        say=say,
    )


def _model(folder: Path | None, read: ReadingArguments) -> "PretrainedModel | None":
    from scmbert_jax.pretrained import load_model

    return None if folder is None else load_model(folder, allow_low_coverage=read.allow_low_coverage)


def _options(given: FitArguments, model_dir: Path | None) -> "FitOptions":
    from scmbert_jax.annotation.fit import FitOptions
    from scmbert_jax.annotation.linear_head import Imbalance

    options = FitOptions(
        method=given.method or ("pca" if model_dir is None else "probe"),
        label_key=given.label_key,
        labels=given.labels,
        donor_key=given.donor_key,
        hierarchy=given.hierarchy,
        min_cells=given.min_cells,
        imbalance=Imbalance(given.balance, given.logit_adjustment, given.focal),
        components=given.components,
        ranks=given.ranks,
        coverage=given.coverage,
        novelty=given.novelty,
        novelty_quantile=given.novelty_quantile,
        seed=given.seed,
    )
    if options.is_linear:
        return options
    from scmbert_jax.annotation.fine_tuning import FineTuningOptions

    tuning = FineTuningOptions(num_steps=given.steps, learning_rate=given.learning_rate, seed=given.seed)
    return replace(options, fine_tuning=tuning)


def _reading(given: ReadingArguments) -> "Reading":
    from scmbert_jax.annotation.representation import Reading

    return Reading(given.organism, given.assembly, given.allow_low_coverage, given.num_tokens, given.batch_size)


def _predict(
    annotator: "Annotator", file: str, output: Path, majority: str | None, read: ReadingArguments, overwrite: bool
) -> "Annotations":
    from scmbert_jax.annotation.predict import predict
    from scmbert_jax.annotation.write_annotation import write_annotation

    reading = _reading(read)._replace(progress=progress("annotate"))
    found = predict(annotator, file, reading=reading, majority_voting=majority, say=say)
    write_annotation(output, file, found, overwrite)
    counts = ", ".join(f"{number:,} {status}" for status, number in found.counts().items())
    show(f"{output}: obs['scmbert_label'] of {len(found.labels):,} cells: {counts}")
    return found


def _show_fit(folder: Path, annotator: "Annotator") -> None:
    held = annotator.info["held_out"]
    show(f"{folder}: {len(annotator.types)} types by {annotator.method}, of {annotator.info['num_cells']:,} cells")
    show(
        f"{held['cells']:,} held-out cells ({held['by']}): accuracy {held['accuracy']:.3f}, macro-F1 "
        f"{held['macro_f1']:.3f}, calibration error {held['expected_calibration_error']:.3f}, sets of "
        f"{held['mean_set_size']:.2f} types hold the label of {held['set_coverage']:.1%}"
    )
