"""Translation: what a prediction depends on and what not, what it is said to be, and what a model is not asked."""

from dataclasses import replace

import anndata
import jax
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import shaken
from multimodal_model import multimodal_model  # noqa: F401

import scmbert_jax
from data_pipelines.features.feature_mapping import map_genes, map_regions
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.example_reader import example_path
from scmbert_jax.config import (
    CrossModalTranslationConfig,
    ExperimentConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
)
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks import translate
from scmbert_jax.tasks.model import Model
from scmbert_jax.tasks.translate import translate_dataset

# Another batch size, or another place in the batch, makes XLA sum float32 products in another order.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def young(multimodal_model):  # noqa: F811
    return scmbert_jax.load(multimodal_model)


@pytest.fixture(scope="module")
def model(young):
    """Noise on every number of the young model, so that whatever can matter to a prediction does."""
    return Model(replace(young.pretrained, params=shaken(young.pretrained.params)))


@pytest.fixture(scope="module")
def mdata():
    """The first 30 cells of each technical batch: RNA only, protein only, both, both."""
    whole = mudata.read_h5mu(example_path("pbmc_mosaic"))
    return whole[np.sort(np.concatenate([np.arange(first, first + 30) for first in (0, 400, 800, 1200)]))].copy()


@pytest.fixture(scope="module")
def rna(mdata):
    return mdata.mod["rna"].copy()


@pytest.fixture(scope="module")
def result(model, mdata):
    return translate_dataset(model.pretrained, mdata, target="protein")


# --- what is predicted -----------------------------------------------------------------------------------------------


def test_every_cell_with_the_source_has_a_value_and_a_deviation_of_every_feature(result, mdata, rna):
    assert result.values.shape == result.std.shape == (mdata.n_obs, 224)
    assert result.values.dtype == result.std.dtype == np.float32
    assert (result.source, result.target, result.scale) == ("rna", "protein", "clr")
    assert result.predicted.tolist() == np.isin(mdata.obs_names, rna.obs_names).tolist()
    assert 0 < result.predicted.sum() < mdata.n_obs
    assert np.isfinite(result.values[result.predicted]).all()
    assert (result.std[result.predicted] > 0).all()
    assert np.isnan(result.values[~result.predicted]).all()
    assert np.isnan(result.std[~result.predicted]).all()
    # Cells differ: a prediction is not the mean of training.
    assert result.values[result.predicted].std(axis=0).max() > 0.05


def test_of_a_cell_only_the_source_is_read(model, mdata, result):
    """Whatever the file says of the target changes no prediction by a bit."""
    other = mdata.copy()
    other.mod["adt"].X = sp.csr_matrix(other.mod["adt"].X.toarray()[::-1] + 3)
    found = translate_dataset(model.pretrained, other, target="protein")
    np.testing.assert_array_equal(found.values, result.values)
    np.testing.assert_array_equal(found.std, result.std)


def test_a_file_of_the_source_alone_gives_the_same_predictions(model, rna, mdata, result):
    alone = translate_dataset(model.pretrained, rna, target="protein")
    place = mdata.obs_names.get_indexer(rna.obs_names)
    np.testing.assert_allclose(alone.values, result.values[place], **TOLERANCE)


@pytest.mark.slow
def test_the_way_back_has_another_unit_and_its_target_sum(model, mdata):
    found = translate_dataset(model.pretrained, mdata, target="rna")
    assert (found.source, found.scale) == ("protein", "log1p")
    assert found.target_sum == pytest.approx(np.median(np.asarray(mdata.mod["rna"].X.sum(1))), rel=0.2)
    assert (found.values[found.predicted] >= 0).all()  # a negative binomial: log1p of counts


def test_a_prediction_is_of_the_feature_it_is_named_after(young, mdata):
    """Training starts where each feature is predicted by itself, so that a young model knows how abundant each is."""
    result = translate_dataset(young.pretrained, mdata, target="protein")
    protein = mdata.mod["adt"]
    counts = protein.X.toarray()
    clr = np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))
    found = pd.Series(np.nanmean(result.values, axis=0), index=result.feature_ids)
    measured = pd.Series(clr.mean(axis=0), index=protein.var_names)[result.feature_ids]
    assert np.corrcoef(found, measured)[0, 1] > 0.95


def test_the_same_call_gives_the_same_bits_and_leaves_the_cells_as_they_were(model, mdata, result):
    before = mdata.mod["rna"].X.copy()
    again = translate_dataset(model.pretrained, mdata, target="protein")
    np.testing.assert_array_equal(again.values, result.values)
    assert (before != mdata.mod["rna"].X).nnz == 0


def test_cells_in_another_order_and_other_batches_have_the_same_predictions(model, rna):
    few = rna[:9].copy()
    order = np.random.default_rng(0).permutation(9)
    usual = translate_dataset(model.pretrained, few, target="protein")
    other = translate_dataset(model.pretrained, few[order].copy(), target="protein", batch_size=7)
    # RNA of the example fits into the tokens of most cells, not of all: those are drawn by the place in the file.
    shown = np.asarray((few.X > 0).sum(1)).ravel() <= 48
    assert shown.sum() > 3
    np.testing.assert_allclose(
        np.abs(other.values - usual.values[order]).mean(), 0, atol=0.2, err_msg="predictions are of other cells"
    )


def test_features_are_decoded_in_parts_of_any_size(model, rna, monkeypatch):
    few = rna[:5].copy()
    whole = translate_dataset(model.pretrained, few, target="protein")
    monkeypatch.setattr(translate, "FEATURES_AT_A_TIME", 50)  # 224 features: four parts and one to be filled up
    parts = translate_dataset(model.pretrained, few, target="protein")
    np.testing.assert_allclose(parts.values, whole.values, **TOLERANCE)
    np.testing.assert_allclose(parts.std, whole.std, **TOLERANCE)


def test_draws_are_averaged_and_their_differences_add_to_the_deviation(model, rna):
    few = rna[:20].copy()
    single = [translate_dataset(model.pretrained, few, target="protein", seed=seed) for seed in (5, 6, 7)]
    drawn = translate_dataset(model.pretrained, few, target="protein", seed=5, num_draws=3)
    values = np.stack([one.values for one in single])
    assert values.std(axis=0).max() > 0.001, "the draws show the same tokens"
    np.testing.assert_allclose(drawn.values, values.mean(axis=0), **TOLERANCE)
    variance = np.mean([one.std**2 for one in single], axis=0) + values.var(axis=0)  # law of total variance
    np.testing.assert_allclose(drawn.std, np.sqrt(variance), **TOLERANCE)


def test_a_cell_without_counts_has_no_prediction(model, rna):
    emptied = rna[:10].copy()
    emptied.X = sp.csr_matrix(emptied.X.multiply(np.arange(10)[:, None] != 5))
    found = translate_dataset(model.pretrained, emptied, target="protein")
    assert np.flatnonzero(~found.predicted).tolist() == [5]


# --- features --------------------------------------------------------------------------------------------------------


def test_features_are_named_as_people_write_them_and_come_in_that_order_once(model, rna):
    few = rna[:5].copy()
    asked = ["CD19", "anti-human CD3", "cd19", "Hu.CD20_2H7", "cd3.1"]
    found = translate_dataset(model.pretrained, few, target="protein", features=asked)
    # The panel has two clones against CD3.
    assert found.feature_ids.tolist() == ["cd19", "cd3.1", "cd3.2", "cd20"]
    whole = translate_dataset(model.pretrained, few, target="protein")
    columns = [whole.feature_ids.tolist().index(name) for name in found.feature_ids]
    np.testing.assert_allclose(found.values, whole.values[:, columns], **TOLERANCE)
    np.testing.assert_allclose(found.std, whole.std[:, columns], **TOLERANCE)


def test_genes_are_found_by_symbol_alias_and_versioned_id(model, mdata):
    known = model.pretrained.feature_space.modalities["rna"]
    place = known.names.tolist().index("MS4A1")
    asked = [f"{known.ids[place]}.17", "IL8", "CD79B"]
    found = translate_dataset(model.pretrained, mdata[30:35].copy(), target="rna", features=asked)
    assert found.feature_names.tolist() == ["MS4A1", "CXCL8", "CD79B"]


def test_a_feature_the_model_does_not_know_is_named_with_what_was_probably_meant(model, rna):
    with pytest.raises(InputError, match=r"2 of the 3 protein features .*\(CD19x, nothing\).* cd19"):
        translate_dataset(model.pretrained, rna, target="protein", features=["cd3", "CD19x", "nothing"])
    with pytest.raises(InputError, match="no protein feature is asked for"):
        translate_dataset(model.pretrained, rna, target="protein", features=[])


@pytest.mark.slow
def test_antibodies_that_the_model_does_not_know_are_all_named_and_change_nothing(model, mdata):
    cells = mdata.mod["adt"][:20].copy()
    names = [f"panel_{letter}" for letter in "abcdefghijkl"]
    extra = anndata.AnnData(
        sp.csr_matrix(np.full((20, 12), 50, np.float32)), obs=cells.obs, var=pd.DataFrame(index=names)
    )
    wider = anndata.concat([cells, extra], axis=1, merge="first")
    translated = model.translate(wider, to="rna")
    # Antibodies get one spelling; the file's own is what is reported.
    assert translated.uns["scmbert"]["features_not_read"]["protein"].tolist() == names
    assert "12 features of the file are unknown" in translated.uns["scmbert"]["features"]["protein"]
    np.testing.assert_array_equal(translated.X, model.translate(cells, to="rna").X)


# --- as AnnData ------------------------------------------------------------------------------------------------------


def test_the_python_api_gives_an_anndata_that_says_what_it_is(model, mdata, result):
    found = model.translate(mdata, to="protein")
    assert found.obs_names.tolist() == mdata.obs_names.tolist()
    np.testing.assert_array_equal(found.X, result.values)
    np.testing.assert_array_equal(found.layers["std"], result.std)
    assert found.var_names.tolist() == result.feature_names.tolist()
    assert found.var["feature_id"].tolist() == result.feature_ids.tolist()
    assert set(found.var["feature_types"]) == {"Antibody Capture"}
    assert (
        found.obs["celltype"].tolist()
        == mdata.mod["rna"]
        .obs["celltype"]
        .reindex(mdata.obs_names)
        .fillna(mdata.mod["adt"].obs["celltype"].reindex(mdata.obs_names))
        .tolist()
    )
    said = found.uns["scmbert"]
    assert (said["translated_from"], said["translated_to"], said["scale"]) == ("rna", "protein", "clr")
    assert said["model_step"] == 1
    assert said["cells_without_prediction"] == 30
    assert said["trained_on"][0] == "Pairs: 400 cells in which an assay measured several modalities at once."


def test_features_that_share_a_name_are_told_apart_by_their_ids(model, rna):
    space = model.pretrained.feature_space
    known = space.modalities["protein"]
    names = known.names.copy()
    names[:2] = "same"
    twin = FeatureSpace({**space.modalities, "protein": replace(known, names=names)})
    found = Model(replace(model.pretrained, feature_space=twin)).translate(rna[:3].copy(), to="protein")
    assert found.var_names.is_unique
    assert found.var_names[:3].tolist() == [*known.ids[:2], known.names[2]]


# --- what a model cannot know ----------------------------------------------------------------------------------------


def told(model: Model, *, cells: dict | None = None, **options) -> PretrainedModel:
    """The model as if it had been trained otherwise: `options` of the objective, `cells` of its corpus."""
    pretrained = model.pretrained
    objectives = pretrained.config.objectives
    objective = replace(objectives.cross_modal_translation, **options)
    config = replace(pretrained.config, objectives=replace(objectives, cross_modal_translation=objective))
    provenance = pretrained.info["provenance"]
    information = {**provenance["information"], **({} if cells is None else {"cells": cells})}
    return replace(
        pretrained, config=config, info={**pretrained.info, "provenance": {**provenance, "information": information}}
    )


UNPAIRED = {"a/b1": {"rna": 100}, "a/b2": {"protein": 100}}


def test_a_model_that_was_not_trained_to_translate_is_not_asked(model, rna):
    with pytest.raises(InputError, match="cross_modal_translation"):
        translate_dataset(told(model, weight=0.0), rna, target="protein")


def test_a_modality_that_the_model_never_saw_is_no_target(model, rna):
    with pytest.raises(InputError, match=r"target 'atac': the model knows rna, protein"):
        translate_dataset(model.pretrained, rna, target="atac")


def test_a_direction_that_was_not_trained_is_refused(model, mdata):
    one_way = told(model, directions=("rna>protein",))
    with pytest.raises(InputError, match=r"target 'rna': the model was trained for rna>protein only"):
        translate_dataset(one_way, mdata, target="rna")
    with pytest.raises(InputError, match=r"'protein' to 'protein': the model predicts protein from rna"):
        translate_dataset(one_way, mdata, target="protein", source="protein")


def test_a_model_that_saw_no_pair_and_no_cycle_has_learned_nothing_to_tell(model, rna):
    with pytest.raises(InputError, match=r"both rna and protein, .*cycle"):
        translate_dataset(told(model, cells=UNPAIRED), rna, target="protein")


@pytest.mark.parametrize(
    "otherwise",
    [{"cells": UNPAIRED, "cycle_weight": 0.5}, {"cells": {"a/b1": {"rna+protein": 3}}}],
    ids=["cycle", "pairs"],
)
def test_pairs_or_the_cycle_are_enough_to_be_asked(model, rna, otherwise):
    assert translate_dataset(told(model, **otherwise), rna[:2].copy(), target="protein").predicted.all()


def test_data_without_the_source_are_refused_with_what_they_have(model, mdata):
    with pytest.raises(InputError, match=r"has protein; .*from rna"):
        translate_dataset(model.pretrained, mdata.mod["adt"].copy(), target="protein")


@pytest.mark.parametrize(("option", "name"), [({"num_draws": 0}, "num_draws 0"), ({"batch_size": 0}, "batch_size 0")])
def test_numbers_that_cannot_be_are_named(model, rna, option, name):
    with pytest.raises(ConfigError, match=name):
        translate_dataset(model.pretrained, rna, target="protein", **option)


# --- species and genome builds ---------------------------------------------------------------------------------------


def gene_symbols(organism: str, number: int) -> np.ndarray:
    table = load_gene_table(organism)
    return table.symbols[np.flatnonzero(table.reference & (table.symbols != "") & (table.tss > 0))[:number]]


REGIONS = np.array([f"chr1:{10_000 * place}-{10_000 * place + 500}" for place in range(1, 31)])


@pytest.fixture(scope="module")
def region_model() -> Model:
    """Human genes and regions of hg38; not trained, so that it is made in a second."""
    features = {"rna": map_genes(gene_symbols("human", 40), "human"), "atac": map_regions(REGIONS, "hg38")}
    space = FeatureSpace({name: features[name].features for name in MODALITIES if name in features})
    config = ExperimentConfig(
        modalities=ModalitiesConfig(
            rna=ModalityConfig(num_tokens=16),
            protein=ModalityConfig(),
            atac=ModalityConfig(num_tokens=8, likelihood="bernoulli"),
        ),
        model=ModelConfig(embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=16),
        objectives=ObjectivesConfig(cross_modal_translation=CrossModalTranslationConfig(weight=1.0)),
    )
    definition = ModelDefinition(config, space.layout({}))
    provenance = {
        "corpus_fingerprint": "",
        "feature_space_hash": space.content_hash,
        "git_commit": "",
        "versions": {"scmbert_jax": ""},
    }
    params = jax.jit(definition.init)(jax.random.key(0))
    info = {"step": 0, "provenance": provenance}
    return Model(PretrainedModel(config, space, definition, params, definition.constants, info))


def cells_of(names: np.ndarray, **uns: str) -> anndata.AnnData:
    counts = np.random.default_rng(0).poisson(1.0, (6, len(names))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(6)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=names.astype(object)), uns=dict(uns))


def test_regions_are_predicted_as_probabilities_with_the_deviation_of_a_coin(region_model):
    found = region_model.translate(cells_of(gene_symbols("human", 40)), to="atac")
    assert found.var_names.tolist() == sorted(REGIONS)
    assert found.uns["scmbert"]["scale"] == "probability"
    assert ((found.X > 0) & (found.X < 1)).all()
    np.testing.assert_allclose(found.layers["std"], np.sqrt(found.X * (1 - found.X)), rtol=1e-3)


def test_regions_are_found_in_any_spelling(region_model):
    asked = ["chr1-20000-20500", "chr1_10000_10500"]
    found = region_model.translate(cells_of(gene_symbols("human", 40)), to="atac", features=asked)
    assert found.var_names.tolist() == ["chr1:20000-20500", "chr1:10000-10500"]


@pytest.mark.parametrize("target", ["atac", "rna"])
def test_another_species_is_refused_though_the_file_may_not_tell(region_model, target):
    cells = cells_of(REGIONS if target == "rna" else gene_symbols("human", 40))
    with pytest.raises(InputError, match=rf"organism mouse: .*{target} of .*human"):
        region_model.translate(cells, to=target, organism="mouse")


def test_genes_of_another_species_are_refused(region_model):
    with pytest.raises(InputError, match="rna features are gene:mouse, the model knows gene:human"):
        region_model.translate(cells_of(gene_symbols("mouse", 40)), to="atac")


def test_regions_of_another_build_are_not_promised(region_model):
    """The file has genes only, so that nothing in it contradicts."""
    with pytest.raises(InputError, match="assembly hg19: the model predicts regions of hg38"):
        region_model.translate(cells_of(gene_symbols("human", 40)), to="atac", assembly="hg19")
    same = region_model.translate(cells_of(gene_symbols("human", 40)), to="atac", assembly="GRCh38")
    assert same.n_vars == len(REGIONS)


@pytest.mark.parametrize("genome", ["hg19", "mm10"])
def test_regions_of_another_build_are_not_read(region_model, genome):
    with pytest.raises(InputError, match=rf"genome field says '{genome}', but the assembly was given as hg38"):
        region_model.translate(cells_of(REGIONS, genome=genome), to="rna")
    with pytest.raises(InputError, match=rf"organism|{genome}"):
        region_model.translate(cells_of(REGIONS, genome=genome), to="rna", assembly=genome)
