"""Held-out cells as a trained model is shown them: all that they express, and scores of all their counts.

A training step shows some tokens of a cell; an embedding, a translation or a match of so little of it would say less of
the model than what `scmbert embed` and `scmbert translate` give (tasks/model_cells.py, whose rules these are).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.batches.validation_data import ValidationData
from data_pipelines.statistics.cell_counts import CellCounts
from scmbert_jax.batch import CellBatch
from scmbert_jax.models.linear_path import scores_of_counts
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.parallel.mesh import RULES, batch_to_devices, replicated
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.model_cells import row_width, token_sampling
from scmbert_jax.training.length_groups import cut

_TOKENS_WITHOUT_GRADIENTS = 1 << 14  # of a device call: whatever trains has room for as many


class WholeCellBatches:
    """Batches of cells of like length, so that little padding is computed.

    Args:
      model, mesh, data: of the run.
    """

    def __init__(self, model: ModelDefinition, mesh: Mesh, data: ValidationData):
        config = model.config
        # It computes the same as `xla` without memory of tokens squared: rows are many times as long as in training.
        if config.model.attention == "xla":
            chunked = replace(config.model, attention="xla_chunked")
            model = ModelDefinition(replace(config, model=chunked), model.layout)
        self._model = model
        self._mesh, self._data = mesh, data

    def over_cells(
        self, function: Callable[[Any, Any, CutBatch], Any], linear_path_alone: bool = False
    ) -> Callable[[Any, Any], Any]:
        """Calls a function of (the model, its feature table, a batch) with all the cells.

        Args:
          function: gives arrays whose first dimension is the rows of the batch; it is jitted.
          linear_path_alone: the model is without its transformer.

        Returns:
          A function of (params, constants) that gives numpy arrays whose first dimension is the cells, in their order
          and the same on every process.
        """

        model = self._model.linear_path_alone if linear_path_alone else self._model

        def call(params: Any, constants: Any, batch: CutBatch) -> Any:
            merged = model.merge(params, constants)
            return function(merged, merged.feature_table(), batch)

        compiled = jax.jit(call, out_shardings=replicated(self._mesh))

        def over_all(params: Any, constants: Any) -> Any:
            parts = [
                jax.device_get(compiled(params, constants, batch_to_devices(batch, self._mesh)))
                for batch in self._batches
            ]
            in_order = np.argsort(self._order)
            return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(in_order)][in_order], *parts)

        return over_all

    @cached_property
    def _shown(self) -> CellBatch:
        batch = self._data.shown(token_sampling(self._model))
        layout = self._model.layout
        if not self._model.config.model.linear_path or layout.statistics is None:
            return batch
        scores = {name: self._scores(name, own) for name, own in self._data.whole_cells.modalities.items()}
        return batch._replace(scores=scores)

    def _scores(self, modality: str, own: CellCounts) -> np.ndarray:
        """float32 [cells, K]: 0 where the modality was not measured."""
        rows, statistics = slice(*self._model.layout.slices[modality]), self._model.layout.statistics
        assert statistics is not None
        loadings = np.asarray(self._model.constants["linear"]["loadings"][rows])
        scores = np.zeros((self._data.num_cells, loadings.shape[1]), np.float32)
        for number, panel in enumerate(own.panels):
            mine = np.flatnonzero(own.panel_of == number)
            of_panel = scores_of_counts(loadings, statistics, modality, rows, own.counts[mine], panel)
            scores[own.cells[mine]] = of_panel
        return scores

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.sum([tokens.lengths for tokens in self._shown.modalities.values()], axis=0)

    @cached_property
    def _order(self) -> np.ndarray:
        """int64 [cells], longest first."""
        return np.argsort(-self._lengths, kind="stable")

    @cached_property
    def _batches(self) -> list[CutBatch]:
        """This process's rows of each."""
        return list(self._cut_batches())

    def _cut_batches(self) -> Iterator[CutBatch]:
        config, split = self._model.config, int(np.prod([self._mesh.shape[axis] for axis in RULES["batch"]]))
        room = config.data.global_batch_size // config.train.num_microbatches * config.most_tokens
        room = max(room, _TOKENS_WITHOUT_GRADIENTS)
        start = 0
        while start < len(self._order):
            width = row_width(int(self._lengths[self._order[start]]))
            # What fits in a training step fits here; the devices must share the rows evenly.
            number = max(1, min(room // width, config.data.global_batch_size) // split) * split
            # The last cells are repeated to fill the batch; what is computed of them is cut off.
            cells = np.resize(self._order[start : start + number], number)
            start += number
            mine = np.array_split(cells, jax.process_count())[jax.process_index()]
            yield cut(jax.tree.map(lambda x, rows=mine: x[rows], self._shown), width)
