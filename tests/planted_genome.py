"""A genome in which some regions have a motif, as files: for the verbs of DNA, and for pages that speak of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.genome.bases import decode, encode
from data_pipelines.genome.region_matrix import RegionMatrix, write_region_matrix

MOTIF = "TGACGTCA"
JASPAR = ">M1 PLANTED\n" + "\n".join(
    f"{base} [ {' '.join('19' if letter == base else '1' for letter in MOTIF)} ]" for base in "ACGT"
)


def write_planted_genome(folder: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """genome.fa of three chromosomes; peaks.csv, peaks.bed, table.csv.gz: 200 regions of 40 bases on each of them, of
    which half have the motif; motifs.jaspar, variants.vcf, accessibility.npz. Gives the table and the genome."""
    rng = np.random.default_rng(0)
    rows, genome = [], {}
    for name in ("chr1", "chr2", "chr3"):
        codes = rng.integers(0, 4, 200 * 60 + 100).astype(np.uint8)
        for place in range(200):
            start = 50 + 60 * place
            if place % 2:
                first = start + rng.integers(0, 32)
                codes[first : first + 8] = encode(MOTIF)
            rows.append((name, start, start + 40, "open" if place % 2 else "closed"))
        genome[name] = codes
    (folder / "genome.fa").write_text("".join(f">{name}\n{decode(codes)}\n" for name, codes in genome.items()))
    (folder / "motifs.jaspar").write_text(JASPAR + "\n")
    table = pd.DataFrame(rows, columns=["chrom", "start", "end", "label"])
    table.to_csv(folder / "peaks.csv", index=False)
    table[["chrom", "start", "end"]].to_csv(folder / "peaks.bed", sep="\t", index=False, header=False)
    sequences = [decode(genome[name][start:end]) for name, start, end, _ in rows]
    table.assign(sequence=sequences, chromosome=table.chrom)[["sequence", "label", "chromosome"]].to_csv(
        folder / "table.csv.gz", index=False
    )
    chr1 = decode(genome["chr1"])
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT"]
    for start in table.start[:40]:
        base = chr1[start + 19]
        lines.append(f"chr1\t{start + 20}\t.\t{base}\t{'ACGT'['CGTA'.index(base)]}")
    (folder / "variants.vcf").write_text("\n".join([*lines, ""]))
    ids = np.array([f"{row.chrom}:{row.start}-{row.end}" for row in table.itertuples()])
    values = np.stack([table.label == "open", np.arange(600) % 3 == 0], 1).astype(np.float32)
    order = rng.permutation(600)
    matrix = RegionMatrix(ids[order], np.array(["T cell", "B cell"]), sp.csr_array(values[order]))
    write_region_matrix(matrix, folder / "accessibility.npz")
    return table, genome
