"""Motifs are the same in every format they are written in; what is no motif is refused; p-values are exact."""

import itertools

import numpy as np
import pytest

from data_pipelines.genome.motif_files import read_motifs
from data_pipelines.genome.motif_thresholds import score_distribution, score_thresholds
from scmbert_jax.errors import InputError

COUNTS = {"M1": np.array([[8, 0, 1, 1], [0, 10, 0, 0], [2, 2, 3, 3]]), "M2": np.array([[1, 1, 1, 7]] * 5)}


def rows(matrix):
    return "\n".join(" ".join(f"{value:g}" for value in row) for row in matrix)


FORMATS = {
    "jaspar": "".join(
        f">{name} TF{name}\n"
        + "".join(f"{base} [ {' '.join(map(str, row))} ]\n" for base, row in zip("ACGT", m.T, strict=True))
        for name, m in COUNTS.items()
    ),
    "by_base.pfm": "".join(f">{name} TF{name}\n{rows(m.T)}\n" for name, m in COUNTS.items()),
    "by_place.pfm": "# comment\n" + "".join(f">{name} TF{name}\n{rows(m)}\n" for name, m in COUNTS.items()),
    "meme": "MEME version 4\n\nALPHABET= ACGT\n\n"
    + "".join(
        f"MOTIF {name} TF{name}\nletter-probability matrix: alength= 4 w= {len(m)} nsites= 10 E= 0\n"
        f"{rows(m / 10)}\nURL x\n\n"
        for name, m in COUNTS.items()
    ),
    "transfac": "".join(
        f"AC {name}\nXX\nID TF{name}\nP0 A C G T\n"
        + "".join(f"{i:02} {' '.join(map(str, row))} N\n" for i, row in enumerate(m, 1))
        + "XX\n//\n"
        for name, m in COUNTS.items()
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_motif_is_the_same_in_every_format(name, tmp_path):
    (tmp_path / name).write_text(FORMATS[name])
    motifs = read_motifs(tmp_path / name)
    assert motifs.ids == ("M1", "M2")
    assert motifs.names == ("TFM1", "TFM2")
    assert motifs.sites.tolist() == [10, 10]
    for found, expected in zip(motifs.counts, COUNTS.values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FORMATS["jaspar"].replace("C [ 0 10 2 ]", "C [ 0 10 ]"), "line 1: motif M1 has 4 lines of 2, 3 numbers"),
        (FORMATS["jaspar"].replace("G [ 1 0 3 ]\n", ""), "line 1: motif M1 has 3 lines"),
        (FORMATS["jaspar"].replace("8 0 2", "8 x 2"), "line 2: '8 x 2'; expected counts"),
        (FORMATS["jaspar"].replace("8 0 2", "8 -1 2"), "line 2: '8 -1 2'; expected counts"),
        (FORMATS["jaspar"].replace("M2", "M1"), "line 6: motif M1 stands in line 1, too"),
        (FORMATS["by_place.pfm"].replace("8 0 1 1", "0 0 0 0"), "line 2: motif M1 has no sites at place 1"),
        (FORMATS["meme"].replace("w= 3", "w= 4"), "motif M1 says w= 4 but has 3 lines"),
        (FORMATS["meme"].replace("0.8 0 0.1 0.1", "0.8 0 0.1 0.3"), "the probabilities of place 1 sum to 1.2"),
        (FORMATS["meme"].replace("ACGT", "ACDEF"), "expected motifs of DNA"),
        (FORMATS["transfac"].replace("P0 A C G T", "P0 T C G A"), "expected P0 A C G T"),
        (FORMATS["transfac"].removesuffix("XX\n//\n"), "line 10: motif M2 ends without //"),
        (FORMATS["transfac"].replace("02 0 10 0 0 N\n", ""), "line 6: place 03 of motif M1 follows 1 places"),
        (">only\n1 1 1 1\n" * 1 + "1 1 1 1\n" * 3, "all motifs are 4 by 4"),
        ("chr1\t1\t2\n", "expected JASPAR, PFM, MEME or TRANSFAC"),
        ("", "expected JASPAR, PFM, MEME or TRANSFAC"),
    ],
)
def test_a_malformed_file_is_refused_by_line(text, words, tmp_path):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(InputError, match=words):
        read_motifs(tmp_path / "bad")


def test_log_odds_are_the_formula_and_their_probabilities_sum_to_one(tmp_path):
    (tmp_path / "a").write_text(FORMATS["jaspar"])
    motifs = read_motifs(tmp_path / "a")
    background = (0.3, 0.2, 0.2, 0.3)
    np.testing.assert_allclose(motifs.probabilities(1.0, background)[0][0], np.array([8.3, 0.2, 1.2, 1.3]) / 11)
    np.testing.assert_allclose(motifs.log_odds(1.0, background)[0][0, 0], np.log2(8.3 / 11 / 0.3))
    with pytest.raises(InputError, match="sum to 1"):
        motifs.log_odds(background=(0.3, 0.3, 0.3, 0.3))
    with pytest.raises(InputError, match="a base that never occurs"):
        motifs.log_odds(0.0)


def test_the_p_value_of_a_threshold_is_that_of_counting_every_sequence():
    rng = np.random.default_rng(0)
    log_odds = np.log2(rng.dirichlet([0.5] * 4, 6) + 0.01)
    background = (0.3, 0.2, 0.1, 0.4)
    words = np.array(list(itertools.product(range(4), repeat=6)))
    scores = log_odds[np.arange(6), words].sum(1)
    weights = np.array(background)[words].prod(1)
    distribution = score_distribution(log_odds, background, step=0.01)
    assert distribution.probability.sum() == pytest.approx(1)
    assert distribution.rounding == pytest.approx(0.03)
    for p_value in (0.3, 0.01, 1e-3):
        found = distribution.threshold(p_value)
        rounded = np.rint(log_odds / 0.01)[np.arange(6), words].sum(1) * 0.01
        assert weights[rounded >= found.score - 1e-9].sum() == pytest.approx(found.p_value)
        assert found.p_value <= p_value
        assert weights[rounded >= found.score - 0.01 - 1e-9].sum() > p_value  # the lowest that is rare enough
        assert np.abs(rounded - scores).max() <= found.rounding
    assert score_thresholds([log_odds], 1e-9, background)[0].score > scores.max()  # nothing is as rare as that
    with pytest.raises(InputError, match="p-value 0"):
        distribution.threshold(0)


def test_the_sets_of_the_shared_data_are_read(shared_data):
    human = read_motifs(shared_data / "motifs" / "JASPAR2024_CORE_human_latest.jaspar")
    assert len(human) == 755
    assert dict(zip(human.ids, human.names, strict=True))["MA0139.2"] == "CTCF"
    assert human.counts[0][0].tolist() == [10, 2, 3, 11]
    mouse = read_motifs(shared_data / "motifs" / "JASPAR2022_vertebrates.pfm.gz")
    assert mouse.ids[0] == "MA0004.1_MA0004.1.Arnt"
    assert mouse.counts[0][0].tolist() == [4, 16, 0, 0]
    assert len(mouse) > 700
