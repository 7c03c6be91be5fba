"""One modality of cells predicted from another, for every feature the model can be asked, with its uncertainty."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from data_pipelines.input_report import InputReport
from data_pipelines.readers import Dataset
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.models.scmbert import ModelDefinition
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import feature_table
from scmbert_jax.tasks.model_cells import open_model_cells

# Target features decoded in one device call: what bounds memory for a modality of a million regions.
FEATURES_PER_CALL = 1024


@dataclass(frozen=True)
class Translation:
    """The result of `translate_dataset`.

    Attributes:
      values: float32 [n, F], expected values on the scale `scale`; row i is cell i of `dataset`, nan where the source
        was not measured.
      std: float32 [n, F], predictive standard deviation in the same unit: of the value in a cell, given the source.
      feature_ids, feature_names: str [F].
      source, target: modalities.
      scale: "log1p" (of counts scaled to `target_sum`), "clr" (log1p(count / g), see models/likelihoods.py),
        "probability" (of a count above 0).
      target_sum: the median library size of the target in training, counts.
      dataset, report: the cells and their input check.
    """

    values: np.ndarray
    std: np.ndarray
    feature_ids: np.ndarray
    feature_names: np.ndarray
    source: str
    target: str
    scale: str
    target_sum: float
    dataset: Dataset
    report: InputReport


def translate_dataset(
    model: PretrainedModel,
    cells: Any,
    *,
    target: str,
    source: str | None = None,
    features: Sequence[str] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    num_draws: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Translation:
    """Predicts modality `target` of every cell from its modality `source`.

    Args:
      cells: whatever `open_dataset` takes; only its `source` is read.
      target: modality to predict.
      source: modality to read; None: the one other modality that the data and the model share.
      features: ids or names of target features; None: all the model knows.
      organism, assembly: as in `embed_dataset`.
      batch_size: cells per device call; changes speed and memory only.
      seed: of the tokens that are drawn of cells with more features than tokens.
      num_draws: predictions are averaged over this many draws of tokens.
      progress: called with (cells done, cells in all), over all draws.

    Raises:
      InputError: the model was not trained to translate in this direction, does not know a feature, or the data lacks
        the source; or what `embed_dataset` raises.
      ConfigError: a batch size or a number of draws below 1.
    """
    if num_draws < 1:
        raise ConfigError(f"num_draws {num_draws}: expected 1 or more.")
    _check_target(model, target)
    opened = open_model_cells(model, cells, _sources(model, target, source), organism, assembly)
    source = _one_source(list(opened.overlaps), target, opened.dataset)
    rows, ids, names = _target_features(model, target, features)
    likelihood = model.definition.translation_likelihood(target)
    parts = [rows[first : first + FEATURES_PER_CALL] for first in range(0, len(rows), FEATURES_PER_CALL)]
    first_moment = np.zeros((len(opened.dataset.cell_ids), len(rows)), np.float32)
    second_moment = np.zeros_like(first_moment)
    seen = np.zeros(len(first_moment), bool)
    definition = model.definition
    table = feature_table(definition, model.params, definition.constants)
    predict = partial(_predict, definition, source, target, model.params, definition.constants)
    for draw in range(num_draws):
        for cells_of_batch, batch, done in opened.batches(None, batch_size, seed + draw):
            seen[cells_of_batch] = True
            number, first = len(cells_of_batch), 0
            for part in parts:
                # The last part is filled up, so that one program serves all of them.
                asked = np.resize(part, min(len(rows), FEATURES_PER_CALL))
                value, std = predict(table, batch, asked)
                value, std = np.asarray(value)[:number, : len(part)], np.asarray(std)[:number, : len(part)]
                columns = slice(first, first + len(part))
                first_moment[cells_of_batch, columns] += value
                second_moment[cells_of_batch, columns] += value**2 + std**2
                first += len(part)
            if progress is not None:
                progress(draw * len(seen) + done, num_draws * len(seen))
    if progress is not None:
        progress(num_draws * len(seen), num_draws * len(seen))
    values = first_moment / num_draws
    std = np.sqrt(np.maximum(second_moment / num_draws - values**2, 0.0))
    values[~seen], std[~seen] = np.nan, np.nan
    return Translation(
        values,
        std,
        ids,
        names,
        source,
        target,
        likelihood.scale,
        likelihood.median_library,
        opened.dataset,
        opened.report,
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _predict(
    definition: ModelDefinition,
    source: str,
    target: str,
    params: Any,
    constants: Any,
    table: jax.Array,
    batch: CellBatch,
    feature_ids: jax.Array,
):
    return definition.merge(params, constants).translate(table, batch, source, target, feature_ids)


def _check_target(model: PretrainedModel, target: str) -> None:
    in_use = model.config.modalities.in_use()
    if model.config.objectives.cross_modal_translation.weight == 0:
        raise InputError(
            "the model was not trained with cross_modal_translation: it cannot translate. Train one with "
            "--objectives.cross-modal-translation.weight above 0."
        )
    if target not in in_use:
        raise InputError(f"target {target!r}: the model knows {', '.join(in_use)}.")


def _sources(model: PretrainedModel, target: str, source: str | None) -> tuple[str, ...]:
    """Modalities from which the model can predict `target`."""
    known = model.config.objectives.cross_modal_translation.directions
    in_use = model.config.modalities.in_use()
    possible = tuple(name for name in in_use if name != target and (not known or f"{name}>{target}" in known))
    if source is not None and source not in possible:
        raise InputError(
            f"{source!r} to {target!r}: the model predicts {target} from {', '.join(possible) or 'nothing'}."
        )
    if not possible:
        raise InputError(f"target {target!r}: the model was trained for {', '.join(known)} only.")
    return possible if source is None else (source,)


def _one_source(found: list[str], target: str, dataset: Dataset) -> str:
    if len(found) != 1:
        raise InputError(
            f"{dataset.path}: {target} could be predicted from {' or '.join(found)}; name one as the source."
        )
    return found[0]


def _target_features(
    model: PretrainedModel, target: str, features: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the feature table int32 [F], ids and names."""
    known = model.feature_space.modalities[target]
    first = model.feature_space.slices[target][0]
    if features is None:
        return np.arange(first, first + len(known), dtype=np.int32), known.ids, known.names
    of_name: dict[str, int] = {}
    for column in (known.names, known.ids):
        of_name.update({str(name): place for place, name in enumerate(column)})
    unknown = [name for name in features if name not in of_name]
    if unknown:
        raise InputError(
            f"the model does not know {len(unknown)} of the {len(features)} {target} features asked for "
            f"({', '.join(unknown[:3])}); its features are those of {known.space} such as {', '.join(known.names[:3])}."
        )
    places = np.asarray([of_name[name] for name in features], np.int32)
    return places + first, known.ids[places], known.names[places]
