"""10 million parameters over RNA, protein and accessibility, 2,048 tokens a cell: for one accelerator.

    scmbert plan small_10m --topology h200-1 --model.attention cudnn
    scmbert pretrain small_10m --corpus CORPUS --run-dir RUN --model.attention cudnn      # NVIDIA
    scmbert pretrain small_10m --corpus CORPUS --run-dir RUN --model.attention splash     # TPU

Planned, not measured (half of the roofline): one H200, 64 GiB, 0.3 s a step, 15 hours for 100 million cells
[--train.num-microbatches 4].

Parameters: 12 layers of 12 x 256^2 (9.4 million) and 0.7 million in value encoding, links, decoder and heads; the rows
of the features are not counted (256 each). Deep and narrow, so that it is a small copy of the larger ones. Not
measured: any score.
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
            # 2,047 tokens and `[CLS]`: a multiple of 128, which is what kernels of attention work on.
            rna=ModalityConfig(num_tokens=1_279, zero_fraction=0.1),
            protein=ModalityConfig(num_tokens=128, zero_fraction=0.0),
            atac=ModalityConfig(num_tokens=640, zero_fraction=0.1, likelihood="bernoulli"),
        ),
        # 1 million tokens a step; 32 hosts and 256 chips divide it.
        data=DataConfig(global_batch_size=512, num_streams=32, window_blocks=4),
        model=ModelConfig(
            embed_dim=256,
            num_layers=12,
            num_heads=4,
            head_dim=64,
            mlp_dim=1_024,
            # Runs anywhere in linear memory. cudnn and splash compute the same, faster, each on its own hardware.
            attention="xla_chunked",
            linear_path=False,
            remat="none",  # keeps all activations: nothing is computed twice
            compute_dtype="bfloat16",
        ),
        objectives=ObjectivesConfig(masked_modeling=MaskedModelingConfig(mask_fraction=0.3)),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=1_000, beta2=0.95, weight_decay=0.05),
        # One pass over 100 million cells.
        train=TrainConfig(num_steps=195_312, log_every=20, checkpoint_every=1_000),
    )
