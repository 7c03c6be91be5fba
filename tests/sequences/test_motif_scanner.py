"""The scan is equal to scoring every position of both strands one by one, whatever is scanned at once."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.genome.motif_thresholds import rounded, score_thresholds
from scmbert_jax.benchmarks.motif_speed import numpy_scan
from scmbert_jax.errors import InputError
from scmbert_jax.sequences import motif_scanner
from scmbert_jax.sequences.motif_scanner import MotifScanner, grouped_by_width

SUMMARIES = ("max", "sum", "log_mean_exp", "hits")


@pytest.fixture(scope="module")
def motifs():
    rng = np.random.default_rng(0)
    widths = [5, 33, 6, 7, 9, 20, 9, 10, 15, 6, 12]
    return [np.log2(rng.dirichlet([0.3] * 4, width) + 0.01) + 2 for width in widths]


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 4, (13, 70)).astype(np.uint8)
    codes[2, 10:30] = 4  # N
    lengths = rng.integers(0, 71, 13).astype(np.int32)
    lengths[:4] = (70, 33, 70, 4)
    codes[np.arange(70) >= lengths[:, None]] = 4
    return codes, lengths


def scanned(motifs, codes, lengths):
    return MotifScanner(motifs, np.linspace(-5, 5, len(motifs)))(codes, lengths, SUMMARIES)


def test_a_scan_is_that_of_the_reference_on_both_strands(motifs, sequences):
    found = scanned(motifs, *sequences)
    expected = numpy_scan(motifs, *sequences, SUMMARIES, np.linspace(-5, 5, len(motifs)))
    for name in SUMMARIES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-4, err_msg=name)
    assert found["max"].dtype == np.float32
    assert found["hits"].max() > 3


def test_tiles_of_any_size_give_the_same(motifs, sequences, monkeypatch):
    whole = scanned(motifs, *sequences)
    monkeypatch.setattr(motif_scanner, "_LONGEST_TILE", 16)  # long sequences are cut
    monkeypatch.setitem(motif_scanner._TILE_BYTES, jax.default_backend(), 4000)
    monkeypatch.setattr(motif_scanner, "_ROWS_OF_A_CALL", 4)  # and the last call is filled up
    jax.clear_caches()
    cut = scanned(motifs, *sequences)
    jax.clear_caches()
    for name in SUMMARIES:
        # Sums of some thousands of bits in float32 differ in the seventh digit by the order in which they are taken.
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-6, atol=1e-4, err_msg=name)


def test_a_motif_scores_the_other_strand_as_its_reverse_complement_does(motifs, sequences):
    codes = sequences[0][:, :40]
    turned = np.where(codes == 4, 4, 3 - codes)[:, ::-1]
    for name in ("max", "sum", "log_mean_exp"):
        one, other = (MotifScanner(motifs)(c, summaries=(name,))[name] for c in (codes, turned))
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-4)


def test_hits_of_all_words_are_exactly_as_many_as_the_p_value_says():
    """With a coarse step, words whose score rounds to the threshold's are many; unrounded matrices would split them."""
    words = np.array(list(product(range(4), repeat=6)), np.uint8)
    counts = np.random.default_rng(0).multinomial(50, [0.25] * 4, (30, 6)) + 0.25
    log_odds = rounded(list(np.log2(counts / 51 / 0.25)), step=0.05)
    thresholds = score_thresholds(log_odds, 0.01, step=0.05)
    hits = MotifScanner(log_odds, [one.score for one in thresholds])(words, summaries=("hits",))["hits"].sum(0)
    expected = [2 * len(words) * one.p_value for one in thresholds]  # on both strands
    np.testing.assert_allclose(hits, expected, rtol=1e-6)
    assert np.median(expected) > 10


def test_inside_a_jitted_function_it_reads_one_hot_and_has_a_gradient(motifs, sequences):
    scanner = MotifScanner(motifs)
    codes, lengths = sequences
    one_hot = jax.nn.one_hot(codes, 4)
    found = jax.jit(lambda x: scanner.scan(x, jnp.asarray(lengths), ("max",))["max"])(one_hot)
    np.testing.assert_allclose(found, scanner(codes, lengths)["max"], atol=1e-4)
    gradient = jax.grad(lambda x: scanner.scan(x)["max"][0, 0])(one_hot)
    # The best place of a motif of 5: its matrix, or that of the other strand, and nothing elsewhere.
    placed = np.flatnonzero(np.abs(gradient[0]).sum(1))
    own = np.asarray(gradient[0][placed[0] : placed[0] + 5])
    matrix = motifs[0].astype(np.float32)
    assert len(placed) == 5
    assert np.allclose(own, matrix) or np.allclose(own, matrix[::-1, ::-1])


def test_groups_of_widths_waste_least():
    widths = np.array([5, 5, 5, 6, 20, 21, 8])
    groups = grouped_by_width(widths, 3)
    assert [sorted(widths[rows].tolist()) for rows in groups] == [[5, 5, 5], [6, 8], [20, 21]]
    assert [len(rows) for rows in grouped_by_width(widths, 9)] == [3, 1, 1, 1, 1]
    assert len(grouped_by_width(widths, 1)) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: MotifScanner([]), "a scan of no motifs"),
        (lambda m: MotifScanner([m[0].T]), r"motif 0: \[4, 5\], expected finite numbers \[places, 4\]"),
        (lambda m: MotifScanner(m, [1.0]), "1 thresholds for 11 motifs"),
        (lambda m: MotifScanner(m)(np.zeros((1, 9), np.uint8), summaries=("hits",)), "hits need thresholds"),
        (lambda m: MotifScanner(m)(np.zeros((1, 9), np.uint8), summaries=("mean",)), "expected some of max, sum"),
    ],
)
def test_what_cannot_be_scanned_is_refused(make, words, motifs):
    with pytest.raises(InputError, match=words):
        make(motifs)
