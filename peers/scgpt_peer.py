"""A checkpoint in scGPT's layout, made of torch's own modules, and what it says of some cells.

    PYTHON scgpt_peer.py FOLDER WIDTH LAYERS HEADS FEED_FORWARD BINS CELLS
        of the genes in FOLDER/genes.txt, one per line: writes best_model.pt, args.json, vocab.json and answers.npz:
        counts int64 [cells, genes], encodings float32 [cells, 1 + genes, WIDTH], `<cls>` first, 0 of genes without a
        count, which are no tokens

PYTHON is one that has torch and numpy; this file imports nothing of the package.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

SPECIAL = ("<pad>", "<cls>", "<eoc>")


class Genes(nn.Module):
    def __init__(self, number: int, width: int):
        super().__init__()
        self.embedding, self.enc_norm = nn.Embedding(number, width), nn.LayerNorm(width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.enc_norm(self.embedding(ids))


class Values(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear1, self.linear2, self.norm = nn.Linear(1, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear2(torch.relu(self.linear1(values[..., None]))))


class Model(nn.Module):
    def __init__(self, number: int, width: int, layers: int, heads: int, feed_forward: int):
        super().__init__()
        self.encoder, self.value_encoder = Genes(number, width), Values(width)
        layer = nn.TransformerEncoderLayer(width, heads, feed_forward, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decoder = nn.ModuleDict(
            {"fc": nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1))}
        )

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.transformer_encoder(self.encoder(ids) + self.value_encoder(values))


def bins_of(counts: np.ndarray, bins: int) -> np.ndarray:
    """float [n] of counts above 0 [n]: between which quantiles of the cell's own values each lies, from 1."""
    edges = np.quantile(counts, np.linspace(0, 1, bins - 1))
    return np.digitize(counts, edges).astype(np.float32)


def make(folder: Path, width: int, layers: int, heads: int, feed_forward: int, bins: int, cells: int) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    names = [*(folder / "genes.txt").read_text().split(), *SPECIAL]
    genes = len(names) - len(SPECIAL)
    model = Model(len(names), width, layers, heads, feed_forward).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, which start at 1 and 0, where mistakes would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "in_proj" in name:
                parameter.mul_(2.0)  # attention that differs between tokens
    # No count twice in a cell: of equal values, scGPT draws the bin.
    counts = np.stack([rng.permutation(3 * genes)[:genes] + 1 for _ in range(cells)])
    counts[rng.random(counts.shape) < 0.4] = 0
    encodings = np.zeros((cells, 1 + genes, width), np.float32)
    for cell, own in enumerate(counts):
        shown = np.flatnonzero(own)
        ids = torch.tensor([[names.index("<cls>"), *shown.tolist()]])
        values = torch.tensor(np.concatenate([[0], bins_of(own[shown], bins)])[None], dtype=torch.float32)
        with torch.no_grad():
            encodings[cell, np.concatenate([[0], 1 + shown])] = model(ids, values)[0].numpy()
    torch.save(model.state_dict(), folder / "best_model.pt")
    settings = {"nheads": heads, "n_bins": bins, "max_seq_len": genes + 1, "input_emb_style": "continuous"}
    (folder / "args.json").write_text(json.dumps(settings) + "\n")
    (folder / "vocab.json").write_text(json.dumps({name: place for place, name in enumerate(names)}) + "\n")
    np.savez_compressed(folder / "answers.npz", counts=counts, encodings=encodings)


if __name__ == "__main__":
    make(Path(sys.argv[1]), *map(int, sys.argv[2:]))
