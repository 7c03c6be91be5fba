"""The verb that gives networks of genes out of a model: networks infer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scmbert_jax.commands.annotate import ReadingArguments
from scmbert_jax.commands.terminal import (
    CountsFile,
    Json,
    ModelFolder,
    Output,
    Overwrite,
    listed,
    print_json,
    print_tables,
    staged_progress,
)
from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import say

_NAMED = 10  # populations without a network that a message lists


@dataclass(frozen=True)
class NetworksInfer:
    """Rank edges from regulators to genes by what a model says of cells, for each cell type.

    Each edge has a stability: the fraction of bootstraps of the cells in which it is among the top, too. No method is
    known to find more than co-expression does: judge networks by scmbert evaluate networks --network.

    Example:  scmbert networks infer my_model cells.h5ad --regulators tfs.txt -o edges.csv
              scmbert networks infer my_model cells.h5ad --regulators collectri.csv --by cell_type -o edges.csv
              scmbert networks infer my_model cells.h5ad --regulators tfs.txt --method embedding spearman -o edges.csv
    """

    model_dir: tyro.conf.Positional[ModelFolder]
    file: tyro.conf.Positional[CountsFile]
    """Raw counts with RNA; whatever scmbert doctor takes."""
    regulators: str
    """Genes that may regulate: a file with a name per line, or a table of edges (CollecTRI, TRRUST;
    network:collectri), whose sources are taken."""
    output: Output
    """.csv or .tsv; .h5ad for --format genernib. OUT.json beside it says how it was made."""
    method: tuple[str, ...] = ("embedding",)
    """embedding, perturbation, attention (not evidence of regulation); links and contextual_links, of a model that was
    trained with link_prediction; without the model: spearman, pearson, mutual_information, boosting (GRNBoost2-type,
    takes minutes)."""
    by: str | None = None
    """Column of obs, such as cell_type: a network for each of its values. Default: one of all cells."""
    top: int = 50_000
    """Edges of a network, the highest; stability is of being among as many."""
    format: Literal["edges", "adjacencies", "genernib", "beeline"] = "edges"
    """source,target,weight,stability and more; TF,target,importance (pySCENIC); geneRNIB's .h5ad; rankedEdges.csv. Of
    the last three, each network is a file."""
    other_seeds: tuple[Path, ...] = ()
    """Model folders of other seeds of the same training: then weights are means over models, and stability is the
    fraction of models."""
    bootstraps: int = 20
    """Of the cells, for stability; 0: none."""
    max_cells: int = 2000
    """Cells of a population that are drawn, at most."""
    min_fraction: float = 0.05
    """Genes are those that this fraction of a population's cells express, and 10 of them."""
    ids: bool = False
    """Name genes by Ensembl ids, not by symbols."""
    seed: int = 0
    """Of the cells that are drawn, of bootstraps and of boosting."""
    read: Annotated[ReadingArguments, tyro.conf.arg(name="")] = field(default=ReadingArguments())
    json: Json = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.annotation.representation import Reading
        from scmbert_jax.networks.infer import InferOptions, infer_networks, printed
        from scmbert_jax.networks.write_network import FORMATS, check_format, check_network_files, write_networks
        from scmbert_jax.outputs import check_output_file
        from scmbert_jax.pretrained import load_model

        options = InferOptions(
            methods=tuple(dict.fromkeys(listed(self.method))),
            by=self.by,
            top=self.top,
            bootstraps=self.bootstraps,
            max_cells=self.max_cells,
            min_fraction=self.min_fraction,
            ids=self.ids,
            seed=self.seed,
        )
        folders = (self.model_dir, *self.other_seeds)
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise ConfigError(
                "--other-seeds: a model folder is given twice, so that nothing would differ; name others."
            )
        check_format(self.output, self.format, self.top)
        inputs = [*folders, self.file, self.regulators]
        if FORMATS[self.format].together:
            check_output_file(self.output, inputs, self.overwrite)
        read = self.read
        reading = Reading(read.organism, read.assembly, read.allow_low_coverage, read.num_tokens, read.batch_size)
        models = [load_model(folder) for folder in folders]
        found = infer_networks(models, self.file, self.regulators, options, reading=reading)
        check_network_files(self.output, self.format, found, inputs, self.overwrite)
        say(f"rna: {found.readers[0].opened.overlaps['rna'].summary()}")
        say(f"{self.regulators}: {found.regulators}")
        for name, why in list(found.passed_over.items())[:_NAMED]:
            say(f"no network of {name}: {why}")
        if len(found.passed_over) > _NAMED:
            say(f"nor of {len(found.passed_over) - _NAMED:,} more: {self.output}.json names all")
        networks = list(found.networks(staged_progress()))
        document = write_networks(self.output, self.format, found, networks, self.overwrite)
        for name in options.methods:
            number, of_what = found.resampled(name)
            if number:
                say(f"{name}: stability is the fraction of {number:,} {of_what} (seed {self.seed})")
        print_json(document) if self.json else print_tables(printed(document))
        return 0
