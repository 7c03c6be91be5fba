"""The linear path of a regulatory model: logistic regression (of values: ridge) on what a sequence is made of.

    kmers     log(1 + count) of the k-mers of some lengths, of one strand or of both
    gapped    log(1 + count) of six of eight neighbours, whatever the other two are, of one strand or of both
    bases     which base, pair and triple of neighbours stands at which position: of sequences of one length
    motifs    how well each motif fits: its best score, and log2 of the mean likelihood ratio

Fitted by L-BFGS to mean loss + |W|^2 / (2 C n); what is chosen (k, strands, C) has the least loss on dev. Every
part is a function of one-hot sequences in JAX, so that attributions go through it.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.regulation.labelled import Kind, LabelledSequences
from scmbert_jax.regulation.losses import row_losses, row_weights
from scmbert_jax.sequences.gapped_kmers import gap_patterns, gapped_counts, gapped_matrix
from scmbert_jax.sequences.kmer_counts import kmer_counts, kmer_places, reverse_complements, words
from scmbert_jax.sequences.motif_scanner import MotifScanner, Summary

Array = np.ndarray
LinearKind = Literal["kmers", "gapped", "bases", "motifs"]

C_GRID = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# Sequences by which C and k are chosen; then the chosen part is fitted to all.
_MOST_TO_CHOOSE_BY = 10_000
_MOST_COUNTED = (
    200_000_000  # words of sequences that are fitted to: a sparse matrix of them takes 8 bytes for each, twice
)
_SUMMARIES: tuple[Summary, ...] = ("max", "log_mean_exp")
_LEAST_SCORE = -30.0  # bits, of a motif that is longer than the sequence


@dataclass(frozen=True)
class LinearDefinition:
    """What a linear part reads.

    Attributes:
      kind: see above.
      sizes: bases of the k-mers, or of the words at a position; of `gapped` the window, and how many of it are read.
      both: words are counted on both strands, those of a pair as one. A part of motifs always reads both.
      scanner: of the motifs.
    """

    kind: LinearKind
    sizes: tuple[int, ...] = ()
    both: bool = False
    scanner: MotifScanner | None = None

    def features(self, one_hot: jax.Array) -> jax.Array:
        """float32 [N, F] of one_hot [N, L, 4]."""
        if self.kind == "kmers":
            return jnp.concatenate([jnp.log1p(self._counts(one_hot, k)) for k in self.sizes], axis=1)
        if self.kind == "gapped":
            window, k = self.sizes
            return jnp.log1p(gapped_counts(one_hot, window, k, self.both))
        if self.kind == "bases":
            return jnp.concatenate([words(one_hot, k).reshape(len(one_hot), -1) for k in self.sizes], axis=1)
        return motif_features(self.scanner, one_hot)

    def _counts(self, one_hot: jax.Array, k: int) -> jax.Array:
        counts = kmer_counts(one_hot, k)
        if not self.both:
            return counts
        turned = reverse_complements(k)
        first = np.flatnonzero(np.arange(len(turned)) <= turned)
        return counts[:, first] + counts[:, turned[first]]

    def __call__(self, params: Any, one_hot: jax.Array) -> jax.Array:
        """float32 [N, K]."""
        return jnp.matmul(self.features(one_hot), params["weight"], precision="highest") + params["bias"][None]

    def name(self) -> str:
        if self.kind == "motifs":
            return "motifs"
        sizes = f"{self.sizes[1]} of {self.sizes[0]}" if self.kind == "gapped" else ", ".join(map(str, self.sizes))
        return f"{self.kind} of {sizes}" + (", both strands" if self.both else "")

    def words_of(self, length: int) -> int:
        """About how many entries a row of `matrix_of` has, of sequences of this length; of motifs 0."""
        if self.kind == "gapped":
            return length * len(gap_patterns(*self.sizes))
        return length * len(self.sizes)


@dataclass(frozen=True)
class Part:
    """A function of sequences with its numbers: `definition(params, one_hot [N, L, 4])` -> float32 [N, K].

    Attributes:
      definition: compared by value (its scanner by identity), so that what is compiled serves others of its kind.
      params: a tree of float32 arrays.
      info: how it was chosen.
    """

    definition: Any
    params: Any
    info: dict[str, Any]


def motif_features(scanner: Any, one_hot: jax.Array) -> jax.Array:
    """float32 [N, 2 M]: the scores of `_SUMMARIES`, bits."""
    found = scanner.scan(one_hot, summaries=_SUMMARIES)
    return jnp.maximum(jnp.concatenate([found[name] for name in _SUMMARIES], axis=1), _LEAST_SCORE)


def scanner_of(motifs: MotifSet) -> MotifScanner:
    """The same object for the same motifs, so that what was compiled with one serves the next fit."""
    return _scanner(tuple((matrix.shape, matrix.tobytes()) for matrix in motifs.log_odds()))


@lru_cache(maxsize=4)
def _scanner(log_odds: tuple[tuple[tuple[int, ...], bytes], ...]) -> MotifScanner:
    return MotifScanner([np.frombuffer(data).reshape(shape) for shape, data in log_odds])


def matrix_of(definition: LinearDefinition, codes: Array) -> Any:
    """float32 [N, F] on the host, the same numbers as `LinearDefinition.features`: a CSR matrix, of motifs an array."""
    if definition.kind == "motifs":
        assert definition.scanner is not None
        found = definition.scanner(codes, summaries=_SUMMARIES)
        return np.maximum(np.concatenate([found[name] for name in _SUMMARIES], axis=1), _LEAST_SCORE)
    if definition.kind == "kmers":
        return sp.hstack([_counted(codes, k, definition.both) for k in definition.sizes], format="csr")
    if definition.kind == "gapped":
        window, k = definition.sizes
        return gapped_matrix(codes, window, k, definition.both).log1p()
    return sp.hstack([_placed(codes, k) for k in definition.sizes], format="csr")


def _placed(codes: Array, k: int) -> sp.csr_array:
    places, known = kmer_places(codes, k)
    rows, positions = np.nonzero(known)
    columns = positions * 4**k + places[known]
    shape = (len(codes), places.shape[1] * 4**k)
    return sp.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def _counted(codes: Array, k: int, both: bool) -> sp.csr_array:
    places, known = kmer_places(codes, k)
    size = 4**k
    if both:
        turned = reverse_complements(k)
        first = np.flatnonzero(np.arange(size) <= turned)
        column = np.zeros(size, np.int64)
        column[first] = column[turned[first]] = np.arange(len(first))
        twice = (turned == np.arange(size))[places]  # its own reverse complement: counted on both strands
        places, size = column[places], len(first)
        values = 1 + twice[known].astype(np.float32)
    else:
        values = np.ones(int(known.sum()), np.float32)
    counts = sp.csr_array((values, (np.nonzero(known)[0], places[known])), shape=(len(codes), size))
    counts.sum_duplicates()
    return counts.log1p()


def fit_linear_part(
    candidates: list[LinearDefinition],
    train: LabelledSequences,
    dev: LabelledSequences,
    targets: tuple[Array, Array],
    balance: float = 0.0,
    known: dict[LinearDefinition, tuple[Any, Any]] | None = None,
) -> tuple[Part, Array]:
    """(the candidate with the C that has the least loss on dev, fitted to `train`; its outputs [m, K] there).

    It is fitted to all of `train`, or to as many sequences, evenly spaced, as have `_MOST_COUNTED` words.

    Args:
      candidates: at least one.
      targets: those of train and dev, float32 [N, T]; of values standardised.
      balance: see `row_weights`.
      known: what `matrix_of` gives of train and dev, where it has been computed.
    """
    known = known or {}
    chosen: tuple[float, LinearDefinition, float, Any] | None = None
    few = _evenly(len(train), _MOST_TO_CHOOSE_BY)
    weights = row_weights(train, balance)
    kind = train.task.kind
    tried = {}
    for definition in candidates:
        features = known[definition][0][few] if definition in known else matrix_of(definition, train.codes[few])
        of_dev = known[definition][1] if definition in known else matrix_of(definition, dev.codes)
        scale = _Scale.of(features)
        x, x_dev = scale(features), scale(of_dev)
        theta, least = None, np.inf
        for c in C_GRID:
            theta = _fit(kind, x, targets[0][few], weights[few], c, train.task.num_outputs, theta)
            outputs = x_dev @ theta[:-1] + theta[-1]
            loss = float(np.mean(np.asarray(row_losses(kind, jnp.asarray(outputs), jnp.asarray(targets[1])))))
            tried[f"{definition.name()}, C {c:g}"] = loss
            if chosen is None or loss < chosen[0]:
                chosen = (loss, definition, c, of_dev)
            if loss > least:
                break  # weaker penalties only get worse
            least = loss
    assert chosen is not None
    loss, definition, c, of_dev = chosen
    rows = _evenly(len(train), _MOST_COUNTED // max(definition.words_of(train.codes.shape[1]), 1))
    features = known[definition][0] if definition in known else matrix_of(definition, train.codes[rows])
    scale = _Scale.of(features)
    fitted = scale.undone(_fit(kind, scale(features), targets[0][rows], weights[rows], c, train.task.num_outputs, None))
    info = {"name": definition.name(), "c": c, "dev_loss": loss, "tried": tried, "sequences": len(rows)}
    return Part(definition, fitted, info), np.asarray(of_dev @ fitted["weight"] + fitted["bias"], np.float32)


def _evenly(number: int, most: int) -> Array:
    """int64: at most `most` of `number` places, evenly spaced."""
    return np.unique(np.linspace(0, number - 1, max(min(most, number), 1)).astype(np.int64))


@dataclass(frozen=True)
class _Scale:
    """Features as they are fitted: of motifs less their mean, in units of their deviation; float32 [F] each. Others are
    mostly 0, and stay as they are."""

    mean: Array
    scale: Array

    @classmethod
    def of(cls, features: Any) -> "_Scale":
        if isinstance(features, np.ndarray):
            return cls(features.mean(0), np.maximum(features.std(0), 1e-6))
        return cls(np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32))

    def __call__(self, features: Any) -> Any:
        return (features - self.mean) / self.scale if isinstance(features, np.ndarray) else features

    def undone(self, theta: Array) -> dict[str, Array]:
        """Numbers [F + 1, K] of the fit as weight [F, K] and bias [K] of the features as they are."""
        weight = theta[:-1] / self.scale[:, None]
        return {"weight": weight.astype(np.float32), "bias": (theta[-1] - self.mean @ weight).astype(np.float32)}


def _fit(kind: Kind, x: Any, targets: Array, weights: Array, c: float, outputs: int, start: Array | None) -> Array:
    """float32 [F + 1, K]: weights, and the bias in the last row, which is not penalised."""
    shape, decay = (x.shape[1] + 1, outputs), 1 / (c * x.shape[0])
    turned = x.T.tocsr() if sp.issparse(x) else x.T
    first = np.zeros(shape, np.float32) if start is None else start

    def loss(flat: Array) -> tuple[float, Array]:
        theta = flat.reshape(shape).astype(np.float32)
        value, slopes = (np.asarray(own) for own in _slopes(kind, x @ theta[:-1] + theta[-1], targets, weights))
        gradient = np.concatenate([turned @ slopes + decay * theta[:-1], slopes.sum(0, keepdims=True)])
        return float(value) + decay / 2 * float((theta[:-1] ** 2).sum()), gradient.ravel().astype(np.float64)

    options = {"maxiter": 150, "gtol": 3e-5, "ftol": 1e-6}
    found = minimize(loss, first.ravel().astype(np.float64), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(shape).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def _slopes(kind: Kind, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weighted mean loss of outputs [N, K], and its gradient by them."""
    return jax.value_and_grad(lambda outputs: (weights * row_losses(kind, outputs, targets)).mean())(outputs)
