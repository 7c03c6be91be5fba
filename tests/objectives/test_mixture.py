import dataclasses

from scmbert_jax.config import (
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ObjectivesConfig,
)
from scmbert_jax.objectives import mixture


@dataclasses.dataclass(frozen=True)
class TwoObjectives:
    """Stands in for ObjectivesConfig where more than one objective is wanted."""

    shares: tuple[float, float]
    masked_modeling: MaskedModelingConfig

    def weights(self):
        return {name: share for name, share in zip("ab", self.shares, strict=True) if share > 0}


def config(shares, seed=0):
    modalities = ModalitiesConfig(rna=ModalityConfig(num_tokens=8))
    return ExperimentConfig(seed=seed, modalities=modalities, objectives=TwoObjectives(shares, MaskedModelingConfig()))


def test_each_objective_gets_its_share_of_the_steps():
    drawn = [mixture.objective_at(config((3.0, 1.0)), step) for step in range(2000)]
    # standard error of a share of 0.75 over 2,000 draws: 0.01; five of them
    assert abs(drawn.count("a") / 2000 - 0.75) < 0.05


def test_the_objective_of_a_step_needs_no_history_and_changes_with_the_seed():
    first = [mixture.objective_at(config((1.0, 1.0)), step) for step in range(100)]
    assert [mixture.objective_at(config((1.0, 1.0)), step) for step in reversed(range(100))] == first[::-1]
    assert [mixture.objective_at(config((1.0, 1.0), seed=1), step) for step in range(100)] != first


def test_an_objective_of_weight_zero_is_never_drawn():
    assert {mixture.objective_at(config((0.0, 1.0)), step) for step in range(200)} == {"b"}


def test_every_objective_of_the_configuration_has_an_implementation():
    fields = {field.name for field in dataclasses.fields(ObjectivesConfig)}
    assert fields == set(mixture.OBJECTIVES)
