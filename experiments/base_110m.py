"""111 million parameters over RNA, protein and accessibility, 2,048 tokens a cell: for one node or a small
slice.

    scmbert plan base_110m --topology h200-8 --model.attention cudnn              # before anything is rented
    scmbert pretrain base_110m --corpus CORPUS --run-dir RUN --model.attention cudnn      # NVIDIA
    scmbert pretrain base_110m --corpus CORPUS --run-dir RUN --model.attention splash     # TPU

Planned, not measured (half of the roofline; flags in brackets): one H200, 64 GiB, 4.0 s a step, 4.5 days for 100
million cells [--train.num-microbatches 32]; 8 of them, 60 GiB, 0.5 s [4]; v5e-16, 9.8 GiB a chip, 1.2 s, 1.4 days [16].

Parameters: 15 layers of 12 x 768^2 (106.2 million) and 5.4 million in value encoding, links, decoder and heads; the
rows of the features are not counted (768 each). Not measured: any score.
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
        # 2.1 million tokens a step; 64 hosts and 256 chips divide it.
        data=DataConfig(global_batch_size=1_024, num_streams=64, window_blocks=4),
        model=ModelConfig(
            embed_dim=768,
            num_layers=15,
            num_heads=6,
            head_dim=128,  # as wide as the matrix units: twice the work of 64 per pass over the softmax
            mlp_dim=3_072,
            # Runs anywhere in linear memory. cudnn and splash compute the same, faster, each on its own hardware.
            attention="xla_chunked",
            linear_path=False,
            remat="none",  # keeps all activations: nothing is computed twice
            compute_dtype="bfloat16",
        ),
        objectives=ObjectivesConfig(masked_modeling=MaskedModelingConfig(mask_fraction=0.3)),
        optimizer=OptimizerConfig(peak_learning_rate=6e-4, warmup_steps=2_000, beta2=0.95, weight_decay=0.05),
        # One pass over 100 million cells.
        train=TrainConfig(num_steps=97_656, log_every=20, checkpoint_every=1_000),
    )
