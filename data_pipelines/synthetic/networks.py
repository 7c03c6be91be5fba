"""A network for when there is none: `scmbert plan`, golden steps."""

from dataclasses import replace

import numpy as np

from scmbert_jax.feature_layout import EDGE_KINDS, FeatureLayout, NetworkEdges


def with_synthetic_network(
    layout: FeatureLayout, num_edges: int, seed: int = 0, *, hears: bool = True
) -> FeatureLayout:
    """The layout with so many edges at most between its genes, half of them signed, an eighth held out.

    `hears`: whether messages pass along them.
    """
    rng = np.random.default_rng(seed)
    first, stop = layout.slices["rna"]
    regulators = first + rng.permutation(stop - first)[: max((stop - first) // 8, 1)]
    source, target = rng.choice(regulators, num_edges), rng.integers(first, stop, num_edges)
    pairs = np.unique(np.stack([source, target], axis=1)[source != target], axis=0).astype(np.int32)
    number = len(pairs)
    edges = NetworkEdges(
        pairs[:, 0],
        pairs[:, 1],
        np.full(number, EDGE_KINDS.index("regulates"), np.int8),
        rng.choice(np.array([-1, 0, 0, 1], np.int8), number),
        rng.uniform(0.1, 1.0, number).astype(np.float32),
        (rng.random(number) < 1 / 8).astype(np.int8),
    )
    trains = edges.part == 0
    messages = NetworkEdges(*(own[trains] for own in edges))
    none = np.stack([rng.choice(regulators, num_edges), rng.integers(first, stop, num_edges)], axis=1)
    is_edge = np.isin(none @ np.array([stop, 1]), pairs.astype(np.int64) @ np.array([stop, 1]))
    negatives = none[~is_edge & (none[:, 0] != none[:, 1])].astype(np.int32)
    return replace(layout, network=edges, messages=messages if hears else None, negatives=negatives)
