"""What instructions keep busy: their kinds, the bytes of shared memory that they move, and sums of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from benchmarks.static.sass import Instruction

KINDS = {
    "tensor": r"[A-Z]*MMA",
    "float": r"F(FMA|ADD|MUL|MNMX|FMA2|ADD2|MUL2|SEL|SETP|SET|CHK)\d?|D(FMA|ADD|MUL|SETP)",
    "half": r"H(FMA2|ADD2|MUL2|MNMX2|SETP2|SET2)",
    "convert": r"F2F|F2FP|F2I|I2F|I2FP|FRND|F2IP",
    "special": r"MUFU",
    "shared": r"LDS|STS|LDSM|STSM|ATOMS",
    "global": r"LDG|STG|LDGSTS|LDGDEPBAR|DEPBAR|RED|ATOMG|LD|ST|UBLKCP|LDGMC",
    "local": r"LDL|STL",
    "constant": r"LDC|ULDC|LDCU|UMOV",
    "exchange": r"SHFL|MOVM|VOTE|VOTEU|MATCH|REDUX",
    "move": r"MOV|SEL|PRMT|R2UR|R2P|P2R|CS2R|S2R|S2UR|UPRMT|USEL",
    "control": r"BRA|BRX|JMP|BSSY|BSYNC|BREAK|BAR|WARPSYNC|EXIT|CALL|RET|NOP|YIELD|ERRBAR|MEMBAR|NANOSLEEP|U?PLOP3",
}
SHARED_BYTES = {"": 4, ".64": 8, ".128": 16, ".U8": 1, ".S8": 1, ".U16": 2, ".S16": 2, ".8": 1, ".16": 2}


def kind_of(
    instruction: Instruction,
) -> str:
    """The part of the machine that an instruction keeps busy; what no pattern names is integer arithmetic."""
    opcode = "MOV" if instruction.opcode == "HFMA2" and ".MMA" in instruction.modifiers else instruction.opcode
    if opcode == "IMAD" and instruction.modifiers.startswith(".MOV"):
        opcode = "MOV"
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, opcode)), "integer")


def shared_bytes(
    instruction: Instruction,
) -> int:
    """Bytes of shared memory that all lanes of a warp move, as one wavefront each 128 bytes."""
    if instruction.opcode in ("LDSM", "STSM"):
        matrices = re.search(r"\.(\d)$", instruction.modifiers)
        return 128 * (int(matrices[1]) if matrices else 1)
    if instruction.opcode in ("LDS", "STS"):
        width = re.search(r"\.(64|128|[US]?8|[US]?16)$", instruction.modifiers)
        return 32 * SHARED_BYTES[f".{width[1]}" if width else ""]
    return 128 * 4 if instruction.opcode == "LDGSTS" and ".128" in instruction.modifiers else 0


class Cost(Counter[str]):
    """Warp instructions by kind; beside them the bytes of shared memory and the instructions of the tensor cores."""

    @property
    def instructions(self) -> float:
        return sum(count for kind, count in self.items() if kind[0] != "#")

    def times(self, factor: float) -> Cost:
        return Cost({kind: count * factor for kind, count in self.items()})

    def plus(self, other: Cost) -> Cost:
        return Cost({kind: self[kind] + other[kind] for kind in {*self, *other}})

    @staticmethod
    def of(instructions: Iterable[Instruction]) -> Cost:
        cost = Cost()
        for instruction in instructions:
            kind = kind_of(instruction)
            cost[kind] += 1
            if kind == "tensor":
                cost[f"#{instruction.opcode}{instruction.modifiers}"] += 1
            if moved := shared_bytes(instruction):
                cost["#shared bytes"] += moved
        return cost
