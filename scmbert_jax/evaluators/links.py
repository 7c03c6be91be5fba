"""`links`: are edges that are held out (`model.network_split`) told from pairs that are none, by the decoder's score?

Over all pairs of a regulator and a gene of which each has a held-out edge; a pair with an edge of another part is left
out. Of the edges for validation:

auroc                 the probability that an edge scores above a pair that is none
regulator_auroc       its mean over regulators, so that a regulator's own number of edges cannot help
auprc, auprc_ratio    average precision; and by that of random scores
epr                   precision among as many pairs as there are edges, by that of all
degree_auroc          auroc of what is no model: the edges that train of the regulator and of the gene, added
sign_accuracy         of held-out edges whose sign is known
edges                 how many they are
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from scmbert_jax.evaluation.networks.scores import auroc, score_pairs
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs
from scmbert_jax.feature_layout import EDGE_KINDS, NetworkEdges
from scmbert_jax.models.link_decoders import EDGE, SIGN
from scmbert_jax.parallel.mesh import replicated

VALIDATION, TEST = 1, 2


class HeldOutPairs(NamedTuple):
    """R regulators x G genes, those that have an edge of one part.

    Attributes:
      regulators: int32 [R], genes: int32 [G], rows of the feature table.
      is_edge, is_pair: bool [R, G]; pairs that count, edges among them.
      sign: int8 [R, G], 0 where it is unknown.
      degree: float64 [R, G], the edges that train, of the regulator and of the gene.
    """

    regulators: np.ndarray
    genes: np.ndarray
    is_edge: np.ndarray
    is_pair: np.ndarray
    sign: np.ndarray
    degree: np.ndarray


def held_out_pairs(network: NetworkEdges, part: int) -> HeldOutPairs:
    """Of part `VALIDATION` or `TEST`; R and G are 0 where nothing is held out."""
    of_genes = network.kind == EDGE_KINDS.index("regulates")
    mine, trains = of_genes & (network.part == part), of_genes & (network.part == 0)
    regulators, genes = np.unique(network.source[mine]), np.unique(network.target[mine])
    is_edge, is_other = (np.zeros((len(regulators), len(genes)), bool) for _ in range(2))
    sign = np.zeros(is_edge.shape, np.int8)
    for where, found in ((mine, is_edge), (of_genes & ~mine, is_other)):
        known = where & np.isin(network.source, regulators) & np.isin(network.target, genes)
        places = (
            np.searchsorted(regulators, network.source[known]),
            np.searchsorted(genes, network.target[known]),
        )
        found[places] = True
        if found is is_edge:
            sign[places] = network.sign[known]
    is_pair = ~is_other & (regulators[:, None] != genes[None])
    out, into = (
        np.bincount(own[trains], minlength=int(max(network.source.max(), network.target.max())) + 1)
        for own in (network.source, network.target)
    )
    degree = (out[regulators][:, None] + into[genes][None]).astype(np.float64)
    return HeldOutPairs(regulators, genes, is_edge & is_pair, is_pair, sign, degree)


def link_scores(logits: np.ndarray, pairs: HeldOutPairs) -> dict[str, float]:
    """The metrics above, of logits [R, G, 2]."""
    own, known = pairs.is_pair, pairs.is_edge & (pairs.sign != 0)
    found = score_pairs(logits[..., EDGE].astype(np.float64), pairs.is_edge, own)
    found["degree_auroc"] = auroc(pairs.degree[own], pairs.is_edge[own])
    found["edges"] = float(pairs.is_edge.sum())
    if known.any():
        found["sign_accuracy"] = float(((logits[..., SIGN] > 0) == (pairs.sign > 0))[known].mean())
    return found


class _Links:
    def __init__(self, inputs: EvaluatorInputs, pairs: HeldOutPairs):
        model = inputs.model
        self._pairs = pairs

        def logits(params: Any, constants: Any, regulators: jax.Array, genes: jax.Array) -> jax.Array:
            merged = model.merge(params, constants)
            table = merged.feature_table()
            return merged.link_head.of_all_pairs(table[regulators], table[genes])

        self._logits = jax.jit(logits, out_shardings=replicated(inputs.mesh))
        self._rows = jax.device_put((pairs.regulators, pairs.genes), replicated(inputs.mesh))

    def __call__(self, step: int, params: Any, constants: Any) -> Mapping[str, float]:
        logits = jax.device_get(self._logits(params, constants, *self._rows))
        return link_scores(np.asarray(logits), self._pairs)


def make(inputs: EvaluatorInputs) -> _Links:
    if inputs.config.objectives.link_prediction.weight == 0:
        raise CannotEvaluate("the run does not train link_prediction")
    assert inputs.model.layout.network is not None
    pairs = held_out_pairs(inputs.model.layout.network, VALIDATION)
    if not pairs.is_edge.any():
        raise CannotEvaluate("no edge is held out for validation: set model.network_split, or give a larger network")
    return _Links(inputs, pairs)
