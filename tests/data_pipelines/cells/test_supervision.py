"""A corpus says which cells have which modalities, and whether an assay or a program paired them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.describe import describe_corpus, describe_text
from data_pipelines.cells.supervision import cells_by_modalities
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.manifest import MANIFEST
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import InputError

SMALL = {"min_genes": 5, "block_size": 16}
HOW = {"method": "sinkhorn", "links": 39, "rounds": 2, "kept": [0.5, 1.0], "options": {"svd": 20}}


@pytest.fixture(scope="module")
def cells():
    return synthetic_cells(200, 100, 12, 30, num_batches=4, seed=0)


@pytest.fixture(scope="module")
def pseudo_paired_file(cells, tmp_path_factory):
    data = cells.to_mudata()
    data.uns["scmbert_pseudo_pairs"] = HOW
    path = tmp_path_factory.mktemp("pseudo") / "matched.h5mu"
    data.write_h5mu(path)
    return path


def test_cells_are_counted_by_technical_batch_and_set_of_modalities():
    obs = pd.DataFrame({"dataset": ["a", "a", "a", "b", "b"], "technical_batch": ["1", "1", None, "1", "1"]})
    measured = {
        "rna": np.array([True, True, True, False, True]),
        "protein": np.array([True, False, True, True, True]),
    }
    assert cells_by_modalities(obs, measured) == {
        "a": {"rna+protein": 1},
        "a/1": {"rna": 1, "rna+protein": 1},
        "b/1": {"protein": 1, "rna+protein": 1},
    }
    assert cells_by_modalities(obs[["dataset"]], measured)["b"] == {"protein": 1, "rna+protein": 1}


def test_the_manifest_counts_the_cells_that_went_in(cells, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [cells.to_mudata()], **SMALL)
    present = {name: measured[np.ix_(np.arange(200))] for name, measured in cells.measured.items()}
    expected: dict[str, dict[str, int]] = {}
    for row in range(200):
        group = expected.setdefault(f"mudata/{cells.technical_batch[row]}", {})
        names = "+".join(name for name in ("rna", "protein", "atac") if present[name][row])
        group[names] = group.get(names, 0) + 1
    assert sorted(present) == ["atac", "protein", "rna"]
    found = corpus.manifest["cells_by_modalities"]
    by_set = {group: {tuple(sorted(k.split("+"))): n for k, n in counts.items()} for group, counts in found.items()}
    assert by_set == {
        group: {tuple(sorted(k.split("+"))): n for k, n in counts.items()} for group, counts in expected.items()
    }
    paired = sum(n for counts in expected.values() for k, n in counts.items() if "+" in k)
    assert corpus.information()["paired_cells"] == paired > 0


def test_pairs_count_only_for_the_modalities_that_are_read(cells, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [cells.to_mudata()], **SMALL)
    alone = corpus.information(["rna"])
    assert alone["paired_cells"] == 0
    assert {name for counts in alone["cells"].values() for name in counts} == {"rna"}
    assert alone["links"] == {}
    both = cells.measured["rna"] & cells.measured["protein"]
    assert corpus.information(["rna", "protein"])["paired_cells"] == np.count_nonzero(both)
    links = corpus.feature_space.layout().links
    assert corpus.information()["links"] == {name: len(rows) for name, (rows, _) in links.items()}


@pytest.mark.parametrize("where", ["file", "memory"])
def test_pseudo_pairs_are_carried_and_never_counted_as_pairs(cells, pseudo_paired_file, tmp_path, where):
    data = cells.to_mudata()
    data.uns["scmbert_pseudo_pairs"] = HOW
    corpus = build_corpus(tmp_path / "corpus", [pseudo_paired_file if where == "file" else data], **SMALL)
    assert corpus.datasets[0]["pseudo_pairs"] == HOW
    with open_corpus(corpus.path) as again:
        information = again.information()
    assert information["paired_cells"] == 0
    assert information["pseudo_paired_cells"] == np.count_nonzero(sum(cells.measured.values()) > 1)
    assert information["pseudo_pairs"] == {corpus.datasets[0]["name"]: HOW}
    text = describe_text(describe_corpus(corpus.path))
    assert "pseudo-pairs, made by a program and not by an assay" in text
    assert "method sinkhorn" in text
    assert "links 39" in text


def test_measured_pairs_beside_pseudo_pairs_are_told_apart(cells, pseudo_paired_file, tmp_path):
    measured = cells.to_mudata()
    for part in measured.mod.values():
        part.obs_names = [f"other_{name}" for name in part.obs_names]
    measured.update()
    information = build_corpus(tmp_path / "corpus", [pseudo_paired_file, measured], **SMALL).information()
    assert information["paired_cells"] == information["pseudo_paired_cells"] > 0


def test_without_pairs_there_are_no_pseudo_pairs_either(pseudo_paired_file, tmp_path):
    information = build_corpus(tmp_path / "corpus", [pseudo_paired_file], **SMALL, unpaired=True).information()
    assert (information["pseudo_paired_cells"], information["pseudo_pairs"]) == (0, {})


@pytest.mark.parametrize("declared", ["sinkhorn", {}, {"plan": np.datetime64("2026-01-01")}])
def test_a_declaration_that_says_nothing_is_refused(cells, declared):
    data = cells.to_mudata()
    data.uns["scmbert_pseudo_pairs"] = declared
    with pytest.raises(InputError, match=r"uns\['scmbert_pseudo_pairs'\]"):
        open_dataset(data)


def test_a_corpus_of_an_earlier_version_opens_and_says_what_it_does_not_record(cells, tmp_path):
    built = build_corpus(tmp_path / "built", [cells.to_mudata()], **SMALL)
    old = shutil.copytree(built.path, tmp_path / "old")
    manifest = json.loads((old / MANIFEST).read_text())
    for field in ("cells_by_modalities", "unpaired", "cell_selection", "manifest_sha256"):
        del manifest[field]
    for entry in manifest["datasets"]:
        for field in ("pseudo_pairs", "cells_not_selected"):
            del entry[field]
        for part in entry["modalities"].values():
            del part["linked"]
    (old / MANIFEST).write_text(json.dumps(manifest))
    with open_corpus(old) as corpus:
        information = corpus.information()
        assert corpus.fingerprint == built.fingerprint
    unknown = {information[name] for name in ("paired_cells", "pseudo_paired_cells", "cells", "unpaired")}
    assert unknown == {None}
    description = describe_corpus(old)
    json.dumps(description)
    assert "not recorded: the corpus was built by an earlier version" in describe_text(description)
