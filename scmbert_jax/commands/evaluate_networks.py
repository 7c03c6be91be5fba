"""The verb that judges networks of genes: evaluate networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from scmbert_jax.commands.evaluate import check_report
from scmbert_jax.commands.terminal import Json, Overwrite, Report, listed, print_json, print_tables, require_positive
from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import say


@dataclass(frozen=True)
class EvaluateNetworks:
    """Score how well networks, degree, co-expression and prior knowledge find the edges of a network taken for true.

    Pairs, regulators or genes are held out; the first row is what node degree alone says. docs/networks.md lists the
    formats. Without a network: on a small one that was drawn, with cells that follow it.

    Example:  scmbert evaluate networks
              scmbert evaluate networks true_network.csv --prior collectri.csv --report report.html
              scmbert evaluate networks beeline_folder --network mine.csv pyscenic.csv
              scmbert evaluate networks trrust.tsv --data cells.h5ad --split both --json
    """

    true_network: tyro.conf.Positional[str] = "example:network"
    """A table of edges, a BEELINE folder, or a name: network:collectri, network:dorothea."""
    network: tuple[str, ...] = ()
    """Networks to judge, tables of edges; the size of the weight ranks pairs."""
    model: tuple[Path, ...] = ()
    """Model folders (scmbert export): cosine of the rows of their genes, and the decoder of those that link_prediction
    has trained. Pairs that a model has seen in training test no method."""
    data: str | None = None
    """Cells with raw RNA counts, for co-expression; then only genes that they measure are looked at."""
    prior: tuple[str, ...] = ()
    """Other networks; their edges, and the degrees in them, are scored."""
    split: tuple[str, ...] = ()
    """What is unseen: edge, regulator, target, both. Default: each."""
    skip: tuple[str, ...] = ()
    """Methods to leave out, by name (gradient boosting takes minutes)."""
    graph_network: bool = False
    """Also train a graph network, the same without its graph, and over a shuffled graph: minutes for each split."""
    num_seeds: int = 5
    """Other parts of the network; the spread gives the interval."""
    negatives: str = "all"
    """Pairs without an edge that test: all, or as many as edges, drawn: uniform, degree_matched, same_regulator,
    degree_aware (node degree then says nothing in any split)."""
    write_splits: Path | None = None
    """A .parquet or .tsv that gets the pairs that learn, choose and test, for other tools."""
    read_splits: Path | None = None
    """Such a file, used instead of --split, --num-seeds and --negatives."""
    organism: Literal["human", "mouse"] = "human"
    """Whose genes the names are."""
    report: Report = None
    json: Json = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from data_pipelines.networks.pair_files import check_pair_path
        from data_pipelines.networks.parts import SPLITS
        from scmbert_jax.evaluation.networks.inputs import row_names
        from scmbert_jax.evaluation.networks.suite import evaluate_networks, write_network_report
        from scmbert_jax.pretrained import load_model

        require_positive(num_seeds=self.num_seeds)
        optional = (own for own in (self.data, self.read_splits) if own is not None)
        files = [self.true_network, *self.network, *map(str, self.model), *self.prior, *map(str, optional)]
        check_report(self.report, files, self.overwrite)
        if self.read_splits is not None and (self.split or self.negatives != "all"):
            raise ConfigError("--read-splits has the pairs of every split: leave out --split and --negatives.")
        if self.write_splits is not None:
            check_pair_path(self.write_splits, files, self.overwrite)
        found = evaluate_networks(
            self.true_network,
            data=self.data,
            priors=self.prior,
            brought=self.network,
            splits=listed(self.split) or SPLITS,
            num_seeds=self.num_seeds,
            skip=self.skip,
            graph_network=self.graph_network,
            negatives=self.negatives,
            read_from=self.read_splits,
            write_to=self.write_splits,
            overwrite=self.overwrite,
            pictures=self.report is not None,
            models=dict(zip(row_names(list(map(str, self.model))), map(load_model, self.model), strict=True)),
            organism=self.organism,
            say=say,
        )
        print_json(found.to_dict()) if self.json else print_tables(found.text())
        if self.report is not None:
            write_network_report(self.report, found, {"inputs": files})
            say(f"report: {self.report}")
        return 0
