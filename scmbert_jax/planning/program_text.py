"""What a compiled program moves between chips, read from the text of its HLO.

XLA says nowhere how often a collective runs: the text holds the body of a loop once. So the text is read as a graph of
computations, and each collective counts as often as the loops around it run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scmbert_jax.errors import ConfigError

_ITEM_BYTES = {"pred": 1, "f8": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_ITEM_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "token": 0}

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_OPERAND = re.compile(r"%([\w.\-]+)")


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: `all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all` or `collective-permute`.
      payload: bytes of the whole array on one chip: what is gathered, reduced, exchanged or passed on.
      group: chips that take part in one.
      nodes: nodes (or slices) among which a group is spread.
      times: how often it runs in a step.
    """

    kind: str
    payload: int
    group: int
    nodes: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a chip sends each time, by the ring (Thakur et al. 2005): no algorithm sends fewer."""
        if self.kind == "collective-permute":
            return self.payload
        sent = self.payload * (self.group - 1) / self.group
        return 2 * sent if self.kind == "all-reduce" else sent

    @property
    def sent_between_nodes(self) -> float:
        """Of them, those that leave a node, spread evenly over its chips of the group."""
        if self.nodes == 1:
            return 0.0
        if self.kind == "collective-permute":
            return self.payload
        sent = self.payload * (self.nodes - 1) / self.nodes / (self.group / self.nodes)
        return 2 * sent if self.kind == "all-reduce" else sent


@dataclass
class _Computation:
    """Its collectives, each once; the computations it calls, and how often; its instructions by name, for loops."""

    name: str
    instructions: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # name -> (type, opcode, rest)
    root: str = ""


def collectives_of(text: str, chips_per_node: int) -> tuple[Collective, ...]:
    """The collectives of a step, from `compiled.as_text()`. Those among one chip are left out."""
    computations, entry = _read(text)
    header = text.partition("\n")[0]
    counts = re.search(r"num_partitions=(\d+)", header) or re.search(r"replica_count=(\d+)", header)
    num_chips = int(counts[1]) if counts else 1
    times = _times(computations, entry)
    found: list[Collective] = []
    in_parts: set[str] = set()
    for computation in computations.values():
        number = times.get(computation.name, 0)
        if not number:
            continue
        for type_text, opcode, rest in computation.instructions.values():
            kind = opcode.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", rest)
            if "async_collective_fusion" in computation.name and channel:
                # The TPU compiler spreads one collective over several fusions, each of which holds it.
                if channel[1] in in_parts:
                    continue
                in_parts.add(channel[1])
            groups = _groups(rest, num_chips)
            group = len(groups[0])
            if group < 2:
                continue
            payload = _bytes(_result(type_text, opcode))
            if kind == "reduce-scatter":
                payload *= group
            elif kind == "all-reduce" and "all-reduce-scatter" in computation.name:
                kind = "reduce-scatter"  # fused: reduced, and each chip keeps its part
            nodes = max(len({chip // chips_per_node for chip in row}) for row in groups)
            kind = kind.removeprefix("ragged-")
            found.append(Collective(kind, payload, 2 if kind == "collective-permute" else group, nodes, number))
    return tuple(found)


def summary(collectives: tuple[Collective, ...]) -> dict[str, dict[str, int]]:
    """kind -> instructions, times they run in a step, bytes of payload of a step."""
    table: dict[str, dict[str, int]] = {}
    for one in collectives:
        row = table.setdefault(one.kind, {"instructions": 0, "times": 0, "bytes": 0})
        row["instructions"] += 1
        row["times"] += one.times
        row["bytes"] += one.payload * one.times
    return dict(sorted(table.items()))


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, now = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header and not line.startswith((" ", "HloModule")):
            now = computations[header[2]] = _Computation(header[2])
            entry = header[2] if header[1] else entry
            continue
        instruction = _INSTRUCTION.match(line)
        if now is None or instruction is None:
            continue
        type_text, rest = _split_type(instruction[2])
        opcode, _, rest = rest.partition("(")
        now.instructions[instruction[1]] = (type_text, opcode, rest)
        if line.lstrip().startswith("ROOT "):
            now.root = instruction[1]
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """`(f32[2]{0}, s32[]) while(...)` -> the type, and what follows."""
    if not text.startswith("("):
        type_text, _, rest = text.partition(" ")
        return type_text, rest
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :].lstrip()
    return text, ""


def _elements(type_text: str) -> list[str]:
    """The parts of a tuple type at its top level; of another type, itself."""
    if not type_text.startswith("("):
        return [type_text]
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(type_text):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            parts.append(type_text[start:place])
            start = place + 1
    return parts


def _result(type_text: str, opcode: str) -> str:
    """The type of what a collective gives; what starts one holds (operands, results, ...), except an all-reduce."""
    if opcode.endswith("-start") and opcode != "all-reduce-start":
        return _elements(type_text)[1]
    return type_text


def _bytes(type_text: str) -> int:
    total = 0
    for name, sizes in _ARRAY.findall(type_text):
        number = 1
        for size in sizes.split(",") if sizes else []:
            number *= int(size)
        total += number * _ITEM_BYTES.get(name, 1 if name.startswith("f8") else 4)
    return total


def _groups(rest: str, num_chips: int) -> list[list[int]]:
    """The chips of each group: `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)` or axes of a mesh; or pairs, of a
    permutation. `{}`: all chips."""
    if "replica_groups={}" in rest:
        return [list(range(num_chips))]
    pairs = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest)
    if pairs:
        return [[int(chip) for chip in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", pairs[1])]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, sides = (tuple(map(int, part.split(","))) for part in iota.group(1, 2))
        chips = np.arange(np.prod(sides)).reshape(sides)
        chips = chips.transpose([int(axis) for axis in iota[3].split(",")]) if iota[3] else chips
        return chips.reshape(-1, shape[-1]).tolist()
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", rest
    )
    if mesh:
        return _mesh_groups(*mesh.groups())
    raise ConfigError(
        f"a collective of the compiled program names its groups in a way this version cannot read: {rest[:300]}. "
        "Report it, with the versions of jax and of the compiler."
    )


def _mesh_groups(axes: str, order: str | None, transposed: str | None, used: str) -> list[list[int]]:
    """`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`; of an axis perhaps a part, `'b':(2)2`: the parts before, its
    size."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    chips = np.arange(np.prod(list(sizes.values())))
    if order:
        chips = chips.reshape([int(side) for side in order.split(",")])
        chips = chips.transpose([int(axis) for axis in transposed.split(",")]) if transposed else chips
    wanted = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", used)
    }
    sides: list[int] = []
    among: list[int] = []
    for name, size in sizes.items():
        before, part = wanted.get(name, (size, 1))
        sides += [before, part, size // (before * part)]
        among += [len(sides) - 2] if name in wanted else []
    kept = [place for place in range(len(sides)) if place not in among]
    number = int(np.prod([sides[place] for place in among]))
    return chips.reshape(sides).transpose([*kept, *among]).reshape(-1, number).tolist()


# --- loops -----------------------------------------------------------------------------------------------------------


def _called(opcode: str, rest: str) -> Iterator[tuple[str, str]]:
    """(role, computation) of those that an instruction runs."""
    if opcode.endswith(("-done", "-update")):
        return  # what was started counts where it was started
    for role, names in _CALLED.findall(rest):
        for name in names.strip("{}").split(","):
            yield role, name.strip().lstrip("%")


def _times(computations: dict[str, _Computation], entry: str) -> dict[str, int]:
    """Computation -> how often it runs in a step."""
    times: dict[str, int] = {}

    def run(name: str, number: int) -> None:
        if name not in computations:
            return
        times[name] = times.get(name, 0) + number
        for instruction, (_, opcode, rest) in computations[name].instructions.items():
            trips = _trip_count(computations, computations[name], instruction) if opcode == "while" else 1
            for role, called in _called(opcode, rest):
                if opcode not in ("all-reduce", "reduce-scatter", "reduce", "scatter", "sort"):
                    run(called, number * (trips if role in ("body", "condition") else 1))

    run(entry, 1)
    return times


def _trip_count(computations: dict[str, _Computation], around: _Computation, loop: str) -> int:
    """How often a loop runs: as the compiler notes it, or by its condition `counter < constant`; 1 if neither says."""
    _, _, rest = around.instructions[loop]
    noted = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', rest)
    if noted:
        return int(noted[1])
    parts = dict(_called("while", rest))
    condition, body = computations.get(parts.get("condition", "")), computations.get(parts.get("body", ""))
    if condition is None or body is None or not condition.root:
        return 1
    compare = condition.instructions[condition.root]
    sides = _OPERAND.findall(compare[2].partition(")")[0])
    if compare[1] != "compare" or "direction=LT" not in compare[2] or len(sides) != 2:
        return 1
    stop, place = _constant(condition, sides[1]), _index(condition, sides[0])
    if stop is None or place is None:
        return 1
    first = 0
    start = _OPERAND.findall(rest.partition(")")[0])
    if start and start[0] in around.instructions:
        values = _OPERAND.findall(around.instructions[start[0]][2].partition(")")[0])
        first = (_constant(around, values[place]) or 0) if place < len(values) else 0
    return max(1, -(-(stop - first) // _step(body, place)))


def _constant(computation: _Computation, name: str) -> int | None:
    _, opcode, rest = computation.instructions.get(name, ("", "", ""))
    if opcode in ("copy", "convert", "bitcast"):
        inner = _OPERAND.findall(rest.partition(")")[0])
        return _constant(computation, inner[0]) if inner else None
    value = re.match(r"(-?\d+)\)", rest)
    return int(value[1]) if opcode == "constant" and value else None


def _index(computation: _Computation, name: str) -> int | None:
    """Which element of the loop's state a value is."""
    _, opcode, rest = computation.instructions.get(name, ("", "", ""))
    if opcode in ("copy", "convert", "bitcast"):
        inner = _OPERAND.findall(rest.partition(")")[0])
        return _index(computation, inner[0]) if inner else None
    place = re.search(r"index=(\d+)", rest)
    return int(place[1]) if opcode == "get-tuple-element" and place else None


def _step(body: _Computation, place: int) -> int:
    """By how much an iteration moves the counter."""
    values = _OPERAND.findall(body.instructions[body.root][2].partition(")")[0]) if body.root else []
    if place < len(values):
        name = values[place]
        _, opcode, rest = body.instructions.get(name, ("", "", ""))
        while opcode in ("copy", "bitcast"):
            name = _OPERAND.findall(rest.partition(")")[0])[0]
            _, opcode, rest = body.instructions.get(name, ("", "", ""))
        if opcode == "add":
            steps = [_constant(body, side) for side in _OPERAND.findall(rest.partition(")")[0])]
            return next((step for step in steps if step), 1)
    return 1
