"""The verb that judges models of DNA: evaluate regulatory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scmbert_jax.commands.evaluate import check_report
from scmbert_jax.commands.terminal import Json, Overwrite, Report, listed, print_json, print_tables, require_positive
from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import say

_WIDTH = 201  # bases around a variant that a model reads


@dataclass(frozen=True)
class EvaluateRegulatory:
    """Score what is said of DNA sequences beside the simplest things that know the same.

    Labelled sequences, measured effects of variants, and zero-shot questions on sealed sequence; whichever is given.
    Baselines are tuned. docs/regulatory_suite.md says what each method is.

    Example:  scmbert evaluate regulatory gue/tf/0 gue/prom/prom_core_tata --motifs jaspar.meme --report report.html
              scmbert evaluate regulatory splice.data.gz --folds 10 --labels 0.01 0.1 1
              scmbert evaluate regulatory --variants elements.tsv.gz --assembly GRCh38 --motifs jaspar.meme
              scmbert evaluate regulatory --genome hg38.fa.gz --regions peaks.bed --sealed chr8 chr9 --json
    """

    tasks: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE...")] = ()
    """Folders with train.csv, dev.csv, test.csv (columns sequence, label), or tables, which are cut into folds."""
    motifs: Path | None = None
    """JASPAR, MEME, PFM or TRANSFAC; for baselines of motifs."""
    ours: bool = False
    """Also fit what scmbert regulate fit makes, and its linear parts alone: minutes for each set and seed."""
    arms: bool = False
    """Also fit the encoder with other beginnings: as it was drawn, from nothing, and, of --model, pre-trained."""
    model: Path | None = None
    """A model of DNA (scmbert export): its arms, and what it says of bases that are hidden from it."""
    shuffled_model: Path | None = None
    """The control of --model: the same, pre-trained on shuffled sequences. For --arms."""
    labels: tuple[float, ...] = (1.0,)
    """Fractions of the labels that learn."""
    folds: int = 10
    """Of a table."""
    num_seeds: int = 3
    """Of what is random; the spread gives the interval."""
    skip: tuple[str, ...] = ()
    """Methods of labelled sequences to leave out, by name."""
    genome: str | None = None
    """FASTA, for the zero-shot questions; its elements are those of --regions."""
    regions: tuple[str, ...] = ()
    """BED, narrowPeak or tables of elements."""
    sealed: tuple[str, ...] = ()
    """Where elements are judged, and what no Markov chain reads: chr8, or chr2:1500000-2333275 (0-based half-open)."""
    variants: Path | None = None
    """A table of saturation mutagenesis: chromosome, position, ref, alt, element, effect."""
    assembly: str | None = None
    """Whose positions are taken, where --variants has several builds."""
    min_barcodes: int = 0
    """Variants with fewer are left out."""
    conservation: Path | None = None
    """A bigWig track of the build of --variants, whose values are a baseline."""
    report: Report = None
    json: Json = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from data_pipelines.genome.motif_files import read_motifs
        from scmbert_jax.evaluation.regulatory.arms import ours
        from scmbert_jax.evaluation.regulatory.dna_models import arms_of, effect_of, likelihood_of
        from scmbert_jax.evaluation.regulatory.saturation import read_elements
        from scmbert_jax.evaluation.regulatory.suite import Sealed, Zoo, evaluate_regulatory, write_regulatory_report
        from scmbert_jax.evaluation.regulatory.tasks import read_task
        from scmbert_jax.pretrained_dna import open_dna_model

        require_positive(num_seeds=self.num_seeds)
        optional = (self.motifs, self.genome, self.variants, self.conservation)
        files = [*self.tasks, *self.regions, *(str(own) for own in optional if own is not None)]
        check_report(self.report, files, self.overwrite)
        asked = (self.genome is not None, bool(self.regions), bool(self.sealed))
        if any(asked) and not all(asked):
            raise ConfigError("--genome, --regions and --sealed belong together: give all three, or none.")
        if self.conservation is not None and self.variants is None:
            raise ConfigError("--conservation is a baseline of --variants: other sequences have no place in a genome.")
        if self.shuffled_model is not None and self.model is None:
            raise ConfigError("--shuffled-model is the control of a --model: give that, too.")
        if self.model is not None and not (self.arms or self.genome is not None or self.variants is not None):
            raise ConfigError("--model is judged by --arms, by --variants, or by --genome with its regions: give one.")
        motifs = None if self.motifs is None else read_motifs(self.motifs)
        model, shuffled = (None if own is None else open_dna_model(own) for own in (self.model, self.shuffled_model))
        zero_shot = model is not None and (self.genome is not None or self.variants is not None)
        zoo = Zoo(
            [*(ours(motifs) if self.ours else ()), *(arms_of(model, shuffled) if self.arms else ())],
            {f"model: {self.model}": likelihood_of(model)} if model is not None and zero_shot else {},
            {f"model: {self.model}": effect_of(model, _WIDTH)} if model is not None and zero_shot else {},
            _WIDTH,
        )
        found = evaluate_regulatory(
            [read_task(path, self.folds) for path in self.tasks],
            motifs=motifs,
            zoo=zoo,
            skip=listed(self.skip),
            fractions=self.labels,
            num_seeds=self.num_seeds,
            sealed=Sealed(self.genome, self.regions, self.sealed) if self.genome is not None else None,
            elements=()
            if self.variants is None
            else read_elements(self.variants, assembly=self.assembly, min_barcodes=self.min_barcodes),
            conservation=self.conservation,
            pictures=self.report is not None,
            say=say,
        )
        print_json(found.to_dict()) if self.json else print_tables(found.text())
        if self.report is not None:
            write_regulatory_report(self.report, found, {"inputs": files})
            say(f"report: {self.report}")
        return 0
