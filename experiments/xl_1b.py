"""1.04 billion parameters over RNA, protein and accessibility, 4,096 tokens a cell: for a TPU slice or several nodes.

    scmbert plan xl_1b --topology v6e-256 --model.attention splash
    scmbert pretrain xl_1b --corpus CORPUS --run-dir RUN --model.attention cudnn      # NVIDIA
    scmbert pretrain xl_1b --corpus CORPUS --run-dir RUN --model.attention splash     # TPU

Planned, not measured (half of the roofline; flags in brackets): v6e-256, 5.9 GiB a chip, 0.2 s a step, 0.4 days
for 100 million cells [--mesh.replica 16]; 64 H200, 13 GiB each, 0.7 s, 1.6 days [--mesh.replica 8]; 8 H200, 19 GiB
each, 13 days [--train.num-microbatches 8].

Parameters: 20 layers of 12 x 2048^2 (1,007 million) and 37.8 million in value encoding, links, decoder and heads;
the rows of the features are not counted (2,048 each). Not measured: any score.
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
)


def config() -> ExperimentConfig:
    return ExperimentConfig(
        modalities=ModalitiesConfig(
            # 4,095 tokens and `[CLS]`: a multiple of 128, which is what kernels of attention work on.
            rna=ModalityConfig(num_tokens=2_559, zero_fraction=0.1),
            protein=ModalityConfig(num_tokens=256, zero_fraction=0.0),
            atac=ModalityConfig(num_tokens=1_280, zero_fraction=0.1, likelihood="bernoulli"),
        ),
        # 2.1 million tokens a step; 64 hosts and 256 chips divide it.
        data=DataConfig(global_batch_size=512, num_streams=64, window_blocks=4),
        model=ModelConfig(
            embed_dim=2_048,
            num_layers=20,
            num_heads=16,
            head_dim=128,  # as wide as the matrix units: twice the work of 64 per pass over the softmax
            mlp_dim=8_192,
            # Runs anywhere in linear memory. cudnn and splash compute the same, faster, each on its own hardware.
            attention="xla_chunked",
            linear_path=False,
            remat="full",  # of each layer, only what enters it is kept
            compute_dtype="bfloat16",
        ),
        objectives=ObjectivesConfig(masked_modeling=MaskedModelingConfig(mask_fraction=0.3)),
        optimizer=OptimizerConfig(peak_learning_rate=3e-4, warmup_steps=4_000, beta2=0.95, weight_decay=0.05),
        # One pass over 100 million cells.
        train=TrainConfig(num_steps=195_312, log_every=20, checkpoint_every=1_000),
    )
