"""Drawn negatives: never an edge, the same in any order of names and edges, with the degrees that a rule promises."""

import numpy as np
import pytest

from data_pipelines.networks.negatives import (
    NEGATIVES,
    KnownEdges,
    balanced_pairs,
    draw_negatives,
    read_negatives,
    write_negatives,
)
from scmbert_jax.errors import ConfigError, InputError

GENES = 80


@pytest.fixture
def edges():
    """Few regulators, hubs among the targets; some 300 edges."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, GENES + 1) ** 0.7
    codes = np.unique(rng.integers(0, 20, 400) * GENES + rng.choice(GENES, 400, p=weights / weights.sum()))
    source, target = np.divmod(rng.permutation(codes[codes // GENES != codes % GENES]), GENES)
    return KnownEdges(np.array([f"G{number}" for number in range(GENES)]), source, target, None, np.arange(GENES))


def names_of(edges, pairs):
    return [(str(edges.names[first]), str(edges.names[second])) for first, second in pairs]


@pytest.mark.parametrize("kind", NEGATIVES)
def test_a_negative_is_no_edge_no_loop_and_there_once_in_any_order(kind, edges):
    found = draw_negatives(edges, kind, 150, 3)
    assert found.dtype == np.int32
    drawn = names_of(edges, found)
    assert len(set(drawn)) == 150
    assert not set(drawn) & set(names_of(edges, np.stack([edges.source, edges.target], 1)))
    assert all(first != second for first, second in drawn)
    rng = np.random.default_rng(1)
    genes, order = rng.permutation(GENES), rng.permutation(len(edges.source))
    place = np.argsort(genes)
    moved = KnownEdges(
        edges.names[genes], place[edges.source[order]], place[edges.target[order]], None, np.arange(GENES)
    )
    assert names_of(moved, draw_negatives(moved, kind, 150, 3)) == drawn
    assert names_of(edges, draw_negatives(edges, kind, 150, 4)) != drawn


@pytest.mark.parametrize("kind", NEGATIVES)
def test_of_an_undirected_network_the_reverse_of_an_edge_is_no_negative(kind, edges):
    undirected = KnownEdges(edges.names, edges.source, edges.target, np.arange(GENES), np.arange(GENES), None, False)
    found = draw_negatives(undirected, kind, 150, 0)
    both = {frozenset(pair) for pair in zip(edges.source.tolist(), edges.target.tolist(), strict=True)}
    assert not {frozenset(pair) for pair in found.tolist()} & both


def test_each_rule_keeps_the_degrees_that_it_promises(edges):
    number = len(edges.source)
    of_edges = np.bincount(edges.source, minlength=GENES), np.bincount(edges.target, minlength=GENES)

    def degrees(pairs):
        return [np.bincount(own, minlength=GENES) for own in pairs.T]

    matched, negatives = balanced_pairs(edges, 0)
    assert len(matched) > 0.9 * number
    for own, side in zip(degrees(negatives), (edges.source, edges.target), strict=True):
        np.testing.assert_array_equal(own, np.bincount(side[matched], minlength=GENES))
    half = degrees(draw_negatives(edges, "same_regulator", number, 0))
    np.testing.assert_array_equal(half[0], of_edges[0])
    correlation = {
        kind: np.corrcoef(degrees(draw_negatives(edges, kind, number, 0))[1], of_edges[1])[0, 1]
        for kind in ("uniform", "degree_matched", "same_regulator")
    }
    assert correlation["degree_matched"] > 0.5 > max(correlation["uniform"], correlation["same_regulator"])


def test_a_regulator_of_nearly_all_genes_is_left_out_with_its_edges():
    names = np.array([f"G{number}" for number in range(30)])
    source, target = np.append(np.zeros(29, int), [1, 2, 3]), np.append(np.arange(1, 30), [5, 6, 7])
    matched, negatives = balanced_pairs(KnownEdges(names, source, target), 0)
    assert 0 not in negatives[:, 0]
    np.testing.assert_array_equal(np.sort(source[matched]), np.sort(negatives[:, 0]))
    np.testing.assert_array_equal(np.sort(target[matched]), np.sort(negatives[:, 1]))


def test_what_cannot_be_met_is_said(edges):
    pairs_without_edge = 20 * GENES - 20 - len(edges.source)
    assert len(draw_negatives(edges, "uniform", pairs_without_edge, 0)) == pairs_without_edge
    with pytest.raises(
        InputError, match=f"uniform negatives: 2,000 are asked for, {pairs_without_edge:,} can be drawn"
    ):
        draw_negatives(edges, "uniform", 2000, 0)
    with pytest.raises(InputError, match=r"same_regulator negatives: 5,000 are asked for, .* is wanted .* are free"):
        draw_negatives(edges, "same_regulator", 5000, 0)
    with pytest.raises(InputError, match=r"degree_aware negatives: .* edges can exchange targets"):
        draw_negatives(edges, "degree_aware", len(edges.source) + 1, 0)
    with pytest.raises(InputError, match="degree_matched negatives"):
        draw_negatives(edges, "degree_matched", 1500, 0)
    with pytest.raises(ConfigError, match="negatives 'luck': expected uniform, degree_matched"):
        draw_negatives(edges, "luck", 5, 0)
    every = np.arange(GENES)
    nothing = KnownEdges(edges.names, edges.source, edges.target, every, every, np.zeros((GENES, GENES), bool))
    with pytest.raises(InputError, match="no edge is among the pairs"):
        draw_negatives(nothing, "uniform", 5, 0)


@pytest.mark.parametrize("name", ["negatives.parquet", "negatives.tsv"])
def test_a_file_gives_them_back_and_is_checked(name, edges, tmp_path):
    found, path = draw_negatives(edges, "degree_aware", 100, 0), tmp_path / name
    write_negatives(path, found, edges.names)
    np.testing.assert_array_equal(read_negatives(path, edges), found)
    first = edges.source[0], edges.target[0]
    for changed, why in (
        (np.vstack([found, [first]]), "row 101: .* is an edge of this network"),
        (np.vstack([found, found[:1]]), "row 101: .* is there twice"),
        (np.vstack([found, [[5, 5]]]), "joins a gene with itself"),
        (np.vstack([found, [[70, 5]]]), "is none of the pairs that are looked at"),
    ):
        write_negatives(path, changed, edges.names, overwrite=True)
        with pytest.raises(InputError, match=why):
            read_negatives(path, edges)
    write_negatives(path, found, np.char.add("X", edges.names), overwrite=True)
    with pytest.raises(InputError, match=r"names are none of this network's .*XG.*it has G0, G1"):
        read_negatives(path, edges)
    with pytest.raises(InputError, match="is there already"):
        write_negatives(path, found, edges.names)
    with pytest.raises(InputError, match="one of these endings"):
        write_negatives(tmp_path / "n.csv", found, edges.names)
    with pytest.raises(InputError, match=r"n\.csv: pairs are read from \.parquet or \.tsv"):
        read_negatives(tmp_path / "n.csv", edges)
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match="no column source"):
        read_negatives(tmp_path / "other.tsv", edges)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        read_negatives(tmp_path / "broken.parquet", edges)
