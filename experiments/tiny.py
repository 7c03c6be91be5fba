"""The smallest run that exercises everything: for smoke tests and for finding out whether a machine works.

    scmbert pretrain tiny --corpus DIR --run-dir RUN --steps 20

About ten seconds on a laptop, nearly all of it compilation. Reads those of the three modalities that
the corpus has. Learns nothing worth keeping.
"""

from scmbert_jax.config import DataConfig, ExperimentConfig, ModalitiesConfig, ModalityConfig, ModelConfig, TrainConfig


def config() -> ExperimentConfig:
    return ExperimentConfig(
        modalities=ModalitiesConfig(
            rna=ModalityConfig(num_tokens=64),
            protein=ModalityConfig(num_tokens=16, zero_fraction=0.0),
            atac=ModalityConfig(num_tokens=32, likelihood="bernoulli"),
        ),
        data=DataConfig(global_batch_size=16, num_streams=2, window_blocks=2),
        model=ModelConfig(embed_dim=32, num_layers=2, num_heads=2, head_dim=16, mlp_dim=64),
        train=TrainConfig(num_steps=50, log_every=5, checkpoint_every=25),
    )
