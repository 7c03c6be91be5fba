"""scmbert regulate, from files to files, on a genome with planted motifs; and what files it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import scmbert, scmbert_ok
from planted_genome import JASPAR, MOTIF, write_planted_genome

from data_pipelines.features.feature_embeddings import save_feature_embeddings
from data_pipelines.genome.bases import decode, encode
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.region_matrix import RegionMatrix, read_region_matrix, write_region_matrix
from scmbert_jax.errors import InputError
from scmbert_jax.regulation.model_folder import load_regulatory
from scmbert_jax.regulation.read import Reading, read_labelled_regions, read_labelled_table


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regulate")
    table, genome = write_planted_genome(folder)
    done = scmbert_ok(
        *("regulate", "fit", folder / "peaks.csv", "--fasta", folder / "genome.fa", "-o", folder / "model"),
        *("--motifs", folder / "motifs.jaspar", "--no-network", "--epochs", "1", "--linear", "motifs"),
        *("--dev-chromosomes", "chr2", "--test-chromosomes", "chr3"),
    )
    assert "binary (2 names), 40 bases" in done
    return folder, table, genome


def test_a_model_of_regions_is_fitted_by_chromosome_and_predicts_a_table_and_regions_alike(place):
    folder, table, _ = place
    model = load_regulatory(folder / "model")
    assert model.info["sequences"] == {"train": 200, "dev": 200, "test": 200}
    assert model.info["scores"]["test"]["model"]["mcc"][1] > 0.8
    scmbert_ok("regulate", "predict", folder / "model", folder / "table.csv.gz", "-o", folder / "by_table.csv")
    scmbert_ok(
        *("regulate", "predict", folder / "model", folder / "peaks.bed", "--fasta", folder / "genome.fa"),
        *("-o", folder / "by_region.tsv"),
    )
    by_table, by_region = pd.read_csv(folder / "by_table.csv"), pd.read_csv(folder / "by_region.tsv", sep="\t")
    np.testing.assert_allclose(by_table["open"], by_region["open"])
    assert by_region["region"][0] == "chr1:50-90"
    assert (by_table["predicted"] == table["label"]).mean() > 0.9


def test_variants_that_break_the_motif_have_effects_below_0_and_what_is_left_out_is_counted(place):
    folder, table, genome = place
    lines, chr1 = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT"], genome["chr1"]
    text = decode(chr1)
    for row in np.flatnonzero(table.label[:200] == "open")[:20]:
        first = text.index(MOTIF, table.start[row])
        lines.append(f"chr1\t{first + 4}\trs{row}\tC\tA")
    wrong = {"A": "C", "C": "A", "G": "A", "T": "A"}[text[9]]
    lines += [
        lines[2],
        f"chr1\t10\t.\t{wrong}\t{'G' if wrong != 'G' else 'T'}",
        "chr9\t5\t.\tA\tC",
        "chr1\t20\t.\tA\t<DEL>",
    ]
    (folder / "variants.vcf").write_text("\n".join(lines) + "\n")
    command = ("regulate", "score-variants", folder / "model", folder / "variants.vcf", "--fasta", folder / "genome.fa")
    refused = scmbert(*command, "-o", folder / "scored.csv")
    assert refused.code == 2
    assert "4 of 24 rows cannot be used" in refused.err
    assert not (folder / "scored.csv").exists()
    scmbert_ok(*command, "-o", folder / "scored.csv", "--most-left-out", "0.5")
    scored = pd.read_csv(folder / "scored.csv")
    assert len(scored) == 20
    assert (scored["effect_open"] < 0).all()
    np.testing.assert_allclose(scored.effect_open, scored.alternate_open - scored.reference_open, atol=1e-4)
    left_out = pd.read_csv(folder / "scored.left_out.csv")
    assert left_out.number.sum() == 4
    assert left_out.reason.str.contains("repeat one").any()


def test_regions_are_embedded_and_explained(place):
    folder, _, _ = place
    regions = (folder / "peaks.bed", "--fasta", folder / "genome.fa")
    scmbert_ok("regulate", "embed-regions", folder / "model", *regions, "-o", folder / "regions.npz")
    with np.load(folder / "regions.npz") as found:
        ids, vectors = found["ids"], found["vectors"]
    assert ids[0] == "chr1:50-90"
    assert vectors.shape == (600, 128)
    assert vectors.dtype == np.float32
    save_feature_embeddings(folder / "again.npz", ids, vectors)
    with np.load(folder / "again.npz") as again:
        assert set(again.files) == {"ids", "vectors"}
    few = folder / "few.bed"
    few.write_text("".join((folder / "peaks.bed").read_text().splitlines(keepends=True)[:40]))
    said = scmbert_ok(
        *("regulate", "attribute", folder / "model", few, "--fasta", folder / "genome.fa", "-o", folder / "why"),
        *("--shuffles", "2", "--steps", "8"),
    )
    assert "completeness: contributions differ" in said
    assert "modisco motifs -s" in said
    assert json.loads((folder / "why" / "attributions.json").read_text())["method"] == "integrated_gradients"
    with np.load(folder / "why" / "ohe.npz") as one_hot, np.load(folder / "why" / "shap.npz") as shap:
        assert one_hot["arr_0"].shape == shap["arr_0"].shape == (40, 4, 40)


def test_a_matrix_of_cell_types_is_joined_by_region_whatever_its_order(place):
    folder, _, _ = place
    scmbert_ok(
        *("regulate", "fit", folder / "peaks.bed", "--fasta", folder / "genome.fa"),
        *("--matrix", folder / "accessibility.npz"),
        *("-o", folder / "of_cells", "--motifs", folder / "motifs.jaspar", "--linear", "motifs", "--no-network"),
        *("--no-motif-network", "--label-column", "T cell", "B cell"),
    )
    model = load_regulatory(folder / "of_cells")
    assert model.task.kind == "labels"
    assert model.task.names == ("T cell", "B cell")
    outputs = model.outputs(np.stack([encode("A" * 16 + MOTIF + "A" * 16), encode("A" * 40)]))
    assert outputs[0, 0] > 1 > -1 > outputs[1, 0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no_sequence.csv", "dna_text,label\nACGT,1\n", "expected sequence or seq or dna"),
        ("letters.csv", "sequence,label\nACGTXX,1\nACGT,0\n", "with letters that are no bases"),
        ("one_label.csv", "sequence,label\nACGT,1\nACGA,1\n", "expected at least two classes"),
        ("no_label.csv", "sequence,label\nACGT,1\nACGA,\n", "row 2 has no label"),
        ("na_label.csv", "sequence,label\nACGT,1\nACGA,0\nACGC,NA\n", "row 3 has no label ('NA')"),
        ("parts.csv", "sequence,label,split\nACGT,1,train\nACGA,0,final\n", "'final'; expected train"),
        ("twice.csv", "sequence,Sequence,label\nACGT,ACGT,1\n", "is there twice"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_by_what_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    done = scmbert("regulate", "fit", tmp_path / name, "-o", tmp_path / "model")
    assert done.code == 2
    assert name in done.err
    assert message in done.err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("contig.bed", "chr9\t1\t41\n", "on sequences that"),
        ("prefix.bed", "1\t50\t90\n", "ucsc"),
        ("range.bed", "chr1\t50\t999999\n", "beyond the end"),
        ("turned.bed", "chr1\t90\t50\n", "end at or before their start"),
        ("bad.bed", "chr1\tx\t90\n", "line 1"),
    ],
)
def test_regions_that_cannot_be_used_are_refused_by_what_is_wrong(place, tmp_path, name, text, message):
    folder, _, _ = place
    (tmp_path / name).write_text(text)
    command = ("regulate", "predict", folder / "model", tmp_path / name, "--fasta", folder / "genome.fa")
    done = scmbert(*command, "-o", tmp_path / "out.csv")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out.csv").exists()


def test_options_that_do_not_fit_are_refused(place, tmp_path):
    folder, _, _ = place
    fit = ("regulate", "fit", folder / "table.csv.gz", "-o", tmp_path / "model")
    for options, message in (
        (("--linear", "none", "kmers"), "none, or some of"),
        (("--matrix", folder / "genome.fa"), "give --fasta"),
        (("--dev-chromosomes", "chr1"), "give both, or neither"),
        (("--dev-chromosomes", "chr1", "--test-chromosomes", "chr8"), "no sequence is on a chromosome of test"),
        (("--linear", "motifs", "--no-network"), "needs a motif file"),
    ):
        done = scmbert(*fit, *options)
        assert done.code in (2, 4), done.err
        assert message in done.err
    (tmp_path / "cut.jaspar").write_text(JASPAR.rsplit("\n", 1)[0])
    done = scmbert(*fit, "--motifs", tmp_path / "cut.jaspar")
    assert "cut.jaspar, line 1" in done.err


def test_parts_are_those_of_a_column_and_a_file_of_its_own_is_one_part(tmp_path):
    table = pd.DataFrame({"seq": ["ACGT", "ACGA", "CCGA"], "y": [0, 1, 1], "split": ["train", "train", "dev"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    parts = read_labelled_table(tmp_path / "table.csv", Reading())
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "dev": 1}
    of_train = parts["train"].task
    assert len(read_labelled_table(tmp_path / "table.csv", Reading(), of_train)["train"]) == 3
    with pytest.raises(InputError, match="no column 'parts'"):
        read_labelled_table(tmp_path / "table.csv", Reading(split="parts"))


def test_labels_say_what_task_they_are(tmp_path):
    def task(columns, **reading):
        table = pd.DataFrame({"seq": ["ACGT", "ACGA", "CCGA"], **columns})
        table.to_parquet(tmp_path / "table.parquet")
        labels = tuple(name for name in columns if name != "split")
        return read_labelled_table(tmp_path / "table.parquet", Reading(labels=labels, **reading))["train"]

    assert task({"y": [0, 1, 1]}).task.names == ("0", "1")
    assert task({"y": ["EI", "IE", "N"]}).task.kind == "classes"
    assert task({"y": [0.5, 1.25, 2.0]}).task.kind == "values"
    several = task({"a": [0, 1, 1], "b": [1, None, 0]})
    assert several.task.kind == "labels"
    assert np.isnan(several.targets[1, 1])
    assert task({"y": [0, 1, 2]}, task="values").targets[:, 0].tolist() == [0, 1, 2]


def test_what_a_matrix_and_a_file_lack_is_told_and_is_no_measured_zero(place, tmp_path):
    folder, _, _ = place
    matrix = read_region_matrix(folder / "accessibility.npz")
    few = RegionMatrix(matrix.regions[3:], matrix.columns, matrix.values[3:])
    write_region_matrix(few, tmp_path / "few.npz")
    beyond = (folder / "peaks.bed").read_text() + "chr1\t99999\t100039\n"
    (tmp_path / "peaks.bed").write_text(beyond)
    said: list[str] = []
    genome = Fasta(folder / "genome.fa")
    found = read_labelled_regions(tmp_path / "peaks.bed", genome, Reading(), tmp_path / "few.npz", say=said.append)
    data = found["train"]
    assert data.task.kind == "labels"
    assert np.isnan(data.targets).all(1).sum() == 3
    assert not np.isnan(data.targets[np.isin(data.keys, few.regions)]).any()
    assert any("left out: 1 beyond the end of their chromosome" in line for line in said)
    assert any("few.npz: 3 regions are not in it" in line for line in said)
