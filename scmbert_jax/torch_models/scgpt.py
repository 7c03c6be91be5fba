"""The layout of scGPT's checkpoints (Cui et al. 2024): torch's own `nn.TransformerEncoder` over the expressed genes.

    encoder.embedding.weight                                          [V, D]        of each name of vocab.json
    encoder.enc_norm.{weight,bias}                                    [D]           norm of these
    value_encoder.linear1.{weight,bias}                               [D, 1], [D]
    value_encoder.linear2.{weight,bias}                               [D, D], [D]
    value_encoder.norm.{weight,bias}                                  [D]
    transformer_encoder.layers.L.self_attn.in_proj_{weight,bias}      [3 D, D], [3 D]   or self_attn.Wqkv.{weight,bias}
    transformer_encoder.layers.L.self_attn.out_proj.{weight,bias}     [D, D], [D]
    transformer_encoder.layers.L.linear1.{weight,bias}                [F, D], [F]
    transformer_encoder.layers.L.linear2.{weight,bias}                [D, F], [D]
    transformer_encoder.layers.L.{norm1,norm2}.{weight,bias}          [D]

args.json, beside it, has what tensors do not tell: `nheads`, `n_bins`, `max_seq_len`. A value is the number of a bin,
of which there are few, so what the value encoder makes of each is a row of a table here, as are the normed rows of
genes. `<cls>` comes with value 0; a value that is masked is -1.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scmbert_jax.config import ExperimentConfig, ModalitiesConfig, ModalityConfig, ModelConfig
from scmbert_jax.errors import InputError
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.torch_models.layout import SETTINGS, Layout, StateDict, check_shapes

_RNA = MODALITIES.index("rna")
_LAYER = "transformer_encoder.layers"
_CLS, _MASKED = "<cls>", -1.0
_EPSILON = 1e-5  # of torch's layer norms
# What predicts values, types and batches of `<cls>` and tokens, or tells a generated gene from a given one.
_NOT_READ = ("decoder.", "cls_decoder.", "mvc_decoder.", "flag_encoder.", "grad_reverse_discriminator.")


def _qkv(state: StateDict, layer: int, kind: str) -> np.ndarray:
    """Of torch's attention, or of the flash attention that the released checkpoints were trained with."""
    return state[_qkv_name(state, layer, kind)]


def _qkv_name(state: StateDict, layer: int, kind: str) -> str:
    flash = f"{_LAYER}.{layer}.self_attn.Wqkv.{kind}"
    return flash if flash in state else f"{_LAYER}.{layer}.self_attn.in_proj_{kind}"


def _num_layers(state: StateDict) -> int:
    found = [re.match(rf"{re.escape(_LAYER)}\.(\d+)\.", name) for name in state]
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)


def _shapes(state: StateDict) -> dict[str, tuple[int, ...]]:
    """Of all tensors that are read. Raises `InputError` where those that tell the sizes are missing."""
    sized = ("encoder.embedding.weight", f"{_LAYER}.0.linear1.weight")
    for name in sized:
        if name not in state or state[name].ndim != 2:
            raise InputError(
                f"the state dict has no matrix {name}, so is not scGPT's; it begins with {', '.join(list(state)[:3])}."
            )
    (names, dim), (hidden, _) = (state[name].shape for name in sized)
    shapes: dict[str, tuple[int, ...]] = {sized[0]: (names, dim)}
    linear = {"value_encoder.linear1": (dim, 1), "value_encoder.linear2": (dim, dim)}
    norms = ["encoder.enc_norm", "value_encoder.norm"]
    for layer in range(_num_layers(state)):
        own = f"{_LAYER}.{layer}"
        shapes[_qkv_name(state, layer, "weight")] = (3 * dim, dim)
        shapes[_qkv_name(state, layer, "bias")] = (3 * dim,)
        linear[f"{own}.self_attn.out_proj"] = (dim, dim)
        linear |= {f"{own}.linear1": (hidden, dim), f"{own}.linear2": (dim, hidden)}
        norms += [f"{own}.norm1", f"{own}.norm2"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    return shapes


def num_names(state: StateDict) -> int:
    """Raises as `config`."""
    return _shapes(state)["encoder.embedding.weight"][0]


def config(state: StateDict, settings: Mapping[str, Any]) -> ExperimentConfig:
    """Of the expressed genes of a cell, in quantile bins. Raises `InputError`, see `Layout`."""
    shapes = _shapes(state)
    check_shapes(state, shapes, lambda name: name.startswith(_NOT_READ))
    dim = shapes["encoder.embedding.weight"][1]
    numbers = {}
    for name in ("nheads", "n_bins", "max_seq_len"):
        number = settings.get(name)
        if not isinstance(number, int) or number < 1:
            raise InputError(f"{SETTINGS} beside it says {name} {number!r}; expected a number above 0.")
        numbers[name] = number
    if dim % numbers["nheads"]:
        raise InputError(f"{SETTINGS} beside it says nheads {numbers['nheads']}, no divisor of the width {dim}.")
    if settings.get("input_emb_style", "continuous") != "continuous":
        raise InputError(f"{SETTINGS} says input_emb_style {settings['input_emb_style']!r}; only continuous is read.")
    model = ModelConfig(
        embed_dim=dim,
        num_layers=_num_layers(state),
        num_heads=numbers["nheads"],
        head_dim=dim // numbers["nheads"],
        mlp_dim=shapes[f"{_LAYER}.0.linear1.weight"][0],
        activation="relu",
        norm_epsilon=_EPSILON,
        norm_position="post",
        qkv_bias=True,
        linear_path=False,
    )
    rna = ModalityConfig(
        num_tokens=numbers["max_seq_len"] - 1,  # `<cls>` is one of them
        zero_fraction=0.0,
        value_encoding="quantile_bins",
        num_bins=numbers["n_bins"],
    )
    return ExperimentConfig(modalities=ModalitiesConfig(rna=rna), model=model)


def parameters(
    state: StateDict, definition: ModelDefinition, start: dict[str, Any], rows: np.ndarray, special: dict[str, int]
) -> dict[str, Any]:
    """See `Layout`."""
    shape = definition.config.model
    heads, dim, layers = shape.num_heads, shape.embed_dim, range(shape.num_layers)

    def stacked(name: str) -> np.ndarray:
        return np.stack([state[f"{_LAYER}.{layer}.{name}"] for layer in layers])

    params = jax.tree.map(np.array, start)
    embedding, blocks = params["embedding"], params["encoder"]["blocks"]
    names = _normed(state["encoder.embedding.weight"], state, "encoder.enc_norm")
    learned = params["table"]["learned"]
    learned[:] = 0.0
    learned[rows[rows >= 0]] = names[rows >= 0]
    levels = definition.config.modalities.rna.num_bins
    embedding["modality"][_RNA] = 0.0
    embedding["quantile_bins"]["table"][_RNA * levels : (_RNA + 1) * levels] = _values(state, np.arange(levels))
    embedding["mask"][_RNA] = _values(state, np.array([_MASKED]))[0]
    embedding["cls"] = names[special[_CLS]] + _values(state, np.zeros(1))[0]
    qkv = np.stack([_qkv(state, layer, "weight") for layer in layers]).reshape(-1, 3, heads, dim // heads, dim)
    blocks["qkv"] = np.moveaxis(qkv, -1, 1)
    blocks["qkv_bias"] = np.stack([_qkv(state, layer, "bias") for layer in layers]).reshape(-1, 3, heads, dim // heads)
    out = np.swapaxes(stacked("self_attn.out_proj.weight"), 1, 2)  # [L, H * Dh, D]
    blocks["attention_out"] = out.reshape(-1, heads, dim // heads, dim)
    blocks["attention_bias"] = stacked("self_attn.out_proj.bias")
    for here, there in (("mlp_in", "linear1"), ("mlp_out", "linear2")):
        blocks[here] = np.swapaxes(stacked(f"{there}.weight"), 1, 2)[:, None]  # one expert
        blocks[f"{here}_bias"] = stacked(f"{there}.bias")[:, None]
    for here, there in (("attention_norm", "norm1"), ("mlp_norm", "norm2")):
        blocks[here] = {"scale": stacked(f"{there}.weight"), "bias": stacked(f"{there}.bias")}
    return params


def _normed(x: np.ndarray, state: StateDict, name: str) -> np.ndarray:
    """Layer norm `name` of x [n, D]."""
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + _EPSILON)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _values(state: StateDict, values: np.ndarray) -> np.ndarray:
    """What the value encoder makes of numbers [n], [n, D]."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[f"value_encoder.{name}.weight"].T + state[f"value_encoder.{name}.bias"]

    hidden = np.maximum(linear(np.asarray(values, np.float32)[:, None], "linear1"), 0.0)
    return _normed(linear(hidden, "linear2"), state, "value_encoder.norm")


LAYOUT = Layout(config, num_names, parameters, None, (_CLS, "<pad>", "<eoc>"))
