"""What `scmbert bench step` measures: attention backend x length x remat x batch, and the same models in PyTorch.

A suite is a list of models, each with the lengths, batches and recompute policies worth knowing on that hardware. Every
combination is compiled and timed by itself (`timed_step`); what does not fit, or what a backend refuses, is a row that
says so, and the others continue. Beside each model stand PyTorch and Hugging Face's BERT where they are at hand
(`torch_speed`), and on GPUs scBERT's full-length embedding beside performer-pytorch's (`embedding_speed`).
"""

import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.benchmarks.embedding_speed import EmbeddingCost, embedding_against_performer
from scmbert_jax.benchmarks.timed_step import StepSpeed, measure_step
from scmbert_jax.benchmarks.torch_speed import TorchCost, against_torch, costs_table, encoder_config
from scmbert_jax.config import ExperimentConfig, ModelConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.experiment_files import load_experiment
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.text_table import markdown_table
from scmbert_jax.version import VERSION


@dataclass(frozen=True)
class SuiteModel:
    """One model of a suite.

    Attributes:
      name: for the table.
      model: its sizes and numerics.
      lengths: tokens per cell, without `[CLS]`; 128 n - 1 pads nothing in kernels.
      batch_sizes: cells per step.
      attention, remat: choices for those fields of `model`.
    """

    name: str
    model: ModelConfig
    lengths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    attention: tuple[str, ...]
    remat: tuple[str, ...] = ("none",)


@dataclass(frozen=True)
class Suite:
    """Models, and the performer's sizes where full-length embedding is measured: (tokens, cells per batch)."""

    models: tuple[SuiteModel, ...]
    embedding: tuple[int, int] | None = None


@dataclass(frozen=True)
class SuiteRow:
    """One combination; `speed` is None where it could not run, and `refusal` says why."""

    model: str
    attention: str
    num_tokens: int
    remat: str
    batch_size: int
    speed: StepSpeed | None
    refusal: str = ""


@dataclass(frozen=True)
class SuiteResult:
    """All of one call."""

    rows: tuple[SuiteRow, ...]
    peers: tuple[TorchCost, ...]
    embedding: EmbeddingCost | None
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        head = ["model", "attention", "tokens", "remat", "cells", "ms per step", "MFU", "tokens/s", "cells/s"]
        head += ["padding", "step (GiB)", "peak (GiB)", "compile (s)"]
        lines = []
        for row in self.rows:
            begin = [row.model, row.attention, f"{row.num_tokens:,}", row.remat, str(row.batch_size)]
            speed = row.speed
            if speed is None:
                lines.append([*begin, row.refusal, *["-"] * (len(head) - len(begin) - 1)])
                continue
            interval = "" if speed.interval is None else f" ± {1000 * speed.interval:.1f}"
            step_bytes = "-" if speed.step_bytes is None else f"{speed.step_bytes / 2**30:.2f}"
            lines.append(
                [
                    *begin,
                    f"{1000 * speed.seconds:.1f}{interval}",
                    "-" if speed.mfu is None else f"{100 * speed.mfu:.1f}%",
                    f"{speed.tokens_per_second:,.0f}",
                    f"{speed.cells_per_second:,.1f}",
                    f"{100 * speed.padding:.1f}%",
                    step_bytes,
                    f"{speed.peak_bytes / 2**30:.2f}",
                    f"{speed.compile_seconds:.1f}",
                ]
            )
        parts = [markdown_table(head, lines)] if lines else []
        if self.peers:
            parts.append(costs_table(self.peers))
        if self.embedding is not None:
            parts.append(self.embedding.text())
        return "\n\n".join(parts)


def cpu_suite() -> Suite:
    """Two sizes that a laptop trains; their layers are unrolled, because a scan copies what the backward pass needs."""
    small = ModelConfig(embed_dim=128, num_layers=4, num_heads=4, head_dim=32, mlp_dim=512, scan_layers=False)
    medium = ModelConfig(embed_dim=384, num_layers=6, num_heads=6, head_dim=64, mlp_dim=1536, scan_layers=False)
    backends = ("xla_chunked", "xla", "favor")
    return Suite(
        (
            SuiteModel("small", small, (255,), (16,), backends),
            SuiteModel("medium", medium, (511,), (4,), backends),
        )
    )


def h200_suite() -> Suite:
    """The three sizes of issue 5 at their lengths, by the experiments of these names; and scBERT's own length."""

    def of(name: str, tokens: int, batch_sizes: tuple[int, ...], remat: tuple[str, ...]) -> SuiteModel:
        model = replace(load_experiment(name).model, compute_dtype="bfloat16", attention="cudnn")
        return SuiteModel(name, model, (tokens,), batch_sizes, ("cudnn", "xla_chunked"), remat)

    return Suite(
        (
            of("base_110m", 2047, (32, 16, 64), ("none", "dots")),
            of("large_350m", 4095, (8, 16), ("none", "dots")),
            of("xl_1b", 4095, (4, 8), ("none", "dots", "full")),
        ),
        embedding=(16_907, 16),
    )


def suite_of_experiment(name: str) -> Suite:
    """One model: the experiment's, at its tokens per cell (all modalities together) and its batch of one microbatch."""
    config = load_experiment(name)
    tokens = sum(own.num_tokens for own in config.modalities.in_use().values())
    batch_size = config.data.global_batch_size // config.train.num_microbatches
    own = SuiteModel(name, config.model, (tokens,), (batch_size,), (config.model.attention,), (config.model.remat,))
    return Suite((own,))


SUITES: dict[str, Callable[[], Suite]] = {"cpu": cpu_suite, "h200": h200_suite}


def measure_suite(
    suite: Suite,
    layout: FeatureLayout | None = None,
    *,
    steps: int = 200,
    warmup: int = 10,
    padding: float = 0.0,
    trace: Path | None = None,
    peer_python: Path | None = None,
    compile_peers: bool = False,
    peer_rounds: int = 7,
    threads: int = 2,
    say: Callable[[str], None] = lambda message: None,
) -> SuiteResult:
    """Measures the peers, each beside the first combination of its model, then every combination.

    Args:
      layout: of the features; None: 20,000 genes.
      steps, warmup, padding, trace: of each combination (`measure_step`).
      peer_python: an interpreter with torch, and with transformers and performer-pytorch where those are measured;
        None: ours alone.
      compile_peers: with torch.compile.
      peer_rounds: each peer figure is the median over so many.
      threads: of PyTorch on CPUs.

    Raises:
      ConfigError: a peer that cannot be run.
    """
    layout = layout or synthetic_layout(20_000)
    on_gpu = jax.default_backend() == "gpu"
    # Peers first: on a GPU, memory that JAX has taken once is not given back.
    peers = []
    kinds = [("ours", False), ("ours", True), ("bert", True)] if on_gpu else [("ours", False)]
    if compile_peers and not on_gpu:
        kinds.append(("ours", True))
    for own in suite.models if peer_python is not None else ():
        model = replace(own.model, attention=own.attention[0], remat=own.remat[0])  # type: ignore[arg-type]
        config = encoder_config(model, own.lengths[0], own.batch_sizes[0])
        for encoder, compiled in kinds:
            cost = against_torch(
                own.name,
                config,
                layout,
                peer_python,  # type: ignore[arg-type]
                encoder=encoder,  # type: ignore[arg-type]
                compiled=compiled,
                rounds=peer_rounds,
                threads=threads,
                padding=padding,
                say=say,
            )
            peers.append(cost)
    embedding = None
    if suite.embedding is not None:
        tokens, cells = suite.embedding
        say(f"embedding cells of {tokens:,} tokens")
        embedding = embedding_against_performer(tokens, cells, peer_python, peer_rounds)
    rows = []
    for own in suite.models:
        for attention, tokens, remat, batch_size in itertools.product(
            own.attention, own.lengths, own.remat, own.batch_sizes
        ):
            model = replace(own.model, attention=attention, remat=remat)  # type: ignore[arg-type]
            config = encoder_config(model, tokens, batch_size)
            where = f"{own.name}, {attention}, {tokens} tokens, remat {remat}, {batch_size} cells"
            speed, refusal = _measured(config, layout, steps, warmup, padding, _below(trace, where), where, say)
            rows.append(SuiteRow(own.name, attention, tokens, remat, batch_size, speed, refusal))
    return SuiteResult(tuple(rows), tuple(peers), embedding, _settings(layout, steps, warmup, padding, threads))


def _below(trace: Path | None, where: str) -> Path | None:
    return None if trace is None else trace / where.replace(", ", "_").replace(" ", "_")


def _measured(
    config: ExperimentConfig,
    layout: FeatureLayout,
    steps: int,
    warmup: int,
    padding: float,
    trace: Path | None,
    where: str,
    say: Callable[[str], None],
) -> tuple[StepSpeed | None, str]:
    """(figures, "") or (None, why there are none)."""
    try:
        return measure_step(config, layout, steps, warmup, padding, trace, lambda what: say(f"{where}: {what}")), ""
    except ConfigError as error:
        return None, f"refused: {str(error).splitlines()[0].split('. ')[0]}"
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, "out of memory"


def _settings(layout: FeatureLayout, steps: int, warmup: int, padding: float, threads: int) -> dict[str, Any]:
    import flax

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "host": f"{platform.machine()}, {platform.system()}",
        "threads": threads,
        "features": layout.num_features,
        "steps": steps,
        "warm-up": warmup,
        "padding asked for": padding,
        "scmbert_jax": VERSION,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
    }


def narrowed(
    suite: Suite,
    attention: Sequence[str],
    lengths: Sequence[int],
    remat: Sequence[str],
    batch_sizes: Sequence[int],
) -> Suite:
    """The suite with other choices in every model, where any are given."""
    models = tuple(
        replace(
            own,
            attention=tuple(attention) or own.attention,
            lengths=tuple(lengths) or own.lengths,
            remat=tuple(remat) or own.remat,
            batch_sizes=tuple(batch_sizes) or own.batch_sizes,
        )
        for own in suite.models
    )
    return replace(suite, models=models)
