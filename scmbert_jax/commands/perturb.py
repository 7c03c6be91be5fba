"""The verb that perturbs genes in silico: perturb."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from scmbert_jax.commands.annotate import ReadingArguments
from scmbert_jax.commands.evaluate import check_report
from scmbert_jax.commands.terminal import (
    CountsFile,
    Json,
    ModelFolder,
    Overwrite,
    Report,
    listed,
    print_json,
    print_tables,
    staged_progress,
)
from scmbert_jax.plain_text import say


@dataclass(frozen=True)
class Perturb:
    """Remove genes from cells, or raise them, and rank what the model says changes.

    Beside each response: that to genes of like expression and detection, with p and q; co-expression; mean shift.
    Predictions of a model, not evidence.

    Example:  scmbert perturb my_model cells.h5ad --gene GATA3 STAT1 --by cell_type -o responses.csv
              scmbert perturb my_model cells.h5ad --gene IRF7 --raise-to 4 --report report.html
    """

    model_dir: tyro.conf.Positional[ModelFolder]
    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    gene: tuple[str, ...]
    """Names or ids of genes, each perturbed by itself, in the cells that have it."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """.csv or .tsv: a row for each perturbed gene, cell type and downstream gene."""
    raise_to: float | None = None
    """A multiple of the gene's count, as 4. Default: the gene is removed."""
    by: str | None = None
    """Column of obs; each of its values is looked at by itself."""
    network: str | None = None
    """Edges (docs/networks.md); genes are then matched in their number, too."""
    matched: int = 50
    """Genes like it that are perturbed for the null of each gene."""
    cells_per_gene: int = 100
    """Cells that are perturbed in a gene, at most."""
    max_cells: int = 2000
    """Cells that are looked at, of each value of --by, at most."""
    min_cells: int = 10
    """Cells that must have a gene."""
    seed: int = 0
    """Of the cells that are drawn."""
    read: Annotated[ReadingArguments, tyro.conf.arg(name="")] = field(default=ReadingArguments())
    report: Report = None
    json: Json = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.annotation.representation import Reading
        from scmbert_jax.interpretation.perturb import PerturbOptions, perturb
        from scmbert_jax.interpretation.write_perturbation import (
            check_table_path,
            perturbation_document,
            printed,
            write_perturbation_report,
            write_table,
        )
        from scmbert_jax.pretrained import load_model

        inputs: list[object] = [self.model_dir, self.file, *([self.network] if self.network else [])]
        check_report(self.report, inputs, self.overwrite)
        if self.output is not None:
            check_table_path(self.output, inputs, self.overwrite)
        options = PerturbOptions(
            raise_to=self.raise_to,
            by=self.by,
            network=self.network,
            num_matched=self.matched,
            cells_per_gene=self.cells_per_gene,
            max_cells=self.max_cells,
            min_cells=self.min_cells,
            seed=self.seed,
        )
        read = self.read
        reading = Reading(read.organism, read.assembly, read.allow_low_coverage, read.num_tokens, read.batch_size)
        model = load_model(self.model_dir)
        found = perturb(model, self.file, listed(self.gene), options, reading=reading, progress=staged_progress())
        if self.output is not None:
            write_table(self.output, found)
        if self.report is not None:
            write_perturbation_report(self.report, found, {"command": "perturb"})
        print_json(perturbation_document(found)) if self.json else print_tables(printed(found))
        for path in (self.output, self.report):
            if path is not None:
                say(f"written: {path}")
        return 0
