"""Networks between the features of a model: edges of genes from tables, of regions and proteins from their links."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.networks.edge_table import EdgeTable, merged_edges
from data_pipelines.networks.gene_network import GeneNetwork
from data_pipelines.networks.parts import parts_of_edges
from scmbert_jax.errors import InputError
from scmbert_jax.feature_layout import EDGE_KINDS, FeatureLayout, NetworkEdges


def network_edges(
    networks: Sequence[GeneNetwork], space: FeatureSpace, layout: FeatureLayout, split: str = "none", seed: int = 0
) -> NetworkEdges:
    """The edges of all networks among the genes of a feature space, then those of `layout.links`; sorted by rows.

    An edge that several networks have is one (`merged_edges`). Edges of links always train.

    Args:
      split, seed: which edges train (`parts_of_edges`).

    Raises InputError: cells without RNA, a network of another species, no edge between genes of the space.
    """
    genes = space.modalities.get("rna")
    if genes is None:
        raise InputError(
            f"{networks[0].edges.name}: a network is of genes, and the data have none ({space!r}). Give cells with "
            "RNA, or leave model.networks out"
        )
    for network in networks:
        if network.organism != genes.organism:
            raise InputError(
                f"{network.edges.name}: a network of {network.organism}, and the cells are of {genes.organism}; give a "
                "network of the same species"
            )
    merged = GeneNetwork(reduce(_joined, (network.edges for network in networks)), networks[0].organism, {})
    found = merged.indexed(genes.ids)
    first = space.slices["rna"][0]
    part = parts_of_edges(genes.ids[found.source], genes.ids[found.target], split, seed)
    columns: list[tuple[Any, ...]] = [
        (found.source + first, found.target + first, EDGE_KINDS.index("regulates"), found.sign, found.confidence, part)
    ]
    for modality, (rows, linked) in layout.links.items():
        # A region comes before its gene, a gene before its protein.
        kind, source, target = ("near", rows, linked) if modality == "atac" else ("codes", linked, rows)
        columns.append((source, target, EDGE_KINDS.index(kind), 0, 1.0, 0))
    parts = [np.broadcast_arrays(*own) for own in columns]
    edges = NetworkEdges(
        *(
            np.concatenate([own[place] for own in parts]).astype(dtype)
            for place, dtype in enumerate((np.int32, np.int32, np.int8, np.int8, np.float32, np.int8))
        )
    )
    order = np.lexsort((edges.target, edges.source, edges.kind))
    return NetworkEdges(*(own[order] for own in edges))


def _joined(one: EdgeTable, other: EdgeTable) -> EdgeTable:
    source, target, sign, confidence, weight = (
        np.concatenate([getattr(table, name) for table in (one, other)])
        for name in ("source", "target", "sign", "confidence", "weight")
    )
    about = {
        what: np.concatenate([table.about.get(what, np.full(len(table), "")) for table in (one, other)])
        for what in one.about.keys() | other.about.keys()
    }
    return merged_edges(source, target, sign, confidence, weight, f"{one.name}, {other.name}", about=about)
