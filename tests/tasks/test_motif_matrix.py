"""A matrix of motifs by region has the hits of each region under its id."""

import numpy as np
import pytest

from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.interval_table import intervals_of
from data_pipelines.genome.motif_files import read_motifs
from data_pipelines.genome.windows import cut_windows
from scmbert_jax.tasks import motif_matrix as room
from scmbert_jax.tasks.motif_matrix import motif_matrix

CTCF = "TGGCCACCAGGGGGCGCTA"  # the middle of the factor's consensus
OTHER = CTCF[::-1].translate(str.maketrans("ACGT", "TGCA"))


def test_a_planted_motif_is_found_in_its_region_on_either_strand(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_ROWS", 2)  # parts are put together
    around = "".join(np.random.default_rng(1).choice(list("ACGT"), 200))
    pieces = [around, around[:90] + CTCF + around[109:], around[:90] + OTHER + around[109:]]
    (tmp_path / "a.fa").write_text(f">chr1\n{''.join(pieces)}\n")
    table = intervals_of([Interval("chr1", at, at + 200) for at in (400, 0, 200)])  # in no order
    motifs = read_motifs(shared_data / "motifs" / "JASPAR2024_CORE_human_latest.jaspar")
    ctcf = motifs.take(np.array([motifs.ids.index("MA0139.2"), 0, 1]))
    windows = cut_windows(Fasta(tmp_path / "a.fa"), table)
    found = motif_matrix(table, windows, ctcf, p_value=1e-5)
    assert found.regions.tolist() == ["chr1:400-600", "chr1:0-200", "chr1:200-400"]
    assert found.columns[0] == "MA0139.2"
    hits = found.joined(["chr1:0-200", "chr1:200-400", "chr1:400-600"], ["MA0139.2"])[0].toarray()[:, 0]
    assert hits.tolist() == [0, 1, 1]
    best = motif_matrix(table, windows, ctcf, "max").values.toarray()[:, 0]
    assert best[0] == pytest.approx(best[2])
    assert best[0] > best[1] + 5
