"""A model for other regions than those of its training: the peaks of another data set, given their embeddings.

The row of a new region comes from its embedding through the projection that training has learned
(models/region_rows.py). What a model has of a region besides, it has learned from the region's counts: how often it is
open, its output bias, its principal component loadings. For a new region these are predicted from the embedding, too,
by ridge regression over the regions of the training, each on a log scale where it is above 0 for all of them, and never
beyond what they have. No count of a new region is read for that.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.linear_model import RidgeCV

from data_pipelines.features.feature_mapping import map_regions
from data_pipelines.features.feature_space import FeatureSpace, ModalityFeatures
from data_pipelines.features.region_links import NEAREST, NoLinks
from data_pipelines.genome.region_embeddings import RegionEmbeddings, read_region_embeddings
from scmbert_jax.errors import InputError
from scmbert_jax.feature_layout import FeatureLayout, FeatureStatistics
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.embeddings import padded_rows
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition

_STRENGTHS = np.logspace(-2, 6, 17)  # of the ridge; embeddings are standardised
_FEWEST_REGIONS = 10
_ATAC = MODALITIES.index("atac")
_BY_FEATURE = FeatureStatistics._fields[: FeatureStatistics._fields.index("library_quantiles")]


def with_regions(model: PretrainedModel, embeddings: RegionEmbeddings | str | Path) -> PretrainedModel:
    """The same model, whose regions are those of a table: those of its training as they were learned, and new ones.

    Regions of the training that the table lacks are left out: a file is then read by the table's regions alone. For
    `embed`, `translate` and all else that takes a model.

    Args:
      embeddings: of the kind that the model was trained with (`ModelConfig.region_embeddings`), or a file of them.

    Raises `InputError`: a model that was trained without embeddings of regions, or on a network; a table of another
    width or assembly; one that says something else of the regions of the training, such as one in another order.
    """
    table = embeddings if isinstance(embeddings, RegionEmbeddings) else read_region_embeddings(embeddings)
    vectors = _vectors_of(model, table)
    old, features = model.feature_space, _features_of(model, table)
    space = FeatureSpace({**old.modalities, "atac": features})
    order = _places(table.regions, features.ids)
    known = old.modalities["atac"].index_of(features.ids)  # its row in the model, -1 for a new one
    carried = _Carried(model, vectors, table.vectors[order], known)
    layout = carried.layout(space)
    definition = ModelDefinition(model.config, layout)
    params = carried.params(definition)
    constants = _with_learned_maps(definition.constants, model.constants)
    told = {"regions": len(features), "of_training": int((known >= 0).sum()), "where": Path(table.where).name}
    return replace(
        model,
        feature_space=space,
        definition=definition,
        params=params,
        constants=jax.device_put(constants, jax.local_devices()[0]),
        info={**model.info, "region_embeddings": told},
    )


def _vectors_of(model: PretrainedModel, table: RegionEmbeddings) -> np.ndarray:
    """float32 [M, W], of the model's own regions. Raises `InputError` where the table does not fit the model."""
    vectors, features = model.definition.layout.region_vectors, model.feature_space.modalities.get("atac")
    if vectors is None or features is None:
        raise InputError(
            f"{table.where}: the model was trained without embeddings of regions, so that it knows its own regions "
            "only. Train one with --model.region-embeddings TABLE."
        )
    if model.config.model.networks:
        raise InputError(f"{table.where}: a model with model.networks keeps the regions of its training.")
    if table.width != vectors.shape[1]:
        raise InputError(
            f"{table.where}: embeddings of {table.width:,} numbers; the model was trained with {vectors.shape[1]:,}. "
            "Embed the regions as those of the training were embedded."
        )
    table.check_assembly(features.space.partition(":")[2])
    place = features.index_of(table.regions)
    own = vectors[place]
    both = (place >= 0) & np.isfinite(own).all(axis=1)
    differ = both & ~np.isclose(own, table.vectors, rtol=1e-3, atol=1e-4).all(axis=1)
    if differ.any():
        raise InputError(
            f"{table.where}: says something else of {differ.sum():,} of the {both.sum():,} regions that the model was "
            f"trained on, such as {table.regions[np.argmax(differ)]}: it was embedded otherwise, or its rows are in "
            "another order than its ids."
        )
    if np.isfinite(vectors).all(axis=1).sum() < _FEWEST_REGIONS:
        raise InputError(
            f"{table.where}: the model was trained on fewer than {_FEWEST_REGIONS} regions with embeddings"
        )
    return vectors


def _features_of(model: PretrainedModel, table: RegionEmbeddings) -> ModalityFeatures:
    old = model.feature_space.modalities["atac"]
    assembly = old.space.partition(":")[2]
    links = NEAREST if len(model.definition.layout.links.get("atac", ((), ()))[0]) else NoLinks()
    new = map_regions(table.regions[old.index_of(table.regions) < 0], assembly, links=links).features
    rows = np.sort(old.index_of(table.regions[old.index_of(table.regions) >= 0]))
    columns = (old.ids, old.names, old.chrom, old.start, old.end)
    kept = [column[rows].tolist() for column in columns]
    kept.append([old.links[row] for row in rows.tolist()])
    joined = [
        [*own, *list(getattr(new, name))]
        for own, name in zip(kept, ("ids", "names", "chrom", "start", "end", "links"), strict=True)
    ]
    return ModalityFeatures.sorted("atac", old.space, *joined)


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    order = np.argsort(ids, kind="stable")
    return order[np.searchsorted(ids, wanted, sorter=order)]


class _Carried:
    """What a model has of each region, for another set of regions: as it was learned, or predicted.

    known: int64 [M'], of each of the new set its place in the old one, -1 for a new region.
    """

    def __init__(self, model: PretrainedModel, vectors: np.ndarray, given: np.ndarray, known: np.ndarray):
        self._model, self._given, self._known = model, given, known
        self._old = slice(*model.feature_space.slices["atac"])
        self._seen = np.isfinite(vectors).all(axis=1)
        centre, spread = vectors[self._seen].mean(axis=0), vectors[self._seen].std(axis=0)
        spread = np.where(spread > 0, spread, np.inf)
        self._inputs = (vectors[self._seen] - centre) / spread
        self._new_inputs = (given[known < 0] - centre) / spread

    def of_regions(self, columns: np.ndarray) -> np.ndarray:
        """float32 [M, ...] of the old regions -> [M', ...] of the new ones."""
        flat = columns.reshape(len(columns), -1).astype(np.float64)
        found = flat[np.maximum(self._known, 0)]
        if len(self._new_inputs):
            seen = flat[self._seen]
            positive = (seen > 0).all(axis=0)
            learned = np.where(positive, np.log(np.where(positive, seen, 1.0)), seen)
            ridge = RidgeCV(_STRENGTHS, alpha_per_target=True).fit(self._inputs, learned)
            predicted = ridge.predict(self._new_inputs).reshape(-1, flat.shape[1])
            predicted = np.clip(predicted, learned.min(axis=0), learned.max(axis=0))
            found[self._known < 0] = np.where(positive, np.exp(np.where(positive, predicted, 0.0)), predicted)
        return found.reshape(-1, *columns.shape[1:]).astype(np.float32)

    def layout(self, space: FeatureSpace) -> FeatureLayout:
        old = self._model.definition.layout
        layout = space.layout(old.covariate_sizes)
        vectors = np.array(self._given)
        # A region of the training without an embedding keeps its learned row.
        own = self._known >= 0
        assert old.region_vectors is not None
        vectors[own] = old.region_vectors[self._known[own]]
        return replace(layout, statistics=self._statistics(old.statistics), region_vectors=vectors)

    def _statistics(self, statistics: FeatureStatistics | None) -> FeatureStatistics | None:
        if statistics is None:
            return None
        columns = {name: np.asarray(getattr(statistics, name)) for name in _BY_FEATURE}
        together = np.stack([columns[name][self._old] for name in _BY_FEATURE], axis=1)
        carried = self.of_regions(together)
        columns = {
            name: np.concatenate([column[: self._old.start], carried[:, place]])
            for place, (name, column) in enumerate(columns.items())
        }
        linear = statistics.linear
        if linear is not None:
            loadings = self.of_regions(linear.loadings[self._old])
            offset = linear.component_offset.copy()
            mean, centre = columns["linear_mean"][self._old.start :], columns["linear_centre"][self._old.start :]
            offset[_ATAC] = (mean.astype(np.float64) - centre) @ loadings
            whole = np.concatenate([linear.loadings[: self._old.start], loadings])
            linear = linear._replace(loadings=whole, component_offset=offset)
        return statistics._replace(**columns, linear=linear)

    def params(self, definition: ModelDefinition) -> dict[str, Any]:
        axes = self._model.definition.logical_axes
        rows = padded_rows(definition.layout)

        def carried(path: tuple, leaf: Any) -> Any:
            own: Any = axes
            for part in path:
                own = own[part.key]
            if "features" not in own:
                return leaf
            array = np.asarray(leaf)
            assert own[0] == "features"
            is_table = path[-2].key == "table" if len(path) > 1 else False
            regions = self._learned_rows(array[self._old]) if is_table else self.of_regions(array[self._old])
            found = np.zeros((rows, *array.shape[1:]), np.float32)
            found[: self._old.start] = array[: self._old.start]
            found[self._old.start : self._old.start + len(regions)] = regions
            return jax.numpy.asarray(found)

        return jax.tree_util.tree_map_with_path(carried, self._model.params)

    def _learned_rows(self, rows: np.ndarray) -> np.ndarray:
        """Nothing of a new region's own was learned."""
        return np.where(self._known[:, None] >= 0, rows[np.maximum(self._known, 0)], 0.0).astype(np.float32)


def _with_learned_maps(constants: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """What lies between component scores, as it was in training: it is of cells, and no region is in it."""
    kept: dict[str, Any] = {"alignment_head": old["alignment_head"]} if "alignment_head" in old else {}
    if "between" in old.get("linear", {}):
        kept["linear"] = {**constants["linear"], "between": old["linear"]["between"]}
    return constants | kept
