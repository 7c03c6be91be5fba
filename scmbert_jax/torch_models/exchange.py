"""A PyTorch checkpoint becomes a model folder, and a model folder such a checkpoint.

A checkpoint names no genes: its positions are those of a list that goes with it. Here features have stable ids, so each
name of the list is looked up. A name that is no gene of the organism, or the second name of one gene, stays a feature
under its own name: no file can measure it, but the model can be written back as it was.
"""

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.features.feature_mapping import gene_coverage, map_genes
from data_pipelines.features.feature_space import FeatureSpace, ModalityFeatures
from data_pipelines.features.gene_tables import ORGANISMS
from data_pipelines.statistics.feature_statistics import save_statistics
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.feature_layout import LIBRARY_QUANTILES, FeatureStatistics
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.outputs import MODEL, check_output_file, check_output_folder
from scmbert_jax.pretrained import FORMAT_VERSION, PretrainedModel, load_model, write_model
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.torch_models.layout import SETTINGS, Layout
from scmbert_jax.torch_models.layouts import LAYOUTS
from scmbert_jax.torch_models.torch_file import read_state_dict, write_state_dict
from scmbert_jax.training.run_folder import git_commit, software_versions

_EXAMPLES = 5


def import_model(
    layout: str,
    checkpoint: Path,
    genes: Path,
    model_dir: Path,
    *,
    organism: str | None = None,
    overwrite: bool = False,
) -> tuple[PretrainedModel, list[str]]:
    """Writes a model folder; the model, and sentences about what of it another file cannot use.

    Args:
      layout: a name in `LAYOUTS`.
      checkpoint: as `torch_file.read_state_dict` takes it.
      genes: a text file with one gene per line, symbol or Ensembl id, in the order of the checkpoint's positions; what
        follows a tab is not read. Or a .json of name -> position, from 0.
      organism: "human" or "mouse"; None: of whichever more of the names are.

    Raises `ConfigError` for an unknown layout, `InputError` for a checkpoint of another layout or a list that does not
    fit it, `CheckpointError` where the folder cannot be written.
    """
    how = _layout(layout)
    check_output_folder(model_dir, MODEL, (checkpoint, genes), overwrite)
    state = read_state_dict(checkpoint)
    try:
        config, number = how.config(state, _settings(checkpoint.parent / SETTINGS)), how.num_names(state)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None
    names = _names(genes, number)
    special = {name: place for place, name in enumerate(names) if name in how.special}
    if absent := [name for name in how.special if name not in special]:
        raise InputError(f"{genes}: without {', '.join(absent)}, which the list of a model of {layout} has.")
    is_gene = np.array([name not in special for name in names])
    space, of_genes, notes = _features([name for name in names if name not in special], organism)
    rows = np.full(number, -1)
    rows[is_gene] = of_genes
    if config.model.gene_head:
        notes.append(
            "the checkpoint was fine-tuned, to types that it does not name: its last layer is left out, and an "
            "embedding is what that layer read. Fit one anew: scmbert annotate fit labelled.h5ad --model MODEL_DIR "
            "--method probe"
        )
    statistics = _unknown_statistics(space.num_features)
    layout_of_features = replace(space.layout(), statistics=statistics)
    config = replace(config, train=replace(config.train, num_steps=1, num_microbatches=1, checkpoint_every=1))
    definition = ModelDefinition(config, layout_of_features)
    start = jax.jit(definition.init)(jax.random.key(0))  # of what the checkpoint does not have
    params = how.parameters(state, definition, jax.device_get(start), rows, special)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    _check_tree(params, definition)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    told = (
        f"Imported from {checkpoint.name} (layout {layout}, SHA-256 {digest[:12]}...), which another program trained."
    )
    info = {
        "format_version": FORMAT_VERSION,
        "step": 1,
        "note": "imported; how long it was trained is not known",
        "covariates": {},
        "provenance": {
            "versions": software_versions(),
            "git_commit": git_commit(),
            "corpus_fingerprint": "unknown (imported)",
            "feature_space_hash": space.content_hash,
            "information": {"imported": told},
            "imported": {"layout": layout, "file": checkpoint.name, "sha256": digest, "genes": names},
        },
    }
    model = PretrainedModel(config, space, definition, params, definition.constants, info)
    with tempfile.TemporaryDirectory() as features:
        space.save(Path(features) / "feature_space.parquet")
        save_statistics(statistics, Path(features) / "feature_statistics.npz")
        write_model(model, model_dir, Path(features))
    return model, notes


def export_torch(layout: str, model_dir: Path, output: Path, genes: Path, *, overwrite: bool = False) -> int:
    """Writes a checkpoint that torch loads, and the list of its genes; how many they are.

    The genes are in the order in which they were imported, under the same names; of a model that was trained here, in
    the order of their Ensembl ids.

    Raises `ConfigError` for a model that the layout cannot hold, `CheckpointError` as `load_model`, `InputError` where
    a file cannot be written.
    """
    how = _layout(layout)
    if how.state_dict is None:
        raise ConfigError(f"layout {layout}: is only read; those that are written, too, are {_written()}.")
    for path in (output, genes):
        check_output_file(path, (model_dir,), overwrite)
    model = load_model(model_dir)
    known = model.feature_space.modalities.get("rna")
    if known is None:
        raise ConfigError(f"{model_dir}: a model without RNA, which layout {layout} is of.")
    imported = model.info["provenance"].get("imported")
    names = known.ids.tolist() if imported is None else imported["genes"]
    ids = known.ids if imported is None else _ids(names, known)
    rows = known.index_of(ids) + model.feature_space.slices["rna"][0]
    params, constants = jax.device_get((model.params, model.constants))
    state = how.state_dict(model.definition, params, constants, rows)
    write_state_dict(output, state)
    genes.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return len(names)


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r}: there is no such layout; there are {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def _written() -> str:
    return ", ".join(name for name, how in LAYOUTS.items() if how.state_dict is not None)


def _settings(path: Path) -> dict[str, Any]:
    """What the program that wrote a checkpoint left beside it; {}: nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {type(found).__name__}, expected an object.")
    return found


def _names(path: Path, number: int) -> list[str]:
    """The list of genes. Raises `InputError` where it cannot be that of `number` positions."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            places = json.loads(text)
            names = sorted(places, key=places.__getitem__)
            if sorted(places.values()) != list(range(len(places))):
                raise ValueError("expected an object of name -> position, each position from 0 once")
        else:
            names = [line.partition("\t")[0].strip() for line in text.splitlines()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as a list of genes ({error}).") from error
    if len(names) != number:
        hint = " Is its first line a header? Take it away." if len(names) == number + 1 else ""
        raise InputError(
            f"{path}: {len(names):,} names, but the checkpoint has {number:,}. Give the list that it was "
            f"trained with, a gene per line, in its order.{hint}"
        )
    if empty := [place for place, name in enumerate(names, 1) if not name]:
        raise InputError(f"{path}: line {empty[0]} has no name.")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise InputError(f"{path}: {twice[0]!r} stands in it twice, which positions cannot; is it the right list?")
    return names


def _ids(names: list[str], features: ModalityFeatures) -> np.ndarray:
    """str [n]: the feature of each position, unique: its gene, or its own name where there is none or it is taken."""
    mapped = map_genes(np.array(names, str), features.space.partition(":")[2]).ids
    return _unique_ids(names, mapped)


def _unique_ids(names: list[str], mapped: np.ndarray) -> np.ndarray:
    seen, ids = set[str](), []
    for name, gene in zip(names, mapped.tolist(), strict=True):
        ids.append(gene if gene and gene not in seen else f"unmapped:{name}")
        seen.add(ids[-1])
    return np.array(ids, str)


def _features(names: list[str], organism: str | None) -> tuple[FeatureSpace, np.ndarray, list[str]]:
    """The features, the row of each position int64 [n], and what to say of names that are no genes."""
    array = np.array(names, str)
    if organism is None:
        organism = max(ORGANISMS, key=lambda one: gene_coverage(array, one))
    mapping = map_genes(array, organism)
    ids = _unique_ids(names, mapping.ids)
    columns: dict[str, list] = {}
    for column, empty in (("chrom", ""), ("start", -1), ("end", -1)):
        of_genes = getattr(mapping.features, column)
        found = [of_genes[place] if place >= 0 else empty for place in mapping.column_to_feature.tolist()]
        columns[column] = [
            empty if gene.startswith("unmapped:") else value for gene, value in zip(ids, found, strict=True)
        ]
    features = ModalityFeatures.sorted("rna", f"gene:{organism}", ids, names, **columns, links=[()] * len(names))
    left = [name for name, gene in zip(names, ids, strict=True) if gene.startswith("unmapped:")]
    notes = []
    if left:
        listed = ", ".join(left[:_EXAMPLES]) + (f" and {len(left) - _EXAMPLES:,} more" if len(left) > _EXAMPLES else "")
        notes.append(
            f"{len(left):,} of {len(names):,} names are no {organism} gene, or a second name of one ({listed}): the "
            "model keeps their rows, but no file can measure them"
        )
    if 2 * len(left) > len(names):
        raise InputError(f"{notes[0]}. Is this a list of gene symbols or Ensembl ids, and of {organism}? (--organism)")
    return FeatureSpace({"rna": features}), features.index_of(ids), notes


def _unknown_statistics(number: int) -> FeatureStatistics:
    """Of features of which nothing is known: all alike."""
    same: dict[str, Any] = {name: np.zeros(number, np.float32) for name in FeatureStatistics._fields}
    same |= {name: np.full(number, 1 / number, np.float32) for name in ("fraction", "cell_fraction")}
    same |= {name: np.full(number, 0.5, np.float32) for name in ("detection", "cell_detection")}
    same |= {name: np.ones(number, np.float32) for name in ("value_std", "log1p_std", "clr_std", "linear_std")}
    libraries = np.full((len(MODALITIES), len(LIBRARY_QUANTILES)), 1e4, np.float32)
    return FeatureStatistics(**{**same, "library_quantiles": libraries, "linear": None})


def _check_tree(params: dict[str, Any], definition: ModelDefinition) -> None:
    found, wanted = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, definition.abstract_params))
    assert found == wanted, "a layout's parameters are not those of its configuration"
