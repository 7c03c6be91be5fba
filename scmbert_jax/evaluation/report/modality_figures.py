"""Figures of two modalities in one space: who lies with whom, which types are missed, what was predicted for a feature.

Each is an inline SVG string for `write_report`, as those of `figures`.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.intervals import student_t_interval
from scmbert_jax.evaluation.report.figures import COLOURS, INK, MARKERS, RC, svg_element
from scmbert_jax.evaluation.report.projection import compute_umap
from scmbert_jax.evaluation.report.report import Umap

Array = np.ndarray

_FEWEST_CELLS = 5  # of a type, for an interval to be drawn: that of three cells would fill the panel


def joint_umap(title: str, first: Array, second: Array, modalities: tuple[str, str], types: Array) -> Umap:
    """One UMAP of the cells seen in either modality, for `write_report(umaps=)`; coloured by modality and by type.

    Args:
      first, second: float [n, d], [m, d] in one space, compared by cosine; types: str [n + m], "" where unknown.
    """
    both = np.concatenate([first, second])
    both = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    colours = {"modality": [modalities[0]] * len(first) + [modalities[1]] * len(second)}
    if (np.asarray(types) != "").all():
        colours["cell type"] = [str(name) for name in types]
    return title, compute_umap(both, 0), colours


def error_per_type(errors: Mapping[str, Array], types: Array, axis: str, *, chance: float | None = None) -> str:
    """One line per cell type, one mark per method: the mean error of the type's cells, its 95% interval over 5 or more.

    Args:
      errors: method -> float [n], the error of each cell (smaller is better); types: str [n].
      axis: what the error is, with its unit. chance: drawn as a line.
    """
    with matplotlib.rc_context(RC):
        figure = draw_error_per_type(errors, types, axis, chance)
        said = "; ".join(f"{method}: {np.mean(values):.3g}" for method, values in errors.items())
        return svg_element(figure, f"{axis} by cell type, mean over all cells: {said}")


def draw_error_per_type(errors: Mapping[str, Array], types: Array, axis: str, chance: float | None) -> Figure:
    types = np.asarray(types).astype(str)
    names, counts = np.unique(types, return_counts=True)
    names = names[np.argsort(-counts, kind="stable")]
    figure = Figure(figsize=(6.2, 0.42 * len(names) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for m, (method, values) in enumerate(errors.items()):
        shift = 0.5 * ((m + 0.5) / len(errors) - 0.5)
        means, halves = [], []
        for name in names:
            of_type = np.asarray(values, float)[types == name]
            interval = student_t_interval(of_type)
            means.append(interval.mean)
            halves.append(interval.half_width if len(of_type) >= _FEWEST_CELLS else 0.0)
        # An error is not negative, and neither is the interval that is drawn of it.
        low = np.minimum(halves, means)
        axes.errorbar(
            means,
            np.arange(len(names)) + shift,
            xerr=np.stack([low, halves]),
            fmt=MARKERS[m % len(MARKERS)],
            color=COLOURS[m % len(COLOURS)],
            ms=5.5,
            capsize=2.5,
            lw=1.3,
            label=method,
        )
    if chance is not None:
        axes.axvline(chance, color=INK, lw=0.8, ls="--", alpha=0.5)
        axes.text(chance, -0.75, "chance", ha="right", va="center", fontsize=9, alpha=0.7)
    labels = [f"{name} ({int((types == name).sum()):,})" for name in names]
    axes.set(yticks=range(len(names)), yticklabels=labels, xlabel=axis, ylim=(-1.1, len(names) - 0.4))
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.2, color=INK, lw=0.6)
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def predicted_versus_measured(
    measured: Array,
    predicted: Array,
    names: Sequence[str],
    unit: str,
    types: Array | None = None,
) -> str:
    """One panel per feature: each cell's measured value against the predicted one, its Pearson correlation above.

    Args:
      measured, predicted: float [n, f] in the same unit, one column per name; unit: for the axes, "log1p", "CLR" ...
      types: str [n], the cells' types: colours them; None: one colour.
    """
    with matplotlib.rc_context(RC):
        figure, correlations = draw_predicted_versus_measured(measured, predicted, names, unit, types)
        said = ", ".join(f"{name} r = {r:.2f}" for name, r in zip(names, correlations, strict=True))
        return svg_element(figure, f"Predicted against measured values of {len(measured)} cells: {said}")


def draw_predicted_versus_measured(
    measured: Array, predicted: Array, names: Sequence[str], unit: str, types: Array | None
) -> tuple[Figure, list[float]]:
    measured, predicted = np.asarray(measured, float), np.asarray(predicted, float)
    if measured.shape != predicted.shape or measured.shape != (len(measured), len(names)):
        raise ValueError(f"expected [n, {len(names)}] twice; found {measured.shape} and {predicted.shape}")
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.75 * lines + (0.7 if types is not None else 0.1)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    groups = np.full(len(measured), "") if types is None else np.asarray(types).astype(str)
    order = np.random.default_rng(0).permutation(len(measured))
    correlations = []
    for axes, name, x, y in zip(panels, names, measured.T, predicted.T, strict=False):
        for g, group in enumerate(np.unique(groups)):
            rows = order[groups[order] == group]
            axes.scatter(
                x[rows],
                y[rows],
                s=float(np.clip(4000 / len(x), 3, 12)),
                c=COLOURS[g % len(COLOURS)],
                marker=MARKERS[g // len(COLOURS) % len(MARKERS)],
                lw=0,
                alpha=0.7,
                rasterized=True,
                label=group or None,
            )
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color=INK, lw=0.8, ls="--", alpha=0.5)
        correlations.append(metrics.mean_pearson(x[:, None], y[:, None], per="feature"))
        axes.set_title(f"{name}   r = {correlations[-1]:.2f}", fontsize=10, loc="left")
        axes.set(xlabel=f"measured ({unit})", ylabel=f"predicted ({unit})")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    if types is not None:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9, markerscale=2)
    return figure, correlations
