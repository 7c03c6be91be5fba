"""Whole cells of a file or a corpus as batches of tokens, drawn and hidden as in training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.sparse as sp

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling, collate_counts, empty_tokens, unwritten_profile
from data_pipelines.batches.model_counts import model_counts
from data_pipelines.batches.whole_cells import first_cells
from data_pipelines.build.corpus_overlap import KnownCells, cells_of_corpus, open_known_cells
from data_pipelines.cells.cell_selection import CellSelection
from data_pipelines.corpus.corpus import Corpus, open_corpus
from data_pipelines.corpus.manifest import MANIFEST
from data_pipelines.corpus.storage import is_url
from data_pipelines.sampling.mixture import Mixture, MixtureOptions
from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
from scmbert_jax.batch import CellBatch, CellProfile, ModalityTokens
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.pretraining.masked_baselines import MASKED_BASELINES, MaskedBaselines
from scmbert_jax.evaluation.pretraining.masked_training import MaskedTraining
from scmbert_jax.evaluation.pretraining.masked_values import (
    MODEL,
    MODEL_FROM_CLS,
    MODEL_PROFILE,
    CellTokens,
    MaskedBits,
    by_modality,
    joined_tokens,
    masked_bits,
    masked_tokens,
    score_tokens,
)
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.random_keys import KeyPurpose, key_for, run_key
from scmbert_jax.tasks.model_cells import ModelCells, open_model_cells

Array = np.ndarray

# How the evaluator `masked` calls each method in metrics.jsonl: MODALITY/NAME, MODALITY/level/LEVEL/NAME.
METRIC_NAMES = {
    MODEL: "bits",
    MODEL_FROM_CLS: "bits_cls",
    MODEL_PROFILE: "bits_profile",
    LINEAR_PATH_ALONE: "bits_linear_path_alone",
    **{own.name: own.metric for own in reversed(MASKED_BASELINES)},
}

ROWS = 64  # cells of a device call
_COLLATED = 1024  # cells whose tokens are held at a time
# Masked tokens of a modality that baselines are fitted on: the cells are drawn again, with other tokens, until there
# are so many, at most _MOST_DRAWS times.
_FITTED_TOKENS, _MOST_DRAWS = 400_000, 4
# Of a file, and of a corpus as counts above zero: some thousand cells of a whole transcriptome.
_TRAINING_CELLS, _TRAINING_COUNTS = 5000, 4_000_000


def cells_of_file(opened: ModelCells, rows: Array) -> WholeCells:
    """The cells `rows` int64 [n] ascending of an open file, in the features of the model."""
    parts: dict[str, list[sp.csr_matrix]] = {name: [] for name in opened.overlaps}
    measured: dict[str, list[Array]] = {name: [] for name in opened.overlaps}
    for chunk in model_counts(opened.dataset, opened.report, opened.overlaps):
        number = len(next(iter(chunk.measured.values())))
        mine = rows[(rows >= chunk.first) & (rows < chunk.first + number)] - chunk.first
        for name, counts in chunk.counts.items():
            parts[name].append(counts[mine])
            measured[name].append(chunk.measured[name][mine])
    modalities = {}
    for name, overlap in opened.overlaps.items():
        has = np.flatnonzero(np.concatenate(measured[name]))
        counts = sp.vstack(parts[name], format="csr")[has].astype(np.float64)
        logs = counts.copy()
        logs.data = np.log1p(logs.data)
        modalities[name] = CellCounts(
            cells=has,
            counts=counts,
            library_size=np.asarray(counts.sum(axis=1)).ravel(),
            mean_log_count=np.asarray(logs.sum(axis=1)).ravel() / max(int(overlap.measured.sum()), 1),
            panel_of=np.zeros(len(has), np.int64),
            panels=overlap.measured[None],
        )
    nothing = np.full(len(rows), -1, np.int32)
    return WholeCells({name: own for name, own in modalities.items() if len(own.cells)}, nothing, nothing)


def training_cells(
    model: PretrainedModel, spec: Any, organism: str | None, assembly: str | None
) -> tuple[WholeCells, KnownCells]:
    """Some cells to fit on, and all that they are some of, by which other cells are compared with them.

    Of a corpus those that a run of the model's configuration draws first, none that the model's own run held out or
    left out; of a file some drawn by chance.

    Raises `InputError` for a corpus of other features than the model's; what `open_known_cells` raises.
    """
    config = model.config
    if not (isinstance(spec, (str, Path)) and (is_url(spec) or (Path(spec) / MANIFEST).is_file())):
        opened = open_model_cells(model, spec, organism=organism, assembly=assembly)
        rows = np.sort(np.random.default_rng(0).permutation(len(opened.dataset.cell_ids))[:_TRAINING_CELLS])
        return cells_of_file(opened, rows), open_known_cells(opened.dataset, organism=organism, assembly=assembly)
    with open_corpus(spec) as corpus:
        if corpus.feature_space.content_hash != model.feature_space.content_hash:
            raise InputError(
                f"{spec}: its features are not those of the model. Give the corpus that the model was trained on, or a "
                "file of its cells."
            )
        mixture = Mixture([corpus], _as_in_training(model, corpus), list(config.modalities.in_use()))
        reader = BatchReader(
            mixture,
            sampling_of(config),
            seed=config.seed,
            global_batch_size=config.data.global_batch_size,
            num_streams=config.data.num_streams,
            window_blocks=config.data.window_blocks,
        )
        return first_cells(reader, _TRAINING_COUNTS), cells_of_corpus(corpus, mixture.drawn_rows(0))


def _as_in_training(model: PretrainedModel, corpus: Corpus) -> MixtureOptions:
    """Which cells of a corpus the model's run drew, if it was one of its own."""
    run = model.info["provenance"].get("data") or {}
    places = [n for n, known in enumerate(run.get("corpora", ())) if known["fingerprint"] == corpus.fingerprint]
    if not places:
        return MixtureOptions()
    selection = CellSelection(run["options"].get("only", {}), run["options"].get("exclude", {}))
    held_out = tuple(run["held_out"][places[0]]["rules"]) if "held_out" in run else None
    return MixtureOptions(selection=selection, held_out=held_out)


def sampling_of(config: ExperimentConfig) -> dict[str, TokenSampling]:
    """How cells become tokens in training."""
    return {
        name: TokenSampling(modality.num_tokens, modality.zero_fraction, profile_tokens=config.profile_tokens)
        for name, modality in config.modalities.in_use().items()
    }


def token_batches(
    config: ExperimentConfig, layout: FeatureLayout, cells: WholeCells, seed: int
) -> Iterator[tuple[CellBatch, int]]:
    """The cells in their order, `ROWS` at a time, with as many tokens as in training; and how many rows are cells.

    The last rows of the last batch are repeated to fill it. Covariates are unknown: cells of another file, or of a
    donor that is held out, have none that the model was told of.
    """
    num_cells, sampling = len(cells.folds), sampling_of(config)
    for start in range(0, num_cells, _COLLATED):
        stop = min(start + _COLLATED, num_cells)
        whole = {
            name: _collated(own, name, sampling[name], layout, start, stop, seed)
            for name, own in cells.modalities.items()
        }
        for first in range(0, stop - start, ROWS):
            rows = np.arange(first, min(first + ROWS, stop - start))
            filled = np.resize(rows, ROWS)
            mine = jax.tree.map(lambda x, r=filled: x[r], whole)
            batch = CellBatch(
                modalities={name: tokens for name, (tokens, _) in mine.items()},
                covariates={name: np.full(ROWS, -1, np.int32) for name in config.model.covariates},
                cell_index=(start + filled).astype(np.int32),
                row=(start + filled).astype(np.int32),  # so that a cell's mask does not depend on its place
                profiles={name: profile for name, (_, profile) in mine.items()} if config.profile_tokens else None,
            )
            yield batch, len(rows)


def _collated(
    own: CellCounts, name: str, sampling: TokenSampling, layout: FeatureLayout, start: int, stop: int, seed: int
) -> tuple[ModalityTokens, CellProfile | None]:
    """Tokens and profiles of the cells start .. stop - 1; those of each panel are made by themselves."""
    here = slice(*np.searchsorted(own.cells, [start, stop]))
    counts, panel_of, library_size, cells = (
        own.counts[here],
        own.panel_of[here],
        own.library_size[here],
        own.cells[here],
    )
    whole: Any = empty_tokens(stop - start, sampling.num_tokens), None
    if sampling.profile_tokens:
        profile = unwritten_profile(stop - start, sampling.profile_tokens, counts.shape[1])
        whole = whole[0], jax.tree.map(np.zeros_like, profile)
    for panel in np.unique(panel_of).tolist():
        mine = np.flatnonzero(panel_of == panel)
        batch = collate_counts(
            {name: counts[mine].astype(np.int64)},
            {name: sampling},
            layout.slices,
            {name: own.panels[panel]},
            library_size={name: library_size[mine]},
            seed=seed,
            cell_keys=cells[mine].astype(np.uint64),
        )
        found = batch.modalities[name], (batch.profiles or {}).get(name)
        for to, values in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
            to[cells[mine] - start] = values
    return whole


def fit_baselines(config: ExperimentConfig, layout: FeatureLayout, cells: WholeCells, seed: int) -> MaskedBaselines:
    """`MaskedBaselines` on draws of the tokens of training cells; a pure function of its arguments."""
    num_cells = len(cells.folds)
    parts: dict[str, list[CellTokens]] = {}
    for draw in range(_MOST_DRAWS):
        key, first = mask_key(seed + draw), draw * num_cells
        for batch, number in token_batches(config, layout, cells, seed + draw):
            scored = jax.tree.map(lambda x, n=number: np.asarray(x)[:n], masked_tokens(config, batch, key))
            for name, (own, _) in by_modality(scored, config, layout, first).items():
                parts.setdefault(name, []).append(own)
            first += number
        fewest = min((sum(int(own.masked.sum()) for own in of) for of in parts.values()), default=_FITTED_TOKENS)
        if fewest >= _FITTED_TOKENS:
            break
    tokens = {name: joined_tokens(of) for name, of in parts.items()}
    return MaskedBaselines(MaskedTraining(config, layout, cells, tokens))


def scored_cells(
    model: PretrainedModel, cells: WholeCells, seed: int
) -> dict[str, tuple[CellTokens, dict[str, Array]]]:
    """Modality -> (the tokens of the cells, method -> nats of the masked ones) of a model (`score_tokens`)."""
    definition, found, first = model.definition, [], 0
    for batch, number in token_batches(model.config, definition.layout, cells, seed):
        scored = _score_tokens(definition, model.params, model.constants, batch, mask_key(seed))
        scored = jax.tree.map(lambda x, n=number: np.asarray(x)[:n], scored)
        found.append(by_modality(scored, model.config, definition.layout, first))
        first += number
    joined = {}
    for name in dict.fromkeys(name for part in found for name in part):
        mine = [part[name] for part in found if name in part]
        nll = {method: np.concatenate([of[method] for _, of in mine]) for method in mine[0][1]}
        joined[name] = joined_tokens([tokens for tokens, _ in mine]), nll
    return joined


_score_tokens = jax.jit(score_tokens, static_argnums=0)


def mask_key(seed: int) -> jax.Array:
    """The key of an evaluation's masks; with the number of a cell it gives that of the cell."""
    return key_for(run_key(seed), KeyPurpose.EVALUATION)


def all_bits(
    config: ExperimentConfig,
    scored: Mapping[str, tuple[CellTokens, Mapping[str, Array]]],
    beside: Mapping[str, Mapping[str, Array]],
    groups: Array,
) -> tuple[MaskedBits, ...]:
    """Of a model and what stands beside it (`MaskedBaselines.nll` of the same tokens), of each modality of which the
    model says how likely values are."""
    found = []
    for name, (tokens, nll) in scored.items():
        if nll:  # a density is no number of bits
            modality = config.modalities.in_use()[name]
            masked = tokens.at(tokens.masked)
            found.append(masked_bits(name, modality, masked, {**nll, **beside[name]}, groups))
    return tuple(found)
