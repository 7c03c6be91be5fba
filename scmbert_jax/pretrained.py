"""The model folder: what a run leaves for others to use, complete in itself.

model.json                format version, step, covariates, provenance of the run; SHA-256 of every file
config.json               the whole configuration
feature_space.parquet     the features of the model's table
feature_statistics.npz    what each of them is like by itself: where the model started
trained_cells.npz         keys of the cells it was trained on, where the run could tell
network.npz               the edges of its networks, if it was given any
region_embeddings.npz     the embeddings of its regions, if it was given any
weights/                  the parameters (Orbax)
MODEL_CARD.md             for people
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from data_pipelines.batches.trained_cells import TRAINED_CELLS, TrainedCells, load_trained_cells
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.genome.region_embeddings import REGION_EMBEDDINGS, read_region_embeddings
from data_pipelines.networks.model_network import NETWORK, load_network
from data_pipelines.statistics.feature_statistics import load_statistics
from scmbert_jax.config import ExperimentConfig, load_config, to_dict
from scmbert_jax.dna_config import DnaExperiment, Experiment, load_any_config
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.feature_layout import NUM_COMPONENTS
from scmbert_jax.folder_digests import read_document, write_document
from scmbert_jax.models.definition import Definition
from scmbert_jax.objectives.mixture import OBJECTIVES
from scmbert_jax.outputs import MODEL, check_output_folder, partial_beside, put_folder
from scmbert_jax.plain_text import code, markdown
from scmbert_jax.random_keys import init_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.checkpoint import RunCheckpoints, load_weights, save_weights
from scmbert_jax.training.init_from import described_in_words
from scmbert_jax.training.run_folder import read_provenance
from scmbert_jax.training.run_information import information_in_words
from scmbert_jax.training.validation import BEST, read_best, stopped_early

AnyExperiment = TypeVar("AnyExperiment", bound=Experiment)

# Raised whenever the same folder would give other answers: a golden of tests/golden/test_embedding.py says when.
# 2: components and statistics are of whole cells, and scores of all counts of a cell.
FORMAT_VERSION = 2
EXPORT = "scmbert export RUN_DIR MODEL_DIR"
DNA = "dna"  # "kind" of model.json, of models of sequences (pretrained_dna.py)


@dataclass(frozen=True)
class PretrainedModel:
    """A trained model in memory.

    Attributes:
      config: the configuration it was trained with.
      feature_space: the features it knows.
      definition: builds the model around parameters.
      params: nested dict of float32 arrays.
      constants: nested dict of arrays that no training changes (`ModelDefinition.constants`).
      info: contents of model.json (step, covariates, provenance).
      allow_low_coverage: read files that measure few of its features, too.
      folder: where it was loaded from.
    """

    config: ExperimentConfig
    feature_space: FeatureSpace
    definition: ModelDefinition
    params: dict[str, Any]
    constants: dict[str, Any]
    info: dict[str, Any]
    allow_low_coverage: bool = False
    folder: Path | None = None

    def steps_in_words(self) -> str:
        """How far it was trained: "200 of 200", "150 of 200 (unfinished)" or what else the run says of that step."""
        step, steps = self.info["step"], self.config.train.num_steps
        note = self.info.get("note") or ("unfinished" if step < steps else "")
        return f"{step:,} of {steps:,}{f' ({note})' if note else ''}"

    @cached_property
    def trained_cells(self) -> TrainedCells | None:
        """The cells it was trained on, by their keys; None where its folder does not say."""
        return None if self.folder is None else load_trained_cells(self.folder / TRAINED_CELLS)

    def untrained(self, seed: int) -> "PretrainedModel":
        """The same model with the random parameters of `seed`: the control every score stands beside.

        It has learned nothing of any cell: the principal components and the maps between them with which a trained
        model starts (models/linear_path.py) are a result of its corpus, so they are zero here.
        """
        params = _initialiser_without_components(self.definition)(init_key(seed))
        # Links of features are no result of cells.
        of_corpus = {name: self.constants[name] for name in ("linear", "alignment_head") if name in self.constants}
        constants = self.constants | jax.tree.map(np.zeros_like, of_corpus)
        # The same definition as the trained model's, so that what is compiled for one serves the other.
        return replace(self, params=params, constants=constants, info={**self.info, "step": 0})

    def linear_path_alone(self) -> "PretrainedModel | None":
        """The same model without its transformer (`ModelDefinition.linear_path_alone`): the control that says what
        the transformer adds. None for a model that has no linear path."""
        if not self.config.model.linear_path:
            return None
        return replace(self, definition=self.definition.linear_path_alone)


@lru_cache(maxsize=4)  # compiled once for all seeds
def _initialiser_without_components(definition: ModelDefinition) -> Callable[[jax.Array], dict[str, Any]]:
    layout = definition.layout
    if layout.statistics is not None:
        layout = replace(layout, statistics=layout.statistics._replace(linear=None))
    return jax.jit(ModelDefinition(definition.config, layout).init)


def read_features(
    folder: Path, config: ExperimentConfig, covariates: dict[str, list[str]], expected_hash: str
) -> tuple[FeatureSpace, ModelDefinition]:
    """The features of a run or model folder, and the model over them."""
    space = FeatureSpace.load(folder / "feature_space.parquet")
    if space.content_hash != expected_hash:
        raise CheckpointError(
            f"{folder / 'feature_space.parquet'}: hash {space.content_hash[:12]}..., but the weights were trained with "
            f"feature space {expected_hash[:12]}...: the rows of the feature table would mean other features."
        )
    path, linear_path = folder / "feature_statistics.npz", config.model.linear_path
    regions = "atac" in space.modalities
    statistics = load_statistics(path, space.num_features, linear_path=linear_path, regions=regions)
    layout = replace(space.layout({name: len(values) for name, values in covariates.items()}), statistics=statistics)
    if config.model.networks:
        layout = load_network(folder, layout)
    if config.model.region_embeddings:
        vectors = read_region_embeddings(folder / REGION_EMBEDDINGS).of_space(space)
        layout = replace(layout, region_vectors=vectors)
    return space, ModelDefinition(config, layout)


def on_one_device(abstract_params: Any) -> Any:
    where = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract_params)


def export_model(
    run_dir: Path,
    model_dir: Path,
    step: int | None = None,
    *,
    best: bool = False,
    unfinished: bool = False,
    attention: str | None = None,
    overwrite: bool = False,
) -> PretrainedModel:
    """Writes the newest checkpoint of a run (or that of `step`) as a model folder, whole or not at all.

    Args:
      best: that which `validation.best` of the run found best.
      attention: another backend than that of training, for a model that is used on other hardware.

    Raises `CheckpointError` when the run has no such checkpoint, when `model_dir` exists already (with `overwrite`: and
    is no model folder), or when the run is not done and neither `step` nor `unfinished` says that this is known.
    """
    if not (run_dir / "config.json").exists():
        raise CheckpointError(f"{run_dir}: not a run folder (no config.json in it).")
    check_output_folder(model_dir, MODEL, (), overwrite)
    there = load_any_config(run_dir / "config.json")
    if isinstance(there, DnaExperiment):
        raise CheckpointError(f"{run_dir}: a run on DNA, not on cells; scmbert export or Run.export writes its model.")
    config = with_attention(there, attention)
    provenance = read_provenance(run_dir)
    space, definition = read_features(run_dir, config, provenance["covariates"], provenance["feature_space_hash"])
    params, chosen, note = exported_params(run_dir, config, definition, step, best=best, unfinished=unfinished)
    info = {
        "format_version": FORMAT_VERSION,
        "step": chosen,
        "note": note,
        "covariates": provenance.pop("covariates"),
        "provenance": published(provenance),
    }
    model = PretrainedModel(config, space, definition, params, definition.constants, info)
    write_model(model, model_dir, run_dir)
    return model


def exported_params(
    run_dir: Path, config: Experiment, definition: Definition, step: int | None, *, best: bool, unfinished: bool
) -> tuple[dict[str, Any], int, str]:
    """(parameters of the checkpoint that is asked for, on one device; its step; what the run says of it).

    Raises as `export_model`."""
    note = ""
    if best:
        if step is not None:
            raise ConfigError("the best checkpoint and that of a step are both asked for; give one of --best, --step.")
        found = read_best(run_dir)
        if found is None:
            raise CheckpointError(
                f"{run_dir}: no evaluation says which checkpoint is the best (no {BEST}). Train with held-out cells "
                "and --validation.best loss/loss, or export the newest."
            )
        step, note = found.step, f"the best by {found.metric}, {found.value:.4g}"
    checkpoints = RunCheckpoints(run_dir / "checkpoints", config.train.keep_checkpoints)
    try:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "complete checkpoint" if step is None else f"checkpoint of step {step}"
            raise CheckpointError(f"{run_dir}: no {wanted}; complete ones: {steps or 'none'}. Train it first.")
        chosen = steps[-1] if step is None else step
        if chosen < config.train.num_steps and chosen == stopped_early(run_dir, config):
            note = note or "stopped early"
        elif chosen < config.train.num_steps and step is None and not unfinished:
            raise CheckpointError(
                f"{run_dir}: not done: its newest checkpoint is of step {chosen} of {config.train.num_steps}. Continue "
                "it with the command that started it, or export it as it is: --unfinished."
            )
        params = checkpoints.restore_params(chosen, on_one_device(definition.abstract_params))
    finally:
        checkpoints.close()
    return params, chosen, note


def published(provenance: dict[str, Any]) -> dict[str, Any]:
    """That of a run without what tells of its machine: commands, and where corpora lay. The run folder keeps both."""
    told = {name: value for name, value in provenance.items() if name != "command"}
    if "continued" in told:
        told["continued"] = [{k: v for k, v in row.items() if k != "command"} for row in told["continued"]]
    if told.get("data"):
        corpora = [{**corpus, "path": PurePath(corpus["path"]).name} for corpus in told["data"]["corpora"]]
        told["data"] = {**told["data"], "corpora": corpora}
    return told


def write_model(model: PretrainedModel, model_dir: Path, source: Path) -> None:
    """Writes a model folder, whole or not at all, to where `check_output_folder` allows it; as `write_model_files`.

    Raises `CheckpointError`."""
    write_folder(model_dir, lambda folder: write_model_files(folder, model, source))


def write_folder(model_dir: Path, write: Callable[[Path], None]) -> None:
    """`write` fills an empty folder, which then is `model_dir`; or nothing is there. Raises `CheckpointError`."""
    partial = None
    try:
        model_dir.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(model_dir)
        partial.mkdir()
        write(partial)
        put_folder(partial, model_dir)
    except BaseException as error:
        if partial is not None:
            _remove(partial)
        if isinstance(error, OSError):
            raise CheckpointError(f"{model_dir}: the model folder cannot be written ({error.strerror}).") from error
        raise


def write_model_files(folder: Path, model: PretrainedModel, source: Path) -> None:
    """Makes an empty folder a model folder; `source`, a run or model folder, has what is not in memory.

    Raises OSError where it cannot be written."""
    for name in ("feature_space.parquet", "feature_statistics.npz"):
        shutil.copy(source / name, folder / name)
    (folder / "config.json").write_text(json.dumps(to_dict(model.config), indent=2) + "\n")
    for name in (TRAINED_CELLS, NETWORK, REGION_EMBEDDINGS):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    (folder / "MODEL_CARD.md").write_text(model_card(model))
    save_weights(folder / "weights", model.params)
    write_document(folder, "model.json", model.info)


def _remove(folder: Path) -> None:
    """Removes a folder for good. When one of Orbax's writes fails, the others continue and may make it again."""
    seen_gone = 0
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        seen_gone = 0 if folder.exists() else seen_gone + 1
        if seen_gone == 3:
            return
        time.sleep(0.1)


def read_model_info(model_dir: Path) -> dict[str, Any]:
    """model.json, when every file of the folder is what was written. Raises `CheckpointError`, as `load_model`."""
    info = read_document(model_dir, MODEL, FORMAT_VERSION, EXPORT, other_version)
    if info.get("kind") == DNA:
        raise CheckpointError(f"{model_dir}: a model of DNA, not of cells; scmbert regulate reads it (--pretrained).")
    if not {"step", "covariates", "provenance"} <= set(info):
        raise CheckpointError(f"{model_dir / 'model.json'}: incomplete ({', '.join(info)}); make it again ({EXPORT}).")
    return info


def load_model(model_dir: Path, *, allow_low_coverage: bool = False, attention: str | None = None) -> PretrainedModel:
    """Reads a model folder, every file of which is compared with its digest.

    Args:
      allow_low_coverage: let it read files that measure few of its features, too.
      attention: another backend than that of training, where this machine cannot do that one. None: that of training,
        but `xla_chunked` for `xla`: it computes the same, and rows are many times as long as a training step's.

    Raises:
      CheckpointError: something is missing, damaged, edited or of another version; the file is named.
      ConfigError: there is no such backend.
    """
    info = read_model_info(model_dir)
    config = load_config(model_dir / "config.json")
    if attention is None and config.model.attention == "xla":
        attention = "xla_chunked"
    config = with_attention(config, attention)
    space, definition = read_features(model_dir, config, info["covariates"], info["provenance"]["feature_space_hash"])
    params = load_weights(model_dir / "weights", on_one_device(definition.abstract_params))
    constants = jax.device_put(definition.constants, jax.local_devices()[0])
    return PretrainedModel(config, space, definition, params, constants, info, allow_low_coverage, folder=model_dir)


def with_attention(config: AnyExperiment, attention: str | None) -> AnyExperiment:
    """The same with another attention backend; None: as it is."""
    return config if attention is None else replace(config, model=replace(config.model, attention=attention))


def other_version(info: dict[str, Any]) -> str:
    provenance = info.get("provenance")
    made_by = provenance if isinstance(provenance, dict) else {}
    versions = made_by.get("versions")
    version = versions.get("scmbert_jax", "unknown") if isinstance(versions, dict) else "unknown"
    return (
        f"model format version {info.get('format_version')}; this program reads {FORMAT_VERSION}, "
        "in which the same numbers mean something else. Train the model again with this program, or use it with the "
        f"one that made it: scmbert_jax {version}, commit {made_by.get('git_commit', 'unknown')}."
    )


def model_card(model: PretrainedModel) -> str:
    """MODEL_CARD.md: what the model is, what it was trained on, what it must not be used for."""
    config, provenance = model.config, model.info["provenance"]
    number = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.params))
    features = "\n".join(
        f"- {name}: {len(known.ids):,} features of `{known.space}`; {modality.num_tokens} tokens per cell, values as "
        f"`{modality.value_encoding}`, predicted by `{modality.likelihood}`"
        for name, modality in config.modalities.in_use().items()
        if (known := model.feature_space.modalities[name])
    )
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    sentences = information_in_words(provenance.get("information"))
    if "init_from" in provenance:
        sentences += described_in_words(provenance["init_from"])
    told = "\n".join(f"- {markdown(sentence)}" for sentence in sentences)
    shape, weights = config.model, config.objectives.weights()
    made = "imported" if "imported" in provenance else "pre-trained"
    uses = ['`scmbert embed MODEL_DIR cells.h5ad -o out.h5ad`, or `scmbert_jax.load("MODEL_DIR").embed(adata)`.']
    uses += [OBJECTIVES[name].used_by for name in weights if OBJECTIVES[name].used_by]
    statistics = model.definition.layout.statistics
    remembered = 0 if statistics is None or statistics.linear is None else len(statistics.linear.memory_folds)
    if remembered:
        kept = f"{NUM_COMPONENTS} component scores per modality of {remembered:,} training cells, without their ids"
        told += f"\n- feature_statistics.npz keeps {kept}."
    return f"""# Model card

A multi-omic single-cell transformer, {made} by scmbert_jax ({", ".join(weights)}).

| | |
|---|---|
| parameters | {number:,} |
| encoder | {shape.num_layers} layers, width {shape.embed_dim}, {shape.num_heads} heads of {shape.head_dim} |
| training | step {model.steps_in_words()}, {config.data.global_batch_size} cells each |
| corpus fingerprint | {code(str(provenance["corpus_fingerprint"]))} |
| feature space | {code(str(provenance["feature_space_hash"]))} |
| code | commit {code(str(provenance["git_commit"]))}; {markdown(versions)} |

## Reads
{features}

Raw integer counts go in; normalised values are refused. Features that the model does not know are reported.

## Which information it used besides counts
{told}

## Use
{chr(10).join(uses)}

## Limits
The embedding describes cells like those of the corpus; other tissues, assays or species are outside of what was
learned. Technical batches were not removed unless the configuration names covariates. It is a research model, not a
diagnostic one. Score it on your own labels with `scmbert evaluate probe --model MODEL_DIR` beside a PCA.
`trained_cells.npz`, where it is there, holds hashes of the training cells (barcode and counts, 64 bits): whoever has a
cell can tell whether it was among them.
"""
