"""The verb that scores cell types: evaluate annotation."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scmbert_jax.commands.terminal import (
    Assembly,
    Json,
    LowCoverage,
    ObsFields,
    Organism,
    listed,
    obs_fields_of,
    print_json,
    print_tables,
    progress,
    require_positive,
)
from scmbert_jax.errors import ConfigError, EvaluationError
from scmbert_jax.outputs import ANNOTATION_SCORES, begin_scores
from scmbert_jax.plain_text import say

if TYPE_CHECKING:
    from scmbert_jax.evaluation.annotation.suite import Ours


@dataclass(frozen=True)
class EvaluateAnnotation:
    """Score the cell types that models and simple classifiers give to cells they have not seen.

    Every baseline stands twice, with the settings it comes with and with settings chosen on training cells. With
    --output, what was fitted is kept: the same command continues where it stopped.

    Example:  scmbert evaluate annotation --model my_model --data cells.h5ad -o scores
              scmbert evaluate annotation --data cells.h5ad --split donor type --per-type all 10 50 -o scores
              scmbert evaluate annotation --data a.h5ad --test-data b.h5ad --label-names names.csv -o scores
    """

    model: tuple[Path, ...] = ()
    """Model folders (scmbert export), the seeds of one method; without any, the baselines alone. Beside
    them stand the same model untrained, without gene identities, and its linear path."""
    data: str = "example:pbmc_mosaic"
    """Labelled cells with raw counts; an obs column for cell_type, perhaps for donor and technical_batch."""
    test_data: str | None = None
    """A second file with labels: fit on either and predict the other."""
    split: tuple[str, ...] = ()
    """What is held out: cell, donor, technical_batch, data_set (--test-data), type (each type in turn is new). Default:
    cell, or data_set where there are two files."""
    per_type: tuple[str, ...] = ("all",)
    """Labelled cells of each type that are learned from: all, or numbers such as 1 5 10 50 100."""
    label_names: Path | None = None
    """A table with columns label and name: one name for what files call differently; "" leaves cells out."""
    hierarchy: str | None = None
    """A table with columns child and parent, or cell-ontology: a label below the true one is right, too, in a column of
    its own."""
    obs_field: ObsFields = ()
    """Which column of obs holds cell_type, donor or technical_batch, e.g. cell_type=louvain."""
    modalities: tuple[str, ...] = ()
    """Of rna, protein, atac; default: all that the cells have."""
    only: tuple[str, ...] = ()
    """Methods to score, by name; default: all."""
    skip: tuple[str, ...] = ()
    """Methods to leave out, by name ("gradient boosting" and those on genes are the slow ones)."""
    method: tuple[str, ...] = ("probe",)
    """How models learn the types: probe, full, last:N (blocks), lora:R (rank), scbert. Each is scored beside
    its controls."""
    steps: int = 500
    """Steps of a fine-tuning at most; a left-out part of the cells may end it before."""
    name: str = "scMBERT"
    """Name of the models in the tables."""
    num_seeds: int = 5
    """Partitions into folds, or draws of labelled cells; the spread gives the interval."""
    workers: int | None = None
    """Processes that fit baselines; default: one for each CPU."""
    allow_identical_cells: bool = False
    """Continue even if identical cells (barcode and counts) are on both sides of a split."""
    organism: Organism = None
    assembly: Assembly = None
    allow_low_coverage: LowCoverage = False
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for annotation.json, annotation.md, report.html and the fits that are kept."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.annotation.label_tree import read_hierarchy
        from scmbert_jax.evaluation.annotation.cells import read_label_names
        from scmbert_jax.evaluation.annotation.choice import AnnotationChoice
        from scmbert_jax.evaluation.annotation.suite import (
            evaluate_annotation,
            write_annotation_reports,
        )

        require_positive(num_seeds=self.num_seeds, workers=self.workers, steps=self.steps)
        files = [self.data, *([self.test_data] if self.test_data is not None else [])]
        if self.output is not None:
            begin_scores(self.output, ANNOTATION_SCORES, files)
        report = evaluate_annotation(
            files,
            AnnotationChoice(
                splits=listed(self.split) or (("cell",) if self.test_data is None else ("data_set",)),
                per_type=_numbers(listed(self.per_type)),
                only=self.only,
                skip=self.skip,
                num_seeds=self.num_seeds,
                allow_identical_cells=self.allow_identical_cells,
                workers=self.workers or os.cpu_count() or 1,
                kept=None if self.output is None else self.output / "fits",
            ),
            ours=self._methods() if self.model else None,
            renamed=None if self.label_names is None else read_label_names(self.label_names),
            modalities=listed(self.modalities),
            hierarchy=None if self.hierarchy is None else read_hierarchy(self.hierarchy),
            organism=self.organism,
            assembly=self.assembly,
            obs_fields=obs_fields_of(self.obs_field),
            say=say,
            progress=progress("fits"),
        )
        print_json(report.to_dict()) if self.json else print_tables(report.text())
        if self.output is not None:
            models = {"models": [str(folder) for folder in self.model]}
            say(f"report: {write_annotation_reports(self.output, report, models)}")
        if report.failed:
            failed = [f"{f.method} ({f.case}): {f.reason}" for f in report.failures if f.kind == "failed"]
            raise EvaluationError(f"rows are missing because fits failed: {'; '.join(failed)}")
        return 0

    def _methods(self) -> "Ours":
        """What the suite asks for when it has read the cells."""
        from scmbert_jax.evaluation.annotation.ours import methods_of_models
        from scmbert_jax.pretrained import load_model

        models = [load_model(folder, allow_low_coverage=self.allow_low_coverage) for folder in self.model]
        return partial(methods_of_models, models, name=self.name, fitted=listed(self.method), steps=self.steps, say=say)


def _numbers(words: tuple[str, ...]) -> tuple[int | None, ...]:
    if unknown := [word for word in words if word != "all" and not word.isdecimal()]:
        raise ConfigError(f"--per-type {' '.join(unknown)}: expected all, or numbers of cells.")
    return tuple(None if word == "all" else int(word) for word in words)
