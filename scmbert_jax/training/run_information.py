"""What a run was told beside counts: measured pairs, pseudo-pairs, labels, links; for provenance.json and in words.

Scores of models can only be compared where this is the same: a model that has seen pairs, or links, or labels, is not
an unpaired one, whatever its objective.
"""

from collections.abc import Mapping
from typing import Any

_MAX_BATCHES = 20  # technical batches listed in words
_LABELS = ("cell_type",)  # obs fields that are answers; as covariates they tell the model what it is asked later
_NOT_RECORDED = "not recorded by the corpus, which an earlier version built"


def run_information(of_corpus: Mapping[str, Any], covariates: Mapping[str, list[str]]) -> dict[str, Any]:
    """`information` of provenance.json: what the data offer, and whether labels are among the covariates.

    Args:
      of_corpus: paired_cells, pseudo_paired_cells (int or None), pseudo_pairs (data set -> how), links (modality ->
        number), cells (technical batch -> set of modalities -> number, or None), unpaired (bool or None). None: not
        recorded. And, of a run that has any, networks (names, edges by kind, held_out, sha256).
      covariates: those that the batches carry.
    """
    return {**of_corpus, "labels": any(name in covariates for name in _LABELS)}


def information_in_words(information: Mapping[str, Any] | None) -> list[str]:
    """One sentence or more per kind of information; None: a run of an earlier version, which did not record it. Of a
    model that another program trained, `imported` says where it came from, and nothing else is known."""
    if information is None:
        return ["Which information it used besides counts is not recorded: an earlier version trained it."]
    if "imported" in information:
        return [f"{information['imported']} Which cells it was trained on, and what else it was told, is not known."]
    return [
        _pairs(information),
        *_pseudo_pairs(information),
        "Labels: cell types were given as a covariate."
        if information["labels"]
        else "Labels: none were used in training.",
        _links(information["links"]),
        *_networks(information.get("networks")),
        *_cells(information["cells"]),
    ]


def _pairs(information: Mapping[str, Any]) -> str:
    if information["unpaired"]:
        return "Pairs: none. The corpus was built unpaired: every cell has one modality, and ids were not compared."
    number = information["paired_cells"]
    if number is None:
        return f"Pairs: {_NOT_RECORDED}."
    if number == 0:
        return "Pairs: none. No cell was measured in several of the modalities that were read."
    return f"Pairs: {number:,} cells in which an assay measured several modalities at once."


def _pseudo_pairs(information: Mapping[str, Any]) -> list[str]:
    if not information["pseudo_pairs"]:
        return []
    how = "; ".join(
        f"{name}: {', '.join(f'{key} {value}' for key, value in stated.items())}"
        for name, stated in information["pseudo_pairs"].items()
    )
    number = information["pseudo_paired_cells"]
    counted = f"{number:,} cells" if number is not None else f"a number of cells {_NOT_RECORDED}"
    return [f"Pseudo-pairs: {counted} that a program, not an assay, put together out of two ({how})."]


def _links(links: Mapping[str, int]) -> str:
    known = [f"{number:,} from {name} features" for name, number in links.items() if number]
    return f"Links to genes, by name or position: {', '.join(known) or 'none'}."


def _networks(networks: Mapping[str, Any] | None) -> list[str]:
    if not networks:
        return []
    held_out = networks["held_out"]
    told = "all of them train" if held_out == "none" else f"some are held out, by {held_out}"
    of_each = zip(networks["names"], networks["licences"], strict=True)
    named = ", ".join(f"{name} (licence: {licence or 'not stated'})" for name, licence in of_each)
    return [f"Networks: {networks['edges']['regulates']:,} edges of {named}; {told}."]


def _cells(cells: Mapping[str, Mapping[str, int]] | None) -> list[str]:
    if cells is None:
        return [f"Cells by technical batch: {_NOT_RECORDED}."]
    listed = [
        f"{batch} ({', '.join(f'{number:,} {combination}' for combination, number in counts.items())})"
        for batch, counts in list(cells.items())[:_MAX_BATCHES]
    ]
    more = f" and {len(cells) - _MAX_BATCHES:,} more" if len(cells) > _MAX_BATCHES else ""
    return [f"Cells by technical batch: {'; '.join(listed)}{more}."]
