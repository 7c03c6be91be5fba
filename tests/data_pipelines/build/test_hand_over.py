"""Stored matrices travel to other processes by the file they lie in."""

import pickle

import h5py
import numpy as np
import pytest

from data_pipelines.build.hand_over import close_all, opened_pickle, write_pickle
from scmbert_jax.errors import CorpusError


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_all()


def pickled(path, value):
    with open(path, "wb") as file:
        return path, write_pickle(value, file)


def test_what_is_opened_is_kept_until_the_file_changes(tmp_path):
    for values in ([1, 2], [3, 4]):
        with h5py.File(tmp_path / "new.h5", "w") as file:
            file["group/values"] = values
        (tmp_path / "new.h5").rename(tmp_path / "source.h5")
        with h5py.File(tmp_path / "source.h5", "r") as file:
            handed = pickled(tmp_path / "nodes.pickle", {"values": file["group/values"], "group": file["group"]})
        opened = opened_pickle(*handed)
        np.testing.assert_array_equal(opened["values"][:], values)
        np.testing.assert_array_equal(opened["group"]["values"][:], values)
        assert opened_pickle(*handed) is opened


def test_what_no_process_can_have_is_refused(tmp_path):
    with open(tmp_path / "file", "wb") as file, pytest.raises((TypeError, pickle.PicklingError)):
        write_pickle({"file": file}, file)


def test_a_pickle_that_somebody_else_laid_there_is_never_loaded(tmp_path):
    path, sha256 = pickled(tmp_path / "nodes.pickle", {"values": [1, 2]})
    path.write_bytes(pickle.dumps(Runs(tmp_path / "it-ran")))
    with pytest.raises(CorpusError, match=r"nodes\.pickle: was changed since this build wrote it"):
        opened_pickle(path, sha256)
    assert not (tmp_path / "it-ran").exists()


class Runs:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
