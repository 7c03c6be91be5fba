"""What `scmbert perturb` gives to people and programs: a table, a JSON document, a report."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.report.figures import COLOURS, INK, RC, svg_element
from scmbert_jax.evaluation.report.report import write_report
from scmbert_jax.interpretation.matched_null import SIGNIFICANT
from scmbert_jax.interpretation.perturb import Perturbation, PerturbedGene
from scmbert_jax.interpretation.perturbation import CELL, PROFILE, STATES
from scmbert_jax.outputs import check_output_file
from scmbert_jax.tasks.whole_file import written_whole
from scmbert_jax.text_table import markdown_table
from scmbert_jax.version import VERSION

FORMAT_VERSION = 1
ENDINGS = {".csv": ",", ".tsv": "\t"}
_SHOWN = 10  # downstream genes of each perturbed gene, in the terminal and the report
_IN_DOCUMENT = 50
_IN_FIGURE = 18
_MOST_FIGURES = 12

RESPONSES = {
    PROFILE: "log1p of the count that is predicted for a cell of the median library size, from the cell embedding",
    CELL: "log1p of the count that is predicted for a cell of the median library size, from the cell embedding and "
    "the gene's row",
    STATES: "1 - cosine of the gene's state before and after, in cells that express it: a size without a direction",
}
NOTES = (
    "These are predictions of a model, not evidence: it has seen which genes go together in cells, and no cell in "
    "which a gene was perturbed. A response beside a Spearman's correlation of the same size tells nothing new.",
    "strength: how far the gene moves downstream genes on the whole, by the median of genes of like expression and "
    "detection; its p is a rank among them, so not below 1 / (1 + matched_genes). z, p and q ask what responds beyond "
    "that: null_mean and null_sd are what genes like it do, brought to its strength.",
    "The smallest p of z that there can be is in the summary. z's of different downstream genes are taken for draws of "
    "one distribution, and those of one matched gene move together; so look at matched_like_it: of the matched genes, "
    "those that have as many downstream genes of q < .05 when they are tested against the others.",
    "Cells without the gene are counted and not perturbed. The library size of a perturbed cell stays as it was.",
    "mean_shift: mean log1p of counts per 10,000 of cells with the gene minus that of cells without it. Where a gene "
    "is removed, what goes with it should fall: agreement with both baselines is then negative.",
)


def check_table_path(path: Path, inputs: list[object], overwrite: bool) -> None:
    """Raises InputError where no table can be written to `path`; to be asked before the work."""
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: a table is written as {' or '.join(ENDINGS)}; give the file one of these endings.")
    check_output_file(path, inputs, overwrite)


def write_table(path: Path, found: Perturbation) -> None:
    """perturbed, cell_type, gene, gene_id, response, ...; see docs/perturb.md. Whole or not at all."""
    text = found.table().to_csv(index=False, sep=ENDINGS[path.suffix], float_format="%.6g").encode()
    with written_whole(path, len(text)) as partial:
        partial.write_bytes(text)


def perturbation_document(found: Perturbation) -> dict[str, Any]:
    """What --json prints; docs/perturb.md says what each field means."""
    options = found.options
    return {
        "format_version": FORMAT_VERSION,
        "scmbert_jax_version": VERSION,
        "model": found.model,
        "data": found.data,
        "perturbation": _what(found),
        "read_out": found.read_out,
        "response": RESPONSES[found.read_out],
        "evidence": "predictions of a model, not evidence of regulation",
        "by": options.by,
        "network": options.network,
        "seed": options.seed,
        "summary": _records(found.summary()),
        "not_scored": _records(found.skipped),
        "cells_without_a_label": found.unlabelled,
        "network_coverage": found.covers or None,
        "matched": [
            {"perturbed": own.name, "cell_type": own.cell_type, "genes": list(own.matched)} for own in found.found
        ],
        "first_genes": [
            {"perturbed": own.name, "cell_type": own.cell_type, "genes": _records(own.genes.head(_IN_DOCUMENT))}
            for own in found.found
        ],
    }


def _what(found: Perturbation) -> str:
    raised = found.options.raise_to
    return "count set to 0" if raised is None else f"count times {raised:g}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON takes them: no number that is none."""
    return [
        {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def printed(found: Perturbation) -> str:
    """What a terminal shows."""
    parts = [*(_sentence(own) for own in found.found), *_further(found)]
    for own in found.found:
        parts.append(f"\n{_label(own)}: the first {_SHOWN} downstream genes ({_what(found)}):\n")
        parts.append(_text_table(_first(own)))
    parts.append("\nPredictions of a model, not evidence of regulation.")
    return "\n".join(parts)


def _label(own: PerturbedGene) -> str:
    return own.name if own.cell_type == "all" else f"{own.name} in {own.cell_type}"


def _sentence(own: PerturbedGene) -> str:
    row = own.summary()
    return (
        f"{_label(own)}: {own.having:,} of {own.cells:,} cells have it, {own.perturbed:,} were perturbed; "
        f"{own.tested.found:,} of {row['tested_genes']:,} downstream genes with q < {SIGNIFICANT:g}; of its "
        f"{len(own.matched)} matched genes {own.tested.like_it} have "
        f"{'as many' if own.tested.found else 'any'}. Strength {row['strength']:.2g} times theirs, "
        f"p {row['p_of_strength']:.2g}. Agreement with Spearman's correlation {row['agrees_with_spearman']:.2f}."
    )


def _further(found: Perturbation) -> list[str]:
    """What was not looked at, and how much of the network was."""
    lines = [f"{found.covers}."] if found.covers else []
    if found.unlabelled:
        lines.append(f"{found.unlabelled:,} cells have no value in obs[{found.options.by!r}] and are left out.")
    return lines + [
        f"{row['perturbed']} in {row['cell_type']}: not scored, {row['with_it']:,} of {row['cells']:,} cells have it."
        for row in found.skipped.to_dict("records")
    ]


def _first(own: PerturbedGene) -> pd.DataFrame:
    return own.genes.head(_SHOWN).drop(columns=["gene_id", "response_sd"])


def _text_table(table: pd.DataFrame) -> str:
    body = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    return markdown_table(list(table.columns), body)


def write_perturbation_report(path: Path, found: Perturbation, run_info: dict[str, Any]) -> None:
    """report.html."""
    tables: list[Any] = [("Summary", _text_table(found.summary()))]
    if len(found.skipped):
        tables.append(("Not scored: too few cells have the gene", _text_table(found.skipped)))
    tables += [(f"{_label(own)}: what responds most", _text_table(_first(own))) for own in found.found]
    caption = (
        "Left: the genes with the largest z (blue), and their z for each matched gene (grey). Right: responses "
        f"of all downstream genes beside co-expression; orange: q < {SIGNIFICANT:g}."
    )
    write_report(
        path,
        title=f"Perturbed in silico: {', '.join(dict.fromkeys(own.name for own in found.found))}",
        run_info={
            "model": found.model,
            "data": found.data,
            "perturbation": _what(found),
            "scmbert_jax": VERSION,
            "options": vars(found.options),
            **run_info,
        },
        summary=[*(_sentence(own) for own in found.found), *_further(found)],
        scores=[(_label(own), perturbation_figure(own), caption) for own in found.found[:_MOST_FIGURES]],
        tables=tables,
        notes=[f"Response: change of {RESPONSES[found.read_out]}.", *NOTES],
    )


def perturbation_figure(own: PerturbedGene) -> str:
    """The first downstream genes beside their null, and all of them beside co-expression."""
    table = own.genes[own.genes["z"].notna()]
    first = table.head(_IN_FIGURE)
    null = own.null_z[:, first.index.to_numpy()]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9, 1.4 + 0.22 * len(first)), layout="constrained")
        left, right = figure.subplots(1, 2)
        places = np.arange(len(first))
        for place in places:
            values = null[:, place][np.isfinite(null[:, place])]
            left.plot(values, np.full(len(values), place), ".", color=COLOURS[7], ms=4, alpha=0.45, mew=0)
        left.plot(first["z"], places, "o", color=COLOURS[0], ms=5)
        left.axvline(0, color=INK, lw=0.6, alpha=0.4)
        left.set(yticks=places, xlabel="z", ylim=(len(first) - 0.4, -0.6))
        left.set_yticklabels(first["gene"].tolist(), fontsize=8)
        left.tick_params(axis="y", length=0)
        significant = (table["q"] < SIGNIFICANT).to_numpy()
        for mine, colour, size in ((~significant, COLOURS[7], 3), (significant, COLOURS[1], 4)):
            some = table[mine]
            right.plot(
                some["spearman"], some["response"], ".", color=colour, ms=size, mew=0, alpha=0.7, rasterized=True
            )
        right.axhline(0, color=INK, lw=0.6, alpha=0.4)
        right.axvline(0, color=INK, lw=0.6, alpha=0.4)
        right.set(xlabel=f"Spearman's correlation with {own.name}", ylabel="response")
        said = ", ".join(f"{gene} {value:.3g}" for gene, value in zip(first["gene"], first["response"], strict=True))
        return svg_element(figure, f"{_label(own)}. Responses: {said}. {int(significant.sum())} genes of q < .05.")
