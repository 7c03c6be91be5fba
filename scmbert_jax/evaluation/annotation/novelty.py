"""Scores of novelty of test cells, for methods that have vectors and logits."""

import numpy as np

from scmbert_jax.annotation.novelty import SCORES

Array = np.ndarray


def novelty_scores(
    vectors: Array, logits: Array, membership: Array, test: Array, test_logits: Array
) -> dict[str, Array]:
    """Name -> float [m], higher is more novel: all of `SCORES` but the largest probability, which every method has.

    Args:
      vectors: float [n, D] of training cells, scaled; logits: float [n, K]; membership: bool [n, K].
      test: float [m, D]; test_logits: float [m, K].
    """
    scores = {name: score for name, score in SCORES.items() if name != "max_softmax"}
    return {name: score.fit(vectors, logits, membership)(test, test_logits) for name, score in scores.items()}
