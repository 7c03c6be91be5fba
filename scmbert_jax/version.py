"""The version of this package."""

from pathlib import Path

VERSION = (Path(__file__).parent / "VERSION").read_text().strip()
