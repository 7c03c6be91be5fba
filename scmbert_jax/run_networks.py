"""The networks of a run: from the user's tables, or, of a run that has started, its own copy of them."""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.networks.gene_network import GeneNetwork
from data_pipelines.networks.model_network import ModelNetworks, load_network, read_networks, with_networks
from data_pipelines.networks.named_networks import PREFIX
from scmbert_jax.config import ExperimentConfig, load_config
from scmbert_jax.errors import CheckpointError
from scmbert_jax.feature_layout import EDGE_KINDS, FeatureLayout


def run_networks(config: ExperimentConfig, space: FeatureSpace, run_dir: Path) -> ModelNetworks | None:
    """Those of `model.networks`; None where there are none.

    A run that has started continues with what it drew, also where the tables are gone; networks that have a name are
    not fetched again, so that it needs no connection.

    Raises:
      InputError: a table that cannot be read or that has no edge between genes of the data (`with_networks`).
      CheckpointError: the tables have other edges than when the run was started.
    """
    names = config.model.networks
    if not names:
        return None
    there = _started(config, space, run_dir)
    why = {name: "is not fetched again" if name.startswith(PREFIX) else "no such file" for name in names}
    gone = [name for name in names if name.startswith(PREFIX) or not Path(name).exists()]
    if there is not None and gone:
        return ModelNetworks(there, {}, [f"{name}: {why[name]}; the run continues with its own copy" for name in gone])
    tables, asks = read_networks(names, space), config.objectives.link_prediction
    layout = with_networks(
        space.layout(),
        space,
        tables,
        split=config.model.network_split,
        graph=config.model.graph,
        negatives=asks.negatives if asks.weight > 0 else None,
        seed=config.seed,
    )
    now, before = layout.network, None if there is None else there.network
    assert now is not None
    if before is not None and before.digest != now.digest:
        raise CheckpointError(
            f"{run_dir}: this run was started with another network ({len(before.source):,} edges, "
            f"{before.digest[:12]}... there, {len(now.source):,}, {now.digest[:12]}... now). Give the tables it was "
            "started with, or use another run folder."
        )
    information = {
        "names": [Path(name).name for name in names],
        "licences": [table.licence for table in tables],
        "problems": [table.problems for table in tables],
        "edges": {kind: int((now.kind == number).sum()) for number, kind in enumerate(EDGE_KINDS)},
        "held_out": config.model.network_split,
        "sha256": now.digest,
    }
    genes = space.modalities["rna"].ids
    return ModelNetworks(layout if there is None else there, information, [_told(table, genes) for table in tables])


def _told(network: GeneNetwork, genes: np.ndarray) -> str:
    problems = "".join(f"; {what}: {number:,}" for what, number in network.problems.items())
    return f"{network.edges.name}: {network.coverage(genes)} are in the data{problems}"


def _started(config: ExperimentConfig, space: FeatureSpace, run_dir: Path) -> FeatureLayout | None:
    """What a run of the same configuration, as far as networks go, keeps there. Of another one: whoever opens the run
    says what differs."""
    if not (run_dir / "config.json").is_file():  # written last
        return None
    there = load_config(run_dir / "config.json")
    if _of_networks(there) != _of_networks(config) or FeatureSpace.load(run_dir / "feature_space.parquet") != space:
        return None
    return load_network(run_dir, space.layout())


def _of_networks(config: ExperimentConfig) -> tuple[Any, ...]:
    model = config.model
    return model.networks, model.network_split, model.graph, config.objectives.link_prediction, config.seed
