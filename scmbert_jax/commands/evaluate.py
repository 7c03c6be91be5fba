"""Verbs that score a model: evaluate probe."""

import os
from dataclasses import dataclass
from pathlib import Path

from scmbert_jax.commands.terminal import Organism, print_json, say
from scmbert_jax.errors import CheckpointError, ConfigError


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
            model, self.data, num_seeds=self.num_seeds, organism=self.organism, assembly=self.assembly, say=say
        )
        print_json(result.to_dict()) if self.json else print(result.text())
        if self.report is not None:
            info = {"model": str(self.model), "step": model.info["step"], **model.info["provenance"]}
            write_probe_report(self.report, result, info, rows)
            say(f"report: {self.report}")
        return 0
