"""A trained model as users hold it: `scmbert_jax.load(folder)`, then one method per task."""

from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.pretrained import PretrainedModel, load_model
from scmbert_jax.tasks.embed import embed_dataset


class Model:
    """What `scmbert_jax.load` gives.

    Attributes:
      pretrained: the parameters with their configuration and feature space.
    """

    def __init__(self, pretrained: PretrainedModel):
        self.pretrained = pretrained

    def embed(self, cells: Any, **options: Any) -> np.ndarray:
        """Cell embeddings float32 [n_cells, embed_dim], row-aligned with `cells.obs_names`; deterministic.

        Args:
          cells: AnnData or MuData with raw counts, or whatever `scmbert doctor` accepts as a file.
          **options: as those of `scmbert_jax.tasks.embed.embed_dataset`.

        Raises:
          InputError: the counts cannot be used; the message says where and why.
        """
        return embed_dataset(self.pretrained, cells, **options).embeddings


def load(model_dir: str | Path) -> Model:
    """Loads a model folder written by `scmbert export`. Raises `CheckpointError` when it cannot be used."""
    return Model(load_model(Path(model_dir)))
