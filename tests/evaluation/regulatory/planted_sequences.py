"""Sequences, motifs and elements with something planted in them, for the tests of this folder."""

import numpy as np
import pandas as pd

from data_pipelines.genome.bases import decode, encode, reverse_complement
from data_pipelines.genome.motifs import MotifSet

SITE = "TGACTCA"


def motif_set(*texts):
    counts = tuple(np.eye(4)[encode(text)] * 20 for text in texts)
    return MotifSet(tuple(f"M{n}" for n in range(len(texts))), texts, counts, np.full(len(texts), 20.0))


def random_codes(rng, number, length):
    return rng.integers(0, 4, (number, length)).astype(np.uint8)


def with_site(rng, codes, site=SITE):
    """Somewhere, on either strand."""
    for row in codes:
        start, own = rng.integers(0, codes.shape[1] - len(site)), encode(site)
        row[start : start + len(site)] = own if rng.random() < 0.5 else reverse_complement(own)
    return codes


def has_site(codes):
    text, turned = (decode(own) for own in (codes, reverse_complement(np.asarray(codes))))
    return SITE in text or SITE in turned


def write_set(folder, rng, positives, sizes=(300, 80, 160), length=40):
    """train, dev and test: half as they are drawn, half changed by `positives`."""
    folder.mkdir()
    for part, number in zip(("train", "dev", "test"), sizes, strict=True):
        codes = random_codes(rng, number, length)
        labels = np.arange(number) % 2
        codes[labels == 1] = positives(codes[labels == 1])
        table = pd.DataFrame({"sequence": [decode(row) for row in codes], "label": labels})
        table.to_csv(folder / f"{part}.csv.gz", index=False)
    return folder


def changed(codes, place, base):
    """A base replaced; 4: deleted."""
    middle = np.array([base] if base < 4 else [], np.uint8)
    return np.concatenate([codes[:place], middle, codes[place + 1 :]])


def write_elements(path, rng, names, sequences, starts, effect):
    """Every change of every base, with its effect and some noise."""
    rows = []
    for name, codes, start in zip(names, sequences, starts, strict=True):
        for place in range(len(codes)):
            for base in set(range(5)) - {int(codes[place])}:
                value = effect(changed(codes, place, base)) + rng.normal(0, 0.05)
                reference, alternate = "ACGT"[codes[place]], "ACGT-"[base]
                rows.append(("1", start + place + 1, reference, alternate, 10, value, name, "hg38"))
    columns = ["Chrom", "Pos", "Ref", "Alt", "Barcodes", "Coefficient", "Element", "Release"]
    pd.DataFrame(rows, columns=columns).to_csv(path, sep="\t", index=False)
    return path
