"""The demo: RNA and protein of 1,600 blood cells, a mosaic (RNA only, protein only, both), on two CPU cores.

    make demo

or step by step:

    scmbert corpus build demo_run/corpus example:pbmc_mosaic --block-size 16
    scmbert pretrain pbmc_demo --corpus demo_run/corpus --run-dir demo_run/run

A minute for the 400 steps on two idle cores. What to expect: the table in README.md of the repository.
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
        modalities=ModalitiesConfig(
            # A cell expresses 41 of the 500 genes on average; as many zeros are shown as expressed genes.
            rna=ModalityConfig(num_tokens=96, zero_fraction=0.5),
            # 211 of 224 antibodies have counts in a cell: a step sees half of them, the embedding all.
            protein=ModalityConfig(num_tokens=112, zero_fraction=0.1),
        ),
        # So few cells are learned in small batches: a step is 0.1 to 0.3 s.
        data=DataConfig(global_batch_size=32, num_streams=4, window_blocks=8),
        model=ModelConfig(embed_dim=64, num_layers=2, num_heads=2, head_dim=32, mlp_dim=256),
        # The cell embedding learns little from masked values; a mixture of both scored lower (ledger).
        objectives=ObjectivesConfig(
            masked_modeling=MaskedModelingConfig(weight=0.0), whole_profile=WholeProfileConfig(weight=1.0)
        ),
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=50),
        train=TrainConfig(num_steps=400, log_every=10, checkpoint_every=100),
    )
