"""Names as text, one a line (barcodes, features): read whole, within bounds that real files keep far from."""

import gzip
import zlib
from pathlib import Path

from scmbert_jax.errors import InputError

# 27 million barcodes. A compressed file of a few MB can hold any number of bytes.
MOST_BYTES = 512 << 20
# As arrays, names take four bytes for each character of the longest.
_MOST_ARRAY_BYTES = 4 << 30


def name_lines(path: Path, most_lines: int | None = None) -> list[str]:
    """The lines of a file, plain or gzip, without their ends; empty ones at the end are left out.

    Args:
      most_lines: more are refused before they are looked at; None: any number.

    Raises InputError when it cannot be read, is not UTF-8, or holds more or longer lines than can be names.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); copy or download it again") from error
    text = text.removeprefix(b"\xef\xbb\xbf")
    if len(text) > MOST_BYTES:
        raise InputError(f"{path}: more than {MOST_BYTES >> 20} MiB of text; expected one name a line. Split the file")
    number_of_lines = text.count(b"\n") + 1
    if most_lines is not None and number_of_lines > most_lines:
        raise InputError(
            f"{path}: {number_of_lines:,} lines, where at most {most_lines:,} can have a meaning; it belongs to "
            "another file, or is damaged"
        )
    try:
        lines = text.decode().rstrip("\r\n").split("\n")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line:,}: byte {text[error.start : error.start + 1]!r} is not UTF-8. Write the file "
            "again as UTF-8, e.g. with iconv -f latin1 -t utf-8"
        ) from error
    longest = max(range(len(lines)), key=lambda place: len(lines[place]))
    if len(lines[longest]) * len(lines) * 4 > _MOST_ARRAY_BYTES:
        raise InputError(
            f"{path}, line {longest + 1:,}: {len(lines[longest]):,} characters; {len(lines):,} names of that length "
            "are more than memory should hold. Expected one name a line"
        )
    return [] if lines == [""] else lines
