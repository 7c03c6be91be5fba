"""`--only` and `--exclude`: the corpus holds those cells and no others, and says how they were chosen."""

import numpy as np
import pytest
from conftest import scmbert, scmbert_ok

from data_pipelines.build_corpus import build_corpus
from data_pipelines.cell_selection import CellSelection, select_cells
from data_pipelines.corpus import open_corpus
from data_pipelines.readers import open_dataset
from data_pipelines.stored_matrix import MatrixInMemory, RowsOf
from data_pipelines.synthetic import synthetic_cells
from data_pipelines.verify_corpus import verify_corpus
from scmbert_jax.errors import InputError

SMALL = {"min_genes": 5, "block_size": 16}


@pytest.fixture(scope="module")
def whole():
    return synthetic_cells(200, 100, 12, 0, num_batches=4, seed=0).to_mudata()


def test_a_selected_corpus_is_that_of_a_file_with_only_these_cells(whole, tmp_path):
    wanted = whole[whole.obs["technical_batch"].isin(["batch1", "batch3"])].copy()
    wanted = wanted[wanted.obs["cell_type"] != "type0"].copy()
    selection = {"only": {"technical_batch": ("batch1", "batch3")}, "exclude": {"cell_type": ("type0",)}}
    corpus = build_corpus(tmp_path / "selected", [whole], **SMALL, **selection)
    assert corpus.fingerprint == build_corpus(tmp_path / "subset", [wanted], **SMALL).fingerprint
    assert set(corpus.vocabularies["technical_batch"]) == {"mudata/batch1", "mudata/batch3"}
    assert "type0" not in corpus.vocabularies["cell_type"]
    assert corpus.manifest["cell_selection"] == {
        "only": {"technical_batch": ["batch1", "batch3"]},
        "exclude": {"cell_type": ["type0"]},
    }
    (entry,) = corpus.datasets
    assert (entry["cells_read"], entry["cells_not_selected"]) == (200, 200 - wanted.n_obs)
    assert entry["cells"] + entry["cells_dropped"] == wanted.n_obs
    assert verify_corpus(corpus.path).ok


def test_a_batch_may_be_named_with_its_data_set(whole, tmp_path):
    first, second = whole.mod["rna"].copy(), whole.mod["rna"].copy()
    second.obs_names = [f"other_{name}" for name in second.obs_names]
    names = {"only": {"technical_batch": ("batch0", "adata_2/batch2")}}
    obs = build_corpus(tmp_path / "corpus", [first, second], **SMALL, **names).obs()
    found = set(zip(obs["dataset"], obs["technical_batch"], strict=True))
    assert found == {("adata", "batch0"), ("adata_2", "batch0"), ("adata_2", "batch2")}
    one = build_corpus(tmp_path / "one", [first, second], **SMALL, exclude={"technical_batch": ("adata/batch0",)})
    assert "adata/batch0" not in one.vocabularies["technical_batch"]
    assert "adata_2/batch0" in one.vocabularies["technical_batch"]


def test_the_check_judges_the_selected_cells_alone(whole, tmp_path):
    """Most cells of the file are too poor to use; those that are asked for are not."""
    data = whole.mod["rna"].copy()
    poor = (data.obs["technical_batch"] != "batch0").to_numpy()
    data.X[poor] = 0
    data.X[np.flatnonzero(poor), 0] = 1
    with pytest.raises(InputError, match="would be dropped"):
        build_corpus(tmp_path / "all", [data], **SMALL)
    corpus = build_corpus(tmp_path / "some", [data], **SMALL, only={"technical_batch": ("batch0",)})
    assert corpus.num_cells == np.count_nonzero(~poor)


def test_a_modality_that_no_selected_cell_has_is_not_in_the_corpus(tmp_path):
    corpus = build_corpus(
        tmp_path / "corpus", ["example:pbmc_mosaic"], min_genes=1, only={"technical_batch": ("p1_0",)}
    )
    assert corpus.modalities == ["rna"]
    assert corpus.num_cells == 400


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"only": {"technical_batch": ("batch1", "batch9")}},
            "has the technical_batch 'batch9'; there is batch0, batch1",
        ),
        ({"exclude": {"cell_type": ("neuron",)}}, "exclude cell_type=neuron: no cell of .* there is type0"),
        ({"only": {"donor": ("d1",)}}, "has the field 'donor'; obs has cell_type, technical_batch.*--obs-field donor="),
        ({"only": {"donor": ()}}, "no value is given"),
        (
            {"only": {"technical_batch": ("batch1",)}, "exclude": {"technical_batch": ("batch1",)}},
            "none of its 200 cells",
        ),
    ],
)
def test_a_selection_of_what_is_not_there_names_the_field_and_what_there_is(whole, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        build_corpus(tmp_path / "corpus", [whole], **SMALL, **options)
    assert not (tmp_path / "corpus").exists()


def test_a_field_may_be_a_column_of_obs_and_an_unknown_value_is_none_of_its_values(whole):
    data = whole.mod["rna"].copy()
    data.obs["lane"] = [None if row % 3 == 0 else float(row % 3) for row in range(data.n_obs)]
    dataset = open_dataset(data)
    (only,) = select_cells([dataset], ["adata"], CellSelection(only={"lane": ("1",)}))
    assert len(only.cell_ids) == sum(row % 3 == 1 for row in range(data.n_obs))
    (rest,) = select_cells([dataset], ["adata"], CellSelection(exclude={"lane": ("1",)}))
    assert len(rest.cell_ids) == data.n_obs - len(only.cell_ids)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_rows_of_a_matrix_stream_in_order_whatever_the_chunk(chunk):
    counts = np.arange(60, dtype=np.float32).reshape(20, 3)
    rows = np.array([0, 1, 7, 8, 9, 19])
    parts = list(RowsOf(MatrixInMemory(counts, "here"), rows).chunks(chunk))
    assert [first for first, _ in parts] == [sum(p.shape[0] for _, p in parts[:place]) for place in range(len(parts))]
    np.testing.assert_array_equal(np.vstack([part.toarray() for _, part in parts]), counts[rows])


def test_on_the_command_line_values_are_separated_by_commas_and_quoted_where_they_have_one(tmp_path):
    out = scmbert_ok(
        *("corpus", "build", tmp_path / "corpus", "example:pbmc_mosaic", "--min-genes", "1"),
        *("--only", "technical_batch=p1_0,p3_0", "--exclude", 'cell_type="B", NK'),
    )
    assert "only the cells with technical_batch p1_0, p3_0" in out
    with open_corpus(tmp_path / "corpus") as corpus:
        assert corpus.manifest["cell_selection"]["exclude"] == {"cell_type": ["B", "NK"]}
        assert not {"B", "NK"} & set(corpus.vocabularies["cell_type"])
    for wrong in ("technical_batch", "technical_batch=", "=p1_0", "technical_batch=p1_0,,p2_0"):
        ran = scmbert("corpus", "build", tmp_path / "other", "example:pbmc_mosaic", "--only", wrong)
        assert ran.code != 0
        assert f"--only {wrong}: expected FIELD=VALUE" in ran.err
