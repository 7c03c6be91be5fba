"""Figures of the suite `matching`."""

from collections.abc import Sequence

import numpy as np

from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.alignment.result import MatchingReport
from scmbert_jax.evaluation.report.modality_figures import error_per_type, joint_umap
from scmbert_jax.evaluation.report.report import Drawing, Umap


def matching_figures(report: MatchingReport, umaps_of: Sequence[str]) -> tuple[list[Umap], list[Drawing]]:
    """The joint UMAPs of some methods, and the error per cell type of those that can be better than chance."""
    types = report.cell_types
    umaps = [
        joint_umap(name, *report.vectors[name], report.modalities, np.concatenate([types, types])) for name in umaps_of
    ]
    if not (types != "").all():
        return umaps, []
    methods = [name for name in ("model", "CCA", "pseudo-pairs", "links only") if name in report.vectors]
    errors = {name: metrics.foscttm_of_cells(*report.vectors[name], distance="cosine") for name in methods}
    svg = error_per_type(errors, types, "cells closer than the true partner (FOSCTTM)", chance=0.5)
    caption = "Mean over the held-out cells of each type; bars: 95% interval, from five cells on. In brackets: cells."
    return umaps, [("Which cell types are matched", svg, caption)]
