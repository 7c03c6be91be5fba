"""A model trained with embeddings of regions reads and predicts regions that its training has not seen."""

from dataclasses import replace

import anndata
import jax
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, shaken

import scmbert_jax
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features.feature_embeddings import save_feature_embeddings
from data_pipelines.genome.region_embeddings import REGION_EMBEDDINGS, RegionEmbeddings, read_region_embeddings
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import CheckpointError, InputError
from scmbert_jax.outputs import MODEL, RUN, foreign_names
from scmbert_jax.random_keys import init_key
from scmbert_jax.run_regions import run_region_vectors
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import feature_table
from scmbert_jax.tasks.new_regions import with_regions

NUM_NEW = 15
OPTIONS = {
    "train.num_steps": 3,
    "data.global_batch_size": 16,
    "optimizer.warmup_steps": 1,
    **{f"model.{name}": 16 for name in ("embed_dim", "mlp_dim")},
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.head_dim": 8,
    "modalities.rna.num_tokens": 12,
    "modalities.protein.num_tokens": 0,
    "modalities.atac.num_tokens": 16,
    # Zeros are drawn by the number of a feature, which is another one among other regions.
    "modalities.atac.zero_fraction": 0.0,
    "modalities.rna.zero_fraction": 0.0,
    "objectives.masked_modeling.weight": 0.0,
    "objectives.cross_modal_translation.weight": 1.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("regions")


@pytest.fixture(scope="module")
def mdata():
    """160 cells of four types with 30 genes and 60 regions; the last 15 in random order are new."""
    made = synthetic_cells(160, 30, 0, 60, num_batches=1, mosaic=False, seed=3).to_mudata()
    return mudata.MuData({name: made.mod[name] for name in ("rna", "atac")})


@pytest.fixture(scope="module")
def regions(mdata):
    return np.random.default_rng(0).permutation(mdata.mod["atac"].var_names.to_numpy(str))


@pytest.fixture(scope="module")
def embeddings(mdata, regions):
    """What is known of a region: roughly how open it is in each type, seen through a random turn, on odd scales."""
    atac, rng = mdata.mod["atac"], np.random.default_rng(1)
    kinds = mdata.mod["rna"].obs["cell_type"].to_numpy(str)
    counts = (atac[:, regions].X.toarray() > 0).astype(float)
    opened = np.stack([counts[kinds == kind].mean(0) for kind in np.unique(kinds)], axis=1)
    turned = np.log(opened + 0.05) @ rng.normal(size=(opened.shape[1], 6))
    return (turned + rng.normal(0, 0.05, turned.shape)).astype(np.float32) * [1, 10, 1, 1, 0.1, 1] + [0, 50, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def table(folder, regions, embeddings):
    save_feature_embeddings(folder / "all.npz", regions, embeddings)
    return folder / "all.npz"


@pytest.fixture(scope="module")
def known(mdata, regions):
    return mudata.MuData({"rna": mdata.mod["rna"], "atac": mdata.mod["atac"][:, regions[:-NUM_NEW]].copy()})


@pytest.fixture(scope="module")
def corpus(folder, known):
    scmbert_jax.build_corpus(folder / "corpus", [known], block_size=16)
    return folder / "corpus"


@pytest.fixture(scope="module")
def young(folder, corpus, table, run_scmbert):
    options = OPTIONS | {"model.region_embeddings": table}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    trained = ("pretrain", "tiny", "--corpus", corpus, "--run-dir", folder / "run", "--reader", "threads", *given)
    ran = run_scmbert(*map(str, trained))
    assert ran.code == 0, ran.err
    assert f"45 of 45 regions have an embedding of 6 numbers in {table}" in ran.err
    return scmbert_jax.export(folder / "run", folder / "model").pretrained


@pytest.fixture(scope="module")
def model(young):
    """Noise on every number, so that whatever can matter does."""
    return scmbert_jax.Model(replace(young, params=shaken(young.params)))


def table_of(model):
    return np.asarray(feature_table(model.definition, model.params, model.constants))


def rows_by_region(model):
    first, features = model.feature_space.slices["atac"][0], model.feature_space.modalities["atac"]
    rows = table_of(model)[first : first + len(features)]
    return {region: rows[place] for place, region in enumerate(features.ids.tolist())}


def test_regions_of_training_stay_what_they_were(model, table, known, regions):
    more = model.with_regions(table)
    before, after = rows_by_region(model.pretrained), rows_by_region(more.pretrained)
    assert set(before) == set(regions[:-NUM_NEW])
    assert set(after) == set(regions)
    for region, row in before.items():
        np.testing.assert_allclose(after[region], row, rtol=1e-5, atol=1e-6)
    with pytest.warns(scmbert_jax.errors.ScmbertWarning, match="of the model's 60 features"):
        found = more.embed(known)
    np.testing.assert_allclose(found, model.embed(known), rtol=1e-3, atol=1e-3)
    # Asked of the same regions alone, in another order of the table, it is the same model to the last bit of its rows.
    rows = np.random.default_rng(4).permutation(len(regions) - NUM_NEW)
    read = read_region_embeddings(table)
    same = model.with_regions(RegionEmbeddings(read.regions[rows], read.vectors[rows]))
    number = model.pretrained.feature_space.num_features
    np.testing.assert_array_equal(table_of(same.pretrained)[:number], table_of(model.pretrained)[:number])
    np.testing.assert_array_equal(same.embed(known), model.embed(known))


def test_the_row_of_a_new_region_is_the_projection_of_its_embedding_beside_its_links(model, table, regions, embeddings):
    more = with_regions(model.pretrained, table)
    found, params = rows_by_region(more), model.pretrained.params
    own = params["region_rows"]
    x = (embeddings - np.asarray(own["centre"])) * np.asarray(own["scale"])
    projected = x @ np.asarray(params["region_rows"]["projection"])
    genes = np.asarray(params["table"]["learned"])
    space = more.feature_space
    for place in range(len(regions) - NUM_NEW, len(regions)):
        feature = int(space.modalities["atac"].index_of([regions[place]])[0])
        linked = space.modalities["rna"].index_of(list(space.modalities["atac"].links[feature]))
        linked = linked[linked >= 0]
        heard = genes[linked].mean(0) @ np.asarray(params["table"]["link_projections"]["atac"]) if len(linked) else 0.0
        np.testing.assert_allclose(found[regions[place]], projected[place] + heard, rtol=1e-3, atol=1e-3)


def test_new_regions_are_predicted_by_their_embeddings_alone(young, table, mdata, regions, embeddings):
    """Young: what is predicted of a region is how open it is, which for a new one only its embedding says."""
    new = regions[-NUM_NEW:]
    model = scmbert_jax.Model(young)
    found = model.with_regions(table).translate(mdata, to="atac", features=new)
    assert found.var_names.tolist() == new.tolist()
    truth = np.asarray((mdata.mod["atac"][:, new].X > 0).mean(0)).ravel()
    assert np.corrcoef(found.X.mean(0), truth)[0, 1] > 0.8
    # With the embeddings of others it is wrong: nothing else says it.
    moved = embeddings.copy()
    moved[-NUM_NEW:] = embeddings[-NUM_NEW:][::-1]
    wrong = model.with_regions(RegionEmbeddings(regions, moved)).translate(mdata, to="atac", features=new)
    np.testing.assert_allclose(wrong.X[:, ::-1].mean(0), found.X.mean(0), rtol=0.05)
    # What the file has of them is not looked at.
    other = mudata.MuData({"rna": mdata.mod["rna"], "atac": mdata.mod["atac"].copy()})
    other.mod["atac"].X = sp.csr_matrix(other.mod["atac"].X.toarray()[::-1] * 3)
    again = model.with_regions(table).translate(other, to="atac", features=new)
    np.testing.assert_array_equal(again.X, found.X)


def test_cells_are_read_by_regions_that_training_has_not_seen(model, mdata, regions, table, folder, embeddings):
    """Other people's peaks: none of them is one of the training's."""
    new = mdata.mod["atac"][:, regions[-NUM_NEW:]].copy()
    with pytest.raises(InputError, match="none of its 15 atac features is among the model's 45"):
        model.embed(new, assembly="hg38")
    read = read_region_embeddings(table)
    theirs = RegionEmbeddings(read.regions[-NUM_NEW:], read.vectors[-NUM_NEW:], "theirs.npz")
    found = model.with_regions(theirs).embed(new, assembly="hg38")
    counted = np.asarray(new.X.sum(1)).ravel() > 0
    assert np.isfinite(found[counted]).all()
    assert found[counted].std(axis=0).max() > 0.01
    changed = RegionEmbeddings(theirs.regions, theirs.vectors[::-1], "theirs.npz")
    assert np.abs(model.with_regions(changed).embed(new, assembly="hg38") - found)[counted].max() > 0.01


def test_counts_of_regions_that_are_held_out_reach_neither_corpus_nor_model(folder, mdata, regions, table):
    """Held out by a catalogue of the others (FILE?regions=): two files that differ only there give the same corpus."""
    inside = pd.Series(regions[:-NUM_NEW]).str.extract(r"(chr\w+):(\d+)-(\d+)")
    (folder / "train.bed").write_text("".join("\t".join(row) + "\n" for row in inside.to_numpy(str)))
    corpora = []
    for name, factor in (("one", 1), ("other", 7)):
        atac = mdata.mod["atac"][:, regions].copy()
        counts = atac.X.toarray()
        counts[:, -NUM_NEW:] = (counts[:, -NUM_NEW:] * factor)[:: -1 if factor > 1 else 1]
        changed = anndata.AnnData(sp.csr_matrix(counts), atac.obs, atac.var, uns=atac.uns)
        changed.write_h5ad(folder / f"{name}.h5ad")
        options = f"?regions={folder / 'train.bed'}"
        scmbert_jax.build_corpus(folder / name, [f"{folder / name}.h5ad{options}"], assembly="hg38", block_size=16)
        corpora.append(open_corpus(folder / name))
    assert set(corpora[0].feature_space.modalities["atac"].ids) == set(regions[:-NUM_NEW])
    blocks = [[corpus.read_block(number) for number in range(corpus.num_blocks)] for corpus in corpora]
    for one, other in zip(*blocks, strict=True):
        np.testing.assert_array_equal(one.modalities["atac"].feature_ids, other.modalities["atac"].feature_ids)
        np.testing.assert_array_equal(one.modalities["atac"].counts, other.modalities["atac"].counts)


def test_a_run_goes_on_with_its_own_copy_and_with_no_other_table(folder, young, table, regions, embeddings):
    said, space, gone = [], young.feature_space, folder / "gone.npz"

    def vectors(path):
        config = replace(young.config, model=replace(young.config.model, region_embeddings=str(path)))
        return run_region_vectors(config, space, folder / "run", said.append)

    np.testing.assert_array_equal(vectors(gone), young.definition.layout.region_vectors)
    assert said == [f"{gone}: no such file; the run continues with its own copy"]
    rows = np.random.default_rng(2).permutation(len(regions))
    save_feature_embeddings(gone, regions[rows], embeddings[rows])
    np.testing.assert_array_equal(vectors(gone), vectors(table))
    save_feature_embeddings(gone, regions, embeddings + 1)
    with pytest.raises(CheckpointError, match="started with other embeddings of its regions"):
        vectors(gone)


def test_run_and_model_folders_know_the_embeddings_as_their_own(folder, young):
    assert foreign_names(folder / "run", RUN) == foreign_names(folder / "model", MODEL) == []
    assert (folder / "model" / REGION_EMBEDDINGS).is_file()


def test_projection_is_trained_and_a_learned_row_only_where_it_is_asked_for(young, embeddings):
    seen, own = embeddings[:-NUM_NEW], young.params["region_rows"]
    np.testing.assert_allclose(own["centre"], seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(own["scale"], 1 / seen.std(0) / np.sqrt(6), rtol=1e-4)
    first = jax.jit(young.definition.init)(init_key(young.config.seed))["region_rows"]
    assert np.abs(own["projection"] - first["projection"]).max() > 1e-5
    both = replace(young.config, model=replace(young.config.model, region_rows="both"))
    definition = ModelDefinition(both, young.definition.layout)
    params = young.params
    rows = slice(*young.feature_space.slices["atac"])
    more = {**params, "table": {**params["table"], "learned": np.asarray(params["table"]["learned"]).copy()}}
    more["table"]["learned"][rows] += 1.0
    for own, moves in ((young.definition, 0.0), (definition, 1.0)):
        change = feature_table(own, more, young.constants) - feature_table(own, params, young.constants)
        np.testing.assert_allclose(np.asarray(change)[rows], moves, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, v: (r, v[:, :3]), "embeddings of 3 numbers; the model was trained with 6"),
        (lambda r, v: (r, v[::-1]), "says something else of 45 of the 45 regions .*another order"),
        (lambda r, v: (np.append(r[:-1], "chr1:999000000-999000100"), v), "do not lie in hg38.*another assembly"),
        (lambda r, v: (np.append(r[:-1], r[0]), v), "region .* is there twice"),
        (lambda r, v: (r, np.where(np.arange(len(v))[:, None] == 2, np.nan, v)), "is not finite"),
        (lambda r, v: (r[:5], v), r"5 regions and vectors of shape \(60, 6\)"),
    ],
)
def test_tables_that_do_not_fit_the_model_are_refused(model, regions, embeddings, change, message):
    with pytest.raises(InputError, match=message):
        with_regions(model.pretrained, RegionEmbeddings(*change(regions, embeddings)))


def test_tables_that_do_not_fit_the_data_or_are_none_are_refused(folder, young, regions, embeddings, table):
    elsewhere = RegionEmbeddings(np.array(["chr2:1-9"]), embeddings[:1], "peaks.npz")
    with pytest.raises(InputError, match=r"peaks.npz: none of its 1 regions, such as chr2:1-9, is among the 45"):
        elsewhere.of_space(young.feature_space)
    save_feature_embeddings(folder / "genes.npz", np.array(["CD3E"]), embeddings[:1])
    with pytest.raises(InputError, match="'CD3E' is no region such as chr1:100-200"):
        read_region_embeddings(folder / "genes.npz")
    (folder / "broken.npz").write_bytes(table.read_bytes()[:99])
    with pytest.raises(InputError, match=r"broken.npz: cannot be read"):
        read_region_embeddings(folder / "broken.npz")


def test_the_command_line_takes_them_and_a_model_without_is_not_asked(folder, young, mdata, table, regions):
    mdata.mod["atac"][:, regions[-NUM_NEW:]].copy().write_h5ad(folder / "new.h5ad")
    mdata.mod["rna"].write_h5ad(folder / "rna.h5ad")
    options = ("--region-embeddings", table, "--assembly", "hg38", "--allow-low-coverage")
    ran = scmbert("embed", folder / "model", folder / "new.h5ad", "-o", folder / "embedded.h5ad", *options)
    assert ran.code == 0, ran.err
    assert "60 regions by" in ran.err
    assert "of which training had 45" in ran.err
    assert np.isfinite(anndata.read_h5ad(folder / "embedded.h5ad").obsm["X_scmbert"]).any()
    asked = ("--to", "atac", "--features", regions[-1], "--region-embeddings", table)
    ran = scmbert("translate", folder / "model", folder / "rna.h5ad", "-o", folder / "translated.h5mu", *asked)
    assert ran.code == 0, ran.err
    plain = replace(young, definition=replace_layout(young))
    with pytest.raises(InputError, match=r"trained without embeddings of regions.*--model.region-embeddings"):
        with_regions(plain, table)


def replace_layout(model):
    """The definition of the same model as it would be without embeddings."""
    config = replace(model.config, model=replace(model.config.model, region_embeddings=""))
    return ModelDefinition(config, replace(model.definition.layout, region_vectors=None))
