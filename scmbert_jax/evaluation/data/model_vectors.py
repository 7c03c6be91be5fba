"""Embeddings of a data set by trained models, one modality at a time, looked up by cell id."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.readers.dataset import Dataset
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import embed_dataset
from scmbert_jax.tasks.match import comparison_space
from scmbert_jax.tasks.modality_cells import ModalityCells, centred_by

Array = np.ndarray


class EmbeddedModels:
    """Models of one method, one per seed, and what they say of the cells of a data set.

    A single model stands for `num_seeds` seeds: which tokens a cell shows is drawn anew for each.
    """

    def __init__(
        self,
        models: Sequence[PretrainedModel],
        dataset: Dataset,
        num_seeds: int,
        space: str | None = None,
        organism: str | None = None,
        assembly: str | None = None,
    ):
        self._models, self._dataset, self._space = list(models), dataset, space
        self._options: dict[str, Any] = {"organism": organism, "assembly": assembly}
        self.num_seeds = num_seeds if len(self._models) == 1 else len(self._models)
        self._made: dict[tuple[int, tuple[str, ...] | None], dict[str, Array]] = {}

    def of(self, seed: int, modalities: tuple[str, ...] | None) -> dict[str, Array]:
        """cell id -> embedding float32 [D], for cells that have one; read from `modalities` alone (None: all)."""
        if (seed, modalities) not in self._made:
            model = self._models[seed % len(self._models)]
            space: Any = self._space or comparison_space(model)
            draw = seed if len(self._models) == 1 else 0
            found = embed_dataset(model, self._dataset, modalities=modalities, space=space, seed=draw, **self._options)
            ids = found.dataset.cell_ids.astype(str).tolist()
            self._made[seed, modalities] = {
                cell: row for cell, row in zip(ids, found.embeddings, strict=True) if np.isfinite(row[0])
            }
        return self._made[seed, modalities]

    def side(self, seed: int, cells: ModalityCells) -> Array:
        """float64 [n, D] of cells seen in their modality alone, centred in each technical batch.

        Zero for a cell without counts of the model's features: its cosine with any other is 0, it says nothing."""
        known = self.of(seed, (cells.modality,))
        width = len(next(iter(known.values())))
        found = np.stack([known.get(cell, np.full(width, np.nan)) for cell in cells.cell_ids.tolist()]).astype(float)
        there = np.isfinite(found[:, 0])
        found[there] = centred_by(found[there], cells.technical_batches[there])
        found[~there] = 0.0
        return found

    def vectors(self, first: ModalityCells, second: ModalityCells) -> list[tuple[Array, Array]]:
        """One pair of arrays per seed."""
        return [(self.side(seed, first), self.side(seed, second)) for seed in range(self.num_seeds)]

    def information(self) -> dict[str, Any]:
        """model number -> what its provenance says its training used; "unknown" where it says nothing."""
        return {
            f"model {place}": model.info.get("provenance", {}).get("information", "unknown")
            for place, model in enumerate(self._models)
        }

    def uses(self) -> str:
        """A few words for the table, from the models' provenance."""
        words = set()
        for said in self.information().values():
            if not isinstance(said, dict):
                words.add("unknown (its provenance does not say)")
                continue
            kinds = [("pairs", said.get("paired_cells")), ("pseudo-pairs", said.get("pseudo_paired_cells"))]
            kinds += [("links", any((said.get("links") or {}).values()))]
            words.add(", ".join(name for name, number in kinds if number) or "neither pairs nor links")
        return "; ".join(sorted(words))


def embedded_models(
    models: Sequence[PretrainedModel], dataset: Dataset, num_seeds: int, space: str | None = None, **options: Any
) -> dict[str, EmbeddedModels]:
    """Row -> models: "model", and its linear path alone where each of them has one; {} without models.

    Args: as those of `EmbeddedModels`.
    """
    methods = {"model": EmbeddedModels(models, dataset, num_seeds, space, **options)} if models else {}
    alone = [found for model in models if (found := model.linear_path_alone()) is not None]
    if models and len(alone) == len(models):
        methods[LINEAR_PATH_ALONE] = EmbeddedModels(alone, dataset, num_seeds, space, **options)
    return methods
