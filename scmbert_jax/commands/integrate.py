"""The verb that mixes technical batches: integrate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
from scmbert_jax.plain_text import say


@dataclass(frozen=True)
class Integrate:
    """Add an embedding in which technical batches are mixed to a copy of a file, as obsm["X_scmbert_integrated"].

    For clusters and a UMAP; counts stay as they are. A difference that is of the cells and not of the batches can be
    taken off with it: give --label-key to be told.

    Example:  scmbert integrate cells.h5ad --batch-key donor -o integrated.h5ad
              scmbert integrate cells.h5ad --batch-key library --model my_model --label-key cell_type -o integrated.h5ad
    """

    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    output: Output
    """.h5ad (or .h5mu for an .h5mu). For a 10x or .zarr FILE it holds cells, metadata and embedding, no counts."""
    batch_key: str
    """Column of obs that says in which library, experiment or donor a cell was measured."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL_DIR")] = None
    """Written by scmbert export: its embedding is corrected. Default: principal components of these cells."""
    label_key: str | None = None
    """Column of obs with labels that should stay apart. Nothing is fitted to them; what was lost of them is told."""
    diversity: float = 2.0
    """How much a cluster that lacks a batch is avoided; 0: batches are not mixed by force. Less keeps more of what only
    some batches have."""
    ridge: float = 1.0
    """Holds the correction back in clusters that hold few cells of a batch."""
    seed: int = 0
    """Of where the clusters start."""
    organism: Organism = None
    assembly: ModelAssembly = None
    batch_size: int = 64
    """Cells per device call of a model; changes speed and memory only."""
    num_tokens: int | None = None
    """Most tokens of a cell that a model is shown, for each modality; as of scmbert embed."""
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from dataclasses import replace

        from scmbert_jax.integration.integrate import KEY, IntegrateOptions, integrate_dataset, write_integrated
        from scmbert_jax.pretrained import load_model
        from scmbert_jax.tasks.soft_clusters import USUAL
        from scmbert_jax.tasks.write_embedding import check_output

        check_output(self.output, self.file, self.overwrite)
        clusters = replace(USUAL, diversity=self.diversity, ridge=self.ridge)
        options = IntegrateOptions(self.batch_key, self.label_key, clusters, self.seed)
        model = None if self.model is None else load_model(self.model, allow_low_coverage=self.allow_low_coverage)
        found = integrate_dataset(
            self.file,
            options,
            model,
            organism=self.organism,
            assembly=self.assembly,
            batch_size=self.batch_size,
            num_tokens=self.num_tokens,
            progress=progress("embed"),
        )
        without = found.provenance["cells_without_embedding"]
        if without:
            say(f"{without:,} cells have no counts of the features that are read: their embedding is nan")
        for line in found.in_words():
            say(line)
        write_integrated(self.output, self.file, found, self.overwrite)
        show(f"{self.output}: obsm['{KEY}'] of {len(found.embedding):,} cells x {found.embedding.shape[1]}")
        return 0
