"""Damage: of bytes, and of JSON values, decided by a random generator."""

from __future__ import annotations

import copy
import random
from typing import Any

#: Numbers on which code that trusts a file trips.
HOSTILE = (
    None, True, False, 0, 1, -1, 2, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63,
    10**30, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd",
    "a/../../b", "\x00", "é" * 300, [], [[]], {}, {"a": 1}, [1, 2, 3, 4, 5], [None], [2**20, 2**20],
)  # fmt: skip


def damaged_bytes(data: bytes, draw: random.Random, early: int = 1024) -> bytes:
    """One to four kinds of damage, half of it in the first ``early`` bytes, where headers are."""
    result = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not result:
            break
        end = min(early, len(result)) if draw.random() < 0.5 else len(result)
        place = draw.randrange(end)
        kind = draw.randrange(7)
        if kind == 0:
            result[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            result[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            width = draw.choice((2, 4, 8))
            value = draw.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
            result[place : place + width] = value.to_bytes(8, draw.choice(("little", "big")))[
                :width
            ]
        elif kind == 3:
            del result[place:]
        elif kind == 4:
            length = draw.randrange(1, 64)
            del result[place : place + length]
        elif kind == 5:
            result[place : place + draw.randrange(1, 512)] = bytes(draw.randrange(1, 512))
        else:
            other = draw.randrange(len(result))
            length = draw.randrange(1, 64)
            result[place : place + length] = result[other : other + length]
    return bytes(result)


def damaged_json(value: Any, draw: random.Random) -> Any:
    """A copy with one to three places replaced, dropped, doubled or swapped."""
    result = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(result))
        if not places:
            break
        parent, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind <= 2:
            parent[key] = copy.deepcopy(draw.choice(HOSTILE))
        elif kind == 3:
            del parent[key]
        else:
            other_parent, other_key = draw.choice(places)
            try:
                parent[key] = copy.deepcopy(other_parent[other_key])
            except (KeyError, IndexError):
                continue
    return result


def _places(value: Any) -> Any:
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from _places(value[key])
