"""Impossible mixtures are refused before anything is built, by a message that names the field and what was found."""

from dataclasses import replace

import pytest

from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ObjectivesConfig,
    WholeProfileConfig,
    compared_within,
    from_dict,
    to_dict,
)
from scmbert_jax.errors import ConfigError

RNA_AND_PROTEIN = ModalitiesConfig(rna=ModalityConfig(num_tokens=8), protein=ModalityConfig(num_tokens=8))


def config(
    modalities=RNA_AND_PROTEIN, translation=None, contrastive=None, masked=1.0, profile=None
) -> ExperimentConfig:
    objectives = ObjectivesConfig(
        MaskedModelingConfig(weight=masked),
        CrossModalTranslationConfig(**(translation or {})),
        ContrastiveAlignmentConfig(**(contrastive or {})),
        WholeProfileConfig(**(profile or {})),
    )
    return ExperimentConfig(modalities=modalities, objectives=objectives)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, r"cross_modal_translation\.weight is -1\.0; expected 0 or more"),
        ({"pair_weight": -0.5}, r"cross_modal_translation\.pair_weight is -0\.5"),
        ({"cycle_weight": -0.5}, r"cross_modal_translation\.cycle_weight is -0\.5"),
        ({"cycle_features": 0}, r"cross_modal_translation\.cycle_features is 0; expected 1 or more"),
        ({"source_fraction": 0.0}, r"cross_modal_translation\.source_fraction is 0\.0; expected 0 < value <= 1"),
        ({"covariate_dropout": 1.0}, r"cross_modal_translation\.covariate_dropout is 1\.0"),
        ({"directions": ("rna",)}, r"directions is 'rna'; expected SOURCE>TARGET, two of rna, protein, atac"),
        ({"directions": ("rna>rna",)}, r"directions is 'rna>rna'"),
        ({"directions": ("rna>lipid",)}, r"directions is 'rna>lipid'"),
        ({"directions": ("rna>atac",)}, r"directions is 'rna>atac'; expected modalities that are read: rna, protein"),
    ],
)
def test_an_impossible_translation_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(translation={"weight": 1.0, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, r"contrastive_alignment\.weight is -1\.0"),
        ({"projection_dim": 0}, r"contrastive_alignment\.projection_dim is 0"),
        ({"link_weight": -1.0}, r"contrastive_alignment\.link_weight is -1\.0"),
        ({"source_fraction": 1.5}, r"contrastive_alignment\.source_fraction is 1\.5"),
        ({"min_temperature": 0.0}, r"contrastive_alignment\.min_temperature is 0\.0; expected above 0"),
        (
            {"initial_temperature": 2.0},
            r"initial_temperature is 2\.0; expected between min_temperature 0\.01 and max_temperature 1\.0",
        ),
        ({"min_temperature": 0.3}, r"initial_temperature is 0\.1; expected between min_temperature 0\.3"),
    ],
)
def test_an_impossible_contrast_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(contrastive={"weight": 1.0, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, r"whole_profile\.weight is -1\.0; expected 0 or more"),
        ({"hidden_dim": 0}, r"whole_profile\.hidden_dim is 0; expected 1 or more"),
        ({"profile_tokens": 0}, r"whole_profile\.profile_tokens is 0; expected 1 or more"),
        ({"features_per_step": -1}, r"whole_profile\.features_per_step is -1; expected 0 \(all\) or more"),
        ({"source_fraction": 0.0}, r"whole_profile\.source_fraction is 0\.0; expected 0 < value <= 1"),
        ({"covariate_dropout": 1.0}, r"whole_profile\.covariate_dropout is 1\.0"),
        ({"profile_tokens": 1 << 21}, r"whole_profile\.profile_tokens is 2097152; expected at most 1,048,576"),
    ],
)
def test_an_impossible_profile_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(profile={"weight": 1.0, **fields})


@pytest.mark.parametrize("which", ["translation", "contrastive"])
def test_what_compares_modalities_needs_two_of_them(which):
    alone = ModalitiesConfig(rna=ModalityConfig(num_tokens=8))
    with pytest.raises(ConfigError, match=r"weight is 1\.0; .*only rna"):
        config(alone, **{which: {"weight": 1.0}})
    config(alone, **{which: {"weight": 0.0}})


def test_cells_are_compared_within_technical_batches_where_those_are_known():
    known = ("donor", "technical_batch")
    assert compared_within(config(contrastive={"weight": 1.0}), known) == "technical_batch"
    assert compared_within(config(contrastive={"weight": 1.0}), ("donor",)) is None
    assert compared_within(config(contrastive={"weight": 1.0, "negatives": "all"}), known) is None
    assert compared_within(config(contrastive={"weight": 0.0}), known) is None


def test_a_run_that_trains_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"objectives\.\*\.weight is 0; expected above 0"):
        config(masked=0.0)


@pytest.mark.parametrize(
    "path", ["model.encoder_sharing", "modalities.rna.target_likelihood", "objectives.contrastive_alignment.negatives"]
)
def test_a_choice_that_does_not_exist_is_refused_where_a_file_is_read(path):
    values = to_dict(config())
    section = values
    *above, field = path.split(".")
    for name in above:
        section = section[name]
    section[field] = "something"
    with pytest.raises(ConfigError, match="something"):
        from_dict(values, "config.json")


def test_every_setting_of_the_mixture_survives_its_file():
    mixed = config(
        translation={"weight": 2.0, "directions": ("rna>protein",), "cycle_weight": 0.5, "source_fraction": 0.5},
        contrastive={"weight": 1.0, "negatives": "technical_batch", "initial_temperature": 0.2},
        profile={"weight": 1.0, "features_per_step": 8, "source_fraction": 0.5},
    )
    mixed = replace(mixed, model=replace(mixed.model, encoder_sharing="multiway", linear_path=False))
    assert from_dict(to_dict(mixed)) == mixed
