"""A checkpoint that performer-pytorch made becomes a model with the same numbers, and is written back bit for bit.

`performer_lm` was written by peers/scbert_peer.py (make FOLDER 24 8 2 2 8 3) with torch 2.13 and performer-pytorch
1.1.4; `fine_tuned` beside it (fine_tuned FOLDER 16 8 3) with torch 2.14. Where $SCMBERT_TORCH_PYTHON names a Python
that has both, a nightly test compares at scBERT's own sizes.
"""

import json
import os
import pickle
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, XLA_DEFAULT, scmbert, scmbert_ok

from data_pipelines.features.gene_tables import load_gene_table
from scmbert_jax.batch import CellBatch, ModalityTokens
from scmbert_jax.config import load_config
from scmbert_jax.errors import ConfigError
from scmbert_jax.experiment_files import load_experiment
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.pretrained import load_model
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.torch_models import scbert
from scmbert_jax.torch_models.torch_file import read_state_dict, write_state_dict

MADE = Path(__file__).parent / "performer_lm"
PEER = REPOSITORY / "peers" / "scbert_peer.py"


def gene_symbols(number: int) -> list[str]:
    """In an order that is not that of their ids."""
    genes = load_gene_table("human")
    symbols, times = np.unique(genes.symbols, return_counts=True)
    known = symbols[(times == 1) & np.char.isalnum(symbols)]
    return np.random.default_rng(0).permutation(known)[:number].tolist()


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """The checkpoint as a model folder, its genes beside it. Not to be changed."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "genes.tsv").write_text("".join(f"{name}\n" for name in gene_symbols(24)))
    scmbert_ok("import", "scbert", MADE / "checkpoint.pth", "--genes", folder / "genes.tsv", "-o", folder / "model")
    return folder


def answers_of_folder(folder: Path, tokens: np.ndarray, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    model = load_model(folder)
    place = {name: row for row, name in enumerate(model.feature_space.modalities["rna"].names.tolist())}
    return answers(model.definition, model.params, model.constants, tokens, np.array([place[name] for name in names]))


def batch_of(tokens: np.ndarray, rows: np.ndarray) -> tuple[CellBatch, jax.Array, np.ndarray]:
    """scBERT's tokens [B, G + 1] as a batch here; which of its tokens [B, G] are masked; gene i of it is order[i]."""
    masked, bins = tokens[:, :-1] == 6, tokens[:, :-1] % 6
    number, num_genes = bins.shape
    order = np.argsort(rows)
    # 2^bin - 1 of a library of 10,000 is the smallest relative expression of a bin.
    of_rna = ModalityTokens(
        feature_ids=np.tile(rows[order].astype(np.int32), (number, 1)),
        counts=(2 ** bins[:, order] - 1).astype(np.int32),
        lengths=np.full(number, num_genes, np.int32),
        library_size=np.full(number, 1e4, np.float32),
        measured=np.ones(number, bool),
        num_expressed=(bins > 0).sum(axis=1).astype(np.int32),
        num_measured=np.full(number, num_genes, np.int32),
        mean_log_count=np.ones(number, np.float32),
    )
    index = np.arange(number, dtype=np.int32)
    return CellBatch({"rna": of_rna}, {}, index, index), jnp.asarray(masked[:, order]), order


def answers(
    definition: ModelDefinition, params: dict, constants: dict, tokens: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, G + 1, 7] and encodings [B, G + 1, D] of scBERT's tokens [B, G + 1], in its order: the genes, whose
    rows of the feature table are int [G], then the last position."""
    batch, masked, order = batch_of(tokens, rows)

    def told(params, constants, batch, hidden):
        bound = definition.merge(params, constants)
        states = bound.encode(bound.feature_table(), pack_tokens(batch), hidden)
        return bound.token_head.logits("rna", states), states

    told = jax.jit(told, compiler_options=XLA_DEFAULT)
    logits, states = told(params, constants, batch, masked)
    back = np.concatenate([1 + np.argsort(order), [0]])
    return np.asarray(logits)[:, back], np.asarray(states)[:, back]


def assert_the_same(found: tuple[np.ndarray, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    logits, encodings = found
    np.testing.assert_allclose(logits, wanted["logits"], atol=1e-4)
    theirs = wanted["encodings"]
    cosine = (encodings * theirs).sum(-1) / np.linalg.norm(encodings, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() >= 0.99999


def test_logits_and_encodings_are_those_of_performer_pytorch(imported):
    wanted = dict(np.load(MADE / "answers.npz"))
    assert_the_same(answers_of_folder(imported / "model", wanted["tokens"], gene_symbols(24)), wanted)
    # Each of what differs from the usual model here is needed.
    assert np.abs(wanted["logits"]).max() > 1
    config = load_config(imported / "model" / "config.json").model
    for name, value in (("activation", "gelu"), ("norm_epsilon", 1e-5), ("feature_rows", "frozen")):
        assert getattr(config, name) == value


@pytest.mark.slow
def test_the_embedding_of_raw_counts_is_what_performer_has_at_its_last_position(imported, tmp_path):
    wanted = np.load(MADE / "answers.npz")
    tokens = wanted["tokens"][0, :-1]  # of the cell of which nothing is masked; its first gene is in the last bin
    counts = 2**tokens - 1
    counts[0] += 10_000 - counts.sum()  # a library of 10,000, as it is taken over the genes of the model
    cells = ad.AnnData(
        np.stack([counts, counts]).astype(np.float32), var=pd.DataFrame(index=gene_symbols(24)), obs={"n": [0, 1]}
    )
    cells.obs_names = ["a", "b"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    scmbert_ok("embed", imported / "model", tmp_path / "cells.h5ad", "-o", tmp_path / "out.h5ad")
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    theirs = wanted["encodings"][0, -1]
    for ours in found.obsm["X_scmbert"]:
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert any("Imported from checkpoint.pth" in told for told in found.uns["scmbert"]["trained_on"])


def test_what_was_imported_is_exported_bit_for_bit(imported, tmp_path):
    scmbert_ok("export-torch", "scbert", imported / "model", tmp_path / "back.pth", "--genes", tmp_path / "back.tsv")
    assert (tmp_path / "back.tsv").read_text() == (imported / "genes.tsv").read_text()
    before, after = read_state_dict(MADE / "checkpoint.pth"), read_state_dict(tmp_path / "back.pth")
    assert before.keys() == after.keys()
    assert any(name.startswith("performer.proj_updater.instance") for name in before)
    for name, array in before.items():
        if name != "performer.proj_updater.calls_since_last_redraw":
            np.testing.assert_array_equal(after[name], array, err_msg=name)


@pytest.mark.slow
def test_a_model_of_the_experiment_says_the_same_in_the_layout():
    """Its directions are drawn, its `[CLS]` and a vector of its modality are learned."""
    base = load_experiment("scbert")
    small = {"embed_dim": 8, "num_layers": 2, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
    rna = replace(base.modalities.rna, num_tokens=24)
    config = replace(base, model=replace(base.model, **small), modalities=replace(base.modalities, rna=rna), seed=3)
    layout = FeatureLayout({"rna": (0, 24)})
    own = ModelDefinition(config, layout)
    rng, rows = np.random.default_rng(0), np.random.default_rng(1).permutation(24)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), own.abstract_params)
    state = scbert.state_dict(own, params, own.constants, rows)
    theirs = ModelDefinition(scbert.config(state, {}), layout)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), theirs.abstract_params)
    back = scbert.parameters(state, theirs, zeros, rows, {})
    assert not back["embedding"]["modality"].any()
    tokens = np.load(MADE / "answers.npz")["tokens"]
    wanted = answers(own, params, own.constants, tokens, rows)
    found = answers(theirs, back, theirs.constants, tokens, rows)
    assert np.abs(wanted[0]).max() > 0.5
    for ours, same in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, same, atol=2e-5)


@pytest.mark.slow
def test_names_that_are_no_genes_keep_their_rows_and_come_back_in_their_places(tmp_path):
    names = gene_symbols(24)
    names[3], names[20] = (
        "NOT-A-GENE",
        load_gene_table("human").ids[load_gene_table("human").symbols.tolist().index(names[7])],
    )  # the second name of a gene that is there
    genes = tmp_path / "genes.tsv"
    genes.write_text("".join(f"{name}\tand more\n" for name in names))
    ran = scmbert("import", "scbert", MADE / "checkpoint.pth", "--genes", genes, "-o", tmp_path / "model")
    assert ran.code == 0, ran.err
    assert f"2 of 24 names are no human gene, or a second name of one (NOT-A-GENE, {names[20]})" in ran.err
    scmbert_ok("export-torch", "scbert", tmp_path / "model", tmp_path / "back.pth", "--genes", tmp_path / "back.tsv")
    assert (tmp_path / "back.tsv").read_text().split() == names
    name = "pos_emb.emb.weight"
    np.testing.assert_array_equal(
        read_state_dict(tmp_path / "back.pth")[name], read_state_dict(MADE / "checkpoint.pth")[name]
    )


@pytest.fixture(scope="module")
def fine_tuned(imported) -> Path:
    """`fine_tuned.pth`, that checkpoint with scBERT's head (16 and 8 numbers, 3 types), as a model folder."""
    genes = imported / "genes.tsv"
    ran = scmbert("import", "scbert", MADE / "fine_tuned.pth", "--genes", genes, "-o", imported / "fine_tuned")
    assert ran.code == 0, ran.err
    assert "its last layer is left out" in ran.err
    return imported / "fine_tuned"


def test_the_cell_embedding_of_a_fine_tuned_checkpoint_is_what_its_last_layer_reads(fine_tuned):
    model, wanted = load_model(fine_tuned), np.load(MADE / "fine_tuned.npz")
    place = {name: row for row, name in enumerate(model.feature_space.modalities["rna"].names.tolist())}
    batch, masked, _ = batch_of(wanted["tokens"], np.array([place[name] for name in gene_symbols(24)]))

    def told(params, constants, batch, hidden):
        bound, tokens = model.definition.merge(params, constants), pack_tokens(batch)
        return bound.gene_head(bound.encode(bound.feature_table(), tokens, hidden), tokens)

    vectors = jax.jit(told, compiler_options=XLA_DEFAULT)(model.params, model.constants, batch, masked)
    assert wanted["vectors"].max() > 0.1
    np.testing.assert_allclose(vectors, wanted["vectors"], atol=1e-5)
    last = read_state_dict(MADE / "fine_tuned.pth")
    logits = np.asarray(vectors) @ last["to_out.fc3.weight"].T + last["to_out.fc3.bias"]
    np.testing.assert_allclose(logits, wanted["logits"], atol=1e-5)
    with pytest.raises(ConfigError, match=r"model\.gene_head is \[16, 8\], expected \[\]"):
        scbert.state_dict(model.definition, model.params, model.constants, np.arange(24))


def test_a_list_or_a_checkpoint_that_does_not_fit_is_refused_with_what_to_do(imported, tmp_path):
    genes, names = imported / "genes.tsv", gene_symbols(24)
    state = read_state_dict(MADE / "checkpoint.pth")

    def refused(*words: str, checkpoint: Path = MADE / "checkpoint.pth", genes: Path = genes, layout="scbert") -> None:
        ran = scmbert("import", layout, checkpoint, "--genes", genes, "-o", tmp_path / "model")
        assert ran.code != 0
        assert not (tmp_path / "model").exists()
        for word in words:
            assert word in ran.err

    def listed(lines: list[str]) -> Path:
        (tmp_path / "list.tsv").write_text("".join(f"{line}\n" for line in lines))
        return tmp_path / "list.tsv"

    def saved(**changes: np.ndarray | None) -> Path:
        changed = {**state, **changes}
        write_state_dict(
            tmp_path / "changed.pth", {name: array for name, array in changed.items() if array is not None}
        )
        return tmp_path / "changed.pth"

    refused("no such layout", "scbert", layout="scbret")
    refused("25 names", "has 24", "header", genes=listed(["gene", *names]))
    refused("twice", names[0], genes=listed([*names[:-1], names[0]]))
    refused("line 2 has no name", genes=listed([names[0], "", *names[2:]]))
    refused("are no", "Ensembl ids", genes=listed([f"feature_{number}" for number in range(24)]))
    refused(
        "layer_pos_emb.emb",
        "which this layout has not",
        checkpoint=saved(**{"layer_pos_emb.emb": np.zeros((25, 4), np.float32)}),
    )
    refused("without norm.bias", checkpoint=saved(**{"norm.bias": None}))
    refused("to_out.bias", "(6,)", "(7,)", checkpoint=saved(**{"to_out.bias": np.zeros(6, np.float32)}))
    refused("to_out.bias", "not finite", checkpoint=saved(**{"to_out.bias": np.full(7, np.nan, np.float32)}))
    refused("no matrix token_emb.weight", checkpoint=saved(**{"token_emb.weight": None}))
    (tmp_path / "text.pth").write_text("hello")
    refused("text.pth", "torch 1.6", checkpoint=tmp_path / "text.pth")
    refused("gone.pth", "cannot be read", checkpoint=tmp_path / "gone.pth")
    raw = (MADE / "checkpoint.pth").read_bytes()
    (tmp_path / "short.pth").write_bytes(raw[: len(raw) // 2])
    refused("short.pth", "copy it again", checkpoint=tmp_path / "short.pth")


class _Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_checkpoint_runs_nothing_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("harm.pth", "w") as archive:
        archive.writestr("harm/data.pkl", pickle.dumps({"model_state_dict": {"weight": _Harm()}}))
    ran = scmbert("import", "scbert", "harm.pth", "--genes", "genes.tsv", "-o", "model")
    assert ran.code != 0
    assert "'weight' is no tensor" in ran.err
    assert not Path("harmed").exists()
    pickle.loads(pickle.dumps(_Harm()))  # as torch without weights_only would
    assert Path("harmed").exists()


def test_only_a_model_of_the_layout_is_exported(tiny_config, tiny_layout):
    with pytest.raises(ConfigError, match=r"the layout scbert: .*model\.attention is 'xla', expected 'favor'"):
        scbert.state_dict(ModelDefinition(tiny_config, tiny_layout), {}, {}, np.arange(40))


@pytest.mark.nightly
def test_at_scberts_own_sizes_performer_pytorch_agrees_both_ways(tmp_path):
    python = os.environ.get("SCMBERT_TORCH_PYTHON")
    if not python:
        pytest.skip("set SCMBERT_TORCH_PYTHON to a Python that has torch, numpy and performer-pytorch")
    made, names = tmp_path / "made", gene_symbols(16_906)
    subprocess.run([python, PEER, "make", made, "16906", "200", "6", "10", "64", "2"], check=True)
    (tmp_path / "genes.tsv").write_text("".join(f"{name}\n" for name in names))
    model, back = tmp_path / "model", tmp_path / "back.pth"
    scmbert_ok("import", "scbert", made / "checkpoint.pth", "--genes", tmp_path / "genes.tsv", "-o", model)
    wanted = dict(np.load(made / "answers.npz"))
    assert_the_same(answers_of_folder(model, wanted["tokens"], names), wanted)
    scmbert_ok("export-torch", "scbert", model, back, "--genes", tmp_path / "back.tsv")
    subprocess.run([python, PEER, "answer", back, made], check=True)
    again = np.load(made / "answers_again.npz")
    for name in ("logits", "encodings"):
        np.testing.assert_array_equal(again[name], wanted[name])
    assert json.loads((model / "model.json").read_text())["provenance"]["imported"]["layout"] == "scbert"
