"""Mutations: of bytes anywhere, and of JSON into other valid JSON."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

INTEGERS = (0, 1, 2, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(2**31, 2**53, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *("", "x", "nan", "\0", "\n", "../../etc/passwd", "os.system", "é" * 99, "{" * 99),
    *([], {}, [[]], [None], {"": 0}, {"__class__": "x"}, [0] * 500),
)


def bytes_(choose: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """One to four random changes of bytes."""
    mutant = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        size = len(mutant) or 1  # half of them at the beginning, where headers are
        at = choose.randrange(min(size, choose.choice((16, 256, size, size))))
        length = choose.choice((1, 2, 8, choose.randint(1, size)))
        match choose.randrange(8):
            case 0 if mutant:
                mutant[at] ^= 1 << choose.randrange(8)
            case 1 if mutant:
                mutant[at] = choose.randrange(256)
            case 2:
                del mutant[at : at + length]
            case 3:
                del mutant[at:]
            case 4:
                mutant[at:at] = choose.randbytes(min(length, 99))
            case 5:
                mutant[at:at] = mutant[at : at + length]
            case 6:
                order, kind = choose.choice("<>"), choose.choice("BHIQ")
                mask = 256 ** struct.calcsize(kind) - 1
                value = struct.pack(order + kind, choose.choice(INTEGERS) & mask)
                mutant[at : at + len(value)] = value
            case 7:
                other = choose.choice(others)
                mutant[at : at + length] = other[at : at + length]
    return bytes(mutant)


def json_(choose: random.Random, document: Any) -> Any:
    """A copy with one to three values replaced, removed, doubled or wrapped."""
    mutant = copy.deepcopy(document)
    for _ in range(choose.choice((1, 1, 2, 3))):
        places = list(_places(mutant))
        if not places:
            return choose.choice(ODD)
        where, key = choose.choice(places)
        match choose.randrange(6):
            case 0:
                del where[key]
            case 1 if isinstance(where, dict):
                where[choose.choice(("", "x", "steps", "0.m", "best"))] = choose.choice(ODD)
            case 1:
                where.append(choose.choice(ODD))
            case 2:
                where[key] = [where[key]] if choose.random() < 0.5 else {"x": where[key]}
            case 3:
                other, name = choose.choice(places)
                where[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
            case 4 if type(where[key]) in (int, float):
                where[key] = where[key] * choose.choice((-1, 0, 2, 10**9)) + choose.choice((0, 1))
            case _:
                where[key] = choose.choice(ODD)
    return mutant


def _keys(node: Any) -> Any:
    return node.keys() if isinstance(node, dict) else range(len(node))


def _places(node: Any) -> Any:
    if isinstance(node, dict | list):
        for key in list(_keys(node)):
            yield node, key
            yield from _places(node[key])


def text(choose: random.Random, document: Any) -> str:
    """A document as JSON; sometimes nested too deeply for a parser, or malformed."""
    written = json.dumps(document)
    match choose.randrange(12):
        case 0:
            depth = choose.choice((100, 990, 5000, 200_000))
            return written[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
        case 1:
            return written[: choose.randrange(len(written))]
        case 2:
            return written.replace("0", "1" * 5000, 1)
    return written
