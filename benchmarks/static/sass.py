"""Disassembled machine code as a graph: basic blocks, their successors, and the source lines that they come from.

The input is what `nvdisasm -c -gi` prints of a cubin that was compiled with `-lineinfo`; without line information
(`nvdisasm -c`) the graph is the same and its instructions have no lines.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\S+):$")
_PLACE = re.compile(r'//## File "([^"]+)", line (\d+)')
_CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][A-Z0-9]*)(\S*)(.*)")
_TARGET = re.compile(r"`\(([^)]+)\)")


class Place(NamedTuple):
    """A line of source."""

    file: str
    line: int


@dataclass(frozen=True)
class Instruction:
    opcode: str  # without its modifiers: "LDS" of "LDS.128"
    modifiers: str  # ".128"
    operands: str
    guarded: bool  # runs under a predicate
    places: tuple[Place, ...]  # the line it comes from, then the calls that were inlined to get there
    certain: bool  # whether they are told of this block; else they are those of the code above its label

    @property
    def targets(self) -> tuple[str, ...]:
        """Labels that it names."""
        if found := re.search(r'BRANCH_TARGETS ([^"]+)', self.operands):
            return tuple(found[1].split(","))
        return tuple(_TARGET.findall(self.operands))


@dataclass
class Block:
    """Instructions that run one after another."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    successors: tuple[int, ...] = ()

    @property
    def ends(self) -> bool:
        """Whether the kernel may end here; a guarded EXIT has a successor too."""
        return not self.successors or self.instructions[-1].opcode in ("EXIT", "RET")


def disassemble(
    cubin: bytes,
    nvdisasm: str,  # path of the tool
) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([nvdisasm, "-c", "-gi", file.name], capture_output=True, text=True, check=True).stdout


def functions(
    code: str,
) -> dict[str, list[Block]]:
    """The blocks of every kernel by its mangled name, the entry first; what cannot be reached is left out."""
    found: dict[str, list[Block]] = {}
    for name, lines in _sections(code):
        blocks = _blocks(lines)
        _connect(blocks)
        found[name] = _reachable(blocks)
    return found


def _sections(code: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in code.splitlines():
        if line.startswith("//-----"):
            if name:
                yield name, lines
            name, lines = "", []
        elif found := _FUNCTION.match(line):
            name, lines = found[1], []
        elif name:
            lines.append(line)
    if name:
        yield name, lines


def _blocks(lines: list[str]) -> list[Block]:
    blocks, places, certain = [Block()], list[Place](), False
    described = False  # whether the last line told a place
    for line in lines:
        if found := _PLACE.search(line):
            places = [*places, Place(found[1], int(found[2]))] if described else [Place(found[1], int(found[2]))]
            described = certain = True
            continue
        described = False
        if found := _LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(Block())
            blocks[-1].labels.append(found[1])
            certain = False
        elif found := _CODE.search(line):
            guard, opcode, modifiers, operands = found.groups()
            blocks[-1].instructions.append(
                Instruction(opcode, modifiers, operands, guard is not None, tuple(places), certain)
            )
            if opcode in ("BRA", "BRX", "JMP", "EXIT", "RET", "BSYNC"):
                blocks.append(Block())
    return [block for block in blocks if block.instructions]


def _connect(blocks: list[Block]) -> None:
    """Find every block's successors. BSYNC goes on where the last BSSY of the same barrier said, so that is followed
    along the paths from the entry.
    """
    at = {label: index for index, block in enumerate(blocks) for label in block.labels}
    todo: list[tuple[int, dict[str, str]]] = [(0, {})]
    seen = set[int]()
    while todo:
        index, barriers = todo.pop()
        if index in seen or index >= len(blocks):
            continue
        seen.add(index)
        block, barriers = blocks[index], dict(barriers)
        for instruction in block.instructions:
            if instruction.opcode == "BSSY":
                barriers[instruction.operands.split(",")[0].strip()] = instruction.targets[0]
        block.successors = tuple(_successors(block.instructions[-1], index, at, barriers, len(blocks)))
        todo += [(successor, barriers) for successor in block.successors]


def _successors(
    last: Instruction, index: int, at: dict[str, int], barriers: dict[str, str], count: int
) -> Iterator[int]:
    if last.opcode in ("BRA", "BRX", "JMP"):
        if last.modifiers.startswith((".DIV", ".CONV")):  # for warps whose lanes do not run together: never
            yield index + 1
            return
        yield from dict.fromkeys(at[label] for label in last.targets if label in at)
        conditional = last.guarded or (last.opcode == "BRA" and re.match(r"\s*[!~]?U?P\d", last.operands))
        if conditional:
            yield index + 1
    elif last.opcode == "BSYNC" and not last.guarded:
        label = barriers.get(last.operands.split(";")[0].strip())
        yield at[label] if label in at else index + 1
    elif (last.guarded or last.opcode not in ("EXIT", "RET")) and index + 1 < count:
        yield index + 1


def _reachable(blocks: list[Block]) -> list[Block]:
    order, todo = list[int](), [0]
    while todo:
        index = todo.pop()
        if index not in order:
            order.append(index)
            todo += reversed(blocks[index].successors)
    order.sort()
    place = {index: new for new, index in enumerate(order)}
    return [
        Block(blocks[index].labels, blocks[index].instructions, tuple(place[s] for s in blocks[index].successors))
        for index in order
    ]


def source_line(
    place: Place,
    cache: dict[str, list[str]],
) -> str:
    """The text of a line, empty if the file is not there."""
    if place.file not in cache:
        path = Path(place.file)
        cache[place.file] = path.read_text(errors="replace").splitlines() if path.is_file() else []
    lines = cache[place.file]
    return lines[place.line - 1] if 0 < place.line <= len(lines) else ""
