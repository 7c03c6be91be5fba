"""DATA_CARD.md and what stands behind it in the manifest: sources, who the cells are, what was left out and why."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import scmbert, scmbert_ok

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.data_card import composition
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.manifest import DATA_CARD
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.readers.source_statements import statements_of
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import InputError

SMALL = {"min_genes": 5, "block_size": 16}
UNS = {
    "title": "A lung | atlas",
    "citation": "Publication: https://doi.org/10.1/x\nDataset Version: y",
    "schema_version": "7.0.0",
    "default_embedding": "X_umap",
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """A file with what CELLxGENE asks for: 200 cells, of which every fourth is not primary data."""
    data = synthetic_cells(200, 100, 0, 0, num_batches=4, seed=0).to_mudata().mod["rna"].copy()
    data.obs["donor_id"] = [f"d{row % 30}" for row in range(data.n_obs)]
    data.obs["disease"] = np.where(np.arange(data.n_obs) % 3 == 0, "COVID-19 || asthma", "normal")
    data.obs["is_primary_data"] = np.arange(data.n_obs) % 4 != 0
    data.obs["sex"] = pd.Categorical(["female" if row % 2 else None for row in range(data.n_obs)])
    data.uns |= UNS
    path = tmp_path_factory.mktemp("atlas") / "lung.h5ad"
    data.write_h5ad(path)
    return path


def card_of(corpus) -> str:
    assert verify_corpus(corpus.path).ok
    return (corpus.path / DATA_CARD).read_text()


def test_the_card_says_where_cells_come_from_and_which_they_are(atlas, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [atlas], **SMALL)
    card = card_of(corpus)
    (entry,) = corpus.datasets
    assert entry["statements"] == {**UNS, "citation": "Publication: https://doi.org/10.1/x Dataset Version: y"}
    assert "- title: A lung \\| atlas\n- citation: Publication: https://doi.org/10.1/x Dataset Version: y" in card
    assert "- licence: not stated" in card
    (file,) = entry["files"]
    assert f"| lung.h5ad | {file['bytes']:,} | `{file['sha256']}` |" in card
    assert corpus.fingerprint in card
    obs = corpus.obs()
    assert corpus.manifest["composition"] == composition(obs)
    donors = corpus.manifest["composition"]["donor"]
    assert (donors["values"], len(donors["cells"])) == (30, 20)
    assert sum(donors["cells"].values()) + donors["cells_of_others"] == corpus.num_cells
    assert "### donor: 30 values" in card
    assert f"| 10 others | {donors['cells_of_others']} |" in card
    assert f"| COVID-19 \\|\\| asthma | {(obs['disease'] == 'COVID-19 || asthma').sum()} |" in card
    assert f"| not known | {obs['sex'].isna().sum()} |" in card
    assert "was not compared with held-out data" in card
    assert f"scmbert_jax {corpus.manifest['versions']['scmbert_jax']}" in card
    # every line of a table has as many cells as its head
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_the_card_says_what_was_left_out_and_why(atlas, tmp_path):
    corpus = build_corpus(
        tmp_path / "corpus",
        [atlas],
        min_genes=30,
        only={"is_primary_data": ("true",)},
        exclude={"disease": ("asthma",)},
        licences={"lung": "CC BY 4.0"},
    )
    (entry,), card = corpus.datasets, card_of(corpus)
    figures = (entry["cells_read"], entry["cells_not_selected"], entry["cells_dropped"], 0, 0, entry["cells"])
    assert f"| lung | {' | '.join(map(str, figures))} |" in card
    assert entry["cells_dropped"] > 0
    assert f"lung, rna: {entry['cells_dropped']} cells with fewer than 30 genes" in card
    assert "- only the cells with is_primary_data true\n- exclude the cells with disease asthma" in card
    assert "- licence: CC BY 4.0" in card
    assert "not primary data" not in card


def test_the_same_build_gives_the_same_card_wherever_it_is_made(atlas, tmp_path):
    cards = []
    for place in ("one", "another/place"):
        (tmp_path / place).mkdir(parents=True)
        copy = tmp_path / place / atlas.name
        copy.write_bytes(atlas.read_bytes())
        cards.append(card_of(build_corpus(tmp_path / place / "corpus", [copy], **SMALL)))
    assert cards[0] == cards[1]
    assert str(tmp_path) not in cards[0]


def test_cells_that_are_not_primary_data_are_kept_and_reported_everywhere(atlas, tmp_path):
    report = scmbert_ok("doctor", atlas, "--min-genes", "5")
    assert re.search(r"\d+ of \d+ cells are not primary data .* are kept; --only is_primary_data=True leaves", report)
    out = scmbert_ok("corpus", "build", tmp_path / "corpus", atlas, "--min-genes", "5")
    with open_corpus(tmp_path / "corpus") as corpus:
        elsewhere = int((~corpus.obs()["is_primary_data"]).sum())
        assert corpus.datasets[0]["cells_not_primary"] == elsewhere > 0
        assert f"lung: {elsewhere} cells are here that are not primary data" in card_of(corpus)
    assert f"; {elsewhere} of them are not primary data" in out
    chosen = scmbert_ok("doctor", atlas, "--min-genes", "5", "--only", "is_primary_data=True")
    assert "not primary data" not in chosen


def test_info_shows_the_main_lines_and_where_the_card_is(atlas, tmp_path):
    build = ("corpus", "build", tmp_path / "corpus", atlas, "--min-genes", "5", "--licence", "lung=CC BY 4.0")
    out = scmbert_ok(*build)
    assert scmbert_ok("corpus", "info", tmp_path / "corpus") == out
    assert f"data card: {tmp_path / 'corpus' / DATA_CARD}" in out
    assert "of data set lung: title A lung | atlas, licence CC BY 4.0" in out
    assert re.search(r"disease: normal \d+, COVID-19 \|\| asthma \d+\n", out)
    ran = scmbert(*build[:-1], "lnug=MIT", "--overwrite")
    assert ran.code != 0
    assert "licence lnug=MIT: no such data set; there is lung" in ran.err
    assert "expected NAME=TEXT" in scmbert(*build[:-1], "MIT", "--overwrite").err


def test_a_card_may_be_edited_and_a_corpus_of_an_earlier_version_has_none(atlas, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [atlas], **SMALL)
    (corpus.path / DATA_CARD).write_text("Mine.\n")
    assert verify_corpus(corpus.path).ok


@pytest.mark.parametrize(
    ("uns", "statements"),
    [
        ({}, {}),
        ({"title": np.array(["One", "Two"]), "log1p": {"base": None}}, {"title": "One; Two"}),
        ({"license": b"MIT", "title": ""}, {"licence": "MIT"}),
        ({"license": "MIT", "licence": "BSD"}, {"licence": "BSD"}),
    ],
)
def test_what_a_file_says_of_itself_is_text_on_one_line(uns, statements):
    assert statements_of(uns) == statements


def test_a_mudata_and_its_modalities_speak_for_one_data_set(tmp_path):
    whole = synthetic_cells(60, 100, 12, 0, seed=0).to_mudata()
    whole.uns["title"] = "Both"
    whole.mod["rna"].uns["license"] = "MIT"
    whole.write_h5mu(tmp_path / "cells.h5mu")
    for spec in (whole, tmp_path / "cells.h5mu"):
        (entry,) = build_corpus(tmp_path / "corpus", [spec], **SMALL, overwrite=True).datasets
        assert entry["statements"] == {"title": "Both", "licence": "MIT"}


def test_a_licence_of_no_data_set_is_refused(atlas, tmp_path):
    with pytest.raises(InputError, match="no such data set; there is lung"):
        build_corpus(tmp_path / "corpus", [atlas], **SMALL, licences={"liver": "MIT"})
