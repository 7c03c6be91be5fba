"""What TF-MoDISco is given is what it reads, and why it would be silent is said before."""

import warnings

import numpy as np
import pytest

from data_pipelines.genome.bases import encode, one_hot
from scmbert_jax.errors import InputError, ScmbertWarning
from scmbert_jax.sequences.modisco_files import write_modisco

SITE = encode("CCACGTGACCTGA")


@pytest.fixture(scope="module")
def planted_contributions():
    """(one-hot [150, 120, 4], hypothetical contributions [150, 120, 4]): noise, and a site in each of 130 sequences."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (150, 120)).astype(np.uint8)
    hypothetical = rng.normal(0, 0.01, (150, 120, 4)).astype(np.float32)
    for row in range(130):
        place = rng.integers(20, 80)
        codes[row, place : place + len(SITE)] = SITE
        hypothetical[row, place : place + len(SITE)] += one_hot(SITE) - 0.25
    return one_hot(codes), hypothetical


def test_the_files_hold_what_modisco_reads(planted_contributions, tmp_path):
    values, scores = planted_contributions
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = write_modisco(tmp_path / "new", values, scores)
    sequences, attributions = (np.load(path)["arr_0"] for path in (report.sequences, report.attributions))
    assert sequences.shape == attributions.shape == (150, 4, 120)
    np.testing.assert_array_equal(sequences[7], values[7].T)
    np.testing.assert_array_equal(attributions[7], scores[7].T)
    assert attributions.dtype == np.float32
    assert report.positive == report.with_any == 130
    assert report.negative == 0
    assert report.problems == ()
    assert "-w 120" in report.command
    assert "130 positive and 0 negative" in report.in_words()


def test_what_would_make_modisco_silent_is_said_before(planted_contributions, tmp_path):
    values, scores = planted_contributions
    with pytest.warns(ScmbertWarning, match="only 99 positive and 0 negative.*expect no motifs, and no message"):
        report = write_modisco(tmp_path, values[:99], scores[:99])
    assert "problem: only 99" in report.in_words()
    assert write_modisco(tmp_path, values, -scores).negative == 130  # a sign is enough
    with pytest.warns(ScmbertWarning, match="these are no hypothetical ones"):
        write_modisco(tmp_path, values, scores * values)
    noise = np.random.default_rng(1).normal(size=scores.shape)
    with pytest.warns(ScmbertWarning, match="only 0 positive and 0 negative"):
        write_modisco(tmp_path, values, noise)
    with pytest.warns(ScmbertWarning, match="stand out"):  # the middle 30 bases have fewer of the sites
        assert write_modisco(tmp_path, values, scores, window=30).positive < 100


@pytest.mark.parametrize(
    ("change", "window", "words"),
    [
        (lambda x: x[..., None], None, r"choose one of the outputs, hypothetical\[\.\.\., k\]"),
        (lambda x: x[..., 0], None, "needs all four bases"),
        (lambda x: x * np.nan, None, r"are not finite, the first in sequence 0"),
        (lambda x: x * 0, None, "0 everywhere.*explain the logit"),
        (lambda x: x, 400, r"window of 400 bases: expected 30 \(a single stretch\) to 120"),
        (lambda x: x, 29, "window of 29 bases"),
    ],
)
def test_what_modisco_could_not_read_is_refused(change, window, words, planted_contributions, tmp_path):
    values, scores = planted_contributions
    with pytest.raises(InputError, match=words):
        write_modisco(tmp_path, values, change(scores), window)
    assert not list(tmp_path.iterdir())
