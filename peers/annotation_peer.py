"""scBERT after fine-tuning, in performer-pytorch, as a process that annotates cells when it is asked.

    PYTHON annotation_peer.py SIZES      SIZES: one JSON object: width, layers, heads, head_dim, hidden, vector, types,
                                         cells (of a call), threads

Answers each line of standard input, a number of genes, with one line of JSON: the seconds of one call, from tokens
[cells, genes + 1] to logits [cells, types]. This file imports nothing of the package: that Python does not have it.
"""

import json
import sys
import time


def main() -> None:
    sizes = json.loads(sys.argv[1])
    try:
        import torch
        from scbert_peer import Head, model_of
    except ImportError as error:
        print(json.dumps({"error": f"{sys.executable}: {error}"}), flush=True)
        return
    torch.set_num_threads(sizes["threads"])
    print(json.dumps({"torch": torch.__version__}), flush=True)
    made = {}
    for line in sys.stdin:
        genes = int(line)
        if genes not in made:
            torch.manual_seed(0)
            shape = {name: sizes[name] for name in ("width", "layers", "heads", "head_dim")}
            model = model_of(genes, **shape)
            model.to_out = Head(genes + 1, sizes["width"], sizes["hidden"], sizes["vector"], sizes["types"])
            made[genes] = model.eval(), torch.randint(0, 6, (sizes["cells"], genes + 1))
        model, tokens = made[genes]
        start = time.perf_counter()
        with torch.inference_mode():
            model(tokens)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
