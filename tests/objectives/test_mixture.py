import dataclasses

from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ObjectivesConfig,
)
from scmbert_jax.objectives import mixture


def config(masked=0.0, translation=0.0, contrastive=0.0, seed=0):
    modalities = ModalitiesConfig(rna=ModalityConfig(num_tokens=8), protein=ModalityConfig(num_tokens=8))
    objectives = ObjectivesConfig(
        MaskedModelingConfig(weight=masked),
        CrossModalTranslationConfig(weight=translation),
        ContrastiveAlignmentConfig(weight=contrastive),
    )
    return ExperimentConfig(seed=seed, modalities=modalities, objectives=objectives)


def drawn(config, num_steps):
    return [mixture.objective_at(config, step) for step in range(num_steps)]


def test_each_objective_gets_its_fraction_of_the_steps():
    names = drawn(config(6.0, 3.0, 1.0), 2000)
    # standard error of a fraction of 0.6 over 2,000 draws: 0.011; five of them
    for name, fraction in (("masked_modeling", 0.6), ("cross_modal_translation", 0.3), ("contrastive_alignment", 0.1)):
        assert abs(names.count(name) / 2000 - fraction) < 0.055


def test_the_objective_of_a_step_needs_no_history_and_changes_with_the_seed():
    mixed = config(1.0, 1.0)
    first = drawn(mixed, 100)
    assert [mixture.objective_at(mixed, step) for step in reversed(range(100))] == first[::-1]
    assert drawn(config(1.0, 1.0, seed=1), 100) != first


def test_an_objective_of_weight_zero_is_never_drawn_nor_built():
    assert set(drawn(config(0.0, 1.0), 200)) == {"cross_modal_translation"}
    assert set(mixture.objectives_of(config(0.0, 1.0))) == {"cross_modal_translation"}


def test_every_objective_of_the_configuration_has_an_implementation():
    fields = {field.name for field in dataclasses.fields(ObjectivesConfig)}
    assert fields == set(mixture.OBJECTIVES)
