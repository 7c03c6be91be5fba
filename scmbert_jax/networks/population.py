"""The cells that a network is inferred from, and the genes that it is about: the same in any order of either.

Cells are drawn by a hash of their ids and stand in the order of that, genes in that of their ids. Whatever is summed or
drawn after that is summed and drawn in this order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from data_pipelines.counter_hash import Purpose, hash_of
from data_pipelines.features.column_names import known_text
from data_pipelines.networks.parts import name_hashes
from scmbert_jax.annotation.labels import check_obs_column
from scmbert_jax.errors import InputError
from scmbert_jax.interpretation.drawn_cells import DrawnCells
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.tasks.model_cells import ModelCells

Array = np.ndarray

FEWEST_CELLS = 20  # of a population
FEWEST_EXPRESSING = 10  # cells of a population, for a gene to have a state and a rank
_CELLS_AT_A_TIME = 2048
_SHOWN = 5


@dataclass(frozen=True)
class Population:
    """n cells of one kind, and the G genes that enough of them express.

    Attributes:
      name: of the cell type; "" for all cells.
      cells: in the order of hashes of their ids; their RNA.
      num_cells: how many the file has, of which n were drawn.
      genes: int64 [G], places among the model's RNA features, which are sorted by id.
      regulators: int64 [R], places among `genes`, ascending.
    """

    name: str
    cells: DrawnCells
    num_cells: int
    genes: Array
    regulators: Array

    @property
    def counts(self) -> sp.csr_matrix:
        """int32 CSR [n, features of the model]."""
        return self.cells.counts["rna"]

    @cached_property
    def expression(self) -> Array:
        """float32 [n, G]: log1p of counts per 10,000 of the cell's counts of all the model's genes."""
        first, _ = self.cells.slices["rna"]
        return self.cells.expression()[:, first + self.genes].toarray().astype(np.float32)

    @cached_property
    def is_pair(self) -> Array:
        """bool [R, G]: all but a regulator with itself."""
        return self.regulators[:, None] != np.arange(len(self.genes))[None]

    def batches(
        self, opened: ModelCells, num_tokens: int | None, batch_size: int
    ) -> Iterator[tuple[Array, CutBatch, int]]:
        """(cells int64 [m], a batch whose first m rows are those, cells done) of the cells with a count."""
        sampling = opened.sampling(num_tokens)
        for start in range(0, self.cells.number, _CELLS_AT_A_TIME):
            some = np.arange(start, min(start + _CELLS_AT_A_TIME, self.cells.number))
            batch = opened.batch_of(self.cells.of(some).chunk(), sampling, 0)
            rows = np.flatnonzero(self.counts[some].getnnz(axis=1) > 0)
            opened.count_shown(batch, rows)
            done = start
            for mine, part in opened.parts(batch, rows, batch_size):
                done += len(mine)
                yield start + mine, part, done


def populations(
    opened: ModelCells, by: str | None, regulators: Array, max_cells: int, min_fraction: float, seed: int
) -> tuple[list[Population], dict[str, str]]:
    """The populations of a file, by name, and those of which there is no network: name -> why.

    Args:
      opened: cells with RNA.
      by: column of obs; None: one population of all cells.
      regulators: int64, places among the model's RNA features.
      max_cells: of a population, that are drawn.
      min_fraction: of a population's cells that express a gene, at least, and `FEWEST_EXPRESSING` of them.
      seed: of the draw.

    Raises InputError where there is no such column, or no population of which a network can be.
    """
    dataset = opened.dataset
    if by is not None:
        check_obs_column(dataset, by, "--by")
    labels = np.full(len(dataset.cell_ids), "") if by is None else known_text(dataset.obs[by])
    has_rna = np.zeros(len(labels), bool)
    for matrix in dataset.matrices:
        if matrix.modality == "rna":
            has_rna[dataset.rows_of(matrix)[opened.report.modalities["rna"].keep]] = True
    passed_over: dict[str, str] = {}
    if by is not None and (unlabelled := int((labels[has_rna] == "").sum())):
        passed_over["(without a label)"] = f"{unlabelled:,} cells"
    names = [""] if by is None else sorted(set(labels[has_rna].tolist()) - {""})
    hashes = name_hashes(dataset.cell_ids.astype(str), hash_of(seed, Purpose.NETWORK_CELLS))
    drawn, number = {}, {}
    for name in names:
        mine = np.flatnonzero(has_rna & (labels == name))
        number[name] = len(mine)
        if len(mine) < FEWEST_CELLS:
            passed_over[name] = f"{len(mine):,} cells; at least {FEWEST_CELLS} are needed"
        else:
            drawn[name] = mine[np.argsort(hashes[mine], kind="stable")[:max_cells]]
    found = []
    if drawn:
        rows = np.unique(np.concatenate(list(drawn.values())))
        layout = opened.model.definition.layout
        everyone = DrawnCells.read(opened, rows, {"rna": layout.slices["rna"]}, layout.num_features)
        for name, mine in drawn.items():
            cells = everyone.of(np.searchsorted(rows, mine))
            own = _population(name, cells, number[name], regulators, min_fraction)
            if isinstance(own, str):
                passed_over[name] = own
            else:
                found.append(own)
    if not found:
        named = [f"{name or 'all cells'}: {reason}" for name, reason in passed_over.items()]
        why = "; ".join(named[:_SHOWN] + [f"and {len(named) - _SHOWN:,} more"] * (len(named) > _SHOWN))
        where = f" by obs[{by!r}]" if by is not None else ""
        raise InputError(f"{opened.report.path}: no population{where} of which a network can be ({why or 'no cell'}).")
    return found, passed_over


def _population(
    name: str, cells: DrawnCells, number: int, regulators: Array, min_fraction: float
) -> "Population | str":
    """Or why there is none."""
    least = max(FEWEST_EXPRESSING, int(np.ceil(min_fraction * cells.number)))
    genes = np.flatnonzero(cells.counts["rna"].getnnz(axis=0) >= least)
    places = np.flatnonzero(np.isin(genes, regulators))
    if not len(places):
        return f"no regulator is expressed in {least:,} of {cells.number:,} cells, and {len(genes):,} genes are"
    if len(genes) < 2:
        return f"{len(genes)} gene is expressed in {least:,} of {cells.number:,} cells"
    return Population(name, cells, number, genes, places)
