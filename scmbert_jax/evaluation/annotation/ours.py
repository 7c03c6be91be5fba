"""Models of ours as methods of the suite, and the controls that say what of a score is owed to what.

probe                 a linear classifier on the frozen model's cell embedding, fitted as that on components is
no pre-training       the same of the untrained model, another one for each seed
no gene identities    the same of the model whose features were given each other's learned rows
linear path alone     the same of the model without its transformer
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.annotation.baselines import probe
from scmbert_jax.evaluation.annotation.cells import SuiteCells
from scmbert_jax.evaluation.annotation.choice import AnnotationChoice
from scmbert_jax.evaluation.annotation.kept_fits import KeptFits, digest_of
from scmbert_jax.evaluation.annotation.task import Method
from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.seen_cells import what_models_saw
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import embed_dataset

Array = np.ndarray

NO_PRE_TRAINING = "no pre-training"
NO_GENE_IDENTITIES = "no gene identities"


def methods_of_models(
    models: Sequence[PretrainedModel],
    cells: SuiteCells,
    kept: KeptFits | None,
    choice: AnnotationChoice,
    *,
    name: str = "scMBERT",
    say: Callable[[str], None] = lambda message: None,
) -> tuple[list[Method], list[str]]:
    """(methods, notes) for `evaluate_annotation`; embeds the cells.

    Args:
      models: the seeds of one model; a single one stands for all seeds.
      kept: where embeddings are kept.
      name: of the models' rows.
      choice: for each of its seeds there is an untrained model; methods that it does not want are not made.

    Raises `InputError` where a model cannot read the cells, or finds no counts of its features in one.
    """
    kinds: dict[str, tuple[str, list[PretrainedModel]]] = {name: ("ours", list(models))}
    alone = [found for model in models if (found := model.linear_path_alone()) is not None]
    if len(alone) == len(models):
        kinds[LINEAR_PATH_ALONE] = ("control", alone)
    per_seed = [models[seed % len(models)] for seed in range(choice.num_seeds)]
    kinds[NO_PRE_TRAINING] = ("control", [model.untrained(1000 + seed) for seed, model in enumerate(per_seed)])
    kinds[NO_GENE_IDENTITIES] = (
        "control",
        [without_gene_identities(model, seed) for seed, model in enumerate(per_seed)],
    )
    methods: list[Method] = []
    for kind, (role, seeds) in kinds.items():
        row = f"{kind}, probe"
        if not choice.wants(row):
            continue
        say(f"{row}: embedding {cells.values.num_cells:,} cells, {len(seeds)} times")
        vectors = tuple(_kept_vectors(kind, model, cells, kept) for model in seeds)
        cells.values.vectors[row] = vectors
        methods.append(probe(row, role, digest_of(*vectors)))
    return methods, what_models_of_files_saw(models, cells)


def without_gene_identities(model: PretrainedModel, seed: int) -> PretrainedModel:
    """The same model, each feature with the learned row of another one of its modality, drawn once by `seed`.

    What is lost is which feature is which; values and the linear path are as before.
    """
    order, rng = np.arange(model.params["table"]["learned"].shape[0]), np.random.default_rng(seed)
    for first, stop in model.definition.layout.slices.values():
        order[first:stop] = first + rng.permutation(stop - first)
    table = {**model.params["table"], "learned": model.params["table"]["learned"][order]}
    return dataclasses.replace(model, params={**model.params, "table": table})


def what_models_of_files_saw(models: Sequence[PretrainedModel], cells: SuiteCells) -> list[str]:
    """What each model's training had of the cells of each file, as sentences."""
    sentences = []
    for number, identity in enumerate(cells.identities):
        rows = cells.rows[cells.file == number]
        named = [(f"model {place}" if len(models) > 1 else "model", m.trained_cells) for place, m in enumerate(models)]
        of_file = f"{identity.name}, " if len(cells.identities) > 1 else ""
        sentences += [f"{of_file}{sentence}" for sentence in what_models_saw(named, identity, rows)]
    return sentences


def _kept_vectors(name: str, model: PretrainedModel, cells: SuiteCells, kept: KeptFits | None) -> Array:
    if kept is None:
        return _vectors(model, cells)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((model.params, model.constants))]
    made_from = digest_of(name, repr(model.config), *leaves)  # the name tells the linear path from its model
    return kept.array(name, made_from, lambda: _vectors(model, cells))


def _vectors(model: PretrainedModel, cells: SuiteCells) -> Array:
    """float32 [n, D], read from the modalities that the suite reads."""
    found = np.zeros((cells.values.num_cells, model.config.model.embed_dim), np.float32)
    for number, dataset in enumerate(cells.datasets):
        mine = np.flatnonzero(cells.file == number)
        wanted = tuple(name for name in cells.values.counts if name in model.config.modalities.in_use())
        if not wanted:
            raise InputError(
                f"{dataset.path}: cells have {', '.join(cells.values.counts)}; the model reads "
                f"{', '.join(model.config.modalities.in_use())}."
            )
        found[mine] = embed_dataset(model, dataset, modalities=wanted, rows=cells.rows[mine]).embeddings[
            cells.rows[mine]
        ]
    empty = ~np.isfinite(found).all(1)
    if empty.any():
        raise InputError(
            f"{cells.path}: {int(empty.sum()):,} labelled cells have no counts of the model's features, such as "
            f"{cells.cell_ids[empty.argmax()]}; leave them out of the file."
        )
    return found
