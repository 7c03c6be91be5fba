"""The folder of an explanation: tables, a JSON document, and a report that people read.

explanation.json       figures with their intervals, options, provenance
attributions.parquet   type x expressed feature: mean attributions by each method, beside figures that need no model
markers.csv            of these, the first 50 of each type
deletion.csv           probabilities as features are set to 0
sanity.csv             agreement with an untrained model, permuted labels, expression
report.html            all of it, with a heat map
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scmbert_jax.annotation.representation import ModelRepresentation
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.report.report import write_report
from scmbert_jax.interpretation.attributions import GRADIENT_X_INPUT, INTEGRATED_GRADIENTS, ROLLOUT
from scmbert_jax.interpretation.deletion import BY_EXPRESSION, NUMBERS, RANDOM
from scmbert_jax.interpretation.explain import Explanation
from scmbert_jax.interpretation.figures import deletion_figure, heat_map
from scmbert_jax.outputs import EXPLANATION, check_output_folder, partial_beside, put_folder
from scmbert_jax.text_table import markdown_table
from scmbert_jax.version import VERSION

FORMAT_VERSION = 1
MOST_MARKERS = 50  # of a type, in markers.csv
_IN_REPORT = 10
NOT_REGULATION = "not evidence of regulation"

BASELINE = (
    "the same cell, each feature with the value of a count of 0: the tokens keep their features, the cell its library "
    "size, and the linear path has each value at 0"
)
NOTES = (
    "An attribution says what the annotator's logit of a type (minus the mean logit of all types) comes from, in "
    "these cells. It says nothing of what causes a type, and nothing of which gene regulates which.",
    f"Baseline: {BASELINE}. Another baseline gives other attributions.",
    "Attributions of a group of features that say the same are shared among them as the model happens to: a feature "
    "with a small attribution may still be a marker.",
    "Wilcoxon's z, mean expression, variance and detection rate need no model. Where attributions rank features as "
    "these do, they add nothing that is not seen without a model.",
    "Types are the annotator's own calls unless a column of labels was named; then Wilcoxon's test is of groups that "
    "were made from the same counts, and its z is too large.",
    f"Attention rollout is {NOT_REGULATION}: it is what [CLS] looked at, the same for every type, and no part of a "
    "sum.",
    "Deletion makes cells that no one has measured. The curves compare rankings; what they say of a cell without a "
    "gene is another question.",
)


def sanity_table(found: Explanation) -> pd.DataFrame:
    """A row for each method and control: Spearman's correlation of attributions within cells, and of their sizes."""
    rows = [
        {
            "method": method,
            "control": control,
            "spearman": own.signed.mean,
            "low": own.signed.low,
            "high": own.signed.high,
            "spearman_of_sizes": own.absolute.mean,
            "sizes_low": own.absolute.low,
            "sizes_high": own.absolute.high,
        }
        for method, controls in found.sanity.items()
        for control, own in controls.items()
    ]
    return pd.DataFrame(rows)


def deletion_table(found: Explanation) -> pd.DataFrame:
    """A row for each ranking and number of features deleted."""
    rows = [
        {"ranking": ranking, "deleted": number, "probability": own.mean, "low": own.low, "high": own.high}
        for ranking in found.curves.probabilities
        for number, own in zip(NUMBERS, found.curves.curve(ranking), strict=True)
    ]
    return pd.DataFrame(rows)


def area_table(found: Explanation) -> pd.DataFrame:
    """A row for each method and control ranking: the area between their deletion curves."""
    rows = []
    for method in found.methods:
        for other in (RANDOM, BY_EXPRESSION):
            own = found.curves.area_below(method, other)
            rows.append({"method": method, "against": other, "area": own.mean, "low": own.low, "high": own.high})
    return pd.DataFrame(rows)


def completeness_table(found: Explanation) -> pd.DataFrame:
    """A row for each method that is a sum: the sum of attributions against f(cell) - f(baseline), means over cells."""
    rows = []
    for method, own in found.attributed.items():
        error = own.relative_error()
        if error is not None and own.found is not None and own.baseline is not None:
            rows.append(
                {
                    "method": method,
                    "sum_of_attributions": float(np.asarray(own.values.sum(axis=1)).mean()),
                    "difference": float((own.found - own.baseline).mean()),
                    "relative_error": error,
                }
            )
    return pd.DataFrame(rows)


def sentences(found: Explanation) -> list[str]:
    """What was found, for people."""
    said = [
        f"{int(found.cells.sum()):,} cells of {len(found.types)} types explained by {', '.join(found.methods)}, of "
        f"annotator {found.annotator.name} ({found.annotator.method})."
    ]
    for row in completeness_table(found).to_dict("records"):
        whole = "" if row["method"] != GRADIENT_X_INPUT else " (it is not meant to be complete)"
        said.append(
            f"{row['method']}: attributions sum to {row['sum_of_attributions']:.4f}, f(cell) - f(baseline) is "
            f"{row['difference']:.4f}, relative error {row['relative_error']:.2e}{whole}."
        )
    for method in found.methods:
        controls = ", ".join(f"{name} {own.signed.mean:.2f}" for name, own in found.sanity[method].items())
        said.append(f"{method}: Spearman within cells with {controls}.")
        areas = [found.curves.area_below(method, other) for other in (RANDOM, BY_EXPRESSION)]
        against = " and ".join(
            f"{own.mean:.3f} [{own.low:.3f}, {own.high:.3f}] more than deleting {other}"
            for own, other in zip(areas, ("random ones", "the most expressed"), strict=True)
        )
        said.append(f"{method}: deleting its first features lowers the type's probability by {against}.")
    if ROLLOUT in found.methods:
        said.append(f"{ROLLOUT}: {NOT_REGULATION}.")
    return said


def printed(found: Explanation) -> str:
    """What a terminal shows: what was found, and how attributions agree with figures that need no model."""
    parts = sentences(found)
    for method in found.methods:
        table = found.agreement_with_figures(method)
        body = [[_text(value) for value in row] for row in table.itertuples(index=False)]
        label = f"{method} ({NOT_REGULATION})" if method == ROLLOUT else method
        parts.append(f"\nSpearman of a type's mean attributions by {label} with simple figures:\n")
        parts.append(markdown_table(list(table.columns), body))
    return "\n".join(parts)


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_explanation(folder: Path, found: Explanation, overwrite: bool = False) -> None:
    """Writes the folder, whole or not at all. Raises `ConfigError` where it cannot be written, or is there."""
    check_output_folder(folder, EXPLANATION, (), overwrite)
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(folder)
        partial.mkdir()
        markers = found.markers()
        markers.to_parquet(partial / "attributions.parquet", index=False)
        markers[markers["rank"] <= MOST_MARKERS].to_csv(partial / "markers.csv", index=False)
        deletion_table(found).to_csv(partial / "deletion.csv", index=False)
        sanity_table(found).to_csv(partial / "sanity.csv", index=False)
        document = json.dumps(explanation_document(found), indent=2, allow_nan=False)
        (partial / "explanation.json").write_text(document + "\n", encoding="utf-8")
        _write_report(partial / "report.html", found, markers)
        put_folder(partial, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: the explanation cannot be written ({error.strerror}).") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def explanation_document(found: Explanation) -> dict[str, Any]:
    """What stands in explanation.json; docs/explain.md says what each field means."""
    options, told = found.options, found.annotations
    return {
        "format_version": FORMAT_VERSION,
        "scmbert_jax_version": VERSION,
        "annotator": found.annotator.name,
        "annotator_method": found.annotator.method,
        "data": told.report.path,
        "feature_coverage": dict(told.coverage),
        "methods": list(found.methods),
        "warnings": {ROLLOUT: NOT_REGULATION} if ROLLOUT in found.methods else {},
        "explained": "logit of the type minus the mean logit of all types",
        "baseline": BASELINE,
        "types": dict(zip(found.types, found.cells.tolist(), strict=True)),
        "cells_by": options.label_key or "the annotator's own calls",
        "steps": options.steps if INTEGRATED_GRADIENTS in found.methods else None,
        "seed": options.seed,
        "completeness": completeness_table(found).to_dict("records"),
        "agreement_with_figures": {
            method: found.agreement_with_figures(method).to_dict("records") for method in found.methods
        },
        "sanity": sanity_table(found).to_dict("records"),
        "not_done": _not_done(found),
        "deletion": {
            "cells": len(found.curves.probabilities[RANDOM]),
            "curves": deletion_table(found).to_dict("records"),
            "areas": area_table(found).to_dict("records"),
        },
    }


def _not_done(found: Explanation) -> dict[str, str]:
    said = {}
    if not isinstance(found.annotator.representation, ModelRepresentation):
        said["untrained model"] = "the annotator has principal components and no model"
    if ROLLOUT in found.methods:
        said["permuted labels for attention_rollout"] = "rollout does not know of labels"
    if not any("permuted" in control for controls in found.sanity.values() for control in controls):
        said["permuted labels"] = "rollout does not know of labels, or there are cells of one type alone"
    return said


def _write_report(path: Path, found: Explanation, markers: pd.DataFrame) -> None:
    first = found.methods[0]
    tables: list[Any] = [
        ("Completeness", completeness_table(found).to_dict("records")),
        ("Sanity: Spearman within cells, beside controls", sanity_table(found).to_dict("records")),
        ("Area between deletion curves", area_table(found).to_dict("records")),
    ]
    for method in found.methods:
        label = f"{method} ({NOT_REGULATION})" if method == ROLLOUT else method
        heading = f"Spearman of a type's mean attributions with simple figures: {label}"
        tables.append((heading, found.agreement_with_figures(method).to_dict("records")))
    shown = markers[markers["rank"] <= _IN_REPORT].drop(columns=["feature_id"])
    tables.append((f"The first {_IN_REPORT} features of each type by {first}", shown.to_dict("records")))
    caption = f"Mean attribution over the cells of each type, of features among the first of any. By {first}."
    drawings = [
        ("What types come from", heat_map(found), caption),
        ("Deletion", deletion_figure(found), f"{len(found.curves.probabilities[RANDOM]):,} cells; bands are 95%."),
    ]
    told = explanation_document(found)
    write_report(
        path,
        title=f"What annotator {found.annotator.name} sees",
        summary=sentences(found),
        tables=tables,
        scores=drawings,
        notes=NOTES,
        run_info={
            name: told[name]
            for name in ("scmbert_jax_version", "annotator", "annotator_method", "data", "types", "cells_by", "steps")
        },
    )
