"""A gene is removed from cells, or raised: what a model says of the others, by each of its read-outs."""

from dataclasses import replace

import anndata
import jax
import jax.numpy as jnp
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import shaken

from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.config import MaskedModelingConfig, ObjectivesConfig, WholeProfileConfig
from scmbert_jax.interpretation.perturbation import CELL, PROFILE, STATES, CellsToPerturb, read_out_of
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.pretrained import load_model
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import feature_table

READING = Reading(allow_low_coverage=True, batch_size=8)
OBJECTIVES = {
    PROFILE: ObjectivesConfig(MaskedModelingConfig(weight=0.0), whole_profile=WholeProfileConfig(1.0, hidden_dim=8)),
    CELL: ObjectivesConfig(MaskedModelingConfig(weight=1.0)),
    STATES: ObjectivesConfig(MaskedModelingConfig(weight=1.0, cell_weight=0.0)),
}
pytestmark = pytest.mark.filterwarnings("ignore::scmbert_jax.errors.ScmbertWarning")


@pytest.fixture(scope="module")
def cells():
    """20 cells x 40 genes, of those that most cells express."""
    whole = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"]
    most = np.sort(np.argsort(-np.asarray((whole.X > 0).mean(axis=0)).ravel(), kind="stable")[:40])
    found = whole[:20, most].copy()
    return anndata.AnnData(sp.csr_matrix(found.X, dtype=np.float32), obs=found.obs[[]], var=found.var)


def model_for(pbmc_model, read_out):
    """A model that was trained for something else, as far as one can see."""
    model = load_model(pbmc_model)
    rna = replace(model.config.modalities.rna, zero_fraction=0.0)  # no zeros are drawn anew where a gene has become one
    modalities = replace(model.config.modalities, rna=rna)
    config = replace(model.config, objectives=OBJECTIVES[read_out], modalities=modalities)
    definition = ModelDefinition(config, model.definition.layout)
    params = shaken(jax.jit(definition.init)(jax.random.key(0)))
    return replace(model, config=config, definition=definition, params=params, constants=definition.constants)


@pytest.mark.parametrize(
    ("read_out", "times"),
    [
        (CELL, 0.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((CELL, 3.0), (PROFILE, 0.0), (PROFILE, 3.0))),
        *(pytest.param(STATES, times, marks=pytest.mark.slow) for times in (0.0, 3.0)),
    ],
)
def test_a_response_is_the_change_from_cells_that_were_counted_again(pbmc_model, cells, read_out, times):
    model = model_for(pbmc_model, read_out)
    assert read_out_of(model) == read_out
    opened = CellsToPerturb.open(model, cells, reading=READING)
    counts = opened.drawn.counts["rna"]
    gene = int(np.argsort(-counts.getnnz(axis=0), kind="stable")[5])
    mine = np.flatnonzero(counts[:, [gene]].toarray().ravel())[:6]
    targets = np.flatnonzero(counts.getnnz(axis=0) > 0)[::3]
    found = opened.responses(np.array([gene]), targets=targets, times=times, cells_per_gene=6)
    assert found.cells.tolist() == [6]
    assert found.having[0] == counts[:, [gene]].getnnz()

    changed = counts[mine].tolil()
    changed[:, gene] = changed[:, [gene]].toarray() * times
    drawn = opened.drawn.of(mine)
    before, after = (drawn, replace(drawn, counts={"rna": sp.csr_matrix(changed, dtype=np.int32)}))
    told = [by_hand(opened, read_out, own, drawn, targets) for own in (before, after)]
    change = told[1] - told[0] if read_out != STATES else 1 - (told[0] * told[1]).sum(axis=2)
    says = ~np.isnan(change).all(axis=0)
    np.testing.assert_array_equal(np.isnan(found.mean[0]), ~says)
    expected = np.nanmean(change[:, says], axis=0)
    assert np.nanmax(np.abs(expected)) > 1e-4
    np.testing.assert_allclose(found.mean[0, says], expected, rtol=2e-3, atol=2e-6)
    np.testing.assert_allclose(found.std[0, says], np.nanstd(change[:, says], axis=0), rtol=2e-2, atol=2e-5)


def by_hand(opened, read_out, drawn, whole, targets):
    """[n, T], or of states [n, T, D], of cells that keep the library sizes of `whole`."""
    model, first = opened.model, opened.model.definition.layout.slices["rna"][0]
    batch = opened.cells.batch_of(drawn.chunk(), opened.cells.sampling(None), 0)
    of_whole = opened.cells.batch_of(whole.chunk(), opened.cells.sampling(None), 0)
    rna, size = batch.modalities["rna"], of_whole.modalities["rna"]
    rna = rna._replace(library_size=size.library_size, mean_log_count=size.mean_log_count)
    statistics, genes = model.definition.layout.statistics, slice(*model.definition.layout.slices["rna"])
    median = statistics.library_quantiles[0][len(statistics.library_quantiles[0]) // 2]
    values = np.log1p(drawn.counts["rna"].toarray() / np.asarray(size.library_size)[:, None] * median)
    values -= statistics.linear_mean[genes] * opened.measured
    scores = (values @ np.asarray(model.constants["linear"]["loadings"])[genes]).astype(np.float32)
    batch = batch._replace(modalities={"rna": rna}, scores={"rna": scores})
    table = feature_table(model.definition, model.params, model.constants)
    merged = model.definition.merge(model.params, model.constants)
    tokens = pack_tokens(batch)
    states = jax.jit(merged.encode)(table, tokens, None, batch.covariates)
    if read_out == STATES:
        own = states[:, 1:] / jnp.linalg.norm(states[:, 1:], axis=2, keepdims=True)
        found = np.full((drawn.number, len(targets), own.shape[2]), np.nan)
        for cell, place in zip(*np.nonzero(np.asarray(tokens.valid)), strict=True):
            found[cell, targets + first == tokens.feature_ids[cell, place]] = own[cell, place]
        return found
    ids = jnp.broadcast_to(targets + first, (drawn.number, len(targets)))
    if read_out == CELL:
        vectors = merged.cell_decoder(states[:, 0], table[ids])
        outputs, spread = merged.cell_head("rna", vectors, ids, batch.covariates)
        return np.log1p(merged.cell_head.likelihoods["rna"].expected_counts(outputs, spread))
    outputs, _ = merged.profile_head.outputs("rna", states[:, 0], batch.covariates)
    outputs = np.where(opened.measured, np.asarray(outputs)[..., 0], -np.inf)
    fraction = np.asarray(jax.nn.softmax(outputs, axis=1))[:, targets]
    return np.log1p(fraction * merged.profile_head.likelihoods["rna"].median_library)
