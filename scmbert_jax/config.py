"""The configuration of a run: frozen dataclasses, validated when made, written whole into the run folder.

One experiment file (`experiments/NAME.py`) builds one `ExperimentConfig`. Every field carries its unit and reason.
Unknown fields and impossible values are errors that name the field. All its parts are imported from here, also those
that stand with what they configure: modalities in modalities.py, each objective's with the objective.
"""

import dataclasses
import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from scmbert_jax.errors import ConfigError, require
from scmbert_jax.modalities import MODALITIES, ModalitiesConfig
from scmbert_jax.modalities import ModalityConfig as ModalityConfig
from scmbert_jax.objectives.contrastive_alignment.config import ContrastiveAlignmentConfig
from scmbert_jax.objectives.cross_modal_translation.config import CrossModalTranslationConfig
from scmbert_jax.objectives.link_prediction.config import LinkPredictionConfig
from scmbert_jax.objectives.masked_modeling.config import MaskedModelingConfig
from scmbert_jax.objectives.whole_profile.config import WholeProfileConfig

Config = TypeVar("Config")

# Sizes that no machine has are refused where they are named, not where memory ends.
_MOST = {
    **dict.fromkeys(("global_batch_size", "num_streams", "num_microbatches", "window_blocks"), 1 << 20),
    **dict.fromkeys(("num_tokens", "embed_tokens", "row_widths", "cycle_features"), 1 << 20),
    **dict.fromkeys(
        ("profile_tokens", "features_per_step", "hidden_dim", "edges_per_step", "graph_neighbours"), 1 << 20
    ),
    **dict.fromkeys(
        ("embed_dim", "mlp_dim", "gene_head", "head_dim", "num_heads", "projection_dim", "num_bins"), 1 << 20
    ),
    **dict.fromkeys(("num_layers", "keep_checkpoints", "graph_layers"), 10_000),
    **dict.fromkeys(("replica", "fsdp", "tensor"), 1 << 20),
}
_LARGEST = (1 << 63) - 1  # of a number that is no size


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class DataConfig:
    """Which cells make a batch. Changing any of these changes the order of the data: refused on resume."""

    global_batch_size: int = 64
    """Cells per optimizer step, over all hosts and microbatches."""
    num_streams: int = 4
    """Logical streams V; divides global_batch_size; every number of hosts must divide V."""
    window_blocks: int = 8
    """Blocks a stream shuffles together (K); more mixes better and takes more memory."""


@dataclass(frozen=True)
class ModelConfig:
    """The encoder's size and numerics."""

    embed_dim: int = 64
    """Width D of the residual stream, of the feature table and of the cell embedding."""
    num_layers: int = 2
    num_heads: int = 4
    head_dim: int = 16
    """Width of one head; num_heads * head_dim need not equal embed_dim (scBERT: 10 x 64 for 200)."""
    mlp_dim: int = 256
    """Width of the feed-forward layer (usually 4 * embed_dim)."""
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    """Of the encoder's feed-forward layers: GELU by the usual approximation, or exactly, as PyTorch does; or ReLU."""
    norm_position: Literal["pre", "post"] = "pre"
    """Layer norms of the encoder: of what enters attention and feed-forward layer, with one more after the last block;
    or of their sums with what entered them (scGPT)."""
    qkv_bias: bool = False
    """Whether query, key and value have a bias (scGPT)."""
    norm_epsilon: float = 1e-6
    """What the encoder's layer norms add to a variance (PyTorch: 1e-5)."""
    feature_embeddings: str = ""
    """A table from which the rows of the feature table start: of scmbert corpus gene-embeddings, or text such as
    gene2vec's, a name and embed_dim numbers per line. Features that it lacks start at random, as all do without it."""
    feature_rows: Literal["learned", "frozen"] = "learned"
    """Whether training changes the rows of the feature table (scBERT: frozen)."""
    region_embeddings: str = ""
    """A table of embeddings of regions, of any width (docs/region_embeddings.md): of scmbert regulate embed-regions, or
    a matrix of regions by regulators or motifs. The row of a region is a trained projection of its embedding, so that
    a model reads regions that its training has not seen. A run keeps its own copy."""
    region_rows: Literal["projected", "both"] = "projected"
    """What a region's row is with `region_embeddings`: the projection alone, or that and a learned row, which regions
    that the training has not seen lack."""
    networks: tuple[str, ...] = ()
    """Tables of edges between genes (docs/networks.md), joined into one network, for `graph` and `link_prediction`. A
    run keeps its own copy."""
    network_split: Literal["none", "edge", "regulator", "target", "both"] = "none"
    """Which edges are held out, to be predicted: a quarter tests, an eighth is for validation, by the names of genes
    and `seed`; of regulators or genes, of all their edges; `both`: of pairs of which neither is in another edge. They
    neither train nor pass messages."""
    graph: Literal["off", "learned", "frozen", "shuffled"] = "off"
    """Whether the row of a gene hears its neighbours in `networks` (models/network_rows.py). Controls: `frozen`, by
    weights that stay as they start, with a trained projection of what comes in; `shuffled`, over a network of equal
    degrees and another wiring."""
    graph_layers: int = 2
    """How many edges away a row hears."""
    graph_aggregation: Literal["sage", "gat", "mean", "attention"] = "mean"
    """How what neighbours say is put together (docs/networks.md): by confidence (`mean`), or by attention as well;
    `sage` and `gat` are the same with one matrix for all kinds of edges."""
    graph_neighbours: int = 0
    """In a training step a row hears at most so many neighbours in each layer, drawn anew; 0: all. For networks whose
    hubs have more than memory allows."""
    graph_edge_dropout: float = 0.0
    """Fraction of the edges that pass no messages in a training step, their reverses neither."""
    encoder_sharing: Literal["shared", "multiway", "per_modality"] = "shared"
    """What modalities share of the encoder: all of it; the attention, with a feed-forward layer each; nothing."""
    linear_path: bool = True
    """Principal components of up to 100,000 cells, added to the cell embedding and to what is predicted from it
    (models/linear_path.py): few cells and steps do not teach a transformer as much. Off in the experiments from
    small_10m up."""
    decoder_layers: int = 1
    """Cross-attention layers of the translation decoder."""
    attention: str = "xla"
    """How attention is computed (models/attention/): `xla`, memory of tokens squared; `xla_chunked`, memory linear in
    the tokens; `cudnn`, NVIDIA GPUs, bfloat16; `splash`, TPUs. All four give the same. `favor`: an estimate in linear
    time and memory, for rows of 10,000 tokens and more. One that cannot serve the run is an error, never replaced."""
    favor_features: int = 0
    """Random features per head of `favor`; more estimate better. 0: floor(head_dim * ln(head_dim)), 266 for 64."""
    favor_redraw_every: int = 1000
    """Steps after which `favor` draws new random features, so that no model relies on one draw; 0: never. A
    trained model keeps those of the last step of its run."""
    favor_stabiliser: Literal["cell", "batch"] = "cell"
    """Over which keys `favor` takes the maximum that keeps its exponentials small: those of the cell and head, or, as
    the published scBERT, of the whole batch, by which a cell's result depends on its neighbours."""
    favor_directions: Literal["drawn", "stored"] = "drawn"
    """`drawn`: by (seed, step), so no file holds them. `stored`: with the weights, never drawn again; of models that
    another program trained (scmbert import)."""
    scan_layers: bool = True
    """Compile one layer and scan over it; False unrolls (slower to compile, sometimes faster to run)."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but matrix products, everything."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products; parameters, softmax, norms and losses stay float32."""
    covariates: tuple[str, ...] = ()
    """Known cell covariates (such as technical_batch) that the model is given."""
    covariates_at: Literal["heads", "tokens"] = "heads"
    """`heads`: where values are predicted, so that the embedding need not carry them; `tokens`: with every token."""
    gene_head: tuple[int, ...] = ()
    """Widths of the layers that make the cell embedding of all genes' states (models/gene_head.py); (): it is the state
    of `[CLS]`. Of models that scmbert annotate fit --method scbert made; no pre-training trains them."""

    @property
    def cell_dim(self) -> int:
        """Width of the cell embedding."""
        return self.gene_head[-1] if self.gene_head else self.embed_dim

    def validate(self, where: str) -> None:
        for name in ("embed_dim", "num_layers", "num_heads", "head_dim", "mlp_dim", "decoder_layers", "graph_layers"):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "1 or more")
        require(0 < self.norm_epsilon < 1, f"{where}.norm_epsilon", self.norm_epsilon, "0 < value < 1")
        for name in ("favor_features", "favor_redraw_every"):
            require(getattr(self, name) >= 0, f"{where}.{name}", getattr(self, name), "0 or more")
        require(self.graph_neighbours >= 0, f"{where}.graph_neighbours", self.graph_neighbours, "0 (all) or more")
        require(
            0 <= self.graph_edge_dropout < 1, f"{where}.graph_edge_dropout", self.graph_edge_dropout, "0 <= value < 1"
        )
        require(all(width >= 1 for width in self.gene_head), f"{where}.gene_head", self.gene_head, "1 or more each")


@dataclass(frozen=True)
class ObjectivesConfig:
    """The mixture: one field per objective, each with its `weight` (fraction of steps) and `validate`. What trains it
    is named in `objectives.mixture.OBJECTIVES`.

    An objective whose configuration has `profile_tokens` gets `CellBatch.profiles`; one with `negatives`, batches of
    cells that may be compared."""

    masked_modeling: MaskedModelingConfig = field(default_factory=MaskedModelingConfig)
    cross_modal_translation: CrossModalTranslationConfig = field(default_factory=CrossModalTranslationConfig)
    contrastive_alignment: ContrastiveAlignmentConfig = field(default_factory=ContrastiveAlignmentConfig)
    whole_profile: WholeProfileConfig = field(default_factory=WholeProfileConfig)
    link_prediction: LinkPredictionConfig = field(default_factory=LinkPredictionConfig)

    def weights(self) -> dict[str, float]:
        """Objective name -> weight, only those above 0, in the order of the fields."""
        return {name: own.weight for name, own in self.trained().items()}

    def trained(self) -> dict[str, Any]:
        """Objective name -> its configuration, only of those that train."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: own for name, own in named.items() if own.weight > 0}


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for the layers' matrices, with linear warm-up and cosine decay."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon`: the layers' matrices by momentum made orthogonal (Jordan et al. 2024), all else by AdamW. Its updates are
    of AdamW's size (Liu et al. 2025), so that one learning rate serves both."""
    muon_momentum: float = 0.95
    """Of `muon`'s matrices."""
    peak_learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_learning_rate_fraction: float = 0.1
    """Learning rate at train.num_steps, as a fraction of the peak."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    """Applied to matrices only: never to norms, biases, embeddings or dispersions."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    def validate(self, where: str) -> None:
        require(self.peak_learning_rate > 0, f"{where}.peak_learning_rate", self.peak_learning_rate, "above 0")
        require(self.warmup_steps >= 0, f"{where}.warmup_steps", self.warmup_steps, "0 or more")
        require(0 <= self.muon_momentum < 1, f"{where}.muon_momentum", self.muon_momentum, "0 <= value < 1")
        require(self.max_grad_norm > 0, f"{where}.max_grad_norm", self.max_grad_norm, "above 0")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one of them may be -1: all that remain."""

    replica: int = 1
    """Data parallel across slices (over the data-centre network)."""
    fsdp: int = -1
    """Data parallel with sharded parameters and optimizer state."""
    tensor: int = 1
    """Splits heads and mlp; stays 1 below about 1B parameters."""

    def validate(self, where: str) -> None:
        sizes = {"replica": self.replica, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"{where}.{name}", size, "-1 or 1 or more")
        require(list(sizes.values()).count(-1) <= 1, where, sizes, "at most one axis of -1")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how often."""

    num_steps: int = 1000
    """Optimizer steps of the whole run (the learning rate schedule ends here)."""
    num_microbatches: int = 1
    """Gradient accumulation: the global batch is processed in this many parts; sums are divided once."""
    row_widths: tuple[int, ...] = ()
    """Widths in tokens, of all modalities together, to which a microbatch may be cut: the narrowest that holds its
    longest cell. If there are any, microbatches are made of cells of similar length, so that little padding is
    computed; each width is compiled separately. `scmbert bench padding` finds good ones for a corpus. Not for
    objectives that compare cells of the whole batch."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 3
    """The newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this are kept forever, in addition to the newest; 0: none."""

    def validate(self, where: str) -> None:
        for name in (
            "num_steps",
            "num_microbatches",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "1 or more")
        require(
            self.keep_every >= 0 and self.keep_every % self.checkpoint_every == 0,
            f"{where}.keep_every",
            self.keep_every,
            f"0, or a multiple of {where}.checkpoint_every ({self.checkpoint_every}): others have no checkpoint",
        )
        require(
            all(low < high for low, high in pairwise((0, *self.row_widths))),
            f"{where}.row_widths",
            self.row_widths,
            "widths of 1 or more, each above the one before",
        )


@dataclass(frozen=True)
class ValidationConfig:
    """How a run is judged on cells that it does not train on (evaluators/); all of it may change when a run continues.
    Without held-out cells (--validation CORPUS, --held-out FIELD=FRACTION, or a rule of the corpus) there is no
    validation.
    """

    every: int = 0
    """Steps between evaluations, before each of which a checkpoint is saved; 0: only at the end."""
    evaluators: tuple[str, ...] = ("loss", "lift")
    """NAME, or NAME:STEPS for one with a schedule of its own (evaluators/table.py)."""
    cells: int = 1024
    """Held-out cells that are evaluated, at most; always the same."""
    best: str = ""
    """NAME/METRIC of an evaluator, such as loss/loss: the checkpoint of its lowest value is kept, whatever comes after.
    NAME/METRIC:highest where more is better, such as probe/macro_f1:highest."""
    patience: int = 0
    """The run ends after this many evaluations without a better `best`; 0: it does not."""

    def schedules(self) -> dict[str, int]:
        """Evaluator -> steps between its evaluations; 0: only at the end."""
        parts = [entry.partition(":") for entry in self.evaluators]
        return {name: int(steps) if colon else self.every for name, colon, steps in parts}

    def validate(self, where: str) -> None:
        for name, least in (("every", 0), ("cells", 1), ("patience", 0)):
            require(getattr(self, name) >= least, f"{where}.{name}", getattr(self, name), f"{least} or more")
        for entry in self.evaluators:
            name, colon, steps = entry.partition(":")
            fits = bool(name) and (not colon or (steps.isascii() and steps.isdigit() and 0 < int(steps) <= _LARGEST))
            require(fits, f"{where}.evaluators", entry, "NAME or NAME:STEPS, with 1 step or more")
        names = [entry.partition(":")[0] for entry in self.evaluators]
        require(len({*names}) == len(names), f"{where}.evaluators", self.evaluators, "each evaluator once")
        if self.best:
            metric, colon, side = self.best.partition(":")
            name, slash, of_name = metric.partition("/")
            fits = bool(slash and of_name) and name in names and (not colon or side in ("lowest", "highest"))
            expected = (
                f"NAME/METRIC, NAME/METRIC:lowest or NAME/METRIC:highest, NAME one of {', '.join(names) or 'none'}"
            )
            require(fits, f"{where}.best", self.best, expected)
        require(bool(self.best) or not self.patience, f"{where}.patience", self.patience, f"0, or {where}.best as well")


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything a run needs besides its corpus and its folder."""

    seed: int = 0
    """Seeds initialisation, data order, token sampling and masks."""
    modalities: ModalitiesConfig = field(default_factory=ModalitiesConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        for name in MODALITIES:
            getattr(self.modalities, name).validate(f"modalities.{name}")
        require(bool(self.modalities.in_use()), "modalities.*.num_tokens", 0, "above 0 for at least one modality")
        self.model.validate("model")
        for objective in dataclasses.fields(self.objectives):
            getattr(self.objectives, objective.name).validate(f"objectives.{objective.name}", self.modalities)
        used = self.model.graph != "off" or self.objectives.link_prediction.weight > 0
        require(
            used == bool(self.model.networks),
            "model.networks",
            self.model.networks,
            "a network for objectives.link_prediction"
            if used
            else "none, or model.graph learned, or objectives.link_prediction.weight above 0: nothing uses it",
        )
        own_rows = not self.model.region_embeddings
        require(
            self.modalities.atac.num_tokens > 0 or own_rows,
            "model.region_embeddings",
            self.model.region_embeddings,
            "nothing, or modalities.atac.num_tokens above 0: the run reads no regions",
        )
        require(
            self.model.region_rows == "projected" or not own_rows,
            "model.region_rows",
            self.model.region_rows,
            "projected, where model.region_embeddings names no table",
        )
        check_training(self)
        require(
            max(self.train.row_widths, default=0) <= self.most_tokens,
            "train.row_widths",
            self.train.row_widths,
            f"at most the {self.most_tokens} tokens of a whole row",
        )

    @property
    def profile_tokens(self) -> int:
        """Expressed features per cell and modality that a batch must carry beside its tokens; 0: none are asked for."""
        return max((getattr(own, "profile_tokens", 0) for own in self.objectives.trained().values()), default=0)

    @property
    def most_tokens(self) -> int:
        """Tokens that a cell may have at most, of all modalities."""
        return sum(modality.num_tokens for modality in self.modalities.in_use().values())


def check_training(config: Any) -> None:
    """What every experiment has to keep, of cells (`ExperimentConfig`) or of DNA. Raises `ConfigError`."""
    require(0 <= config.seed < 2**31, "seed", config.seed, "0 <= value < 2**31")
    require(bool(config.objectives.weights()), "objectives.*.weight", 0, "above 0 for at least one objective")
    for part in ("optimizer", "mesh", "train", "validation"):
        getattr(config, part).validate(part)
    for name, value in flat_fields(config).items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        largest = max((abs(part) for part in parts if _is_whole(part)), default=0)
        most = _MOST.get(name.rpartition(".")[2], _LARGEST)
        require(largest <= most, name, value, f"at most {most:,}")
    data = config.data
    for name in ("global_batch_size", "num_streams", "window_blocks"):
        require(getattr(data, name) >= 1, f"data.{name}", getattr(data, name), "1 or more")
    divisors = {"data.num_streams": data.num_streams, "train.num_microbatches": config.train.num_microbatches}
    for name, divisor in divisors.items():
        fits = data.global_batch_size % divisor == 0
        require(fits, name, divisor, f"a divisor of data.global_batch_size ({data.global_batch_size})")


def without_modalities(config: ExperimentConfig, names: Collection[str]) -> ExperimentConfig:
    """The same, but `names` are not read. Raises `ConfigError` where an objective cannot do without them."""
    unread = {name: dataclasses.replace(getattr(config.modalities, name), num_tokens=0) for name in names}
    return dataclasses.replace(config, modalities=dataclasses.replace(config.modalities, **unread))


def batch_covariates(config: ExperimentConfig, known: Collection[str]) -> tuple[str, ...]:
    """The cell covariates a batch must carry: the model's, and what an objective compares cells by.

    `known`: the corpus's. Raises `ConfigError` when one that is asked for is not among them.
    """
    compared = compared_within(config, known)
    wanted = dict.fromkeys([*config.model.covariates, *([] if compared is None else [compared])])
    for name in wanted:
        require(name in known, "a covariate of the run", name, f"one of the corpus's: {', '.join(known) or 'none'}")
    return tuple(wanted)


def compared_within(config: ExperimentConfig, known: Collection[str]) -> str | None:
    """The field of the cells within which an objective compares them with each other; None: with all, or not at all.

    `known`: the fields that the corpus knows.
    """
    negatives = {getattr(own, "negatives", "all") for own in config.objectives.trained().values()}
    by_batch = "technical_batch" in negatives or ("auto" in negatives and "technical_batch" in known)
    return "technical_batch" if by_batch else None


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dictionaries, lists and numbers (JSON-ready)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict[str, Any], where: str = "config") -> ExperimentConfig:
    """The inverse of `to_dict`. Raises `ConfigError` naming every unknown field and wrong type."""
    return structured(values, ExperimentConfig, where)


def structured(values: dict[str, Any], kind: type[Config], where: str) -> Config:
    """A config dataclass of `kind` out of what `to_dict` gives. Raises `ConfigError` as `from_dict`."""
    import cattrs

    def exactly(kind: type) -> Any:
        def check(value: Any, _: type) -> Any:  # cattrs alone would turn 1.5 into 1 without a word
            accepted = (int, float) if kind is float else kind
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"expected {kind.__name__}, found {value!r}")
            return kind(value)

        return check

    converter = cattrs.Converter(forbid_extra_keys=True)
    for simple in (int, float, bool, str):
        converter.register_structure_hook(simple, exactly(simple))
    try:
        return converter.structure(values, kind)
    except cattrs.BaseValidationError as error:
        details = "; ".join(cattrs.transform_error(error, path=where))
        raise ConfigError(
            f"{details}. The fields are those of {kind.__name__} in {kind.__module__.replace('.', '/')}.py; "
            "a file written by another version cannot be read by this one."
        ) from error


def with_fields(config: Config, changes: Mapping[str, Any]) -> Config:
    """The same with other values in some fields: {"train.num_steps": 200}. Raises `ConfigError` naming the field."""
    values = to_dict(config)
    for name, value in changes.items():
        *path, last = name.split(".")
        holder: Any = values
        for part in path:
            holder = holder.get(part) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or last not in holder or isinstance(holder[last], dict):
            near = difflib.get_close_matches(name, flat_fields(config), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{name}: no field of the configuration (scmbert pretrain NAME --fields lists them).{hint}"
            )
        holder[last] = list(value) if isinstance(value, tuple) else value
    return structured(values, type(config), "changes") if changes else config


def load_config(path: Path) -> ExperimentConfig:
    """Reads a config.json. Raises `ConfigError` naming the file and the field."""
    return from_dict(read_config(path), str(path))


def read_config(path: Path) -> dict[str, Any]:
    """What a config.json says, of cells or of DNA. Raises `ConfigError` naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}.") from error
    return values


def flat_fields(config: Any) -> dict[str, Any]:
    """Dotted field name -> value (JSON-ready)."""

    def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, dict):
                flat |= flatten(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = value
        return flat

    return flatten(to_dict(config))


def differing_fields(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> (old value, new value), for the fields in which two configurations differ."""
    before, after = flat_fields(old), flat_fields(new)
    return {name: (before.get(name), value) for name, value in after.items() if before.get(name) != value}
