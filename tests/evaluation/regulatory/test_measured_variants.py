"""Measured variants in the `regulatory` suite: elements out of a table, floors, other loci; and the verb as a whole."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import scmbert, scmbert_ok
from planted_sequences import SITE, changed, has_site, motif_set, random_codes, with_site, write_elements, write_set

from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.regulatory.baselines import CNN, CONCATENATED, KMERS
from scmbert_jax.evaluation.regulatory.saturation import DELETED, loci, read_elements
from scmbert_jax.evaluation.regulatory.suite import Zoo, evaluate_regulatory
from scmbert_jax.evaluation.regulatory.variant_effects import NOTHING, OTHER_LOCI, Variants, variant_rows


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def elements(tmp_path, rng):
    """Three loci, one of them measured twice; only a site matters. The table, and the sequences."""
    sequences = [with_site(rng, random_codes(rng, 1, 40))[0] for _ in range(3)]
    names, starts = ("A", "B", "C", "C.2"), (100, 500, 900, 900)
    effect = lambda codes: float(has_site(codes))  # noqa: E731
    return write_elements(tmp_path / "elements.tsv", rng, names, [*sequences, sequences[2]], starts, effect), sequences


def test_elements_are_put_together_and_those_that_share_bases_are_one_locus(elements):
    read = read_elements(elements[0])
    assert [own.name for own in read] == ["A", "B", "C", "C.2"]
    assert all((own.codes == codes).all() for own, codes in zip(read, elements[1], strict=False))
    assert read[1].start == 500
    assert len(read[1]) == 4 * 40
    assert loci(read).tolist() == [0, 1, 2, 2]


def test_windows_have_the_variant_in_their_middle_and_behind_a_deletion_one_base_more(elements):
    element, codes = read_elements(elements[0])[0], elements[1][0]
    reference, alternate = element.windows(7)
    for row in range(len(element)):
        place, base = int(element.place[row]), int(element.alternate[row])
        before = np.pad(codes, (3, 8), constant_values=4)
        after = np.pad(changed(codes, place, 4 if base == DELETED else base), (3, 8), constant_values=4)
        assert (reference[row] == before[place : place + 7]).all()
        assert (alternate[row] == after[place : place + 7]).all()


def test_a_motif_says_which_changes_matter_and_other_loci_teach_it(elements):
    read, motifs = read_elements(elements[0]), motif_set(SITE, "GGGCGG")
    rows = {(row.method, row.learned_from): row for row in variant_rows(Variants(read, motifs), {}, 41, print)}
    learned = rows["motif hits", OTHER_LOCI]
    assert rows["motif difference (hits)", NOTHING].mean > 0.4
    assert learned.mean > 0.4
    assert abs(rows["change of GC content", NOTHING].mean) < 0.25
    assert learned.num_loci == 3
    # What was measured at the locus that is judged teaches nothing: turned round, the prediction is the same.
    turned = [type(own)(**vars(own) | {"effect": -own.effect}) if own.name[0] == "C" else own for own in read]
    again = {(row.method, row.learned_from): row for row in variant_rows(Variants(turned, motifs), {}, 41, print)}
    for name in ("C", "C.2"):
        assert again["motif hits", OTHER_LOCI].elements[name] == pytest.approx(-learned.elements[name])


def test_a_model_of_variants_and_a_track_have_rows(elements, monkeypatch):
    read = read_elements(elements[0])

    def effect(reference, alternate):
        before, after = (np.array([float(has_site(row)) for row in codes]) for codes in (reference, alternate))
        return after - before

    def track(path, table, windows):  # conserved where the site stands
        return np.array([[float(not has_site(changed(own, n, 4))) for n in range(len(own))] for own in windows.codes])

    monkeypatch.setattr("scmbert_jax.evaluation.regulatory.suite.signal_of_windows", track)
    zoo = Zoo(effects={"model: site": effect}, width=41)
    found = evaluate_regulatory(elements=read, zoo=zoo, conservation="phylop.bw")
    rows = {row.method: row for row in found.variants}
    assert rows["model: site"].mean > 0.6
    assert rows["conservation"].mean > 0.6
    assert not any("no conservation baseline" in note for note in found.notes)
    assert found.missing == {"motif difference": "needs --motifs"}


def test_two_loci_teach_nothing_and_the_report_says_so(elements):
    found = evaluate_regulatory(elements=read_elements(elements[0])[:2])
    assert {row.learned_from for row in found.variants} == {NOTHING}
    assert found.missing["learned from other loci"] == "needs elements of 3 loci, there are 2"


BAD_ELEMENTS = {
    "another base": (
        lambda t: t.assign(Ref=["ACGT"["TGCA".index(r)] if n == 1 else r for n, r in enumerate(t.Ref)]),
        "another one",
    ),
    "no effect": (lambda t: t.drop(columns="Coefficient"), "effect: coefficient"),
    "holes": (lambda t: t[t.Pos.astype(int) % 4 != 0], "has no variant at"),
    "two builds": (lambda t: pd.concat([t, t.assign(Release="GRCh37")]), "hg19|GRCh37"),
    "insertions": (lambda t: t.assign(Alt="AC"), "change several bases"),
    "two chromosomes": (lambda t: t.assign(Chrom=["1", "2"] * (len(t) // 2)), "expected one chromosome"),
}


@pytest.mark.parametrize("name", BAD_ELEMENTS)
def test_a_table_of_variants_that_contradicts_itself_is_refused(name, elements, tmp_path):
    change, said = BAD_ELEMENTS[name]
    table = pd.read_csv(elements[0], sep="\t", dtype=str)
    change(table[table.Element == "A"]).to_csv(tmp_path / "bad.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=said):
        read_elements(tmp_path / "bad.tsv")


def test_barcodes_that_are_too_few_or_not_there_are_said(elements, tmp_path):
    with pytest.raises(InputError, match="ask for fewer"):
        read_elements(elements[0], min_barcodes=11)
    pd.read_csv(elements[0], sep="\t").drop(columns="Barcodes").to_csv(tmp_path / "none.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="no column of barcodes"):
        read_elements(tmp_path / "none.tsv", min_barcodes=1)


def test_nothing_to_judge_is_refused():
    with pytest.raises(ConfigError, match="nothing to judge"):
        evaluate_regulatory()


def test_the_verb_prints_writes_and_refuses(elements, tmp_path, rng):
    sites = write_set(tmp_path / "sites", rng, lambda codes: with_site(rng, codes))
    motifs, report = tmp_path / "motifs.pfm", tmp_path / "report.html"
    lines = [" ".join(f"{value:.0f}" for value in row) for row in motif_set(SITE).counts[0]]
    motifs.write_text("\n".join([">M1 AP1", *lines, ""]))
    given = ("evaluate", "regulatory", sites, "--motifs", motifs, "--variants", elements[0], "--report", report)
    few = ("--skip", CNN, KMERS, CONCATENATED, "--labels", "0.2", "1", "--num-seeds", "2")
    found = json.loads(scmbert_ok(*given, *few, "--json"))
    assert found["suite"] == "regulatory"
    assert {row["fraction"] for row in found["sequences"]} == {0.2, 1.0}
    assert {row["learned_from"] for row in found["variants"]} == {NOTHING, OTHER_LOCI}
    page = report.read_text()
    assert page.count("<figure>") == 3
    assert "no conservation baseline" in page
    assert "Spearman by element" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to judge"),
        (("--genome", "genome.fa"), "belong together"),
        (("--conservation", "x.bw"), "baseline of --variants"),
        (("--shuffled-model", "shuffled"), "control of a --model"),
        (("--model", "mine"), "is judged by --arms"),
    ],
)
def test_the_verb_refuses_what_does_not_fit_together(options, said):
    failed = scmbert("evaluate", "regulatory", *options)
    assert failed.code == 4, failed.err
    assert said in failed.err
