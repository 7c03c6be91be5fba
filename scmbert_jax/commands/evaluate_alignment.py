"""Verbs that score modalities brought together: evaluate matching, evaluate integration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scmbert_jax.commands.evaluate import check_report
from scmbert_jax.commands.terminal import (
    Assembly,
    Json,
    LowCoverage,
    ObsFields,
    Organism,
    Overwrite,
    Report,
    obs_fields_of,
    print_json,
    print_tables,
    require_positive,
)
from scmbert_jax.plain_text import say


@dataclass(frozen=True)
class EvaluateMatching:
    """Score matching (which profiles of two modalities are of one cell) and label transfer between modalities.

    The model is compared with CCA and ridge on the training pairs, pseudo-pairs and links without pairs, the cell type
    alone, and chance. Without --model the baselines alone are scored.

    Example:  scmbert evaluate matching
              scmbert evaluate matching --model seed0 seed1 seed2 --test-batches p4 --report report.html
    """

    model: tuple[Path, ...] = ()
    """Model folders (scmbert export): seeds of one method. One alone is scored with several token draws."""
    data: str = "example:pbmc_mosaic"
    """Cells of which some were measured in two modalities; obs columns for technical_batch and cell_type."""
    train_batches: tuple[str, ...] = ()
    """Technical batches whose pairs baselines learn from; by default all but the test batches."""
    test_batches: tuple[str, ...] = ()
    """Technical batches that are scored; by default each in turn."""
    held_out_types: tuple[str, ...] = ()
    """Cell types that are scored instead, and that baselines do not see."""
    num_seeds: int = 5
    """Training subsamples of each baseline; the spread gives the interval."""
    baselines: bool = True
    """Off: score the models alone."""
    labels_only: bool = False
    """Score label transfer alone: in a mosaic its cells have no partner, so models may know all pairs."""
    space: Literal["cell", "aligned"] | None = None
    """Embeddings of the model. Default: the contrastive (aligned) ones if it has them."""
    organism: Organism = None
    assembly: Assembly = None
    report: Report = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.evaluation.alignment.matching import evaluate_matching, write_matching_report
        from scmbert_jax.pretrained import load_model

        require_positive(num_seeds=self.num_seeds)
        check_report(self.report, [self.data], self.overwrite)
        models = [load_model(folder, allow_low_coverage=self.allow_low_coverage) for folder in self.model]
        found = evaluate_matching(
            self.data,
            models=models,
            train_batches=self.train_batches,
            test_batches=self.test_batches,
            held_out_types=self.held_out_types,
            num_seeds=self.num_seeds,
            baselines=self.baselines,
            labels_only=self.labels_only,
            space=self.space,
            organism=self.organism,
            assembly=self.assembly,
            say=say,
        )
        print_json(found.result.to_dict()) if self.json else print_tables(found.result.text())
        if self.report is not None:
            write_matching_report(self.report, found, _run_info(self.model, models))
            say(f"report: {self.report}")
        return 0


@dataclass(frozen=True)
class EvaluateIntegration:
    """Score one embedding of all cells: cell types apart, technical batches mixed (scib-metrics).

    The model is compared with its linear path alone, PCA, PCA with batches centred or corrected by soft clusters,
    ComBat, Harmony and scVI, CCA on the pairs, and pseudo-pairs. Without --model the baselines alone are scored. If
    there is one technical batch, only the separation of cell types is scored.

    Example:  scmbert evaluate integration --model my_model --report report.html
              scmbert evaluate integration --data cells.h5ad --batch-key donor --label-key louvain
    """

    model: tuple[Path, ...] = ()
    """Model folders (scmbert export): seeds of one method. One alone is scored with several token draws."""
    data: str = "example:pbmc_mosaic"
    """Labelled cells: cell_type in obs, perhaps technical_batch."""
    obs_field: ObsFields = ()
    """Which column of obs holds cell_type or technical_batch, e.g. cell_type=louvain."""
    batch_key: str | None = None
    """The same as --obs-field technical_batch=COLUMN."""
    label_key: str | None = None
    """The same as --obs-field cell_type=COLUMN."""
    peer_python: Path | None = None
    """A Python that has harmonypy, scvi-tools or both (python -m venv peer; peer/bin/pip install harmonypy scvi-tools).
    Without it there are no rows of Harmony and scVI."""
    num_seeds: int = 5
    """Subsamples each baseline is fitted to; the spread gives the interval."""
    space: Literal["cell", "aligned"] | None = None
    """Embeddings of the model. Default: both if it was trained for aligned ones, else those of the encoder (cell)."""
    organism: Organism = None
    assembly: Assembly = None
    report: Report = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.integration_peers import integration_peers
        from scmbert_jax.evaluation.alignment.integration import evaluate_integration, write_integration_report
        from scmbert_jax.pretrained import load_model

        require_positive(num_seeds=self.num_seeds)
        check_report(self.report, [self.data], self.overwrite)
        models = [load_model(folder, allow_low_coverage=self.allow_low_coverage) for folder in self.model]
        found = evaluate_integration(
            self.data,
            models=models,
            num_seeds=self.num_seeds,
            space=self.space,
            obs_fields=self._obs_fields(),
            others=integration_peers(self.peer_python),
            organism=self.organism,
            assembly=self.assembly,
            say=say,
        )
        print_json(found.result.to_dict()) if self.json else print_tables(found.result.text())
        if self.report is not None:
            write_integration_report(self.report, found, _run_info(self.model, models))
            say(f"report: {self.report}")
        return 0

    def _obs_fields(self) -> dict[str, str | None] | None:
        keys: dict[str, str | None] = {"technical_batch": self.batch_key, "cell_type": self.label_key}
        return {**(obs_fields_of(self.obs_field) or {}), **{field: key for field, key in keys.items() if key}} or None


def _run_info(folders: tuple[Path, ...], models: list[Any]) -> dict[str, Any]:
    return {
        str(folder): {"step": model.info["step"], **model.info["provenance"]}
        for folder, model in zip(folders, models, strict=True)
    }
