"""What a model can be asked to translate: learned directions, known features, one species and genome build."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.features.feature_mapping import FeatureMapping, map_genes, map_proteins, map_regions
from data_pipelines.features.feature_space import ModalityFeatures
from data_pipelines.features.genome_assembly import assembly_of_genome
from scmbert_jax.errors import InputError
from scmbert_jax.pretrained import PretrainedModel

_CLONE_NUMBER = re.compile(r"\.\d$")


def learned_sources(model: PretrainedModel, target: str) -> tuple[str, ...]:
    """The modalities from which the model has learned to predict `target`.

    A direction is learned from cells that have both modalities (pairs, or pseudo-pairs), or from the cycle there and
    back, which needs none. A direction that was on the list of a run whose corpus had no such cell is not learned.

    Raises:
      InputError: the model cannot translate at all, does not know `target`, or has learned it from nothing.
    """
    objective = model.config.objectives.cross_modal_translation
    in_use = tuple(model.config.modalities.in_use())
    if objective.weight == 0:
        raise InputError(
            "the model was not trained with cross_modal_translation: it cannot translate. Train one with "
            "--objectives.cross-modal-translation.weight above 0."
        )
    if target not in in_use:
        raise InputError(f"target {target!r}: the model knows {', '.join(in_use)}. Use a model trained on {target}.")
    trained = tuple(
        name
        for name in in_use
        if name != target and (not objective.directions or f"{name}>{target}" in objective.directions)
    )
    if not trained:
        raise InputError(
            f"target {target!r}: the model was trained for {', '.join(objective.directions)} only "
            "(objectives.cross_modal_translation.directions)."
        )
    information = model.info["provenance"].get("information")
    learned = tuple(name for name in trained if objective.cycle_weight > 0 or _has_pairs(information, name, target))
    if not learned:
        raise InputError(
            f"target {target!r}: the model's corpus has no cell with both {' or '.join(trained)} and {target}, and it "
            "was trained without the cycle: its predictions would mean nothing. Train on pairs, on pseudo-pairs "
            "(scmbert pseudo-pairs), or with --objectives.cross-modal-translation.cycle-weight above 0."
        )
    return learned


def _has_pairs(information: Mapping[str, Any] | None, source: str, target: str) -> bool:
    """Whether a training cell had both; True where the provenance does not say."""
    cells = (information or {}).get("cells")
    if information is None or cells is None:
        return information is None or information.get("paired_cells") != 0 or bool(information.get("pseudo_pairs"))
    combinations = {combination for counts in cells.values() for combination, number in counts.items() if number}
    return any({source, target} <= set(combination.split("+")) for combination in combinations)


def require_same_space(model: PretrainedModel, target: str, organism: str | None, assembly: str | None) -> None:
    """Raises `InputError` where `target` would be asked in another species or genome build than the model's."""
    space = model.feature_space.modalities[target].space
    kind, _, known = space.partition(":")
    own_organism = model.feature_space.organism
    if organism is not None and own_organism is not None and organism != own_organism:
        raise InputError(
            f"organism {organism}: the model predicts {target} of {space}, which is {own_organism}. A model cannot "
            "translate into another species; use one that was trained on it."
        )
    if kind == "region" and assembly is not None and (assembly_of_genome(assembly) or assembly) != known:
        raise InputError(
            f"assembly {assembly}: the model predicts regions of {known}. A model cannot translate into another "
            "genome build; use one that was trained on it, or lift the predicted regions over."
        )


def target_features(model: PretrainedModel, target: str, asked: Sequence[str] | None) -> np.ndarray:
    """Places int32 [F] of features among those of `target`, in the order asked for, none twice.

    Args:
      asked: ids or names as a file may have them (symbols and aliases, Ensembl ids with a version, antibodies in any
        vendor's spelling and without the number of the clone, regions); None: every feature.

    Raises:
      InputError: a name that is no feature of the model, with those it may have meant.
    """
    known = model.feature_space.modalities[target]
    if asked is None:
        return np.arange(len(known), dtype=np.int32)
    exact: dict[str, list[int]] = {}
    for column in (known.names, known.ids):
        exact.update({name: [place] for place, name in enumerate(column.tolist())})
    found = {name: exact.get(name, []) for name in asked}
    others = [name for name, places in found.items() if not places]
    if others:
        found.update(zip(others, _as_in_a_file(known, others), strict=True))
    unknown = [name for name, places in found.items() if not places]
    if unknown:
        spelt = {name.lower(): name for name in exact}
        near = [spelt[name] for name in difflib.get_close_matches(unknown[0].lower(), list(spelt), n=3)]
        meant = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(
            f"the model does not know {len(unknown):,} of the {len(found):,} {target} features asked for "
            f"({', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}); {meant}It knows {len(known):,} of "
            f"{known.space}, such as {', '.join(known.names[:3].tolist())}."
        )
    if not found:
        raise InputError(f"no {target} feature is asked for; name some, or leave the choice out for all of them.")
    places = [place for name in asked for place in found[name]]
    return np.asarray(list(dict.fromkeys(places)), np.int32)


def _as_in_a_file(known: ModalityFeatures, names: list[str]) -> list[list[int]]:
    """The places of features as the input check of a file would find them; [] where it finds none."""
    kind, _, where = known.space.partition(":")
    mappings: dict[str, Callable[[np.ndarray, str], FeatureMapping]]
    mappings = {"gene": map_genes, "protein": map_proteins, "region": map_regions}
    mapping = mappings[kind](np.array(names, str), where)
    places = np.where(mapping.ids != "", known.index_of(mapping.ids), -1)
    found = [[place] if place >= 0 else [] for place in places.tolist()]
    if kind == "protein":  # "CD3" of a panel with two clones, cd3.1 and cd3.2: both
        clones: dict[str, list[int]] = {}
        for place, antibody in enumerate(known.ids.tolist()):
            clones.setdefault(_CLONE_NUMBER.sub("", antibody), []).append(place)
        found = [own or clones.get(antibody, []) for own, antibody in zip(found, mapping.ids.tolist(), strict=True)]
    return found
