"""RNA and chromatin accessibility of mouse cortex nuclei (SNARE-seq): translation both ways, and one space for both.

    scmbert corpus build cortex rna.h5ad+atac.h5ad --assembly mm10 --min-genes 20 --exclude technical_batch=09B,09C,09H
    scmbert pretrain cortex_translation --corpus cortex --run-dir run
    scmbert export run model
    scmbert evaluate translation --data rna.h5ad+atac.h5ad --assembly mm10 --model model --test-batches 09B 09C 09H
    scmbert evaluate matching --data rna.h5ad+atac.h5ad --assembly mm10 --model model --test-batches 09B 09C 09H

7,665 nuclei to train on, 2,644 of three other technical batches to score. What came out, beside the baselines:
experiments/README.md.
"""

from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    DataConfig,
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
)


def config() -> ExperimentConfig:
    return ExperimentConfig(
        modalities=ModalitiesConfig(
            # A nucleus expresses 99 of 1,677 genes (median) and shows 82 of 25,734 regions open.
            rna=ModalityConfig(num_tokens=128, zero_fraction=0.3, target_likelihood="gaussian_log1p"),
            atac=ModalityConfig(num_tokens=128, zero_fraction=0.3, likelihood="bernoulli"),
        ),
        data=DataConfig(global_batch_size=64, num_streams=4, window_blocks=8),
        model=ModelConfig(embed_dim=64, num_layers=2, num_heads=2, head_dim=32, mlp_dim=128),
        objectives=ObjectivesConfig(
            masked_modeling=MaskedModelingConfig(weight=0.0),
            cross_modal_translation=CrossModalTranslationConfig(weight=0.5, source_fraction=0.7),
            contrastive_alignment=ContrastiveAlignmentConfig(weight=0.5, source_fraction=0.7),
        ),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=50),
        train=TrainConfig(num_steps=200, log_every=20, checkpoint_every=1000),
    )
