"""Zero-shot recipes of the `regulatory` suite: scores whose answer is known, and what may be judged and read."""

import numpy as np
import pytest
from planted_sequences import SITE, has_site, motif_set, random_codes

from data_pipelines.genome.bases import decode, encode, reverse_complement
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.regulatory.likelihoods import gc_content, markov_score
from scmbert_jax.evaluation.regulatory.suite import Sealed, evaluate_regulatory, write_regulatory_report
from scmbert_jax.evaluation.regulatory.zero_shot import Pairs, element_pairs, motif_pairs, score_pairs


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_dinucleotide_shuffle_is_a_tie_for_composition_and_for_chains_of_the_first_order(rng):
    training = random_codes(rng, 1, 3000)
    scores = {"gc": gc_content, "0": markov_score(training, 0), "1": markov_score(training, 1)}
    for row in score_pairs(element_pairs(random_codes(rng, 40, 60)), scores):
        assert (row.accuracy, row.low, row.high, row.p_value) == (0.5, 0.5, 0.5, 1.0)
        assert row.number == 40


def test_a_chain_of_the_second_order_knows_elements_from_their_shuffles(rng):
    def chain(length):  # nine times of ten a base follows from the two before it
        found = [0, 1]
        while len(found) < length:
            found.append((found[-1] + 2 * found[-2] + 1) % 4 if rng.random() < 0.9 else rng.integers(4))
        return np.array(found, np.uint8)

    row = score_pairs(element_pairs(np.stack([chain(80) for _ in range(40)])), {"2": markov_score(chain(4000), 2)})[0]
    assert row.accuracy > 0.95
    assert row.p_value < 1e-5


def test_a_chain_reads_both_strands_and_says_nothing_of_unknown_bases():
    score = markov_score(encode("AAAACAAAACAAAAC" * 20), 0)
    values = score(np.stack([encode("AAAA"), encode("TTTT"), encode("CCCC"), encode("NNNN")]))
    assert values[0] == pytest.approx(values[1])
    assert values[0] > values[2]
    assert values[3] == 0
    with pytest.raises(InputError, match="no stretch of 3 bases"):
        markov_score(encode("ANNANN"), 2)


def test_the_letters_of_a_motif_are_shuffled_until_they_are_another_word(rng):
    pairs, left_out = motif_pairs(motif_set(SITE, "AAAAAA", "ACGT", "A" * 60), random_codes(rng, 20, 50), backgrounds=6)
    assert left_out == 2  # one letter has no other order, and 60 bases do not fit
    for real, other, group in zip(pairs.real, pairs.shuffled, pairs.group, strict=True):
        word = encode(SITE if group == 0 else "ACGT")
        start = (50 - len(word)) // 2
        place = slice(start, start + len(word))
        assert (real[place] == word).all()
        assert sorted(other[place]) == sorted(word)
        assert not any((other[place] == one).all() for one in (word, reverse_complement(word)))
        assert (np.delete(real, np.r_[place]) == np.delete(other, np.r_[place])).all()
    row = score_pairs(pairs, {"site": lambda codes: np.array([float(has_site(own)) for own in codes])})[0]
    assert row.number == 2
    assert row.pairs == 12
    assert 0.7 < row.accuracy < 0.8  # always right for one motif, ties for the other


def test_pairs_of_a_group_count_once_in_the_interval(rng):
    codes = random_codes(rng, 4, 30)
    codes[:2], codes[2:] = np.sort(codes[:2]), np.sort(codes[2:])
    real, shuffled = np.repeat(codes, 50, axis=0), np.repeat(codes[::-1], 50, axis=0)
    row = score_pairs(Pairs("x", real, shuffled, np.repeat(np.arange(4), 50)), {"sum": lambda own: own.sum(1)})[0]
    assert row.number == 4
    assert row.accuracy == 0.5
    assert row.high - row.low > 0.5


@pytest.fixture
def genome(tmp_path, rng):
    codes = random_codes(rng, 1, 4000)[0]
    (tmp_path / "genome.fa").write_text(f">chr1\n{decode(codes)}\n>chr2\n{decode(codes[::-1])}\n")
    rows = [("chr1", 600, 700), ("chr1", 3000, 3100), ("chr1", 3300, 3500), ("chr2", 1000, 1200)]
    (tmp_path / "some.bed").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return lambda *sealed: Sealed(tmp_path / "genome.fa", [tmp_path / "some.bed"], sealed)


def test_only_elements_inside_what_is_sealed_are_judged(genome, tmp_path):
    found = evaluate_regulatory(sealed=genome("chr1:2800-4000"), motifs=motif_set(SITE, "GGGCGG"), pictures=True)
    assert {row.number for row in found.pairs} == {2}
    assert any("2 elements on sealed sequence, of 4" in note for note in found.notes)
    assert any("no conservation baseline" in note for note in found.notes)
    assert len({row.recipe for row in found.pairs}) == 2
    write_regulatory_report(tmp_path / "report.html", found, {})
    assert (tmp_path / "report.html").read_text().count("<figure>") == 2


@pytest.mark.parametrize(
    ("sealed", "said"),
    [
        (["chr9"], "no sequence chr9"),
        (["chr1:3000-5000"], "has 4,000 bases"),
        (["chr2:2000-4000"], "no element on the sealed sequence"),
        (["chr1", "chr2"], "seal less"),
    ],
)
def test_what_cannot_be_sealed_is_refused(sealed, said, genome):
    with pytest.raises(InputError, match=said):
        evaluate_regulatory(sealed=genome(*sealed))
