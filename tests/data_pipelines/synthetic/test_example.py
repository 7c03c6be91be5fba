"""The built-in example: small, equal to the file it came from, accepted wherever a file is."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.checks.input_check import check_dataset, require_usable
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.readers.example_reader import EXAMPLES, example_path
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.example import main

ORIGINAL = Path("pbmc_mosaic") / "quickstart_pbmc_mosaic.h5mu"


def assert_equal_data(left, right):
    assert left.obs.equals(right.obs)
    assert list(left.mod) == list(right.mod)
    for name in left.mod:
        one, other = left[name], right[name]
        assert one.obs.equals(other.obs)
        assert one.var_names.tolist() == other.var_names.tolist()
        assert np.array_equal(one.X.toarray(), other.X.toarray())


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_weighs_less_than_a_megabyte_and_says_where_it_is_from(example):
    path = example_path(example)
    assert path.stat().st_size < 1_000_000
    readme = (path.parent / "README.md").read_text()
    assert "scmidas 0.3.0" in readme
    assert "Permission is hereby granted" in readme


def test_the_example_equals_the_file_it_came_from(shared_data):
    mudata = pytest.importorskip("mudata")
    assert_equal_data(mudata.read_h5mu(example_path("pbmc_mosaic")), mudata.read_h5mu(shared_data / ORIGINAL))


def test_the_example_can_be_rebuilt(shared_data, tmp_path):
    mudata = pytest.importorskip("mudata")
    out = tmp_path / "again.h5mu"
    main([str(shared_data / ORIGINAL), str(out)])
    assert_equal_data(mudata.read_h5mu(out), mudata.read_h5mu(example_path("pbmc_mosaic")))
    assert out.stat().st_size == example_path("pbmc_mosaic").stat().st_size


def test_the_example_is_a_usable_mosaic_of_two_modalities_as_it_is():
    dataset = open_dataset("example:pbmc_mosaic")
    assert dataset.name == "pbmc_mosaic"
    report = check_dataset(dataset)
    require_usable(report)
    assert report.min_genes == 4  # of the 499 that are measured
    assert report.combinations == {"rna": 400, "protein": 400, "rna+protein": 800}
    assert report.obs_fields == {"cell_type": "celltype", "technical_batch": "batch"}
    assert report.organism == "human"


def test_a_filter_that_does_not_fit_the_example_says_what_does():
    (problem,) = check_dataset(open_dataset("example:pbmc_mosaic"), min_genes=200).problems
    assert "the file measures 500" in problem
    limit = int(problem.rpartition("--min-genes ")[2])
    assert limit == 22
    report = check_dataset(open_dataset("example:pbmc_mosaic"), min_genes=limit)
    require_usable(report)
    assert 1500 < report.num_cells_kept < 1600


def test_the_data_card_of_the_example_states_its_title_and_licence(pbmc_corpus):
    card = (pbmc_corpus / "DATA_CARD.md").read_text()
    assert "- title: 1,600 human blood cells in four technical batches" in card
    assert "- licence: MIT" in card
    assert "10.1038/s41587-023-02040-y" in card
    assert "cells whose RNA has fewer than 4 genes, and rows without counts are left out" in card
    assert open_corpus(pbmc_corpus).num_cells == 1600
