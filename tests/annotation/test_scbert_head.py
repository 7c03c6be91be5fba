"""scBERT's fine-tuning as a method: a head on the states of all genes. 24 genes, a model of 8 numbers per token."""

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, scmbert, scmbert_ok, shaken

from data_pipelines.features.gene_tables import load_gene_table
from scmbert_jax.annotation.annotator import load_annotator
from scmbert_jax.annotation.fine_tuning import FineTuningOptions
from scmbert_jax.annotation.fit import FitOptions, fit
from scmbert_jax.annotation.predict import predict
from scmbert_jax.annotation.scbert_head import with_gene_head
from scmbert_jax.annotation.trained_part import TrainedPart
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.pretrained import load_model
from scmbert_jax.tasks.embed import embedding_function
from scmbert_jax.tasks.model_cells import open_model_cells

MADE = REPOSITORY / "tests" / "torch_models" / "performer_lm"


@pytest.fixture(scope="module")
def genes() -> list[str]:
    table = load_gene_table("human")
    symbols, times = np.unique(table.symbols, return_counts=True)
    return symbols[(times == 1) & np.char.isalnum(symbols)][:24].tolist()


@pytest.fixture(scope="module")
def model(genes, tmp_path_factory):
    """A model without the head."""
    folder = tmp_path_factory.mktemp("scbert")
    (folder / "genes.tsv").write_text("\n".join(genes))
    scmbert_ok("import", "scbert", MADE / "checkpoint.pth", "--genes", folder / "genes.tsv", "-o", folder / "model")
    return load_model(folder / "model")


@pytest.fixture(scope="module")
def cells(genes) -> ad.AnnData:
    """Two types, which differ in half of the genes."""
    rng, of_type = np.random.default_rng(0), np.arange(60) % 2
    rates = np.where((np.arange(24) < 12) == (of_type[:, None] == 0), 6.0, 0.5)
    obs = pd.DataFrame({"cell_type": np.array(["A", "B"])[of_type]}, index=[f"c{i}" for i in range(60)])
    return ad.AnnData(rng.poisson(rates).astype(np.float32), obs, pd.DataFrame(index=genes))


@pytest.fixture(scope="module")
def fitted(model, cells):
    tuning = FineTuningOptions(num_steps=20, batch_size=16, validate_every=10, learning_rate=3e-3)
    return fit(model, cells, FitOptions(method="scbert", label_key="cell_type", fine_tuning=tuning))


def test_the_head_is_one_number_of_each_gene_then_two_layers(model, cells):
    with_head = with_gene_head(model, seed=0)
    with_head.params["gene_head"] = shaken(with_head.params["gene_head"])
    own = jax.tree.map(np.asarray, with_head.params["gene_head"])
    opened = open_model_cells(with_head, cells)
    _, batch, _ = next(opened.batches(None, 4, 0))
    found = embedding_function(with_head, "cell")(batch)

    bound, tokens = with_head.definition.merge(with_head.params, with_head.constants), pack_tokens(batch)
    states = np.asarray(bound.encode(bound.feature_table(), tokens))  # [B, 1 + S, D]
    z = np.maximum(states @ own["of_state"][:, 0] + own["of_state_bias"], 0)
    of_genes = np.zeros((len(z), 24))
    np.put_along_axis(of_genes, np.asarray(tokens.feature_ids)[:, :24], z[:, 1:25], axis=1)
    inputs, matrix = np.column_stack([of_genes, z[:, 0]]), np.concatenate([own["features"][:24], own["cls"]])
    x = np.maximum(inputs @ matrix + own["features_bias"], 0)
    wanted = np.maximum(x @ own["layers"][0] + own["biases"][0], 0)
    assert (found.shape, with_head.config.model.cell_dim) == ((4, 128), 128)
    assert (wanted > 0.1).mean() > 0.2
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_block_before_the_last_the_final_norm_and_the_head_are_trained(model):
    with_head = with_gene_head(model, seed=0)
    part = TrainedPart.of("scbert", with_head.definition)
    merged = part.merged(with_head.params, shaken(part.start(with_head.params, seed=0)))
    changed = jax.tree.map(lambda before, after: ~np.isclose(before, after), with_head.params, merged)
    assert {name for name, own in changed.items() if any(leaf.any() for leaf in jax.tree.leaves(own))} == {
        "encoder",
        "gene_head",
    }
    for leaf in jax.tree.leaves(changed["encoder"]["blocks"]):
        assert not leaf[1:].any()  # of two blocks, the first is the last but one
    assert changed["encoder"]["blocks"]["mlp_in"][0].any()
    assert changed["encoder"]["final_norm"]["scale"].all()
    with pytest.raises(ConfigError, match="no gene head"):
        TrainedPart.of("scbert", model.definition)


@pytest.mark.slow
def test_it_learns_the_types_and_comes_back_from_its_folder(fitted, cells, tmp_path):
    held = fitted.info["held_out"]
    assert held["accuracy"] > 0.9
    losses = [row["loss"] for row in fitted.info["history"][1:]]
    assert losses[-1] < losses[0]
    before = predict(fitted, cells)
    fitted.save(tmp_path / "annotator")
    again = load_annotator(tmp_path / "annotator")
    assert again.representation.model.config.model.gene_head == (512, 128)
    np.testing.assert_array_equal(predict(again, cells).probabilities, before.probabilities)


@pytest.mark.slow
def test_cells_of_another_list_of_genes_are_refused(model, fitted, cells):
    fewer = cells[:, :20].copy()  # 20 of 24 genes: below 90%
    with pytest.raises(InputError, match=r"measures 20 of the model's 24 features, 83%.*below 90%"):
        fit(model, fewer, FitOptions(method="scbert", label_key="cell_type"))
    found = predict(fitted, fewer)
    assert set(found.status) == {"unsupported"}
    assert found.why_unsupported == {"less than 90% of its rna features measured": 60}


def test_models_that_the_head_cannot_be_put_on_are_refused(pbmc_model, model, tmp_path):
    with pytest.raises(ConfigError, match=r"models of RNA alone without a linear path.*it reads .*protein"):
        with_gene_head(load_model(pbmc_model), seed=0)
    ran = scmbert(
        "pretrain", "tiny", "--corpus", tmp_path, "--run-dir", tmp_path / "run", "--model.gene-head", "512", "128"
    )
    assert ran.code != 0
    assert "model.gene_head: no objective trains it; scmbert annotate fit --method scbert does" in ran.err
    assert with_gene_head(with_gene_head(model, 0), 1).params["gene_head"]["cls"].shape == (1, 512)
