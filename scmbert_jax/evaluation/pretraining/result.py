"""What the `pretraining` suite found: bits per masked token as tables, sentences, figures and JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.intervals import CellInterval
from scmbert_jax.evaluation.pretraining.masked_baselines import MARGINAL, MASKED_BASELINES
from scmbert_jax.evaluation.pretraining.masked_cells import METRIC_NAMES
from scmbert_jax.evaluation.pretraining.masked_values import MODEL, MODEL_FROM_CLS, MODEL_PROFILE, MaskedBits
from scmbert_jax.evaluation.report.figures import COLOURS, INK, MARKERS, RC, svg_element
from scmbert_jax.text_table import markdown_table, modality_name

_STRONGEST, *_OTHERS = (own.name for own in reversed(MASKED_BASELINES))
BASELINES = (_STRONGEST, LINEAR_PATH_ALONE, *_OTHERS)


@dataclass(frozen=True)
class PretrainingReport:
    """All of one call.

    Attributes:
      data, training: what was scored, what the baselines were fitted on.
      bits: of each modality.
      resampled: what the intervals resample: "cells" or "donors".
      notes: protocol, coverage and what the model has seen, as sentences.
    """

    data: str
    training: str
    bits: tuple[MaskedBits, ...]
    resampled: str
    notes: tuple[str, ...] = ()

    def tables(self) -> list[tuple[str, str]]:
        """(heading, markdown table): of each modality a line per method, fewest bits first; then the differences."""
        found = [(f"{modality_name(own.modality)}, bits per masked token", _levels_table(own)) for own in self.bits]
        return [*found, ("The model compared with each", self._differences())]

    def _differences(self) -> str:
        body = []
        for own in self.bits:
            for method in _models(own):
                for other in (name for name in BASELINES if name in own.bits):
                    found = own.interval(method, minus=other)
                    difference = [f"{found.mean:+.4f}", f"[{found.low:+.4f}, {found.high:+.4f}]"]
                    body.append([modality_name(own.modality), f"{method} - {other}", *difference, _verdict(found)])
        body.sort(key=lambda row: ("worse", "no clear difference", "better").index(row[-1]))
        return markdown_table(["modality", "difference", "bits", f"95% over {self.resampled}", "verdict"], body)

    def sentences(self) -> list[str]:
        """One per modality: the model, the best of what stands beside it, and which of the two is ahead."""
        found = []
        for own in self.bits:
            model = min(_models(own), key=own.mean)
            best = min((name for name in BASELINES if name in own.bits), key=own.mean)
            of = own.interval(model, minus=best)
            ahead = {"worse": "the model is behind", "better": "the model is ahead"}.get(
                _verdict(of), "no clear winner"
            )
            found.append(
                f"{modality_name(own.modality)}: {own.mean(model):.3f} bits per masked token ({model}), "
                f"{own.mean(best):.3f} of the best baseline ({best}): {ahead}, {of.mean:+.4f} [{of.low:+.4f}, "
                f"{of.high:+.4f}]."
            )
        return found

    def text(self) -> str:
        """What `scmbert evaluate pretraining` prints."""
        parts = [f"{heading}\n\n{table}" for heading, table in self.tables()]
        return "\n\n".join([*parts, "\n".join([*self.sentences(), *self.notes])])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; an interval that is not known is null."""
        rows, differences = [], []
        for own in self.bits:
            for method in own.bits:
                whole = {"bits": own.mean(method), **_bounds(own.interval(method)), "tokens": int(own.tokens.sum())}
                rows.append({"modality": own.modality, "method": method, "level": "all", **whole})
                for level in own.used_levels:
                    part = {"bits": own.mean(method, level), "tokens": int(own.tokens[:, level].sum())}
                    rows.append({"modality": own.modality, "method": method, "level": own.levels[level], **part})
            for method in _models(own):
                for other in (name for name in BASELINES if name in own.bits):
                    of = own.interval(method, minus=other)
                    names = {"modality": own.modality, "method": method, "minus": other}
                    differences.append({**names, "bits": of.mean, **_bounds(of), "verdict": _verdict(of)})
        return {
            "suite": "pretraining",
            "data": self.data,
            "training": self.training,
            "cells": {own.modality: int(np.count_nonzero(own.tokens.sum(axis=1))) for own in self.bits},
            "resampled": self.resampled,
            "rows": rows,
            "differences": differences,
            "notes": list(self.notes),
        }

    def drawings(self) -> list[tuple[str, str, str]]:
        """(heading, SVG, caption), two for each modality, for `write_report`."""
        found = []
        for own in self.bits:
            heading = f"Bits by expression level, {modality_name(own.modality)}"
            costs = {method: [own.mean(method, level) for level in own.used_levels] for method in _by_bits(own)}
            saved = {method: np.subtract(costs[MARGINAL], of).tolist() for method, of in costs.items()}
            found.append((heading, _levels_figure(own, costs, "bits per masked token"), "What a masked token costs"))
            caption = "Bits saved, compared with each feature alone: above 0 is better"
            found.append((heading, _levels_figure(own, saved, "bits saved per masked token"), caption))
        return found


def _models(own: MaskedBits) -> list[str]:
    return [name for name in (MODEL, MODEL_FROM_CLS, MODEL_PROFILE) if name in own.bits]


def _verdict(difference: CellInterval) -> str:
    """Of a model's bits less another's."""
    if math.isnan(difference.low) or difference.low <= 0 <= difference.high:
        return "no clear difference"
    return "worse" if difference.low > 0 else "better"


def _bounds(interval: CellInterval) -> dict[str, float | None]:
    known = not math.isnan(interval.low)
    return {"low": interval.low if known else None, "high": interval.high if known else None}


def _by_bits(own: MaskedBits) -> list[str]:
    return sorted(own.bits, key=own.mean)


def _levels_table(own: MaskedBits) -> str:
    used = own.used_levels
    number = [f"{int(own.tokens[:, level].sum()):,}" for level in used]
    body = []
    for method in _by_bits(own):
        of = own.interval(method)
        interval = "-" if math.isnan(of.low) else f"[{of.low:.3f}, {of.high:.3f}]"
        body.append([method, f"{of.mean:.4f}", interval, *(f"{own.mean(method, level):.2f}" for level in used)])
    body.append(["tokens", f"{int(own.tokens.sum()):,}", "-", *number])
    return markdown_table(["method", "all", "95%", *(own.levels[level] for level in used)], body)


def _levels_figure(own: MaskedBits, lines: Mapping[str, Sequence[float]], label: str) -> str:
    places = range(len(own.used_levels))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for method, values in lines.items():
            axes.plot(places, values, **_style(method), ms=5, lw=1.6, label=method)
        axes.set(xticks=places, xticklabels=[own.levels[level] for level in own.used_levels])
        axes.set(xlabel="what was measured", ylabel=label)
        axes.tick_params(axis="x", rotation=35 if len(places) > 5 else 0)
        axes.grid(axis="y", alpha=0.2, color=INK, lw=0.6)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        spoken = ", ".join(f"{method} {own.mean(method):.3f}" for method in lines)
        return svg_element(figure, f"{modality_name(own.modality)}, {label} by level. Bits over all levels: {spoken}")


def _style(method: str) -> dict[str, Any]:
    """The same colour and marker for a method in all figures."""
    place = list(METRIC_NAMES).index(method)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def run_drawings(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(heading, SVG, caption): the evaluations of `masked` within a run, rows of its metrics.jsonl; none where it had
    none."""
    found = []
    prefix, methods = "validation/masked/", {name: method for method, name in METRIC_NAMES.items()}
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(prefix))
    for modality in dict.fromkeys(key.removeprefix(prefix).split("/")[0] for key in keys):
        of = {name: f"{prefix}{modality}/{name}" for name in methods if f"{prefix}{modality}/{name}" in keys}
        if not of:
            continue
        curves = {
            methods[name]: [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            for name, key in of.items()
        }
        caption = "Held-out cells, after each evaluation. Dashed: baselines, fitted once on training cells"
        heading = f"Validation while it trained, {modality_name(modality)}"
        found.append((heading, _run_figure(modality, {name: of for name, of in curves.items() if of}), caption))
    return found


def _run_figure(modality: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5, 3.9), layout="constrained")
        axes = figure.add_subplot()
        spoken = []
        for method in (name for name in METRIC_NAMES if name in curves):
            steps, values = zip(*curves[method], strict=True)
            spoken.append(f"{method} {values[-1]:.3f}")
            style = _style(method)
            if method in (_STRONGEST, *_OTHERS):
                axes.axhline(values[-1], color=style["color"], lw=1.4, ls="--", label=method)
            else:
                axes.plot(steps, values, **style, ms=4, lw=1.8, label=method)
        axes.set(xlabel="step", ylabel="bits per masked token")
        axes.grid(axis="y", alpha=0.2, color=INK, lw=0.6)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        return svg_element(figure, f"{modality_name(modality)}, bits per masked token at the end: {', '.join(spoken)}")
