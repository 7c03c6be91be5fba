"""Loss against compute: what runs of several sizes reach on held-out cells, for the operations and seconds they cost.

Every point is an evaluation within a run (a row of metrics.jsonl). Its operations are those of all steps until then, as
`flops.py` counts them for cells that have as many tokens as they may; its seconds those of training steps alone, of the
steps that are kept (goodput.py): neither compilation nor evaluation nor what a kill cost.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from data_pipelines.features.feature_space import FeatureSpace
from scmbert_jax.config import ExperimentConfig, load_config
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.evaluation.report.figures import COLOURS, INK, MARKERS, RC
from scmbert_jax.models.flops import counts_of_full_cells, encoder_parameters
from scmbert_jax.objectives.mixture import mixture_flops
from scmbert_jax.text_table import markdown_table
from scmbert_jax.training.goodput import seconds_of_steps
from scmbert_jax.training.run_folder import read_metrics

_DASHES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))


class Curve(NamedTuple):
    """One run.

    Attributes:
      name: of its folder.
      config: of the run.
      steps: int64 [n], at which it was evaluated, ascending.
      flops, seconds, values: float64 [n], until each of them; the metric there.
      beside: name of another metric -> its last value: what does not learn.
    """

    name: str
    config: ExperimentConfig
    steps: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    values: np.ndarray
    beside: dict[str, float]

    @property
    def rung(self) -> ExperimentConfig:
        """What seeds of one rung share."""
        return dataclasses.replace(self.config, seed=0)


def read_curve(run_dir: Path, metric: str, beside: Sequence[str] = ()) -> Curve:
    """The evaluations of a run.

    Args:
      metric: a field of metrics.jsonl, such as validation/loss/loss.
      beside: other fields, drawn as they were last.

    Raises:
      CheckpointError: not a run folder.
      ConfigError: a field that no row has.
    """
    if not (run_dir / "metrics.jsonl").is_file():
        raise CheckpointError(f"{run_dir}: not a run folder (no metrics.jsonl in it).")
    config = load_config(run_dir / "config.json")
    rows = read_metrics(run_dir / "metrics.jsonl")
    found = {
        name: {row["step"]: float(row[name]) for row in rows if row.get(name) is not None} for name in (metric, *beside)
    }
    for name, by_step in found.items():
        if not by_step:
            known = sorted({key for row in rows for key in row if key.startswith("validation/")})
            raise ConfigError(
                f"{run_dir}/metrics.jsonl: no row has {name!r}; there are {', '.join(known) or 'no evaluations'}. Name "
                "another, or train with held-out cells and --validation.every N."
            )
    steps = np.array(sorted(found[metric]))
    # Only `whole_profile` asks how many features there are.
    layout = FeatureSpace.load(run_dir / "feature_space.parquet").layout() if config.profile_tokens else None
    per_step = mixture_flops(config, counts_of_full_cells(config, config.data.global_batch_size, layout))
    spent = seconds_of_steps(read_metrics(run_dir / "goodput.jsonl"))
    ends = np.array([0, *spent])
    seconds = np.array([0.0, *spent.values()])[np.searchsorted(ends, steps, side="right") - 1]
    values = np.array([found[metric][step] for step in steps.tolist()])
    last = {name: found[name][max(found[name])] for name in beside}
    return Curve(run_dir.name, config, steps, steps * per_step, seconds, values, last)


def ladder_table(curves: Sequence[Curve], metric: str) -> str:
    """A markdown table: one line per run, at its last evaluation."""
    beside = list(dict.fromkeys(name for curve in curves for name in curve.beside))
    header = ["run", "parameters per token", "cells", "TFLOP", "seconds", metric, *beside]
    body = [
        [
            curve.name,
            f"{encoder_parameters(curve.config.model):,}",
            f"{curve.steps[-1] * curve.config.data.global_batch_size:,}",
            f"{curve.flops[-1] / 1e12:,.4g}",
            f"{curve.seconds[-1]:,.0f}",
            f"{curve.values[-1]:.4f}",
            *(f"{curve.beside[name]:.4f}" if name in curve.beside else "" for name in beside),
        ]
        for curve in curves
    ]
    return markdown_table(header, body)


def ladder_figure(curves: Sequence[Curve], metric: str) -> Figure:
    """The metric against operations and against seconds, a colour for each rung (seeds share it); dashed, what stands
    beside it, as the mean over the runs."""
    rungs = sorted({curve.rung: encoder_parameters(curve.config.model) for curve in curves}.items(), key=lambda r: r[1])
    styles = {rung: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, (rung, _) in enumerate(rungs)}
    beside = list(dict.fromkeys(name for curve in curves for name in curve.beside))
    with matplotlib.rc_context({**RC, **dict.fromkeys(_INKED, "black")}):
        figure = Figure(figsize=(9.6, 4.6), layout="constrained", facecolor="white")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, what in zip(panels, ("flops", "seconds"), strict=True):
            named = set()
            for curve in curves:
                colour, marker = styles[curve.rung]
                label = None if curve.rung in named else f"{curve.name}: {_millions(curve.config)} per token"
                named.add(curve.rung)
                axes.plot(getattr(curve, what), curve.values, marker=marker, ms=4, lw=1.4, color=colour, label=label)
            for i, name in enumerate(beside):
                value = np.mean([curve.beside[name] for curve in curves if name in curve.beside])
                axes.axhline(value, ls=_DASHES[i % len(_DASHES)], lw=1.2, color="#555555", label=name)
            axes.set(xscale="log")
            axes.grid(alpha=0.25, lw=0.6)
        panels[0].set(xlabel="floating-point operations of training", ylabel=metric)
        panels[1].set(xlabel="seconds of training steps")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


_INKED = [key for key, value in RC.items() if value == INK]


def _millions(config: ExperimentConfig) -> str:
    return f"{encoder_parameters(config.model) / 1e6:.2f} million parameters"
