"""A checkpoint of torch's own transformer in scGPT's layout becomes a model with the same states of all tokens.

`scgpt_made` was written by peers/scgpt_peer.py (FOLDER 8 2 2 16 7 4) with torch 2.14, of the genes in its genes.txt.
"""

import json
import shutil
from pathlib import Path

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest
from conftest import XLA_DEFAULT, scmbert, scmbert_ok

from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.pretrained import load_model
from scmbert_jax.tasks.embed import embed_dataset
from scmbert_jax.tasks.model_cells import open_model_cells
from scmbert_jax.torch_models.torch_file import read_state_dict, write_state_dict

MADE = Path(__file__).parent / "scgpt_made"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scgpt") / "model"
    scmbert_ok("import", "scgpt", MADE / "best_model.pt", "--genes", MADE / "vocab.json", "-o", folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    counts, genes = np.load(MADE / "answers.npz")["counts"], (MADE / "genes.txt").read_text().split()
    cells = ad.AnnData(counts.astype(np.float32), var=pd.DataFrame(index=genes))
    cells.obs_names = [f"c{number}" for number in range(len(counts))]
    return cells


def assert_the_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() >= 0.99999


def test_states_of_all_tokens_are_those_of_torch(model, cells):
    wanted = np.load(MADE / "answers.npz")["encodings"]
    rows, batch, _ = next(open_model_cells(model, cells).batches(None, len(cells), 0))

    def told(params, constants, batch):
        bound = model.definition.merge(params, constants)
        return bound.encode(bound.feature_table(), pack_tokens(batch))

    states = jax.jit(told, compiler_options=XLA_DEFAULT)(model.params, model.constants, batch)
    names = model.feature_space.modalities["rna"].names.tolist()
    for place, cell in enumerate(rows):
        number = int(batch.modalities["rna"].lengths[place])
        genes = [cells.var_names.get_loc(names[row]) for row in batch.modalities["rna"].feature_ids[place, :number]]
        assert sorted(genes) == np.flatnonzero(cells.X[cell]).tolist()  # what is expressed, and nothing else
        assert_the_same(np.asarray(states)[place, : 1 + number], wanted[cell, [0, *(1 + gene for gene in genes)]])


def test_the_embedding_is_the_state_of_cls(model, cells):
    assert_the_same(embed_dataset(model, cells).embeddings, np.load(MADE / "answers.npz")["encodings"][:, 0])


def test_names_of_flash_attention_are_read_and_what_does_not_fit_is_refused(tmp_path):
    state, made = read_state_dict(MADE / "best_model.pt"), tmp_path / "made"
    settings = json.loads((MADE / "args.json").read_text())

    def imported(state=state, settings=settings, genes=MADE / "vocab.json"):
        made.mkdir(exist_ok=True)
        write_state_dict(made / "best_model.pt", state)
        (made / "args.json").write_text(json.dumps(settings))
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        return scmbert("import", "scgpt", made / "best_model.pt", "--genes", genes, "-o", tmp_path / "model")

    flash = {name.replace("in_proj_", "Wqkv."): array for name, array in state.items()}
    assert imported({**flash, "mvc_decoder.W.weight": np.zeros((8, 8), np.float32)}).code == 0
    settings_of = {name: {**settings, **change} for name, change in (("nheads", {"nheads": 3}), ("style", {}))}
    settings_of["style"]["input_emb_style"] = "category"
    (tmp_path / "genes.txt").write_text("".join(f"G{number}\n" for number in range(27)))
    for ran, words in (
        (imported(settings={}), "nheads None; expected a number above 0"),
        (imported(settings=settings_of["nheads"]), "nheads 3, no divisor of the width 8"),
        (imported(settings=settings_of["style"]), "input_emb_style 'category'"),
        (imported({**state, "bn.weight": np.ones(8, np.float32)}), "with bn.weight, which this layout has not"),
        (imported(genes=tmp_path / "genes.txt"), "without <cls>, <pad>, <eoc>"),
        (imported(genes=MADE / "genes.txt"), "24 names, but the checkpoint has 27"),
    ):
        assert ran.code != 0
        assert words in ran.err
    ran = scmbert("export-torch", "scgpt", tmp_path, tmp_path / "back.pt", "--genes", tmp_path / "back.txt")
    assert "layout scgpt: is only read; those that are written, too, are scbert" in ran.err
