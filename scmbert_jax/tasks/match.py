"""Which cell of modality B belongs to this cell of modality A? By embeddings in one space, within technical batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.outputs import check_output_file
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import CellEmbeddings, embed_dataset
from scmbert_jax.tasks.modality_cells import centred_by
from scmbert_jax.tasks.optimal_transport import cosine_cost, transport_of_vectors
from scmbert_jax.tasks.whole_file import size_in_file, written_whole

Array = np.ndarray

METHODS = ("sinkhorn", "cosine")
_ROWS = 1024  # of a block whose probabilities are held at once


@dataclass(frozen=True)
class Matching:
    """The k best partners of each cell of A.

    Attributes:
      partners: int64 [n, k] rows of B, best first; -1 where a technical batch has fewer than k cells of B.
      probabilities: float32 [n, k], of the partners among all cells of B in the same technical batch; 0 beside -1.
      unmatched: rows int64 of A whose technical batch has no cell of B.
      not_converged: names of technical batches whose transport did not reach its marginals.
    """

    partners: Array
    probabilities: Array
    unmatched: Array
    not_converged: tuple[str, ...]


class ProbabilityBlock(NamedTuple):
    """rows int64 [r] of A, columns int64 [m] of B, float64 [r, m] each row of which sums to 1."""

    rows: Array
    columns: Array
    probabilities: Array
    technical_batch: str
    converged: bool


def match_probabilities(
    a: Array,
    b: Array,
    *,
    batches_a: Array | None = None,
    batches_b: Array | None = None,
    method: str = "sinkhorn",
    epsilon: float = 0.05,
) -> Iterator[ProbabilityBlock]:
    """Probabilities of every partner, technical batch by technical batch, at most 1,024 cells of A at a time.

    Args:
      a, b: float [n, d], [m, d] embeddings in one space, compared by cosine; finite.
      batches_a, batches_b: str [n], [m]; partners are looked for in the same technical batch. None: in all cells.
      method: "sinkhorn", the rows of an entropic transport plan (Cuturi 2013; no cell is everybody's partner; MatchCLOT
        gains 9% by it), or "cosine", the softmax of cosine / epsilon over the candidates.
      epsilon: in units of the cosine.

    Raises:
      ConfigError: an unknown method, epsilon <= 0.
      InputError: embeddings of two widths or not finite, one set of batches without the other, no batch in common.
    """
    a, b, batches_a, batches_b = _checked(a, b, batches_a, batches_b, method, epsilon)
    for batch in np.intersect1d(batches_a, batches_b):
        rows, columns = np.flatnonzero(batches_a == batch), np.flatnonzero(batches_b == batch)
        potential, converged = np.zeros(len(columns), np.float32), True
        if method == "sinkhorn":
            solved = transport_of_vectors(a[rows], b[columns], epsilon)
            potential, converged = solved.g, solved.converged
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            # The potential of a row cancels where its probabilities are divided by their sum.
            exponent = (potential.astype(np.float64) - cosine_cost(a[part], b[columns])) / epsilon
            weights = np.exp(exponent - exponent.max(1, keepdims=True))
            yield ProbabilityBlock(part, columns, weights / weights.sum(1, keepdims=True), str(batch), converged)


def match_cells(a: Array, b: Array, *, k: int = 5, **options: Any) -> Matching:
    """The k best partners of each cell of A among the cells of B; arguments and errors as `match_probabilities`."""
    if k < 1:
        raise ConfigError(f"k {k}: expected 1 or more partners per cell.")
    partners = np.full((len(a), k), -1, np.int64)
    probabilities = np.zeros((len(a), k), np.float32)
    matched = np.zeros(len(a), bool)
    not_converged: dict[str, None] = {}
    for block in match_probabilities(a, b, **options):
        kept = min(k, len(block.columns))
        best = np.argsort(-block.probabilities, axis=1, kind="stable")[:, :kept]
        partners[block.rows, :kept] = block.columns[best]
        probabilities[block.rows, :kept] = np.take_along_axis(block.probabilities, best, axis=1)
        matched[block.rows] = True
        if not block.converged:
            not_converged[block.technical_batch] = None
    return Matching(partners, probabilities, np.flatnonzero(~matched), tuple(not_converged))


@dataclass(frozen=True)
class DatasetMatching:
    """A matching with the names of its cells.

    Attributes:
      source, target: modalities A and B.
      source_ids, target_ids: str [n], [m]: cells that have an embedding.
      source_batches: str [n], "" where unknown.
      within_batches: whether partners were looked for within technical batches only.
      without_embedding: modality -> str ids of the cells left out, because none of their counts is known to the model.
    """

    source: str
    target: str
    source_ids: Array
    target_ids: Array
    source_batches: Array
    matching: Matching
    within_batches: bool
    without_embedding: dict[str, Array]

    def table(self) -> pd.DataFrame:
        """One line per cell and partner: cell, technical_batch, rank (from 1), partner, probability, why_not.

        A cell without a partner has one line, of rank 0, that says why; one with fewer than were asked for says it on
        its last line.
        """
        number, k = self.matching.partners.shape
        rows, ranks = np.repeat(np.arange(number), k), np.tile(np.arange(1, k + 1), number)
        partners = self.matching.partners.ravel()
        there = partners >= 0
        table = pd.DataFrame(
            {
                "cell": self.source_ids[rows[there]],
                "technical_batch": self.source_batches[rows[there]],
                "rank": ranks[there],
                "partner": self.target_ids[partners[there]],
                "probability": self.matching.probabilities.ravel()[there],
                "why_not": "",
            }
        )
        found = (self.matching.partners >= 0).sum(axis=1)
        last = (ranks[there] == found[rows[there]]) & (ranks[there] < k)
        table.loc[last, "why_not"] = f"its technical batch has no more {self.target} cells"
        alone = self.matching.unmatched
        why = [
            (self.source_ids[alone], self.source_batches[alone], f"its technical batch has no {self.target} cell"),
            (self.without_embedding[self.source], "", f"no counts of the model's {self.source} features"),
        ]
        without = [
            pd.DataFrame({"cell": ids, "technical_batch": batches, "rank": 0, "partner": "", "why_not": reason})
            for ids, batches, reason in why
            if len(ids)
        ]
        return pd.concat([table, *without], ignore_index=True)


def match_dataset(
    model: PretrainedModel,
    cells: Any,
    *,
    source: str,
    target: str,
    target_cells: Any | None = None,
    space: str | None = None,
    centre: bool = True,
    k: int = 5,
    method: str = "sinkhorn",
    epsilon: float = 0.05,
    **options: Any,
) -> DatasetMatching:
    """Matches the `source` cells of a data set with the `target` cells of the same or another data set.

    Args:
      cells: whatever `embed_dataset` takes.
      source, target: modalities; each cell is embedded from that one alone.
      target_cells: another data set with the cells of `target`; None: `cells`.
      space: "aligned" or "cell", as in `embed_dataset`; None: `comparison_space`.
      centre: take off the mean of each modality in each technical batch: a constant offset between modalities says
        nothing of a cell.
      k, method, epsilon: as in `match_cells`.
      **options: as those of `embed_dataset` (organism, assembly, batch_size, seed ...).

    Raises:
      InputError: a modality that the data or the model does not have.
    """
    if source == target:
        raise ConfigError(
            f"source and target are both {source}; a matching is between two modalities. Within one: scmbert embed "
            "both files, and take nearest neighbours by the cosine of their obsm['X_scmbert']."
        )
    first = cells if isinstance(cells, Dataset) else open_dataset(cells)
    second = first if target_cells is None else target_cells
    options["space"] = space or comparison_space(model)
    a, ids_a, batches_a, empty_a = embedded_cells(embed_dataset(model, first, modalities=(source,), **options), source)
    b, ids_b, batches_b, empty_b = embedded_cells(embed_dataset(model, second, modalities=(target,), **options), target)
    known = bool((batches_a != "").all() and (batches_b != "").all())
    if centre:
        a, b = centred_by(a, batches_a), centred_by(b, batches_b)
    within = {"batches_a": batches_a, "batches_b": batches_b} if known else {}
    matching = match_cells(a, b, k=k, method=method, epsilon=epsilon, **within)
    return DatasetMatching(source, target, ids_a, ids_b, batches_a, matching, known, {source: empty_a, target: empty_b})


def comparison_space(model: PretrainedModel) -> str:
    """The space in which the model's modalities compare best: the contrastive one where it was trained for it."""
    return "aligned" if model.config.objectives.contrastive_alignment.weight > 0 else "cell"


def embedded_cells(result: CellEmbeddings, modality: str) -> tuple[Array, Array, Array, Array]:
    """(embeddings float32 [n, D], ids str [n], technical batches str [n]), ids of cells measured but not embedded."""
    rows = np.zeros(len(result.embeddings), bool)
    for matrix in result.dataset.matrices:
        if matrix.modality == modality:
            rows[result.dataset.rows_of(matrix)[result.report.modalities[modality].keep]] = True
    if not rows.any():
        raise InputError(f"{result.dataset.path}: no cell was measured in {modality}.")
    usable = rows & ~np.isnan(result.embeddings[:, 0])
    column = result.report.obs_fields.get("technical_batch")
    batches = np.full(len(rows), "")
    if column is not None:
        values = result.dataset.obs[column].astype(object)
        batches = values.where(values.notna(), "").to_numpy(str)
    ids = result.dataset.cell_ids.astype(str)
    return result.embeddings[usable], ids[usable], batches[usable], ids[rows & ~usable]


def write_matching(path: Path, result: DatasetMatching, overwrite: bool = False) -> None:
    """Writes `result.table()`; see `write_table`."""
    write_table(path, result.table(), overwrite)


def write_table(path: Path, table: pd.DataFrame, overwrite: bool = False) -> None:
    """Writes a table as .csv or .parquet, whole or not at all. Raises `InputError` where it cannot be written."""
    check_table_path(path, overwrite=overwrite)
    with written_whole(path, size_in_file(table)) as partial:
        if path.suffix == ".csv":
            table.to_csv(partial, index=False)
        else:
            table.to_parquet(partial, index=False)


def check_table_path(path: Path, inputs: Sequence[object] = (), overwrite: bool = False) -> None:
    """Raises `InputError` when no table can be written there (`check_output_file`); asked before the work, too."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: a table is written as .csv or .parquet; give the output one of these endings.")
    check_output_file(path, inputs, overwrite)


def _checked(
    a: Array, b: Array, batches_a: Array | None, batches_b: Array | None, method: str, epsilon: float
) -> tuple[Array, Array, Array, Array]:
    if method not in METHODS or not epsilon > 0:
        raise ConfigError(
            f"method {method!r}, epsilon {epsilon}: expected {' or '.join(METHODS)}, and epsilon above 0."
        )
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise InputError(f"embeddings of shapes {a.shape} and {b.shape}: expected [n, d] and [m, d] in one space.")
    for name, values in (("first", a), ("second", b)):
        bad = ~np.isfinite(values).all(1)
        if bad.any():
            raise InputError(
                f"embeddings of the {name} modality: {int(bad.sum())} cells are not finite (first at row "
                f"{int(bad.argmax())}); leave out cells without counts."
            )
    if (batches_a is None) != (batches_b is None):
        raise InputError("technical batches are known of one modality only; give both, or neither.")
    if batches_a is None or batches_b is None:
        batches_a, batches_b = np.full(len(a), "all"), np.full(len(b), "all")
    batches_a, batches_b = np.asarray(batches_a).astype(str), np.asarray(batches_b).astype(str)
    if len(batches_a) != len(a) or len(batches_b) != len(b):
        raise InputError(
            f"{len(batches_a)} and {len(batches_b)} technical batches for {len(a)} and {len(b)} cells; one per cell."
        )
    if not np.intersect1d(batches_a, batches_b).size:
        raise InputError(
            f"no technical batch has cells of both sides ({', '.join(np.unique(batches_a)[:3])} against "
            f"{', '.join(np.unique(batches_b)[:3])}); match without batches, or correct the metadata."
        )
    return a, b, batches_a, batches_b
