"""What configures a model of DNA, as config.py does a model of cells, whose parts it takes where they are the same."""

from dataclasses import dataclass
from typing import Literal

from scmbert_jax.errors import require


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
