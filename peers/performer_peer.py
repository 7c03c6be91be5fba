"""performer-pytorch as a process that does what it is asked; run by a Python of its own that has torch.

    PYTHON performer_peer.py SIZES      SIZES: one JSON object, the fields of `EncoderSizes` and `threads`; also
                                        `cells` (of a batch), `device` and `dtype`; absent: 1, "cpu", "float32"

Answers each line of standard input with one line of JSON. `forward`, `step`: seconds of one call. `attention FOLDER`:
reads q, k, v, cotangent [H, S, D] and directions [M, D] there (raw float32, as FOLDER/NAME), writes out, q_bar, k_bar,
v_bar. This file imports nothing of the package: that Python does not have it.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    sizes = json.loads(sys.argv[1])
    try:
        import torch
        from performer_pytorch import FastAttention, Performer
    except ImportError as error:
        print(json.dumps({"error": f"{sys.executable}: {error}"}), flush=True)
        return
    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    device, low = sizes.get("device", "cpu"), sizes.get("dtype", "float32") == "bfloat16"

    def tensor(folder: Path, name: str, *shape: int):
        data = bytearray((folder / name).read_bytes())
        return torch.frombuffer(data, dtype=torch.float32).reshape(shape)

    def attention(folder: Path) -> dict:
        shapes = json.loads((folder / "shapes.json").read_text())
        arrays = {name: tensor(folder, name, *shape) for name, shape in shapes.items()}
        features, dim = arrays["directions"].shape
        attend = FastAttention(dim_heads=dim, nb_features=features)
        attend.projection_matrix.copy_(arrays["directions"])
        leaves = [arrays[name][None].requires_grad_() for name in ("q", "k", "v")]
        out = attend(*leaves)
        (out[0] * arrays["cotangent"]).sum().backward()
        for name, x in zip(("out", "q_bar", "k_bar", "v_bar"), (out, *(leaf.grad for leaf in leaves)), strict=True):
            (folder / name).write_bytes(bytes(x.detach().contiguous().view(torch.uint8).flatten().tolist()))
        return {}

    model = Performer(
        dim=sizes["width"],
        depth=sizes["layers"],
        heads=sizes["heads"],
        dim_head=sizes["head_dim"],
        ff_mult=sizes["mlp"] // sizes["width"],
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x = torch.randn(sizes.get("cells", 1), sizes["tokens"], sizes["width"], device=device)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=low):
            model(x)

    def step() -> None:
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()

    calls = {"forward": forward, "step": step}
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        what, _, folder = line.strip().partition(" ")
        if what == "attention":
            print(json.dumps(attention(Path(folder))), flush=True)
            continue
        start = time.perf_counter()
        calls[what]()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
