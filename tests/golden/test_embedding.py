"""What a model folder's numbers mean: the answers of a fixed model to fixed cells are those of embedding.json.

    python tests/golden/test_embedding.py --refresh     writes them anew

A failure means that folders of this format version would give other answers than before. Where that is meant, raise
`FORMAT_VERSION` of scmbert_jax/pretrained.py, so that older folders are refused, and refresh.
"""

import json
import sys
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from fixed_numbers import fixed, with_fixed_statistics

from data_pipelines.features.feature_space import FeatureSpace, ModalityFeatures
from data_pipelines.features.gene_tables import load_gene_table
from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    ExperimentConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
)
from scmbert_jax.pretrained import FORMAT_VERSION, PretrainedModel
from scmbert_jax.tasks.embed import embed_dataset
from scmbert_jax.tasks.translate import translate_dataset

GOLDEN = Path(__file__).parent / "embedding.json"
GENES = [
    "CD2",
    "CD3E",
    "CD4",
    "CD8A",
    "CD14",
    "CD19",
    "CD27",
    "CD34",
    "CD38",
    "CD44",
    "CD69",
    "CD79A",
    "CXCR4",
    "FCGR3A",
    "GNLY",
    "IL7R",
    "LYZ",
    "MS4A1",
    "NKG7",
    "PPBP",
]
PROTEINS = ["cd3", "cd4", "cd8", "cd14", "cd19", "cd56"]
NUM_CELLS = 6

CONFIG = ExperimentConfig(
    modalities=ModalitiesConfig(
        rna=ModalityConfig(num_tokens=8, zero_fraction=0.25), protein=ModalityConfig(num_tokens=8, zero_fraction=0.1)
    ),
    model=ModelConfig(embed_dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=16),
    objectives=ObjectivesConfig(
        cross_modal_translation=CrossModalTranslationConfig(weight=1.0),
        contrastive_alignment=ContrastiveAlignmentConfig(weight=1.0, projection_dim=4),
    ),
)


def fixed_model() -> PretrainedModel:
    table = load_gene_table("human")
    ids = {table.ids[table.rows_of_symbol[symbol][0]]: symbol for symbol in GENES}
    space = FeatureSpace({"rna": features("rna", ids), "protein": features("protein", dict.fromkeys(PROTEINS))})
    definition = with_fixed_statistics(CONFIG, space.layout())
    params = fixed(definition.abstract_params, 0.3)
    linear = {name: definition.constants[name] for name in ("linear", "alignment_head")}
    constants = definition.constants | fixed(linear, 0.3)
    info = {"step": 1, "covariates": {}, "provenance": {}}
    return PretrainedModel(CONFIG, space, definition, params, constants, info)


def features(modality: str, names: dict) -> ModalityFeatures:
    kind, number = {"rna": "gene", "protein": "protein"}[modality], len(names)
    labels = [name or feature for feature, name in names.items()]
    nowhere = [-1] * number
    return ModalityFeatures.sorted(
        modality, f"{kind}:human", list(names), labels, [""] * number, nowhere, nowhere, [()] * number
    )


def fixed_cells() -> mudata.MuData:
    """Cells with more genes than fit into 8 tokens, one of them without proteins."""
    rng = np.random.default_rng(2)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(NUM_CELLS)])
    rna = anndata.AnnData(sp.csr_matrix(rng.poisson(2.0, (NUM_CELLS, len(GENES))).astype(np.float32)), obs=obs)
    protein = anndata.AnnData(sp.csr_matrix(rng.poisson(20.0, (NUM_CELLS, len(PROTEINS))).astype(np.float32)), obs=obs)
    rna.var_names, protein.var_names = GENES, PROTEINS
    return mudata.MuData({"rna": rna, "protein": protein[:-1].copy()})


def answers() -> dict[str, list]:
    model, cells = fixed_model(), fixed_cells()
    found = {
        "cell": embed_dataset(model, cells).embeddings,
        "cell, 8 tokens": embed_dataset(model, cells, num_tokens=8).embeddings,
        "cell, half of the genes": embed_dataset(model, cells.mod["rna"][:, ::2].copy()).embeddings,
        "aligned": embed_dataset(model, cells, space="aligned").embeddings,
    }
    for source, target in (("rna", "protein"), ("protein", "rna")):
        translation = translate_dataset(model, cells, source=source, target=target)
        found |= {f"{source} to {target}": translation.values, f"{source} to {target}, std": translation.std}
    return {name: np.round(values.astype(float), 5).tolist() for name, values in found.items()}


@pytest.mark.slow
def test_the_same_folder_gives_the_same_answers_in_one_format_version():
    golden = json.loads(GOLDEN.read_text())
    assert golden["format_version"] == FORMAT_VERSION, "refresh: python tests/golden/test_embedding.py --refresh"
    for name, values in answers().items():
        wanted = np.array(golden["answers"][name], float)
        # Sums of float32 in another order, on other hardware.
        np.testing.assert_allclose(np.array(values), wanted, rtol=2e-3, atol=2e-3, err_msg=f"{name}: {__doc__}")


if __name__ == "__main__" and sys.argv[1:] == ["--refresh"]:
    GOLDEN.write_text(json.dumps({"format_version": FORMAT_VERSION, "answers": answers()}) + "\n")
