"""A corpus as TensorFlow Datasets reads it: `tfds.builder_from_directory(corpus).as_dataset(split="train")`.

An element is one block of cells, as a dict of tensors; `Corpus.read_block` holds the same arrays:

    cell_index                       int64 [n], place of each cell in the corpus
    obs_codes/{field}                int32 [n], index into the vocabulary in manifest.json; -1 where unknown
    modalities/{modality}/measured   bool [n]; false in all cells where the block lacks the modality
                          lengths        int32 [n], expressed features of each cell
                          total_counts   uint64 [n]
                          feature_ids    int32 [nnz], within the modality, cell after cell
                          counts         uint32 [nnz]

`tf.RaggedTensor.from_row_lengths(counts, lengths)` gives cells. Only TensorFlow Datasets imports this file, by the name
that `features.json` of a corpus gives. Training reads a corpus by step instead (`batches`), and is faster.
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines.corpus import cell_block
from data_pipelines.corpus.cell_block import ModalityColumns

_COLUMNS = {
    "measured": bool,
    "lengths": np.int32,
    "total_counts": np.uint64,  # of each cell
    "feature_ids": np.int32,
    "counts": np.uint32,
}


class CellBlocks(tfds.features.FeatureConnector):
    """Decodes a record of a shard.

    Args:
      modalities, obs_fields: of the corpus, in their order.
    """

    def __init__(self, modalities: list[str], obs_fields: list[str]):
        self._modalities, self._obs_fields = modalities, obs_fields

    def get_tensor_info(self) -> dict[str, Any]:
        def column(dtype: Any) -> tfds.features.TensorInfo:
            return tfds.features.TensorInfo(shape=(None,), dtype=np.dtype(dtype))

        return {
            "cell_index": column(np.int64),
            "obs_codes": {field: column(np.int32) for field in self._obs_fields},
            "modalities": {
                name: {part: column(dtype) for part, dtype in _COLUMNS.items()} for name in self._modalities
            },
        }

    def get_serialized_info(self) -> dict[str, Any]:
        """What a record is: a `tf.train.Example` with one string."""
        return {"block": tfds.features.TensorInfo(shape=(), dtype=np.object_)}

    def encode_example(self, example_data: Any) -> Any:
        raise NotImplementedError("a corpus is written by `scmbert corpus build`, not by TensorFlow Datasets")

    def decode_example(self, example: dict[str, Any], *, decoders: Any = None) -> dict[str, Any]:
        """Raises ValueError for `decoders`: there is one way to decode a block."""
        if decoders is not None:
            raise ValueError("the blocks of a corpus take no decoders")
        info = self.get_tensor_info()
        flat = tf.nest.flatten(info)
        arrays = tf.numpy_function(self._decode, [example["block"]], [part.tf_dtype for part in flat], stateful=False)
        for array in arrays:
            array.set_shape((None,))
        return tf.nest.pack_sequence_as(info, arrays)

    def _decode(self, record: bytes) -> list[np.ndarray]:
        block = cell_block.decode(record)
        none = ModalityColumns(*(np.zeros(0, np.int32),) * 5)._replace(
            **{name: np.zeros(block.num_cells, _COLUMNS[name]) for name in ("lengths", "total_counts", "measured")}
        )
        modalities = {name: block.modalities.get(name, none)._asdict() for name in self._modalities}
        whole = {
            "cell_index": block.cell_index,
            "obs_codes": {field: block.obs_codes[field] for field in self._obs_fields},
            "modalities": {
                name: {part: np.asarray(columns[part], dtype) for part, dtype in _COLUMNS.items()}
                for name, columns in modalities.items()
            },
        }
        return tf.nest.flatten(whole)

    def to_json_content(self) -> dict[str, Any]:
        return {"modalities": self._modalities, "obs_fields": self._obs_fields}

    @classmethod
    def from_json_content(cls, value: dict[str, Any], doc: Any = None) -> "CellBlocks":
        return cls(**value)
