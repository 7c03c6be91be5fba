"""A trained model as a method of the translation suite.

The model gets the test cells' source counts as a new AnnData and nothing else: no other modality, no cell type, no
technical batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.data.measured_cells import FeatureColumns
from scmbert_jax.evaluation.data.value_scale import change_target_sum, clr_of_log1p
from scmbert_jax.evaluation.translation.fold import TranslationFold
from scmbert_jax.modalities import TABLE

Array = np.ndarray


class Predictions(Protocol):
    """What a translator returns: `Translation` of scmbert_jax.tasks.translate, or anything like it."""

    @property
    def values(self) -> Array:
        """float [m, K], row i is cell i of what was given; nan for a cell it can say nothing about."""
        ...

    @property
    def feature_ids(self) -> Array:
        """str [K]."""
        ...

    @property
    def scale(self) -> str:
        """ "log1p", "clr" or "probability", as `ValueScale` defines them."""
        ...

    @property
    def target_sum(self) -> float:
        """Of the log1p scale."""
        ...


class Translator(Protocol):
    """Predicts a modality of an AnnData; `scmbert_translator` makes one of a model folder."""

    def __call__(self, adata: Any, *, source: str, target: str, fold: TranslationFold) -> Predictions: ...


@dataclass(frozen=True)
class TrainedModels:
    """One method trained elsewhere, by one or several seeds (`translators`), as a `TranslationMethod`.

    `unknown` is filled while predicting: target modality -> (features that the model does not know, features).
    """

    translators: tuple[Translator, ...]
    name: str = "scMBERT"
    uses: str = "unknown"
    unknown: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_trained(self) -> int:
        return len(self.translators)

    def predict(self, fold: TranslationFold, seed: int) -> Array:
        """float32 [m, F] on the fold's scale; the training mean where the model knows no such feature or says nan."""
        found = self.translators[seed](source_cells(fold), source=fold.source, target=fold.target, fold=fold)
        values = np.asarray(found.values, np.float32)
        if values.shape != (fold.num_test, len(found.feature_ids)):
            raise ValueError(
                f"{values.shape} predictions for {fold.num_test} cells x {len(found.feature_ids)} features"
            )
        if (found.scale, fold.scale.name) == ("log1p", "clr"):
            values = clr_of_log1p(values)  # a negative binomial of protein counts
        elif found.scale != fold.scale.name:
            raise InputError(f"{self.name} predicts {fold.target} as {found.scale}; it is scored as {fold.scale.name}.")
        if fold.scale.target_sum is not None:
            values = change_target_sum(values, found.target_sum, fold.scale.target_sum)
        place, known = _places(found.feature_ids, fold.target_features)
        self.unknown[fold.target] = int((~known).sum()), len(known)
        predicted = np.tile(fold.train_mean, (fold.num_test, 1))
        predicted[:, known] = values[:, place[known]]
        return np.where(np.isfinite(predicted), predicted, fold.train_mean).astype(np.float32)


def _places(model_ids: Array, columns: FeatureColumns) -> tuple[Array, Array]:
    """int64 [F] place of each column among the model's features, bool [F] whether it has one."""
    place_of = {str(name): place for place, name in enumerate(model_ids)}
    place = np.array([place_of.get(name, -1) if name else -1 for name in columns.ids.tolist()], np.int64)
    return place, place >= 0


def source_cells(fold: TranslationFold) -> Any:
    """The test cells as an AnnData: raw source counts, cell ids, feature names, the kind of feature."""
    import anndata
    import pandas as pd

    names = fold.source_features.names
    var = pd.DataFrame({"feature_types": TABLE[fold.source].feature_type}, index=pd.Index(names))
    obs = pd.DataFrame(index=pd.Index(fold.test_cell_ids))
    return anndata.AnnData(fold.test_source.astype(np.float32), obs=obs, var=var)


def scmbert_translator(model: Any, seed: int = 0, num_draws: int = 1) -> Translator:
    """A `Translator` of a loaded model folder (`PretrainedModel`).

    Args:
      seed, num_draws: of the source tokens that are drawn, as in `translate_dataset`.
    """

    def translate(adata: Any, *, source: str, target: str, fold: TranslationFold) -> Predictions:
        from scmbert_jax.tasks.translate import translate_dataset

        return translate_dataset(
            model,
            adata,
            source=source,
            target=target,
            organism=fold.organism,
            assembly=fold.assembly if source == "atac" else None,
            seed=seed,
            num_draws=num_draws,
        )

    return translate


def uses_in_words(information: Mapping[str, Any] | None) -> str:
    """The `uses` of a model: "pairs", "pseudo-pairs", "no pairs", "+ links", "+ labels", or "unknown"."""
    if information is None or information.get("paired_cells") is None:
        return "unknown"
    parts = ["pairs"] if information["paired_cells"] else []
    parts += ["pseudo-pairs"] if information.get("pseudo_paired_cells") else []
    parts = parts or ["no pairs"]
    parts += ["links"] if any((information.get("links") or {}).values()) else []
    parts += ["labels"] if information.get("labels") else []
    return " + ".join(parts)
