"""Where what a model of DNA knows comes from: the same fit with another beginning.

    one-hot                    linear on the bases at their places, no encoder
    random encoder             a head on an encoder that nobody trained, which stays as it is
    from scratch               the same encoder, trained on the labels
    frozen                     a head on the pre-trained encoder, which stays as it is
    fine-tuned                 the pre-trained encoder, trained on
    fine-tuned from shuffled   as fine-tuned, but pre-trained on shuffled sequences: what pre-training gives apart from
                               what it has read

All read sequences alone: no counts of words, no motif scores. `ours` is what `scmbert regulate fit` makes, with both.
Arms of a pre-trained encoder take its shape for all of them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.regulatory.baselines import Baseline, Fitted, Split
from scmbert_jax.regulation.fit import FitOptions, fit_regulatory
from scmbert_jax.regulation.model import RegulatoryModel
from scmbert_jax.regulation.network import NetworkDefinition, NetworkOptions
from scmbert_jax.regulation.network_training import Start

ONE_HOT, RANDOM, SCRATCH = "arm: one-hot", "arm: random encoder", "arm: from scratch"
FROZEN, TUNED, SHUFFLED = "arm: frozen", "arm: fine-tuned", "arm: fine-tuned from shuffled"
OURS, OURS_LINEAR = "ours", "ours, linear parts alone"


class Pretrained(NamedTuple):
    """A pre-trained sequence encoder: the options of a network with its configuration, and its parameters."""

    network: NetworkOptions
    encoder: Any


def arms(pretrained: Pretrained | None = None, shuffled: Pretrained | None = None) -> list[Baseline]:
    """Rows of the arms; those of pre-trained encoders where there are some.

    Raises ConfigError: two encoders of other shapes.
    """
    options = replace(NetworkOptions() if pretrained is None else pretrained.network, motif_dim=0, motif_filters=False)
    if shuffled is not None and (pretrained is None or not same_shape(pretrained.network, shuffled.network)):
        raise ConfigError("the model of shuffled sequences is no control: it needs a model of the same shape beside it")
    learned = FitOptions(linear=(), network=options)
    found = [
        _arm(ONE_HOT, FitOptions(linear=("bases",), network=None)),
        _arm(RANDOM, learned, lambda split, seed: Start(_random_encoder(options, split, seed), True)),
        _arm(SCRATCH, learned),
    ]
    for name, own, frozen in ((FROZEN, pretrained, True), (TUNED, pretrained, False), (SHUFFLED, shuffled, False)):
        if own is not None:
            found.append(_arm(name, learned, partial(_beginning, Start(own.encoder, frozen))))
    return found


def _beginning(start: Start, split: Split, seed: int) -> Start:
    return start


def same_shape(first: NetworkOptions, second: NetworkOptions) -> bool:
    return (first.encoder, first.sequence) == (second.encoder, second.sequence)


def ours(motifs: MotifSet | None, options: FitOptions | None = None) -> list[Baseline]:
    """What `scmbert regulate fit` makes, and its linear parts alone."""
    usual = options or FitOptions()

    def whole(split: Split, seed: int) -> Fitted:
        model = fit_regulatory(split.train, replace(usual, seed=seed), dev=split.dev, motifs=motifs)
        split.fitted[OURS_LINEAR] = _of_model(model.linear_alone(), split)
        return _of_model(model, split)

    def linear(split: Split, seed: int) -> Fitted:
        return split.fitted[OURS_LINEAR]

    return [Baseline(OURS, whole, seeded=True), Baseline(OURS_LINEAR, linear, seeded=True, of=(OURS,))]


def _arm(name: str, options: FitOptions, start: Callable[[Split, int], Start] | None = None) -> Baseline:
    def fit(split: Split, seed: int) -> Fitted:
        own = None if start is None else start(split, seed)
        model = fit_regulatory(split.train, replace(options, seed=seed), dev=split.dev, pretrained=own)
        return _of_model(model, split)

    return Baseline(name, fit, seeded=options.network is not None)


def _random_encoder(options: NetworkOptions, split: Split, seed: int) -> Any:
    """Parameters of an encoder as it is drawn, of the shape that `fit_regulatory` gives one from scratch."""
    outputs = split.train.task.num_outputs
    definition = NetworkDefinition(options.encoder, options.sequence, options.hidden, 0, outputs, True)
    return definition.init(jax.random.key(seed))["sequence"]


def _of_model(model: RegulatoryModel, split: Split) -> Fitted:
    dev, test = (model.probabilities(part.codes).astype(np.float64) for part in (split.dev, split.test))
    parts = dict.fromkeys(part.definition.name() for part in model.parts)
    return Fitted(dev, test, model.num_parameters, "; ".join(parts))
