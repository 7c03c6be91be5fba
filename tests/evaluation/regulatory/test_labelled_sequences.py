"""Baselines of the `regulatory` suite find what was planted for them, and nothing else; figures are the right ones."""

import gzip

import numpy as np
import pandas as pd
import pytest
from planted_sequences import SITE, motif_set, random_codes, with_site, write_set
from sklearn.metrics import matthews_corrcoef

from data_pipelines.genome.bases import decode, encode, reverse_complement
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.regulatory.baselines import (
    BASELINES,
    CNN,
    CONCATENATED,
    K_AND_M,
    KMERS,
    MOTIFS,
    ONE_HOT,
    PLACES,
    word_inputs,
)
from scmbert_jax.evaluation.regulatory.labelled import part_of, score_task, sizes_of
from scmbert_jax.evaluation.regulatory.suite import evaluate_regulatory
from scmbert_jax.evaluation.regulatory.tasks import read_task
from scmbert_jax.evaluation.regulatory.words import placed_words, word_counts
from scmbert_jax.regulation.linear_part import scanner_of

METHODS = {method.name: method for method in BASELINES}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def sites(tmp_path, rng):
    return write_set(tmp_path / "sites", rng, lambda codes: with_site(rng, codes))


def test_words_are_counted_on_both_strands_and_never_over_an_unknown_base():
    codes = np.stack([encode("AACGN"), encode("NCGTT")])  # each the reverse complement of the other
    counts = word_counts(codes, 3, "counts").toarray()
    assert (counts[0] == counts[1]).all()
    assert counts[0].sum() == 2  # AAC and ACG
    assert counts[0, 1] == 1  # AAC, not GTT
    assert word_counts(codes, 6, "counts").sum() == 0


def test_placed_words_have_a_column_per_place_and_word():
    found = placed_words(np.stack([encode("ACGT"), encode("ANGT")]), 2).toarray()
    assert found.shape == (2, 4 * 4 + 3 * 16)
    assert found.sum(1).tolist() == [4 + 3, 3 + 1]
    assert found[0, [0, 4 + 1, 8 + 2, 12 + 3]].all()
    assert found[0, 16 + 1] == 1  # AC at the first place


def test_a_site_anywhere_is_found_by_words_and_by_its_motif_and_not_by_places(sites):
    found = evaluate_regulatory([read_task(sites)], motifs=motif_set(SITE, "GGGCGG"), skip=[CNN])
    scores = {method: found.row("sites", method).mean for method in (KMERS, ONE_HOT, MOTIFS, K_AND_M)}
    assert scores[MOTIFS] > 85
    assert scores[K_AND_M] > 85
    assert scores[ONE_HOT] < 40 < scores[KMERS]
    row = found.row("sites", MOTIFS)
    assert row.low < row.mean < row.high
    assert row.num_parameters == 2 + 1


def test_a_mean_has_no_row_where_one_of_its_parts_has_none(sites):
    others = [method.name for method in BASELINES if method.name not in (KMERS, K_AND_M)]
    found = evaluate_regulatory([read_task(sites)], motifs=motif_set(SITE), skip=others)
    assert {row.method for row in found.sequences} == {KMERS}
    assert found.missing == {K_AND_M: f"is made of {MOTIFS}, which has no row"}


def test_what_depends_on_a_pair_of_neighbours_is_found_by_pairs_at_places(tmp_path, rng):
    def same(codes):
        codes[:, 21] = codes[:, 20]
        return codes

    task = read_task(write_set(tmp_path / "pairs", rng, same, (600, 200, 300)))
    found = evaluate_regulatory([task], skip=[CNN, KMERS])
    assert found.row("pairs", PLACES).mean > found.row("pairs", ONE_HOT).mean + 30
    assert found.missing == dict.fromkeys((MOTIFS, K_AND_M, CONCATENATED), "needs --motifs")


def test_a_figure_is_that_of_scikit_learn_and_repeats_are_left_out_of_a_second_one(tmp_path, rng):
    folder = write_set(tmp_path / "some", rng, lambda codes: with_site(rng, codes))
    train, test = (pd.read_csv(folder / f"{part}.csv.gz") for part in ("train", "test"))
    test.loc[:39, "sequence"] = [decode(reverse_complement(encode(text))) for text in train.sequence[:40]]
    test.loc[:39, "label"] = 1 - train.label[:40]  # what was learned is wrong for them
    test.to_csv(folder / "test.csv.gz", index=False)
    task = read_task(folder)
    assert sizes_of(task)["repeated"] == 40
    rows = {row.metric: row for row in score_task(task, [METHODS[PLACES]], None)}
    fitted = METHODS[PLACES].fit(task.splits[0], 0)
    truth = task.splits[0].test.targets[:, 0]
    assert rows["mcc"].mean == pytest.approx(100 * matthews_corrcoef(truth, fitted.test.argmax(1)))
    assert rows["mcc_unseen"].mean > rows["mcc"].mean + 10


def test_a_fraction_of_the_labels_learns_and_dev_and_test_stay(sites):
    split = read_task(sites).splits[0]
    part = part_of(split, 0.1, seed=1)
    assert len(part.train) == 30
    assert part.train.targets.mean() == 0.5
    assert part.dev is split.dev
    assert part.test is split.test
    assert word_inputs(part, (3,), "log")[1].shape[0] == 80
    kept, _, _ = part.columns(lambda codes: word_counts(codes, 3), (3, "log"))
    assert (kept != word_counts(part.train.codes, 3)).nnz == 0
    assert not np.array_equal(part.rows, part_of(split, 0.1, seed=2).rows)
    scanner = scanner_of(motif_set(SITE, "GGGCGG", "CACGTG", "TTTCCA"))
    rows = score_task(read_task(sites), [METHODS[MOTIFS]], scanner, fractions=(0.02, 1.0), num_seeds=2)
    of = {(row.fraction, row.metric): row for row in rows}
    assert of[0.02, "mcc"].num_seeds == 2
    assert of[1.0, "mcc"].num_seeds == 1
    assert of[0.02, "mcc"].mean < of[1.0, "mcc"].mean


@pytest.mark.nightly
def test_the_small_network_finds_a_site_anywhere(tmp_path, rng):
    task = read_task(write_set(tmp_path / "sites", rng, lambda codes: with_site(rng, codes), (2000, 300, 300)))
    row = score_task(task, [METHODS[CNN]], None, num_seeds=2)[0]
    assert row.mean > 70
    assert row.num_seeds == 2


def test_a_table_is_cut_into_folds_that_each_test_once(tmp_path, rng):
    codes = random_codes(rng, 120, 20)
    kinds = np.array(["EI", "IE", "N"])[np.arange(120) % 3]
    codes[kinds == "EI", 10:12], codes[kinds == "IE", 8:10] = encode("GT"), encode("AG")
    lines = [f"{kind},   NAME-{n},     {decode(row)}" for n, (kind, row) in enumerate(zip(kinds, codes, strict=True))]
    lines[5] = lines[5][:-1] + "D"  # UCI has a few letters for several bases
    (tmp_path / "splice.data.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    task = read_task(tmp_path / "splice.data.gz", 4)
    assert [len(split.test) for split in task.splits] == [30] * 4
    tested = np.concatenate([split.test.codes for split in task.splits])
    assert len(np.unique(tested, axis=0)) == 120
    for split in task.splits:
        parts = [split.train.codes, split.dev.codes, split.test.codes]
        assert len(np.unique(np.concatenate(parts), axis=0)) == 120
        assert split.test.counts() == {"EI": 10, "IE": 10, "N": 10}
    rows = score_task(task, [METHODS[ONE_HOT]], None)
    assert next(row for row in rows if row.metric == "accuracy").mean > 80


def test_a_table_with_a_column_of_parts_is_split_by_it(sites, tmp_path):
    parts = {part: pd.read_csv(sites / f"{part}.csv.gz") for part in ("train", "dev", "test")}
    whole = pd.concat([own.assign(split=part) for part, own in parts.items()])
    whole.to_csv(tmp_path / "whole.csv", index=False)
    (split,) = read_task(tmp_path / "whole.csv").splits
    (expected,) = read_task(sites).splits
    for part in ("train", "dev", "test"):
        np.testing.assert_array_equal(getattr(split, part).codes, getattr(expected, part).codes)
    whole[whole.split != "test"].to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(InputError, match="its column of parts has no test"):
        read_task(tmp_path / "few.csv")


@pytest.mark.parametrize("lines", ["EI, a, ACGT\nIE, b\n", "EI, a, ACGT\nIE, b, ACGT, x\n"])
def test_splice_junctions_with_other_columns_are_refused_by_row(lines, tmp_path):
    (tmp_path / "splice.data").write_text(lines)
    with pytest.raises(InputError, match="row 2: expected class, name, sequence"):
        read_task(tmp_path / "splice.data")


def test_what_learns_does_not_choose(sites):
    train, dev = (pd.read_csv(sites / f"{part}.csv.gz") for part in ("train", "dev"))
    dev.loc[:9, "sequence"] = [decode(reverse_complement(encode(text))) for text in train.sequence[:10]]
    dev.to_csv(sites / "dev.csv.gz", index=False)
    split = read_task(sites).splits[0]
    assert len(split.dev) == 70
    assert len(split.train) == 300
    train.iloc[:80].to_csv(sites / "dev.csv.gz", index=False)
    with pytest.raises(InputError, match="nothing to choose by"):
        read_task(sites)


BAD_SETS = {
    "no dev": ({"train": "sequence,label\nACGT,1\n"}, r"no dev.csv in it"),
    "a column": ({"train": "dna,answer\nACGT,1\n"}, r"expected label or labels or class"),
    "a letter": ({"train": "sequence,label\nACGT,1\nAC-T,0\n"}, r"letters that are no bases, e.g. line 3.*'AC-T'"),
    "no label": ({"train": "sequence,label\nACGT,1\nACGT,\n"}, r"row 2 has no label"),
    "one class": (dict.fromkeys(("train", "dev", "test"), "sequence,label\nACGT,1\n"), r"all labels are '1'"),
    "a rare class": ({"train": "sequence,label\n" + "ACGT,1\n" * 9 + "ACGA,0\n"}, r"1 sequences of class 0"),
    "empty": ({"train": "sequence,label\n"}, r"has no rows"),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_a_set_that_cannot_be_used_is_refused_by_file_and_line(name, tmp_path):
    files, said = BAD_SETS[name]
    whole = "sequence,label\n" + "ACGT,1\nTCGA,0\n" * 9
    others = {} if name == "no dev" else dict.fromkeys(("train", "dev", "test"), whole)
    for part, text in (others | files).items():
        (tmp_path / f"{part}.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_task(tmp_path)
