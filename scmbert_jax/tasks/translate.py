"""One modality of cells predicted from another, for every feature the model can be asked, with its uncertainty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from data_pipelines.batches.model_counts import Overlap
from data_pipelines.checks.input_report import InputReport
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import feature_table
from scmbert_jax.tasks.model_cells import open_model_cells
from scmbert_jax.tasks.translation_targets import learned_sources, require_same_space, target_features

# Target features decoded at a time: what bounds memory for a modality of a million regions.
FEATURES_AT_A_TIME = 1024


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
      overlap: how the source's features of the file meet the model's.
      num_draws, seed: of the tokens that were shown.
      coverage, shown: as those of `CellEmbeddings`, of the source.
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
    overlap: Overlap
    num_draws: int
    seed: int
    coverage: float
    shown: float

    @property
    def predicted(self) -> np.ndarray:
        """bool [n], the cells of which the model has seen something."""
        return ~np.isnan(self.values[:, 0])


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
    num_tokens: int | Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Translation:
    """Predicts modality `target` of every cell from its modality `source`.

    Args:
      cells: whatever `open_dataset` takes; of its counts only those of `source` are shown to the model.
      target: modality to predict.
      source: modality to read; None: the one other modality that the data and the model share.
      features: ids or names of target features, as files have them; None: all the model knows.
      organism, assembly: as in `embed_dataset`.
      batch_size: cells per device call; changes speed and memory only.
      seed: of the tokens that are drawn of cells with more features than tokens.
      num_draws: predictions are averaged over this many draws of tokens; what differs between them is in `std`.
      num_tokens: as in `embed_dataset`.
      progress: called with (cells done, cells in all), over all draws.

    Raises:
      InputError: the model has not learned this direction, does not know a feature, or is of another species or genome
        build; the data lacks the source; or what `embed_dataset` raises.
      ConfigError: a batch size or a number of draws below 1.
    """
    if num_draws < 1:
        raise ConfigError(f"num_draws {num_draws}: expected 1 or more.")
    possible = _possible_sources(model, target, source)
    require_same_space(model, target, organism, assembly)
    places = target_features(model, target, features)
    dataset = cells if isinstance(cells, Dataset) else open_dataset(cells)
    source = _source_of(dataset, target, possible)
    opened = open_model_cells(model, dataset, (source,), organism, assembly)
    known = model.feature_space.modalities[target]
    definition, first_row = model.definition, model.feature_space.slices[target][0]
    table = feature_table(definition, model.params, model.constants)
    predict = partial(_predict, definition, source, target, model.params, model.constants, table)
    num_cells, num_features = len(dataset.cell_ids), len(places)
    # The last part is filled up; what is predicted for the filling is dropped.
    width = min(num_features, FEATURES_AT_A_TIME)
    asked = np.resize(places + np.int32(first_row), (-(-num_features // width), width))
    # Mean and summed squares over draws by Welford's updates: float32 loses nothing to the difference of two squares.
    values = np.zeros((num_cells, num_features), np.float32)
    spread = np.zeros_like(values)
    seen = np.zeros(num_cells, bool)
    for draw in range(num_draws):
        for rows, batch, done in opened.batches(num_tokens, batch_size, seed + draw):
            seen[rows] = True
            value, std = (np.asarray(part)[: len(rows), :num_features] for part in predict(batch, asked))
            change = value - values[rows]
            values[rows] += change / (draw + 1)
            spread[rows] += std**2 + change * (value - values[rows])
            if progress is not None:
                progress(draw * num_cells + done, num_draws * num_cells)
    if progress is not None:
        progress(num_draws * num_cells, num_draws * num_cells)
    std = np.sqrt(np.divide(spread, num_draws, out=spread), out=spread)
    values[~seen], std[~seen] = np.nan, np.nan
    opened.warn_of_what_was_not_shown()
    likelihood = definition.translation_likelihood(target)
    return Translation(
        values=values,
        std=std,
        feature_ids=known.ids[places],
        feature_names=known.names[places],
        source=source,
        target=target,
        scale=likelihood.scale,
        target_sum=likelihood.median_library,
        dataset=dataset,
        report=opened.report,
        overlap=opened.overlaps[source],
        num_draws=num_draws,
        seed=seed,
        coverage=opened.coverage[source],
        shown=opened.fractions_shown().get(source, 1.0),
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _predict(
    definition: ModelDefinition,
    source: str,
    target: str,
    params: Any,
    constants: Any,
    table: jax.Array,
    batch: CutBatch,
    feature_ids: jax.Array,
):
    return definition.merge(params, constants).translate(table, batch, source, target, feature_ids)


def _possible_sources(model: PretrainedModel, target: str, source: str | None) -> tuple[str, ...]:
    """Those from which `target` can be predicted: all that were learned, or `source` where it is among them."""
    learned = learned_sources(model, target)
    if source is None:
        return learned
    if source not in learned:
        raise InputError(f"{source!r} to {target!r}: the model predicts {target} from {_any_of(learned)}.")
    return (source,)


def _source_of(dataset: Dataset, target: str, possible: tuple[str, ...]) -> str:
    """The one modality of `possible` that the data has."""
    measured = [matrix.modality for matrix in dataset.matrices]
    found = [name for name in possible if name in measured]
    if len(found) > 1:
        raise InputError(f"{dataset.path}: {target} can be predicted from {_any_of(found)}; name one as the source.")
    # A matrix of unknown modality may be it: the input check says why it was not recognised.
    if not found and "" not in measured:
        raise InputError(
            f"{dataset.path}: has {' and '.join(measured) or 'no modality'}; {target} is predicted from "
            f"{_any_of(possible)}. Give a file in which {_any_of(possible)} was measured."
        )
    return found[0] if found else possible[0]


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(names)
