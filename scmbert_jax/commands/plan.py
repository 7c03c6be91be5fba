"""The verb plan: compile an experiment's training step for machines that are not here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from scmbert_jax.commands.terminal import CorpusFolder, Json, print_json, show
from scmbert_jax.errors import ConfigError
from scmbert_jax.modalities import TABLE
from scmbert_jax.plain_text import say

if TYPE_CHECKING:
    from scmbert_jax.config import ExperimentConfig
    from scmbert_jax.feature_layout import FeatureLayout
    from scmbert_jax.planning.search import SearchResult

# Exit code where the step does not fit: the answer to the question, not an error of the program.
DOES_NOT_FIT = 2
_EDGES = 100_000  # of a network, as large as those of all regulators together are


@dataclass(frozen=True)
class MakePlan:
    """Compile an experiment's training step for a pod or a GPU cluster that is not here: memory, traffic, time, cost.

    Needs no accelerator, but its compiler: pip install 'scmbert_jax[tpu]' or 'scmbert_jax[cuda13]'. Minutes for a TPU.
    Any field of the configuration can be changed as for pretrain. Exit code 2: it does not fit.

    Example:  scmbert plan base_110m --topology v6e-256 --model.attention splash --cells 100000000
              scmbert plan xl_1b --topology h200-8 --train.num-microbatches 4 --json
              scmbert plan large_350m --topology v5e-16 --model.attention splash --search
    """

    experiment: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="EXPERIMENT")]]
    """Name of a file in experiments/, or the path of one."""
    topology: str = ""
    """v5e-4 .. v5e-256, v6e-4 .. v6e-256, v5p-128 .. v5p-1024 (N TensorCores: N / 2 chips), h200-1, h200-8 .. h200-64;
    cpu-N: N devices simulated by this CPU (memory and traffic alone)."""
    cells: int = 100_000_000
    """Cells to train on, for days and dollars; a cell seen twice counts twice."""
    corpus: tuple[CorpusFolder, ...] = ()
    """Corpora whose features and covariates the model has. Default: --num-features."""
    num_features: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODALITY=N")] = ()
    """Features of each modality, such as rna=20000. Default: rna=36601 protein=228 atac=200000. Each protein is linked
    to one gene, each region to one or two."""
    search: bool = False
    """Find the largest batch and the cheapest remat that fit, and plan the experiment's own batch with them."""
    efficiency: float = 0.5
    """ASSUMED fraction of the roofline that a step reaches."""
    price: float | None = None
    """Dollars per chip hour. Default: an ASSUMED list price (v5e 1.20, v5p 4.20, v6e 2.70, H200 4.00)."""
    json: Json = False
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from scmbert_jax.config import ExperimentConfig
        from scmbert_jax.experiment_files import load_experiment
        from scmbert_jax.planning.topologies import check_compiler, topology_named

        default = load_experiment(self.experiment)
        config = tyro.cli(
            ExperimentConfig, default=default, args=[*self.overrides], prog=f"scmbert plan {self.experiment}"
        )
        if not self.topology:
            raise ConfigError("plan needs --topology NAME, such as v5e-16, v6e-256, v5p-128, h200-8 or cpu-8.")
        if self.cells < 1 or not 0 < self.efficiency <= 1 or (self.price is not None and self.price < 0):
            raise ConfigError("--cells is 1 or more, --efficiency above 0 and at most 1, --price 0 or more.")
        topology = topology_named(self.topology)
        check_compiler(topology)
        layout = self._layout(config)
        if config.model.networks:
            from data_pipelines.synthetic.networks import with_synthetic_network

            layout = with_synthetic_network(layout, _EDGES, hears=config.model.graph != "off")

        if config.model.region_embeddings:
            layout = self._with_region_vectors(layout, config.model.region_embeddings)

        from scmbert_jax.planning.plan import Plan, make_plan

        def plan_of(own: ExperimentConfig) -> Plan:
            return make_plan(
                self.experiment,
                own,
                layout,
                topology,
                cells=self.cells,
                efficiency=self.efficiency,
                dollars_per_chip_hour=self.price,
            )

        if self.search:
            from scmbert_jax.planning.search import search

            return self._show_search(search(config, topology, plan_of, say))
        say(f"compiling {self.experiment} for {topology.name} (TPU: a few minutes; GPU: about one)")
        plan = plan_of(config)
        if self.json:
            print_json(plan.to_dict())
        else:
            show(plan.text())
        return 0 if plan.fits else DOES_NOT_FIT

    def _show_search(self, result: "SearchResult") -> int:
        if self.json:
            print_json(
                {
                    "found": [one._asdict() for one in result.found],
                    "plan": result.best.to_dict() if result.best else None,
                }
            )
        else:
            for one in result.found:
                show(
                    f"remat {one.remat:5} {one.cells_per_chip:4} cell(s) a chip at a time, largest global batch "
                    f"{one.largest_batch:,} in one microbatch"
                )
            show("")
            show(result.best.text() if result.best else "nothing fits: take a larger topology, or a smaller model")
        if result.best and not self.json:
            model, train = result.best.config.model, result.best.config.train
            show(f"use: --model.remat {model.remat} --train.num-microbatches {train.num_microbatches}")
        return 0 if result.best else DOES_NOT_FIT

    def _with_region_vectors(self, layout: "FeatureLayout", table: str) -> "FeatureLayout":
        """Numbers of the table's width: what they are changes no plan."""
        from dataclasses import replace

        import numpy as np

        from data_pipelines.genome.region_embeddings import read_region_embeddings

        first, stop = layout.slices["atac"]
        vectors = np.random.default_rng(0).normal(size=(stop - first, read_region_embeddings(table).width))
        return replace(layout, region_vectors=vectors.astype(np.float32))

    def _layout(self, config: "ExperimentConfig") -> "FeatureLayout":
        in_use = list(config.modalities.in_use())
        if self.corpus:
            from data_pipelines.corpus.corpus import open_corpus
            from data_pipelines.sampling.mixture import Mixture, MixtureOptions

            joined = Mixture([open_corpus(path) for path in self.corpus], MixtureOptions(), in_use).joined
            return joined.feature_space.layout({name: len(codes) for name, codes in joined.vocabularies.items()})
        from data_pipelines.synthetic.cells import synthetic_layout

        numbers = {name: own.usual_num_features if name in in_use else 0 for name, own in TABLE.items()}
        for word in self.num_features:
            name, _, number = word.partition("=")
            if name not in numbers or not number.isdecimal() or int(number) < 1:
                raise ConfigError(f"--num-features {word}: expected MODALITY=N, of {', '.join(numbers)}.")
            numbers[name] = int(number)
        covariates = dict.fromkeys((*config.model.covariates, "technical_batch"), 1000)
        return synthetic_layout(numbers["rna"], numbers["protein"], numbers["atac"], covariates)
