"""Verbs between this program and PyTorch: import, export-torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scmbert_jax.commands.terminal import ModelFolder, Organism, Overwrite, show
from scmbert_jax.plain_text import say

LayoutName = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="LAYOUT")]]


@dataclass(frozen=True)
class ImportModel:
    """Make a model folder of a checkpoint that PyTorch wrote; torch is not needed.

    Layouts: scbert (PerformerLM of performer-pytorch over all genes in one order), scgpt (nn.TransformerEncoder over
    the expressed genes; args.json beside the checkpoint). docs/import.md says what is read.

    Example:  scmbert import scbert panglao_pretrain.pth --genes genes.tsv -o my_model
              scmbert import scgpt scgpt/best_model.pt --genes scgpt/vocab.json -o my_model
    """

    layout: LayoutName
    """How the checkpoint names its parameters: scbert, scgpt."""
    checkpoint: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")]]
    """File of torch.save (torch 1.6 or later): a state dict, alone or in a dictionary."""
    genes: Path
    """One gene per line, symbol or Ensembl id, in the order of the checkpoint's positions; or a .json of name and
    position."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="MODEL_DIR")]
    """Folder to write."""
    organism: Organism = None
    """Default: of whichever more of the names are."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.torch_models.exchange import import_model

        model, notes = import_model(
            self.layout, self.checkpoint, self.genes, self.output, organism=self.organism, overwrite=self.overwrite
        )
        for note in notes:
            say(note)
        show(f"{self.output}: model of {model.feature_space.num_features:,} genes, imported from {self.checkpoint}")
        return 0


@dataclass(frozen=True)
class ExportTorch:
    """Write a model as a checkpoint that torch.load reads, and the list of its genes.

    Only models that the layout can hold: those that scmbert import made, or that the experiment of its name trained.

    Example:  scmbert export-torch scbert my_model checkpoint.pth --genes genes.tsv
    """

    layout: LayoutName
    """How the checkpoint shall name its parameters: scbert."""
    model_dir: tyro.conf.Positional[ModelFolder]
    """Written by scmbert import or scmbert export."""
    output: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")]]
    """File to write."""
    genes: Path
    """File to write: one gene per line, in the order of the checkpoint's positions."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.torch_models.exchange import export_torch

        number = export_torch(self.layout, self.model_dir, self.output, self.genes, overwrite=self.overwrite)
        show(f"{self.output}: state dict of layout {self.layout}, {number:,} genes ({self.genes})")
        return 0
