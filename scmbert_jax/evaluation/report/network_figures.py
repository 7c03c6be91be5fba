"""Figures of networks: a regulator with its targets, node degree against score, precision among the highest scores.

Each is an inline SVG string for `write_report`, as those of `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scmbert_jax.evaluation.report.figures import COLOURS, INK, NUMBER_ID, RC, svg_element

Array = np.ndarray

FOUND, MISSED, WRONG = "true and found", "true and missed", "found and not true"
_LINES: dict[str, tuple[str, Any, float]] = {
    FOUND: (COLOURS[2], "-", 2.0),
    MISSED: (COLOURS[0], (0, (4, 2)), 1.1),
    WRONG: (COLOURS[3], (0, (1, 1.5)), 1.4),
}
_MARKS = {FOUND: "o", MISSED: "s", WRONG: "^"}
_SIDES = ((COLOURS[0], "o", 9), (COLOURS[3], "^", 26))  # genes, regulators
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)))


def neighbourhood(
    regulator: str, targets: Mapping[str, Sequence[str]], between: Sequence[tuple[str, str]], alt: str
) -> str:
    """A regulator in the middle, its targets around it, by what became of them.

    Args:
      targets: `FOUND`, `MISSED` or `WRONG` -> names of genes; between: true edges among the genes that are drawn.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5, 4.9), layout="constrained")
        axes = figure.add_subplot()
        names = [(name, kind) for kind in _LINES for name in targets.get(kind, ())]
        place = {regulator: (0.0, 0.0)}
        for number, (name, kind) in enumerate(names):
            # Beginning at the right, so that most names are read from the left; in two rings where they are many.
            angle = 2 * np.pi * number / max(len(names), 1)
            reach = 1.0 if len(names) <= 24 or number % 2 == 0 else 1.22
            x, y = place[name] = float(reach * np.cos(angle)), float(reach * np.sin(angle))
            colour, dash, width = _LINES[kind]
            axes.plot([0, x], [0, y], color=colour, ls=dash, lw=width, zorder=1, solid_capstyle="round")
            axes.plot(x, y, _MARKS[kind], color=colour, ms=5.5, zorder=3)
            turned = np.degrees(angle)
            left = 90 < turned < 270
            axes.text(
                x + 0.06 * np.cos(angle),
                y + 0.06 * np.sin(angle),
                name,
                rotation=turned - 180 if left else turned,
                rotation_mode="anchor",
                ha="right" if left else "left",
                va="center",
                fontsize=8,
            )
        for source, target in between:
            axes.annotate(
                "",
                place[target],
                place[source],
                arrowprops={"arrowstyle": "-|>", "color": INK, "alpha": 0.35, "lw": 0.7}
                | {"connectionstyle": "arc3,rad=0.25", "shrinkA": 5, "shrinkB": 5},
                zorder=0,
            )
        axes.plot(0, 0, "o", color=INK, ms=11, zorder=3)
        label = axes.text(0, -0.1, regulator, ha="center", va="top", fontsize=11, fontweight="bold", zorder=4)
        label.set_gid(f"{NUMBER_ID}0")  # with the halo of numbers, over the lines
        for kind, (colour, dash, width) in _LINES.items():
            axes.plot([], [], _MARKS[kind], color=colour, ls=dash, lw=width, ms=5.5, label=kind)
        axes.set(xlim=(-1.75, 1.75), ylim=(-1.6, 1.6), aspect="equal")
        axes.set_axis_off()
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return svg_element(figure, alt)


class Nodes(NamedTuple):
    """Regulators or genes in a panel: int [n] their edges among the pairs that learn; float [n] in 0 .. 1, the mean
    rank of their test pairs; Spearman's correlation of the two."""

    degree: Array
    height: Array
    correlation: float


def degree_against_score(methods: Mapping[str, tuple[Nodes, Nodes]]) -> str:
    """One panel per method, one point per node: how many edges it has, and how high its other pairs score.

    Args:
      methods: name -> regulators, genes.
    """
    with matplotlib.rc_context(RC):
        columns = min(3, len(methods))
        lines = -(-len(methods) // columns)
        figure = Figure(figsize=(3.2 * columns + 0.4, 2.7 * lines + 0.6), layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        rng = np.random.default_rng(0)
        for axes, (method, sides) in zip(panels.flat, methods.items(), strict=False):
            # Genes first: they are many, and regulators lie on top.
            for (colour, mark, size), nodes in zip(_SIDES, sides[::-1], strict=True):
                x = np.maximum(nodes.degree + rng.uniform(-0.25, 0.25, len(nodes.degree)), -0.25)
                axes.scatter(x, nodes.height, s=size, marker=mark, lw=0, alpha=0.6, color=colour, rasterized=True)
            said = f"Spearman: regulators {sides[0].correlation:.2f}, genes {sides[1].correlation:.2f}"
            axes.set_title(f"{_short(method)}\n{said}", fontsize=9.5, loc="left")
            axes.set(ylim=(-0.03, 1.03), xscale="symlog")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.grid(axis="y", alpha=0.2, color=INK, lw=0.6)
        most = max(int(nodes.degree.max(initial=1)) for sides in methods.values() for nodes in sides)
        panels[0, 0].set_xlim(-0.5, most * 1.3)
        for axes in panels.flat[len(methods) :]:
            axes.set_axis_off()
        for (colour, mark, _), name in zip(_SIDES, ("a gene", "a regulator"), strict=True):
            panels[0, 0].plot([], [], mark, color=colour, ms=6, label=name)
        handles = panels[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        figure.supxlabel("edges of the regulator or gene among the pairs that learn", fontsize=10)
        figure.supylabel("mean rank of its test pairs", fontsize=10)
        spoken = "; ".join(
            f"{method}: regulators {own.correlation:.2f}, genes {other.correlation:.2f}"
            for method, (own, other) in methods.items()
        )
        return svg_element(figure, f"Rank of test pairs against number of edges, Spearman's correlation. {spoken}")


def precision_curves(at: Array, precision: Mapping[str, Array], density: float, edges: float) -> str:
    """Precision among the k highest scores of each method.

    Args:
      at: int [K], the k; precision: method -> float [K]; density: precision of random scores; edges: their number.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for number, (method, values) in enumerate(precision.items()):
            colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
            axes.plot(at, values, color=colour, ls=dash, lw=1.8, label=_short(method))
        axes.axhline(density, color=INK, lw=0.8, ls="--", alpha=0.5, label="random scores")
        axes.axvline(edges, color=INK, lw=0.8, ls=":", alpha=0.5)
        axes.text(edges, 1.0, " as many as edges", ha="left", va="top", fontsize=9, alpha=0.7)
        axes.set(xscale="log", xlabel="k highest scores", ylabel="precision", ylim=(0, 1.02))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(axis="y", alpha=0.2, color=INK, lw=0.6)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
        place = int(np.argmin(np.abs(at - edges)))
        spoken = "; ".join(f"{method}: {values[place]:.3f}" for method, values in precision.items())
        return svg_element(figure, f"Precision among the {at[place]:,} highest scores: {spoken}; random: {density:.3f}")


def _short(method: str) -> str:
    return method if len(method) <= 42 else f"{method[:41]}…"
