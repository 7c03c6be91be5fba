"""What strangers wrote, made harmless where it is said or written: no secrets, no control characters, no markup."""

import contextlib
import re
import sys
import unicodedata

# Parameters of specs such as soma:s3://bucket/store?organism=human that say what is read; any other value of a query
# may be a signature or a token.
_PLAIN_PARAMETERS = {
    *("organism", "measurement", "obs_value_filter", "dataset_id", "layer", "assay", "assembly", "regions"),
    *("full_length", "gene_lengths", "region_links", "barcodes", "min_fragments", "fragment_counts"),
}
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s?#]*@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?#]*)\?([^\s'\"]*)")
# Of the format characters those that turn the direction of text, and thus what a line seems to say.
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff")
_MARKUP = re.compile(r"[\\`*\[\]|]|(?<!\w)[_~]|[_~](?!\w)")


def without_secrets(text: str) -> str:
    """Text in which no URL has a user, a password or the values of a signed query: `https://***@host/x?sig=***`."""

    def masked(parameter: str) -> str:
        name, equals, value = parameter.partition("=")
        if not value:
            return "***" if name and not equals else parameter
        return parameter if name in _PLAIN_PARAMETERS else f"{name}=***"

    def query(found: re.Match[str]) -> str:
        return f"{found[1]}?{'&'.join(map(masked, found[2].split('&')))}"

    return _QUERY.sub(query, _USER.sub(r"\1***@", text))


def printable(text: str) -> str:
    """Text without characters that a terminal obeys; they are spelt out (`\\x1b`). Line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelt(character) if _is_obeyed(character) else character for character in text)


def _is_obeyed(character: str) -> bool:
    return character in _TURNING or (character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"))


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode()


def say(message: str) -> None:
    """Tells people, on standard error. Where nobody can listen (a terminal that was closed, a log on a full disk) the
    exit code has to do."""
    with contextlib.suppress(OSError):
        print(printable(without_secrets(message)), file=sys.stderr, flush=True)


def markdown(text: str) -> str:
    """Text as it stands, in a paragraph, a list or a table of Markdown: one line, no markup, no HTML."""
    line = printable(" ".join(text.split()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda found: f"\\{found[0]}", line)


def code(text: str) -> str:
    """Text between backticks of Markdown, in a table or elsewhere."""
    return f"`{printable(' '.join(text.split())).replace('`', chr(39)).replace('|', '/')}`"
