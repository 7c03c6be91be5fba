"""Figures of the report, each an inline SVG string that follows the page's light or dark colours.

Text stays text and takes the page's colour and font; points are rasterised inside the SVG, so that thousands of cells
stay small. Only matplotlib's object interface is used: no global state, no display.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

Array = np.ndarray

# Okabe and Ito's colours (told apart with any common colour blindness), yellow darkened and black made grey so that
# all eight show on white and on black. Past eight categories the marker changes too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A400", "#8C8C8C")
MARKERS = ("o", "^", "s", "D")
NUMBER_ID = "number-"  # begins the id of a category's number in a scatter; the style sheet gives it a halo
_MARKER_SHAPES = {
    "o": '<circle cx="6" cy="6" r="4.6"/>',
    "^": '<path d="M6 1 11 10.5H1Z"/>',
    "s": '<path d="M1.8 1.8H10.2V10.2H1.8Z"/>',
    "D": '<path d="M6 .6 11.4 6 6 11.4 .6 6Z"/>',
}
INK = "#0a0b0c"  # stands for the page's text colour until the SVG is written
RC: Any = {  # Any: the stubs list every key as a literal
    "svg.fonttype": "none",
    "svg.hashsalt": "scmbert",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
}


class Style(NamedTuple):
    """How one category is drawn, and the number it carries in figure and legend."""

    colour: str
    marker: str
    number: int

    def swatch(self) -> str:
        """A small inline SVG of the marker, for a legend in HTML."""
        shape = _MARKER_SHAPES[self.marker]
        return f'<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true" fill="{self.colour}">{shape}</svg>'


def category_styles(labels: Sequence[Array]) -> dict[str, Style]:
    """One style per category over all given label arrays, in sorted order, so that panels share their colours.

    Colour and marker together differ for up to 32 categories; beyond, the numbers still tell them apart.
    """
    names = sorted({str(name) for array in labels for name in np.asarray(array)})
    return {
        name: Style(COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)], i + 1)
        for i, name in enumerate(names)
    }


def scatter(coords: Array, labels: Array, styles: Mapping[str, Style], *, alt: str) -> str:
    """Cells in two dimensions, coloured by category; categories that form groups carry their number.

    Args:
      coords: float [n, 2]; labels: str [n], each in `styles`; alt: the text for who cannot see it.
    """
    coords, labels = np.asarray(coords, float), np.asarray(labels).astype(str)
    if coords.shape != (labels.size, 2) or not np.isfinite(coords).all():
        raise ValueError(f"a scatter wants finite coordinates [n, 2] for {labels.size} labels; found {coords.shape}")
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5, 4.4), layout="constrained")
        axes = figure.add_subplot()
        size = float(np.clip(16000 / labels.size, 4, 13))
        # Cells are drawn in random order in slices, so that no category lies wholly on top of another.
        for part in np.array_split(np.random.default_rng(0).permutation(labels.size), 8):
            for name in np.unique(labels[part]):
                rows = part[labels[part] == name]
                style = styles[name]
                axes.scatter(
                    coords[rows, 0],
                    coords[rows, 1],
                    s=size,
                    c=style.colour,
                    marker=style.marker,
                    lw=0,
                    alpha=0.85,
                    rasterized=True,
                )
        for name, (x, y) in _number_positions(coords, labels).items():
            text = axes.text(
                x, y, str(styles[name].number), ha="center", va="center", fontsize=11, fontweight="bold", zorder=5
            )
            text.set_gid(f"{NUMBER_ID}{styles[name].number}")
        axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        axes.spines[["left", "bottom"]].set_visible(False)
        return svg_element(figure, alt)


class LossPanel(NamedTuple):
    """A heading and the SVG below it."""

    title: str
    svg: str


def loss_panels(loss_rows: Sequence[Mapping[str, Any]], *, log_steps: bool = False) -> list[LossPanel]:
    """The loss against the step, that of each objective if there are several, then one panel per objective and what it
    predicts (`OBJECTIVE/rna_nll`, `OBJECTIVE/rna_cell_nll`; rows of earlier versions name no objective).

    A thin line holds the logged values, a thick one their running mean over a twentieth of the run. Of a step that was
    logged twice (a run killed and continued) the last row counts.
    """
    rows = list({int(row["step"]): row for row in loss_rows if row.get("loss") is not None}.values())
    rows.sort(key=lambda row: int(row["step"]))
    names_of_rows = dict.fromkeys(key for row in rows for key in row)
    keys = [key for key in names_of_rows if re.fullmatch(r".+_(nll|loss)", key)]
    each = {key: _in_words(key.removesuffix("/loss")) for key in names_of_rows if key.endswith("/loss")}
    panels = [("Loss, all objectives", {"loss": "loss"} | (each if len(each) > 1 else {}))] if rows else []
    names = {"cell_nll": "decoded from the cell embedding alone", "nll": "read at the masked token", "loss": "loss"}
    for stem in dict.fromkeys(re.sub(r"(_cell)?_(nll|loss)$", "", key) for key in keys):
        lines = {f"{stem}_{kind}": name for kind, name in names.items() if f"{stem}_{kind}" in keys}
        panels.append((f"{_in_words(stem)}: negative log-likelihood", lines))
    return [LossPanel(title, _loss_panel(title, lines, rows, log_steps)) for title, lines in panels]


def _in_words(name: str) -> str:
    """masked_modeling/rna -> masked modeling, rna."""
    return name.replace("/", ", ").replace("_", " ")


def _loss_panel(title: str, lines: Mapping[str, str], rows: Sequence[Mapping[str, Any]], log_steps: bool) -> str:
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5, 3.1), layout="constrained")
        axes = figure.add_subplot()
        spoken = []
        for i, (key, name) in enumerate(lines.items()):
            points = [(int(r["step"]), float(r[key])) for r in rows if r.get(key) is not None]
            steps, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
            finite = np.isfinite(values)
            steps, values = steps[finite], values[finite]
            if not values.size:
                spoken.append(f"{name}: no finite value")
                continue
            lost = "" if finite.all() else f" ({int((~finite).sum())} not finite, left out)"
            axes.plot(steps, values, color=COLOURS[i], lw=0.8, alpha=0.4)
            axes.plot(steps, _running_mean(values), color=COLOURS[i], lw=2, label=name + lost)
            spoken.append(f"{name}: {values[0]:.3g} at step {steps[0]}, {values[-1]:.3g} at step {steps[-1]}{lost}")
        axes.set(xlabel="step", xscale="log" if log_steps else "linear")
        axes.grid(axis="y", alpha=0.2, color=INK, lw=0.6)
        if len(lines) > 1 or any("not finite" in s for s in spoken):
            axes.legend(frameon=False, fontsize=9)
        return svg_element(figure, f"{title} against step. " + "; ".join(spoken))


def _running_mean(values: Array) -> Array:
    """Centred mean over n / 20 values, over fewer at the ends. float [n] -> float [n]."""
    reach = values.size // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(values.size) - reach, 0)
    high = np.minimum(np.arange(values.size) + reach + 1, values.size)
    return (sums[high] - sums[low]) / (high - low)


def _number_positions(coords: Array, labels: Array) -> dict[str, Array]:
    """Where each category's number stands: its median cell, pushed apart; {} where categories do not form groups."""
    names = np.unique(labels)
    centres = np.stack([np.median(coords[labels == name], axis=0) for name in names])
    spread = np.stack([np.linalg.norm(coords - centre, axis=1) for centre in centres])  # [names, n]
    within = np.median([np.median(far[labels == name]) for far, name in zip(spread, names, strict=True)])
    between = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    # Technical batches that mix have medians on one spot: numbers there would name the spot, not the batch.
    if len(names) < 2 or np.median(between[~np.eye(len(names), dtype=bool)]) < within:
        return {}
    least = 0.07 * np.ptp(coords, axis=0).max()
    for _ in range(60):
        apart = centres[:, None] - centres[None]
        distance = np.linalg.norm(apart, axis=-1) + np.eye(len(names)) * 1e9
        push = np.clip(least - distance, 0, None)[..., None] / 2 * apart / np.maximum(distance, 1e-9)[..., None]
        centres = centres + push.sum(1)
    return dict(zip(names.tolist(), centres, strict=True))


def svg_element(figure: Figure, alt: str) -> str:
    """The figure as an inline SVG element: no XML prologue, no namespace addresses, unique ids, `currentColor`."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, dpi=220, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace(INK, "currentColor").replace(INK.upper(), "currentColor")
    prefix = f"f{hashlib.sha256((alt + text).encode()).hexdigest()[:10]}-"  # the same page from the same figures
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    text = re.sub(r'(<svg\b[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    head, rest = text.split(">", 1)
    spoken = escape(alt, quote=True)
    return f'{head} class="plot" role="img" aria-label="{spoken}"><title>{spoken}</title>{rest}'
