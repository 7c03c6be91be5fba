"""The layout of scBERT's checkpoints: `PerformerLM` of performer-pytorch (MIT) over all genes of a cell in one order.

    token_emb.weight                                              [7, D]       bins 0 to 5, and the mask
    pos_emb.emb.weight                                            [G + 1, D]   of each gene, and of the last position
    performer.net.layers.L.0.norm.{weight,bias}                   [D]
    performer.net.layers.L.0.fn.to_{q,k,v}.weight                 [H * Dh, D]
    performer.net.layers.L.0.fn.to_out.{weight,bias}              [D, H * Dh], [D]
    performer.net.layers.L.0.fn.fast_attention.projection_matrix  [M, Dh]
    performer.net.layers.L.1.norm.{weight,bias}                   [D]
    performer.net.layers.L.1.fn.fn.w1.{weight,bias}               [F, D], [F]
    performer.net.layers.L.1.fn.fn.w2.{weight,bias}               [D, F], [D]
    norm.{weight,bias}                                            [D]
    to_out.{weight,bias}                                          [7, D], [7]

After fine-tuning, a head for C types is in the place of the last two, whose input is one number of each position:

    to_out.conv1.{weight,bias}                                    [1, 1, 1, D], [1]
    to_out.fc1.{weight,bias}                                      [512, G + 1], [512]
    to_out.fc2.{weight,bias}                                      [128, 512], [128]
    to_out.fc3.{weight,bias}                                      [C, 128], [C]

The position after the genes holds bin 0: a constant vector, which is `[CLS]` here. It comes first instead of last,
which attention without positions does not tell apart. The module that counts when to draw directions knows every layer
by a second name, `performer.proj_updater.instance.layers...`, and its count.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from scmbert_jax.config import ExperimentConfig, flat_fields
from scmbert_jax.errors import InputError
from scmbert_jax.experiment_files import load_experiment
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.torch_models.layout import Layout, StateDict, check_fields, check_shapes

_RNA = MODALITIES.index("rna")
_LAYER = "performer.net.layers"
_HEAD = "to_out.conv1.weight"  # only a fine-tuned checkpoint has it
_SECOND_NAME, _CALLS = "performer.proj_updater.instance.layers", "performer.proj_updater.calls_since_last_redraw"
# Without them the numbers would be others, or a tensor would have no place.
_FIELDS = {
    "model.encoder_sharing": "shared",
    "model.linear_path": False,
    "model.attention": "favor",
    "model.favor_stabiliser": "cell",
    "model.gene_head": [],
    "model.activation": "gelu",
    "model.norm_epsilon": 1e-5,
    "model.norm_position": "pre",
    "model.qkv_bias": False,
    "model.covariates": [],
    "modalities.rna.value_encoding": "bins",
    "modalities.rna.likelihood": "bins_and_mask",
    "objectives.masked_modeling.token_head": "linear",
}


def _shapes(state: StateDict) -> dict[str, tuple[int, ...]]:
    """Of all tensors, by the sizes of some. Raises `InputError` where those are missing or are no matrices."""
    first = f"{_LAYER}.0.0.fn"
    sized = ("token_emb.weight", "pos_emb.emb.weight", f"{first}.to_q.weight", f"{_LAYER}.0.1.fn.fn.w1.weight")
    for name in (*sized, f"{first}.fast_attention.projection_matrix"):
        if name not in state or state[name].ndim != 2:
            raise InputError(
                f"the state dict has no matrix {name}, so is not scBERT's; it begins with {', '.join(list(state)[:3])}."
            )
    (tokens, dim), (positions, _), (inner, _), (hidden, _) = (state[name].shape for name in sized)
    number, head_dim = state[f"{first}.fast_attention.projection_matrix"].shape
    if inner % head_dim:
        raise InputError(f"{sized[2]} has {inner} rows, no multiple of the {head_dim} columns of projection_matrix.")
    shapes: dict[str, tuple[int, ...]] = {sized[0]: (tokens, dim), sized[1]: (positions, dim)}
    for layer in range(_num_layers(state)):
        attention, feed_forward = f"{_LAYER}.{layer}.0", f"{_LAYER}.{layer}.1"
        for name in (f"{attention}.norm", f"{feed_forward}.norm"):
            shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
        shapes |= {f"{attention}.fn.to_{name}.weight": (inner, dim) for name in "qkv"}
        shapes |= {f"{attention}.fn.to_out.weight": (dim, inner), f"{attention}.fn.to_out.bias": (dim,)}
        shapes[f"{attention}.fn.fast_attention.projection_matrix"] = (number, head_dim)
        shapes |= {f"{feed_forward}.fn.fn.w1.weight": (hidden, dim), f"{feed_forward}.fn.fn.w1.bias": (hidden,)}
        shapes |= {f"{feed_forward}.fn.fn.w2.weight": (dim, hidden), f"{feed_forward}.fn.fn.w2.bias": (dim,)}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    if _HEAD in state:
        return shapes | _shapes_of_head(state, positions, dim)
    return shapes | {"to_out.weight": (tokens, dim), "to_out.bias": (tokens,)}


def _shapes_of_head(state: StateDict, positions: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Of a fine-tuned checkpoint; the biases tell the widths."""
    shapes: dict[str, tuple[int, ...]] = {_HEAD: (1, 1, 1, dim), "to_out.conv1.bias": (1,)}
    inputs = positions
    for name in ("to_out.fc1", "to_out.fc2", "to_out.fc3"):
        bias = state.get(f"{name}.bias")
        if bias is None or bias.ndim != 1:
            raise InputError(f"the state dict has {_HEAD}, as a fine-tuned scBERT, but no vector {name}.bias.")
        shapes |= {f"{name}.weight": (len(bias), inputs), f"{name}.bias": (len(bias),)}
        inputs = len(bias)
    return shapes


def _num_layers(state: StateDict) -> int:
    found = [re.match(rf"{re.escape(_LAYER)}\.(\d+)\.", name) for name in state]
    return 1 + max(int(match.group(1)) for match in found if match)


def num_names(state: StateDict) -> int:
    """Positions but the last. Raises as `config`."""
    return _shapes(state)["pos_emb.emb.weight"][0] - 1


def config(state: StateDict, _: Mapping[str, Any]) -> ExperimentConfig:
    """The `scbert` experiment at the checkpoint's sizes. Raises `InputError` for a state dict of another layout."""
    shapes = _shapes(state)
    check_shapes(state, shapes, lambda name: name.startswith(_SECOND_NAME) or name == _CALLS)
    (tokens, dim), inner = shapes["token_emb.weight"], shapes[f"{_LAYER}.0.0.fn.to_q.weight"][0]
    number, head_dim = shapes[f"{_LAYER}.0.0.fn.fast_attention.projection_matrix"]
    base = load_experiment("scbert")
    model = replace(
        base.model,
        embed_dim=dim,
        num_layers=_num_layers(state),
        num_heads=inner // head_dim,
        head_dim=head_dim,
        mlp_dim=shapes[f"{_LAYER}.0.1.fn.fn.w1.weight"][0],
        favor_features=number,
        favor_directions="stored",
        feature_rows="frozen",
        gene_head=tuple(len(state[f"to_out.{name}.bias"]) for name in ("fc1", "fc2")) if _HEAD in state else (),
    )
    rna = replace(base.modalities.rna, num_tokens=num_names(state), num_bins=tokens - 1)
    return replace(base, model=model, modalities=replace(base.modalities, rna=rna))


def parameters(
    state: StateDict, definition: ModelDefinition, start: dict[str, Any], rows: np.ndarray, _: dict[str, int]
) -> dict[str, Any]:
    """See `Layout`."""
    shape = definition.config.model
    heads, head_dim = shape.num_heads, shape.head_dim

    def stacked(number: int, name: str) -> np.ndarray:
        return np.stack([state[f"{_LAYER}.{layer}.{number}.{name}"] for layer in range(shape.num_layers)])

    params = jax.tree.map(np.array, start)
    tokens, positions = state["token_emb.weight"], state["pos_emb.emb.weight"]
    table, embedding, blocks = params["table"]["learned"], params["embedding"], params["encoder"]["blocks"]
    table[:] = 0.0
    table[rows] = positions[:-1]
    bins = len(tokens) - 1
    embedding["modality"][_RNA] = 0.0
    embedding["bins"]["table"][_RNA * bins : (_RNA + 1) * bins] = tokens[:-1]
    embedding["mask"][_RNA] = tokens[-1]
    embedding["cls"] = tokens[0] + positions[-1]
    qkv = np.stack([stacked(0, f"fn.to_{name}.weight") for name in "qkv"], axis=1)  # [L, 3, H * Dh, D]
    blocks["qkv"] = np.moveaxis(qkv, -1, 1).reshape(-1, shape.embed_dim, 3, heads, head_dim)
    out = stacked(0, "fn.to_out.weight")  # [L, D, H * Dh]
    blocks["attention_out"] = np.swapaxes(out, 1, 2).reshape(-1, heads, head_dim, shape.embed_dim)
    blocks["attention_bias"] = stacked(0, "fn.to_out.bias")
    blocks["attention"]["directions"] = stacked(0, "fn.fast_attention.projection_matrix")
    for here, number, there in (("mlp_in", 1, "fn.fn.w1"), ("mlp_out", 1, "fn.fn.w2")):
        blocks[here] = np.swapaxes(stacked(number, f"{there}.weight"), 1, 2)[:, None]  # one expert
        blocks[f"{here}_bias"] = stacked(number, f"{there}.bias")[:, None]
    for here, number in (("attention_norm", 0), ("mlp_norm", 1)):
        blocks[here] = {"scale": stacked(number, "norm.weight"), "bias": stacked(number, "norm.bias")}
    params["encoder"]["final_norm"] = {"scale": state["norm.weight"], "bias": state["norm.bias"]}
    if _HEAD not in state:
        params["token_head"] = {"outputs": {"rna": state["to_out.weight"].T}, "biases": {"rna": state["to_out.bias"]}}
        return params
    head, first = params["gene_head"], state["to_out.fc1.weight"].T  # [G + 1, W]
    head["features"][:] = 0.0
    head["features"][rows] = first[:-1]
    params["gene_head"] = head | {
        "of_state": state[_HEAD].reshape(-1, 1),
        "of_state_bias": state["to_out.conv1.bias"],
        "cls": first[-1:],
        "features_bias": state["to_out.fc1.bias"],
        "layers": {0: state["to_out.fc2.weight"].T},
        "biases": {0: state["to_out.fc2.bias"]},
    }
    return params


def state_dict(
    definition: ModelDefinition, params: dict[str, Any], constants: dict[str, Any], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """See `Layout`. Of a model of several modalities of which it reads RNA alone, the RNA."""
    check_fields(flat_fields(definition.config), _FIELDS, "scbert")
    shape, bins = definition.config.model, definition.config.modalities.rna.num_bins
    embedding, blocks = params["embedding"], params["encoder"]["blocks"]
    modality = embedding["modality"][_RNA]
    in_bins = embedding["bins"]["table"][_RNA * bins : (_RNA + 1) * bins]
    tokens = np.concatenate([in_bins, embedding["mask"][_RNA][None]]) + modality
    after = embedding["cls"] - tokens[0]
    state = {
        "token_emb.weight": tokens,
        "pos_emb.emb.weight": np.concatenate([params["table"]["learned"][rows], after[None]]),
    }
    directions = blocks["attention"] if "attention" in blocks else constants["encoder"]["blocks"]["attention"]
    inner = shape.num_heads * shape.head_dim
    layers: dict[str, np.ndarray] = {}
    for layer in range(shape.num_layers):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks)
        attention, feed_forward = f"{layer}.0", f"{layer}.1"
        layers |= {f"{attention}.norm.{name}": own["attention_norm"][key] for name, key in _NORM}
        layers[f"{attention}.fn.fast_attention.projection_matrix"] = directions["directions"][layer]
        for number, name in enumerate("qkv"):
            layers[f"{attention}.fn.to_{name}.weight"] = own["qkv"][:, number].reshape(-1, inner).T
        layers[f"{attention}.fn.to_out.weight"] = own["attention_out"].reshape(inner, -1).T
        layers[f"{attention}.fn.to_out.bias"] = own["attention_bias"]
        layers |= {f"{feed_forward}.norm.{name}": own["mlp_norm"][key] for name, key in _NORM}
        for here, there in (("mlp_in", "w1"), ("mlp_out", "w2")):
            layers[f"{feed_forward}.fn.fn.{there}.weight"] = own[here][0].T
            layers[f"{feed_forward}.fn.fn.{there}.bias"] = own[f"{here}_bias"][0]
    layers = {name: np.ascontiguousarray(array, np.float32) for name, array in layers.items()}
    state |= {f"{_LAYER}.{name}": array for name, array in layers.items()}
    state[_CALLS] = np.zeros((), np.int64)
    state |= {f"{_SECOND_NAME}.{name}": array for name, array in layers.items()}
    state |= {f"norm.{name}": params["encoder"]["final_norm"][key] for name, key in _NORM}
    head = params["token_head"]
    state |= {"to_out.weight": head["outputs"]["rna"].T, "to_out.bias": head["biases"]["rna"]}
    return {name: array if array.dtype == np.int64 else np.asarray(array, np.float32) for name, array in state.items()}


_NORM = (("weight", "scale"), ("bias", "bias"))

LAYOUT = Layout(config, num_names, parameters, state_dict)
