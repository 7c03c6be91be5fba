"""The modalities: what each is called, by people and in files, what is usual for it, and the options of a run for it.
Everything else reads it here.

A modality is a word of `ModalityName`, an entry of `TABLE`, and a field of `ModalitiesConfig` with its defaults
(docs/extending.md). What its features are stands in `data_pipelines.features.feature_mapping`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from scmbert_jax.errors import require

ModalityName = Literal["rna", "protein", "atac"]

# The order of modalities in a feature table and in a token sequence. Fixed: it is part of the checkpoint, so that a new
# one comes last.
MODALITIES: tuple[str, ...] = get_args(ModalityName)


class Modality(NamedTuple):
    """What is said of one modality.

    Attributes:
      label: as people write it.
      words: what files call it (keys of a MuData, the type of a feature), in small letters and nothing but letters.
      feature_type: what Cell Ranger calls its features; readers, ours too, tell modalities by it.
      target_likelihood: how it is predicted from another modality where the configuration does not say.
      value_scale: the scale in which a translation into it is scored (`evaluation.data.value_scale`).
      usual_num_features: of a data set, for plans without a corpus.
      depth_components: how many of the first components of a baseline's values say nothing but depth, and are left out;
        where there are some, values are not centred (LSI), else they are (PCA).
    """

    label: str
    words: tuple[str, ...]
    feature_type: str
    target_likelihood: Literal["negative_binomial", "gaussian_clr", "bernoulli"]
    value_scale: Literal["log1p", "clr", "probability"]
    usual_num_features: int
    depth_components: int = 0


TABLE: dict[str, Modality] = {
    "rna": Modality(
        "RNA",
        ("rna", "gex", "gene", "genes", "geneexpression", "transcriptome", "expression", "scrna", "mrna"),
        "Gene Expression",
        "negative_binomial",
        "log1p",
        36_601,  # genes of 10x Genomics' human reference 2020-A
    ),
    "protein": Modality(
        "protein",
        (
            *("protein", "proteins", "prot", "adt", "adts", "ab", "abs", "antibody", "antibodies", "antibodycapture"),
            *("antibodyderivedtag", "antibodyderivedtags", "surfaceprotein", "surfaceproteins", "cellsurfaceprotein"),
            *("proteinexpression", "abseq", "cite", "citeseq"),
        ),
        "Antibody Capture",
        "gaussian_clr",
        "clr",
        228,  # antibodies of the TotalSeq-A universal panel with its controls
    ),
    "atac": Modality(
        "ATAC",
        (
            *("atac", "peak", "peaks", "chromatinaccessibility", "accessibility", "scatac", "chromatin", "region"),
            *("regions", "openchromatin"),
        ),
        "Peaks",
        "bernoulli",
        "probability",
        200_000,  # peaks of a joint call over some tissues
        depth_components=1,
    ),
}


TargetLikelihood = Literal[
    "negative_binomial", "negative_binomial_background", "gaussian_log1p", "gaussian_clr", "bernoulli"
]


@dataclass(frozen=True)
class ModalityConfig:
    """How one modality becomes tokens, and how its values are predicted."""

    num_tokens: int = 0
    """Tokens per cell in a training step; 0: this modality is not read. A trained model is shown whole cells."""
    zero_fraction: float = 0.25
    """Fraction of a cell's tokens that are measured features with count 0 (sampled)."""
    value_encoding: str = "continuous"
    """`continuous`: MLP of log1p(count / library_size * target_sum). `bins`: scBERT's floor(log2(1 + that ratio)).
    `ranks`: Geneformer's, among the cell's expressed features. `quantile_bins`: scGPT's, between quantiles of the
    cell's values. (`VALUE_ENCODINGS` in models/embeddings.py.)"""
    target_sum: float = 1e4
    """Counts per cell after normalisation by library size (CP10K: 1e4)."""
    num_bins: int = 6
    """Bins 0 .. num_bins-1 for `bins` (scBERT: 6, clipped at 5) and `quantile_bins` (scGPT: 51); one more than the
    ranks that `ranks` tells apart (Geneformer: 2049)."""
    likelihood: Literal["negative_binomial", "bins", "bins_and_mask", "bernoulli"] = "negative_binomial"
    """What is predicted at a masked position: the count, its bin, or whether it is above zero. `bins_and_mask`: its bin
    or the mask, which is never right, as scBERT has seven classes."""
    target_likelihood: TargetLikelihood | None = None
    """How this modality is predicted from another (cross_modal_translation), and from the cell embedding
    (whole_profile): `negative_binomial` (counts, given the
    library size), `negative_binomial_background` (counts of antibodies: an ambient and a bound level), `gaussian_log1p`
    (log1p of counts scaled to the median library), `gaussian_clr` (centred log ratio), `bernoulli` (open or not). None:
    `negative_binomial` for RNA, `gaussian_clr` for protein, `bernoulli` for ATAC."""
    loss_weight: float = 1.0
    """Weight of one predicted token of this modality in the summed loss."""

    def validate(self, where: str) -> None:
        require(self.num_tokens >= 0, f"{where}.num_tokens", self.num_tokens, "0 or more")
        require(0 <= self.zero_fraction < 1, f"{where}.zero_fraction", self.zero_fraction, "0 <= value < 1")
        require(self.target_sum > 0, f"{where}.target_sum", self.target_sum, "a positive number")
        require(self.num_bins >= 2, f"{where}.num_bins", self.num_bins, "2 or more")
        require(self.loss_weight > 0, f"{where}.loss_weight", self.loss_weight, "a positive number")


@dataclass(frozen=True)
class ModalitiesConfig:
    """One `ModalityConfig` per modality; those with `num_tokens > 0` are read."""

    rna: ModalityConfig = ModalityConfig()
    protein: ModalityConfig = ModalityConfig(zero_fraction=0.0)
    atac: ModalityConfig = ModalityConfig(likelihood="bernoulli")

    def target_likelihoods(self) -> dict[str, str]:
        """Modality that is read -> how it is predicted from others."""
        read = self.in_use().items()
        return {name: modality.target_likelihood or TABLE[name].target_likelihood for name, modality in read}

    def in_use(self) -> dict[str, ModalityConfig]:
        """The modalities that are read, in the order of `MODALITIES`."""
        return {name: getattr(self, name) for name in MODALITIES if getattr(self, name).num_tokens > 0}


def require_two_modalities(weight: float, where: str, modalities: ModalitiesConfig) -> None:
    """Raises `ConfigError` where an objective of this weight compares modalities, and fewer than two are read."""
    read = modalities.in_use()
    expected = f"0, or two modalities with num_tokens above 0 (there is only {', '.join(read)})"
    require(weight == 0 or len(read) > 1, f"{where}.weight", weight, expected)
