"""Models that must do worse than a pre-trained one, if what it learned is of use; each is fitted as that one is."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from scmbert_jax.pretrained import PretrainedModel


def from_scratch(model: PretrainedModel, seed: int) -> PretrainedModel:
    """The same architecture with the random parameters of `seed`, without principal components: no pre-training."""
    return model.untrained(seed)


def without_gene_identities(model: PretrainedModel, seed: int) -> PretrainedModel:
    """The same model, but each feature is given the learned row of another one of its modality, drawn once by `seed`.

    What the encoder learned of cells is still there, and values are on the scale of their own feature; what is lost is
    which feature is which. The linear path keeps its components (`PretrainedModel.linear_path_alone` is its control).
    """
    order, rng = np.arange(model.params["table"]["learned"].shape[0]), np.random.default_rng(seed)
    for first, stop in model.definition.layout.slices.values():
        order[first:stop] = first + rng.permutation(stop - first)
    table = {**model.params["table"], "learned": jnp.asarray(model.params["table"]["learned"])[order]}
    return replace(model, params={**model.params, "table": table})
