"""`--only` and `--exclude`: the corpus holds those cells and no others, and says how they were chosen."""

import numpy as np
import pandas as pd
import pytest
from conftest import scmbert, scmbert_ok
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.select_cells import select_cells
from data_pipelines.cells.cell_selection import CellSelection, selected_rows
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.stored_matrix import MatrixInMemory, RowsOf
from data_pipelines.synthetic.cells import synthetic_cells
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
    corpus = build_corpus(tmp_path / "corpus", ["example:pbmc_mosaic"], only={"technical_batch": ("p1_0",)})
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
        *("corpus", "build", tmp_path / "corpus", "example:pbmc_mosaic"),
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


# --- fields as CELLxGENE keeps them, and the obs table of a corpus ----------------------------------------------------


def atlas_obs() -> pd.DataFrame:
    """The obs table of a corpus, with fields as CELLxGENE writes them."""
    return pd.DataFrame(
        {
            "cell_id": [f"c{row}" for row in range(6)],
            "dataset": ["lung", "lung", "lung", "blood", "blood", "blood"],
            "donor": ["d1", "d2", None, "d1", "d1", "d3"],
            "disease": ["COVID-19 || asthma", "normal", "COVID-19", "asthma", None, "normal || COVID-19 || flu"],
            "is_primary_data": [True, False, True, True, False, False],
            "n_genes": [100, 500, 501, 6000, 499, 7000],
            "sex": pd.Categorical(["female", "male", "female", "unknown", None, "male"]),
            "development_stage": ["<1 year", "80 year-old and over", "<1 year", "adult", "adult", "adult"],
        }
    )


@pytest.mark.parametrize(
    ("only", "exclude", "rows"),
    [
        ({"disease": ("COVID-19",)}, {}, [0, 2, 5]),
        ({"disease": ("COVID-19 || asthma",)}, {}, [0]),
        ({}, {"disease": ("asthma",)}, [1, 2, 4, 5]),
        ({"is_primary_data": ("True",)}, {}, [0, 2, 3]),
        ({"is_primary_data": ("1",)}, {}, [0, 2, 3]),
        ({}, {"is_primary_data": ("true",)}, [1, 4, 5]),
        ({"is_primary_data": ("FALSE",)}, {}, [1, 4, 5]),
        ({"donor": ("d1",)}, {}, [0, 3, 4]),
        ({"donor": ("blood/d1", "d2")}, {}, [1, 3, 4]),
        ({"dataset": ("blood",), "sex": ("male", "unknown")}, {}, [3, 5]),
        ({"n_genes": (">=500",)}, {}, [1, 2, 3, 5]),
        ({"n_genes": (">=500", "<6000")}, {}, [1, 2]),
        ({"n_genes": (">6e3", "100")}, {}, [0, 5]),
        ({}, {"n_genes": ("<=500",)}, [2, 3, 5]),
        ({"development_stage": ("<1 year",)}, {}, [0, 2]),
    ],
)
def test_rows_of_an_obs_table_are_selected_by_any_field(only, exclude, rows):
    obs, selection = atlas_obs(), CellSelection(only, exclude)
    assert np.flatnonzero(selected_rows(obs, selection)).tolist() == rows
    few = obs[sorted({"dataset", *selection.fields})]
    assert np.flatnonzero(selected_rows(few, selection)).tolist() == rows


@pytest.mark.parametrize("written", [np.array([1, 0, 0]), np.array(["TRUE", "FALSE", "FALSE"]), np.array([1.0, 0, 0])])
def test_a_truth_value_is_one_however_its_file_writes_it(written):
    obs = pd.DataFrame({"dataset": "a", "is_primary_data": written})
    for spelling in ("True", "true", "1"):
        rows = selected_rows(obs, CellSelection({"is_primary_data": (spelling,)}))
        assert rows.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("only", "words"),
    [
        (
            {"tissue": ("lung",)},
            "only tissue=lung: no cell of my_corpus has the field 'tissue'; obs has cell_id, dataset",
        ),
        ({"disease": ("covid",)}, "has the disease 'covid'; there is COVID-19, asthma, flu, normal$"),
        ({"sex": (">=5",)}, "sex of my_corpus is not a field of numbers .there is female, male, unknown."),
        ({"donor": ("lung/d3",)}, "has the donor 'lung/d3'; there is d1, d2, d3"),
        ({"donor": ("d1", "d9")}, "only donor=d1,d9: .* has the donor 'd9'"),
    ],
)
def test_of_an_obs_table_too_what_is_not_there_is_named(only, words):
    with pytest.raises(InputError, match=words):
        selected_rows(atlas_obs(), CellSelection(only), "my_corpus")


def test_a_selection_may_leave_no_row():
    assert not selected_rows(atlas_obs(), CellSelection({"n_genes": (">1e6",)})).any()


_VALUES = st.one_of(st.none(), st.sampled_from(["a", "b", "a || b", "c || a", "b/c"]))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
@given(
    st.lists(st.tuples(st.sampled_from(["x", "y"]), _VALUES, st.integers(-3, 3)), min_size=1, max_size=30),
    st.sets(st.sampled_from(["a", "b", "c", "x/a", "y/b", "y/b/c"]), min_size=1),
    st.booleans(),
)
def test_selected_rows_are_those_that_a_cell_by_cell_reading_selects(cells, values, excluded):
    obs = pd.DataFrame(cells, columns=["dataset", "technical_batch", "depth"])

    def has(dataset: str, batch: str | None) -> bool:
        names = set() if batch is None else {batch, f"{dataset}/{batch}", *batch.split(" || ")}
        return bool(names & values)

    expected = [has(dataset, batch) != excluded for dataset, batch, _ in cells]
    there = {v for d, b, _ in cells if b is not None for v in (b, f"{d}/{b}", *b.split(" || "))}
    wanted = {"technical_batch": tuple(values)}
    selection = CellSelection(exclude=wanted) if excluded else CellSelection(only=wanted)
    if obs["technical_batch"].notna().any() and values <= there:
        assert selected_rows(obs, selection).tolist() == expected
    else:
        with pytest.raises(InputError, match="technical_batch"):
            selected_rows(obs, selection)


def test_what_a_corpus_was_built_from_is_what_its_obs_table_gives(whole, tmp_path):
    """Choosing cells at the build and choosing them in the corpus of all cells is the same choice."""
    data = whole.mod["rna"].copy()
    data.obs["donor_id"] = [f"d{row % 3}" for row in range(data.n_obs)]
    data.obs["is_primary_data"] = [row % 2 == 0 for row in range(data.n_obs)]
    data.obs["depth"] = np.arange(data.n_obs) / 2
    for selection in (
        CellSelection({"donor": ("adata/d1",), "is_primary_data": ("true",)}),
        CellSelection({"depth": (">=10.5", "<40")}, {"donor_id": ("d0",)}),
    ):
        (chosen,) = select_cells([open_dataset(data)], ["adata"], selection)
        obs = build_corpus(tmp_path / "all", [data], min_genes=1, overwrite=True).obs()
        assert sorted(obs["cell_id"][selected_rows(obs, selection)]) == sorted(chosen.cell_ids.tolist())


def test_bounds_are_written_on_the_command_line_as_one_writes_them(tmp_path):
    options = ("corpus", "build", tmp_path / "corpus", "example:pbmc_mosaic")
    ran = scmbert(*options, "--only", "celltype>=5")
    assert ran.code != 0
    assert "celltype of" in ran.err
    assert "is not a field of numbers" in ran.err
    for wrong in ("n_genes>=", "n_genes>=many", ">=5", "n_genes>inf"):
        assert f"--only {wrong}: expected FIELD=VALUE" in scmbert(*options, "--only", wrong).err
