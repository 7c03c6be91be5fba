"""Verbs that score a model: evaluate probe, evaluate pretraining, evaluate translation; runs: evaluate ladder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from scmbert_jax.commands.terminal import (
    Json,
    LowCoverage,
    ModelAssembly,
    ObsFields,
    Organism,
    Output,
    Overwrite,
    Report,
    RunFolder,
    listed,
    obs_fields_of,
    print_json,
    print_tables,
    require_positive,
)
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.outputs import check_output_file
from scmbert_jax.plain_text import say

if TYPE_CHECKING:
    from scmbert_jax.training.goodput import Goodput


@dataclass(frozen=True)
class EvaluateProbe:
    """Score embeddings by linear and kNN probes of the cell type on held-out cells.

    Technical batches are held out, or random parts of each type if there is one batch. The trained model is compared
    with its linear path alone, the same model untrained, PCA and the majority class.

    Example:  scmbert evaluate probe --model my_model --report report.html
              scmbert evaluate probe --model my_model --data cells.h5ad --obs-field cell_type=louvain
              scmbert evaluate probe --model my_model --data cells.h5ad --test-batches day2 day3 --json
    """

    model: Path
    """Model folder (scmbert export)."""
    data: str = "example:pbmc_mosaic"
    """Labelled cells: an obs column for cell_type, perhaps one for technical_batch."""
    obs_field: ObsFields = ()
    """Which column of obs holds cell_type or technical_batch, e.g. cell_type=louvain. technical_batch= means none:
    then random parts are held out."""
    num_seeds: int = 5
    """Embeddings of the trained model, and untrained models, that are scored; the spread gives the interval."""
    test_batches: tuple[str, ...] = ()
    """Technical batches that are held out together; by default each batch (or random part) in turn."""
    organism: Organism = None
    assembly: ModelAssembly = None
    run_dir: Path | None = None
    """Run folder, for the loss curve of the report and where the time of training went."""
    report: Report = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.evaluation.probe.suite import probe_model, write_probe_report
        from scmbert_jax.pretrained import load_model

        require_positive(num_seeds=self.num_seeds)
        # Whatever can be refused is refused before the work, which takes minutes.
        check_report(self.report, [self.data], self.overwrite)
        rows, goodput = _of_run(self.run_dir)
        model = load_model(self.model, allow_low_coverage=self.allow_low_coverage)
        result = probe_model(
            model,
            self.data,
            num_seeds=self.num_seeds,
            test_batches=listed(self.test_batches),
            obs_fields=obs_fields_of(self.obs_field),
            organism=self.organism,
            assembly=self.assembly,
            say=say,
        )
        print_json(result.to_dict()) if self.json else print_tables(result.text())
        if self.report is not None:
            info = {"model": str(self.model), "step": model.info["step"], **model.info["provenance"]}
            write_probe_report(self.report, result, info, rows, goodput)
            say(f"report: {self.report}")
        return 0


@dataclass(frozen=True)
class EvaluatePretraining:
    """Score the values that pre-training predicts, in bits per masked token, on cells it has not seen.

    By modality and expression level, compared with each feature alone, the cell's rate, the model's linear path alone,
    and PCA with a ridge fitted to the same task on --training. Cells that the model or a baseline has seen are left
    out.

    Example:  scmbert evaluate pretraining --model my_model --data other_donors.h5ad --training my_corpus
              scmbert evaluate pretraining --model my_model --data cells.h5ad --training my_corpus
                  --run-dir runs/1 --report report.html
    """

    model: Path
    """Model folder (scmbert export), trained with masked_modeling."""
    data: str
    """Cells with raw counts; those that training has not seen are scored."""
    training: str
    """What the baselines are fitted on: the corpus of the model, or a file of cells like those it was trained on."""
    num_cells: int = 1000
    """Cells that are scored, drawn at random."""
    obs_field: ObsFields = ()
    """Which column of obs holds the donor, e.g. donor=patient: of 5 donors or more, intervals are over donors."""
    seed: int = 0
    """Which tokens a cell shows and which of them are masked."""
    organism: Organism = None
    assembly: ModelAssembly = None
    run_dir: Path | None = None
    """Run folder, for the curves of the report: validation with the baselines, losses, where the time went."""
    report: Report = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.evaluation.pretraining.suite import evaluate_pretraining, write_pretraining_report
        from scmbert_jax.pretrained import load_model

        if self.num_cells < 10:
            raise ConfigError(f"--num-cells {self.num_cells}: expected 10 or more.")
        check_report(self.report, [self.data, self.training], self.overwrite)
        rows, goodput = _of_run(self.run_dir)
        model = load_model(self.model, allow_low_coverage=self.allow_low_coverage)
        result = evaluate_pretraining(
            model,
            self.data,
            self.training,
            num_cells=self.num_cells,
            obs_fields=obs_fields_of(self.obs_field),
            organism=self.organism,
            assembly=self.assembly,
            seed=self.seed,
            say=say,
        )
        print_json(result.to_dict()) if self.json else print_tables(result.text())
        if self.report is not None:
            info = {"model": str(self.model), "step": model.info["step"], **model.info["provenance"]}
            write_pretraining_report(self.report, result, info, rows, goodput)
            say(f"report: {self.report}")
        return 0


@dataclass(frozen=True)
class EvaluateTranslation:
    """Score the translation of one modality into another on held-out cells, compared with baselines and controls.

    Without --model: the baselines alone. A folder as --data: the files of OpenProblems, NeurIPS 2021 or Kaggle 2022,
    scored by their own definitions.

    Example:  scmbert evaluate translation --model seed0 seed1 --train-batches p3 --test-batches p4
              scmbert evaluate translation --data rna.h5ad+atac.h5ad --assembly mm10 --test-batches 09B 09C 09H
    """

    model: tuple[Path, ...] = ()
    """Model folders (scmbert export), the seeds of one method. None may have trained on pairs of the held-out cells."""
    data: str = "example:pbmc_mosaic"
    """Cells with both modalities and technical batches or cell types; or a folder of a public benchmark."""
    train_batches: tuple[str, ...] = ()
    """Technical batches that baselines train on; by default all but the held-out ones."""
    test_batches: tuple[str, ...] = ()
    """Technical batches that are held out; by default each in turn."""
    held_out_types: tuple[str, ...] = ()
    """Hold out cell types instead of batches."""
    directions: tuple[str, ...] = ()
    """Such as "rna>protein"; by default all that the data has."""
    skip: tuple[str, ...] = ()
    """Baselines to leave out, by name ("BABEL-type network" is the slow one)."""
    baselines: bool = True
    """Off: score the models alone."""
    features: tuple[str, ...] = ()
    """Features whose predictions the report draws; by default those that vary most."""
    num_seeds: int = 5
    """Fits of each baseline on random 80% of the training cells; the spread gives the interval."""
    name: str = "scMBERT"
    """Name of the models in the table."""
    organism: Organism = None
    assembly: str | None = None
    """Genome build of regions."""
    report: Report = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.evaluation.translation.suite import (
            TranslationChoice,
            TranslationSettings,
            evaluate_translation,
            write_translation_report,
        )
        from scmbert_jax.pretrained import load_model

        require_positive(num_seeds=self.num_seeds)
        check_report(self.report, [self.data], self.overwrite)
        if Path(self.data).is_dir():
            return self._score_folder()
        choice = TranslationChoice(
            train_batches=listed(self.train_batches),
            test_batches=listed(self.test_batches),
            held_out_types=listed(self.held_out_types),
            directions=listed(self.directions),
            skip=listed(self.skip),
            baselines=self.baselines,
            features=listed(self.features),
        )
        report = evaluate_translation(
            [load_model(folder, allow_low_coverage=self.allow_low_coverage) for folder in self.model],
            self.data,
            choice,
            name=self.name,
            settings=TranslationSettings(num_seeds=self.num_seeds),
            organism=self.organism,
            assembly=self.assembly,
            say=say,
        )
        print_json(report.to_dict()) if self.json else print_tables(report.text())
        if self.report is not None:
            write_translation_report(self.report, report, {"models": [str(folder) for folder in self.model]})
            say(f"report: {self.report}")
        return 0

    def _score_folder(self) -> int:
        from scmbert_jax.evaluation.translation.task_formats import score_folder

        if self.model or self.report is not None:
            raise ConfigError(
                f"--data {self.data}: a benchmark's folder holds normalised values, which a model does not read; "
                "baselines and the predictions in it are scored. Leave --model and --report out."
            )
        scores = score_folder(Path(self.data), say)
        print_json(scores.to_dict()) if self.json else print_tables(scores.text())
        return 0


@dataclass(frozen=True)
class EvaluateLadder:
    """Draw what runs of several sizes reach on held-out cells against the compute they took, and print it as a table.

    Seeds of one rung share a colour. Operations are counted as for scmbert plan, for cells with as many tokens as
    they may have.

    Example:  scmbert evaluate ladder runs/small runs/medium runs/large -o ladder.png
              scmbert evaluate ladder runs/* -o ladder.svg --metric validation/masked/rna/bits_profile
                  --beside validation/masked/rna/bits_pca
    """

    run_dirs: tyro.conf.Positional[tuple[RunFolder, ...]]
    """Written by scmbert pretrain with held-out cells and --validation.every N."""
    output: Output
    """.png, .svg or .pdf."""
    metric: str = "validation/loss/loss"
    """A field of metrics.jsonl."""
    beside: tuple[str, ...] = ()
    """Other fields that are drawn as lines, such as those of a baseline."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.evaluation.pretraining.ladder import ladder_figure, ladder_table, read_curve

        if self.output.suffix not in (".png", ".svg", ".pdf"):
            raise ConfigError(f"{self.output}: expected a name that ends in .png, .svg or .pdf.")
        if not self.run_dirs:
            raise ConfigError("evaluate ladder: no run is given; give the folders of at least one.")
        check_output_file(self.output, self.run_dirs, self.overwrite, ConfigError)
        curves = [read_curve(folder, self.metric, self.beside) for folder in self.run_dirs]
        print_tables(ladder_table(curves, self.metric))
        ladder_figure(curves, self.metric).savefig(self.output, dpi=160)
        say(f"figure: {self.output}")
        return 0


def check_report(report: Path | None, inputs: Sequence[object], overwrite: bool) -> None:
    """Raises ConfigError where no report may be written (`check_output_file`)."""
    if report is not None:
        check_output_file(report, inputs, overwrite, ConfigError)


def _of_run(run_dir: Path | None) -> "tuple[list[dict[str, Any]], Goodput | None]":
    """Rows of metrics.jsonl and where the time went; nothing without a run. Raises `CheckpointError` for no run."""
    from scmbert_jax.training.goodput import read_goodput
    from scmbert_jax.training.run_folder import read_metrics

    if run_dir is None:
        return [], None
    if not (run_dir / "metrics.jsonl").is_file():
        raise CheckpointError(f"{run_dir}: not a run folder (no metrics.jsonl in it).")
    return read_metrics(run_dir / "metrics.jsonl"), read_goodput(run_dir)
