"""Figures of the suite `regulatory`: scores with intervals, scores by labels, and correlations of elements.

Each is an inline SVG string for `write_report`, as those of `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scmbert_jax.evaluation.report.figures import COLOURS, INK, MARKERS, RC, svg_element


class Bar(NamedTuple):
    """A score with its interval. `group`: methods of one group share their colour."""

    name: str
    value: float
    low: float
    high: float
    group: int = 0


def score_bars(bars: Sequence[Bar], axis: str, alt: str, reference: float | None = None) -> str:
    """A point with its interval per method, best above; `reference`: a vertical line (chance, say)."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.4, 0.9 + 0.3 * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        for place, bar in enumerate(sorted(bars, key=lambda bar: bar.value)):
            colour, marker = COLOURS[bar.group % len(COLOURS)], MARKERS[bar.group % len(MARKERS)]
            axes.plot([bar.low, bar.high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot(bar.value, place, marker, color=colour, ms=7)
        if reference is not None:
            axes.axvline(reference, color=INK, lw=0.8, ls=(0, (3, 2)))
        axes.set_yticks(range(len(bars)), [bar.name for bar in sorted(bars, key=lambda bar: bar.value)])
        axes.set(xlabel=axis, ylim=(-0.6, len(bars) - 0.4))
        axes.tick_params(axis="y", length=0)
        return svg_element(figure, alt)


def scores_by_labels(methods: Mapping[str, Mapping[float, tuple[float, float, float]]], axis: str, alt: str) -> str:
    """A line per method: fraction of the labels -> (score, low, high)."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, found) in enumerate(methods.items()):
            fractions = sorted(found)
            # A little apart, so that intervals at one fraction do not hide each other.
            x = np.array(fractions) * 100 * 1.04 ** (number - len(methods) / 2)
            value, low, high = np.array([found[fraction] for fraction in fractions]).T
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
            axes.errorbar(x, value, [value - low, high - value], color=colour, marker=marker, ms=5, lw=1.4, label=name)
        axes.set_xscale("log")
        ticks = sorted({fraction for found in methods.values() for fraction in found})
        axes.set_xticks([100 * tick for tick in ticks], [f"{tick:.0%}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="labels that learn", ylabel=axis)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        return svg_element(figure, alt)


def correlations_of_elements(methods: Mapping[str, Mapping[str, float]], alt: str) -> str:
    """A row per element, a mark per method: Spearman's correlation; elements by the last method's, best above."""
    with matplotlib.rc_context(RC):
        last = list(methods.values())[-1]
        elements = sorted(last, key=lambda name: last[name])
        figure = Figure(figsize=(5.4, 1.2 + 0.22 * len(elements)), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, found) in enumerate(methods.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.plot([found[one] for one in elements], range(len(elements)), marker, color=colour, ms=5.5, label=name)
        axes.axvline(0, color=INK, lw=0.8, ls=(0, (3, 2)))
        axes.set_yticks(range(len(elements)), elements, fontsize=8)
        axes.set(xlabel="Spearman's correlation with measured effects", ylim=(-0.7, len(elements) - 0.3))
        axes.grid(axis="y", color=INK, alpha=0.12, lw=0.6)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower left", frameon=False, fontsize=9)
        return svg_element(figure, alt)
