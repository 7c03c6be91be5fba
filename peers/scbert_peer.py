"""A checkpoint in scBERT's layout, made by performer-pytorch, and what performer-pytorch says of one.

    PYTHON scbert_peer.py make FOLDER GENES WIDTH LAYERS HEADS HEAD_DIM CELLS
        writes checkpoint.pth (as a training program saves it, after a step of Adam) and answers.npz: tokens int64
        [cells, GENES + 1], logits [cells, GENES + 1, 7] and encodings [cells, GENES + 1, WIDTH] of these
    PYTHON scbert_peer.py answer CHECKPOINT FOLDER
        loads CHECKPOINT strictly into the model of FOLDER, writes FOLDER/answers_again.npz for the same tokens
    PYTHON scbert_peer.py fine_tuned FOLDER HIDDEN VECTOR TYPES
        the model of FOLDER with a head for fine-tuning: writes fine_tuned.pth and fine_tuned.npz: tokens, vectors
        [cells, VECTOR] and logits [cells, TYPES]

PYTHON is one that has torch, numpy and performer-pytorch; this file imports nothing of the package.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from performer_pytorch import PerformerLM


def model_of(genes: int, width: int, layers: int, heads: int, head_dim: int) -> PerformerLM:
    """scBERT's own sizes: 16906 genes, width 200, 6 layers, 10 heads of 64."""
    model = PerformerLM(
        num_tokens=7,
        max_seq_len=genes + 1,
        dim=width,
        depth=layers,
        heads=heads,
        dim_head=head_dim,
        rotary_position_emb=False,
        attn_out_bias=True,
    )
    # In the place of learned positions a frozen table, with nothing for the position after the genes.
    table = torch.cat([torch.randn(genes, width) * 0.3, torch.zeros(1, width)])
    model.pos_emb.emb = torch.nn.Embedding.from_pretrained(table, freeze=True)
    return model


def answers(model: PerformerLM, tokens: torch.Tensor, path: Path) -> None:
    model.eval()
    with torch.no_grad():
        logits, encodings = model(tokens), model(tokens, return_encodings=True)
    np.savez_compressed(path, tokens=tokens.numpy(), logits=logits.numpy(), encodings=encodings.numpy())


def make(folder: Path, genes: int, width: int, layers: int, heads: int, head_dim: int, cells: int) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = model_of(genes, width, layers, heads, head_dim)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, which start at 1 and 0, where mistakes would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith(("to_q.weight", "to_k.weight")):
                parameter.mul_(2.0)  # attention that differs between tokens
    shallow = torch.randint(0, 6, (cells, genes + 1)) * (torch.rand(cells, genes + 1) < 0.3)
    tokens = torch.where(torch.rand(cells, genes + 1) < 0.05, 6, shallow)
    tokens[0] = shallow[0]  # a cell of which nothing is masked, with a gene in the last bin
    tokens[0, 0], tokens[:, -1] = 5, 0
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=15)
    model(tokens[:1]).square().mean().backward()
    optimizer.step()
    schedule.step()
    state = {
        f"module.{name}": tensor for name, tensor in model.state_dict().items()
    }  # as data-parallel training has it
    saved = {
        "epoch": 5,
        "model_state_dict": state,
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(),
        "losses": np.float64(0.5),
    }
    torch.save(saved, folder / "checkpoint.pth")
    sizes = {"genes": genes, "width": width, "layers": layers, "heads": heads, "head_dim": head_dim}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    answers(model, tokens, folder / "answers.npz")


def answer(checkpoint: Path, folder: Path) -> None:
    model = model_of(**json.loads((folder / "sizes.json").read_text()))
    model.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
    tokens = torch.from_numpy(np.load(folder / "answers.npz")["tokens"])
    answers(model, tokens, folder / "answers_again.npz")


class Head(torch.nn.Module):
    """One number of each position, then three layers; scBERT's own sizes are 512, 128 and the number of types."""

    def __init__(self, positions: int, width: int, hidden: int, vector: int, types: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 1, (1, width))
        self.fc1 = torch.nn.Linear(positions, hidden)
        self.fc2 = torch.nn.Linear(hidden, vector)
        self.fc3 = torch.nn.Linear(vector, types)

    def vectors(self, states: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.conv1(states[:, None])).flatten(1)
        return torch.relu(self.fc2(torch.relu(self.fc1(z))))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc3(self.vectors(states))


def fine_tuned(folder: Path, hidden: int, vector: int, types: int) -> None:
    torch.manual_seed(1)
    sizes = json.loads((folder / "sizes.json").read_text())
    model = model_of(**sizes)
    saved = torch.load(folder / "checkpoint.pth", weights_only=False)["model_state_dict"]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in saved.items()}, strict=True)
    model.to_out = Head(sizes["genes"] + 1, sizes["width"], hidden, vector, types)
    torch.save({"epoch": 1, "model_state_dict": model.state_dict()}, folder / "fine_tuned.pth")
    tokens = torch.from_numpy(np.load(folder / "answers.npz")["tokens"])
    model.eval()
    with torch.no_grad():
        vectors = model.to_out.vectors(model(tokens, return_encodings=True))
        logits = model(tokens)
    found = {"tokens": tokens.numpy(), "vectors": vectors.numpy(), "logits": logits.numpy()}
    np.savez_compressed(folder / "fine_tuned.npz", **found)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "make":
        make(Path(arguments[0]), *map(int, arguments[1:]))
    elif what == "fine_tuned":
        fine_tuned(Path(arguments[0]), *map(int, arguments[1:]))
    else:
        answer(Path(arguments[0]), Path(arguments[1]))
