"""scBERT (Yang et al. 2022) as it was pre-trained: every gene of a cell a token, six bins, linear attention.

    scmbert corpus build CORPUS cells.h5ad ...        # human RNA; scBERT took 1.1 million cells of PanglaoDB
    scmbert pretrain scbert --corpus CORPUS --run-dir RUN

5.0 million parameters in the encoder, the embedding of genes and the heads beside; 0.31 TFLOP forward per cell at full
length. Meant for accelerators: on two CPU cores that others used, too, a training step of one cell takes 18 s and 4.3
GiB, 950 tokens/s; annotating is 4.4 times as fast as with performer-pytorch. No whole run was made, and none of
scBERT's scores was measured.

    scmbert bench step --experiment scbert --batch-sizes 1 --steps 3 --warmup 1
    scmbert bench annotation --torch-python peer/bin/python --threads 1

What differs from the published model, and why:
- Gene rows are learned. Frozen vectors in the place of gene2vec's: scmbert corpus gene-embeddings CORPUS -o genes.npz,
  then --model.feature-embeddings genes.npz --model.feature-rows frozen.
- `[CLS]` comes first and is learned; scBERT appends one position of value 0 last. Order means nothing to either.
- A stabiliser of `favor` is the maximum of its own cell, not of the batch (--model.favor-stabiliser batch); directions
  are redrawn every 1,000 steps, not calls.
- One cosine with warm-up, not one per epoch; the gradient is clipped; the loss is divided once by all masked tokens of
  the global batch.
- With a feature space of more than 16,906 genes, `num_tokens` of them are shown: all that are expressed (at most
  three quarters) and a sample of the zeros. Set --modalities.rna.num-tokens to the space's size to show all.
- Zeros are not masked, and bins of shallow cells show their depth, as published; docs/import.md says what changes that.
- Masked tokens are predicted a second time from `[CLS]` if `cell_weight` is above 0; scBERT has no such loss, and no
  trained cell embedding.
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
            # The whole panel is read where num_tokens holds it, zeros included.
            rna=ModalityConfig(
                num_tokens=16_906, zero_fraction=0.25, value_encoding="bins", num_bins=6, likelihood="bins_and_mask"
            ),
        ),
        # What one GPU of the published run does per update: 60 times 3 cells.
        data=DataConfig(global_batch_size=180, num_streams=4, window_blocks=8),
        model=ModelConfig(
            embed_dim=200,
            num_layers=6,
            num_heads=10,
            head_dim=64,
            mlp_dim=800,
            activation="gelu",
            norm_epsilon=1e-5,
            linear_path=False,
            attention="favor",  # 266 features, redrawn every 1,000 steps
        ),
        objectives=ObjectivesConfig(
            masked_modeling=MaskedModelingConfig(
                mask_fraction=0.15,
                mask_zeros=False,
                keep_fraction=0.1,
                cell_weight=0.0,
                token_head="linear",
                covariate_dropout=0.0,
            )
        ),
        optimizer=OptimizerConfig(
            peak_learning_rate=1e-4, warmup_steps=500, beta2=0.999, weight_decay=0.0, final_learning_rate_fraction=0.01
        ),
        # Ten epochs of 1,126,580 cells; how many the published model saw is not stated.
        train=TrainConfig(num_steps=62_590, num_microbatches=60, log_every=10, checkpoint_every=500),
    )
