"""A run that starts from the weights of a trained model.

What belongs to a feature (its row of the feature table, its output bias, its spread, ...) is found in the model by the
feature's id; what belongs to a category of a covariate, by its name; what belongs to a modality, by the modality. All
else must have the same shape, and is taken as it is. What the model does not have starts as in any run: output biases
and spreads of new features from the statistics of the run's own cells, objectives' heads fresh. A new feature whose
linked genes the model knows gets the row that these make, with nothing of its own added yet. The optimizer starts anew.

The linear path, and the scales that values are told on, are of the run's own cells: the components of the model are
those of other cells.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from scmbert_jax.config import ExperimentConfig, differing_fields, flat_fields
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.definition import Definition
from scmbert_jax.models.embeddings import padded_rows
from scmbert_jax.objectives.mixture import OBJECTIVES
from scmbert_jax.parallel.mesh import replicated
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.train_state import TrainState, abstract_state, initial_params, param_shardings

Path = tuple[Any, ...]  # keys of a parameter in the nested dict


@dataclass(frozen=True)
class SourceModel:
    """A trained model, as a run starts from it.

    Attributes:
      name: its folder, for people.
      identity: tells it from every other model.
      step: how far it was trained.
      definition: of the model.
      rows: int64 [F], of each feature of the run its row in the model; -1 where it has none.
      codes: covariate -> int64 [n], of each category of the run its code in the model; -1 where it has none.
      read: gives its parameters, placed as the `jax.ShapeDtypeStruct`s it is called with. Raises `CheckpointError`.
    """

    name: str
    identity: str
    step: int
    definition: ModelDefinition
    rows: np.ndarray
    codes: Mapping[str, np.ndarray]
    read: Callable[[Any], Any]


class _Match(NamedTuple):
    """How one parameter is found in the model: along `axis`, by `indexes[which]`."""

    axis: int
    which: str


def check_fits(there: ExperimentConfig, here: ExperimentConfig, name: str) -> None:
    """Raises `ConfigError` naming the fields in which a run must equal the model that it starts from."""
    both = [objective for objective in there.objectives.weights() if objective in here.objectives.weights()]
    fields = ["embed_dim", "num_layers", "num_heads", "head_dim", "mlp_dim", "encoder_sharing"]
    fields += ["activation", "norm_epsilon", "norm_position", "qkv_bias"]
    fields += ["covariates_at"] if there.model.covariates and here.model.covariates else []
    fields += ["graph_layers", "graph_aggregation"] if "off" not in (there.model.graph, here.model.graph) else []
    wanted = [f"model.{field}" for field in fields]
    wanted += [field for objective in both for field in OBJECTIVES[objective].shaped_by]
    for modality, own in here.modalities.in_use().items():
        if modality in there.modalities.in_use():
            of_values = ["value_encoding", "target_sum", "likelihood", "target_likelihood"]
            of_values += ["num_bins"] if own.value_encoding != "continuous" or "bins" in own.likelihood else []
            wanted += [f"modalities.{modality}.{field}" for field in of_values]
    before, now = flat_fields(there), flat_fields(here)
    differing = [field for field in wanted if before[field] != now[field]]
    if differing:
        listed = "; ".join(f"{field}: {before[field]!r} there, {now[field]!r} here" for field in differing)
        raise ConfigError(
            f"--init-from {name}: the model is of another shape ({listed}). Give this run the same values."
        )


def state_from(
    source: SourceModel, model: Definition, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state of step 0; neither model is ever whole on one device of several.

    Raises `ConfigError` naming a parameter whose shape does not fit, `CheckpointError` for weights that cannot be read.
    """
    plan, indexes = _plan(source, model), _indexes(source, model)
    there = source.definition
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        there.abstract_params,
        param_shardings(there, mesh),
    )

    def create(fresh: Any, given: Any, indexes: Mapping[str, jax.Array]) -> TrainState:
        given = dict(_flat(given))

        def start(path: tuple, own: jax.Array) -> jax.Array:
            keys = _keys(path)
            if keys == ("table", "learned"):
                own = jnp.where(indexes["from_links"][:, None], 0.0, own)
            if keys not in plan:
                return own
            match = plan[keys]
            return given[keys] if match is None else _taken(own, given[keys], match.axis, indexes[match.which])

        params = jax.tree_util.tree_map_with_path(start, fresh)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    on_all = jax.device_put(indexes, replicated(mesh))
    return jax.jit(create, out_shardings=where, donate_argnums=0)(
        initial_params(model, mesh), source.read(placed), on_all
    )


def _taken(own: jax.Array, given: jax.Array, axis: int, index: jax.Array) -> jax.Array:
    """`own`, but where `index` int32 [n] is not -1: there the slices of `given`, along `axis`."""
    found = jnp.take(given, jnp.maximum(index, 0), axis=axis)
    if found.shape[-1] != own.shape[-1]:  # outputs of the modality with the most; those of one modality come first
        number = min(found.shape[-1], own.shape[-1])
        found = jnp.concatenate([found[..., :number], own[..., number:]], axis=-1)
    has = (index >= 0).reshape([-1 if place == axis else 1 for place in range(own.ndim)])
    return jnp.where(has, found, own)


def _plan(source: SourceModel, model: Definition) -> dict[Path, _Match | None]:
    """Each parameter that the model has, too -> how it is found there; None: as it is. Raises `ConfigError`."""
    there = dict(_flat(source.definition.abstract_params))
    axes, roles = dict(_flat(model.logical_axes, leaf=tuple)), dict(_flat(model.roles))
    is_multiway = model.config.model.encoder_sharing == "multiway"
    plan: dict[Path, _Match | None] = {}
    for path, own in _flat(model.abstract_params):
        if path not in there or "linear" in path[:2]:
            continue
        match = None
        if "features" in axes[path]:
            match = _Match(axes[path].index("features"), "features")
        elif path[-3:-1] == ("covariates", "tables"):
            match = _Match(0, path[-1])
        elif is_multiway and path[0] == "encoder" and path[-1].startswith("mlp_") and path[-2] == "blocks":
            match = _Match(1, "experts")  # behind the layers
        expected, found = list(own.shape), list(there[path].shape)
        if match is not None:
            expected[match.axis] = found[match.axis] = 0
            if match.which == "features" and roles[path] == "bias":
                expected[1:] = found[1:] = []
        if expected != found:
            differing = differing_fields(source.definition.config, model.config)
            named = ", ".join(
                field for field in differing if field.startswith(("model.", "objectives.", "modalities."))
            )
            raise ConfigError(
                f"--init-from {source.name}: parameter {'.'.join(map(str, path))} has shape {there[path].shape} there "
                f"and {own.shape} here. Fields that differ: {named or 'none'}; give this run the model's."
            )
        plan[path] = match
    return plan


def _indexes(source: SourceModel, model: Definition) -> dict[str, np.ndarray]:
    """`_Match.which` -> int32 [n]; and `from_links` bool [rows], new features that start from their links alone."""
    features, from_links = np.full(padded_rows(model.layout), -1, np.int32), np.zeros(padded_rows(model.layout), bool)
    features[: len(source.rows)] = source.rows
    projections = source.definition.abstract_params["table"].get("link_projections", {})
    for name, (rows, genes) in model.layout.links.items():
        if name in projections:
            from_links[rows[(source.rows[rows] < 0) & (source.rows[genes] >= 0)]] = True
    # Code -1, unknown, stands first.
    found = {name: np.concatenate([[0], np.where(codes < 0, -1, codes + 1)]) for name, codes in source.codes.items()}
    before = list(source.definition.config.modalities.in_use())
    experts = [1 + before.index(name) if name in before else -1 for name in model.config.modalities.in_use()]
    found |= {"features": features, "experts": np.array([0, *experts])}
    return {"from_links": from_links, **{name: index.astype(np.int32) for name, index in found.items()}}


def described(source: SourceModel, model: Definition) -> dict[str, Any]:
    """What of the run came from the model, for provenance.json."""
    statistics, plan, from_links = model.layout.statistics, _plan(source, model), _indexes(source, model)["from_links"]
    features = {}
    for name, (first, stop) in model.layout.slices.items():
        known = source.rows[first:stop] >= 0
        fractions = np.ones(len(known)) if statistics is None else statistics.cell_fraction[first:stop]
        features[name] = {
            "features": len(known),
            "from_model": int(known.sum()),
            "from_links": int(from_links[first:stop].sum()),
            "share_of_counts": round(float(fractions[known].sum() / max(fractions.sum(), 1e-12)), 4),
        }
    here = [path for path, _ in _flat(model.abstract_params)]
    there = [path for path, _ in _flat(source.definition.abstract_params)]
    return {
        "model": source.name,
        "identity": source.identity,
        "step": source.step,
        "features": features,
        "covariates": {
            name: {"categories": len(codes), "from_model": int((codes >= 0).sum())}
            for name, codes in source.codes.items()
            if name in model.config.model.covariates
        },
        "new": _roots([path for path in here if path not in plan], list(plan)),
        "not_used": _roots([path for path in there if path not in plan], list(plan)),
    }


def described_in_words(told: Mapping[str, Any]) -> list[str]:
    """Sentences of `described`."""
    lines = []
    for name, own in told["features"].items():
        linked = f", {own['from_links']:,} start from their linked genes" if own["from_links"] else ""
        lines.append(
            f"{own['from_model']:,} of {own['features']:,} {name} features are the model's, with "
            f"{own['share_of_counts']:.1%} of the counts{linked}"
        )
    for name, own in told["covariates"].items():
        lines.append(f"{own['from_model']:,} of {own['categories']:,} categories of {name} are the model's")
    for words, names in (("new, and start fresh", told["new"]), ("of the model, and not used", told["not_used"])):
        if names:
            lines.append(f"{words}: {', '.join(names)}")
    return [f"started from the weights of {told['model']}, step {told['step']:,}: {'; '.join(lines)}"]


def _roots(paths: list[Path], others: list[Path]) -> list[str]:
    """The shortest beginnings of `paths` that none of `others` has, dotted."""
    taken = {other[:length] for other in others for length in range(len(other) + 1)}
    found: dict[str, None] = {}
    for path in paths:
        length = next((length for length in range(1, len(path)) if path[:length] not in taken), len(path))
        found[".".join(map(str, path[:length]))] = None
    return list(found)


def _flat(tree: Any, leaf: type | None = None) -> Iterator[tuple[Path, Any]]:
    is_leaf = None if leaf is None else lambda x: isinstance(x, leaf)
    for path, value in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield _keys(path), value


def _keys(path: tuple) -> Path:
    return tuple(part.key for part in path)
