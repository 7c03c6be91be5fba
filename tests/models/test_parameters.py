"""Every parameter of a model with all options on, and what it is: the optimizer asks for nothing else."""

from dataclasses import replace
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.optimizer import decay_mask, make_optimizer
from scmbert_jax.training.train_state import TrainState
from scmbert_jax.training.train_step import make_train_step

# Role -> parameters. In a path, * is each modality, each pair of them, each head, each norm of a layer.
PARAMETERS = {
    "layer_matrix": """
        encoder/blocks/qkv encoder/blocks/attention_out encoder/blocks/mlp_in encoder/blocks/mlp_out
        translation_decoder/blocks/0/query translation_decoder/blocks/0/key_value
        translation_decoder/blocks/0/attention_out translation_decoder/blocks/0/mlp_in
        translation_decoder/blocks/0/mlp_out""",
    "matrix": """
        table/link_projections/* embedding/continuous/out embedding/continuous/gate
        cell_decoder/from_cell cell_decoder/from_feature cell_decoder/gate
        translation_decoder/query translation_decoder/cell_decoder/from_cell
        translation_decoder/cell_decoder/from_feature translation_decoder/cell_decoder/gate
        *_head/dense *_head/outputs/* alignment_head/projections/* alignment_head/linear/*/change
        linear/into_cell/* linear/between/*/hidden linear/between/*/out linear/between/*/linear/change""",
    "embedding": """
        table/learned embedding/cls embedding/modality embedding/mask embedding/bins/table embedding/continuous/scale
        translation_decoder/modality *covariates/tables/technical_batch""",
    "norm": """
        encoder/blocks/*_norm/scale encoder/final_norm/scale translation_decoder/blocks/0/*_norm/scale
        *_head/norm/scale""",
    "bias": """
        embedding/continuous/bias embedding/continuous/centre
        encoder/blocks/attention_bias encoder/blocks/mlp_in_bias encoder/blocks/mlp_out_bias
        encoder/blocks/*_norm/bias encoder/final_norm/bias
        translation_decoder/blocks/0/mlp_in_bias translation_decoder/blocks/0/mlp_out_bias
        translation_decoder/blocks/0/*_norm/bias
        *_head/dense_bias *_head/norm/bias *_head/feature_bias alignment_head/biases/* linear/between/*/hidden_bias""",
    "dispersion": "embedding/continuous/log_spread *_head/spread",
    "scalar": "alignment_head/log_temperature linear/between/*/share",
}
CONSTANTS = """
    table/links/* table/linked/* linear/loadings linear/offset linear/scale linear/between/*/linear/starts
    linear/between/*/neighbours/keys linear/between/*/neighbours/values linear/between/*/neighbours/folds
    alignment_head/linear/*/starts"""


def by_path(tree) -> dict[str, object]:
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(("place", "tables"), [("heads", 3), ("tokens", 1)])
def test_every_parameter_has_a_role_and_only_matrices_decay(mixed_config, known_layout, place, tables):
    options = {"covariates": ("technical_batch",), "covariates_at": place, "encoder_sharing": "multiway"}
    model = ModelDefinition(replace(mixed_config, model=replace(mixed_config.model, **options)), known_layout)
    roles, decayed = by_path(model.roles), by_path(decay_mask(model.roles))
    assert set(roles) == set(by_path(model.abstract_params))
    for role, patterns in PARAMETERS.items():
        found = {path for path, own in roles.items() if own == role}
        matched = {pattern: [path for path in roles if fnmatchcase(path, pattern)] for pattern in patterns.split()}
        assert set().union(*matched.values()) == found
        assert all(matched.values())
        assert all(decayed[path] == (role in ("matrix", "layer_matrix")) for path in found)
    assert set(roles.values()) == set(PARAMETERS)
    assert sum("covariates" in path for path in roles) == tables


def test_what_the_corpus_gives_is_no_parameter(mixed_config, known_layout):
    constants = by_path(ModelDefinition(mixed_config, known_layout).constants)
    matched = {pattern: [path for path in constants if fnmatchcase(path, pattern)] for pattern in CONSTANTS.split()}
    assert set().union(*matched.values()) == set(constants)
    assert all(matched.values())
    known = known_layout.statistics.linear
    np.testing.assert_array_equal(constants["linear/loadings"][: known_layout.num_features], known.loadings)


def test_training_leaves_fixed_parameters_as_they_start_bit_for_bit(tiny_config, tiny_layout, tiny_batch):
    rows = np.full((tiny_layout.num_features, tiny_config.model.embed_dim), np.nan, np.float32)
    rows[:30] = np.random.default_rng(0).normal(size=(30, tiny_config.model.embed_dim))
    fixed = {"attention": "favor", "favor_directions": "stored", "feature_rows": "frozen"}
    config = replace(tiny_config, model=replace(tiny_config.model, **fixed))
    model = ModelDefinition(config, replace(tiny_layout, start_rows=rows))
    assert model.roles["table"]["learned"] == model.roles["encoder"]["blocks"]["attention"]["directions"] == "fixed"
    params = jax.jit(model.init)(jax.random.key(0))
    before = jax.device_get(params)
    np.testing.assert_array_equal(before["table"]["learned"][:30], rows[:30])
    assert np.isfinite(before["table"]["learned"]).all()
    optimizer = make_optimizer(config, model)
    step = jax.jit(make_train_step(model, objectives_of(config)["masked_modeling"], optimizer))
    state = TrainState(params, optimizer.init(params), jnp.asarray(3))
    for number in range(4):  # the first has a rate of 0, the second no gradient but for the head, which starts at 0
        state, _ = step(state, model.constants, tiny_batch(number))
    after = jax.device_get(state.params)
    for role, own, other in zip(*map(jax.tree.leaves, (model.roles, before, after)), strict=True):
        assert (role == "fixed") <= np.array_equal(own, other)
    assert not np.array_equal(before["embedding"]["mask"], after["embedding"]["mask"])  # which does not decay
