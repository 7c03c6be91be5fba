"""The scores of the probe as a figure."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scmbert_jax.evaluation.probe.result import MEAN_OVER_BATCHES, ProbeResult
from scmbert_jax.evaluation.report.figures import COLOURS, INK, MARKERS, RC, svg_element
from scmbert_jax.evaluation.report.report import Drawing
from scmbert_jax.text_table import modality_name


def score_drawing(result: ProbeResult) -> Drawing:
    """`score_figure` with its heading and caption, for `write_report(scores=)`."""
    caption = (
        f"Large marks: mean over each {result.split} held out, with the 95% interval over seeds. "
        f"Small faint marks: every {result.split}."
    )
    return f"Scores by method, {modality_name(result.modality)} cells", score_figure(result), caption


def score_figure(result: ProbeResult) -> str:
    """Methods against scores: a filled mark is the mean over held-out batches with its 95% interval over seeds, the
    faint ones are the held-out batches."""
    methods = list(dict.fromkeys(row.method for row in result.rows))
    probes = list(dict.fromkeys(row.probe for row in result.rows))
    names = {"accuracy": "accuracy", "macro_f1": "macro-F1", "linear": "linear probe", "knn": "kNN"}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8.4, 0.55 * len(methods) + 1.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, metric in zip(panels, ("accuracy", "macro_f1"), strict=True):
            for p, probe in enumerate(probes):
                colour, marker = COLOURS[p], MARKERS[2 * p % 4]
                heights = np.arange(len(methods)) + 0.26 * (p - (len(probes) - 1) / 2)
                for height, method in zip(heights, methods, strict=True):
                    for fold in result.folds:
                        each = result.row(method, probe, metric, fold.held_out).mean
                        axes.plot(each, height, marker, color=colour, ms=4, alpha=0.3, mew=0)
                    row = result.row(method, probe, metric, MEAN_OVER_BATCHES)
                    half = 0.0 if math.isnan(row.half_width) else row.half_width
                    axes.errorbar(row.mean, height, xerr=half, fmt=marker, color=colour, ms=7, capsize=3, lw=1.5)
                axes.plot([], [], marker, color=colour, label=names.get(probe, probe))
            axes.set(xlabel=names[metric], xlim=(0, 1.02), yticks=range(len(methods)), yticklabels=methods)
            axes.grid(axis="x", alpha=0.2, color=INK, lw=0.6)
            axes.tick_params(length=0)
        panels[0].invert_yaxis()
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(probes), frameon=False
        )
        best = ", ".join(f"{m} {result.row(m, probes[0], 'accuracy').mean:.3f}" for m in methods)
        return svg_element(
            figure, f"{result.modality}: accuracy of the {names.get(probes[0], probes[0])} by method: {best}"
        )
