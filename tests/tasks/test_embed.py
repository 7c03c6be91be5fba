"""Cell embeddings: what they depend on and what not, on the built-in example. Files: tests/test_end_to_end.py."""

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import TINY, scmbert, scmbert_ok
from multimodal_model import multimodal_model  # noqa: F401

import scmbert_jax
from scmbert_jax.errors import ConfigError, InputError, ScmbertWarning
from scmbert_jax.pretrained import load_model
from scmbert_jax.tasks.embed import embed_dataset, embed_jointly, provenance
from scmbert_jax.tasks.model_cells import open_model_cells

# A row's arithmetic does not depend on its neighbours; another batch size, or another place in the batch, makes XLA
# sum float32 products in another order. Embeddings are of size 1.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(pbmc_model):
    return scmbert_jax.load(pbmc_model)


@pytest.fixture(scope="module")
def mdata(pbmc_few):
    return mudata.read_h5mu(pbmc_few)


@pytest.fixture(scope="module")
def rna(mdata):
    return mdata.mod["rna"].copy()


@pytest.fixture(scope="module")
def embedded(model, mdata):
    return model.embed(mdata)


def test_every_cell_of_a_mosaic_has_an_embedding_of_its_own(embedded, mdata, pbmc_model):
    assert embedded.shape == (mdata.n_obs, 32)
    assert embedded.dtype == np.float32
    assert np.isfinite(embedded).all()
    assert len(np.unique(embedded.round(4), axis=0)) == mdata.n_obs


@pytest.mark.slow
def test_the_python_api_gives_what_the_command_line_writes(model, pbmc_model, pbmc_few, tmp_path):
    scmbert_ok("embed", pbmc_model, pbmc_few, "-o", tmp_path / "out.h5mu")
    written = mudata.read_h5mu(tmp_path / "out.h5mu")
    np.testing.assert_array_equal(written.obsm["X_scmbert"], model.embed(pbmc_few))


def test_the_same_cells_have_the_same_embedding_bit_for_bit_and_stay_as_they_were(model, mdata, embedded):
    before = mdata.mod["rna"].X.copy()
    np.testing.assert_array_equal(model.embed(mdata), embedded)
    assert (before != mdata.mod["rna"].X).sum() == 0
    assert "X_scmbert" not in mdata.obsm


def test_the_order_of_the_features_means_nothing(model, rna):
    shuffled = rna[:, np.random.default_rng(0).permutation(rna.n_vars)].copy()
    np.testing.assert_array_equal(model.embed(shuffled), model.embed(rna))


def test_cells_in_another_order_have_the_same_embeddings_in_that_order(model, rna):
    order = np.random.default_rng(0).permutation(rna.n_obs)
    np.testing.assert_allclose(model.embed(rna[order].copy()), model.embed(rna)[order], **TOLERANCE)


def test_a_cell_does_not_depend_on_the_cells_beside_it(model, rna):
    np.testing.assert_allclose(model.embed(rna[3:20].copy()), model.embed(rna)[3:20], **TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_no_embedding(model, rna, batch_size):
    few = rna[:9].copy()
    np.testing.assert_allclose(model.embed(few, batch_size=batch_size), model.embed(few), **TOLERANCE)


def test_chosen_cells_alone_are_embedded_as_they_are_among_all(pbmc_model, mdata, embedded):
    chosen = np.array([3, 130, 131, 200])
    found = embed_dataset(load_model(pbmc_model), mdata, rows=chosen).embeddings
    np.testing.assert_allclose(found[chosen], embedded[chosen], **TOLERANCE)
    assert np.isnan(np.delete(found, chosen, axis=0)).all()


def test_a_batch_size_of_nothing_is_refused(model, rna):
    with pytest.raises(ConfigError, match="batch_size 0"):
        model.embed(rna, batch_size=0)


def test_features_that_the_model_does_not_know_are_reported_and_change_nothing(model, rna):
    unknown = pd.DataFrame(index=["GFAP", "OLIG2", "not_a_gene"])
    extra = anndata.AnnData(sp.csr_matrix(np.full((rna.n_obs, 3), 5, np.float32)), obs=rna.obs, var=unknown)
    wider = anndata.concat([rna, extra], axis=1, merge="first")
    result = embed_dataset(model.pretrained, wider)
    overlap = result.overlaps["rna"]
    assert overlap.num_unknown == 2  # the third is no gene at all: the input check says so
    assert set(overlap.unknown) == {"GFAP", "OLIG2"}
    assert "2 features of the file are unknown to the model" in overlap.summary()
    unmapped = result.report.modalities["rna"].mapping.status_counts["unknown"]
    assert (
        unmapped == embed_dataset(model.pretrained, rna).report.modalities["rna"].mapping.status_counts["unknown"] + 1
    )
    np.testing.assert_array_equal(result.embeddings, model.embed(rna))


def test_a_gene_that_was_not_measured_is_another_thing_than_one_of_no_counts(model, rna):
    """A gene the file lacks is never shown to the model as a zero."""
    half = np.arange(rna.n_vars) < rna.n_vars // 2
    as_zeros = rna.copy()
    as_zeros.X = rna.X.multiply(half[None]).tocsr()
    seen = np.asarray(as_zeros.X.sum(axis=1)).ravel() > 0
    with pytest.warns(ScmbertWarning, match="250 of the model's 497 features, 66% of those"):
        not_measured = model.embed(rna[:, half].copy())
    assert np.abs(not_measured - model.embed(as_zeros))[seen].max() > 0.01


def test_a_cell_without_counts_has_no_embedding_and_is_counted(model, rna):
    emptied = rna.copy()
    emptied.X = sp.csr_matrix(rna.X.multiply(np.arange(rna.n_obs)[:, None] != 5))
    result = embed_dataset(model.pretrained, emptied)
    assert np.isnan(result.embeddings[5]).all()
    assert result.num_empty == 1
    others = np.arange(rna.n_obs) != 5
    np.testing.assert_allclose(result.embeddings[others], model.embed(rna)[others], **TOLERANCE)


def test_modalities_may_be_left_out(model, mdata, rna):
    """All cells of the mosaic by RNA alone: those without RNA have no embedding, the others that of their RNA."""
    by_rna = model.embed(mdata, modalities=("rna",))
    place = mdata.obs_names.get_indexer(rna.obs_names)
    assert np.isnan(np.delete(by_rna, place, axis=0)).all()
    np.testing.assert_allclose(by_rna[place], model.embed(rna), **TOLERANCE)
    with pytest.raises(InputError, match=r"modalities atac: the model reads rna, protein"):
        model.embed(mdata, modalities=("atac",))


def test_proteins_alone_need_no_word_on_the_organism(model, mdata, embedded):
    """Antibody names do not tell human from mouse; the model knows what it was trained on."""
    protein = mdata.mod["adt"].copy()
    alone = (protein.obs["batch"] == "p2_0").to_numpy()  # these cells have nothing else
    place = mdata.obs_names.get_indexer(protein.obs_names[alone])
    np.testing.assert_allclose(model.embed(protein)[alone], embedded[place], **TOLERANCE)


def test_every_expressed_feature_is_shown_and_the_seed_draws_the_zeros_beside_them(model, mdata, embedded):
    """In a training step of this experiment a cell has 64 tokens of RNA and 16 of its 211 proteins."""
    result = embed_dataset(model.pretrained, mdata)
    assert result.shown == {"rna": 1.0, "protein": 1.0}
    np.testing.assert_array_equal(result.embeddings, embedded)
    assert np.abs(model.embed(mdata, seed=1) - embedded).max() > 1e-3


@pytest.mark.slow
def test_whoever_shows_less_is_told_the_fraction_and_components_are_of_all_counts(model, mdata, embedded):
    with pytest.warns(ScmbertWarning, match=r"[\d.]+% of rna, [\d.]+% of protein"):
        few = embed_dataset(model.pretrained, mdata, num_tokens=16)
    expressed = (mdata.mod["adt"].X > 0).sum()
    assert few.shown["protein"] == pytest.approx(16 * 180 / expressed, rel=0.01)
    assert 0 < few.shown["rna"] < 1
    assert np.abs(few.embeddings - embedded).max() > 0.01
    alone = model.pretrained.linear_path_alone()
    with pytest.warns(ScmbertWarning):
        of_few = embed_dataset(alone, mdata, num_tokens=16).embeddings
    np.testing.assert_allclose(of_few, embed_dataset(alone, mdata).embeddings, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="num_tokens 0 of rna: expected 1 or more"):
        model.embed(mdata, num_tokens=0)


def test_a_row_is_of_a_width_and_a_batch_of_as_many_rows_as_memory_holds(model, mdata):
    """Few widths, so few programs; fewer rows where they are long."""
    opened = open_model_cells(model.pretrained, mdata)
    found = [(batch.most_tokens, len(batch.row), len(rows)) for rows, batch, _ in opened.batches(None, 50, 0)]
    assert sum(number for _, _, number in found) == mdata.n_obs
    assert {width for width, _, _ in found} <= {128, 256, 384}
    assert len({width for width, _, _ in found}) > 1
    assert all(rows == 50 for _, rows, _ in found)
    assert 0 < opened._rows_at(2**18, 50) < 50


@pytest.mark.slow
def test_an_untrained_twin_gives_other_embeddings_of_the_same_cells(model, rna):
    first, second = (embed_dataset(model.pretrained.untrained(seed), rna).embeddings for seed in (0, 1))
    assert np.abs(first - second).max() > 0.1
    assert np.abs(first - model.embed(rna)).max() > 0.01


# --- the space in which modalities are compared ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def aligned_model(multimodal_model):  # noqa: F811
    return scmbert_jax.load(multimodal_model)


@pytest.fixture(scope="module")
def jointly(aligned_model, mdata):
    return aligned_model.embed_joint(mdata)


def test_a_joint_embedding_has_the_cell_its_modalities_and_their_mean(jointly, mdata):
    shapes = {key: vectors.shape for key, vectors in jointly.items()}
    aligned = {f"X_scmbert_{name}": (mdata.n_obs, 8) for name in ("joint", "rna", "protein")}
    assert shapes == {"X_scmbert": (mdata.n_obs, 32), **aligned}
    for name, mod in (("rna", "rna"), ("protein", "adt")):
        measured = np.isin(mdata.obs_names, mdata.mod[mod].obs_names)
        assert np.isnan(jointly[f"X_scmbert_{name}"]).any(axis=1).tolist() == (~measured).tolist()
    for key in aligned:
        length = np.linalg.norm(jointly[key], axis=1)
        np.testing.assert_allclose(length[np.isfinite(length)], 1, rtol=1e-5)
    assert np.isfinite(jointly["X_scmbert_joint"]).all()


@pytest.mark.slow
def test_a_joint_embedding_is_what_is_embedded_one_by_one(aligned_model, jointly, mdata):
    alone = {
        "X_scmbert": aligned_model.embed(mdata),
        "X_scmbert_joint": aligned_model.embed(mdata, space="aligned"),
        "X_scmbert_rna": aligned_model.embed(mdata, space="aligned", modalities=("rna",)),
        "X_scmbert_protein": aligned_model.embed(mdata, space="aligned", modalities=("protein",)),
    }
    for key, expected in alone.items():
        np.testing.assert_allclose(jointly[key], expected, **TOLERANCE, err_msg=key)
    both = np.isfinite(jointly["X_scmbert_rna"][:, 0]) & np.isfinite(jointly["X_scmbert_protein"][:, 0])
    assert both.sum() == 120
    assert np.abs(jointly["X_scmbert_rna"] - jointly["X_scmbert_protein"])[both].max() > 0.05


def test_a_file_of_one_modality_has_a_joint_embedding_of_that(aligned_model, rna):
    result = embed_jointly(aligned_model.pretrained, rna[:10].copy())
    assert list(result.aligned) == ["joint", "rna"]
    np.testing.assert_allclose(result.aligned["joint"], result.aligned["rna"], **TOLERANCE)


@pytest.mark.slow
def test_the_joint_embedding_is_written_beside_all_that_was_in_the_file(
    aligned_model,
    multimodal_model,  # noqa: F811
    pbmc_few,
    tmp_path,
):
    out = tmp_path / "out.h5mu"
    printed = scmbert_ok("embed", multimodal_model, pbmc_few, "-o", out, "--joint")
    written = mudata.read_h5mu(out)
    for key, vectors in aligned_model.embed_joint(pbmc_few).items():
        np.testing.assert_array_equal(written.obsm[key], vectors)
        assert f"obsm['{key}'] of 240 cells x {vectors.shape[1]}" in printed
    assert written.mod["rna"].shape == (180, 500)


def test_features_that_are_not_read_are_all_named_in_the_file(aligned_model, rna):
    """Those the model does not know, and those that are no genes."""
    unknown = pd.DataFrame(index=["GFAP", "OLIG2", "not_a_gene"])
    extra = anndata.AnnData(sp.csr_matrix((10, 3), dtype=np.float32), obs=rna.obs[:10], var=unknown)
    wider = anndata.concat([rna[:10], extra], axis=1, merge="first")
    result = embed_dataset(aligned_model.pretrained, wider)
    named = provenance(aligned_model.pretrained, result)["features_not_read"]["rna"]
    assert set(named) == {"GFAP", "OLIG2", "not_a_gene", "AC084033.3", "AL031777.3", "AL445686.2"}


def test_a_model_without_a_common_space_has_no_joint_embedding(model, rna):
    for ask in (model.embed_joint, lambda cells: model.embed(cells, space="aligned")):
        with pytest.raises(InputError, match="not trained with contrastive_alignment"):
            ask(rna)


# --- the features of the model ---------------------------------------------------------------------------------------


def test_a_file_of_few_of_the_models_features_is_refused_unless_told(model, mdata, rna):
    """In one place, for every task and every suite: whoever opens cells for a model."""
    few = rna[:, :20].copy()
    with pytest.raises(InputError, match=r"20 of the model's 497 features, \d+% of those.*--allow-low-coverage"):
        model.embed(few)
    with pytest.raises(InputError, match="features"):
        embed_dataset(model.pretrained, mudata.MuData({"rna": few, "adt": mdata.mod["adt"]}))
    with pytest.warns(ScmbertWarning, match="the others are taken for their mean"):
        found = model.embed(few, allow_low_coverage=True)
    assert found.shape == (rna.n_obs, 32)
    assert embed_dataset(model.pretrained, rna).coverage == {"rna": 1.0}


def test_the_command_line_refuses_and_warns_alike(pbmc_model, rna, tmp_path):
    rna[:, :20].copy().write_h5ad(tmp_path / "few.h5ad")
    command = ("embed", pbmc_model, tmp_path / "few.h5ad", "-o", tmp_path / "out.h5ad")
    ran = scmbert(*command)
    assert ran.code == InputError.exit_code
    assert "--allow-low-coverage" in ran.err
    ran = scmbert(*command, "--allow-low-coverage", "--num-tokens", "2")
    assert ran.code == 0, ran.err
    assert "scmbert: " in ran.err
    assert "20 of the model's 497 features" in ran.err
    assert "the transformer was shown" in ran.err
    assert "Warning" not in ran.err
    told = anndata.read_h5ad(tmp_path / "out.h5ad").uns["scmbert"]
    assert 0 < told["coverage"]["rna"] < 0.5
    assert 0 < told["shown"]["rna"] < 1


def test_a_model_says_what_it_is(model, pbmc_model):
    said = repr(model)
    for words in (
        f"scmbert_jax model {pbmc_model}: step 6 of 6, ",
        " parameters",
        "2 layers, embeddings of 32 numbers, with a linear path",
        "trained for: masked_modeling (weight 1); 16 cells a step, of 1,600 cells",
        "rna: 497 features of gene:human (",
        "protein: 224 features",
        "trained on",
    ):
        assert words in said


def test_progress_is_a_bar_or_a_function(model, rna, capsys):
    seen = []
    model.embed(rna, progress=lambda done, number: seen.append((done, number)))
    assert seen[-1] == (rna.n_obs, rna.n_obs)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    model.embed(rna, progress=True)
    assert "embed" in capsys.readouterr().err
    with pytest.raises(TypeError, match="organsim"):
        model.embed(rna, organsim="human")


@pytest.mark.slow
def test_a_model_of_covariates_embeds_cells_of_which_none_is_known(pbmc_corpus, run_scmbert, tmp_path, rna):
    """The technical batches of a new file are none of those of training."""
    options = ("--corpus", pbmc_corpus, "--run-dir", tmp_path / "run", "--steps", "2")
    ran = run_scmbert(*TINY, *options, "--model.covariates", "technical_batch", "--model.covariates-at", "tokens")
    assert ran.code == 0, ran.err
    scmbert_ok("export", tmp_path / "run", tmp_path / "model")
    with_covariates = scmbert_jax.load(tmp_path / "model")
    assert len(with_covariates.pretrained.info["covariates"]["technical_batch"]) == 4
    assert np.isfinite(with_covariates.embed(rna)).all()
