"""SOMA experiments and the Census: the selected cells, data set by data set, each with the genes that it measured."""

import io
import json
import pickle
import urllib.request

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers import soma_reader
from data_pipelines.readers.open_dataset import open_dataset, open_datasets
from scmbert_jax.errors import InputError

# Only the newest end of `make nightly` is without it: it has no pandas 3 yet.
tiledbsoma = pytest.importorskip("tiledbsoma", reason="needs the extra [census]")

_TABLE = load_gene_table("human")
GENES = _TABLE.ids[np.flatnonzero(_TABLE.reference & (_TABLE.tss > 0))[:12]].astype(str).tolist()
# d2 measured only the first eight genes; its cells stand before and behind those of d1.
DATASET_OF = np.array(["d2"] * 3 + ["d1"] * 6 + ["d2"] * 2)
PRESENT = {"d1": np.arange(12), "d2": np.arange(8)}


def counts() -> np.ndarray:
    values = np.random.default_rng(0).poisson(1.0, (11, 12)) + (np.arange(12) == 0)
    values[DATASET_OF == "d2", 8:] = 0
    return values.astype(np.float32)


def write_sparse(collection, name: str, matrix, kind=None) -> None:
    coo = sp.coo_matrix(matrix)
    array = collection.add_new_sparse_ndarray(name, type=kind or pa.float32(), shape=coo.shape)
    array.write(
        pa.Table.from_pydict(
            {"soma_dim_0": coo.row.astype(np.int64), "soma_dim_1": coo.col.astype(np.int64), "soma_data": coo.data}
        )
    )


def write_table(collection, name: str, frame: pd.DataFrame) -> None:
    frame.insert(0, "soma_joinid", np.arange(len(frame), dtype=np.int64))
    table = pa.Table.from_pandas(frame, preserve_index=False)
    collection.add_new_dataframe(name, schema=table.schema, domain=[(0, len(frame) - 1)]).write(table)


def write_experiment(experiment, presence: bool = True, dataset_ids: bool = True, values=None) -> None:
    cells = pd.DataFrame(
        {
            "cell_type": ["B cell", "T cell"] * 5 + ["B cell"],
            "assay": "10x 3' v3",
            "donor_id": "donor",
            "is_primary_data": [True] * 10 + [False],
        }
    )
    if dataset_ids:
        cells["dataset_id"] = DATASET_OF
    write_table(experiment, "obs", cells)
    measurement = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
    write_table(measurement, "var", pd.DataFrame({"feature_id": GENES, "feature_length": np.arange(12) + 500}))
    write_sparse(measurement.add_new_collection("X"), "raw", counts() if values is None else values)
    if presence:
        # Rows by the join id of the table of data sets, where d2 stands first.
        rows = np.zeros((2, 12), np.uint8)
        rows[0, PRESENT["d2"]] = rows[1, PRESENT["d1"]] = 1
        write_sparse(measurement, soma_reader.PRESENCE, rows, pa.uint8())


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    """The folder of a Census with human cells of two data sets."""
    path = tmp_path_factory.mktemp("build") / "2025-11-08" / "soma"
    path.parent.mkdir()
    with tiledbsoma.Collection.create(str(path)) as root:
        info = root.add_new_collection("census_info")
        write_table(info, "datasets", pd.DataFrame({"dataset_id": ["d2", "d1"]}))
        data = root.add_new_collection("census_data")
        write_experiment(data.add_new_collection("homo_sapiens", tiledbsoma.Experiment))
    return path


def write_alone(path, **options):
    with tiledbsoma.Experiment.create(str(path)) as experiment:
        write_experiment(experiment, **options)
    return path


def read_all(matrix, rows=4096) -> np.ndarray:
    return sp.vstack([part for _, part in matrix.chunks(rows)]).toarray()


@pytest.mark.parametrize("rows", [2, 4096])
def test_every_data_set_comes_with_its_cells_and_only_the_genes_it_measured(census, rows):
    datasets = open_datasets([f"soma:{census}?organism=human"])
    assert [dataset.name for dataset in datasets] == ["d2", "d1"]
    for dataset in datasets:
        (matrix,) = dataset.matrices
        cells, genes = np.flatnonzero(dataset.name == DATASET_OF), PRESENT[dataset.name]
        assert dataset.cell_ids.tolist() == [str(joinid) for joinid in cells]
        assert matrix.feature_names.tolist() == [GENES[gene] for gene in genes]
        assert np.array_equal(read_all(matrix, rows), counts()[np.ix_(cells, genes)])
        assert matrix.modality == "rna"
        assert dataset.obs["cell_type"].tolist() == [["B cell", "T cell"][joinid % 2] for joinid in cells]


def test_another_process_opens_the_store_for_itself(census):
    (dataset, _) = open_datasets([f"soma:{census}?organism=human"])
    again = pickle.loads(pickle.dumps(dataset))
    soma_reader._open.cache_clear()
    assert np.array_equal(read_all(again.matrices[0]), counts()[:, :8][DATASET_OF == "d2"])
    stretch = sp.vstack([part for _, part in again.matrices[0].stored.chunks(2, 1, 4)]).toarray()
    assert np.array_equal(stretch, counts()[:, :8][DATASET_OF == "d2"][1:4])


def test_the_filter_selects_cells(census):
    place = f"soma:{census}?organism=human&obs_value_filter=is_primary_data == True and cell_type == 'B cell'"
    assert [dataset.cell_ids.tolist() for dataset in open_datasets([place])] == [["0", "2"], ["4", "6", "8"]]
    with pytest.raises(InputError, match="selects no cell"):
        open_datasets([f"soma:{census}?organism=human&obs_value_filter=cell_type == 'x'"])
    with pytest.raises(InputError, match=r"obs_value_filter=colour == 1: .*obs has .*cell_type"):
        open_datasets([f"soma:{census}?organism=human&obs_value_filter=colour == 1"])


def test_a_corpus_of_the_census_tells_not_measured_from_zero(census, tmp_path, monkeypatch):
    monkeypatch.setattr(soma_reader, "CENSUS_URI", str(census.parent.parent / "{version}" / "soma"))
    place = "census:2025-11-08?organism=human&obs_value_filter=is_primary_data == True"
    text = scmbert_ok("corpus", "build", tmp_path / "corpus", place, "--min-genes", "1", "--block-size", "4")
    assert "data set d2: 4 cells" in text
    assert "cells with is_primary_data == True; genes of its presence matrix" in text
    with open_corpus(tmp_path / "corpus") as corpus:
        assert [entry["name"] for entry in corpus.datasets] == ["d2", "d1"]
        ids = corpus.feature_space.modalities["rna"].ids.tolist()
        measured = corpus.measured(0, "rna")
        assert {GENES[gene] for gene in PRESENT["d2"]} == {ids[i] for i in np.flatnonzero(measured)}
        assert corpus.measured(1, "rna").all()
        about = corpus.datasets[0]["modalities"]["rna"]["derivation"]["soma"]
        assert about["census_version"] == "2025-11-08"
        assert about["obs_value_filter"] == "is_primary_data == True"
        assert corpus.vocabularies["donor"] == ["d1/donor", "d2/donor"]


def test_stable_is_looked_up_and_the_date_recorded(census, monkeypatch):
    monkeypatch.setattr(soma_reader, "CENSUS_URI", str(census.parent.parent / "{version}" / "soma"))
    releases = {"stable": "lts", "lts": "2025-11-08", "2025-11-08": {"release_build": "2025-11-08"}}
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(json.dumps(releases).encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    (first, _) = open_datasets(["census:stable?organism=human"])
    assert asked == [soma_reader.CENSUS_RELEASES]
    assert first.matrices[0].derivation["soma"]["census_version"] == "2025-11-08"
    with pytest.raises(InputError, match="no such release; there is 2025-11-08, lts, stable"):
        open_datasets(["census:newest?organism=human"])


def test_without_a_network_or_the_package_the_census_says_what_it_needs(monkeypatch, tmp_path):
    def refuse(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    ran = scmbert("doctor", "census:stable?organism=human")
    assert ran.code == 2
    assert "no route to host" in ran.err
    assert "soma:FOLDER" in ran.err
    monkeypatch.setattr(soma_reader, "CENSUS_URI", "s3://no-such-host/{version}/")
    monkeypatch.setattr(
        soma_reader,
        "_S3",
        {
            **soma_reader._S3,
            "vfs.s3.endpoint_override": "127.0.0.1:9",
            "vfs.s3.connect_timeout_ms": "200",
            "vfs.s3.connect_max_tries": "1",
        },
    )
    with pytest.raises(InputError, match=r"cannot be opened .*the public Census needs the network"):
        open_dataset("census:2025-11-08?organism=human")
    monkeypatch.setitem(__import__("sys").modules, "tiledbsoma", None)
    with pytest.raises(InputError, match=r"pip install 'scmbert_jax\[census\]'"):
        open_dataset(f"soma:{tmp_path}")


def test_an_experiment_alone_is_one_data_set(tmp_path):
    path = write_alone(tmp_path / "blood.soma", presence=False, dataset_ids=False)
    dataset = open_dataset(f"soma:{path}")
    assert dataset.name == "blood"
    assert np.array_equal(read_all(dataset.matrices[0]), counts())
    report = check_dataset(dataset, min_genes=1)
    assert report.usable, report.problems
    assert report.obs_fields["donor"] == "donor_id"
    assert '"obs_value_filter": null' in report.to_json()


def test_without_a_presence_matrix_a_note_says_what_is_taken_for_granted(tmp_path):
    path = write_alone(tmp_path / "x.soma", presence=False)
    for dataset in open_datasets([f"soma:{path}"]):
        report = check_dataset(dataset, min_genes=1)
        assert any("every gene is taken as measured" in warning for warning in report.warnings)
        assert len(report.features["rna"]) == 12


def test_a_presence_matrix_without_the_table_of_data_sets_is_refused(census, tmp_path):
    with pytest.raises(InputError, match="not the table of data sets"):
        open_datasets([f"soma:{census / 'census_data' / 'homo_sapiens'}"])


def test_a_count_of_a_gene_that_was_not_measured_is_a_contradiction(tmp_path, census):
    values = counts()
    values[0, 11] = 3  # d2 has not measured it
    path = tmp_path / "soma"
    with tiledbsoma.Collection.create(str(path)) as root:
        write_table(root.add_new_collection("census_info"), "datasets", pd.DataFrame({"dataset_id": ["d2", "d1"]}))
        write_experiment(
            root.add_new_collection("census_data").add_new_collection("homo_sapiens", tiledbsoma.Experiment),
            values=values,
        )
    (first, _) = open_datasets([f"soma:{path}?organism=human"])
    report = check_dataset(first, min_genes=1)
    assert "count of feature 11 (soma_joinid)" in report.problems[0]


def test_the_same_cells_twice_are_refused(census, tmp_path):
    place = f"soma:{census}?organism=human"
    with pytest.raises(InputError, match="share 5 cells: they would be in the corpus twice"):
        build_corpus(tmp_path / "corpus", [place, f"{place}&obs_value_filter=soma_joinid >= 0"], min_genes=1)


def test_where_one_data_set_is_needed_the_choice_is_named(census):
    with pytest.raises(InputError, match=r"2 data sets .*obs_value_filter=dataset_id == 'd2'"):
        open_dataset(f"soma:{census}?organism=human")
    one = open_dataset(f"soma:{census}?organism=human&obs_value_filter=dataset_id == 'd2'")
    assert one.name == "d2"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("soma:", "of what"),
        ("soma:{0}/nothing", "no such folder"),
        ("soma:{0}", r"write soma:.*\?organism=human"),
        ("soma:{0}?organism=mouse", "no 'mus_musculus'; there is homo_sapiens"),
        ("soma:{0}?organism=human&layer=counts", "no 'counts'; there is raw"),
        ("soma:{0}?organism=human&measurement=ATAC", "no 'ATAC'; there is RNA"),
        ("soma:{0}?organism=human&colour=red", "no option 'colour'"),
        ("soma:{0}?organism", "expected NAME=VALUE"),
        ("soma:{0}/census_info", "a SOMA Collection; expected an Experiment"),
    ],
)
def test_what_is_not_there_is_named(census, place, message):
    with pytest.raises(InputError, match=message):
        open_datasets([place.format(census)])


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        open_dataset(f"soma:{tmp_path}")
