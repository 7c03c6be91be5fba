"""The configuration of a run on DNA, as config.py is that of a run on cells, whose parts it takes where they serve.

One experiment file builds one `DnaExperiment`; unknown fields and impossible values are errors that name the field.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scmbert_jax.config import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
    check_training,
    read_config,
    structured,
)
from scmbert_jax.errors import require
from scmbert_jax.objectives.sequence_region.config import (
    MaskedRegionsConfig,
    MaskedSequenceConfig,
    MatchingConfig,
    MotifOccurrenceConfig,
)


@dataclass(frozen=True)
class SequenceConfig:
    """How a DNA sequence becomes the tokens of the encoder, and which strands it reads (models/dna/)."""

    most_bases: int = 512
    """The longest sequence: places have an embedding each, which is learned."""
    tokens: Literal["bases", "kmers", "bpe"] = "bases"
    """A token per base, or per `stem_pool` bases (default: what changes one base changes one token); overlapping
    k-mers; pieces of a learned vocabulary (`BpeTokeniser`), whose ids are made on the host."""
    kmer: int = 6
    """k of `kmers`, 1 to 6 (GeneBERT and DNABERT: 3 to 6): a vocabulary of 4^k + 5."""
    bpe_vocabulary: int = 4096
    """Tokens of `bpe`, the special ones among them."""
    stem_layers: int = 1
    """Convolutions over the bases, before they become tokens; 0: none. Of `bases` alone."""
    stem_channels: int = 64
    stem_kernel: int = 11
    """Bases that a filter of the stem sees; odd. Motifs are 6 to 20 bases long."""
    stem_pool: int = 1
    """Bases of a token: the encoder's work falls by as much, and attention's by its square."""
    stem_pooling: Literal["all", "max"] = "all"
    """Of the `stem_pool` bases of a token, all channels of each, or the maximum of each channel: which of them it was
    is then not known, so it is not for predicting bases."""
    strands: Literal["given", "both", "equivariant"] = "given"
    """Which strands the encoder reads: the given one; both, each alone; both, where each token also knows what stands
    opposite. The last two take twice the work, and say of the reverse complement the same, mirrored."""
    pooled: Literal["cls", "mean"] = "cls"
    """What stands for the whole sequence: the state of `[CLS]`, or the mean of its tokens' states."""

    @property
    def bases_per_token(self) -> int:
        """Bases from one token to the next."""
        return self.stem_pool if self.tokens == "bases" else 1

    @property
    def most_tokens(self) -> int:
        return -(-self.most_bases // self.bases_per_token)

    def validate(self, where: str) -> None:
        for name in ("most_bases", "stem_channels", "stem_kernel", "stem_pool"):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "1 or more")
        require(1 <= self.kmer <= 6, f"{where}.kmer", self.kmer, "1 to 6")
        require(self.bpe_vocabulary > 5, f"{where}.bpe_vocabulary", self.bpe_vocabulary, "above the 5 special tokens")
        require(self.stem_layers >= 0, f"{where}.stem_layers", self.stem_layers, "0 or more")
        require(self.stem_kernel % 2 == 1, f"{where}.stem_kernel", self.stem_kernel, "an odd number")
        pools = self.tokens == "bases" or self.stem_pool == 1
        require(pools, f"{where}.stem_pool", self.stem_pool, f"1: tokens are {self.tokens}, not bases")
        strands = ("given",) if self.tokens == "bpe" else ("given", "both", "equivariant")
        require(self.strands in strands, f"{where}.strands", self.strands, "given: bpe has no mirrored tokens")


@dataclass(frozen=True)
class RegionConfig:
    """How a matrix of regions by regulators is read, and joined with the sequence (models/dna/)."""

    encoder: Literal["swin", "set"] = "swin"
    """`swin`: patches of the matrix that attend within windows, which are shifted in every second layer (Liu et al.
    2021; GeneBERT's kind, without its merging of patches); `set`: a token per region, of which the order is not known,
    as in GET."""
    num_regions: int = 9
    """Regions that are read with each sequence, by position around it on its chromosome, its own among them (K)."""
    num_layers: int = 2
    patch_regions: int = 1
    """Of `swin`: regions of a patch."""
    patch_columns: int = 16
    """Of `swin`: regulators of a patch."""
    window_regions: int = 5
    """Of `swin`: patches of a window along the regions."""
    window_columns: int = 8
    """Of `swin`: patches of a window along the regulators."""
    fusion_layers: int = 1
    """Layers in which tokens of the sequence and of the regions attend to each other."""
    open_only: bool = True
    """Regions that are closed in the cell type of a row (accessibility 0) are not read, but for the sequence's own:
    which regions are open says what the cell type is (GET)."""

    def validate(self, where: str) -> None:
        sizes = ("num_regions", "num_layers", "patch_regions", "patch_columns", "window_regions", "window_columns")
        for name in (*sizes, "fusion_layers"):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True)
class DnaDataConfig(DataConfig):
    """Which regions make a batch: as cells do. A block is of 256 regions."""

    both_strands: bool = True
    """Half of the sequences, drawn anew in each step, are read as their reverse complement."""


@dataclass(frozen=True)
class DnaObjectivesConfig:
    """The mixture of `sequence_region`: one field per task, each with its `weight` (fraction of steps) and `validate`.
    What trains it is named in `objectives.mixture.DNA_OBJECTIVES`."""

    masked_sequence: MaskedSequenceConfig = field(default_factory=MaskedSequenceConfig)
    masked_regions: MaskedRegionsConfig = field(default_factory=MaskedRegionsConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    motif_occurrence: MotifOccurrenceConfig = field(default_factory=MotifOccurrenceConfig)

    def weights(self) -> dict[str, float]:
        """Objective name -> weight, only those above 0, in the order of the fields."""
        return {name: own.weight for name, own in self.trained().items()}

    def trained(self) -> dict[str, Any]:
        """Objective name -> its configuration, only of those that train."""
        named = {own.name: getattr(self, own.name) for own in dataclasses.fields(self)}
        return {name: own for name, own in named.items() if own.weight > 0}

    @property
    def read_regions(self) -> list[str]:
        """Those that train and read the regions around a sequence: then the model has an encoder of regions."""
        return [
            name
            for name, own in self.trained().items()
            if name in ("masked_regions", "matching") or (name == "masked_sequence" and own.with_regions)
        ]


# Fields of `ModelConfig` that a model of DNA reads; the others are of cells.
_OF_ENCODER = (
    *("embed_dim", "num_layers", "num_heads", "head_dim", "mlp_dim", "activation", "norm_position", "qkv_bias"),
    *("norm_epsilon", "attention", "favor_features", "favor_redraw_every", "favor_stabiliser", "scan_layers", "remat"),
    "compute_dtype",
)


@dataclass(frozen=True)
class DnaExperiment:
    """Everything a run on DNA needs besides its corpus and its folder."""

    seed: int = 0
    """Seeds initialisation, data order, strands, cell types and masks."""
    data: DnaDataConfig = field(default_factory=DnaDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    """The encoder's size and numerics; what it says of cells must stay as it is."""
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    """Read where an objective reads regions."""
    objectives: DnaObjectivesConfig = field(default_factory=DnaObjectivesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=lambda: ValidationConfig(evaluators=("loss",)))

    def __post_init__(self) -> None:
        self.model.validate("model")
        usual = ModelConfig()
        for own in dataclasses.fields(ModelConfig):
            value = getattr(self.model, own.name)
            fits = own.name in _OF_ENCODER or value == getattr(usual, own.name)
            require(fits, f"model.{own.name}", value, f"{getattr(usual, own.name)!r}: no model of DNA reads it")
        self.sequence.validate("sequence")
        self.regions.validate("regions")
        for objective in dataclasses.fields(self.objectives):
            getattr(self.objectives, objective.name).validate(f"objectives.{objective.name}")
        check_training(self)
        require(not self.train.row_widths, "train.row_widths", self.train.row_widths, "none: those are of cells")
        bpe = self.sequence.tokens == "bpe"
        require(not bpe, "sequence.tokens", "bpe", "bases or kmers: batches of a corpus have no ids of pieces")
        predicts = "masked_sequence" in self.objectives.weights()
        by_max = self.sequence.tokens == "bases" and self.sequence.stem_pooling == "max" and self.sequence.stem_pool > 1
        pooling = self.sequence.stem_pooling
        require(not (predicts and by_max), "sequence.stem_pooling", pooling, "all, for objectives.masked_sequence")

    @property
    def most_tokens(self) -> int:
        """Tokens that a sequence may have at most."""
        return self.sequence.most_tokens


Experiment = ExperimentConfig | DnaExperiment


def load_any_config(path: Path) -> Experiment:
    """Reads a config.json of a run on cells or on DNA. Raises `ConfigError` naming the file and the field."""
    values = read_config(path)
    if isinstance(values, dict) and "sequence" in values:
        return structured(values, DnaExperiment, str(path))
    return structured(values, ExperimentConfig, str(path))
