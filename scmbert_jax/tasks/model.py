"""A trained model as users hold it: `scmbert_jax.load(folder)`, then one method per task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.pretrained import PretrainedModel, load_model
from scmbert_jax.tasks.embed import embed_dataset, embed_jointly
from scmbert_jax.tasks.translate import translate_dataset
from scmbert_jax.tasks.write_embedding import obsm_keys
from scmbert_jax.tasks.write_translation import translation_anndata


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

    def embed_joint(self, cells: Any, **options: Any) -> dict[str, np.ndarray]:
        """What `scmbert embed --joint` writes: `mdata.obsm.update(model.embed_joint(mdata))`.

        Returns key of `obsm` -> float32 [n_cells, D], row-aligned, nan where nothing was measured: "X_scmbert" (all
        modalities of a cell read together), and unit vectors of the contrastive space: "X_scmbert_joint" (their mean)
        and one entry per modality read alone, such as "X_scmbert_rna".

        Args: as those of `embed`; options as those of `scmbert_jax.tasks.embed.embed_jointly`.

        Raises:
          InputError: the model was not trained with contrastive_alignment; or as `embed`.
        """
        return obsm_keys(embed_jointly(self.pretrained, cells, **options))

    def translate(
        self, cells: Any, to: str, *, source: str | None = None, features: Sequence[str] | None = None, **options: Any
    ) -> Any:
        """Another modality of the cells as AnnData, row-aligned with `cells.obs_names`; deterministic.

        `X` float32 [n_cells, F] holds expected values and `layers["std"]` their standard deviations, nan for cells
        whose source was not measured. `uns["scmbert"]` says in which unit, from what, and by which model.

        Args:
          cells: as in `embed`.
          to: the modality to predict, "rna", "protein" or "atac".
          source: the modality to read; None: the one that the data and the model share.
          features: ids or names to predict; None: all the model knows.
          **options: as those of `scmbert_jax.tasks.translate.translate_dataset`.

        Raises:
          InputError: the model cannot know the target, the source is missing, or the counts cannot be used.
        """
        found = translate_dataset(self.pretrained, cells, target=to, source=source, features=features, **options)
        return translation_anndata(self.pretrained, found)


def load(model_dir: str | Path) -> Model:
    """Loads a model folder written by `scmbert export`. Raises `CheckpointError` when it cannot be used."""
    return Model(load_model(Path(model_dir)))
