"""Models of ours as methods of the suite, and the controls that say what of a score is owed to what.

probe                 a linear classifier on the frozen model's cell embedding, fitted as that on components is
full, last:N, lora:R  the model fine-tuned (annotation/fine_tuning.py)
no pre-training       each of these of the untrained model, another one for each seed
no gene identities    of the model whose features were given each other's learned rows
linear path alone     of the model without its transformer; the probe only
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from scmbert_jax.annotation.controls import from_scratch, without_gene_identities
from scmbert_jax.annotation.fine_tuning import FineTuningOptions
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.annotation.baselines import probe
from scmbert_jax.evaluation.annotation.cells import SuiteCells
from scmbert_jax.evaluation.annotation.choice import AnnotationChoice
from scmbert_jax.evaluation.annotation.fine_tuned import FineTunedModels
from scmbert_jax.evaluation.annotation.kept_fits import KeptFits, digest_of
from scmbert_jax.evaluation.annotation.task import Method
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.seen_cells import what_models_saw
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import embed_dataset
from scmbert_jax.tasks.model_cells import ModelCells, open_model_cells

Array = np.ndarray

PROBE = "probe"
NO_PRE_TRAINING = "no pre-training"
NO_GENE_IDENTITIES = "no gene identities"


def methods_of_models(
    models: Sequence[PretrainedModel],
    cells: SuiteCells,
    kept: KeptFits | None,
    choice: AnnotationChoice,
    *,
    name: str = "scMBERT",
    fitted: Sequence[str] = (PROBE,),
    steps: int = 500,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[list[Method], list[str]]:
    """(methods, notes) for `evaluate_annotation`; embeds the cells.

    Args:
      models: the seeds of one model; a single one stands for all seeds.
      kept: where embeddings are kept.
      name: of the models' rows.
      fitted: "probe", "full", "last:N", "lora:R", "scbert". steps: of a fine-tuning, at most.
      choice: for each of its seeds there is an untrained model; methods that it does not want are not made.

    Raises `InputError` where a model cannot read the cells, or finds no counts of its features in one.
    """
    kinds: dict[str, tuple[str, list[PretrainedModel]]] = {name: ("ours", list(models))}
    alone = [found for model in models if (found := model.linear_path_alone()) is not None]
    if len(alone) == len(models):
        kinds[LINEAR_PATH_ALONE] = ("control", alone)
    per_seed = [models[seed % len(models)] for seed in range(choice.num_seeds)]
    kinds[NO_PRE_TRAINING] = ("control", [from_scratch(model, 1000 + seed) for seed, model in enumerate(per_seed)])
    shuffled = [without_gene_identities(model, seed) for seed, model in enumerate(per_seed)]
    kinds[NO_GENE_IDENTITIES] = ("control", shuffled)
    methods: list[Method] = []
    opened: list[ModelCells] = []
    for kind, (role, seeds) in kinds.items():
        for way in fitted:
            row = f"{kind}, {way}"
            if not choice.wants(row) or (kind == LINEAR_PATH_ALONE and way != PROBE):
                continue
            if way == PROBE:
                say(f"{row}: embedding {cells.values.num_cells:,} cells, {len(seeds)} times")
                vectors = tuple(_kept_vectors(kind, model, cells, kept) for model in seeds)
                cells.values.vectors[row] = vectors
                methods.append(probe(row, role, digest_of(*vectors)))
                continue
            opened = opened or [open_model_cells(models[0], file, _shared(models[0], cells)) for file in cells.datasets]
            reads = digest_of(*(_digest(kind, model) for model in seeds))
            options = FineTuningOptions(method=way, num_steps=steps)
            methods.append(FineTunedModels(row, role, seeds, reads, opened, cells.rows, cells.file, options))
    return methods, what_models_of_files_saw(models, cells)


def what_models_of_files_saw(models: Sequence[PretrainedModel], cells: SuiteCells) -> list[str]:
    """What each model's training had of the cells of each file, as sentences."""
    sentences = []
    for number, identity in enumerate(cells.identities):
        rows = cells.rows[cells.file == number]
        named = [(f"model {place}" if len(models) > 1 else "model", m.trained_cells) for place, m in enumerate(models)]
        of_file = f"{identity.name}, " if len(cells.identities) > 1 else ""
        sentences += [f"{of_file}{sentence}" for sentence in what_models_saw(named, identity, rows)]
    return sentences


def _kept_vectors(kind: str, model: PretrainedModel, cells: SuiteCells, kept: KeptFits | None) -> Array:
    if kept is None:
        return _vectors(model, cells)
    return kept.array(kind, _digest(kind, model), lambda: _vectors(model, cells))


def _digest(kind: str, model: PretrainedModel) -> str:
    """Of all that its embedding depends on; the kind tells the linear path from its model."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((model.params, model.constants))]
    return digest_of(kind, repr(model.config), *leaves)


def _shared(model: PretrainedModel, cells: SuiteCells) -> tuple[str, ...]:
    """The modalities that the suite and the model read."""
    wanted = tuple(name for name in cells.values.counts if name in model.config.modalities.in_use())
    if not wanted:
        raise InputError(
            f"{cells.path}: cells have {', '.join(cells.values.counts)}; the model reads "
            f"{', '.join(model.config.modalities.in_use())}."
        )
    return wanted


def _vectors(model: PretrainedModel, cells: SuiteCells) -> Array:
    """float32 [n, D], read from the modalities that the suite reads."""
    found = np.zeros((cells.values.num_cells, model.config.model.cell_dim), np.float32)
    for number, dataset in enumerate(cells.datasets):
        mine = np.flatnonzero(cells.file == number)
        rows = cells.rows[mine]
        found[mine] = embed_dataset(model, dataset, modalities=_shared(model, cells), rows=rows).embeddings[rows]
    empty = ~np.isfinite(found).all(1)
    if empty.any():
        raise InputError(
            f"{cells.path}: {int(empty.sum()):,} labelled cells have no counts of the model's features, such as "
            f"{cells.cell_ids[empty.argmax()]}; leave them out of the file."
        )
    return found
