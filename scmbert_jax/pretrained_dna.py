"""The model folder of a model of DNA, as pretrained.py has that of cells: complete in itself.

model.json           "kind": "dna"; format version, step, provenance of the run; SHA-256 of every file
config.json          the whole configuration
genome_layout.npz    names and scales of regulators and cell types
weights/             the parameters (Orbax)
MODEL_CARD.md        for people
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.genome.corpus_layout import load_layout, save_layout
from scmbert_jax.config import to_dict
from scmbert_jax.dna_config import DnaExperiment, load_any_config
from scmbert_jax.dna_model import DnaDefinition, DnaModel
from scmbert_jax.errors import CheckpointError
from scmbert_jax.folder_digests import read_document, write_document
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.models.dna.sequence_encoder import SequenceEncoder
from scmbert_jax.objectives.mixture import DNA_OBJECTIVES
from scmbert_jax.outputs import MODEL, check_output_folder
from scmbert_jax.plain_text import code, markdown
from scmbert_jax.pretrained import (
    DNA,
    EXPORT,
    FORMAT_VERSION,
    exported_params,
    on_one_device,
    other_version,
    published,
    with_attention,
    write_folder,
)
from scmbert_jax.random_keys import init_key
from scmbert_jax.training.checkpoint import load_weights, save_weights
from scmbert_jax.training.run_folder import read_provenance


@dataclass(frozen=True)
class DnaPretrained:
    """A trained model of DNA in memory.

    Attributes:
      config: the configuration it was trained with.
      layout: names and scales of the matrices' columns that it knows.
      definition: builds the model around parameters.
      params: nested dict of float32 arrays.
      constants: nested dict of arrays that no training changes.
      info: contents of model.json (step, provenance).
      folder: where it was loaded from.
    """

    config: DnaExperiment
    layout: GenomeLayout
    definition: DnaDefinition
    params: dict[str, Any]
    constants: dict[str, Any]
    info: dict[str, Any]
    folder: Path | None = None

    def model(self) -> DnaModel:
        """With its numbers in it; inside a jitted function, better `definition.merge(params, constants)`."""
        return self.definition.merge(self.params, self.constants)

    @property
    def sequence_encoder(self) -> SequenceEncoder:
        """The encoder of sequences, for who trains or reads on."""
        return self.model().sequence

    def steps_in_words(self) -> str:
        """How far it was trained: "200 of 200", "150 of 200 (unfinished)" or what else the run says of that step."""
        step, steps = self.info["step"], self.config.train.num_steps
        note = self.info.get("note") or ("unfinished" if step < steps else "")
        return f"{step:,} of {steps:,}{f' ({note})' if note else ''}"

    def untrained(self, seed: int) -> "DnaPretrained":
        """The same model with the random parameters of `seed`: the control every score stands beside."""
        params = jax.jit(self.definition.init)(init_key(seed))
        return replace(self, params=params, info={**self.info, "step": 0})


def export_dna_model(
    run_dir: Path,
    model_dir: Path,
    step: int | None = None,
    *,
    best: bool = False,
    unfinished: bool = False,
    attention: str | None = None,
    overwrite: bool = False,
) -> DnaPretrained:
    """Writes a checkpoint of a run on DNA as a model folder; args and errors as `pretrained.export_model`."""
    check_output_folder(model_dir, MODEL, (), overwrite)
    there = load_any_config(run_dir / "config.json")
    if not isinstance(there, DnaExperiment):
        raise CheckpointError(f"{run_dir}: a run on cells, not on DNA; scmbert_jax.export writes its model.")
    config, provenance, layout = with_attention(there, attention), read_provenance(run_dir), load_layout(run_dir)
    definition = DnaDefinition(config, layout)
    params, chosen, note = exported_params(run_dir, config, definition, step, best=best, unfinished=unfinished)
    del provenance["covariates"]
    info = {
        "format_version": FORMAT_VERSION,
        "kind": DNA,
        "step": chosen,
        "note": note,
        "provenance": published(provenance),
    }
    model = DnaPretrained(config, layout, definition, params, definition.constants, info)

    def write(folder: Path) -> None:
        save_layout(layout, folder)
        (folder / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
        (folder / "MODEL_CARD.md").write_text(dna_model_card(model))
        save_weights(folder / "weights", params)
        write_document(folder, "model.json", info)

    write_folder(model_dir, write)
    return model


def open_dna_model(model_dir: str | Path, *, attention: str | None = None) -> DnaPretrained:
    """Reads the model folder of a run on DNA (`scmbert export`), every file of which is compared with its digest.

    Args:
      attention: another backend than that of training, where this machine cannot do that one.

    Raises:
      CheckpointError: something is missing, damaged or of another version; or a model of cells.
      ConfigError: there is no such backend.
    """
    folder = Path(model_dir)
    info = read_document(folder, MODEL, FORMAT_VERSION, EXPORT, other_version)
    there = load_any_config(folder / "config.json") if info.get("kind") == DNA else None
    if not isinstance(there, DnaExperiment):
        raise CheckpointError(f"{folder}: a model of cells, not of DNA; make one with scmbert pretrain genebert.")
    config, layout = with_attention(there, attention), load_layout(folder)
    definition = DnaDefinition(config, layout)
    params = load_weights(folder / "weights", on_one_device(definition.abstract_params))
    constants = jax.device_put(definition.constants, jax.local_devices()[0])
    return DnaPretrained(config, layout, definition, params, constants, info, folder)


def dna_model_card(model: DnaPretrained) -> str:
    """MODEL_CARD.md: what the model is, what it was trained on, what it must not be used for."""
    config, layout, provenance = model.config, model.layout, model.info["provenance"]
    number = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.params))
    shape, sequence, told = config.model, config.sequence, provenance["information"]
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    read = [
        f"sequences of up to {sequence.most_bases:,} bases, tokens `{sequence.tokens}`, strands `{sequence.strands}`"
    ]
    if config.objectives.read_regions:
        read.append(
            f"{config.regions.num_regions} regions around each, by a `{config.regions.encoder}` encoder: "
            f"{len(layout.regulators):,} regulators; accessibility in {len(layout.cell_types):,} cell types"
        )
    parts = ", ".join(f"{count:,} {part}" for part, count in told["sequences"].items())
    sealed = ", ".join(f"{part}: {', '.join(names)}" for part, names in told["sealed"].items())
    uses = [DNA_OBJECTIVES[name].used_by for name in config.objectives.weights() if DNA_OBJECTIVES[name].used_by]
    return f"""# Model card

A model of DNA, pre-trained by scmbert_jax ({", ".join(config.objectives.weights())}).

| | |
|---|---|
| parameters | {number:,} |
| encoder | {shape.num_layers} layers, width {shape.embed_dim}, {shape.num_heads} heads of {shape.head_dim} |
| training | step {model.steps_in_words()}, {config.data.global_batch_size} sequences each |
| corpus fingerprint | {code(str(provenance["corpus_fingerprint"]))} |
| assembly | {code(layout.assembly or "not said")} |
| code | commit {code(str(provenance["git_commit"]))}; {markdown(versions)} |

## Reads
{chr(10).join(f"- {line}" for line in read)}

## What it was trained on
- {parts} sequences; sealed chromosomes, which did not train: {markdown(sealed)}
- masks, strands, cell types and negatives are functions of (seed, step, row); seed {config.seed}

## Use
{chr(10).join(uses) or "As a sequence encoder to start from."}

## Limits
Sequences unlike those of the corpus (another species, other kinds of regions) are outside of what was learned. That
pre-training helps is not said by this card: score a task with the same model untrained, and with k-mers and motifs.
It is a research model, not a diagnostic one.
"""
