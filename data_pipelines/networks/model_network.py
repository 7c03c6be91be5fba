"""What a model is given of networks, and the file of a run or model folder that keeps it: `network.npz`.

The file has rows of the feature space beside it, so that neither a run that continues nor a trained model needs the
user's tables, nor another draw of what was drawn.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.networks.beeline import is_beeline_folder, read_beeline_folder
from data_pipelines.networks.gene_network import GeneNetwork, network_of_genes
from data_pipelines.networks.named_networks import read_network
from data_pipelines.networks.negatives import KnownEdges, balanced_pairs, draw_negatives
from data_pipelines.networks.network_edges import network_edges
from data_pipelines.networks.parts import parts_of_edges
from data_pipelines.networks.shuffled_edges import shuffled_targets
from scmbert_jax.errors import InputError
from scmbert_jax.feature_layout import EDGE_KINDS, FeatureLayout, NetworkEdges

Array = np.ndarray

NETWORK = "network.npz"
_REGULATES = EDGE_KINDS.index("regulates")
_NO_GENES = "a network is of genes, and the data have none"
_NEGATIVES_PER_EDGE, _MOST_NEGATIVES = 4, 1 << 20


@dataclass(frozen=True)
class ModelNetworks:
    """Attributes:
    layout: of the feature space, with `network`, `messages` and `negatives`; all else is not read.
    information: what provenance.json says of them.
    words: what to tell of them, by line.
    """

    layout: FeatureLayout
    information: dict[str, Any]
    words: list[str]

    def added_to(self, layout: FeatureLayout) -> FeatureLayout:
        own = self.layout
        return replace(layout, network=own.network, messages=own.messages, negatives=own.negatives)


def read_networks(specs: Sequence[str], space: FeatureSpace) -> list[GeneNetwork]:
    """Networks of the genes of a feature space: files of edges, BEELINE folders, networks by name.

    Raises InputError: as `read_network` and `network_of_genes`, and for data without genes.
    """
    genes = space.modalities.get("rna")
    if genes is None or genes.organism is None:
        raise InputError(f"{specs[0]}: {_NO_GENES} ({space!r}); give cells with RNA, or leave model.networks out")
    found = []
    for spec in specs:
        is_folder = is_beeline_folder(spec)
        edges = read_beeline_folder(spec).edges if is_folder else read_network(spec, genes.organism)
        found.append(network_of_genes(edges, genes.organism))
    return found


def with_networks(
    layout: FeatureLayout,
    space: FeatureSpace,
    networks: Sequence[GeneNetwork],
    *,
    split: str,
    graph: str,
    negatives: str | None,
    seed: int,
) -> FeatureLayout:
    """The layout of a feature space with `network`, `messages` and `negatives`.

    Args:
      split: which edges are held out (`parts_of_edges`).
      graph: "off": no messages; "shuffled": along edges of equal degrees and another wiring.
      negatives: how pairs that are none are drawn (negatives.py); None: not at all.

    Raises InputError, as `network_edges`, and where no edge is left to train with.
    """
    edges = network_edges(networks, space, layout, split, seed)
    trains = (edges.part == 0) & (edges.kind == _REGULATES)
    if not trains.any():
        raise InputError(
            f"{networks[0].edges.name}: none of {int((edges.kind == _REGULATES).sum()):,} edges between genes of the "
            f"data trains with model.network_split {split}; give a larger network, or hold out less"
        )
    messages = None if graph == "off" else _messages(edges, graph == "shuffled", seed)
    drawn = None if negatives is None else _negatives(edges, trains, space, negatives, split, seed)
    return replace(layout, network=edges, messages=messages, negatives=drawn)


def _messages(edges: NetworkEdges, shuffled: bool, seed: int) -> NetworkEdges:
    found = _taken(edges, edges.part == 0)
    if shuffled:
        found = found._replace(target=shuffled_targets(found.source, found.target, found.kind, seed).astype(np.int32))
    # Neither an edge that is held out nor its reverse is heard, also where chance has put it there.
    held_out = _taken(edges, edges.part > 0)
    unheard = np.concatenate([_codes(held_out.source, held_out.target), _codes(held_out.target, held_out.source)])
    return _taken(found, ~np.isin(_codes(found.source, found.target), unheard))


def _codes(source: Array, target: Array) -> Array:
    """int64, one for each pair of rows."""
    return source.astype(np.int64) << 32 | target


def _taken(edges: NetworkEdges, where: Array) -> NetworkEdges:
    return NetworkEdges(*(own[where] for own in edges))


def _negatives(edges: NetworkEdges, trains: Array, space: FeatureSpace, kind: str, split: str, seed: int) -> Array:
    """int32 [M, 2] of pairs of a regulator and a gene of edges that train, of the part that trains."""
    first, names = space.slices["rna"][0], space.modalities["rna"].ids
    known = KnownEdges(names, edges.source[trains] - first, edges.target[trains] - first)
    if split == "edge":
        # Of other splits, no pair of such genes is held out.
        regulators, genes = np.unique(known.source), np.unique(known.target)
        source, target = (own.ravel() for own in np.meshgrid(names[regulators], names[genes], indexing="ij"))
        among = parts_of_edges(source, target, split, seed) == 0
        known = replace(known, sources=regulators, targets=genes, among=among.reshape(len(regulators), len(genes)))
    if kind == "degree_aware":
        drawn = balanced_pairs(known, seed)[1]
    else:
        pairs = np.prod([len(np.unique(own)) for own in (known.source, known.target)])
        free = int(pairs if known.among is None else known.among.sum()) - int(trains.sum())
        per_edge = 1 if kind == "same_regulator" else _NEGATIVES_PER_EDGE  # some regulate half of all genes
        number = min(per_edge * int(trains.sum()), free // 2, _MOST_NEGATIVES)
        drawn = draw_negatives(known, kind, max(number, 1), seed)
    return drawn + np.int32(first)


def save_network(layout: FeatureLayout, folder: Path) -> None:
    """Writes network.npz, of a layout that has one."""
    arrays: dict[str, Any] = {}
    for name in ("network", "messages"):
        edges = getattr(layout, name)
        arrays |= {} if edges is None else {f"{name}_{field}": own for field, own in edges._asdict().items()}
    if layout.negatives is not None:
        arrays["negatives"] = layout.negatives
    np.savez_compressed(folder / NETWORK, **arrays)


def load_network(folder: Path, layout: FeatureLayout) -> FeatureLayout:
    """The layout with what network.npz of the folder has. Raises InputError where it cannot be read or does not fit."""
    path = folder / NETWORK
    try:
        with open_arrays(path) as arrays:
            found = {
                name: NetworkEdges(*(arrays[f"{name}_{field}"] for field in NetworkEdges._fields))
                for name in ("network", "messages")
                if f"{name}_source" in arrays
            }
            negatives = arrays.get("negatives")
        network = found["network"]
        of_edges = [rows for edges in found.values() for rows in (edges.source, edges.target)]
        for rows in of_edges if negatives is None else [*of_edges, negatives]:
            if rows.dtype != np.int32 or (rows.size and not 0 <= rows.min() <= rows.max() < layout.num_features):
                raise ValueError(f"rows outside of the {layout.num_features:,} features")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: the networks of the model cannot be read ({error}); restore the file, or start a new run"
        ) from error
    return replace(layout, network=network, messages=found.get("messages"), negatives=negatives)
