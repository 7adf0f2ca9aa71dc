"""Damaged manifests: fields dropped, of another type, out of range; and broken bytes."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random

from isp_distill.storage.manifest import MANIFEST, manifest_digest, record_digest

#: What stands in the place of a value.
WRONG = (
    None, True, -1, 0, 7, 1.5, 1e300, math.nan, math.inf, 2**31, 2**70, "", "x", "../x", "/etc/x",
    "a\0b", [], [[]], {}, {"x": 1}, [2**20, 2**20],
)  # fmt: skip


def places(value, below=()):
    """The path to every value in JSON; of a long list, to the first and the last."""
    if below:
        yield below
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*below, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1}) if value else ():
            yield from places(value[index], (*below, index))


def edited(manifest, place, value):
    """A copy with another value at a place; without it where the value is ``...``."""
    made = copy.deepcopy(manifest)
    holder = made
    for key in place[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return made


def resealed(manifest):
    """With digests that are right, as if ``pack`` had written it: the schema is on its own."""
    made = copy.deepcopy(manifest)
    for shard in made["shards"] if isinstance(made.get("shards"), list) else ():
        try:
            for name, entry in shard["records"].items():
                digest = record_digest(made["format"], shard["file"], name, entry)
                entry["digest"] = digest
        except (TypeError, KeyError, AttributeError, ValueError):
            continue
    with contextlib.suppress(TypeError, KeyError, AttributeError, ValueError):
        made["digest"] = manifest_digest(made)
    return made


def wrong_values(manifest, share=1.0, seed=0):
    """Manifests with one wrong value, or one fewer; a share of all, chosen by the seed."""
    draw = random.Random(seed)
    for place in places(manifest):
        for value in (..., *WRONG):
            if draw.random() < share:
                yield place, value, edited(manifest, place, value)


def broken_texts(text, flips=60, seed=0):
    """The text of a manifest cut, with other bytes, or with what no manifest has."""
    draw = random.Random(seed)
    for _ in range(flips):
        place = draw.randrange(len(text))
        yield text[:place] + bytes([text[place] ^ 1 << draw.randrange(8)]) + text[place + 1 :]
    for _ in range(flips // 6):
        place, length = draw.randrange(len(text)), draw.randrange(1, 40)
        yield text[:place]
        yield text[:place] + text[place + length :]
    yield from (b"", b"[]", b"null", b"7", b'""', b"{}", b"\xff\xfe{}", b"\xef\xbb\xbf" + text)
    yield b"[" * 100_000
    yield text[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield text[:-1] + b', "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    yield text[:-1] + b', "next": ' + b"9" * 100_000 + b"}"
    yield text[:-1] + b', "next": NaN}'
    yield text[:-1] + b', "next": 1e999}'
    yield text.replace(b'"next"', b'"complete": true, "complete": true, "next"')


def as_text(manifest):
    """As a file; NaN and infinity too, which Python writes and JSON has not."""
    return json.dumps(manifest).encode()


def sealed_edit(out, change):
    """Edit the manifest of a folder, and make its digests fit."""
    path = out / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_bytes(as_text(resealed(manifest)))
