"""What makes a cell the same cell in another file: its barcode and its counts, as numbers of 64 bits.

    barcode     the nucleotides of the cell id, without what studies put around them ("sample1_", "-1", "-1-0", "x")
    counts      sum over features of count * w(feature) modulo 2^64, with a fixed random weight w per feature
    cell key    barcode and counts mixed; two cells have the same key by chance once in 2^64 pairs

The sum is a multilinear hash (Carter and Wegman 1979; Lemire and Kaser 2014, "Strongly universal string hashing is
fast"). It is linear, so the order of columns does not matter, columns that are summed into one feature need not be
summed first, and features without a count do not matter: leaving out the genes that no cell expresses changes nothing.
The weights are BLAKE2b of space and id, so that keys of different files, corpora and machines can be compared.
"""

import hashlib
import re

import numpy as np

from data_pipelines.counter_hash import fold_array

NOT_MEASURED = np.uint64(0)  # the key of a cell in a modality that it has not
_BARCODE = re.compile(r"(?<![A-Za-z0-9])[ACGT]{8,}(?=x?(?![A-Za-z0-9]))")
_MODALITY = re.compile(r":(rna|protein|atac)$")  # what `--unpaired` puts behind an id


def barcode_of(cell_id: str) -> str:
    """The barcode: all words of eight nucleotides or more, joined by "-"; an id without any is its own barcode.

    "AAACCTGAGAAACCAT-1", "donor2_AAACCTGAGAAACCAT-1-0" and "run:AAACCTGAGAAACCATx" (velocyto) are one barcode;
    "ACGTACGT-TTGGCCAA" (combinatorial indexing) is one of sixteen.
    """
    return "-".join(_BARCODE.findall(cell_id)) or _MODALITY.sub("", cell_id)


def barcode_keys(cell_ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: equal for equal barcodes."""
    return _digests([barcode_of(cell_id) for cell_id in cell_ids.tolist()])


def feature_weights(space: str, ids: np.ndarray) -> np.ndarray:
    """uint64 [features]: w of each feature."""
    return _digests([f"{space}\0{name}" for name in ids.tolist()])


def column_weights(weights: np.ndarray, column_to_feature: np.ndarray) -> np.ndarray:
    """uint64 [columns]: w of the feature of each column, 0 where it has none.

    Args:
      weights: uint64 [features].
      column_to_feature: int64 [columns], -1 where a column has no feature.
    """
    return np.append(weights, np.uint64(0))[column_to_feature]


def counts_hashes(indptr: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """uint64 [rows]: the hash of the counts of each row of a CSR matrix; 0 where nothing is counted.

    Args:
      indptr: [rows + 1], from 0 on.
      weights: uint64 [nnz], w of each entry.
      counts: [nnz], whole numbers.
    """
    running = np.zeros(len(counts) + 1, np.uint64)
    np.cumsum(counts.astype(np.uint64) * weights, out=running[1:])  # modulo 2^64, which subtraction undoes
    return running[indptr[1:]] - running[indptr[:-1]]


def cell_keys(barcodes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """uint64 [n], never `NOT_MEASURED`. `barcodes`, `hashes`: uint64 [n]."""
    keys = fold_array(0, barcodes + fold_array(1, hashes))
    return np.where(keys == NOT_MEASURED, np.uint64(1), keys)


def _digests(texts: list[str]) -> np.ndarray:
    """uint64 [n]: the first eight bytes of BLAKE2b."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
