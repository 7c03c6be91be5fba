"""The same model in PyTorch, as a process that does what it is asked; run by a Python of its own that has torch.

    PYTHON torch_peer.py FOLDER

FOLDER holds setup.json (the fields are read in `main`), params.npz (ours, by dotted name) and batch.npz (one batch, and
the masked positions of the parity check). Masked modelling of RNA counts: the embedding, the pre-norm encoder with
`scaled_dot_product_attention`, both heads at masked positions, negative binomial likelihood, clipping, fused AdamW.
`encoder` may also be `bert`: Hugging Face's BertModel between the same embedding and the same heads.

Answers each line of standard input with one line of JSON. `loss`: the loss of the batch with the given masked
positions. `step N`: seconds of N training steps, each with masked positions of its own. This file imports nothing of
the package: that Python does not have it.
"""

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROW_SCALE = 10.0  # as in models/heads.py


def modules(torch, setup: dict, params: dict) -> SimpleNamespace:
    """matrix(name, rows, layer), vector(name, layer), Norm(name, layer), and encoders by name, of our parameters.

    An encoder takes (x [B, S, D], valid bool [B, S]).
    """
    from torch import nn
    from torch.nn import functional as F

    dim, heads, head_dim, layers = (setup[name] for name in ("embed_dim", "num_heads", "head_dim", "num_layers"))

    def matrix(name: str, rows: int, layer: int | None = None):
        """Ours [in, out] as PyTorch keeps it, [out, in]."""
        x = params[name] if layer is None else params[name][layer]
        return nn.Parameter(torch.from_numpy(x.reshape(rows, -1).T.copy()))

    def vector(name: str, layer: int | None = None):
        x = params[name] if layer is None else params[name][layer]
        return nn.Parameter(torch.from_numpy(x.copy()))

    class Norm(nn.Module):
        def __init__(self, name: str, layer: int | None = None):
            super().__init__()
            self.scale, self.bias = vector(f"{name}.scale", layer), vector(f"{name}.bias", layer)

        def forward(self, x):
            return F.layer_norm(x, (dim,), self.scale, self.bias, 1e-6)

    class Block(nn.Module):
        def __init__(self, layer: int):
            super().__init__()
            own = "encoder.blocks."
            self.attention_norm, self.mlp_norm = (Norm(own + name, layer) for name in ("attention_norm", "mlp_norm"))
            self.qkv = matrix(own + "qkv", dim, layer)
            self.out = matrix(own + "attention_out", heads * head_dim, layer)
            self.out_bias = vector(own + "attention_bias", layer)
            self.mlp_in, self.mlp_out = (
                matrix(own + name, rows, layer) for name, rows in (("mlp_in", dim), ("mlp_out", setup["mlp_dim"]))
            )
            self.mlp_in_bias, self.mlp_out_bias = (
                nn.Parameter(torch.from_numpy(params[own + name][layer].reshape(-1).copy()))
                for name in ("mlp_in_bias", "mlp_out_bias")
            )

        def forward(self, x, mask):
            size, length = x.shape[:2]
            qkv = F.linear(self.attention_norm(x), self.qkv).view(size, length, 3, heads, head_dim)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, S, Dh] each
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + F.linear(y.transpose(1, 2).reshape(size, length, -1), self.out, self.out_bias)
            y = F.gelu(F.linear(self.mlp_norm(x), self.mlp_in, self.mlp_in_bias), approximate="tanh")
            return x + F.linear(y, self.mlp_out, self.mlp_out_bias)

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block(layer) for layer in range(layers))
            self.final_norm = Norm("encoder.final_norm")

        def forward(self, x, valid):
            # Without padding there is no mask, which lets PyTorch choose its fastest kernel.
            mask = None if setup["full_rows"] else valid[:, None, None]
            for block in self.blocks:
                x = block(x, mask)
            return self.final_norm(x)

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            from transformers import BertConfig, BertModel

            assert heads * head_dim == dim, "BERT's heads make up its width"
            config = BertConfig(
                vocab_size=1,
                pad_token_id=None,
                hidden_size=dim,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=setup["mlp_dim"],
                hidden_act="gelu_new",
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                max_position_embeddings=setup["length"] + 1,
                attn_implementation="sdpa",
            )
            self.bert = BertModel(config, add_pooling_layer=False)

        def forward(self, x, valid):
            mask = None if setup["full_rows"] else valid.to(x.dtype)
            return self.bert(inputs_embeds=x, attention_mask=mask).last_hidden_state

    encoders: dict[str, Any] = {"ours": Ours, "bert": Bert}
    return SimpleNamespace(matrix=matrix, vector=vector, Norm=Norm, encoder=encoders[setup["encoder"]])


def build(torch, setup: dict, params: dict):
    """(module, function of (batch, positions, chosen) -> (loss sum, weight))."""
    from torch import nn
    from torch.nn import functional as F

    dim, own = setup["embed_dim"], modules(torch, setup, params)
    matrix, vector, Norm, encoder = own.matrix, own.vector, own.Norm, own.encoder

    class Head(nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.dense, self.dense_bias = matrix(f"{name}.dense", dim), vector(f"{name}.dense_bias")
            self.norm, self.output = Norm(f"{name}.norm"), matrix(f"{name}.outputs.rna", dim)
            self.feature_bias, self.spread = vector(f"{name}.feature_bias"), vector(f"{name}.spread")

        def forward(self, x, ids, counts, library):
            hidden = self.norm(F.gelu(F.linear(x, self.dense, self.dense_bias), approximate="tanh")).float()
            logit = F.linear(hidden, self.output).float()[..., 0] + self.feature_bias[ids, 0] * ROW_SCALE
            log_theta = self.spread[ids] * ROW_SCALE
            theta, mean = log_theta.exp(), library.clamp(min=1.0) * torch.sigmoid(logit)
            log_total = torch.log(theta + mean)
            return -(
                torch.lgamma(counts + theta)
                - torch.lgamma(theta)
                - torch.lgamma(counts + 1.0)
                + theta * (log_theta - log_total)
                + counts * (torch.log(mean + 1e-8) - log_total)
            )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = vector("table.learned")
            self.cls, self.modality, self.mask = (vector(f"embedding.{name}") for name in ("cls", "modality", "mask"))
            own = "embedding.continuous."
            self.centre, self.log_spread, self.scale, self.bias = (
                vector(own + name) for name in ("centre", "log_spread", "scale", "bias")
            )
            self.value_out, self.value_gate = matrix(own + "out", dim), matrix(own + "gate", dim)
            self.encoder = encoder()
            self.from_cell, self.from_feature, self.gate = (
                matrix(f"cell_decoder.{name}", dim) for name in ("from_cell", "from_feature", "gate")
            )
            self.token_head, self.cell_head = Head("token_head"), Head("cell_head")

        def forward(self, ids, counts, library, valid, hidden, positions, chosen):
            rows = F.embedding(ids, self.table)  # [B, S, D]
            seen = torch.where(hidden, 0.0, counts)
            relative = seen / library.clamp(min=1.0) * setup["target_sum"]
            x = (torch.log1p(relative) - self.centre[ids]) * torch.exp(-self.log_spread[ids])
            x = x.clamp(-10.0, 10.0)[..., None]
            value = F.linear(F.gelu(x * self.scale[0] + self.bias[0], approximate="tanh"), self.value_out)
            value = value + x * F.linear(rows, self.value_gate)
            value = torch.where(hidden[..., None], self.mask[0].to(value.dtype), value)
            x = torch.where(valid[..., None], rows + value + self.modality[0], 0.0)
            x = torch.cat([self.cls.expand(len(x), 1, dim), x], dim=1)
            with_cls = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)
            states = self.encoder(x, with_cls)
            at = positions[..., None].expand(-1, -1, dim)
            features = rows.gather(1, at)
            truth = [values.gather(1, positions) for values in (ids, counts, library)]
            token_nll = self.token_head(states.gather(1, at + 1), *truth)
            cell, query = states[:, 0], F.linear(features, self.from_feature)
            decoded = F.linear(cell, self.gate)[:, None] * query + query + F.linear(cell, self.from_cell)[:, None]
            cell_nll = self.cell_head(decoded, *truth)
            weight = chosen.float()
            return ((token_nll + cell_nll) * weight).sum(), weight.sum()

    return Model()


def main() -> None:
    folder = Path(sys.argv[1])
    setup = json.loads((folder / "setup.json").read_text())
    try:
        import numpy as np
        import torch

        if setup["encoder"] == "bert":
            import transformers  # noqa: F401
    except ImportError as error:
        print(json.dumps({"error": f"{sys.executable}: {error}"}), flush=True)
        return
    if setup["device"] == "cpu":
        torch.set_num_threads(setup["threads"])
    torch.set_float32_matmul_precision("highest" if setup["device"] == "cpu" else "high")
    torch.manual_seed(0)
    with np.load(folder / "params.npz") as saved:
        params = {name: saved[name] for name in saved.files}
    with np.load(folder / "batch.npz") as saved:
        batch = {name: torch.from_numpy(saved[name]).to(setup["device"]) for name in saved.files}
    ids, counts, library = batch["feature_ids"].long(), batch["counts"].float(), batch["library_size"].float()
    valid = torch.arange(setup["length"], device=ids.device) < batch["lengths"][:, None]
    model = build(torch, setup, params).to(setup["device"])
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.98),
        eps=1e-8,
        fused=True,
    )
    run = torch.compile(model) if setup["compile"] else model
    low = setup["dtype"] == "bfloat16"
    most = max(1, int(setup["mask_fraction"] * setup["length"] + 0.5))
    num_masked = torch.floor(setup["mask_fraction"] * batch["lengths"] + 0.5).clamp(min=1)

    def loss_sum(positions, chosen):
        hidden = torch.zeros_like(valid).scatter(1, positions, chosen)
        with torch.autocast(setup["device"], torch.bfloat16, enabled=low):
            return run(ids, counts, library, valid, hidden, positions, chosen)

    def step() -> None:
        draws = torch.where(valid, torch.rand(valid.shape, device=ids.device), 2.0)
        positions = draws.argsort(dim=1)[:, :most]
        chosen = torch.arange(most, device=ids.device) < num_masked[:, None]
        optimizer.zero_grad(set_to_none=True)
        total, weight = loss_sum(positions, chosen)
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def wait() -> None:
        if setup["device"] == "cuda":
            torch.cuda.synchronize()

    number = sum(p.numel() for p in model.parameters())
    print(json.dumps({"torch": torch.__version__, "parameters": number}), flush=True)
    for line in sys.stdin:
        what, _, argument = line.strip().partition(" ")
        answer: dict[str, Any]
        try:
            if what == "loss":
                with torch.no_grad():
                    total, weight = loss_sum(batch["positions"].long(), batch["chosen"])
                answer = {"loss": float(total / weight)}
            else:
                wait()
                start = time.perf_counter()
                for _ in range(int(argument)):
                    step()
                wait()
                seconds = time.perf_counter() - start
                answer = {"seconds": seconds}
                if setup["device"] == "cuda":
                    answer["peak_bytes"] = torch.cuda.max_memory_allocated()
        except RuntimeError as error:  # out of memory, or no compiler for torch.compile
            answer = {"error": f"{setup['encoder']} in PyTorch: {str(error).splitlines()[0]}"}
        print(json.dumps(answer), flush=True)
        if not math.isfinite(answer.get("loss", 0.0)):
            return


if __name__ == "__main__":
    main()
