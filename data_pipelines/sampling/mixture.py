"""What a run draws its cells from: corpora, which of their cells, and how often each group of them.

    source            some cells of one corpus; a class of one corpus when classes are balanced, else all that are kept
    group             what is given a fraction: a corpus; or a class of all corpora (of each corpus, where the corpora
                      have weights of their own). The sources of a group are drawn in proportion to their cells.

A corpus of which all cells are drawn is the mixture of one source. Cells that are held out (`held_out`) are in none.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_metadata import LOCAL_FIELDS
from data_pipelines.cells.cell_selection import CellSelection, selected_rows
from data_pipelines.cells.held_out import columns_of, held_out_cells
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.features.column_names import as_text
from data_pipelines.sampling.joined_corpora import JoinedCorpora
from data_pipelines.sampling.sampling_order import ORDER_VERSION
from data_pipelines.sampling.source_cycle import draws_per_cycle
from data_pipelines.sampling.source_fractions import capped, given, tempered
from scmbert_jax.errors import ConfigError

UNKNOWN_CLASS = "(not known)"
_SHOWN = 20  # sources listed in a message


@dataclass(frozen=True)
class MixtureOptions:
    """How cells are chosen and how often they are drawn.

    Attributes:
      selection: which cells; of all corpora.
      corpus_weights: one per corpus; None: by `corpus_temperature`.
      corpus_temperature: fractions of corpora are proportional to cells^(1 / T).
      balance_by: field of the cells whose every value is a class that is drawn by itself; None: no classes. Cells of
        which it is not known are one class more.
      balance_temperature: of the classes.
      max_fraction: no group is drawn more often than that; None: no limit.
      max_repeats: no group is drawn more often than so many times each of its cells while as many cells are drawn as
        there are; None: no limit.
      together: field of the cells; those of one value are drawn together where chance would bring too few of them into
        a batch. How often a cell is drawn does not change. None: as chance has it.
      held_out: rules (`held_out.HeldOutRule`) for all corpora in place of their own; None: those of each corpus.
      side: `training`, the cells that no rule holds out; `held_out`, the others, of which a corpus may have none.
    """

    selection: CellSelection = field(default_factory=CellSelection)
    corpus_weights: tuple[float, ...] | None = None
    corpus_temperature: float = 1.0
    balance_by: str | None = None
    balance_temperature: float = float("inf")
    max_fraction: float | None = None
    max_repeats: float | None = None
    together: str | None = None
    held_out: tuple[str, ...] | None = None
    side: Literal["training", "held_out"] = "training"

    def __post_init__(self) -> None:
        if self.corpus_weights is not None and self.corpus_temperature != 1.0:
            raise ConfigError("corpus weights and a corpus temperature both say how often a corpus is drawn; give one")
        if self.balance_by is None and self.balance_temperature != float("inf"):
            raise ConfigError("a balance temperature needs the field whose values are balanced (--balance-by FIELD)")
        for name, value, least in (("max_fraction", self.max_fraction, 0.0), ("max_repeats", self.max_repeats, 1.0)):
            if value is not None and not value >= least:
                raise ConfigError(f"{name} is {value:g}; expected {least:g} or more")

    def to_dict(self) -> dict[str, Any]:
        """What was asked for, as JSON values; what was left as it is by default is left out."""
        rates = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "selection"}
        asked = {name: value for name, value in rates.items() if value != getattr(_DEFAULTS, name)}
        chosen = {name: values for name, values in self.selection.to_dict().items() if values}
        return chosen | {name: "inf" if value == float("inf") else value for name, value in asked.items()}


_DEFAULTS = MixtureOptions()


class Source(NamedTuple):
    """Cells that are drawn as one.

    Attributes:
      corpus: which one.
      rows: int32 [n] ascending, which of its cells; None: all.
      num_cells: n.
      group: the class; "" where there are none.
    """

    corpus: int
    rows: np.ndarray | None
    num_cells: int
    group: str


class Mixture:
    """Sources and their fractions. Threads may share it.

    Args:
      corpora: open ones.
      options: which cells, how often.
      modalities: those that are read: corpora that have one of them must share features of it. None: all.
      onto: in whose numbers the corpora are read (`JoinedCorpora`); None: their own.

    Attributes:
      joined: the corpora as one.
      held_out: per corpus, bool [cells], those that a rule holds out; None: there is no rule.
      sources: at least one.
      draws: int64 [sources], draws of each in a cycle of `draws.sum()`.
      fingerprint: 64 hex digits; equal fingerprints give equal batches. That of the corpus where all of one is drawn.

    Raises:
      ConfigError: options that do not fit the corpora, or that leave no cell.
      InputError: a field or a value that no cell has.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        options: MixtureOptions | None = None,
        modalities: Sequence[str] | None = None,
        onto: JoinedCorpora | None = None,
    ):
        self.options = options or MixtureOptions()
        self.joined = JoinedCorpora(corpora, onto)
        self.joined.check_shared_features(self.joined.modalities if modalities is None else modalities)
        self.held_out = _held_out(self.joined, self.options.held_out)
        self.sources, fractions = _sources(self.joined, self.options, self.held_out)
        self.draws = draws_per_cycle(fractions.tolist())
        self.fingerprint = self._fingerprint()

    @property
    def num_cells(self) -> int:
        """Of all sources."""
        return sum(source.num_cells for source in self.sources)

    def drawn_rows(self, corpus: int) -> np.ndarray | None:
        """int32, ascending: the cells of a corpus that are drawn; None: all."""
        of_corpus = [source for source in self.sources if source.corpus == corpus]
        if sum(source.num_cells for source in of_corpus) == self.joined.corpora[corpus].num_cells:
            return None
        rows = [source.rows for source in of_corpus if source.rows is not None]
        return np.sort(np.concatenate([np.zeros(0, np.int32), *rows]))

    @cached_property
    def groups(self) -> list[np.ndarray] | None:
        """Of each source, int32 [cells]: which of its cells are drawn together, one number for all sources; -1 where it
        is not known. None: none are. Read from the obs tables, which takes a while where there are many cells."""
        if self.options.together is None:
            return None
        table = _table(self.joined, [self.options.together])
        codes, _ = pd.factorize(_values(table, self.options.together))
        firsts = [translation.first_cell for translation in self.joined.translations]
        of_corpora = np.split(codes.astype(np.int32), firsts[1:])
        return [
            of_corpora[source.corpus] if source.rows is None else of_corpora[source.corpus][source.rows]
            for source in self.sources
        ]

    def describe(self) -> dict[str, Any]:
        """What provenance.json records."""
        return {
            "corpora": [
                {"path": str(corpus.path), "fingerprint": corpus.fingerprint, "num_cells": corpus.num_cells}
                for corpus in self.joined.corpora
            ],
            "options": self.options.to_dict(),
            "order_version": ORDER_VERSION,
            "held_out": [
                {"rules": list(rules), "cells": 0 if held is None else int(held.sum())}
                for rules, held in zip(_rules(self.joined, self.options.held_out), self.held_out, strict=True)
            ],
            "sources": [
                {"corpus": source.corpus, "group": source.group, "cells": source.num_cells, "draws": int(draws)}
                for source, draws in zip(self.sources, self.draws, strict=True)
            ],
        }

    def in_words(self) -> list[str]:
        """What is drawn how often, the most often drawn sources first; nothing of a corpus as it is."""
        if self._is_one_corpus():
            return []
        lines = [f"{self.num_cells:,} of {self.joined.num_cells:,} cells are drawn:"]
        for index in np.argsort(-self.draws, kind="stable")[:_SHOWN].tolist():
            source, fraction = self.sources[index], self.draws[index] / self.draws.sum()
            repeats = fraction * self.num_cells / source.num_cells
            path = self.joined.corpora[source.corpus].path
            group = f", {source.group}" if source.group else ""
            lines.append(
                f"  {fraction:7.2%} from {source.num_cells:,} cells of {path}{group} ({repeats:.2g} times each)"
            )
        if len(self.sources) > _SHOWN:
            lines.append(f"  and {len(self.sources) - _SHOWN:,} more")
        for file, paths in self.joined.shared_files().items():
            lines.append(f"  note: {file} is in {' and in '.join(paths)}: a cell that is in both is drawn from both")
        return lines

    def _is_one_corpus(self) -> bool:
        return len(self.sources) == 1 and self.sources[0].rows is None and len(self.joined.corpora) == 1

    def _fingerprint(self) -> str:
        if self._is_one_corpus() and self.options.together is None:
            return self.joined.corpora[0].fingerprint
        parts = [
            ORDER_VERSION,
            [corpus.fingerprint for corpus in self.joined.corpora],
            [
                [source.corpus, None if source.rows is None else hashlib.sha256(source.rows.tobytes()).hexdigest()]
                for source in self.sources
            ],
            self.draws.tolist(),
            *([] if self.options.together is None else [self.options.together]),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _rules(joined: JoinedCorpora, given: tuple[str, ...] | None) -> list[tuple[str, ...]]:
    """Per corpus, what holds cells of it out."""
    return [tuple(corpus.manifest.get("held_out", ())) if given is None else given for corpus in joined.corpora]


def _held_out(joined: JoinedCorpora, given: tuple[str, ...] | None) -> list[np.ndarray | None]:
    """Per corpus, bool [cells]: those that are held out; None: no rule is for it. Raises InputError."""
    rules = _rules(joined, given)
    if given:  # a corpus may have none of the cells, or not the field
        table = pd.concat(_obs_tables(joined, columns_of(given)), ignore_index=True)
        held = held_out_cells(table, given, joined.where)
        return list(np.split(held, [translation.first_cell for translation in joined.translations[1:]]))
    return [
        held_out_cells(corpus.obs(columns=["dataset", *columns_of(own)]), own, str(corpus.path)) if own else None
        for corpus, own in zip(joined.corpora, rules, strict=True)
    ]


def _sources(
    joined: JoinedCorpora, options: MixtureOptions, held_out: list[np.ndarray | None]
) -> tuple[list[Source], np.ndarray]:
    """The sources, group by group; and float64 [sources], their fractions."""
    groups_of_one_corpus = (
        options.balance_by is None or options.corpus_weights is not None or options.corpus_temperature != 1.0
    )
    groups: dict[tuple[int, str], list[Source]] = {}  # (corpus, or 0 where groups are of all, class) -> sources
    for source in _all_sources(joined, options, held_out):
        groups.setdefault((source.corpus if groups_of_one_corpus else 0, source.group), []).append(source)
    if not groups:
        raise ConfigError(f"{joined.where}: none of the cells that are held out is kept by {options.selection}")
    groups = dict(sorted(groups.items()))
    sizes = {key: sum(source.num_cells for source in sources) for key, sources in groups.items()}
    fractions = _group_fractions(sizes, options, len(joined.corpora))
    listed = [(source, fractions[key] * source.num_cells / sizes[key]) for key, of in groups.items() for source in of]
    return [source for source, _ in listed], np.array([fraction for _, fraction in listed])


def _all_sources(joined: JoinedCorpora, options: MixtureOptions, held_out: list[np.ndarray | None]) -> Iterator[Source]:
    """Every class of every corpus, of the cells that the selection keeps and that are of the side that is meant."""
    selection, balance_by = options.selection, options.balance_by
    of_training, rules = options.side == "training", _rules(joined, options.held_out)
    if not selection and balance_by is None and of_training and all(held is None for held in held_out):
        for index, corpus in enumerate(joined.corpora):
            yield Source(index, None, corpus.num_cells, "")
        return
    table = _table(joined, [*selection.fields, *([balance_by] if balance_by else [])])
    keep = selected_rows(table, selection, joined.where) if selection else np.ones(len(table), bool)
    codes, classes = np.zeros(len(table), np.int32), [""]
    if balance_by is not None:
        codes, classes = _classes(table, balance_by, joined.where)
    for index, corpus in enumerate(joined.corpora):
        first = joined.translations[index].first_cell
        cells = slice(first, first + corpus.num_cells)
        held = np.zeros(corpus.num_cells, bool) if (own := held_out[index]) is None else own
        rows = np.flatnonzero(keep[cells] & (held != of_training)).astype(np.int32)
        if not len(rows) and not of_training:
            continue
        if not len(rows) and held[keep[cells]].any():
            raise ConfigError(
                f"{corpus.path}: all of its cells that would be drawn are held out ({' '.join(rules[index])}): hold "
                "out fewer, or give it as --validation and not as --corpus"
            )
        if not len(rows):
            raise ConfigError(
                f"{corpus.path}: none of its {corpus.num_cells:,} cells is left by {selection}; leave the corpus out, "
                "or select others"
            )
        of_class = codes[cells][rows]
        order = np.argsort(of_class, kind="stable")
        ends = np.cumsum(np.bincount(of_class, minlength=len(classes)))
        for name, part in zip(classes, np.split(rows[order], ends[:-1]), strict=True):
            if len(part):
                yield Source(index, None if len(part) == corpus.num_cells else part, len(part), name)


def _table(joined: JoinedCorpora, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of the obs tables of all corpora, one below the other; a corpus may lack a field."""
    parts = _obs_tables(joined, columns)
    for part, names in zip(parts, joined.dataset_names, strict=True):
        part["dataset"] = part["dataset"].map(names)
    return pd.concat(parts, ignore_index=True)


def _obs_tables(joined: JoinedCorpora, columns: Sequence[str]) -> list[pd.DataFrame]:
    """`dataset` and these columns of each obs table, as far as it has them. Where none has one of them, all columns:
    the error to come lists what there is."""
    tables = [corpus.obs(columns=["dataset", *columns]) for corpus in joined.corpora]
    there = {name for table in tables for name in table}
    return tables if there.issuperset(columns) else [corpus.obs() for corpus in joined.corpora]


def _classes(table: pd.DataFrame, name: str, where: str) -> tuple[np.ndarray, list[str]]:
    """int32 [cells], the class of each; and the names of the classes."""
    values = _values(table, name)
    if values.isna().all():
        raise ConfigError(f"--balance-by {name}: it is known of no cell of {where}; name a field of its obs table")
    codes, classes = pd.factorize(values, sort=True, use_na_sentinel=True)
    names = [str(name) for name in classes]
    return np.where(codes < 0, len(names), codes).astype(np.int32), [*names, UNKNOWN_CLASS]


def _values(table: pd.DataFrame, name: str) -> pd.Series:
    """object [cells]: a field of `_table` as text, with the data set where it is known only within that; None: not
    known."""
    values = pd.Series(as_text(table[name]) if name in table else None, index=table.index, dtype=object)
    if name in LOCAL_FIELDS:
        values = (table["dataset"].astype(object) + "/" + values).where(values.notna(), None)
    return values


def _group_fractions(
    sizes: dict[tuple[int, str], int], options: MixtureOptions, num_corpora: int
) -> dict[tuple[int, str], float]:
    """(corpus or 0, class) -> its fraction of the draws."""
    cells: dict[int, list[int]] = {}  # by corpus; one entry where groups are of all
    for (corpus, _), size in sizes.items():
        cells.setdefault(corpus, []).append(size)
    if options.corpus_weights is not None:
        of_corpora = given(options.corpus_weights, num_corpora, "--corpus-weights")
    else:
        of_corpora = tempered([sum(of_one) for of_one in cells.values()], options.corpus_temperature)
    within = [tempered(of_one, options.balance_temperature) for of_one in cells.values()]
    fractions = np.concatenate([fraction * part for fraction, part in zip(of_corpora, within, strict=True)])
    caps, limits = np.ones(len(sizes)), []
    if options.max_fraction is not None:
        caps = np.minimum(caps, options.max_fraction)
        limits.append(f"--max-fraction {options.max_fraction:g}")
    if options.max_repeats is not None:
        of_groups = np.array([*sizes.values()], np.float64)
        caps = np.minimum(caps, options.max_repeats * of_groups / of_groups.sum())
        limits.append(f"--max-repeats {options.max_repeats:g}")
    if limits:
        fractions = capped(fractions, caps, " ".join(limits))
    return dict(zip(sizes, fractions.tolist(), strict=True))
