"""What a file says lies in other files is not read, in no format; what it is packed with is named."""

import re

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pytest
from conftest import REPOSITORY, scmbert
from stored_counts import as_anndata, random_counts, write_h5

from data_pipelines.files.hdf5_file import open_hdf5
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.translation.pandas_frames import read_frame
from scmbert_jax.evaluation.translation.task_formats import score_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def external_link(file, name, values, secret):
    file[name] = h5py.ExternalLink(secret, "/values")


def external_storage(file, name, values, secret):
    with open(secret + ".raw", "wb") as raw:
        raw.write(values.tobytes())
    file.create_dataset(name, values.shape, values.dtype, external=[(secret + ".raw", 0, values.nbytes)])


def virtual(file, name, values, secret):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(secret, "values", values.shape)
    file.create_virtual_dataset(name, layout)


WAYS = pytest.mark.parametrize("way", [external_link, external_storage, virtual], ids=lambda way: way.__name__)


def moved_out(path, name, way):
    """The values of `name` stand in another file now, as its maker chose."""
    secret = str(path.with_name("secret.h5"))
    with h5py.File(path, "r+") as file:
        values, attributes = file[name][()], dict(file[name].attrs)
        with h5py.File(secret, "w") as other:
            other["values"] = values
            other["values"].attrs.update(attributes)
        del file[name]
        way(file, name, values, secret)
        if way is not external_link:
            file[name].attrs.update(attributes)
    return path


WHAT = {"external_link": "an external link", "external_storage": "external storage", "virtual": "a virtual data set"}


@WAYS
def test_values_of_another_file_do_not_come_into_a_corpus_and_the_advice_leads_on(way, tmp_path):
    counts = random_counts()
    as_anndata(counts).write_h5ad(tmp_path / "cells.h5ad")
    path = moved_out(tmp_path / "cells.h5ad", "X/data", way)
    assert np.array_equal(ad.read_h5ad(path).X.toarray(), counts.toarray())  # whoever reads it naively has them
    for command in (("doctor",), ("corpus", "build", tmp_path / "corpus")):
        ran = scmbert(*command, path, "--min-genes", "1", "--assembly", "hg38")
        assert ran.code == InputError.exit_code
        assert f"{path}: '/X/data' is " in ran.err
        assert WHAT[way.__name__] in ran.err
    assert not (tmp_path / "corpus").exists()
    ad.read_h5ad(path).write_h5ad(tmp_path / "new.h5ad")  # as the message says
    assert open_dataset(tmp_path / "new.h5ad").matrices[0].shape[0] == 30


@WAYS
@pytest.mark.parametrize("kind", ["h5mu", "10x", "kaggle", "openproblems"])
def test_no_format_reads_another_file(kind, way, tmp_path):
    adata = as_anndata(random_counts())
    if kind == "h5mu":
        md.MuData({"rna": adata[:, :40].copy()}).write(tmp_path / "cells.h5mu")
        path = moved_out(tmp_path / "cells.h5mu", "mod/rna/X/indices", way)
        read = open_dataset
    elif kind == "10x":
        path = moved_out(write_h5(tmp_path / "cells.h5", random_counts()), "matrix/barcodes", way)
        read = open_dataset
    elif kind == "kaggle":
        with h5py.File(tmp_path / "frame.h5", "w") as file:
            file["a/axis0"] = file["a/block0_items"] = np.array([b"g0", b"g1"])
            file["a/axis1"], file["a/block0_values"] = np.array([b"c0"]), np.ones((1, 2))
        path, read = moved_out(tmp_path / "frame.h5", "a/block0_values", way), read_frame
    else:
        for part in ("train_mod1", "train_mod2", "test_mod1", "test_mod2"):
            adata.write_h5ad(tmp_path / f"{part}.h5ad")
        path = moved_out(tmp_path / "train_mod1.h5ad", "X/data", way)
        read = lambda path: score_folder(path.parent)  # noqa: E731
    with pytest.raises(InputError, match=re.escape(f"{path}: '/") + ".*" + WHAT[way.__name__]):
        read(path)


def test_links_within_a_file_are_followed_and_circles_and_depth_do_no_harm(tmp_path):
    as_anndata(random_counts()).write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["layers/counts"] = h5py.SoftLink("/X")
        file["uns/circle"], file["uns/nowhere"] = file["uns"], h5py.SoftLink("/none")
        deep = file["uns"]
        for _ in range(2000):
            deep = deep.create_group("deeper")
    assert open_dataset(tmp_path / "cells.h5ad").matrices[0].field == "layers['counts']"


def test_one_place_opens_files_of_others():
    """Any other `h5py.File` writes a file of our own."""
    readers = []
    for package in ("data_pipelines", "scmbert_jax", "experiments", "tpu_scripts"):
        for path in (REPOSITORY / package).rglob("*.py"):
            opened = re.findall(r"h5py\.File\(([^)]*)\)", path.read_text())
            readers += [path.name for arguments in opened if not re.search(r'"(w|r\+)"', arguments)]
    assert readers == ["hdf5_file.py"]


def test_a_filter_that_is_not_there_is_named_with_what_to_install_and_the_file_is_not_called_damaged(tmp_path):
    as_anndata(random_counts()).write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        values = file["X/data"][:]
        del file["X/data"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((len(values),))
        made.set_filter(32012, h5py.h5z.FLAG_OPTIONAL)  # pcodec's number; nobody has it
        kind = h5py.h5t.py_create(values.dtype)
        h5py.h5d.create(file["X"].id, b"data", kind, h5py.h5s.create_simple(values.shape), made)
        file["X/data"].id.write_direct_chunk((0,), values.tobytes(), 0)
    open_hdf5(tmp_path / "cells.h5ad").close()
    ran = scmbert("doctor", tmp_path / "cells.h5ad", "--assembly", "hg38", "--min-genes", "1")
    assert ran.code == InputError.exit_code
    assert "HDF5 filter 32012" in ran.out + ran.err
    assert "pip install hdf5plugin" in " ".join((ran.out + ran.err).split())
    assert "damaged" not in ran.out + ran.err
