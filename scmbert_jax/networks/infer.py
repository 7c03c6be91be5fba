"""A model and cells -> ranked edges between genes, for each population of cells, each with how stable it is."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.features.feature_space import ModalityFeatures
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.interpretation.attributions import in_float32
from scmbert_jax.networks.methods import METHODS
from scmbert_jax.networks.population import FEWEST_CELLS, Population, populations
from scmbert_jax.networks.regulators import Regulators, read_regulators
from scmbert_jax.networks.scores import Reader, Resampling, Scores
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.model_cells import open_model_cells
from scmbert_jax.text_table import markdown_table
from scmbert_jax.version import VERSION

Array = np.ndarray
Progress = Callable[[str, int, int], None]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class InferOptions:
    """How networks are inferred. Raises `ConfigError` naming the field that cannot be.

    Attributes:
      methods: of `METHODS`.
      by: column of obs that says of which population each cell is; None: one network of all cells.
      top: edges of a network, the highest; an edge is stable if it is among as many.
      bootstraps: of the cells, that say how stable an edge is; 0: none do.
      max_cells: of a population, that are drawn.
      min_fraction: of a population's cells, that express a gene of the network.
      ids: name genes by Ensembl ids and not by symbols.
      seed: of what is drawn.
    """

    methods: tuple[str, ...] = ("embedding",)
    by: str | None = None
    top: int = 50_000
    bootstraps: int = 20
    max_cells: int = 2000
    min_fraction: float = 0.05
    ids: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("top", 1, 100_000_000),
            ("bootstraps", 0, 10_000),
            ("max_cells", FEWEST_CELLS, 1_000_000),
            ("seed", 0, 2**63),
        ):
            if not least <= getattr(self, name) <= most:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} {getattr(self, name):,}: expected {least:,} to {most:,}.")
        if not 0 <= self.min_fraction <= 1:
            raise ConfigError(f"--min-fraction {self.min_fraction}: expected a fraction of the cells, 0 to 1.")
        if not self.methods:
            raise ConfigError(f"--method: none is named; there are {', '.join(METHODS)}.")
        for method in self.methods:
            if method not in METHODS:
                near = difflib.get_close_matches(method, METHODS, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"--method {method}: there are {', '.join(METHODS)}.{hint}")


@dataclass(frozen=True)
class Network:
    """E ranked edges, the first the highest, of one method and one population.

    Attributes:
      method: of `METHODS`; cell_type: "" for all cells.
      population: the cells and genes it is of.
      source, target: int64 [E], places among the model's RNA features.
      weight: float32 [E], above 0.
      sign: int8 [E], 1: activates, -1: represses; None: the method knows none.
      stability: float32 [E], the fraction of bootstraps (models) in which the edge is among as many highest ones; nan
        without any.
    """

    method: str
    cell_type: str
    population: Population
    source: Array
    target: Array
    weight: Array
    sign: Array | None
    stability: Array

    def __len__(self) -> int:
        return len(self.source)

    def table(self, names: Array) -> pd.DataFrame:
        """source, target, weight, perhaps sign, stability; `names` str [features of the model]."""
        columns: dict[str, Any] = {
            "source": names[self.source],
            "target": names[self.target],
            "weight": self.weight,
        }
        if self.sign is not None:
            columns["sign"] = self.sign
        return pd.DataFrame({**columns, "stability": self.stability})


@dataclass(frozen=True)
class Inference:
    """All that is known before the work: `networks` does it.

    Attributes:
      readers: the models, each with the cells in its features.
      regulators: those that were asked for.
      populations: of which there will be networks; passed_over: name -> why there is none of it.
      options: as asked.
      reading: how cells are opened and read.
    """

    readers: tuple[Reader, ...]
    regulators: Regulators
    populations: tuple[Population, ...]
    passed_over: dict[str, str]
    options: InferOptions
    reading: Reading

    @property
    def features(self) -> ModalityFeatures:
        return self.readers[0].model.feature_space.modalities["rna"]

    @property
    def names(self) -> Array:
        """str [features of the model], as edges name them: the symbol, or the id where two genes have it."""
        features = self.features
        if self.options.ids:
            return features.ids
        _, place, number = np.unique(features.names, return_inverse=True, return_counts=True)
        return np.where((number[place] == 1) & (features.names != ""), features.names, features.ids)

    def networks(self, progress: Progress | None = None) -> Iterator[Network]:
        """Population after population, each by every method. `progress`: called with (what is done, done, in all)."""
        for population in self.populations:
            for name in self.options.methods:
                yield self._network(name, population, progress)
        for reader in self.readers:
            reader.opened.warn_of_what_was_not_shown()

    def resampled(self, method: str) -> tuple[int, str]:
        """How many times, and of what, stability is the fraction."""
        if len(self.readers) > 1 and METHODS[method].asks_model:
            return len(self.readers), "models"
        of_what = METHODS[method].resampled
        return self.options.bootstraps if of_what else 0, of_what

    def _network(self, name: str, population: Population, progress: Progress | None) -> Network:
        method, stage = METHODS[name], f"{name}, {population.name or 'all cells'}"
        readers = [replace(own, progress=_stage(progress, stage)) for own in self.readers]
        top = self.options.top
        if len(readers) > 1 and method.asks_model:
            alone = Resampling(0, self.options.seed)
            each = [next(method.score(population, reader, alone)) for reader in readers]
            whole, others = _mean(each), iter(each)
        else:
            resampling = Resampling(self.resampled(name)[0], self.options.seed)
            others = method.score(population, readers[0], resampling)
            whole = next(others)
        edges = top_pairs(whole.weight, population.is_pair, top)
        times, number = np.zeros(len(edges), np.int64), 0
        for other in others:
            among = np.zeros(whole.weight.size, bool)
            among[top_pairs(other.weight, population.is_pair, top)] = True
            times += among[edges]
            number += 1
        row, column = np.divmod(edges, whole.weight.shape[1])
        return Network(
            name,
            population.name,
            population,
            population.genes[population.regulators[row]],
            population.genes[column],
            np.asarray(whole.weight, np.float32)[row, column],
            None if whole.sign is None else whole.sign[row, column],
            (times / number if number else np.full(len(edges), np.nan)).astype(np.float32),
        )


def infer_networks(
    models: Sequence[PretrainedModel],
    cells: Any,
    regulators: str | Path,
    options: InferOptions | None = None,
    *,
    reading: Reading | None = None,
) -> Inference:
    """Reads the cells, and says which networks there will be: `Inference.networks` infers them.

    Args:
      models: one, or seeds of one training: then stability is over these, and weights are their mean.
      cells: whatever `open_dataset` takes, with RNA.
      regulators: a list of genes, or a table of edges, whose sources are taken (`read_regulators`).
      options: see there.
      reading: how cells are opened and read.

    Raises:
      InputError: cells or regulators that cannot be used, or no population of which a network can be.
      ConfigError: models of different features.
    """
    options, reading = options or InferOptions(), reading or Reading()
    readers = []
    for model in models:
        if "rna" not in model.config.modalities.in_use():
            raise InputError(f"{model.folder or 'the model'}: reads no RNA, so it knows nothing of genes.")
        for name in options.methods:
            if why := METHODS[name].why_not(model):
                raise InputError(f"{model.folder or 'the model'}, --method {name}: {why}.")
        if model.feature_space.content_hash != models[0].feature_space.content_hash:
            raise ConfigError(
                f"{model.folder}: has other features than {models[0].folder}; give seeds of one training, or one model."
            )
        model = replace(model, allow_low_coverage=model.allow_low_coverage or reading.allow_low_coverage)
        opened = open_model_cells(in_float32(model), cells, ("rna",), reading.organism, reading.assembly)
        readers.append(Reader(opened.model, opened, reading.num_tokens, reading.batch_size, lambda done, total: None))
    known = read_regulators(regulators, readers[0].model.feature_space.modalities["rna"])
    found, passed_over = populations(
        readers[0].opened, options.by, known.places, options.max_cells, options.min_fraction, options.seed
    )
    return Inference(tuple(readers), known, tuple(found), passed_over, options, reading)


def top_pairs(weight: Array, is_pair: Array, number: int) -> Array:
    """int64 [<= number]: places of the highest weights above 0 among the flattened pairs, the highest first.

    Of equal ones the first, so that nothing depends on how they came.
    """
    flat = np.where(is_pair, weight, 0).ravel().astype(np.float32)
    places = np.flatnonzero(flat > 0)
    return places[np.argsort(-flat[places], kind="stable")[:number]]


def _mean(scores: Sequence[Scores]) -> Scores:
    if all(own.sign is None for own in scores):
        return Scores(np.mean([own.weight for own in scores], axis=0))
    signed = np.mean([own.weight * own.sign for own in scores], axis=0)
    return Scores(np.abs(signed), np.sign(signed).astype(np.int8))


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None]:
    return lambda done, total: None if progress is None else progress(name, done, total)


# --- what is told ----------------------------------------------------------------------------------------------------


def inference_document(found: Inference, networks: Sequence[tuple[Network, str]]) -> dict[str, Any]:
    """A JSON-able dict: what was inferred from what; `networks` with the file each is in."""
    opened, options = found.readers[0].opened, found.options
    overlap = opened.overlaps["rna"]
    return {
        "format_version": FORMAT_VERSION,
        "scmbert_jax_version": VERSION,
        "models": [_told_of_model(reader.model) for reader in found.readers],
        "data": opened.report.path,
        "organism": found.features.organism,
        "genes": {
            "of_the_model": len(found.features),
            "measured": int(overlap.measured.sum()),
            "unknown_to_the_model": overlap.num_unknown,
        },
        "regulators": {
            "named": found.regulators.names,
            "in_the_model": len(found.regulators.places),
            "no_gene": len(found.regulators.unknown),
            "not_in_the_model": len(found.regulators.not_in_model),
        },
        "by": options.by,
        "passed_over": found.passed_over,
        "top": options.top,
        "max_cells": options.max_cells,
        "min_fraction": options.min_fraction,
        "seed": options.seed,
        "networks": [_told_of_network(found, network, file) for network, file in networks],
    }


def _told_of_model(model: PretrainedModel) -> dict[str, Any]:
    known = model.info["provenance"]
    return {
        "folder": None if model.folder is None else model.folder.name,
        "step": int(model.info["step"]),
        "corpus_fingerprint": known["corpus_fingerprint"],
        "feature_space_hash": known["feature_space_hash"],
    }


def _told_of_network(found: Inference, network: Network, file: str) -> dict[str, Any]:
    method, population = METHODS[network.method], network.population
    number, of_what = found.resampled(network.method)
    return {
        "file": file,
        "method": network.method,
        "weight": method.says,
        **({"warning": method.caution} if method.caution else {}),
        "cell_type": network.cell_type or None,
        "cells": population.cells.number,
        "cells_in_the_file": population.num_cells,
        "regulators": len(population.regulators),
        "targets": len(population.genes),
        "pairs": int(population.is_pair.sum()),
        "edges": len(network),
        "stability_of": of_what if number else None,
        "resampled": number,
        "median_stability": float(np.median(network.stability)) if number and len(network) else None,
    }


def printed(document: dict[str, Any]) -> str:
    """What a terminal shows: a line for each network."""
    rows = []
    for own in document["networks"]:
        label = f"{own['method']} ({own['warning']})" if "warning" in own else own["method"]
        median = "-" if own["median_stability"] is None else f"{own['median_stability']:.2f}"
        counts = [f"{own[name]:,}" for name in ("cells", "regulators", "targets", "edges")]
        rows.append([label, own["cell_type"] or "all cells", *counts, median, own["file"]])
    headings = ["method", "cells of", "cells", "regulators", "targets", "edges", "median stability", "file"]
    return markdown_table(headings, rows)
