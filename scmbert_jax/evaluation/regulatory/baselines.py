"""What a model of DNA has to beat: linear models of words, of places and of motifs, their mean, and a small CNN.

Each is tuned on dev: which words, which strength. Every method is a function of a split and a seed that gives
probabilities of the classes for dev and test; those that have no randomness ignore the seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.regulatory.small_cnn import fit_small_cnn
from scmbert_jax.evaluation.regulatory.words import column_scales, placed_words, word_counts
from scmbert_jax.regulation.labelled import LabelledSequences
from scmbert_jax.sequences.motif_scanner import MotifScanner

Array = np.ndarray
Inputs = tuple[Any, Any, Any]  # columns of the training, dev and test sequences

KMERS, ONE_HOT, PLACES, MOTIFS = "k-mers", "one-hot", "words at places", "motifs"
K_AND_M, CONCATENATED, BEST_MEAN, CNN = "K+M", "k-mers and motifs in one", "mean of those above", "small CNN"

_WORDS = ((5,), (6,), (7,), (3, 4, 5, 6), (4, 5, 6, 7))
# Of the logistic regression's C, weakest first; tried until dev gets worse twice.
_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
_WORSE = 2
_LEAST_SCORE = -30.0  # bits, of a motif that is longer than the sequence
_LONGEST_PLACED = 300  # bases; a column per place and triple of longer sequences would be hundreds of thousands


@dataclass
class Split:
    """What learns, what chooses and what tests. Columns are made once for all methods.

    Attributes:
      scanner: of motifs; None: methods of motifs have no row.
      whole, rows: the split that this one has some training sequences of.
    """

    train: LabelledSequences
    dev: LabelledSequences
    test: LabelledSequences
    scanner: MotifScanner | None = None
    whole: "Split | None" = field(default=None, repr=False)
    rows: Array | None = field(default=None, repr=False)
    made: dict[Any, Inputs] = field(default_factory=dict, repr=False)
    fitted: dict[str, "Fitted"] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> tuple[Array, Array, Array]:
        """int64 [n] each: the classes of train, dev and test."""
        train, dev, test = (part.targets[:, 0].astype(np.int64) for part in (self.train, self.dev, self.test))
        return train, dev, test

    def with_training_rows(self, rows: Array) -> "Split":
        """Fewer training sequences, int [m]; columns are those of the whole, as far as they are needed."""
        return Split(self.train.take(rows), self.dev, self.test, self.scanner, whole=self, rows=rows)

    def columns(self, make: Callable[[Array], Any], key: Any) -> Inputs:
        """`make(codes)` of the training, dev and test sequences; made once for each key."""
        if self.whole is not None:
            x, x_dev, x_test = self.whole.columns(make, key)
            return x[self.rows], x_dev, x_test
        if key not in self.made:
            parts = (self.train, self.dev, self.test)
            self.made[key] = tuple(make(part.codes) for part in parts)
        return self.made[key]


class Fitted(NamedTuple):
    """float64 [n, C] probabilities for dev and test; numbers that were fitted; what was chosen, in words."""

    dev: Array
    test: Array
    num_parameters: int
    chosen: str


@dataclass(frozen=True)
class Baseline:
    """A row. `fit(split, seed)`; `seeded`: other seeds give other figures; `needs`: "motifs" or nothing; `of`: names of
    methods above whose fits it is made of."""

    name: str
    fit: Callable[[Split, int], Fitted]
    seeded: bool = False
    needs: str = ""
    of: tuple[str, ...] = ()


def log_loss(probabilities: Array, labels: Array) -> float:
    """Mean over sequences, nats."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def logistic_regression(candidates: Iterator[tuple[str, Inputs]], split: Split) -> Fitted:
    """The candidate columns and the C with the least log-loss on dev."""
    from sklearn.linear_model import LogisticRegression

    train, dev, _ = split.labels
    best: tuple[float, Fitted] | None = None
    for name, (x, x_dev, x_test) in candidates:
        least, worse = np.inf, 0
        for c in _STRENGTHS:
            model = LogisticRegression(C=c, max_iter=400, tol=1e-3).fit(x, train)
            found = model.predict_proba(x_dev)
            loss = log_loss(found, dev)
            if best is None or loss < best[0]:
                number = int(np.count_nonzero(model.coef_)) + model.intercept_.size
                best = loss, Fitted(found, model.predict_proba(x_test), number, f"{name}, C {c:g}")
            worse = 0 if loss < least else worse + 1
            least = min(least, loss)
            if worse == _WORSE:
                break
    assert best is not None
    return best[1]


def word_inputs(split: Split, lengths: Sequence[int], count: str) -> Inputs:
    """Counts of words of several lengths side by side, scaled (`column_scales`)."""

    def counted(k: int) -> Inputs:
        return split.columns(lambda codes: word_counts(codes, k, count), (k, count))

    parts = [counted(k) for k in lengths]
    whole = [sp.hstack([part[place] for part in parts], format="csr") for place in range(3)]
    scale = sp.diags(column_scales(whole[0]))
    return tuple((part @ scale).tocsr() for part in whole)


def motif_inputs(split: Split) -> Iterator[tuple[str, Inputs]]:
    """The best score of each motif, and log2 of its mean likelihood ratio, in units of their deviation."""
    scanner = split.scanner
    assert scanner is not None
    for summary in ("max", "log_mean_exp"):

        def scanned(codes: Array, summary: Any = summary) -> Array:
            return np.maximum(scanner(codes, None, (summary,))[summary], _LEAST_SCORE)

        yield summary, _standardised(split.columns(scanned, summary))


def _standardised(inputs: Inputs) -> Inputs:
    mean, deviation = inputs[0].mean(0), np.maximum(inputs[0].std(0), 1e-6)
    return tuple((part - mean) / deviation for part in inputs)


def _kmers(split: Split, seed: int = 0) -> Fitted:
    shortest = min(split.train.codes.shape[1], 7)
    return logistic_regression(
        (
            (f"words of {', '.join(map(str, lengths))}", word_inputs(split, lengths, "log"))
            for lengths in _WORDS
            if max(lengths) <= shortest
        ),
        split,
    )


def _placed(longest: Sequence[int]) -> Callable[[Split, int], Fitted]:
    def fit(split: Split, seed: int = 0) -> Fitted:
        return logistic_regression(
            (
                (f"words of up to {k}", split.columns(partial(placed_words, longest=k), ("placed", k)))
                for k in longest
                if k == 1 or split.train.codes.shape[1] <= _LONGEST_PLACED
            ),
            split,
        )

    return fit


def _motifs(split: Split, seed: int = 0) -> Fitted:
    return logistic_regression(motif_inputs(split), split)


def _concatenated(split: Split, seed: int = 0) -> Fitted:
    """Raw motif scores beside counts of words, in one logistic regression."""

    def candidates() -> Iterator[tuple[str, Inputs]]:
        scores = dict(motif_inputs(split))["log_mean_exp"]
        for lengths in ((6,), (3, 4, 5, 6)):
            both = zip(word_inputs(split, lengths, "log"), scores, strict=True)
            # Motif scores have a variance of 1, words less: at one strength for both they would drown the words.
            inputs = [sp.hstack([words, sp.csr_matrix(own * 0.3)], format="csr") for words, own in both]
            yield f"words of {', '.join(map(str, lengths))}, log_mean_exp", tuple(inputs)

    return logistic_regression(candidates(), split)


def _mean_of(names: Sequence[str]) -> Callable[[Split, int], Fitted]:
    """The mean of the probabilities of baselines that stand above."""

    def fit(split: Split, seed: int = 0) -> Fitted:
        own = [split.fitted[name] for name in names]
        number = sum(part.num_parameters for part in own)
        return Fitted(_mean(own, "dev"), _mean(own, "test"), number, f"{len(own)} models")

    return fit


def _best_mean(split: Split, seed: int = 0) -> Fitted:
    """The mean of those baselines that make it better on dev, added one after the other, perhaps twice (Caruana)."""
    labels, names = split.labels[1], [name for name in (KMERS, PLACES, MOTIFS, CONCATENATED) if name in split.fitted]
    if not names:
        raise ConfigError(f"{BEST_MEAN!r} has nothing to average: --skip it, too, or skip fewer of the others")
    own: list[Fitted] = []
    least = np.inf
    while len(own) < 6:
        losses = [log_loss(_mean([*own, split.fitted[name]], "dev"), labels) for name in names]
        if min(losses) >= least - 1e-4:
            break
        least = min(losses)
        own.append(split.fitted[names[int(np.argmin(losses))]])
    number = sum(part.num_parameters for part in {id(part): part for part in own}.values())
    return Fitted(_mean(own, "dev"), _mean(own, "test"), number, f"{len(own)} models, one may count twice")


def _mean(fitted: Sequence[Fitted], part: str) -> Array:
    return np.mean([getattr(own, part) for own in fitted], axis=0)


def _cnn(split: Split, seed: int) -> Fitted:
    return Fitted(*fit_small_cnn(split.train, split.dev, split.test, seed), "stopped by dev")


BASELINES = (
    Baseline(KMERS, _kmers),
    Baseline(ONE_HOT, _placed((1,))),
    Baseline(PLACES, _placed((1, 2, 3))),
    Baseline(MOTIFS, _motifs, needs="motifs"),
    Baseline(K_AND_M, _mean_of((KMERS, MOTIFS)), needs="motifs", of=(KMERS, MOTIFS)),
    Baseline(CONCATENATED, _concatenated, needs="motifs"),
    Baseline(BEST_MEAN, _best_mean),
    Baseline(CNN, _cnn, seeded=True),
)
