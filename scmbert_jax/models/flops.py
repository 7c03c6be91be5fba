"""Floating-point operations of a training step, counted by hand: the one formula behind MFU and `scmbert plan`.

A product of [m, k] and [k, n] is 2 m k n operations. A training step is three times its forward pass: each product has
two more in the backward pass. So with P the parameters of matrices that a token passes, L layers of attention width
W = num_heads * head_dim and rows of S tokens, `[CLS]` included,

    6 P + 12 L S W        operations per token

(Kaplan et al. 2020, section 2.1; PaLM, Chowdhery et al. 2022, appendix B; attention in full, both ways). `favor` has
24 L M W instead of 12 L S W, M its random features. To this come, once for each prediction, the heads and decoders.

What counts is what the task needs: real tokens only, never padding; nothing that remat computes again; heads at masked
positions alone; in the last layer `[CLS]` alone, where nothing else of it is read. Left out, each far below 1%: norms,
softmax and other element-wise work, rows gathered from tables, matrices of a handful of rows or columns (output layers,
modality vectors), the linear path's component scores, and the optimizer. XLA's own count is of no use here: it sees the
body of a scan once, and nothing inside a kernel.
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig, ModelConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.embeddings import VALUE_ENCODINGS, link_arrays, padded_rows

# `encoder`: its matrices; `attention`: its products of tokens; `heads`: all that predicts.
PARTS = ("embedding", "encoder", "attention", "heads")
# A forward pass, and the two products of the backward pass for each of it.
FORWARD_AND_BACKWARD = 3


class TokenCounts(NamedTuple):
    """How many real tokens each cell of a step has.

    Attributes:
      lengths: modality -> float [B]; 0 where it was not measured.
      expressed: modality -> float [B], those with a count above 0.
      measured: modality -> float [B], features that were measured in the cell, tokens or not.
    """

    lengths: dict[str, np.ndarray]
    expressed: dict[str, np.ndarray]
    measured: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def num_cells(self) -> int:
        return len(next(iter(self.lengths.values())))

    @property
    def num_tokens(self) -> float:
        """Real tokens of all cells, without `[CLS]`."""
        return float(sum(of_one.sum() for of_one in self.lengths.values()))


def counts_of_batch(batch: CellBatch) -> TokenCounts:
    """Of a batch of numpy arrays."""
    lengths, expressed, measured = {}, {}, {}
    for name, tokens in batch.modalities.items():
        lengths[name] = np.asarray(tokens.lengths, np.float64)
        expressed[name] = (np.asarray(tokens.counts) > 0).sum(axis=1).astype(np.float64)
        measured[name] = np.asarray(tokens.num_measured, np.float64)
    return TokenCounts(lengths, expressed, measured)


def counts_of_full_cells(config: ExperimentConfig, num_cells: int, layout: FeatureLayout | None = None) -> TokenCounts:
    """Of cells measured in every feature of every modality of the run, each with as many tokens as it may have.

    `layout`: only `whole_profile` asks how many features there are.
    """
    in_use = config.modalities.in_use()
    lengths = {name: np.full(num_cells, float(own.num_tokens)) for name, own in in_use.items()}
    expressed = {name: lengths[name] * (1 - own.zero_fraction) for name, own in in_use.items()}
    slices = {} if layout is None else layout.slices
    measured = {name: np.full(num_cells, float(np.ptp(slices[name]))) for name in in_use if name in slices}
    return TokenCounts(lengths, expressed, measured)


def forward_flops(config: ExperimentConfig, tokens: TokenCounts) -> dict[str, float]:
    """What embedding these cells needs, nothing hidden: `embedding`, `encoder` and `attention` of a forward pass."""
    return encoded(config, tokens.lengths, cell_only=True)


def feature_table_flops(config: ExperimentConfig, layout: FeatureLayout) -> float:
    """Of the projections of linked genes, once per step (per microbatch), forward and backward."""
    return FORWARD_AND_BACKWARD * 2.0 * padded_rows(layout) * config.model.embed_dim**2 * len(link_arrays(layout))


def encoder_parameters(model: ModelConfig) -> int:
    """Parameters of matrices of the layers, P: what each token passes."""
    dim, width = model.embed_dim, model.num_heads * model.head_dim
    return model.num_layers * (4 * dim * width + 2 * dim * model.mlp_dim)


# --- forward passes, by part: what the `flops` of an objective are put together from ---------------------------------


def _attention(model: ModelConfig, num_layers: int, queries: np.ndarray, keys: np.ndarray) -> float:
    """Of products between tokens: queries, keys float [B], how many there are in each row."""
    width = model.num_heads * model.head_dim
    if model.attention == "favor":
        # Features of queries and of keys, their sums with the values, and reading those: four products with M.
        number = model.favor_features or max(1, int(model.head_dim * math.log(model.head_dim)))
        return float(num_layers * 4.0 * number * width * (queries + keys).sum())
    return float(num_layers * 4.0 * width * (queries * keys).sum())


def encoded(config: ExperimentConfig, lengths: Mapping[str, np.ndarray], cell_only: bool = False) -> dict[str, float]:
    """One pass of the encoder over these tokens, `[CLS]` before each row (or before each modality's own)."""
    model = config.model
    dim, width = model.embed_dim, model.num_heads * model.head_dim
    if model.encoder_sharing == "per_modality":
        rows = [np.where(own > 0, own + 1, 0) for own in lengths.values()]
    else:
        total = np.sum([*lengths.values()], axis=0)
        rows = [np.where(total > 0, total + 1, 0)]
    encodings = {name: VALUE_ENCODINGS[own.value_encoding] for name, own in config.modalities.in_use().items()}
    num_tokens, num_rows = float(sum(row.sum() for row in rows)), float(sum((row > 0).sum() for row in rows))
    whole_layers, of_layer = model.num_layers - cell_only, encoder_parameters(model) / model.num_layers
    encoder = 2.0 * whole_layers * of_layer * num_tokens
    attention = sum(_attention(model, whole_layers, row, row) for row in rows)
    if cell_only:
        encoder += 2.0 * of_layer * num_rows
        if model.attention == "favor":  # all keys and values, one query
            encoder += 2.0 * 2 * dim * width * (num_tokens - num_rows)
            attention += sum(_attention(model, 1, (row > 0).astype(float), row) for row in rows)
        else:  # one query of width D for each head (`Attention.of_one`)
            attention += 4.0 * model.num_heads * dim * num_tokens
    return {
        "embedding": sum(encodings[name].flops(dim) * float(own.sum()) for name, own in lengths.items()),
        "encoder": encoder,
        "attention": attention,
        "heads": 0.0,
    }


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum by part; a part that is not named counts 0."""
    total = dict.fromkeys(PARTS, 0.0)
    for part in parts:
        for name, flops in part.items():
            total[name] += flops
    return total


def decoded(config: ExperimentConfig, queries: np.ndarray, source: np.ndarray) -> dict[str, float]:
    """The translation decoder and its head: queries float [B] of cells whose encoded source has `source` [B] tokens."""
    model = config.model
    dim, width = model.embed_dim, model.num_heads * model.head_dim
    keys = np.where(queries > 0, source + 1, 0)  # [CLS], too
    # The query's own [D, D], the cell decoder's and the head's; of the cell decoder, two for each cell.
    heads = 2.0 * 3 * dim**2 * queries.sum() + 2.0 * 2 * dim**2 * (queries > 0).sum()
    per_query, per_key = 2 * dim * width + 2 * dim * model.mlp_dim, 2 * dim * width
    heads += 2.0 * model.decoder_layers * (per_query * queries.sum() + per_key * keys.sum())
    return {"heads": float(heads), "attention": _attention(model, model.decoder_layers, queries, keys)}
