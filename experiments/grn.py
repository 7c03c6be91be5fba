"""Cells and a network of genes together: masked modelling, and link prediction on the same gene rows.

    scmbert corpus build my_corpus cells.h5ad
    scmbert pretrain grn --corpus my_corpus --run-dir run --model.networks collectri.csv
    scmbert export run my_model

The row of a gene hears its neighbours in the network; a quarter of the steps asks for edges. A quarter of the
regulators and genes is held out, with all their edges: `--model.network-split none` trains on all. Controls:
`--model.graph off` (no graph), `frozen`, `shuffled`. Without `--model.networks`, CollecTRI is fetched by decoupler
(pip install 'scmbert_jax[networks]'). 400 steps on 3,873 cells: some three minutes on two idle CPU cores.

What that gives on sorted blood cells, beside the controls, stands in docs/networks.md.
"""

from dataclasses import replace

from scmbert_jax.config import ExperimentConfig, LinkPredictionConfig, ValidationConfig
from scmbert_jax.experiment_files import load_experiment


def config() -> ExperimentConfig:
    alone = load_experiment("rna")
    return replace(
        alone,
        model=replace(alone.model, networks=("network:collectri",), network_split="both", graph="learned"),
        objectives=replace(alone.objectives, link_prediction=LinkPredictionConfig(weight=0.33)),
        train=replace(alone.train, num_steps=400),
        # With held-out cells: --held-out cell=0.1
        validation=ValidationConfig(evaluators=("loss", "lift", "links")),
    )
