"""Verbs that ask a model: embed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scmbert_jax.commands.terminal import CountsFile, ModelFolder, Organism, progress, say


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
            progress=progress("embed"),
        )
        for name, overlap in result.overlaps.items():
            say(f"{name}: {overlap.summary()}")
        if result.num_empty:
            say(f"{result.num_empty:,} cells have no counts of the model's features: their embedding is nan")
        write_embedding(self.output, self.file, model, result)
        print(f"{self.output}: obsm['X_scmbert'] of {len(result.embeddings):,} cells x {result.embeddings.shape[1]}")
        return 0
