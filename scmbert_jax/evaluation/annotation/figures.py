"""What is seen of an annotation: who is taken for whom, whether probabilities are true, what refusing the unsure gives,
and what more labels give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from scmbert_jax.evaluation.annotation.scores import REJECTED
from scmbert_jax.evaluation.report.figures import COLOURS, INK, MARKERS, RC, svg_element
from scmbert_jax.evaluation.report.report import Drawing

Array = np.ndarray

MOST_LINES = 8  # more hide each other


@dataclass(frozen=True)
class CasePicture:
    """One case.

    Attributes:
      heading: "Split by cell, all cells".
      classes: C names.
      confusions: method -> float [C, C], true type by called type.
      reliability: method -> (mean score, accuracy, cells) of each bin.
      rejection: method -> float [len(REJECTED)].
    """

    heading: str
    classes: tuple[str, ...]
    confusions: Mapping[str, Array]
    reliability: Mapping[str, Sequence[tuple[float, float, int]]]
    rejection: Mapping[str, Array]

    def drawings(self) -> list[Drawing]:
        found = [
            (
                f"Who is taken for whom: {self.heading}",
                confusion(matrix, self.classes, f"{method}, {self.heading}"),
                method,
            )
            for method, matrix in self.confusions.items()
        ]
        if self.reliability:
            caption = "On the dashed line, a probability is as often right as it says."
            found.append((f"Calibration: {self.heading}", calibration(self.reliability, self.heading), caption))
        if self.rejection:
            caption = "The least certain cells are refused first; accuracy is of those that are left."
            found.append((f"Refusing the unsure: {self.heading}", rejection(self.rejection, self.heading), caption))
        return found


def confusion(matrix: Array, classes: Sequence[str], what: str) -> str:
    """Shares of each true type (rows) by the type they are called (columns)."""
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-9)
    size = 1.6 + 0.42 * len(classes)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(size + 1.2, size), layout="constrained")
        axes = figure.add_subplot()
        # A colour that fades into the page, be it light or dark.
        shown = np.concatenate(
            [np.broadcast_to(to_rgb(COLOURS[0]), (*fractions.shape, 3)), fractions[..., None]], axis=2
        )
        axes.imshow(shown, interpolation="nearest")
        for row, column in zip(*np.nonzero(fractions >= 0.005), strict=True):
            text = f"{fractions[row, column]:.2f}".lstrip("0") if fractions[row, column] < 0.995 else "1"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
        places = range(len(classes))
        axes.set(xticks=places, yticks=places, xlabel="called", ylabel="true")
        axes.set_xticklabels(classes, rotation=45, ha="right", fontsize=9)
        axes.set_yticklabels(classes, fontsize=9)
        axes.tick_params(length=0)
        worst = fractions - np.diag(np.diag(fractions))
        true, called = divmod(int(worst.argmax()), len(classes))
        said = f"most often mistaken: {classes[true]} for {classes[called]}, {worst[true, called]:.0%}"
        return svg_element(figure, f"Confusion of {len(classes)} cell types by {what}; {said}")


def calibration(methods: Mapping[str, Sequence[tuple[float, float, int]]], what: str) -> str:
    """Accuracy against the score that was given, in bins."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls="--", alpha=0.5)
        for m, (method, bins) in enumerate(methods.items()):
            x, y, _ = zip(*bins, strict=True)
            axes.plot(x, y, MARKERS[m % 4], ls="-", color=COLOURS[m % len(COLOURS)], ms=4, lw=1.2, label=method)
        axes.set(
            xlabel="calibrated probability of the label", ylabel="fraction that is right", xlim=(0, 1), ylim=(0, 1.02)
        )
        return _with_legend(figure, axes, f"Calibration, {what}: " + ", ".join(methods))


def rejection(methods: Mapping[str, Array], what: str) -> str:
    """Accuracy of what is left against the fraction refused."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for m, (method, curve) in enumerate(methods.items()):
            axes.plot(REJECTED, curve, color=COLOURS[m % len(COLOURS)], lw=1.5, label=method)
        axes.set(xlabel="fraction of the cells that is refused", ylabel="accuracy of the others", xlim=(0, 0.9))
        said = ", ".join(
            f"{method} {curve[0]:.3f} of all, {curve[4]:.3f} without a fifth" for method, curve in methods.items()
        )
        return _with_legend(figure, axes, f"Accuracy when the unsure are refused, {what}: {said}")


def by_labels(methods: Mapping[str, Sequence[tuple[int, float, float]]], what: str) -> str:
    """Macro-F1 against labelled cells per type; each point (number, mean, half of its interval)."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for m, (method, points) in enumerate(methods.items()):
            x, y, half = map(np.array, zip(*points, strict=True))
            axes.errorbar(
                x,
                y,
                yerr=np.nan_to_num(half),
                fmt=MARKERS[m % 4],
                ls="-",
                color=COLOURS[m % len(COLOURS)],
                ms=5,
                lw=1.3,
                capsize=2.5,
                label=method,
            )
        numbers = sorted({number for points in methods.values() for number, _, _ in points})
        axes.set(xscale="log", xlabel="labelled cells of each type", ylabel="macro-F1", xticks=numbers)
        axes.set_xticklabels(list(map(str, numbers)))
        axes.minorticks_off()
        said = "; ".join(f"{method}: {', '.join(f'{y:.3f} at {x}' for x, y, _ in p)}" for method, p in methods.items())
        return _with_legend(figure, axes, f"Macro-F1 by labelled cells of each type, {what}. {said}")


def _with_legend(figure: Figure, axes: matplotlib.axes.Axes, alt: str) -> str:
    axes.grid(alpha=0.2, color=INK, lw=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return svg_element(figure, alt)
