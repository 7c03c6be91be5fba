"""Verbs for regulatory DNA: regulate fit, predict, score-variants, embed-regions, attribute."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scmbert_jax.commands.terminal import Output, Overwrite, listed, progress, show
from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import say

if TYPE_CHECKING:
    from data_pipelines.genome.fasta import Fasta
    from data_pipelines.genome.sealed_chromosomes import SealedChromosomes
    from scmbert_jax.regulation.ask import Asked
    from scmbert_jax.regulation.fit import FitOptions
    from scmbert_jax.regulation.labelled import LabelledSequences
    from scmbert_jax.regulation.model import RegulatoryModel
    from scmbert_jax.regulation.network_training import Start
    from scmbert_jax.regulation.read import Reading

RegulatoryFolder = Annotated[Path, tyro.conf.arg(metavar="REGULATORY_DIR")]
SequencesFile = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Chromosomes = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")]


@dataclass(frozen=True)
class GenomeArguments:
    """How sequences are found in files."""

    fasta: Path | None = None
    """Genome (.fa, plain, gzip or bgzip). FILE is then of regions: BED, narrowPeak, or .csv and .tsv with a header."""
    assembly: str | None = None
    """Genome build, as hg38 or mm10: the lengths of chromosomes must be those of it."""
    ucsc_names: bool = False
    """Chromosomes are called as UCSC calls them, in all files (1 becomes chr1)."""
    width: int | None = None
    """Bases of a window around each region. Default: of fit, regions as they are; else what the model reads."""
    around: Literal["centre", "summit"] = "centre"
    """What of a region is in the middle of its window."""
    sequence_column: str = ""
    """Column of a table with sequences. Default: what looks like it (sequence, seq, dna)."""
    most_left_out: float = 0.01
    """Fraction of the rows of a file that may be unusable; they are counted."""


@dataclass(frozen=True)
class RegulateFit:
    """Fit a model of regulatory DNA to sequences or regions with labels.

    Linear parts (k-mers, bases by place, motif scores), a network of motif scores, and a network with a sequence
    encoder, each as far as the data allow, are weighed by what they say of dev, and scored beside the linear parts.

    Example:  scmbert regulate fit train.csv --dev dev.csv --test test.csv -o my_regulatory
              scmbert regulate fit peaks.csv --fasta genome.fa --motifs motifs.jaspar --width 200 -o my_regulatory
              scmbert regulate fit peaks.bed --fasta genome.fa --matrix accessibility.npz --width 200 -o my_regulatory
    """

    file: tyro.conf.Positional[SequencesFile]
    """Table (.csv, .tsv, .gz, .parquet) of sequences and labels; or, with --fasta, regions."""
    output: Output
    """Folder of the model."""
    dev: SequencesFile | None = None
    """As FILE: what chooses. Default: a part of FILE, whole chromosomes where it knows them."""
    test: SequencesFile | None = None
    """As FILE: what the model is scored on."""
    matrix: Path | None = None
    """Labels of regions: regions by cell types (.npz, .parquet, .csv, .h5ad), joined by chr:start-end."""
    motifs: Path | None = None
    """JASPAR, MEME, PFM or TRANSFAC: motifs whose scores are read."""
    label_column: tuple[str, ...] = ()
    """Columns of labels, of table or matrix. Default: what looks like it (label, class, ...), or a whole matrix."""
    split_column: str = ""
    """Column that says train, dev or test. Default: what looks like it (split, part, ...)."""
    dev_chromosomes: Chromosomes = ()
    """Chromosomes that choose; with --test-chromosomes."""
    test_chromosomes: Chromosomes = ()
    """Chromosomes that the model is scored on."""
    task: Literal["auto", "binary", "classes", "labels", "values"] = "auto"
    """What labels are: one of two, one of several, several at once (0 or 1), or numbers."""
    linear: tuple[Literal["kmers", "gapped", "bases", "motifs", "none"], ...] = ("kmers", "gapped", "bases", "motifs")
    """Linear parts; none: none."""
    network: bool = True
    """A network with a sequence encoder."""
    motif_network: bool = True
    """A network of motif scores alone, where there is --motifs."""
    pretrained: Annotated[Path | None, tyro.conf.arg(metavar="MODEL_DIR")] = None
    """Model of DNA (scmbert export): its sequence encoder begins the network, which is then fine-tuned."""
    frozen: bool = False
    """The pre-trained encoder stays as it is; only what reads it is fitted."""
    members: int = 1
    """Networks of each kind, of different seeds, that are averaged."""
    epochs: int | None = None
    """Passes over the training sequences at most; the best on dev is kept. Default: by the network, 8 or 10."""
    learning_rate: float | None = None
    """At its peak. Default: 0.003."""
    balance: float = 0.0
    """0: classes have say by their sequences; 1: all equally."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Training sequences that are in dev or test, too, on either strand: counted, and kept or dropped."""
    seed: int = 0
    """Of the first network, and of what is split off."""
    read: Annotated[GenomeArguments, tyro.conf.arg(name="")] = GenomeArguments()
    overwrite: Overwrite = False

    def run(self) -> int:
        from data_pipelines.genome.motif_files import read_motifs
        from scmbert_jax.outputs import REGULATORY, check_output_folder
        from scmbert_jax.regulation.fit import fit_regulatory
        from scmbert_jax.regulation.model_folder import save_regulatory

        inputs = [self.file, self.dev, self.test, self.matrix, self.motifs, self.pretrained, self.read.fasta]
        check_output_folder(self.output, REGULATORY, inputs, self.overwrite)
        options, start = self._options()
        parts = self._parts()
        motifs = None if self.motifs is None else read_motifs(self.motifs)
        model = fit_regulatory(
            parts["train"],
            options,
            dev=parts.get("dev"),
            test=parts.get("test"),
            motifs=motifs,
            pretrained=start,
            progress=progress("fit"),
            say=say,
        )
        save_regulatory(model, self.output, self.overwrite)
        show(f"{self.output}: {model!r}")
        return 0

    def _parts(self) -> "dict[str, LabelledSequences]":
        from scmbert_jax.regulation.read import read_labelled_regions, read_labelled_table

        reading, fasta = replace_reading(self.read, self._chromosomes()), _fasta(self.read)
        labels = tuple(name.lower() for name in self.label_column) if self.matrix is None else self.label_column
        reading = replace(reading, labels=labels, split=self.split_column, task=self.task)
        if fasta is None and self.matrix is not None:
            raise ConfigError(f"--matrix {self.matrix}: is of regions; give --fasta, and regions as FILE.")

        def parts_of(path: Path, task: Any = None) -> "dict[str, LabelledSequences]":
            if fasta is None:
                return read_labelled_table(path, reading, task, say)
            return read_labelled_regions(path, fasta, reading, self.matrix, task, say)

        found = parts_of(self.file)
        for name, path in (("dev", self.dev), ("test", self.test)):
            if path is None:
                continue
            if name in found:
                raise ConfigError(f"--{name} {path}: {self.file} has a part {name} already; give one of the two.")
            (found[name],) = parts_of(path, found["train"].task).values()
        return found

    def _chromosomes(self) -> "SealedChromosomes | None":
        from data_pipelines.genome.sealed_chromosomes import SealedChromosomes

        dev, test = listed(self.dev_chromosomes), listed(self.test_chromosomes)
        if not dev and not test:
            return None
        if not dev or not test:
            raise ConfigError("--dev-chromosomes and --test-chromosomes go together: give both, or neither.")
        return SealedChromosomes(dev, test)

    def _options(self) -> "tuple[FitOptions, Start | None]":
        from scmbert_jax.regulation.fit import FitOptions
        from scmbert_jax.regulation.network import MOTIF_NETWORK, NetworkOptions

        changes = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        if "none" in self.linear and len(self.linear) > 1:
            raise ConfigError(f"--linear {' '.join(self.linear)}: none, or some of kmers, gapped, bases, motifs.")
        network, start = NetworkOptions(**given) if self.network else None, None
        if self.frozen and self.pretrained is None:
            raise ConfigError("--frozen: is of --pretrained MODEL_DIR, which is not given.")
        if self.pretrained is not None:
            if network is None:
                raise ConfigError("--pretrained: begins the network, which --no-network leaves out.")
            from scmbert_jax.regulation.pretrained_encoder import pretrained_network

            network, start = pretrained_network(self.pretrained, network, self.frozen)
        options = FitOptions(
            linear=tuple(kind for kind in self.linear if kind != "none"),
            network=network,
            motif_network=replace(MOTIF_NETWORK, **given) if self.motif_network else None,
            members=self.members,
            balance=self.balance,
            duplicates=self.duplicates,
            seed=self.seed,
        )
        return options, start


@dataclass(frozen=True)
class RegulatePredict:
    """Predict what a regulatory model was fitted to, of sequences or regions.

    Example:  scmbert regulate predict my_regulatory test.csv -o predicted.csv
              scmbert regulate predict my_regulatory peaks.bed --fasta genome.fa -o predicted.csv
    """

    regulatory_dir: tyro.conf.Positional[RegulatoryFolder]
    """Written by scmbert regulate fit."""
    file: tyro.conf.Positional[SequencesFile]
    """Table of sequences; or, with --fasta, regions."""
    output: Output
    """.csv or .tsv: probabilities of the classes or labels, or values."""
    read: Annotated[GenomeArguments, tyro.conf.arg(name="")] = GenomeArguments()
    batch_size: int = 512
    """Sequences at once; changes speed and memory only."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.regulation.ask import predicted
        from scmbert_jax.regulation.write import check_table, write_table

        check_table(self.output, [self.regulatory_dir, self.file, self.read.fasta], self.overwrite)
        model = _model(self.regulatory_dir)
        asked = _asked(self.file, self.read, model.length)
        write_table(self.output, predicted(model, asked, self.batch_size))
        show(f"{self.output}: {', '.join(model.task.names[:8])} of {len(asked.codes):,} sequences")
        return 0


@dataclass(frozen=True)
class RegulateScoreVariants:
    """Score variants: a regulatory model of the alternate allele minus that of the reference.

    Example:  scmbert regulate score-variants my_regulatory variants.vcf --fasta genome.fa -o scored.csv
    """

    regulatory_dir: tyro.conf.Positional[RegulatoryFolder]
    """Written by scmbert regulate fit."""
    file: tyro.conf.Positional[SequencesFile]
    """VCF, or .csv and .tsv with a header (chromosome, position, reference_bases, alternate_bases); 1-based."""
    output: Output
    """.csv or .tsv: effects for each variant and output; what was left out stands beside it, in NAME.left_out.csv."""
    read: Annotated[GenomeArguments, tyro.conf.arg(name="")] = GenomeArguments()
    keep_repeated: bool = False
    """A variant may be there several times; else the first is taken."""
    given_strand: bool = False
    """Read the forward strand alone, where the model reads one; else the mean of both."""
    batch_size: int = 256
    """Sequences at once; changes speed and memory only."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from data_pipelines.genome.left_out import counted_in_words
        from scmbert_jax.regulation.ask import score_variants
        from scmbert_jax.regulation.write import check_table, left_out_path, write_left_out, write_table

        inputs = [self.regulatory_dir, self.file, self.read.fasta]
        check_table(self.output, inputs, self.overwrite)
        check_table(left_out_path(self.output), inputs, self.overwrite)
        fasta = _fasta(self.read)
        if fasta is None:
            raise ConfigError("variants change a genome: give --fasta.")
        found = score_variants(
            _model(self.regulatory_dir),
            self.file,
            fasta,
            replace_reading(self.read, None),
            keep_repeated=self.keep_repeated,
            turned=not self.given_strand,
            batch_size=self.batch_size,
        )
        write_table(self.output, found.table)
        write_left_out(left_out_path(self.output), found.left_out)
        for line in counted_in_words(found.left_out):
            say(line)
        show(
            f"{self.output}: effects of {len(found.table):,} variants; {left_out_path(self.output)}: what was left out"
        )
        return 0


@dataclass(frozen=True)
class RegulateEmbedRegions:
    """Embed regions: what a regulatory or a pre-trained model of DNA says of their sequence.

    The .npz is a table of region embeddings, as --region-embeddings of embed and translate reads it.

    Example:  scmbert regulate embed-regions my_regulatory peaks.bed --fasta genome.fa -o regions.npz
    """

    model_dir: tyro.conf.Positional[RegulatoryFolder]
    """Written by scmbert regulate fit, or by scmbert export of a run on DNA."""
    file: tyro.conf.Positional[SequencesFile]
    """Regions: BED, narrowPeak, .csv or .tsv with a header."""
    output: Output
    """.npz, .parquet or .h5ad; keyed by chr:start-end, 0-based half-open."""
    read: Annotated[GenomeArguments, tyro.conf.arg(name="")] = GenomeArguments()
    batch_size: int = 256
    """Sequences at once; changes speed and memory only."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.regulation.ask import embedded
        from scmbert_jax.regulation.pretrained_encoder import embedder_of
        from scmbert_jax.regulation.write import check_embeddings, write_embeddings

        check_embeddings(self.output, [self.model_dir, self.file, self.read.fasta], self.overwrite)
        if self.read.fasta is None:
            raise ConfigError("regions are places of a genome: give --fasta.")
        embed, length = embedder_of(self.model_dir, self.batch_size)
        ids, vectors = embedded(embed, _asked(self.file, self.read, length))
        write_embeddings(self.output, ids, vectors)
        show(f"{self.output}: {vectors.shape[1]:,} numbers for each of {len(ids):,} regions")
        return 0


@dataclass(frozen=True)
class RegulateAttribute:
    """Say what each base contributes to an output, in files that TF-MoDISco reads.

    Example:  scmbert regulate attribute my_regulatory test.csv -o attributions
              scmbert regulate attribute my_regulatory peaks.bed --fasta genome.fa --method mutagenesis -o attributions
    """

    regulatory_dir: tyro.conf.Positional[RegulatoryFolder]
    """Written by scmbert regulate fit."""
    file: tyro.conf.Positional[SequencesFile]
    """Table of sequences; or, with --fasta, regions."""
    output: Output
    """Folder: ohe.npz and shap.npz for TF-MoDISco, sequences.csv, attributions.json."""
    method: Literal["integrated_gradients", "saliency", "mutagenesis"] = "integrated_gradients"
    """Integrated gradients add up to the output (told); saliency is the gradient; mutagenesis tries every base."""
    of: str | None = None
    """Output to explain, where there are several."""
    baseline: Literal["shuffles", "uniform", "zeros"] = "shuffles"
    """Of integrated gradients: dinucleotide shuffles of each sequence, a quarter of each base, or nothing."""
    shuffles: int = 10
    """Of each sequence, where they are the baseline."""
    steps: int = 32
    """Points of integrated gradients; more make the sum more exact."""
    window: int | None = None
    """Bases in the middle that TF-MoDISco is to look at. Default: all."""
    seed: int = 0
    """Of the shuffles."""
    read: Annotated[GenomeArguments, tyro.conf.arg(name="")] = GenomeArguments()
    batch_size: int = 64
    """Sequences at once; changes speed and memory only."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.outputs import ATTRIBUTIONS, check_output_folder
        from scmbert_jax.regulation.ask import attributed
        from scmbert_jax.regulation.write import write_attributions

        inputs = [self.regulatory_dir, self.file, self.read.fasta]
        check_output_folder(self.output, ATTRIBUTIONS, inputs, self.overwrite)
        model = _model(self.regulatory_dir)
        asked = _asked(self.file, self.read, model.length)
        found = attributed(
            model,
            asked.codes,
            self.method,
            self.of,
            baseline=self.baseline,
            num_shuffles=self.shuffles,
            steps=self.steps,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        about = {"model": model.name, "method": self.method, "output": self.of or model.task.output_names[0]}
        report = write_attributions(self.output, found, asked.keys, about, self.window)
        for line in (*found.said, *report.in_words().splitlines()):
            show(line)
        return 0


def replace_reading(given: GenomeArguments, chromosomes: "SealedChromosomes | None") -> "Reading":
    """What the command line says of reading, for the readers."""
    from scmbert_jax.regulation.read import Reading

    return Reading(
        sequence=given.sequence_column,
        most_left_out=given.most_left_out,
        ucsc_names=given.ucsc_names,
        assembly=given.assembly,
        width=given.width,
        around=given.around,
        chromosomes=chromosomes,
    )


def _fasta(given: GenomeArguments) -> "Fasta | None":
    from data_pipelines.genome.fasta import Fasta

    return None if given.fasta is None else Fasta(given.fasta, given.assembly, given.ucsc_names)


def _model(folder: Path) -> "RegulatoryModel":
    from scmbert_jax.regulation.model_folder import load_regulatory

    return load_regulatory(folder)


def _asked(path: Path, given: GenomeArguments, length: int) -> "Asked":
    from data_pipelines.genome.left_out import counted_in_words
    from scmbert_jax.regulation.ask import sequences_of

    reading = replace_reading(given, None)
    if given.fasta is not None and given.width is None:
        reading = replace(reading, width=length)
    asked = sequences_of(path, reading, length, _fasta(given))
    for line in counted_in_words(asked.left_out):
        say(line)
    return asked
