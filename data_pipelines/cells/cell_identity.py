"""What makes a cell the same cell in another file: its barcode and its counts, as numbers of 64 bits.

    barcode     the nucleotides of the cell id, without what studies put around them ("sample1_", "bcells", "-1-0", "x")
    counts      sum over features of count * w(feature) modulo 2^64, with a fixed random weight w per feature
    cell key    barcode and counts mixed; two cells have the same key by chance once in 2^64 pairs

The sum is a multilinear hash (Carter and Wegman 1979; Lemire and Kaser 2014, "Strongly universal string hashing is
fast"). It is linear, so the order of columns does not matter, columns that are summed into one feature need not be
summed first, and features without a count do not matter: leaving out the genes that no cell expresses changes nothing.
The weights are BLAKE2b of space and id, so that keys of different files, corpora and machines can be compared.
"""

import hashlib
import re

import numba
import numpy as np

from data_pipelines.counter_hash import fold_array

NOT_MEASURED = np.uint64(0)  # the key of a cell in a modality that it has not
KEY_VERSION = 2  # of keys that are stored: another reading of barcodes or counts makes them incomparable
BARCODES = 737_280  # the shortest list of 10x, v2: chance gives n1 * n2 / 737,280 cells the barcode of another
GROUPS = 8  # of features, for hashes of a part of them
_BARCODE = re.compile(r"(?<![A-Z])[ACGT]{8,}(?=x?(?![A-Za-z0-9]))")
_MODALITY = re.compile(r":(rna|protein|atac)$")  # what `--unpaired` puts behind an id


def barcode_of(cell_id: str) -> str:
    """The barcode: the words of eight nucleotides or more, the longest of them if they are not of one length, each
    once, joined by "-"; an id without any is its own barcode.

    "AAACCTGAGAAACCAT-1", "donor2_AAACCTGAGAAACCAT-1-0", "bcellsAAACCTGAGAAACCAT-1" and "run:AAACCTGAGAAACCATx"
    (velocyto) are one barcode, and so is one beside the index of its sample; "ACGTACGT-TTGGCCAA" (combinatorial
    indexing) is one of sixteen.
    """
    words = dict.fromkeys(_BARCODE.findall(cell_id))
    longest = max(map(len, words), default=0)
    return "-".join(word for word in words if len(word) == longest) or _MODALITY.sub("", cell_id)


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


@numba.njit(nogil=True, cache=True)
def add_to_groups(
    sums: np.ndarray,
    places: np.ndarray,
    rows: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Adds hashes of the counts of some rows of a CSR matrix, one for each of `GROUPS` groups of columns.

    A column belongs into the group that its weight says, which is the same in every set.

    Args:
      sums: uint64 [places, GROUPS].
      places, rows: int64 [n], where the sum of each row belongs, and the rows.
      indptr, indices, counts: of the matrix; whole numbers.
      weights: uint64 [columns]; 0 for columns that do not count.
    """
    for number in range(len(rows)):
        for entry in range(indptr[rows[number]], indptr[rows[number] + 1]):
            weight = weights[indices[entry]]
            group = (weight >> np.uint64(32)) % np.uint64(GROUPS)  # as random as the weight
            sums[places[number], group] += np.uint64(counts[entry]) * weight


def cell_keys(barcodes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """uint64 [n], never `NOT_MEASURED`. `barcodes`, `hashes`: uint64 [n]."""
    keys = fold_array(0, barcodes + fold_array(1, hashes))
    return np.where(keys == NOT_MEASURED, np.uint64(1), keys)


def _digests(texts: list[str]) -> np.ndarray:
    """uint64 [n]: the first eight bytes of BLAKE2b."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
