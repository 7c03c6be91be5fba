"""349 million parameters over RNA, protein and accessibility, 4,096 tokens a cell: for a node of GPUs or a TPU slice.

    scmbert plan large_350m --topology h200-8 --model.attention cudnn
    scmbert pretrain large_350m --corpus CORPUS --run-dir RUN --model.attention cudnn      # NVIDIA
    scmbert pretrain large_350m --corpus CORPUS --run-dir RUN --model.attention splash     # TPU

Planned, not measured (half of the roofline; flags in brackets): 8 H200, 24 GiB each, 1.8 s a step, 4.1 days for
100 million cells [--train.num-microbatches 8]; v5e-16, 6.2 GiB a chip, 4.6 s, 10.4 days [32].

Parameters: 17 layers of 12 x 1280^2 (334 million) and 15.2 million in value encoding, links, decoder and heads; the
rows of the features are not counted (1,280 each). Not measured: any score.
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
            embed_dim=1_280,
            num_layers=17,
            num_heads=10,
            head_dim=128,  # as wide as the matrix units: twice the work of 64 per pass over the softmax
            mlp_dim=5_120,
            # Runs anywhere in linear memory. cudnn and splash compute the same, faster, each on its own hardware.
            attention="xla_chunked",
            linear_path=False,
            remat="dots",  # products are kept, attention and what lies between is computed again
            compute_dtype="bfloat16",
        ),
        objectives=ObjectivesConfig(masked_modeling=MaskedModelingConfig(mask_fraction=0.3)),
        optimizer=OptimizerConfig(peak_learning_rate=4e-4, warmup_steps=3_000, beta2=0.95, weight_decay=0.05),
        # One pass over 100 million cells.
        train=TrainConfig(num_steps=195_312, log_every=20, checkpoint_every=1_000),
    )
