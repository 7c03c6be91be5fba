"""A window's signal is that of its bases; without pyBigWig it is said what to install."""

import sys

import numpy as np
import pytest

from data_pipelines.genome.bigwig import signal_of_windows
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.interval_table import intervals_of
from data_pipelines.genome.windows import cut_windows
from scmbert_jax.errors import ConfigError, InputError


@pytest.fixture
def cut(tmp_path):
    (tmp_path / "a.fa").write_text(f">chr1\n{'ACGT' * 25}\n>chr2\nACGTACGT\n")
    table = intervals_of([Interval("chr1", 0, 4), Interval("chr1", 40, 44), Interval("chr1", 98, 100)])
    return table, cut_windows(Fasta(tmp_path / "a.fa"), table, 6, edges="pad")


def test_a_signal_is_that_of_the_bases_of_the_window(cut, tmp_path):
    pyBigWig = pytest.importorskip("pyBigWig", reason="pip install pyBigWig")
    with pyBigWig.open(str(tmp_path / "a.bw"), "w") as file:
        file.addHeader([("chr1", 100)])
        file.addEntries("chr1", 0, values=np.arange(50.0), span=1, step=1)
    nan = np.nan
    expected = [[nan, 0, 1, 2, 3, 4], [39, 40, 41, 42, 43, 44], [nan] * 6]
    np.testing.assert_array_equal(signal_of_windows(tmp_path / "a.bw", *cut), expected)
    (tmp_path / "b.bw").write_bytes(b"no bigWig")
    with pytest.raises(InputError, match="cannot be read as bigWig"):
        signal_of_windows(tmp_path / "b.bw", *cut)


def test_without_the_package_it_is_said_what_to_install(cut, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    with pytest.raises(ConfigError, match="pip install pyBigWig"):
        signal_of_windows(tmp_path / "a.bw", *cut)
