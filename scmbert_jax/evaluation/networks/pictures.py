"""Which pictures a report of networks has, and of what: kept while methods are scored, drawn afterwards."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata, spearmanr

from data_pipelines.features.gene_tables import load_gene_table
from scmbert_jax.evaluation.networks.pairs import Pairs
from scmbert_jax.evaluation.networks.scores import auprc, precision_at
from scmbert_jax.evaluation.networks.split_files import Parts
from scmbert_jax.evaluation.report.network_figures import (
    FOUND,
    MISSED,
    WRONG,
    Nodes,
    degree_against_score,
    neighbourhood,
    precision_curves,
)
from scmbert_jax.evaluation.report.report import Drawing

Array = np.ndarray

_POINTS, _TIMES_EDGES = 60, 20  # of a curve: how many, and how far it goes
_PANELS, _NEIGHBOURHOODS, _OF_A_KIND = 6, 2, 14
_OF_PRECISION = "Mean over seeds. A method is of use where it stays above the line of random scores."
_OF_DEGREE = (
    "One point per regulator and gene. What rises as the identity does has learned how many edges each of them has, "
    "not which."
)


class PictureScores:
    """What the pictures need of the scores: of one seed, and the curves of all seeds.

    Args:
      parts: of all splits and seeds. Degree is drawn on pairs held out at random, the rest on the split that asks most.
    """

    def __init__(self, pairs: Pairs, parts: Parts):
        self.pairs, self.parts = pairs, parts
        splits = list(dict.fromkeys(split for split, _ in parts))
        self.by_degree, self.asked = ("edge" if "edge" in splits else splits[0]), splits[-1]
        self._seeds = {split: next(seed for own, seed in parts if own == split) for split in splits}
        own = [part.test for (split, _), part in parts.items() if split == self.asked]
        edges, tested = (np.array([number(test) for test in own]) for number in (self._edges, np.sum))
        self.edges, self.density = float(edges.mean()), float((edges / np.maximum(tested, 1)).mean())
        most = min(int(tested.min()), _TIMES_EDGES * max(int(edges.max()), 1))
        self.at = np.unique(np.geomspace(1, max(most, 1), _POINTS).round().astype(np.int64))
        self._curves: dict[str, list[Array]] = {}
        self._scores: dict[tuple[str, str], Array] = {}

    def _edges(self, test: Array) -> int:
        return int((self.pairs.is_edge & test).sum())

    def keep(self, split: str, seed: int, method: str, scores: Array) -> None:
        test = self.parts[split, seed].test
        if split == self.asked:
            curve = precision_at(scores[test], self.pairs.is_edge[test], self.at)
            self._curves.setdefault(method, []).append(curve)
        if split in (self.by_degree, self.asked) and seed == self._seeds[split]:
            self._scores[split, method] = scores.astype(np.float32)

    def scores(self, first: str, judged: Sequence[str]) -> list[Drawing]:
        """Precision at k, and degree against score.

        Args:
          first: the method that the others are compared with; judged: those that are to be seen before others.
        """
        curves = {method: np.nanmean(values, axis=0) for method, values in self._curves.items()}
        precision = precision_curves(self.at, curves, self.density, self.edges)
        found = [(f"Precision among the highest scores, unseen: {self.asked}", precision, _OF_PRECISION)]
        split = self.by_degree
        methods = [own for kept, own in self._scores if kept == split and np.ptp(self._scores[split, own]) > 0]
        others = sorted(set(methods) - {first, *judged}, key=lambda own: -self._auprc(split, own))
        shown = [own for own in (first, *judged, *others) if own in methods][:_PANELS]
        if shown:
            by_degree = degree_against_score({method: self._nodes(split, method) for method in shown})
            found.append((f"Node degree against score, unseen: {split}", by_degree, _OF_DEGREE))
        return found

    def _nodes(self, split: str, method: str) -> tuple[Nodes, Nodes]:
        """Regulators, genes."""
        part = self.parts[split, self._seeds[split]]
        ranks = np.zeros(part.test.shape)
        ranks[part.test] = rankdata(self._scores[split, method][part.test]) / part.test.sum()
        sides = []
        for axis in (1, 0):
            tested = part.test.sum(axis)
            there = np.flatnonzero(tested)
            degree = (self.pairs.is_edge & part.train).sum(axis)[there]
            height = ranks.sum(axis)[there] / tested[there]
            flat = min(np.ptp(degree), np.ptp(height)) == 0
            sides.append(Nodes(degree, height, 0.0 if flat else float(spearmanr(degree, height).statistic)))
        return sides[0], sides[1]

    def neighbourhoods(self, judged: Sequence[str], organism: str) -> list[Drawing]:
        """The two regulators with the most edges that are tested: by the first of `judged`, or the method that does
        best."""
        split = self.asked
        part = self.parts[split, self._seeds[split]]
        methods = [own for kept, own in self._scores if kept == split]
        method = next((own for own in judged if own in methods), max(methods, key=lambda own: self._auprc(split, own)))
        scores, true = self._scores[split, method], self.pairs.is_edge & part.test
        names, found = _symbols(self.pairs.genes, organism), []
        hubs = np.argsort(-true.sum(1), kind="stable")[:_NEIGHBOURHOODS]
        for regulator in hubs[true.sum(1)[hubs] > 0].tolist():
            own, tested = true[regulator], np.flatnonzero(part.test[regulator])
            # By name where scores tie, so that no order of a file shows.
            ranked = tested[np.lexsort((names[tested], -scores[regulator, tested]))]
            high = np.zeros(len(own), bool)
            high[ranked[: int(own.sum())]] = True
            high &= scores[regulator] > scores[regulator, tested].min()  # what has no edge in a network is not found
            kinds = {FOUND: own & high, MISSED: own & ~high, WRONG: high & ~own}
            by_score = {kind: ranked[there[ranked]] for kind, there in kinds.items()}
            shown = {kind: names[genes[:_OF_A_KIND]].tolist() for kind, genes in by_score.items()}
            title, numbers = names[self.pairs.gene_of_regulators[regulator]], {k: len(v) for k, v in by_score.items()}
            said = f"{title}: {numbers[FOUND]:,} of {int(own.sum()):,} true targets found, {numbers[WRONG]:,} wrong"
            cut = f" ({_OF_A_KIND} of a kind drawn)" if max(numbers.values()) > _OF_A_KIND else ""
            between = self._between(by_score, names)
            cut += "; grey: true edges between targets" if between else ""
            picture = neighbourhood(title, shown, between, said)
            found.append((f"Two regulators by {method}, unseen: {split}", picture, said + cut))
        return found

    def _between(self, by_score: dict[str, Array], names: Array) -> list[tuple[str, str]]:
        genes = np.concatenate([own[:_OF_A_KIND] for own in by_score.values()])
        of_gene = {gene: row for row, gene in enumerate(self.pairs.gene_of_regulators.tolist())}
        return [
            (names[source], names[target])
            for source in genes.tolist()
            if source in of_gene
            for target in genes[self.pairs.is_edge[of_gene[source], genes]].tolist()
        ]

    def _auprc(self, split: str, method: str) -> float:
        test = self.parts[split, self._seeds[split]].test
        return auprc(self._scores[split, method][test], self.pairs.is_edge[test])


def _symbols(ids: Array, organism: str) -> Array:
    """str [G], symbols where ids are those of genes."""
    genes = load_gene_table(organism)
    of = {own: str(genes.symbols[row]) for own in ids.tolist() if (row := genes.row_of_id.get(own)) is not None}
    return np.array([of.get(own) or own for own in ids.tolist()])
