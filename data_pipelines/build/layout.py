"""Where every cell and every feature goes in a corpus: decided once, by one process, between check and pass 1."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.build.external_shuffle import cell_hashes, shuffled_order
from data_pipelines.build.options import BuildOptions
from data_pipelines.build.sources import Source, joint_feature_space, key_columns
from data_pipelines.cells import cell_metadata
from data_pipelines.cells.held_out import held_out_cells
from data_pipelines.features.feature_space import FeatureSpace
from scmbert_jax.modalities import MODALITIES


class CorpusLayout(NamedTuple):
    """The N cells that stay, in corpus order, and what is known of them.

    Attributes:
      feature_space: of the corpus.
      corpus_rows: per data set, int64 [its cells]: row in the corpus, -1 where it is dropped.
      obs: N rows.
      vocabularies: coded field of obs -> its values.
      codes: the same -> int [N].
      measured: modality -> bool [N].
    """

    feature_space: FeatureSpace
    corpus_rows: list[np.ndarray]
    obs: pd.DataFrame
    vocabularies: dict[str, list[str]]
    codes: dict[str, np.ndarray]
    measured: dict[str, np.ndarray]

    @property
    def num_cells(self) -> int:
        return len(self.obs)


def decide(sources: list[Source], options: BuildOptions, out: Path) -> CorpusLayout:
    """Raises InputError where rules of held-out cells do not fit these; it names `out`."""
    feature_space = joint_feature_space(sources)
    order, corpus_rows = _order(sources, options.seed)
    vocabularies, codes, obs = _metadata(sources, order)
    if options.held_out:
        held_out_cells(obs, options.held_out, str(out))
    measured = _measured_cells(feature_space, sources, corpus_rows)
    return CorpusLayout(feature_space, corpus_rows, obs, vocabularies, codes, measured)


def _order(sources: list[Source], seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The cells that the check keeps, int64 [N] into their concatenation by data set; and `corpus_rows`."""
    kept = [source.kept for source in sources]
    keys = [
        source.dataset.cell_ids if source.dataset.shuffle_keys is None else source.dataset.shuffle_keys
        for source in sources
    ]
    hashes = np.concatenate(
        [
            cell_hashes(seed, index, names[positions])
            for index, (names, positions) in enumerate(zip(keys, kept, strict=True))
        ]
    )
    dataset_of = np.concatenate([np.full(len(positions), index, np.int32) for index, positions in enumerate(kept)])
    order = shuffled_order(hashes, dataset_of, keys, np.concatenate(kept))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    corpus_rows = []
    first = 0
    for source, positions in zip(sources, kept, strict=True):
        rows = np.full(len(source.dataset.cell_ids), -1, np.int64)
        rows[positions] = ranks[first : first + len(positions)]
        corpus_rows.append(rows)
        first += len(positions)
    return order, corpus_rows


def _metadata(
    sources: list[Source], order: np.ndarray
) -> tuple[dict[str, list[str]], dict[str, np.ndarray], pd.DataFrame]:
    """Vocabularies, codes and the obs table, in corpus order."""
    tables = [
        cell_metadata.dataset_metadata(
            source.name, source.dataset.cell_ids, source.dataset.obs, source.report.obs_fields, source.kept
        )
        for source in sources
    ]
    modalities = [name for name in MODALITIES if any(name in source.report.modalities for source in sources)]
    joined = cell_metadata.join_metadata(tables).assign(**key_columns(sources, modalities))
    obs = joined.iloc[order].reset_index(drop=True)
    vocabularies, codes = cell_metadata.code_fields(obs, [source.name for source in sources])
    return vocabularies, codes, obs


def _measured_cells(
    feature_space: FeatureSpace, sources: list[Source], corpus_rows: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """modality -> bool [N], in corpus order."""
    measured = {name: np.zeros(sum(len(source.kept) for source in sources), bool) for name in feature_space.modalities}
    for source, rows in zip(sources, corpus_rows, strict=True):
        for matrix, positions in zip(source.matrices, source.rows, strict=True):
            measured[matrix.modality][rows[positions[positions >= 0]]] = True
    return measured
