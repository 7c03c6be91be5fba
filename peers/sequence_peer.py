"""Our sequence encoder, or a BERT of its size, in PyTorch, as a process that does what it is asked.

    PYTHON sequence_peer.py FOLDER

FOLDER holds setup.json (the fields are read in `main`), params.npz (ours, by dotted name) and batch.npz (codes of
bases, hidden positions). Masked modelling of bases: a token per base, cross-entropy of the hidden ones, fused AdamW.
Run by a Python of its own, which has torch and nothing of the package.

Its first line says its version, its parameters, and the loss of the batch with the given hidden positions. It answers
`step N` with the seconds of N training steps, each with hidden positions of its own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch_peer import modules


def build(torch, setup: dict, params: dict):
    """Module: (codes int64 [B, L], positions int64 [B, M]) -> mean loss."""
    from torch import nn
    from torch.nn import functional as F

    dim, own = setup["embed_dim"], modules(torch, setup, params)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.places = own.matrix("stem.project", 5), own.vector("places")
            self.encoder = own.encoder()
            self.head, self.head_bias = own.matrix("head", dim), own.vector("head_bias")

        def forward(self, codes, positions):
            shown = codes.scatter(1, positions, 4)  # the fifth channel says that a base is hidden
            x = F.linear(F.one_hot(shown, 5).to(self.project.dtype), self.project) + self.places[None, 1:]
            x = torch.cat([self.places[:1].expand(len(x), 1, dim), x], dim=1)
            states = self.encoder(x, torch.ones(x.shape[:2], dtype=torch.bool))
            at_hidden = states.gather(1, positions[..., None].expand(-1, -1, dim) + 1)
            logits = F.linear(at_hidden, self.head, self.head_bias)
            return F.cross_entropy(logits.flatten(0, 1), codes.gather(1, positions).flatten())

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
    torch.set_num_threads(setup["threads"])
    torch.manual_seed(0)
    with np.load(folder / "params.npz") as saved:
        params = {name: saved[name] for name in saved.files}
    with np.load(folder / "batch.npz") as saved:
        codes, positions = (torch.from_numpy(saved[name]).long() for name in ("codes", "positions"))
    model = build(torch, setup, params)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.01},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-8, fused=True)
    with torch.no_grad():
        loss = float(model(codes, positions))
    number = sum(p.numel() for p in model.parameters())
    print(json.dumps({"torch": torch.__version__, "parameters": number, "loss": loss}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line.split()[1])):
            drawn = torch.rand(codes.shape).argsort(dim=1)[:, : positions.shape[1]]
            optimizer.zero_grad(set_to_none=True)
            model(codes, drawn).backward()
            optimizer.step()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
