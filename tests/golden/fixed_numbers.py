"""Numbers for the statistics and the parameters of a model in which neither a corpus nor a training step has a part."""

import zlib
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from data_pipelines.statistics.feature_statistics import STORED_AS, from_arrays
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import (
    LIBRARY_QUANTILES,
    NUM_COMPONENTS,
    NUM_FOLDS,
    FeatureLayout,
    FeatureStatistics,
    LinearStatistics,
)
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.scmbert import ModelDefinition


def with_fixed_statistics(
    config: ExperimentConfig, layout: FeatureLayout, lowest: float = 0.0, linear_scale: float = 1.0
) -> ModelDefinition:
    """The model of `config`; its statistics are between `lowest` and 1, those of the linear path times `linear_scale`.
    From 0 and times 1 they make losses of millions, beside which all others vanish."""
    rng = np.random.default_rng(1)
    rows, many = layout.num_features, len(MODALITIES)
    shapes = {
        "loadings": (rows, NUM_COMPONENTS),
        "component_offset": (many, NUM_COMPONENTS),
        "translation_maps": (1 + NUM_FOLDS, many, many, NUM_COMPONENTS, NUM_COMPONENTS),
        "alignment_maps": (many, NUM_COMPONENTS, NUM_COMPONENTS),
        "memory_scores": (10, many, NUM_COMPONENTS),
        "memory_measured": (10, many),
        "memory_folds": (10,),
        "neighbour_fractions": (many, many),
        "library_quantiles": (many, len(LIBRARY_QUANTILES)),
    }
    names = [*FeatureStatistics._fields[:-2], *LinearStatistics._fields, "library_quantiles"]
    numbers = {name: lowest + (1 - lowest) * rng.random(shapes.get(name, (rows,)), np.float32) for name in names}
    for name in LinearStatistics._fields:
        numbers[name] = numbers[name] * np.float32(linear_scale)
    numbers["memory_measured"] = np.ones(shapes["memory_measured"], bool)
    numbers["memory_folds"] = np.arange(10, dtype=np.int32) % NUM_FOLDS + 1
    numbers["library_quantiles"] = 50 + 100 * np.sort(numbers["library_quantiles"], axis=1)
    stored = {STORED_AS.get(name, name): array for name, array in numbers.items()}
    return ModelDefinition(config, replace(layout, statistics=from_arrays(stored, linear_path=True)))


def fixed(tree: Any, deviation: float) -> Any:
    """float32 arrays of the same shapes, normal around 0: a pure function of where each stands in the tree."""

    def numbers_of(path: tuple, leaf: Any) -> np.ndarray:
        own = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return (deviation * own.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(numbers_of, tree)
