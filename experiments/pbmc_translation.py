"""RNA and surface protein of 400 paired blood cells and 800 others: translation both ways, and one space for both.

    scmbert corpus build p3 example:pbmc_mosaic --block-size 16 --only technical_batch=p1_0,p2_0,p3_0
    scmbert pretrain pbmc_translation --corpus p3 --run-dir run
    scmbert export run model
    scmbert evaluate translation --model model --train-batches p3_0 --test-batches p4_0
    scmbert evaluate matching --model model --train-batches p3_0 --test-batches p4_0

p1 (RNA only) and p2 (protein only) have no pairs, but their cells are in the principal components. Without pairs, make
pseudo-pairs first (`scmbert pseudo-pairs example:pbmc_mosaic -o pseudo.h5mu`), and build the corpus from those. What
came out, beside the baselines: experiments/README.md.
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
            # RMSE of log1p is what is scored, so it is what is trained.
            rna=ModalityConfig(num_tokens=96, zero_fraction=0.3, target_likelihood="gaussian_log1p"),
            protein=ModalityConfig(num_tokens=112, zero_fraction=0.1),
        ),
        data=DataConfig(global_batch_size=64, num_streams=4, window_blocks=8),
        model=ModelConfig(embed_dim=64, num_layers=2, num_heads=2, head_dim=32, mlp_dim=128),
        objectives=ObjectivesConfig(
            masked_modeling=MaskedModelingConfig(weight=0.0),
            # So few cells are learned by heart in a few epochs; half of a cell's tokens is another cell each time.
            cross_modal_translation=CrossModalTranslationConfig(weight=0.75, source_fraction=0.5),
            contrastive_alignment=ContrastiveAlignmentConfig(weight=0.25, source_fraction=0.5),
        ),
        optimizer=OptimizerConfig(peak_learning_rate=3e-4, warmup_steps=20),
        train=TrainConfig(num_steps=100, log_every=20, checkpoint_every=1000),
    )
