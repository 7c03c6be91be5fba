"""Matching and label transfer: by hand, on made embeddings, and by the command line on a model."""

import csv

import numpy as np
import pandas as pd
import pytest
from conftest import scmbert, scmbert_ok

from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.tasks.label_transfer import class_report, transfer_labels
from scmbert_jax.tasks.match import DatasetMatching, Matching, match_cells, match_probabilities


def two_views(num_cells=60, noise=0.1, seed=0):
    """The same cells twice, each with noise of its own."""
    rng = np.random.default_rng(seed)
    cells = rng.normal(size=(num_cells, 8))
    return cells + noise * rng.normal(size=cells.shape), cells + noise * rng.normal(size=cells.shape)


# --- matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sinkhorn", "cosine"])
def test_the_same_cells_find_each_other(method):
    a, b = two_views()
    found = match_cells(a, b, k=3, method=method)
    assert (found.partners[:, 0] == np.arange(60)).mean() > 0.95
    assert (np.diff(found.probabilities, axis=1) <= 0).all()


def test_probabilities_by_cosine_are_the_softmax_over_the_candidates():
    a, b = two_views(5)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    weights = np.exp(units[0] @ units[1].T / 0.1)
    (block,) = match_probabilities(a, b, method="cosine", epsilon=0.1)
    np.testing.assert_allclose(
        block.probabilities, weights / weights.sum(1, keepdims=True), rtol=1e-4
    )  # float32 cosine


def test_transport_keeps_one_cell_from_being_everybodys_partner():
    """One cell of B lies nearest to all cells of A (a hub): by cosine it takes them all, by transport it cannot."""
    rng = np.random.default_rng(1)
    a = np.concatenate([np.ones((20, 4)), rng.normal(size=(20, 4)) * 0.6], axis=1)
    b = a * np.array([0.2] * 4 + [1.0] * 4)
    b[0] = [1, 1, 1, 1, 0, 0, 0, 0]
    by_cosine = match_cells(a, b, k=1, method="cosine").partners[:, 0]
    by_transport = match_cells(a, b, k=1, method="sinkhorn").partners[:, 0]
    assert (by_cosine == 0).mean() > 0.8
    assert (by_transport == 0).mean() <= 0.2


def test_partners_are_looked_for_in_the_same_technical_batch_only():
    a, b = two_views(40)
    batches_a = np.array(["x"] * 20 + ["y"] * 20)
    batches_b = np.array(["y"] * 20 + ["x"] * 20)  # every true partner is in the other batch
    found = match_cells(a, b, k=2, batches_a=batches_a, batches_b=batches_b)
    assert (batches_b[found.partners] == batches_a[:, None]).all()


def test_a_batch_without_partners_and_one_with_few_say_so():
    a, b = two_views(30)
    found = match_cells(
        a, b[:12], k=5, batches_a=np.array(["x"] * 20 + ["z"] * 10), batches_b=np.array(["x"] * 3 + ["y"] * 9)
    )
    np.testing.assert_array_equal(found.unmatched, np.arange(20, 30))
    assert (found.partners[:20, 3:] == -1).all()
    np.testing.assert_allclose(found.probabilities[:20].sum(1), 1, rtol=1e-5)
    assert (found.probabilities[20:] == 0).all()


def test_embeddings_that_cannot_be_matched_are_refused():
    a, b = two_views(10)
    with pytest.raises(InputError, match="in one space"):
        match_cells(a, b[:, :5])
    with pytest.raises(InputError, match="1 cells are not finite"):
        match_cells(np.where(np.arange(10)[:, None] == 3, np.nan, a), b)
    with pytest.raises(InputError, match="of one modality only"):
        match_cells(a, b, batches_a=np.full(10, "x"))
    with pytest.raises(InputError, match="no technical batch has cells of both sides"):
        match_cells(a, b, batches_a=np.full(10, "x"), batches_b=np.full(10, "y"))
    with pytest.raises(ConfigError, match="sinkhorn or cosine"):
        match_cells(a, b, method="nearest")


# --- label transfer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["knn", "logistic"])
def test_labels_cross_an_offset_between_modalities(method):
    rng = np.random.default_rng(2)
    types = np.array(["B", "T", "NK"])[rng.integers(0, 3, 120)]
    centres = {"B": [3.0, 0, 0, 0], "T": [0, 3.0, 0, 0], "NK": [0, 0, 3.0, 0]}
    a = np.stack([centres[name] for name in types]) + 0.3 * rng.normal(size=(120, 4))
    b = np.stack([centres[name] for name in types]) + 0.3 * rng.normal(size=(120, 4)) + [0, 0, 0, 20.0]
    found = transfer_labels(a, types, b, method=method)
    assert (found.labels == types).mean() > 0.97
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.confidence, found.probabilities.max(1))


def test_small_dimensions_of_noise_do_not_drown_the_large_ones():
    rng = np.random.default_rng(0)
    types = np.array(["B", "T", "NK"])[np.arange(180) % 3]
    told = (types[:, None] == np.unique(types)) * 3.0 + rng.normal(size=(180, 3))
    x = np.concatenate([told, 0.1 * rng.normal(size=(180, 60))], axis=1)
    right = [
        (transfer_labels(cells[:45], types[:45], cells[45:], method="logistic").labels == types[45:]).mean()
        for cells in (told, x)
    ]
    assert right[1] > right[0] - 0.03


def test_cells_without_a_label_teach_nothing():
    a, b = two_views(40)
    types = np.where(a[:, 0] > 0, "up", "down")
    half = np.where(np.arange(40) < 20, types, "")
    labels = transfer_labels(a, half, b, neighbours=5).labels
    assert set(labels) <= {"up", "down"}
    with pytest.raises(InputError, match="of 1 types"):
        transfer_labels(a, np.full(40, "up"), b)


def test_the_report_counts_by_the_true_type():
    (b, t) = class_report(np.array(["B", "B", "T", ""]), np.array(["B", "T", "T", "B"]))
    assert (b.cell_type, b.precision, b.recall, b.num_cells) == ("B", 1.0, 0.5, 2)
    assert (t.precision, t.recall, t.num_cells) == (0.5, 1.0, 1)


def test_a_table_says_why_a_partner_is_missing():
    """Three cells of A, three partners asked for: one finds two, one is alone in its batch, one has no counts."""
    matching = Matching(np.array([[1, 0, -1], [-1, -1, -1]]), np.array([[0.7, 0.3, 0], [0, 0, 0]]), np.array([1]), ())
    ids, nobody = np.array(["a", "b"]), np.array([], str)
    without = {"rna": np.array(["c"]), "protein": nobody}
    found = DatasetMatching("rna", "protein", ids, np.array(["x", "y"]), np.array(["1", "2"]), matching, True, without)
    rows = found.table()[["cell", "rank", "partner", "why_not"]].to_numpy().tolist()
    assert rows == [
        ["a", 1, "y", ""],
        ["a", 2, "x", "its technical batch has no more protein cells"],
        ["b", 0, "", "its technical batch has no protein cell"],
        ["c", 0, "", "no counts of the model's rna features"],
    ]


# --- the verbs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_match_writes_partners_of_the_same_technical_batch(pbmc_model, pbmc_few, tmp_path):
    out = tmp_path / "partners.csv"
    said = scmbert_ok(
        *("match", pbmc_model, pbmc_few, "--source", "rna", "--target", "protein"),
        *("-o", out, "--k", "2"),
    )
    assert "partners of 120 of 180 rna cells" in said  # p1 has no protein
    rows = list(csv.DictReader(out.open()))
    alone = [row for row in rows if row["rank"] == "0"]
    assert {row["technical_batch"] for row in alone} == {"p1_0"}
    assert len(alone) == 60
    assert {(row["partner"], row["why_not"]) for row in alone} == {("", "its technical batch has no protein cell")}
    rows = [row for row in rows if row["rank"] != "0"]
    assert len(rows) == 240
    assert {row["why_not"] for row in rows} == {""}
    assert {row["technical_batch"] for row in rows} == {"p3_0", "p4_0"}
    assert all(row["partner"].startswith(row["technical_batch"]) for row in rows)


@pytest.mark.slow
def test_label_transfer_writes_types_with_their_confidence(pbmc_model, pbmc_few, tmp_path):
    out = tmp_path / "types.parquet"
    said = scmbert_ok(
        *("label-transfer", pbmc_model, pbmc_few, pbmc_few),
        *("--source", "rna", "--target", "protein", "-o", out),
    )
    assert "180 protein cells" in said
    table = pd.read_parquet(out)
    assert list(table.columns) == ["cell", "cell_type", "confidence"]
    assert table["confidence"].between(0, 1).all()


@pytest.mark.slow
def test_what_cannot_be_matched_is_refused_before_the_work(pbmc_model, tmp_path):
    def refused(*more):
        ran = scmbert("match", pbmc_model, "example:pbmc_mosaic", "--source", "rna", *more)
        assert ran.code != 0
        return ran.err

    assert "written as .csv or .parquet" in refused("--target", "protein", "-o", tmp_path / "x.txt")
    assert "is no folder" in refused("--target", "protein", "-o", tmp_path / "no" / "x.csv")
    assert "between two modalities" in refused("--target", "rna", "-o", tmp_path / "x.csv")
    assert "atac" in refused("--target", "atac", "-o", tmp_path / "x.csv")
