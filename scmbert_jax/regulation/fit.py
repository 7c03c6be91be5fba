"""Fits a regulatory model: linear parts, then networks, then how much each has to say, all of it chosen on dev."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.errors import ConfigError, InputError, require
from scmbert_jax.regulation.labelled import Kind, LabelledSequences, in_another, padded, strand_free_keys
from scmbert_jax.regulation.linear_part import (
    LinearDefinition,
    LinearKind,
    Part,
    fit_linear_part,
    matrix_of,
    scanner_of,
)
from scmbert_jax.regulation.losses import weights_as_in
from scmbert_jax.regulation.model import Combination, RegulatoryModel, combine
from scmbert_jax.regulation.network import MOTIF_NETWORK, NetworkDefinition, NetworkOptions
from scmbert_jax.regulation.network_training import Start, fit_network
from scmbert_jax.regulation.scores import Interval, scores
from scmbert_jax.regulation.stem_motifs import chosen_motifs, motif_filters
from scmbert_jax.sequences.motif_scanner import MotifScanner

Array = np.ndarray

_DEV_FRACTION = 0.1
_FEWEST_OF_DEV = 8
KMERS = ((4, 5, 6), (4, 5, 6, 7))  # sizes that are tried, each on one strand and on both
GAPPED = (8, 6)  # six of eight neighbours
_LONGEST_TRIPLES = 1000  # bases of sequences for which triples at their places are tried: 64 numbers for each


@dataclass(frozen=True)
class FitOptions:
    """What is fitted, and how.

    Attributes:
      linear: kinds of linear parts; `motifs` where there are motifs, `bases` where all sequences are as long.
      motif_network: of motif scores alone, where there are motifs; None: none.
      network: with a sequence encoder; None: none.
      members: networks of each kind, that differ by their seeds, and are averaged.
      balance: 0: classes have say by their sequences; 1: all equally.
      duplicates: of sequences (or reverse complements) of train that are in dev or test, too: "keep", or "drop" them
        from train. They are counted in either case.
      seed: of the first network (the next has the next seed), and of what is split off.
    """

    linear: tuple[LinearKind, ...] = ("kmers", "gapped", "bases", "motifs")
    motif_network: NetworkOptions | None = MOTIF_NETWORK
    network: NetworkOptions | None = field(default_factory=NetworkOptions)
    members: int = 1
    balance: float = 0.0
    duplicates: Literal["keep", "drop"] = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.members >= 1, "members", self.members, "1 or more")
        require(0 <= self.balance <= 1, "balance", self.balance, "0 (as they are) to 1 (all classes equal)")
        for name in self.linear:
            require(name in get_args(LinearKind), "linear", name, f"some of {', '.join(get_args(LinearKind))}")
        if not self.linear and self.network is None and self.motif_network is None:
            raise ConfigError("neither a linear part nor a network: nothing would be fitted")


def fit_regulatory(
    train: LabelledSequences,
    options: FitOptions | None = None,
    *,
    dev: LabelledSequences | None = None,
    test: LabelledSequences | None = None,
    motifs: MotifSet | None = None,
    pretrained: Start | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> RegulatoryModel:
    """A model of labelled sequences; everything is chosen on `dev`, nothing on `test`.

    Args:
      dev: what chooses, less what is in train, too; None: split off train, whole chromosomes where they are known,
        else a tenth of the sequences, with whatever is equal to them or to their reverse complement.
      test: what the model is scored on when it is done (`info["scores"]`), beside its linear parts.
      motifs: that linear part and network read.
      pretrained: encoder that the networks begin with; `options.network` must have its configuration.
      progress: told (steps done, of all) of the networks.
      say: told what was found in the data, and what was chosen.

    Raises:
      InputError: parts of other tasks; a train or dev without two classes; nothing left.
      ConfigError: a kind of part that these data or options cannot have.
    """
    options, said = options or FitOptions(), _Said(say)
    train, dev = _parts(train, dev, test, options, said)
    length = max(len(part.codes[0]) for part in (train, dev, *([test] if test else [])))
    train, dev = _filled(train, length), _filled(dev, length)
    mean, scale = _scale(train)
    targets = (_standardised(train, mean, scale), _standardised(dev, mean, scale))
    scanner = None if motifs is None else scanner_of(motifs)
    known, reads = {}, LinearDefinition("motifs", scanner=scanner)
    if scanner is not None:
        known[reads] = matrix_of(reads, train.codes), matrix_of(reads, dev.codes)
    fitted = _Fitted()
    for candidates in _linear_candidates(options, train, dev, scanner):
        part, on_dev = fit_linear_part(candidates, train, dev, targets, options.balance, known)
        few = f", fitted to {part.info['sequences']:,} sequences" if part.info["sequences"] < len(train) else ""
        said(f"{part.info['name']}: dev loss {part.info['dev_loss']:.4f} (C {part.info['c']:g}){few}")
        fitted.add([(part, on_dev)])
    if not fitted.parts and options.network is None and (options.motif_network is None or scanner is None):
        raise ConfigError(
            "nothing can be fitted: a part of motifs needs a motif file, one of bases sequences of a length"
        )
    numbers = (train.task.kind, targets[1], mean, scale, weights_as_in(dev, train))
    of_linear = fitted.combined(*numbers) if fitted.parts else None
    both, scanned = _reads_both(fitted.parts), known.get(reads)
    for found in _networks(options, train, dev, targets, motifs, scanned, pretrained, both, progress, said):
        fitted.add(found)
    combination = fitted.combined(*numbers)
    info: dict[str, Any] = {
        "data": train.where,
        "sequences": {"train": len(train), "dev": len(dev)} | ({"test": len(test)} if test else {}),
        "counts": train.counts(),
        "options": asdict(options),
        "pretrained": None if pretrained is None else ("frozen" if pretrained.frozen else "fine-tuned"),
    }
    model = RegulatoryModel(train.task, length, tuple(fitted.parts), combination, of_linear, motifs, info)
    info["scores"] = {
        name: scored(model, own, options.seed) for name, own in (("dev", dev), ("test", test)) if own is not None
    }
    for name, of_part in info["scores"].items():
        for who, own in of_part.items():
            said(f"{name}, {who}: " + ", ".join(f"{key} {Interval(*value)}" for key, value in own.items()))
    info["said"] = said.lines
    return model


def scored(model: RegulatoryModel, data: LabelledSequences, seed: int = 0) -> dict[str, dict[str, Interval]]:
    """Who -> name of a score -> its interval: the model, and its linear parts alone."""
    if data.task != model.task:
        raise InputError(f"{data.where}: labels {', '.join(data.task.names[:5])}, not those of the model")
    found = {"model": scores(model.task, data.targets, model.outputs(data.codes), seed)}
    if model.linear_combination is not None and model.networks:
        alone = model.linear_alone()
        found["linear parts alone"] = scores(model.task, data.targets, alone.outputs(data.codes), seed)
    return found


def _filled(data: LabelledSequences, length: int) -> LabelledSequences:
    return replace(data, codes=padded(data.codes, length))


def _standardised(data: LabelledSequences, mean: Array, scale: Array) -> Array:
    return (data.targets - mean) / scale if data.task.kind == "values" else data.targets


class _Fitted:
    """Parts, their outputs on dev, and which of them are members of the same."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.outputs: list[Array] = []
        self.groups: list[int] = []

    def add(self, members: list[tuple[Part, Array]]) -> None:
        self.groups += [len(self.groups)] * len(members)
        for part, outputs in members:
            self.parts.append(part)
            self.outputs.append(outputs)

    def combined(self, kind: Kind, targets: Array, mean: Array, scale: Array, weights: Array) -> Combination:
        return combine(kind, self.outputs, targets, mean, scale, self.groups, weights)


class _Said:
    """What was told, which the model keeps."""

    def __init__(self, say: Callable[[str], None] | None):
        self.say = say
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if self.say is not None:
            self.say(line)

    def counted(self, number: int, what: str) -> None:
        if number:
            self(f"{number:,} {what}")


def _parts(
    train: LabelledSequences,
    dev: LabelledSequences | None,
    test: LabelledSequences | None,
    options: FitOptions,
    said: _Said,
) -> tuple[LabelledSequences, LabelledSequences]:
    """(train, dev) that can be fitted to: of one task, with duplicates counted."""
    for name, own in (("dev", dev), ("test", test)):
        if own is not None and own.task != train.task:
            raise InputError(
                f"{own.where} ({name}): {own.task.kind} of {', '.join(own.task.names[:5])}, but {train.where} has "
                f"{train.task.kind} of {', '.join(train.task.names[:5])}: give all parts the same labels"
            )
    if dev is None:
        train, dev = split_off(train, options.seed)
        said(f"dev: {len(dev):,} sequences split off train, which keeps {len(train):,}")
    repeated = len(train) - len(set(strand_free_keys(train.codes, train.lengths)))
    if repeated:
        said(f"{repeated:,} of {len(train):,} training sequences repeat another one (or its reverse complement)")
    if options.duplicates == "drop":
        shared = in_another([own for own in (dev, test) if own is not None], train)
        said.counted(int(shared.sum()), f"training sequences that are in dev or test, too (of {len(train):,}): dropped")
        train = _rest(train, ~shared, "every sequence of train is in dev or test, too")
    if test is not None:
        shared = in_another([train, dev], test)
        said.counted(int(shared.sum()), f"sequences of test (of {len(test):,}) that are in train or dev, too: kept")
    shared = in_another([train], dev)
    said.counted(
        int(shared.sum()), f"sequences of dev (of {len(dev):,}) that are in train, too: nothing is chosen by them"
    )
    dev = _rest(dev, ~shared, "every sequence of dev is in train, too")
    _refuse_one_class(train, "train")
    _refuse_one_class(dev, "dev")
    said("train: " + ", ".join(f"{number:,} {name}" for name, number in list(train.counts().items())[:20]))
    return train, dev


def _rest(data: LabelledSequences, kept: Array, why: str) -> LabelledSequences:
    if not kept.any():
        raise InputError(f"{data.where}: {why} (or its reverse complement is); nothing is left")
    return data if kept.all() else data.take(kept)


def _refuse_one_class(data: LabelledSequences, part: str) -> None:
    found = data.counts()
    there = [name for name, number in found.items() if number]
    if data.task.kind in ("binary", "classes") and len(there) < 2:
        raise InputError(
            f"{data.where} ({part}): all {len(data):,} sequences are {there[0]!r}; expected at least two classes"
        )
    if data.task.kind == "values" and not np.nanstd(data.targets) > 0:
        raise InputError(f"{data.where} ({part}): all values are the same; there is nothing to predict")


def split_off(data: LabelledSequences, seed: int) -> tuple[LabelledSequences, LabelledSequences]:
    """(train, dev): about a tenth of the sequences; whole chromosomes where there are three or more, else sequences
    with all that are equal to them or to their reverse complement.

    Raises InputError: too few sequences.
    """
    if data.chromosome is not None and len(np.unique(data.chromosome)) > 2:
        groups = np.unique(data.chromosome, return_inverse=True)[1]
    else:
        keys = strand_free_keys(data.codes, data.lengths)
        numbers = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        groups = np.array([numbers[key] for key in keys])
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    wanted = max(_FEWEST_OF_DEV, int(_DEV_FRACTION * len(data)))
    kept = np.flatnonzero(np.cumsum(sizes[order]) <= max(wanted, int(sizes.min())))
    chosen = order[: max(1, len(kept))]
    if len(data) < 2 * _FEWEST_OF_DEV or len(chosen) >= len(sizes):
        raise InputError(
            f"{data.where}: {len(data):,} sequences are too few to choose by some of them; give dev (--dev)"
        )
    is_dev = np.isin(groups, chosen)
    return data.take(~is_dev), data.take(is_dev)


def _scale(train: LabelledSequences) -> tuple[Array, Array]:
    """(mean, deviation) float32 [K] of values; 0 and 1 of others."""
    if train.task.kind != "values":
        return np.zeros(train.task.num_outputs, np.float32), np.ones(train.task.num_outputs, np.float32)
    empty = ~np.isfinite(train.targets).any(0)
    if empty.any():
        name = train.task.names[int(np.argmax(empty))]
        raise InputError(f"{train.where}: no sequence of train has a value of {name}; leave that column out")
    mean, deviation = np.nanmean(train.targets, 0), np.nanstd(train.targets, 0)
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def _linear_candidates(
    options: FitOptions, train: LabelledSequences, dev: LabelledSequences, scanner: MotifScanner | None
) -> list[list[LinearDefinition]]:
    """For each linear part what it may be."""
    lengths = np.concatenate([train.lengths, dev.lengths])
    one_length = bool((lengths == train.codes.shape[1]).all())
    placed = ((1,), (1, 2), (1, 2, 3)) if train.codes.shape[1] <= _LONGEST_TRIPLES else ((1,), (1, 2))
    found: dict[LinearKind, list[LinearDefinition]] = {
        "kmers": [LinearDefinition("kmers", sizes, both) for sizes in KMERS for both in (True, False)],
        "gapped": [LinearDefinition("gapped", GAPPED, both) for both in (True, False)],
        "bases": [LinearDefinition("bases", sizes) for sizes in placed] if one_length else [],
        "motifs": [LinearDefinition("motifs", scanner=scanner)] if scanner is not None else [],
    }
    return [found[kind] for kind in dict.fromkeys(options.linear) if found[kind]]


def _reads_both(parts: Sequence[Part]) -> bool:
    """What the k-mers of dev say; without them, both."""
    kmers = [part.definition for part in parts if part.definition.kind == "kmers"]
    return kmers[0].both if kmers else True


def _networks(
    options: FitOptions,
    train: LabelledSequences,
    dev: LabelledSequences,
    targets: tuple[Array, Array],
    motifs: MotifSet | None,
    motif_scores: tuple[Array, Array] | None,
    pretrained: Start | None,
    both: bool,
    progress: Callable[[int, int], None] | None,
    said: _Said,
) -> Iterator[list[tuple[Part, Array]]]:
    """Members of each kind of network, and their outputs on dev."""
    scanner = None if motifs is None else scanner_of(motifs)
    filters = _filters(options, train, motifs, motif_scores)
    for own in (options.motif_network if scanner is not None else None, options.network):
        if own is None:
            continue
        definition = _definition(own, train, scanner, pretrained, both)
        given = (definition, own, train, dev, targets, motif_scores if definition.scanner is not None else None)
        begin = (pretrained, filters) if own.encoder is not None else (None, None)
        found = []
        for seed in range(options.seed, options.seed + options.members):
            part, on_dev = fit_network(*given, seed, options.balance, *begin, progress)
            loss, steps = part.info["dev_loss"], part.info["steps"]
            said(f"{part.info['name']}, seed {seed}: dev loss {loss:.4f} after {steps:,} steps")
            found.append((part, on_dev))
        yield found


def _definition(
    own: NetworkOptions,
    train: LabelledSequences,
    scanner: MotifScanner | None,
    pretrained: Start | None,
    both: bool,
) -> NetworkDefinition:
    with_motifs = scanner if own.motif_dim else None
    keeps = pretrained is not None and own.encoder is not None
    if keeps and train.codes.shape[1] > own.sequence.most_bases:
        raise ConfigError(
            f"{train.where}: sequences of up to {train.codes.shape[1]:,} bases; the pre-trained encoder reads "
            f"{own.sequence.most_bases:,} (sequence.most_bases): cut windows of that (--width)"
        )
    return NetworkDefinition(
        own.encoder,
        own.sequence if keeps else replace(own.sequence, most_bases=train.codes.shape[1]),
        own.hidden,
        own.motif_dim if with_motifs is not None else 0,
        train.task.num_outputs,
        both if own.strands == "auto" else own.strands == "both",
        with_motifs,
    )


def _filters(
    options: FitOptions, train: LabelledSequences, motifs: MotifSet | None, motif_scores: tuple[Array, Array] | None
) -> Array | None:
    """float32 [width, 4, m]: motifs that are chosen for the labels, as filters of the stem; None: random ones."""
    own = options.network
    if own is None or motifs is None or motif_scores is None or not own.motif_filters:
        return None
    if own.encoder is None or own.sequence.tokens != "bases" or not own.sequence.stem_layers:
        return None
    chosen = chosen_motifs(motif_scores[0][:, -len(motifs) :], train, own.sequence.stem_channels)
    log_odds = motifs.log_odds()
    return motif_filters([log_odds[place] for place in chosen], own.sequence.stem_kernel)
