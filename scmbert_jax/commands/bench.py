"""Verbs that measure speed: bench step, padding, objectives, build, input, storage, favor, annotation, motifs,
sequence, graph"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import tyro

from scmbert_jax.commands.terminal import BuiltCorpus, Json, print_json, require_positive, show, staged_progress
from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import say


class Measured(Protocol):
    """What a benchmark found."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def to_dict(self) -> dict[str, Any]: ...

    def text(self) -> str: ...


@dataclass(frozen=True)
class BenchObjectives:
    """Time and memory of a training step of each objective, compared with one of masked modelling.

    Synthetic cells and one model size; the objectives are timed alternately. No file is needed.

    Example:  scmbert bench objectives
              scmbert bench objectives --batch-size 64 --embed-dim 256 --num-layers 6 --json
    """

    batch_size: int = 32
    """Cells per step."""
    embed_dim: int = 128
    """Width of the model; a multiple of 32."""
    num_layers: int = 4
    """Of the encoder."""
    num_tokens: tuple[int, int] = (192, 96)
    """Of RNA and of protein per cell."""
    rounds: int = 7
    """Rounds of measurement; each figure is their median."""
    steps_per_round: int = 3
    """Steps in a round, timed together."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.objective_speed import measure_objectives

        require_positive(batch_size=self.batch_size, num_layers=self.num_layers, rounds=self.rounds)
        require_positive(steps_per_round=self.steps_per_round, num_tokens=min(self.num_tokens))
        if self.embed_dim < 32 or self.embed_dim % 32:
            raise ConfigError(f"--embed-dim {self.embed_dim}: expected a multiple of 32.")
        found = measure_objectives(
            batch_size=self.batch_size,
            embed_dim=self.embed_dim,
            num_layers=self.num_layers,
            num_tokens=self.num_tokens,
            rounds=self.rounds,
            steps_per_round=self.steps_per_round,
            say=say,
        )
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchStep:
    """Time, MFU and memory of a training step: attention backend x length x remat x batch, compared with PyTorch's.

    Synthetic cells, masked modelling of RNA; no file is needed, nor TensorFlow or anndata. Steady state: mean over the
    timed steps with a 95% interval. The peer is the same model in PyTorch (same parameters, same loss); with --suite
    h200 also Hugging Face's BERT and performer-pytorch, in this Python where it has torch.

    Example:  scmbert bench step --peer-python peer/bin/python
              scmbert bench step --suite h200 --json
              scmbert bench step --experiment small_10m --attention xla xla_chunked --steps 20
    """

    suite: Literal["cpu", "h200"] = "cpu"
    """`cpu`: two sizes of a laptop. `h200`: base_110m at 2,048 tokens, large_350m and xl_1b at 4,096, for one H200."""
    experiment: str | None = None
    """Instead of a suite: the model of this experiment, at its own tokens per cell and batch."""
    attention: tuple[str, ...] = ()
    """Backends. Default: those of the suite."""
    lengths: tuple[int, ...] = ()
    """Tokens per cell. Default: those of the suite."""
    remat: tuple[Literal["none", "dots", "full"], ...] = ()
    """What the backward pass recomputes. Default: that of the suite."""
    batch_sizes: tuple[int, ...] = ()
    """Cells per step. Default: those of the suite."""
    num_features: int = 20_000
    """Genes; rows of the feature table."""
    padding: float = 0.0
    """Fraction of the token positions that are padding."""
    steps: int = 200
    """Timed steps of each combination."""
    warmup: int = 10
    """Steps before the timed ones."""
    peer_python: Path | None = None
    """A Python that has torch (python -m venv peer; peer/bin/pip install torch numpy); for h200 also transformers and
    performer-pytorch. Default for h200: this one, if it has torch."""
    compile_peer: bool = False
    """On CPUs, also measure a peer with torch.compile; on GPUs that is always done."""
    peer_rounds: int = 7
    """Rounds of 5 steps of each program; figures that are compared are their medians."""
    threads: int = 2
    """CPU threads of each program, on CPUs."""
    trace: Path | None = None
    """Folder for an XProf trace of three steps of each combination."""
    json: Json = False

    def run(self) -> int:
        import os
        import sys
        from importlib.util import find_spec

        require_positive(steps=self.steps, warmup=self.warmup, peer_rounds=self.peer_rounds, threads=self.threads)
        require_positive(lengths=min(self.lengths, default=1), batch_sizes=min(self.batch_sizes, default=1))
        if not 0 <= self.padding < 0.9:
            raise ConfigError(f"--padding {self.padding}: expected 0 <= value < 0.9.")
        # Peers share the GPU: JAX must not take all of it when it starts.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

        from data_pipelines.synthetic.cells import synthetic_layout
        from scmbert_jax.benchmarks.peer_process import PEERS, bind_to_cpus
        from scmbert_jax.benchmarks.step_suites import SUITES, measure_suite, narrowed, suite_of_experiment
        from scmbert_jax.models.attention.backends import BACKENDS

        unknown = [name for name in self.attention if name not in BACKENDS]
        if unknown:
            raise ConfigError(f"--attention {unknown[0]}: the backends are {', '.join(BACKENDS)}.")
        suite = suite_of_experiment(self.experiment) if self.experiment else SUITES[self.suite]()
        suite = narrowed(suite, self.attention, self.lengths, self.remat, self.batch_sizes)
        longest = max(length for own in suite.models for length in own.lengths)
        if self.num_features < longest:
            raise ConfigError(f"--num-features {self.num_features}: expected at least {longest}, the tokens per cell.")
        if self.suite == "cpu":
            bind_to_cpus(self.threads)
        peer = self.peer_python
        if peer is None and self.suite == "h200" and find_spec("torch") is not None:
            peer = Path(sys.executable) if PEERS.is_dir() else None
            if peer is None:
                say(f"measured without PyTorch: its programs ({PEERS}) are in a checkout of the repository alone")
        found = measure_suite(
            suite,
            synthetic_layout(self.num_features),
            steps=self.steps,
            warmup=self.warmup,
            padding=self.padding,
            trace=self.trace,
            peer_python=peer,
            compile_peers=self.compile_peer,
            peer_rounds=self.peer_rounds,
            threads=self.threads,
            say=say,
        )
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchPadding:
    """Measure how much of a corpus's rows is padding, and find the few widths that leave least of it.

    Microbatches of cells of similar length are cut to one of a few widths: the best for this corpus are found, and
    printed as the settings of scmbert pretrain. Counts tokens of one epoch (at most --batches): what is computed, not
    how fast.

    Example:  scmbert bench padding my_corpus
              scmbert bench padding my_corpus --num-tokens 2047 --microbatches 16 --widths 8 --json
    """

    folder: tyro.conf.Positional[BuiltCorpus]
    num_tokens: tuple[int, ...] = (511, 1023, 2047)
    """Per cell, of each modality (never more than it has features)."""
    zero_fraction: float = 0.25
    """Fraction of them that are measured zeros; of protein none are."""
    batch_size: int = 256
    """Cells per step; a multiple of 4, the number of streams."""
    microbatches: tuple[int, ...] = (8, 16, 32)
    """Numbers of microbatches to try."""
    widths: tuple[int, ...] = (4, 8, 16)
    """Numbers of widths to try, the whole row among them; each width is compiled."""
    multiple_of: int = 8
    """Widths are multiples of this, [CLS] included; 128 suits the kernels of TPUs."""
    batches: int = 40
    """Batches that are counted, at most."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.padding import measure_padding

        for name in ("num_tokens", "microbatches", "widths"):
            require_positive(**{name: min(getattr(self, name), default=0)})
        require_positive(batches=self.batches, batch_size=self.batch_size, multiple_of=self.multiple_of)
        for number in self.microbatches:
            if self.batch_size % number:
                raise ConfigError(f"--microbatches {number}: expected a divisor of --batch-size {self.batch_size}.")
        found = measure_padding(
            Path(self.folder),
            self.num_tokens,
            self.zero_fraction,
            self.batch_size,
            self.microbatches,
            self.widths,
            self.batches,
            self.multiple_of,
        )
        if self.json:
            print_json([row.to_dict() for row in found])
        else:
            show("\n\n".join(row.text() for row in found))
        return 0


@dataclass(frozen=True)
class BenchStorage:
    """Cells per second from storage that answers late, compared with the same corpus in a local folder.

    The delay is simulated; no network is used.

    Example:  scmbert bench storage my_corpus
              scmbert bench storage my_corpus --milliseconds 100 --batch-size 1024 --json
    """

    folder: tyro.conf.Positional[BuiltCorpus]
    milliseconds: float = 50.0
    """Delay of each read."""
    batch_size: int = 256
    """Cells per step; a multiple of 4, the number of streams."""
    num_tokens: int = 1024
    """Per cell, of each modality."""
    num_steps: int = 100
    """Steps in a round, timed together."""
    rounds: int = 5
    """Rounds of measurement; each figure is their median."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.storage_latency import measure_latency

        sizes = {"batch-size": self.batch_size, "num-tokens": self.num_tokens, "num-steps": self.num_steps}
        require_positive(**sizes, rounds=self.rounds)
        if not self.milliseconds >= 0:
            raise ConfigError(f"--milliseconds {self.milliseconds}: expected 0 or more.")
        found = measure_latency(
            Path(self.folder), self.milliseconds, self.batch_size, self.num_tokens, self.num_steps, self.rounds
        )
        if self.json:
            print_json({"cells_per_second": found, "milliseconds": self.milliseconds, **sizes, "rounds": self.rounds})
        else:
            for name, speed in found.items():
                show(f"{name:20s}{speed:10,.0f} cells/s{speed / found['folder']:8.2f} of the folder")
        return 0


@dataclass(frozen=True)
class BenchBuild:
    """Time, memory and disk of building a corpus of synthetic cells, and the wait for the first batch of it.

    Example:  scmbert bench build --cells 100000
              scmbert bench build --cells 5000000 --workers 8 --folder /scratch --json
    """

    cells: int
    """Cells to make, of 36,601 genes, about 1,635 with a count."""
    workers: int | None = None
    """Processes. Default: one for each CPU."""
    folder: Path | None = None
    """Where to build, with about 4 kB of room per cell. Default: the temporary folder."""
    starts: int = 3
    """How often a process is started to measure the wait for its first batch; the shortest counts."""
    keep: bool = False
    """Leave the corpus there (the settings say where) instead of removing it."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.build_speed import measure_build

        require_positive(cells=self.cells, workers=self.workers, starts=self.starts)
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"--folder {self.folder}: no such folder.")
        found = measure_build(
            self.cells, self.workers, self.folder, staged_progress(), starts=self.starts, keep=self.keep
        )
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchFavor:
    """Time and memory of the encoder with `favor` attention at scBERT's sizes, compared with performer-pytorch's.

    One row of 16,907 tokens in float32 on CPUs: a forward pass and a training step, the two programs
    alternately; and whether their attentions agree, given the same random directions.

    Example:  scmbert bench favor --torch-python peer/bin/python
    """

    torch_python: Path | None = None
    """A Python that has torch and performer-pytorch (python -m venv peer; peer/bin/pip install torch
    performer-pytorch); without it, ours is measured alone."""
    tokens: int = 16_907
    """Per row."""
    layers: int = 6
    """Of the encoder."""
    rounds: int = 3
    """Rounds of measurement; each figure is their median."""
    threads: int = 2
    """CPU threads of each program."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.favor_speed import EncoderSizes, measure_favor

        sizes = {"tokens": self.tokens, "layers": self.layers}
        require_positive(layers=self.layers, rounds=self.rounds, threads=self.threads)
        if self.tokens < 2:
            raise ConfigError(f"--tokens {self.tokens}: expected 2 or more.")
        found = measure_favor(EncoderSizes(**sizes), self.torch_python, self.rounds, self.threads, say)
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchAnnotation:
    """Cells per second that a fine-tuned scBERT annotates, compared with performer-pytorch.

    From tokens to the logits of types, in float32 on CPUs, random weights at scBERT's sizes, the two programs
    alternately; and ours with the expressed genes alone as tokens.

    Example:  scmbert bench annotation --torch-python peer/bin/python
    """

    torch_python: Path | None = None
    """A Python that has torch, numpy and performer-pytorch (python -m venv peer; peer/bin/pip install torch numpy
    performer-pytorch); without it, ours is measured alone."""
    genes: tuple[int, ...] = (1024, 2048, 16_906)
    """Of the model."""
    expressed: int = 1000
    """Tokens of a cell where its expressed genes alone are read."""
    cells: int = 2
    """Of a call."""
    layers: int = 6
    """Of the encoder."""
    rounds: int = 3
    """Rounds of measurement; each figure is their median."""
    threads: int = 2
    """CPU threads of each program."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.annotation_speed import measure_annotation

        require_positive(genes=min(self.genes, default=0), expressed=self.expressed, cells=self.cells)
        require_positive(layers=self.layers, rounds=self.rounds, threads=self.threads)
        found = measure_annotation(
            self.genes,
            self.expressed,
            self.torch_python,
            cells=self.cells,
            layers=self.layers,
            rounds=self.rounds,
            threads=self.threads,
            say=say,
        )
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchMotifs:
    """Time of scanning sequences for motifs, both strands, compared with NumPy.

    Random sequences; NumPy position by position, and as matrix products, alternately with ours. Beside the times stands
    the largest difference of the scores.

    Example:  scmbert bench motifs
              scmbert bench motifs --motifs JASPAR2024_CORE_human.jaspar --sequences 512 20000 --most-numpy 20000
    """

    motifs: Path | None = None
    """A file of motifs (JASPAR, MEME, PFM, TRANSFAC). Default: 755 made up, as wide as JASPAR's."""
    sequences: tuple[int, ...] = (512, 2048)
    """Numbers of sequences, one after the other."""
    length: int = 200
    """Bases of each."""
    most_numpy: int = 4096
    """Sequences; more are scanned by ours alone."""
    rounds: int = 3
    """Rounds of measurement; each figure is their median."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.motif_speed import measure_scan

        require_positive(sequences=min(self.sequences, default=0), length=self.length, rounds=self.rounds)
        found = measure_scan(self.motifs, self.sequences, self.length, self.rounds, self.most_numpy, say)
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchSequence:
    """Bases per second of a training step of the sequence encoder, compared with a BERT of its size in PyTorch.

    Masked modelling of random sequences, a token per base, in float32 on CPUs, the two programs alternately. Before
    they are timed, both say the loss of one batch.

    Example:  scmbert bench sequence --torch-python peer/bin/python
              scmbert bench sequence --lengths 512 --embed-dim 768 --num-layers 12 --encoder ours --json
    """

    torch_python: Path | None = None
    """A Python that has torch, numpy and transformers (python -m venv peer; peer/bin/pip install torch numpy
    transformers); without it, ours is measured alone."""
    encoder: Literal["bert", "ours"] = "bert"
    """Of PyTorch: Hugging Face's BERT, or ours written in PyTorch, of which the loss is the same."""
    lengths: tuple[int, ...] = (128, 512)
    """Bases of a sequence, one after the other."""
    batch_size: int = 16
    """Sequences per step."""
    embed_dim: int = 256
    """Width of the model; a multiple of 64."""
    num_layers: int = 4
    """Of the encoder."""
    rounds: int = 5
    """Rounds of measurement; each figure is their median."""
    steps_per_round: int = 3
    """Steps in a round, timed together."""
    threads: int = 2
    """CPU threads of each program."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.sequence_speed import measure_sequences, size_of

        require_positive(lengths=min(self.lengths, default=0), batch_size=self.batch_size, num_layers=self.num_layers)
        require_positive(rounds=self.rounds, steps_per_round=self.steps_per_round, threads=self.threads)
        if self.embed_dim < 64 or self.embed_dim % 64:
            raise ConfigError(f"--embed-dim {self.embed_dim}: expected a multiple of 64.")
        found = measure_sequences(
            self.lengths,
            size_of(self.embed_dim, self.num_layers),
            self.torch_python,
            self.encoder,
            batch_size=self.batch_size,
            rounds=self.rounds,
            steps_per_round=self.steps_per_round,
            threads=self.threads,
            say=say,
        )
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchGraph:
    """Time and memory of a training step over a network of genes, and how both grow with its edges.

    A drawn network; messages over all edges or of some neighbours of each gene, each aggregation, all alternately.

    Example:  scmbert bench graph
              scmbert bench graph --edges 1000000 --aggregation mean --neighbours 0 8 --json
    """

    nodes: int = 60_000
    """Genes, regions and proteins."""
    edges: tuple[int, ...] = (250_000, 500_000, 1_000_000, 2_000_000)
    """Of the network; times are compared with those of the fewest."""
    aggregation: tuple[str, ...] = ()
    """Of neighbours: sage, gat, mean, attention. Default: each."""
    neighbours: tuple[int, ...] = (0, 8)
    """That a node hears in a layer, at most; 0: all."""
    embed_dim: int = 64
    """Width of a row; a multiple of 4."""
    batch_size: int = 1024
    """Edges that a step predicts, beside as many pairs that are none."""
    rounds: int = 5
    """Rounds of measurement; each figure is their median."""
    json: Json = False

    def run(self) -> int:
        from scmbert_jax.benchmarks.graph_speed import measure_graph
        from scmbert_jax.models.regulatory_graph import AGGREGATIONS

        require_positive(nodes=self.nodes, batch_size=self.batch_size, rounds=self.rounds)
        if unknown := [name for name in self.aggregation if name not in AGGREGATIONS]:
            raise ConfigError(f"--aggregation {unknown[0]}: expected {', '.join(AGGREGATIONS)}.")
        most = self.nodes * (self.nodes - 1) // 4  # more would be drawn again and again
        if not self.edges or min(self.edges) < self.batch_size or max(self.edges) > most:
            raise ConfigError(f"--edges {self.edges}: expected at least --batch-size, at most {most:,} of such nodes.")
        if self.embed_dim < 4 or self.embed_dim % 4:
            raise ConfigError(f"--embed-dim {self.embed_dim}: expected a multiple of 4.")
        if not self.neighbours or min(self.neighbours) < 0:
            raise ConfigError(f"--neighbours {self.neighbours}: expected numbers of at least 0.")
        found = measure_graph(
            self.nodes,
            self.edges,
            self.aggregation or tuple(AGGREGATIONS),
            self.neighbours,
            embed_dim=self.embed_dim,
            batch_size=self.batch_size,
            rounds=self.rounds,
            say=say,
        )
        return _show_measured(found, self.json)


@dataclass(frozen=True)
class BenchInput:
    """Cells per second of the input pipeline, compared with the loaders of annbatch and scDataset.

    Synthetic cells (1,635 genes each of 36,601), the same for all; every loader reads its own kind of store, in a
    process of its own, and they are measured alternately. The others need a Python that has them; annbatch, 3.12 or
    later.

    Example:  scmbert bench input --annbatch-python other/bin/python
              scmbert bench input --cells 16384 --lengths 2048 --json
              scmbert bench input --scaling
              scmbert bench input --corpora my_corpus --cold
              scmbert bench input --files example:pbmc_mosaic my.h5ad
    """

    cells: int = 32_768
    """Cells in an epoch."""
    lengths: tuple[int, ...] = (1024, 2048)
    """Tokens per cell."""
    front_ends: tuple[Literal["threads", "tfdata"], ...] = ("threads",)
    """The ratios are those of the first."""
    zero_fractions: tuple[float, ...] = (0.0, 0.25)
    """Fractions of tokens that are measured zeros; the ratios are those of 0."""
    annbatch_python: str | None = None
    """A Python with "annbatch[zarrs]"."""
    scdataset_python: str | None = None
    """A Python with scdataset and anndata."""
    rounds: int = 5
    """Epochs of every loader; each figure is their median."""
    scaling: bool = False
    """Instead of the above: speed and memory against corpus size, tokens per cell, window and streams; mixing; hosts;
    a cold page cache."""
    corpora: tuple[Path, ...] = ()
    """Instead of the above: speed and memory of reading these corpora, 256 batches of 1,024 cells a round."""
    cold: bool = False
    """With --corpora: they are dropped from the page cache before every batch."""
    files: tuple[str, ...] = ()
    """Instead of the above: bytes per cell of these counts files as a corpus, as gzip h5ad and as zarr."""
    folder: Path | None = None
    """Folder for the stores, which are used again. Default: a temporary folder that is removed."""
    json: Json = False

    def run(self) -> int:
        import tempfile

        if self.files:
            from scmbert_jax.benchmarks.stored_sizes import measure_sizes

            return _show_measured(measure_sizes(self.files, say=say), self.json)
        if self.cold and not self.corpora:
            raise ConfigError("--cold: needs --corpora (--scaling has a row of it).")
        require_positive(cells=self.cells, rounds=self.rounds, lengths=min(self.lengths, default=0))
        if self.corpora:
            from scmbert_jax.benchmarks.input_scaling import measure_corpora

            return _show_measured(measure_corpora(self.corpora, self.rounds, self.cold, say=say), self.json)
        if not self.front_ends or not self.zero_fractions:
            raise ConfigError("--front-ends and --zero-fractions: expected at least one each.")
        least, why = (8192, "--scaling also reads an eighth of them") if self.scaling else (2048, "batches have 1,024")
        if self.cells < least:
            raise ConfigError(f"--cells {self.cells}: expected {least} or more ({why}).")
        with tempfile.TemporaryDirectory(prefix="scmbert_bench_") as temporary:
            folder = self.folder or Path(temporary)
            if self.scaling:
                from scmbert_jax.benchmarks.input_scaling import measure_scaling

                return _show_measured(measure_scaling(folder, self.cells, self.rounds, say=say), self.json)
            from scmbert_jax.benchmarks.input_speed import measure_input

            return _show_measured(
                measure_input(
                    folder,
                    self.cells,
                    self.lengths,
                    self.front_ends,
                    self.zero_fractions,
                    self.annbatch_python,
                    self.scdataset_python,
                    self.rounds,
                    say,
                ),
                self.json,
            )


def _show_measured(found: Measured, json: bool) -> int:
    """One JSON document, or the table and what was measured under; the exit code."""
    if json:
        print_json(found.to_dict())
    else:
        show(found.text())
        show(", ".join(f"{name} {value}" for name, value in found.settings.items()))
    return 0
