"""Pairs of genes that are no edge, to be told from edges: drawn by one of four rules, by a seed, and kept in a file.

    uniform         any regulator, any gene
    degree_matched  the regulator of one edge, the gene of another: a hub is as often in a negative as in an edge,
                    but for what is lost where hubs are joined already
    same_regulator  every regulator has as many negatives as edges, with any gene: its own degree says nothing
    degree_aware    every gene is in as many negatives as edges, on either side: no degree says anything

Who learns or is judged on uniform negatives can do so by degree alone. `degree_aware` is after Stock et al. 2025
("Hidden sampling biases inflate performance in gene regulatory network inference"). What is taken from their abstract,
which is all that was at hand, is the aim: negatives in which the degrees of genes are those of the positives, so that
degree heuristics fail. How they are found here (edges exchange targets, `balanced_pairs`) is our own.

A drawn pair is never an edge (of an undirected network: in neither direction), never a gene with itself, and none is
there twice. Draws depend on the names of the genes and the seed, not on the order of genes or edges.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.counter_hash import Purpose, fold, fold_array, hash_of, random_permutation
from data_pipelines.networks.pair_files import places_of, read_pairs, refuse_pairs, write_pairs
from data_pipelines.networks.parts import name_hashes
from scmbert_jax.errors import ConfigError, InputError

Array = np.ndarray

_ROUNDS = 200  # of proposals; what is left then cannot be met
_FEWEST_EXCHANGES, _PATIENCE = 20, 30  # rounds of `balanced_pairs`: of all, and without an edge that exchanges
_ENUMERATED = 4  # pairs for each that is asked for: with fewer, all are listed instead of drawn


@dataclass(frozen=True)
class KnownEdges:
    """A network of N genes, and the pairs of which some are drawn.

    Attributes:
      names: str [N], no two alike.
      source, target: int [E], places of `names`; no edge is there twice.
      sources, targets: int [R], [T], genes that a pair may have on this side; None: those that an edge has there.
      among: bool [R, T], pairs that are looked at, edges and others; None: all.
      directed: False: the reverse of an edge is an edge.
    """

    names: Array
    source: Array
    target: Array
    sources: Array | None = None
    targets: Array | None = None
    among: Array | None = None
    directed: bool = True

    @cached_property
    def ranked(self) -> "_Ranked":
        return _Ranked(self)


class _Ranked:
    """The same with genes by the rank of their names' hashes, of which no order is left.

    Attributes:
      source, target: int64 [E'], edges that are looked at, in the order of their codes.
      first, second: int64 [R], [T], genes of the sides, rising.
    """

    def __init__(self, edges: KnownEdges):
        self.place = np.argsort(name_hashes(edges.names, 0), kind="stable")  # rank -> place
        rank = np.argsort(self.place)
        self.number = len(rank)
        source, target = rank[edges.source], rank[edges.target]
        codes = source * self.number + target
        both = codes if edges.directed else np.concatenate([codes, target * self.number + source])
        self.edge_codes = np.unique(both)
        sides = [
            rank[np.unique(own if asked is None else asked)]
            for own, asked in ((edges.source, edges.sources), (edges.target, edges.targets))
        ]
        self.first, self.second = (np.sort(own) for own in sides)
        self.among = edges.among
        if edges.among is not None:
            if edges.sources is None or edges.targets is None:
                raise ValueError("`among` [R, T] needs the genes of its sides, `sources` and `targets`")
            # Rows and columns of `among`, by rank; -1: none.
            self.row, self.column = (np.full(self.number, -1) for _ in range(2))
            self.row[rank[edges.sources]] = np.arange(len(edges.sources))
            self.column[rank[edges.targets]] = np.arange(len(edges.targets))
        order = np.argsort(codes)
        looked_at = order[self.is_looked_at(source[order], target[order])]
        self.source, self.target = source[looked_at], target[looked_at]
        self.of_edge = looked_at  # places of the edges as they were given

    def is_looked_at(self, source: Array, target: Array) -> Array:
        if self.among is None:
            return np.ones(len(source), bool)
        row, column = self.row[source], self.column[target]
        return (row >= 0) & (column >= 0) & self.among[row, column]

    def is_free(self, source: Array, target: Array) -> Array:
        """bool [n]: may the pair be drawn?"""
        is_edge = _is_in(source * self.number + target, self.edge_codes)
        return (source != target) & ~is_edge & self.is_looked_at(source, target)


Drawn = tuple[Array, Array]  # ranks int64 [n] of both sides


def draw_negatives(edges: KnownEdges, kind: str, number: int, seed: int) -> Array:
    """Pairs that are no edge: int32 [number, 2], places of `edges.names`, in a random order.

    Of `degree_aware`, fewer than there are stand for all of them, so degrees match in expectation alone;
    `balanced_pairs` gives all, with the edges that they match.

    Raises:
      ConfigError: no such kind, or a number below 1.
      InputError: there are not so many; the message says how many there are.
    """
    if kind not in NEGATIVES:
        raise ConfigError(f"negatives {kind!r}: expected {', '.join(NEGATIVES)}.")
    if number < 1:
        raise ConfigError(f"{number} negatives: expected at least 1.")
    state = hash_of(seed, Purpose.NETWORK_NEGATIVES)
    ranked = edges.ranked
    if not len(ranked.source):
        raise InputError("negatives: no edge is among the pairs that are looked at, so there is nothing to match.")
    source, target = NEGATIVES[kind](edges, number, state)
    order = np.argsort(fold_array(fold(state, -1), source * ranked.number + target), kind="stable")[:number]
    return np.stack([ranked.place[source[order]], ranked.place[target[order]]], axis=1).astype(np.int32)


def balanced_pairs(edges: KnownEdges, seed: int) -> tuple[Array, Array]:
    """Edges and `degree_aware` negatives in which every gene is equally often, on either side.

    Edges exchange targets with each other as long as that makes pairs that are no edge; what cannot (a regulator of
    nearly all genes) is in neither.

    Returns:
      int64 [n], places of the edges as they were given, and int32 [n, 2], the negatives.
    """
    kept, source, target = _exchanged(edges.ranked, hash_of(seed, Purpose.NETWORK_NEGATIVES))
    place = edges.ranked.place
    return edges.ranked.of_edge[kept], np.stack([place[source], place[target]], axis=1).astype(np.int32)


def write_negatives(path: str | Path, negatives: Array, names: Array, overwrite: bool = False) -> None:
    """Writes int [n, 2] as names, .parquet or .tsv with the columns source and target. Raises InputError."""
    write_pairs(path, pd.DataFrame({"source": names[negatives[:, 0]], "target": names[negatives[:, 1]]}), overwrite)


def read_negatives(path: str | Path, edges: KnownEdges) -> Array:
    """What `write_negatives` wrote: int32 [n, 2].

    Raises InputError naming the first pair, and how many there are: of names that the network does not have, of pairs
    that are an edge, are there twice, join a gene with itself, or are not looked at.
    """
    table = read_pairs(path, ("source", "target"))
    found = np.stack([places_of(path, side, table[side].to_numpy(), edges.names) for side in ("source", "target")], 1)
    ranked = edges.ranked
    source, target = np.argsort(ranked.place)[found].T
    codes = source * ranked.number + target
    refuse_pairs(path, table, source == target, "joins a gene with itself")
    refuse_pairs(path, table, _is_in(codes, ranked.edge_codes), "is an edge of this network")
    refuse_pairs(path, table, table.duplicated(["source", "target"]).to_numpy(), "is there twice")
    outside = ~(_is_in(source, ranked.first) & _is_in(target, ranked.second) & ranked.is_looked_at(source, target))
    refuse_pairs(path, table, outside, "is none of the pairs that are looked at")
    return found.astype(np.int32)


# --- the four rules: (edges, number, state) -> at least so many pairs ------------------------------------------------


def _uniform(edges: KnownEdges, number: int, state: int) -> Drawn:
    ranked = edges.ranked
    first, second = ranked.first, ranked.second
    if edges.among is None and number * _ENUMERATED < len(first) * len(second):
        return _proposed(ranked, "uniform", number, state, lambda slots, now: (_any(first, slots, now, 0), None))
    codes = [own * ranked.number + second[ranked.is_free(np.full(len(second), own), second)] for own in first]
    free = np.concatenate(codes)
    _require("uniform", number, len(free), "there are no more pairs without an edge")
    source, target = np.divmod(free[np.argsort(fold_array(state, free), kind="stable")[:number]], ranked.number)
    return source, target


def _degree_matched(edges: KnownEdges, number: int, state: int) -> Drawn:
    ranked = edges.ranked
    return _proposed(
        ranked,
        "degree_matched",
        number,
        state,
        lambda slots, now: (_any(ranked.source, slots, now, 0), _any(ranked.target, slots, now, 1)),
    )


def _same_regulator(edges: KnownEdges, number: int, state: int) -> Drawn:
    """Of a regulator that is to have many of its free pairs, all are listed; others propose."""
    ranked = edges.ranked
    wanted = np.resize(ranked.source[random_permutation(state, len(ranked.source))], number)
    own, counts = np.unique(wanted, return_counts=True)
    listed, short, there = np.zeros(ranked.number, bool), "", number
    parts = []
    for rank, count in zip(own.tolist(), counts.tolist(), strict=True):
        if edges.among is None and count * _ENUMERATED < len(ranked.second):
            continue
        listed[rank] = True
        free = ranked.second[ranked.is_free(np.full(len(ranked.second), rank), ranked.second)]
        parts.append((rank, free[np.argsort(fold_array(fold(state, rank), free), kind="stable")[:count]]))
        if len(free) < count:
            there += len(free) - count
            short = short or f"{edges.names[ranked.place[rank]]} is wanted {count:,} times, {len(free):,} are free"
    _require("same_regulator", number, there, short)
    others = wanted[~listed[wanted]]
    source, target = _proposed(ranked, "same_regulator", len(others), state, lambda slots, now: (others[slots], None))
    return (
        np.concatenate([source, *(np.full(len(free), rank) for rank, free in parts)]),
        np.concatenate([target, *(free for _, free in parts)]),
    )


def _degree_aware(edges: KnownEdges, number: int, state: int) -> Drawn:
    _, source, target = _exchanged(edges.ranked, state)
    _require(
        "degree_aware",
        number,
        len(source),
        f"{len(source):,} of {len(edges.ranked.source):,} edges can exchange targets without making an edge",
    )
    return source, target


NEGATIVES: dict[str, Callable[[KnownEdges, int, int], Drawn]] = {
    "uniform": _uniform,
    "degree_matched": _degree_matched,
    "same_regulator": _same_regulator,
    "degree_aware": _degree_aware,
}


def _require(kind: str, number: int, there: int, why: str) -> None:
    if there < number:
        raise InputError(f"{kind} negatives: {number:,} are asked for, {there:,} can be drawn ({why}); ask for fewer.")


def _any(choices: Array, slots: Array, state: int, side: int) -> Array:
    """One of `choices` for each slot."""
    return choices[fold_array(fold(state, side), slots) % np.uint64(len(choices))]


def _proposed(
    ranked: _Ranked, kind: str, number: int, state: int, propose: Callable[[Array, int], tuple[Array, Array | None]]
) -> Drawn:
    """Every slot proposes a pair until it is free and nobody has it. No second side: any gene that is looked at."""
    found, taken = np.full((2, number), -1), np.zeros(0, np.int64)
    slots = np.arange(number)
    for turn in range(_ROUNDS):
        now = fold(state, turn)
        source, target = propose(slots, now)
        if target is None:
            target = _any(ranked.second, slots, now, 1)
        codes = source * ranked.number + target
        is_first = np.zeros(len(codes), bool)
        is_first[np.unique(codes, return_index=True)[1]] = True
        good = is_first & ranked.is_free(source, target) & ~_is_in(codes, taken)
        found[:, slots[good]] = source[good], target[good]
        taken = np.sort(np.concatenate([taken, codes[good]]))
        slots = slots[~good]
        if not len(slots):
            break
    _require(kind, number, number - len(slots), f"after {_ROUNDS} proposals for each")
    return found[0], found[1]


def _exchanged(ranked: _Ranked, state: int) -> tuple[Array, Array, Array]:
    """Which edges int64 [n] (of `ranked`), and the pairs that they become.

    At first every slot has the target of its edge. Two slots exchange targets where both new pairs are free or edges
    that are looked at, no other slot has them, and edges do not become more. So what the slots have are always
    different pairs, each regulator and each target in as many as in edges; and a slot that has an edge in the end is
    left out together with that edge, which takes one from the degrees of both sides.
    """
    source, target = ranked.source, ranked.target.copy()
    number = ranked.number
    own = source * number + target  # sorted
    best, waited = len(source), 0
    for turn in range(_ROUNDS):
        order = random_permutation(fold(state, turn), len(source))[: len(source) // 2 * 2]
        one, other = order.reshape(2, -1)
        old = np.stack([source[one] * number + target[one], source[other] * number + target[other]])
        new = np.stack([source[one] * number + target[other], source[other] * number + target[one]])
        was, becomes = _is_in(old, own), _is_in(new, own)
        free = np.stack([ranked.is_free(source[one], target[other]), ranked.is_free(source[other], target[one])])
        _, which, times = np.unique(new, return_inverse=True, return_counts=True)
        single = times[which].reshape(new.shape) == 1
        nobody_has = ~_is_in(new, np.sort(source * number + target))
        good = ((free | becomes) & single & nobody_has).all(0) & (becomes.sum(0) <= was.sum(0))
        target[one[good]], target[other[good]] = target[other[good]], target[one[good]]
        left = int(_is_in(source * number + target, own).sum())
        waited = 0 if left < best else waited + 1
        best = min(best, left)
        if turn + 1 >= _FEWEST_EXCHANGES and (not left or waited >= _PATIENCE):
            break
    codes = source * number + target
    is_edge = _is_in(codes, own)
    return np.flatnonzero(~_is_in(own, np.sort(codes[is_edge]))), source[~is_edge], target[~is_edge]


def _is_in(values: Array, among: Array) -> Array:
    """bool of the shape of `values`; `among` [n] is sorted."""
    if not len(among):
        return np.zeros(values.shape, bool)
    return among[np.clip(np.searchsorted(among, values), 0, len(among) - 1)] == values
