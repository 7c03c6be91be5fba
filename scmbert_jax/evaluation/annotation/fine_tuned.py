"""Fine-tuned models as methods: one fine-tuning for each task, stopped and calibrated by a part of its cells."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from scmbert_jax.annotation.fine_tuning import FineTuningOptions, fine_tune
from scmbert_jax.annotation.label_tree import LabelTree
from scmbert_jax.annotation.reference import Reference
from scmbert_jax.annotation.scbert_head import with_gene_head
from scmbert_jax.evaluation.annotation.novelty import novelty_scores
from scmbert_jax.evaluation.annotation.task import CellValues, Predictions, Task
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import embed_dataset
from scmbert_jax.tasks.model_cells import ModelCells

Array = np.ndarray

VERSION = 1  # of what is computed below


@dataclass(frozen=True)
class FineTunedModels:
    """Models, one seed after the other, fine-tuned on the cells of a task, as a `Method`.

    Attributes:
      models: a task of seed s gets the model s modulo their number.
      reads: digest of the models.
      opened: the files, in the features of the models. rows: int64 [n], file: int64 [n], of the cells of the suite.
      options: of the fine-tuning; its seed is that of the task.
    """

    name: str
    role: str
    models: Sequence[PretrainedModel]
    reads: str
    opened: Sequence[ModelCells]
    rows: Array
    file: Array
    options: FineTuningOptions
    arms: tuple[str, ...] = ("",)
    parallel: bool = False

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "version": VERSION, "reads": self.reads, "options": asdict(self.options)}

    def lacks(self, task: Task) -> str:
        if np.unique(self.file[task.train]).size > 1:
            return "it learns from the cells of one file, and these are of two"
        return "" if task.parts is not None else "it needs cells to stop by, two of two types at least"

    def fit_predict(self, cells: CellValues, task: Task) -> dict[str, Predictions]:
        assert task.parts is not None  # see `lacks`
        model = self.models[task.seed % len(self.models)]
        if self.options.method == "scbert":
            model = with_gene_head(model, task.seed)
        held_out = task.parts == np.unique(task.parts)[0]
        opened = self.opened[int(self.file[task.train[0]])]
        names = np.array([f"type{code:05d}" for code in range(task.num_classes)])  # in the order of their codes
        labels = np.full(len(opened.dataset.cell_ids), "", names.dtype)
        donors = np.full(len(opened.dataset.cell_ids), "", task.groups.dtype)
        labels[self.rows[task.train]], donors[self.rows[task.train]] = names[task.codes], task.groups
        tree = LabelTree.of(names[np.unique(task.codes)])
        fitted, left_out = self.rows[task.train[~held_out]], np.flatnonzero(held_out)
        validation = self.rows[task.train[left_out]]
        reference = Reference(opened, tree, tree.membership(labels), fitted, validation, donors)
        found = fine_tune(model, reference, replace(self.options, seed=task.seed))
        tuned = replace(model, params=found.params)

        test, known = self._embedded(tuned, task.test), np.unique(task.codes)
        of_left_out = _spread(found.head.logits(self._embedded(tuned, task.train[left_out])), known, task.num_classes)
        novelty: dict[str, Array] = {}
        if task.split == "type":
            x = self._embedded(tuned, task.train[~held_out])
            novelty = novelty_scores(
                found.head.scale(x),
                found.head.logits(x),
                reference.membership[fitted],
                found.head.scale(test),
                found.head.logits(test),
            )
        probabilities = _spread(found.head.logits(test), known, task.num_classes)
        return {"": Predictions(probabilities, left_out, of_left_out, novelty, {"step": found.step})}

    def _embedded(self, model: PretrainedModel, of: Array) -> Array:
        """float32 [m, D] of cells of the suite."""
        result = np.zeros((of.size, model.config.model.cell_dim), np.float32)
        for number in np.unique(self.file[of]):
            opened, mine = self.opened[int(number)], self.file[of] == number
            rows = self.rows[of[mine]]
            wanted = tuple(opened.overlaps)
            result[mine] = embed_dataset(model, opened.dataset, modalities=wanted, rows=rows).embeddings[rows]
        return result


def _spread(logits: Array, known: Array, num_classes: int) -> Array:
    """float32 [m, C] probabilities of the classes `known`, 0 of the others."""
    found = np.zeros((len(logits), num_classes), np.float32)
    found[:, known] = softmax(logits, axis=1)
    return found
