"""The ways to infer a network. A method: a function and a line."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from scmbert_jax.interpretation.write_explanation import NOT_REGULATION
from scmbert_jax.networks.attention import attention_scores, why_no_rollout
from scmbert_jax.networks.co_expression import (
    boosting_scores,
    mutual_information_scores,
    pearson_scores,
    spearman_scores,
)
from scmbert_jax.networks.embedding import embedding_scores
from scmbert_jax.networks.links import contextual_link_scores, link_scores, why_no_context, why_no_links
from scmbert_jax.networks.perturbed import PARTS, perturbation_scores
from scmbert_jax.networks.population import Population
from scmbert_jax.networks.scores import Reader, Resampling, Scores
from scmbert_jax.pretrained import PretrainedModel

# Scores of the cells as they are, then of each bootstrap.
Score = Callable[[Population, Reader, Resampling], Iterator[Scores]]


class InferenceMethod(NamedTuple):
    """Attributes:
    score: see `Score`.
    says: what its weight is.
    asks_model: False: the model says which genes there are, and nothing else.
    caution: what everybody who sees the network must know; "" where nothing.
    resampled: of what bootstraps are drawn; "": it does not depend on cells.
    why_not: model -> why it cannot be asked so; "" where it can.
    """

    score: Score
    says: str
    asks_model: bool = True
    caution: str = ""
    resampled: str = "bootstraps of the cells"
    why_not: Callable[[PretrainedModel], str] = lambda model: ""


METHODS = {
    "embedding": InferenceMethod(embedding_scores, "cosine of the genes' states in these cells"),
    "links": InferenceMethod(
        link_scores, "probability by the decoder of link_prediction, of gene rows", resampled="", why_not=why_no_links
    ),
    "contextual_links": InferenceMethod(
        contextual_link_scores,
        "probability by the decoder of link_prediction, of gene rows that know these cells",
        why_not=why_no_context,
    ),
    "perturbation": InferenceMethod(
        perturbation_scores,
        "|mean response| of the gene to removing the regulator",
        resampled=f"bootstraps of {PARTS} parts of the cells",
    ),
    "attention": InferenceMethod(
        attention_scores, "attention rollout between tokens", caution=NOT_REGULATION, why_not=why_no_rollout
    ),
    "spearman": InferenceMethod(spearman_scores, "|Spearman's correlation| of expression", asks_model=False),
    "pearson": InferenceMethod(pearson_scores, "|Pearson's correlation| of expression", asks_model=False),
    "mutual_information": InferenceMethod(mutual_information_scores, "nats, of expression in bins", asks_model=False),
    "boosting": InferenceMethod(boosting_scores, "importance in boosted trees (GRNBoost2-type)", asks_model=False),
}
