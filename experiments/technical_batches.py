"""A model whose embedding need not carry the technical batch, because what predicts counts from it is told the batch.

    scmbert corpus build my_corpus cells.h5ad --obs-field technical_batch=donor
    scmbert pretrain technical_batches --corpus my_corpus --run-dir run
    scmbert export run my_model
    scmbert embed my_model cells.h5ad -o embedded.h5ad

kang_pbmc_ifnb_13types, control and stimulated cells as batches, 400 steps (four minutes of two shared cores), one seed,
scib-metrics bio / batch / total: .538/.664/.589; principal components .637/.344/.520, and corrected by
`scmbert integrate` .669/.821/.729. Batches are mixed, and much of what tells types apart is not learned in so few
steps: prefer `scmbert integrate`, unless the model is wanted for more.
"""

from scmbert_jax.config import (
    DataConfig,
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
    WholeProfileConfig,
)


def config() -> ExperimentConfig:
    return ExperimentConfig(
        modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=256, zero_fraction=0.25)),
        data=DataConfig(global_batch_size=32, num_streams=4, window_blocks=8),
        model=ModelConfig(
            embed_dim=64,
            num_layers=2,
            num_heads=2,
            head_dim=32,
            mlp_dim=256,
            # Principal components would carry the batch into the embedding, whatever the heads are told.
            linear_path=False,
            covariates=("technical_batch",),
        ),
        objectives=ObjectivesConfig(
            masked_modeling=MaskedModelingConfig(weight=0.0),
            # A cell of unknown batch is never asked for: with batches hidden, the embedding would have to know them.
            whole_profile=WholeProfileConfig(weight=1.0, covariate_dropout=0.0),
        ),
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=50),
        train=TrainConfig(num_steps=400, log_every=10, checkpoint_every=100),
    )
