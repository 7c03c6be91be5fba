"""What a reader of one format is. Each stands at the end of its own file, and in one line of `open_dataset.READERS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.reading_options import DEFAULT_READING, ReadingOptions


class Cells(NamedTuple):
    """Barcodes that are cells, and who says so."""

    barcodes: Sequence[str]
    said_by: str


@dataclass(frozen=True)
class Request:
    """What a reader is asked to read.

    Attributes:
      place: a path, or whatever else the reader recognises, without the options behind its "?".
      name: of the data set; None: as the reader finds it.
      reading: what was decided about the file.
      options: those of `Reader.options` that stood behind the "?".
      partners: the cells of the files that it is joined to by `+`; only for a reader that is `opened_last`.
    """

    place: str
    name: str | None = None
    reading: ReadingOptions = DEFAULT_READING
    options: dict[str, str] = field(default_factory=dict)
    partners: Cells | None = None

    @property
    def path(self) -> Path:
        return Path(self.place)


class Reader(NamedTuple):
    """One format.

    Attributes:
      recognises: whether a place is for it: a path that exists, or a text that is none. Looks at names and at the first
        bytes, never at all of a file, and raises nothing.
      read: opens it: names and metadata, and values that are read later (`CountsMatrix.stored`). Raises InputError
        where the place is damaged, or a decision about it is missing. A list of one, but of a store of many data sets.
      accepts: what people are told that they can give: ".h5ad".
      options: names of options of its own, which may stand behind the "?".
      opened_last: among files joined by `+` it is opened after the others, and told their cells.
    """

    recognises: Callable[[str], bool]
    read: Callable[[Request], list[Dataset]]
    accepts: str
    options: tuple[str, ...] = ()
    opened_last: bool = False
