import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from conftest import scmbert, scmbert_ok

from data_pipelines.genome.bases import decode
from data_pipelines.genome.genome_corpus import open_genome_corpus
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.tasks.sequence_corpus import corpus_of_regions, corpus_of_sequences, has_places

MOTIFS = ">M1 ONE\nA [9 0 0 9]\nC [0 9 0 0]\nG [0 0 9 0]\nT [0 0 0 0]\n"
REGIONS = [("chr1", 0, 40), ("chr1", 50, 90), ("chr7", 10, 50), ("chr8", 0, 40)]
IDS = [f"{name}:{start}-{end}" for name, start, end in REGIONS]


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    genome = {name: "".join(random.choice(list("CG"), 100)) for name in ("chr1", "chr7", "chr8")}
    genome["chr1"] = genome["chr1"][:60] + "ACGA" + genome["chr1"][64:]  # the motif, in the second region
    (tmp_path / "genome.fa").write_text("".join(f">{name}\n{text}\n" for name, text in genome.items()))
    (tmp_path / "regions.bed").write_text("".join(f"{name}\t{start}\t{end}\n" for name, start, end in REGIONS))
    (tmp_path / "motifs.txt").write_text(MOTIFS)
    cells = AnnData(
        np.arange(20, dtype=np.float32).reshape(5, 4),
        obs=pd.DataFrame({"kind": ["a", "b", "a", "b", "b"]}, index=[f"c{n}" for n in range(5)]),
        var=pd.DataFrame(index=IDS[::-1]),
    )
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path


def test_a_corpus_has_the_windows_of_its_regions_and_their_matrices_by_key(files):
    out = files / "corpus.npz"
    said = scmbert_ok(
        *("corpus", "genome", files / "genome.fa", files / "regions.bed", "-o", out, "--width", "30"),
        *("--motifs", files / "motifs.txt", "--summary", "max", "--accessibility", files / "cells.h5ad"),
        *("--group-by", "kind"),
    )
    assert "4 sequences of up to 30 bases (2 train, 1 validation, 1 test)" in said
    corpus = open_genome_corpus(out)
    assert corpus.regions.tolist() == IDS
    text = (files / "genome.fa").read_text().split()[1]
    assert decode(corpus.codes[1]) == text[55:85]
    scores = corpus.regulators.values.toarray()[:, 0]
    assert scores.argmax() == 1
    # Regions of the .h5ad are in the other order; cell types are means over their cells.
    means = np.arange(20, dtype=np.float32).reshape(5, 4)[:, ::-1]
    np.testing.assert_allclose(corpus.accessibility.values.toarray()[:, 0], means[[0, 2]].mean(0))
    assert corpus.accessibility.columns.tolist() == ["a", "b"]
    again = scmbert("corpus", "genome", files / "genome.fa", files / "regions.bed", "-o", out)
    assert again.code != 0
    assert "--overwrite" in again.err


def test_sequences_without_a_genome_are_parted_by_what_they_say(files):
    random = np.random.default_rng(1)
    texts = ["".join(random.choice(list("ACGT"), 20 + row % 3)) for row in range(200)]
    other = texts[0][::-1].translate(str.maketrans("ACGT", "TGCA"))  # the same on the other strand
    path = files / "sequences.fa"
    path.write_text("".join(f">s{row}\n{text}\n" for row, text in enumerate([*texts, other])))
    corpus = corpus_of_sequences(path, motifs=files / "motifs.txt")
    assert len(corpus) == 201
    assert corpus.chromosome[0] == corpus.chromosome[200]
    counts = dict(zip(*np.unique(corpus.chromosome, return_counts=True), strict=True))
    assert counts["train"] > 150
    assert 2 <= counts["validation"] < counts["test"] < 40
    assert decode(corpus.codes[4][:21]) == texts[4]
    assert not has_places(corpus)


def test_what_does_not_fit_is_refused_by_its_name(files):
    genome, regions, motifs = (files / name for name in ("genome.fa", "regions.bed", "motifs.txt"))
    with pytest.raises(ConfigError, match="--regulators and --motifs are both given"):
        corpus_of_regions(genome, regions, regulators=motifs, motifs=motifs)
    with pytest.raises(InputError, match="no column 'donor' of cells in obs; there are kind"):
        corpus_of_regions(genome, regions, accessibility=files / "cells.h5ad", group_by="donor")
    (files / "few.csv").write_text(f"region,a\n{IDS[0]},1\n")
    with pytest.raises(InputError, match="that the matrix has not"):
        corpus_of_regions(genome, regions, accessibility=files / "few.csv")
    with pytest.raises(ConfigError, match=r"--group-by kind: .*few\.csv has no cells"):
        corpus_of_regions(genome, regions, accessibility=files / "few.csv", group_by="kind")
    of_regions = ("--width", "20", "--edges", "pad", "--test-chromosomes", "chr2")
    ran = scmbert("corpus", "genome", genome, "-o", files / "x.npz", *of_regions)
    assert ran.code == 4
    assert "--width, --edges, --test-chromosomes: of regions" in ran.err


def test_what_a_refusal_tells_one_to_give_can_be_given(files):
    (files / "beyond.bed").write_text((files / "regions.bed").read_text() + "chr1\t90\t140\n")
    given = ("corpus", "genome", files / "genome.fa", files / "beyond.bed", "-o", files / "y.npz")
    refused = scmbert(*given)
    assert refused.code == 2
    assert "beyond the end of their chromosome, e.g. chr1:90-140" in refused.err
    assert "raise most_left_out (--most-left-out)" in refused.err
    told = scmbert_ok(*given, "--most-left-out", "0.3")
    assert "left out: 1 beyond the end" in told
    assert len(open_genome_corpus(files / "y.npz")) == 4
    (files / "numbers.bed").write_text((files / "regions.bed").read_text().replace("chr", ""))
    given = ("corpus", "genome", files / "genome.fa", files / "numbers.bed", "-o", files / "z.npz")
    assert "ucsc_names=True to both (--ucsc-names)" in scmbert(*given).err
    scmbert_ok(*given, "--ucsc-names")


def test_what_is_odd_about_regions_is_told(files):
    (files / "regions.bed").write_text("chr1\t50\t90\nchr1\t0\t60\n")
    said = scmbert_ok("corpus", "genome", files / "genome.fa", files / "regions.bed", "-o", files / "c.npz")
    assert "note: 2 intervals share a base with another one; kept" in said
    assert "note: 1 intervals begin before the one ahead of them; kept" in said
    assert "no sequence is of the part validation" in said
