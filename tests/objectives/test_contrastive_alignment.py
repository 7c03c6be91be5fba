"""The contrastive loss by hand, on cells whose embeddings are given. In parts: test_contrastive_parts."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scmbert_jax.batch import CellBatch, ModalityTokens
from scmbert_jax.config import ContrastiveAlignmentConfig, ExperimentConfig, ObjectivesConfig, batch_covariates
from scmbert_jax.errors import ConfigError
from scmbert_jax.objectives.contrastive_alignment.head import AlignmentHead
from scmbert_jax.objectives.contrastive_alignment.objective import ContrastiveAlignment

TEMPERATURE = 0.5
WIDTH = 4


class GivenEmbeddings:
    """Stands for a model: the embedding of a modality of a cell is the counts of its tokens, of length 1."""

    def __init__(self, links=None):
        self.alignment_head = SimpleNamespace(temperature=lambda: jnp.asarray(TEMPERATURE))
        self.table = SimpleNamespace(links={} if links is None else {"protein": jnp.asarray(links)})

    def aligned(self, table, tokens, covariates):
        return tokens.counts / jnp.linalg.norm(tokens.counts, axis=1, keepdims=True).clip(1e-6)


def cells(rna, protein, technical_batch=None, cell_index=None, has_rna=None, has_protein=None) -> CellBatch:
    """A batch whose cells have these vectors [B, WIDTH] by each modality."""
    number = len(rna)

    def tokens(counts, has) -> ModalityTokens:
        has = np.ones(number, bool) if has is None else np.asarray(has)
        length = np.where(has, WIDTH, 0).astype(np.int32)
        one = np.ones(number, np.float32)
        ids = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), (number, WIDTH))
        return ModalityTokens(ids, np.where(has[:, None], counts, 0), length, one, has, length, length, one)

    covariates = {} if technical_batch is None else {"technical_batch": np.asarray(technical_batch)}
    index = np.arange(number) if cell_index is None else np.asarray(cell_index)
    modalities = {"rna": tokens(rna, has_rna), "protein": tokens(protein, has_protein)}
    return CellBatch(modalities, covariates, index, np.arange(number))


def random_cells(number=8, seed=0, **more) -> CellBatch:
    rng = np.random.default_rng(seed)
    return cells(*rng.integers(-20, 20, (2, number, WIDTH)), **more)


@pytest.fixture(scope="module")
def config(tiny_config) -> ExperimentConfig:
    """RNA and protein, contrastive alignment alone."""
    modalities = replace(tiny_config.modalities, atac=replace(tiny_config.modalities.atac, num_tokens=0))
    objectives = ObjectivesConfig(
        replace(tiny_config.objectives.masked_modeling, weight=0.0),
        contrastive_alignment=ContrastiveAlignmentConfig(weight=1.0),
    )
    return replace(tiny_config, modalities=modalities, objectives=objectives)


@pytest.fixture
def loss(config):
    """(batch, fields of the configuration) -> LossSum."""

    def compute(batch, links=None, table=None, **fields):
        contrastive = replace(config.objectives.contrastive_alignment, **fields)
        objective = ContrastiveAlignment(
            replace(config, objectives=replace(config.objectives, contrastive_alignment=contrastive))
        )
        return jax.jit(lambda cells: objective.loss(GivenEmbeddings(links), table, cells, jax.random.key(0)))(batch)

    return compute


def unit(x) -> np.ndarray:
    return np.asarray(x, float) / np.linalg.norm(x, axis=1, keepdims=True)


def info_nce(anchors, candidates) -> float:
    """Sum over rows i of -log(e^(a_i c_i / T) / sum_j e^(a_i c_j / T)) (Oord et al. 2018)."""
    weights = np.exp(unit(anchors) @ unit(candidates).T / TEMPERATURE)
    return float(-np.log(np.diag(weights) / weights.sum(1)).sum())


def symmetric(rna, protein) -> float:
    return 0.5 * (info_nce(rna, protein) + info_nce(protein, rna))


def counts_of(batch, name):
    return batch.modalities[name].counts


def test_it_is_the_symmetric_info_nce_of_clip(loss):
    batch = random_cells()
    found = loss(batch)
    assert float(found.total) == pytest.approx(symmetric(counts_of(batch, "rna"), counts_of(batch, "protein")), 1e-5)
    assert float(found.weight) == 8
    similarity = unit(counts_of(batch, "rna")) @ unit(counts_of(batch, "protein")).T
    nearest = (similarity.argmax(1) == np.arange(8)).sum()
    value, weight = found.metrics["rna_protein_top1"]
    assert (float(value), float(weight)) == (nearest, 8)


@pytest.mark.parametrize("negatives", ["auto", "technical_batch"])
def test_cells_are_told_apart_from_those_of_their_own_technical_batch_only(loss, negatives):
    technical_batch = np.asarray([0, 1, 0, 1, 1, 0, 1, 0])
    batch = random_cells(technical_batch=technical_batch)
    by_batch = sum(
        symmetric(*(counts_of(batch, name)[technical_batch == which] for name in ("rna", "protein")))
        for which in (0, 1)
    )
    assert float(loss(batch, negatives=negatives).total) == pytest.approx(by_batch, 1e-5)
    whole = symmetric(counts_of(batch, "rna"), counts_of(batch, "protein"))
    assert float(loss(batch, negatives="all").total) == pytest.approx(whole, 1e-5)
    assert whole > by_batch + 1


def test_a_twin_in_another_technical_batch_changes_nothing(loss):
    """The first cell's anchor against a cell of another batch that looks just like it, and one that does not."""
    technical_batch = np.asarray([0, 0, 0, 1, 1, 1])
    rna, protein = np.random.default_rng(1).integers(-20, 20, (2, 6, WIDTH))
    only_first = np.asarray([True, True, True, False, False, False])  # the others are no anchors of either direction

    def first_three(twin_of_first, **fields):
        others = protein.copy()
        if twin_of_first:
            others[3] = protein[0]
        return float(loss(cells(rna, others, technical_batch, has_rna=only_first), **fields).total)

    assert first_three(True) == first_three(False)
    assert first_three(True, negatives="all") > first_three(False, negatives="all") + 0.01


def test_the_same_cell_twice_is_no_negative_of_itself(loss):
    rna, protein = np.random.default_rng(2).integers(-20, 20, (2, 5, WIDTH))
    twice = np.asarray([0, 1, 2, 3, 4, 1])
    found = loss(cells(rna[twice], protein[twice], cell_index=twice))
    # Both copies of cell 1 are anchors with four negatives; the other cells meet cell 1 twice.
    logits = unit(rna[twice]) @ unit(protein[twice]).T / TEMPERATURE
    candidates = (twice[:, None] != twice[None]) | np.eye(6, dtype=bool)

    def direction(logits):
        return -np.log(np.exp(np.diag(logits)) / (np.exp(logits) * candidates).sum(1)).sum()

    assert float(found.total) == pytest.approx(0.5 * (direction(logits) + direction(logits.T)), 1e-5)
    # Were a copy a negative, no embedding could push its part below log 2.
    perfect = np.eye(WIDTH, dtype=int)[[0, 1, 2, 3, 1]]
    copies = loss(cells(perfect, perfect, cell_index=[0, 1, 2, 3, 1]))
    strangers = loss(cells(perfect, perfect, cell_index=[0, 1, 2, 3, 4]))
    assert float(copies.total) < float(strangers.total) - 1.0


def test_a_cell_of_one_modality_is_a_negative_there_and_no_anchor(loss):
    rna, protein = np.random.default_rng(3).integers(-20, 20, (2, 5, WIDTH))
    has_protein = np.asarray([True, True, False, True, True])
    found = loss(cells(rna, protein, has_protein=has_protein))
    there = info_nce(rna[has_protein], protein[has_protein])  # the missing proteins are nobody's negatives
    logits = unit(protein[has_protein]) @ unit(rna).T / TEMPERATURE  # its RNA is one of the others' proteins
    own = logits[np.arange(4), np.flatnonzero(has_protein)]
    back = (np.log(np.exp(logits).sum(1)) - own).sum()
    assert float(found.total) == pytest.approx(0.5 * (there + back), 1e-5)
    assert float(found.weight) == 4


def test_a_batch_without_a_pair_weighs_nothing_and_has_no_nan(loss):
    batch = random_cells(4, has_rna=[True, True, False, False], has_protein=[False, False, True, True])
    found = loss(batch)
    assert (float(found.total), float(found.weight)) == (0, 0)


def test_an_anchor_without_a_negative_weighs_nothing(loss):
    """Alone in its technical batch, any embedding would be right."""
    alone = loss(random_cells(technical_batch=np.arange(8)))
    assert (float(alone.total), float(alone.weight)) == (0, 0)
    assert [float(x) for x in alone.metrics["rna_protein_anchors"]] == [0, 8]
    assert [float(x) for x in alone.metrics["rna_protein_top1"]] == [0, 0]
    # Three cells of one batch among five that are alone; the last of them has no protein.
    batch = random_cells(technical_batch=[0, 0, 0, 1, 2, 3, 4, 5], has_protein=[True, True, False, *[True] * 5])
    found = loss(batch)
    rna, protein = (counts_of(batch, name) for name in ("rna", "protein"))
    logits = unit(protein[:2]) @ unit(rna[:3]).T / TEMPERATURE  # its RNA is still one that others are told from
    back = (np.log(np.exp(logits).sum(1)) - np.diagonal(logits)).sum()
    assert float(found.total) == pytest.approx(0.5 * (info_nce(rna[:2], protein[:2]) + back), 1e-5)
    assert float(found.weight) == 2
    assert [float(x) for x in found.metrics["rna_protein_anchors"]] == [2, 7]


def test_an_anchor_may_have_a_negative_in_one_direction_only(loss):
    batch = random_cells(2, has_protein=[True, False])
    found = loss(batch)
    rna, protein = (counts_of(batch, name) for name in ("rna", "protein"))
    logits = unit(protein[:1]) @ unit(rna).T / TEMPERATURE
    assert float(found.total) == pytest.approx(0.5 * float(np.log(np.exp(logits).sum()) - logits[0, 0]), 1e-5)
    assert float(found.weight) == 0.5


def test_a_link_without_another_to_be_told_from_weighs_nothing(loss):
    nothing = random_cells(4, has_rna=[False] * 4)
    table = jnp.asarray(np.random.default_rng(4).normal(size=(9, 3)), jnp.float32)
    found = loss(nothing, np.asarray([[6, 7], [0, 0]]), table, link_weight=0.5)
    assert (float(found.total), float(found.weight)) == (0, 0)


def test_negatives_of_the_technical_batch_need_one(loss, config):
    with pytest.raises(ConfigError, match=r"negatives is 'technical_batch', but the corpus has no technical_batch"):
        loss(random_cells(), negatives="technical_batch")
    strict = replace(config.objectives.contrastive_alignment, negatives="technical_batch")
    strict_config = replace(config, objectives=replace(config.objectives, contrastive_alignment=strict))
    with pytest.raises(ConfigError, match="'technical_batch'; expected one of the corpus's: donor"):
        batch_covariates(strict_config, ["donor"])
    assert batch_covariates(strict_config, ["technical_batch"]) == ("technical_batch",)
    # auto: where the corpus knows it, and not otherwise
    assert batch_covariates(config, ["donor", "technical_batch"]) == ("technical_batch",)
    assert batch_covariates(config, ["donor"]) == ()
    assert float(loss(random_cells()).total) == float(loss(random_cells(), negatives="all").total)


def test_links_are_told_apart_by_the_rows_of_their_features(loss):
    table = np.random.default_rng(4).normal(size=(9, 3)).astype(np.float32)
    # protein rows 6, 7, 8; protein 8 has two genes, of which none is a negative of the other
    links = np.asarray([[6, 7, 8, 8], [0, 1, 2, 3]])
    nothing = random_cells(4, has_rna=[False] * 4)
    found = loss(nothing, links, jnp.asarray(table), link_weight=0.5)
    logits = unit(table[links[0]]) @ unit(table[links[1]]).T / TEMPERATURE
    candidates = (links[0][:, None] != links[0][None]) | np.eye(4, dtype=bool)
    wanted = -np.log(np.exp(np.diag(logits)) / (np.exp(logits) * candidates).sum(1)).sum()
    assert float(found.metrics["protein_links_info_nce"][0]) == pytest.approx(wanted, 1e-5)
    assert float(found.total) == pytest.approx(0.5 * wanted, 1e-5)
    assert float(found.weight) == 0.5 * 4
    assert "protein_links_info_nce" not in loss(nothing, links, jnp.asarray(table)).metrics


# --- temperature -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head_at(config, tiny_layout):
    """log temperature -> a head of these bounds that has learned it."""
    bounds = {"initial_temperature": 0.1, "min_temperature": 0.05, "max_temperature": 0.5}
    contrastive = replace(config.objectives.contrastive_alignment, **bounds)
    bounded = replace(config, objectives=replace(config.objectives, contrastive_alignment=contrastive))

    def make(log_temperature: float) -> AlignmentHead:
        head = AlignmentHead(bounded, tiny_layout, nnx.Rngs(params=0))
        head.log_temperature[...] = jnp.asarray(log_temperature)
        return head

    return make


@pytest.mark.parametrize(("log_temperature", "wanted"), [(-9.0, 0.05), (np.log(0.2), 0.2), (9.0, 0.5)])
def test_the_temperature_stays_within_its_bounds(head_at, log_temperature, wanted):
    assert float(head_at(log_temperature).temperature()) == pytest.approx(wanted)


def test_a_temperature_at_its_bound_can_come_back(head_at):
    """What would push it further out has no gradient; what would bring it back has one."""

    def gradient(log_temperature, sign):
        graph, state = nnx.split(head_at(log_temperature))
        return float(jax.grad(lambda s: sign * nnx.merge(graph, s).temperature())(state)["log_temperature"][...])

    assert gradient(9.0, -1.0) == 0  # descent would raise it
    assert gradient(9.0, 1.0) > 0
    assert gradient(-9.0, 1.0) == 0
    assert gradient(-9.0, -1.0) < 0
    assert gradient(np.log(0.2), 1.0) == pytest.approx(0.2)
