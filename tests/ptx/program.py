"""A kernel in PTX as a program for machine.h: basic blocks of instructions whose operands are numbers of registers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .instructions import instructions


def _form(name: str, body: str) -> str:
    """An instruction's name and the forms of its operands: registers where nothing else is said."""
    if " " in name:
        return name.replace("{1}", "r")
    count = max((int(each) for each in re.findall(r"o\[(\d+)\]", body)), default=-1) + 1
    return " ".join([name, *count * ["r"]])


NUMBERS = {_form(name, body): number for number, (name, body) in enumerate(instructions().items())}
BRANCH, RETURN, BARRIER = -1, -2, -3
END = 2**31 - 1
_SPECIAL = ("%tid.x", "%ctaid.x", "%nctaid.x")  # the first registers hold these
_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+)\s+)?([\w.:]+)\s*(.*)")
_BRACED = re.compile(r"\{\s*\.reg \.b32 tmp;(.*)\}")  # what the compiler writes where half of a register is not needed


class UnknownPtx(ValueError):
    """Something that the machine does not have."""


@dataclass
class Program:
    """What machine.h runs.

    Attributes:
        code: int32 [instructions, 5]: what it does, the register of its predicate or -1, whether lanes must not have
            that, its first operand, its line.
        operands: int64, of all instructions.
        blocks: int32, where each basic block begins in `code`, and the end.
        joins: int32, for each block the first one that all ways from it lead to; END where they only meet there.
        registers: how many there are.
        constants: uint64 [constants, 2]: register and value.
    """

    code: NDArray[np.int32]
    operands: NDArray[np.int64]
    blocks: NDArray[np.int32]
    joins: NDArray[np.int32]
    registers: int
    constants: NDArray[np.uint64]


@dataclass
class _Registers:
    known: dict[str, int] = field(default_factory=lambda: {name: i for i, name in enumerate(_SPECIAL)})
    constants: list[tuple[int, int]] = field(default_factory=list)

    def number(self, operand: str) -> int:
        """The register of an operand, which may be a constant."""
        if operand not in self.known:
            self.known[operand] = len(self.known)
            if not operand.startswith("%") and operand not in ("_", "tmp"):
                self.constants.append((self.known[operand], _constant(operand)))
        return self.known[operand]


def _constant(operand: str) -> int:
    if operand == "global_smem":
        return 0
    if re.fullmatch(r"0[fd][0-9A-Fa-f]+", operand):
        return int(operand[2:], 16)
    try:
        return int(operand.removesuffix("U"), 0) & (1 << 64) - 1
    except ValueError as error:
        raise UnknownPtx(f"operand {operand}") from error


def parse(ptx: str) -> Program:
    """The program of PTX with one kernel.

    Raises:
        UnknownPtx: an instruction or an operand that the machine does not have.
    """
    registers, operands = _Registers(), []
    code: list[list[int]] = []
    blocks, labels, jumps = [0], {}, []
    begin = ptx.index("{", ptx.index(".entry"))
    first = ptx.count("\n", 0, begin) + 1
    for line, text in enumerate(ptx[begin + 1 : ptx.rindex("\n}")].split("\n"), first):
        for statement in _statements(text):
            if label := re.fullmatch(r"(\$?[\w$]+):", statement):
                if blocks[-1] != len(code):
                    blocks.append(len(code))
                labels[label[1]] = len(blocks) - 1
                continue
            found = _INSTRUCTION.fullmatch(statement)
            if found is None:
                raise UnknownPtx(statement)
            negated, guard, name, rest = found.groups()
            predicate = registers.number(guard) if guard else -1
            given = _operands(rest)
            where = len(operands)
            if name.startswith("bra"):
                what = BRANCH
                jumps.append((where, given[0]))
                operands.append(0)
            elif name == "ret":
                what = RETURN
            elif name == "bar.sync":
                what = BARRIER
                if guard or given != ["0"]:
                    raise UnknownPtx(statement)
            else:
                what = _encode(name, given, registers, operands)
            code.append([what, predicate, bool(negated), where, line])
            if what < 0:
                blocks.append(len(code))
    for place, label in jumps:
        operands[place] = labels[label]
    if blocks[-1] != len(code):
        blocks.append(len(code))
    constants = np.array(registers.constants, np.uint64).reshape(-1, 2)
    joins = _joins(code, operands, blocks)
    return Program(
        np.array(code, np.int32),
        np.array(operands, np.int64),
        np.array(blocks, np.int32),
        np.array(joins, np.int32),
        len(registers.known),
        constants,
    )


def _joins(code: list[list[int]], operands: list[int], blocks: list[int]) -> list[int]:
    """For each block the first one that all ways from it lead to: its immediate post-dominator."""
    count = len(blocks) - 1
    follow: list[set[int]] = []
    for number in range(count):
        what, guard, _, where, _ = code[blocks[number + 1] - 1]
        own = {number + 1} if guard >= 0 or what not in (BRANCH, RETURN) else set()
        if what in (BRANCH, RETURN):
            own.add(count if what == RETURN else operands[where])
        follow.append(own)
    passed = [set(range(count + 1)) for _ in range(count)] + [{count}]  # what all ways from a block pass, itself too
    changed = True
    while changed:
        changed = False
        for number in reversed(range(count)):
            own = set.intersection(*(passed[each] for each in follow[number])) | {number}
            changed |= own != passed[number]
            passed[number] = own
    joins = [max(passed[number] - {number}, key=lambda each: len(passed[each])) for number in range(count)]
    return [END if join == count else join for join in joins]


def _statements(text: str) -> list[str]:
    """Instructions and labels of a line."""
    text = text.split("//")[0].strip()
    if braced := _BRACED.fullmatch(text):
        text = braced[1].strip()
    if text in ("", "{", "}") or text.startswith("."):
        return []
    return [each.strip() for each in text.split(";") if each.strip()]


def _operands(text: str) -> list[str]:
    """Operands, with what braces or brackets hold as one."""
    found = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{\[]+", text)
    return [each.strip() for each in found]


def _encode(name: str, given: list[str], registers: _Registers, operands: list[int]) -> int:
    """Append an instruction's operands; the number of its function."""
    name = re.sub(r"^((?:ld|st)\.shared)::cta", r"\1", name)
    shapes = []
    for place, operand in enumerate(given):
        if operand.startswith("{"):
            several = [each.strip() for each in operand.strip("{} ").split(",")]
            operands += map(registers.number, several)
            shapes.append(f"{{{len(several)}}}" if len(several) > 1 else "r")
        elif operand.startswith("["):
            base, offset = re.fullmatch(r"\[\s*(\S+?)\s*(?:\+\s*(-?\d+))?\s*\]", operand).groups()
            if name.startswith("ld.param"):
                operands.append(int(base.rsplit("_", 1)[1]))
                shapes.append("r")
                continue
            operands += [registers.number(base), int(offset or 0)]
            shapes.append("[]")
        elif name.startswith("cp.async") and place == 2:
            operands.append(int(operand, 0))
            shapes.append(str(int(operand, 0)))
        else:
            operands.append(registers.number(operand))
            shapes.append("r")
    form = " ".join([name, *shapes])
    if form not in NUMBERS:
        raise UnknownPtx(form)
    return NUMBERS[form]
