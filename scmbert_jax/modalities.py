"""The modalities: what each is called, by people and in files, and what is usual for it. Everything else reads it here.

A modality is a word of `ModalityName`, an entry of `TABLE`, and a field of `config.ModalitiesConfig` with its defaults
(docs/extending.md). What its features are stands in `data_pipelines.features.feature_mapping`.
"""

from typing import Literal, NamedTuple, get_args

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
    """

    label: str
    words: tuple[str, ...]
    feature_type: str
    target_likelihood: Literal["negative_binomial", "gaussian_clr", "bernoulli"]
    value_scale: Literal["log1p", "clr", "probability"]
    usual_num_features: int


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
    ),
}
