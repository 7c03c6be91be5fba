"""What is said of padding is what a step would compute."""

import json
from dataclasses import replace
from itertools import combinations, product

import jax
import numpy as np
import pytest
from conftest import scmbert, scmbert_ok

from scmbert_jax.benchmarks.padding import best_widths, padding_fraction
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling
from scmbert_jax.random_keys import step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.length_groups import row_widths, total_lengths
from scmbert_jax.training.train_step import sum_of_gradients


@pytest.mark.nightly
def test_the_fraction_is_the_one_that_a_step_reports(tiny_config, tiny_layout, tiny_batch):
    config = replace(
        tiny_config, train=replace(tiny_config.train, num_microbatches=4, row_widths=(4, 8, 12, 16, 20, 24, 28))
    )
    model = ModelDefinition(config, tiny_layout)
    params, batch = jax.jit(model.init)(jax.random.key(0)), tiny_batch()

    def metrics(params):
        return sum_of_gradients(model, MaskedModeling(config), 4, params, model.constants, batch, step_key(0, 0))[0]

    padding, positions = jax.jit(metrics)(params).metrics["padding"]
    lengths = np.asarray(total_lengths(batch))[None]
    assert padding_fraction(lengths, row_widths(config), 4) == pytest.approx(float(padding / positions))


def test_more_microbatches_and_widths_leave_less_padding(pbmc_corpus):
    options = ("--num-tokens", "511", "--batch-size", "64", "--microbatches", "1", "16", "--widths", "1", "8")
    (found,) = json.loads(scmbert_ok("bench", "padding", pbmc_corpus, *options, "--json"))
    fractions = {(row["microbatches"], row["programs"]): row["padding"] for row in found["cut"]}
    assert found["num_tokens"] == 497 + 224  # never more than there are features (three genes have no known id)
    assert fractions[1, 1] == fractions[16, 1] == pytest.approx(found["whole_rows"])
    assert fractions[16, 8] < 0.05 < fractions[1, 8]
    (widths,) = [row["row_widths"] for row in found["cut"] if (row["microbatches"], row["programs"]) == (16, 8)]
    assert len(widths) == 7
    assert all((width + 1) % 8 == 0 for width in widths)
    settings = f"--train.num-microbatches 16 --train.row-widths {' '.join(map(str, widths))}"
    assert settings in scmbert_ok("bench", "padding", pbmc_corpus, *options)


def test_the_best_widths_are_the_best_of_all_there_are():
    rng = np.random.default_rng(0)
    for rows, programs in product((1, 4, 12), (1, 2, 3, 5)):
        longest = rng.integers(1, 15, rows)

        def positions(widths, longest=longest):
            ladder = np.array([*widths, 14])
            return ladder[np.searchsorted(ladder, longest)].sum()

        least = min(map(positions, combinations(range(1, 14), programs - 1)))
        assert positions(best_widths(longest, 14, programs)) == least
    assert best_widths(np.array([3, 3, 9]), 32, 8, multiple_of=4) == (3, 11)


def test_microbatches_must_divide_the_batch(pbmc_corpus):
    ran = scmbert("bench", "padding", pbmc_corpus, "--microbatches", "7")
    assert ran.code == 4
    assert "--microbatches 7" in ran.err
