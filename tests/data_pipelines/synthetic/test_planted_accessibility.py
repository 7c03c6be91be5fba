"""Regions whose regulators are known: what is planted is there, in the sequence, in the files and in the cells."""

import numpy as np
import pytest

from data_pipelines.genome.bases import reverse_complement
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.interval_table import read_intervals
from data_pipelines.genome.motif_files import read_motifs
from data_pipelines.genome.region_matrix import read_region_matrix
from data_pipelines.genome.windows import cut_windows
from data_pipelines.synthetic.accessibility import planted_accessibility
from scmbert_jax.errors import ConfigError


def test_files_say_what_was_planted(tmp_path):
    planted = planted_accessibility(90, 6, 3, num_active=2, seed=1)
    files = planted.write(tmp_path)
    genome = Fasta(files["genome"])
    table = read_intervals(files["regions"], genome)
    np.testing.assert_array_equal(table.ids, planted.regions.ids)
    np.testing.assert_array_equal(cut_windows(genome, table).codes, planted.codes)
    motifs = read_motifs(files["motifs"])
    assert motifs.ids == planted.motifs.ids
    assert motifs.names == planted.motifs.names
    for mine, theirs in zip(motifs.counts, planted.motifs.counts, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    opened = read_region_matrix(files["accessibility"])
    opened.check_order(planted.regions.ids)
    np.testing.assert_array_equal(opened.values.toarray(), planted.accessibility.values.toarray())


def best_score(codes: np.ndarray, log_odds: np.ndarray) -> np.ndarray:
    """[R], the best of both strands."""
    found = []
    for strand in (codes, reverse_complement(codes)):
        windows = np.lib.stride_tricks.sliding_window_view(strand, len(log_odds), axis=1)
        found.append(log_odds[np.arange(len(log_odds)), windows].sum(2).max(1))
    return np.maximum(*found)


def test_copies_are_in_the_sequence_and_open_regions_where_their_regulator_is_active():
    planted = planted_accessibility(900, seed=2)
    again, other = planted_accessibility(900, seed=2), planted_accessibility(900, seed=3)
    np.testing.assert_array_equal(planted.codes, again.codes)
    assert (planted.codes != other.codes).any()
    opened = planted.accessibility.values.toarray()
    for motif, log_odds in enumerate(planted.motifs.log_odds()):
        has, score = planted.copies[:, motif] > 0, best_score(planted.codes, log_odds)
        # Few of the regions without a copy have by chance what is as good as most copies.
        assert (score[~has] < np.median(score[has])).mean() > 0.95
        effect = opened[has].mean(axis=0) - opened[~has].mean(axis=0)
        active = planted.activity[motif] > 0
        assert (effect[active] > 0.1).all()
        assert (effect[~active] < 0.12).all()
    assert (planted.activity[0] > 0).all()
    assert (planted.activity[16:] == 0).all()
    assert ((planted.activity[1:] > 0).sum(axis=0) == 4).all()


def test_cells_have_fragments_where_their_type_is_open():
    planted = planted_accessibility(180, num_types=3, seed=4)
    counts, of_cell = planted.cells(1500, depth=0.5, seed=1)
    assert counts.max() == 1
    assert set(of_cell) == {0, 1, 2}
    opened = planted.accessibility.values.toarray()
    for kind in range(3):
        mean = np.asarray(counts[of_cell == kind].mean(axis=0)).ravel()
        assert np.abs(mean - 0.5 * opened[:, kind]).max() < 0.12  # 5 standard errors of 500 cells


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(ConfigError, match="8 regions of 200 bases, 4 of 24 regulators active"):
        planted_accessibility(8)
