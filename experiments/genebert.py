"""GeneBERT's three tasks over DNA and a matrix of transcription factors by regions, and which motifs a sequence has.

    scmbert corpus genome genome.fa peaks.narrowPeak -o regions.npz --width 300 --motifs JASPAR.txt
    scmbert pretrain genebert --corpus regions.npz --run-dir runs/genebert --steps 10000
    scmbert export runs/genebert genebert_model

Mo et al. 2021 (arXiv 2110.05231) has no public code, and no table of it could be checked. What is known of it: DNA
sequence (1-D) and a matrix of transcription factors by regions (2-D) are read at once, and three tasks train it: masked
sequence, masked regions, does this matrix belong to this sequence. **All numbers below are assumptions of ours**, each
marked, with where it comes from. `config("tiny")` is for tests and to find out whether a machine works.
"""

from scmbert_jax.config import ModelConfig, OptimizerConfig, TrainConfig
from scmbert_jax.dna_config import DnaDataConfig, DnaExperiment, DnaObjectivesConfig, RegionConfig, SequenceConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.objectives.sequence_region.config import (
    MaskedRegionsConfig,
    MaskedSequenceConfig,
    MatchingConfig,
    MotifOccurrenceConfig,
)


def config(size: str = "base") -> DnaExperiment:
    """`base`: DNABERT's shape at a fourth of its depth and half of its width; `tiny`: for tests."""
    sizes = {"base": _base, "tiny": _tiny}
    if size not in sizes:
        there = ", ".join(f"genebert:{name}" for name in sizes)
        raise ConfigError(f"genebert:{size} does not exist. There are: {there}.")
    return sizes[size]()


def _base() -> DnaExperiment:
    return DnaExperiment(
        data=DnaDataConfig(global_batch_size=128, num_streams=4),
        # Assumed: DNABERT is 12 x 768 x 12 heads; this is smaller so that one GPU holds it. No run of it was timed.
        model=ModelConfig(
            embed_dim=384, num_layers=3, num_heads=6, head_dim=64, mlp_dim=1536, compute_dtype="bfloat16"
        ),
        # Known: overlapping k-mers, spans that cannot leak. Assumed: k = 6 of 3 to 6, and 512 bases, as DNABERT.
        sequence=SequenceConfig(most_bases=512, tokens="kmers", kmer=6, strands="given"),
        # Known: a Swin-type encoder. Assumed: its patches and windows, and nine regions around each sequence.
        regions=RegionConfig(encoder="swin", num_regions=9, num_layers=2, patch_columns=16),
        objectives=DnaObjectivesConfig(
            # Assumed: 15% of the bases, as BERT; a hidden run is k long.
            masked_sequence=MaskedSequenceConfig(weight=1.0, mask_fraction=0.15, span=6),
            # Assumed: half of the regions, squared errors, as GET; accessibility is GET's channel, not GeneBERT's.
            masked_regions=MaskedRegionsConfig(weight=1.0, mask_fraction=0.5),
            # Assumed: how negatives are found (hard ones of the batch); InfoNCE beside the yes or no is ours.
            matching=MatchingConfig(weight=1.0),
            # Ours: the paper has three tasks; set its weight to 0 for those alone.
            motif_occurrence=MotifOccurrenceConfig(weight=0.0),
        ),
        # DNABERT's: AdamW (.9, .98), decay .01, peak 4e-4; assumed: a warm-up of 5%, as its 10k of 200k.
        optimizer=OptimizerConfig(peak_learning_rate=4e-4, warmup_steps=500),
        train=TrainConfig(num_steps=10_000, log_every=50, checkpoint_every=1000),
    )


def _tiny() -> DnaExperiment:
    return DnaExperiment(
        data=DnaDataConfig(global_batch_size=8, num_streams=1),
        model=ModelConfig(embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=32),
        sequence=SequenceConfig(most_bases=512, tokens="kmers", kmer=3),
        regions=RegionConfig(num_regions=3, num_layers=1, patch_columns=4),
        objectives=DnaObjectivesConfig(
            masked_sequence=MaskedSequenceConfig(span=3),
            masked_regions=MaskedRegionsConfig(weight=1.0),
            matching=MatchingConfig(weight=1.0, projection_dim=8),
            motif_occurrence=MotifOccurrenceConfig(weight=1.0),
        ),
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=5),
        train=TrainConfig(num_steps=20, log_every=5, checkpoint_every=10),
    )
