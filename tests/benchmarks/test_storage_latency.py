"""The benchmark of reading from afar runs and compares four ways of reading one corpus."""

import json

import pytest
from conftest import scmbert, scmbert_ok


@pytest.mark.slow
def test_it_compares_the_folder_with_three_ways_of_reading_from_afar(pbmc_corpus):
    options = ("--milliseconds", "5", "--batch-size", "32", "--num-tokens", "16", "--num-steps", "8", "--rounds", "1")
    found = json.loads(scmbert_ok("bench", "storage", pbmc_corpus, *options, "--json"))["cells_per_second"]
    assert list(found) == ["folder", "afar, one by one", "afar", "afar, cached"]
    assert all(speed > 0 for speed in found.values())
    assert " of the folder" in scmbert_ok("bench", "storage", pbmc_corpus, *options)


def test_impossible_sizes_are_refused(pbmc_corpus):
    assert "--rounds 0" in scmbert("bench", "storage", pbmc_corpus, "--rounds", "0").err
    assert "--milliseconds -1" in scmbert("bench", "storage", pbmc_corpus, "--milliseconds", "-1").err
