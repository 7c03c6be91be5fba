"""What other networks say of a pair: its edge, the degrees of both genes, and the neighbours that they share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from data_pipelines.networks.edge_table import EdgeTable
from data_pipelines.networks.shuffled_edges import shuffled_targets

Array = np.ndarray


@dataclass(frozen=True)
class PriorGraph:
    """Edges of N genes, and which of these the R regulators and G genes of the pairs are.

    Attributes:
      edges: float64 CSR [N, N], 1 where the row regulates the column.
      regulators, genes: float64 CSR [R, N], [G, N]; a row of zeros where the networks do not know it.
    """

    edges: sp.csr_matrix
    regulators: sp.csr_matrix
    genes: sp.csr_matrix

    @classmethod
    def of(cls, tables: Sequence[EdgeTable], regulators: Array, genes: Array) -> "PriorGraph":
        """All edges of some tables together; names as the tables have them."""
        source, target = (np.concatenate([getattr(table, side) for table in tables]) for side in ("source", "target"))
        names, places = np.unique(np.concatenate([source, target]), return_inverse=True)
        rows, columns = np.split(places, 2)
        edges = sp.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(names), len(names)))
        edges.data[:] = 1
        return cls(edges, _rows_of(regulators, names), _rows_of(genes, names))

    def shuffled(self, seed: int) -> "PriorGraph":
        """The same degrees, another wiring."""
        edges = self.edges.tocoo()
        target = shuffled_targets(edges.row.astype(np.int64), edges.col, np.zeros(edges.nnz, np.int64), seed)
        return replace(self, edges=sp.csr_matrix((edges.data, (edges.row, target)), edges.shape))

    @cached_property
    def is_edge(self) -> Array:
        """bool [R, G]."""
        return self._between(self.edges) > 0

    @cached_property
    def in_degree(self) -> Array:
        """float64 [G], regulators of each gene, those of no pair included."""
        return self.genes @ np.asarray(self.edges.sum(0)).ravel()

    @cached_property
    def features(self) -> list[Array]:
        """Float [R, G], [R, 1] or [1, G] each: degrees of both, the edge and its reverse, and how many genes regulate
        both, are regulated by both, or stand between them."""
        out, into = (np.asarray(self.edges.sum(axis)).ravel() for axis in (1, 0))
        reverse = self.edges.T.tocsr()
        paths = (self.edges, reverse, reverse @ self.edges, self.edges @ reverse, self.edges @ self.edges)
        return [
            *((self.regulators @ degree)[:, None] for degree in (out, into)),
            *((self.genes @ degree)[None] for degree in (out, into)),
            *(self._between(path) for path in paths),
        ]

    def _between(self, path: sp.csr_matrix) -> Array:
        return (self.regulators @ path @ self.genes.T).toarray()


def _rows_of(wanted: Array, names: Array) -> sp.csr_matrix:
    place = np.clip(np.searchsorted(names, wanted), 0, len(names) - 1)
    known = np.flatnonzero(names[place] == wanted)
    return sp.csr_matrix((np.ones(len(known)), (known, place[known])), (len(wanted), len(names)))
