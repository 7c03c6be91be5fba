"""How large the numbers of the command line may be: what no machine has is refused before anything is made of it."""

import dataclasses
import math
from typing import Any

from scmbert_jax.errors import ConfigError

_LARGEST = 1 << 53  # of a number that has no limit of its own
# Name of an option of any verb -> the most it may be.
_MOST = {
    "batch_size": 1 << 16,
    "batches": 1 << 20,
    "block_size": 1 << 20,
    "cache_gigabytes": 1e9,
    "draws": 10_000,
    "embed_dim": 1 << 16,
    "k": 100_000,
    "layers": 1_000,
    "multiple_of": 1 << 16,
    "num_layers": 1_000,
    "num_processes": 1 << 20,
    "num_seeds": 1_000,
    "num_tokens": 1 << 20,
    "peer_rounds": 10_000,
    "reader_prefetch": 1 << 16,
    "reader_threads": 4_096,
    "rounds": 10_000,
    "starts": 10_000,
    "steps_per_round": 1 << 20,
    "threads": 4_096,
    "tokens": 1 << 20,
    "workers": 4_096,
}
_LEAST = {"k": 1, "draws": 1, "min_genes": 0}


def check_numbers(verb: Any) -> None:
    """Raises ConfigError where a number of a verb (a dataclass) is out of its bounds; it names the option."""
    for field in dataclasses.fields(verb):
        given = getattr(verb, field.name)
        if dataclasses.is_dataclass(given):
            check_numbers(given)
        for number in given if isinstance(given, tuple) else (given,):
            if type(number) not in (int, float) or (type(number) is float and not math.isfinite(number)):
                continue
            option = f"--{field.name.replace('_', '-')} {number:,}"
            if number > (most := _MOST.get(field.name, _LARGEST)):
                raise ConfigError(f"{option}: expected at most {most:,}.")
            if number < (least := _LEAST.get(field.name, -_LARGEST)):
                raise ConfigError(f"{option}: expected {least:,} or more.")
