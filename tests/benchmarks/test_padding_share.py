"""What is said of padding is what a step would compute."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import scmbert, scmbert_ok

from scmbert_jax.benchmarks.padding_share import padding_share
from scmbert_jax.models.scmbert import ModelDefinition
from scmbert_jax.objectives.masked_modeling import MaskedModeling
from scmbert_jax.training.length_groups import total_lengths
from scmbert_jax.training.train_step import step_key, sum_of_gradients


def test_the_share_is_the_one_that_a_step_reports(tiny_config, tiny_layout, tiny_batch):
    config = replace(tiny_config, train=replace(tiny_config.train, num_microbatches=4, length_widths=8))
    model = ModelDefinition(config, tiny_layout)
    params, batch = jax.jit(model.init)(jax.random.key(0)), tiny_batch()

    def metrics(params):
        return sum_of_gradients(model, MaskedModeling(config), 4, params, model.constants, batch, step_key(0, 0))[0]

    padding, positions = jax.jit(metrics)(params).metrics["padding"]
    lengths = np.asarray(total_lengths(batch))[None]
    assert padding_share(lengths, config.most_tokens, 4, 8) == pytest.approx(float(padding / positions))


def test_more_microbatches_and_widths_leave_less_padding(pbmc_corpus):
    options = ("--num-tokens", "511", "--batch-size", "64", "--microbatches", "1", "16", "--widths", "1", "32")
    (found,) = json.loads(scmbert_ok("bench", "padding", pbmc_corpus, *options, "--json"))
    shares = {(number, ways): share for number, ways, share in found["cut"]}
    assert found["num_tokens"] == 497 + 224  # never more than there are features (three genes have no known id)
    assert shares[1, 1] == shares[16, 1] == pytest.approx(found["whole_rows"])
    assert shares[16, 32] < 0.05 < shares[1, 32]
    assert "16 " in scmbert_ok("bench", "padding", pbmc_corpus, *options)


def test_microbatches_must_divide_the_batch(pbmc_corpus):
    ran = scmbert("bench", "padding", pbmc_corpus, "--microbatches", "7")
    assert ran.code == 4
    assert "--microbatches 7" in ran.err
