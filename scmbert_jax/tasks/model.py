"""A trained model as users hold it: `scmbert_jax.load(folder)`, then one method per task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from data_pipelines.genome.region_embeddings import RegionEmbeddings
from scmbert_jax.pretrained import PretrainedModel, export_model, load_model
from scmbert_jax.tasks.embed import embed_dataset, embed_jointly
from scmbert_jax.tasks.new_regions import with_regions
from scmbert_jax.tasks.progress_bar import progress_of
from scmbert_jax.tasks.translate import translate_dataset
from scmbert_jax.tasks.write_embedding import obsm_keys
from scmbert_jax.tasks.write_translation import translation_anndata
from scmbert_jax.training.run_information import information_in_words

Progress = bool | Callable[[int, int], None]


class Model:
    """What `scmbert_jax.load` gives.

    Every method warns (`ScmbertWarning`) of files that lack many of the model's features, and of cells that are shown
    in part only.

    Attributes:
      pretrained: the parameters with their configuration and feature space.
    """

    def __init__(self, pretrained: PretrainedModel):
        self.pretrained = pretrained

    def __repr__(self) -> str:
        model = self.pretrained
        number = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.params))
        config, provenance = model.config, model.info["provenance"]
        sources = (provenance.get("data") or {}).get("sources")
        cells = f", of {sum(source['cells'] for source in sources):,} cells" if sources else ""
        lines = [
            f"scmbert_jax model {model.folder or '(in memory)'}: step {model.steps_in_words()}, {number:,} parameters",
            f"  encoder: {config.model.num_layers} layers, embeddings of {config.model.cell_dim} numbers, "
            f"{'with a' if config.model.linear_path else 'no'} linear path",
        ]
        for name in config.modalities.in_use():
            known = model.feature_space.modalities[name]
            lines.append(
                f"  {name}: {len(known):,} features of {known.space} ({', '.join(known.names[:3].tolist())}, ...)"
            )
        objectives = ", ".join(f"{name} (weight {weight:g})" for name, weight in config.objectives.weights().items())
        lines.append(f"  trained for: {objectives}; {config.data.global_batch_size} cells a step{cells}")
        told = information_in_words(provenance.get("information"))
        return "\n".join([*lines, *(f"  trained on: {sentence}" for sentence in told)])

    def _allowing(self, allow_low_coverage: bool) -> PretrainedModel:
        return replace(self.pretrained, allow_low_coverage=allow_low_coverage or self.pretrained.allow_low_coverage)

    def with_regions(self, embeddings: RegionEmbeddings | str | Path) -> "Model":
        """The same model for other regions, given their embeddings: `model.with_regions("peaks.npz").embed(adata)`.

        Its regions are then those of the table: those of training as they were learned, and new ones by the projection
        that training has learned of the embeddings (`ModelConfig.region_embeddings`).

        Args:
          embeddings: a table of `scmbert regulate embed-regions`, a matrix of regions, or a `RegionEmbeddings`.

        Raises:
          InputError: as `scmbert_jax.tasks.new_regions.with_regions`.
        """
        return Model(with_regions(self.pretrained, embeddings))

    def embed(
        self,
        cells: Any,
        *,
        modalities: tuple[str, ...] | None = None,
        space: Literal["cell", "aligned"] = "cell",
        num_tokens: int | Mapping[str, int] | None = None,
        allow_low_coverage: bool = False,
        organism: str | None = None,
        assembly: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        progress: Progress = False,
    ) -> np.ndarray:
        """Cell embeddings float32 [n_cells, cell_dim], row-aligned with `cells.obs_names`; deterministic.

        Args:
          cells: AnnData or MuData with raw counts, or whatever `scmbert doctor` accepts as a file.
          modalities, space, num_tokens, organism, assembly, batch_size, seed: as those of
            `scmbert_jax.tasks.embed.embed_dataset`.
          allow_low_coverage: continue even if the cells measure few of the model's features.
          progress: True: a bar; or a function of (cells done, cells in all).

        Raises:
          InputError: the counts cannot be used; the message says where and why.
        """
        return embed_dataset(
            self._allowing(allow_low_coverage),
            cells,
            modalities=modalities,
            space=space,
            num_tokens=num_tokens,
            organism=organism,
            assembly=assembly,
            batch_size=batch_size,
            seed=seed,
            progress=progress_of(progress, "embed"),
        ).embeddings

    def embed_joint(
        self,
        cells: Any,
        *,
        num_tokens: int | Mapping[str, int] | None = None,
        allow_low_coverage: bool = False,
        organism: str | None = None,
        assembly: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        progress: Progress = False,
    ) -> dict[str, np.ndarray]:
        """What `scmbert embed --joint` writes: `mdata.obsm.update(model.embed_joint(mdata))`.

        Returns key of `obsm` -> float32 [n_cells, D], row-aligned, nan where nothing was measured: "X_scmbert" (all
        modalities of a cell read together), and unit vectors of the contrastive space: "X_scmbert_joint" (their mean)
        and one entry per modality read alone, such as "X_scmbert_rna".

        Args: as those of `embed`.

        Raises:
          InputError: the model was not trained with contrastive_alignment; or as `embed`.
        """
        found = embed_jointly(
            self._allowing(allow_low_coverage),
            cells,
            num_tokens=num_tokens,
            organism=organism,
            assembly=assembly,
            batch_size=batch_size,
            seed=seed,
            progress=progress_of(progress, "embed"),
        )
        return obsm_keys(found)

    def translate(
        self,
        cells: Any,
        to: str,
        *,
        source: str | None = None,
        features: Sequence[str] | None = None,
        num_draws: int = 1,
        num_tokens: int | Mapping[str, int] | None = None,
        allow_low_coverage: bool = False,
        organism: str | None = None,
        assembly: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        progress: Progress = False,
    ) -> Any:
        """Another modality of the cells as AnnData, row-aligned with `cells.obs_names`; deterministic.

        `X` float32 [n_cells, F] holds expected values and `layers["std"]` their standard deviations, nan for cells
        whose source was not measured. `uns["scmbert"]` says in which unit, from what, and by which model.

        Args:
          cells: as in `embed`.
          to: the modality to predict, "rna", "protein" or "atac".
          source: the modality to read; None: the one that the data and the model share.
          features: ids or names to predict; None: all the model knows.
          num_draws: predictions are averaged over this many draws of tokens.
          num_tokens, allow_low_coverage, organism, assembly, batch_size, seed, progress: as in `embed`.

        Raises:
          InputError: the model cannot know the target, the source is missing, or the counts cannot be used.
        """
        model = self._allowing(allow_low_coverage)
        found = translate_dataset(
            model,
            cells,
            target=to,
            source=source,
            features=features,
            num_draws=num_draws,
            num_tokens=num_tokens,
            organism=organism,
            assembly=assembly,
            batch_size=batch_size,
            seed=seed,
            progress=progress_of(progress, "translate"),
        )
        return translation_anndata(model, found)


def load(model_dir: str | Path, *, attention: str | None = None) -> Model:
    """Loads a model folder written by `scmbert export`; every file of it is compared with its digest.

    `attention`: another backend than that of training, where this machine cannot do that one ("xla_chunked" can
    everywhere).

    Raises `CheckpointError` when the folder cannot be used.
    """
    return Model(load_model(Path(model_dir), attention=attention))


def export(
    run_dir: str | Path,
    model_dir: str | Path,
    *,
    step: int | None = None,
    best: bool = False,
    unfinished: bool = False,
    attention: str | None = None,
    overwrite: bool = False,
) -> Model:
    """What `scmbert export` does: writes the newest checkpoint of a run as a model folder, and loads it.

        model = scmbert_jax.export("runs/1", "my_model")

    Args:
      run_dir: written by `pretrain`.
      model_dir: folder to write, whole or not at all.
      step: of another checkpoint than the newest.
      best: of that which `validation.best` of the run found best.
      unfinished: also where the newest checkpoint is not of the run's last step.
      attention: another backend than that of training, for other hardware; "xla_chunked" runs anywhere.
      overwrite: replace `model_dir` if it is a model folder.

    Raises `CheckpointError` when the run has no such checkpoint or is not done, or `model_dir` cannot be written.
    """
    export_model(
        Path(run_dir),
        Path(model_dir),
        step,
        best=best,
        unfinished=unfinished,
        attention=attention,
        overwrite=overwrite,
    )
    return load(model_dir)
