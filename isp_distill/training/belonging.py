"""What a checkpoint belongs to: the teacher, the student's architecture, the data.

Everything here is cheap: of files only their sizes are asked for. A folder may move: names are
below it. Of a dataset in memory that is a list, a few values of each item are taken; of any other
nothing but its kind and its length, since asking for an item may cost a second.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from isp_distill.data.label_maps import LabelMaps
from isp_distill.data.picture_files import PictureFiles
from isp_distill.data.several_folders import SeveralFolders
from isp_distill.data.source import Source
from isp_distill.models.fingerprint import fingerprint
from isp_distill.models.teacher import Teacher
from isp_distill.packs.reader import PackedRaw
from isp_distill.raw.image import RawImage

# Values of an array in memory that stand for it.
_SAMPLED = 64
# Differences that a message names; the others are counted.
_NAMED = 3

# Values that only a machine compares, and what a message says where they differ.
_DIGESTS = {
    "weights": "its weights are others",
    "architecture": "its architecture is another",
    "content": "its files have other names or sizes",
    "items": "its items are others",
    "labels": "its labels are others",
    "label maps": "its label maps have other names or sizes",
    "pictures": "the cameras' pictures of it have other names or sizes, or there were none",
}


def belongings(
    teacher: Teacher, student: nn.Module, data: Source, validation: Source | None
) -> dict[str, dict[str, Any]]:
    """What a run is made of, in plain values; two are compared by :func:`differences`.

    Args:
        teacher: see :func:`isp_distill.models.fingerprint.fingerprint`.
        student: the class of each module; name, dtype and shape of each parameter and buffer, and
            which of them are trained.
        data: what is trained on: see :func:`data_identity`.
        validation: likewise, if any.
    """
    return {
        "teacher": fingerprint(teacher),
        "student": architecture(student),
        "data": data_identity(data),
        "validation": {} if validation is None else data_identity(validation),
    }


def architecture(model: nn.Module) -> dict[str, str]:
    """What each module is, and each parameter and buffer, by name."""
    found = {
        name or "student": f"{type(module).__module__}.{type(module).__qualname__}"
        for name, module in model.named_modules()
    }
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            form = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            found[name] = f"{form}, trained" if name in trained else form
    return found


def data_identity(source: Source) -> dict[str, Any]:
    """What tells one dataset from another.

    Packed folders: the checksum and the name of every record. Folders: every file's name below the
    folder, and its size. Several folders: the same of each of them, in their order. Lists: form and
    some values of every item. Others: kind and length alone. Labels, the files of label maps and
    those of the cameras' pictures count too.
    """
    found: dict[str, Any] = {"kind": type(source).__qualname__, "length": len(source)}
    paths, root = getattr(source, "paths", None), getattr(source, "root", None)
    indices = range(len(source))
    maps = getattr(source, "label_maps", None)
    if isinstance(source, SeveralFolders):
        each = [data_identity(part) for part in source.parts]
        found["folders"] = len(each)
        # Which folder comes first counts, and where it lies does not. Labels are those of all.
        own = [{k: v for k, v in one.items() if k not in ("labels", "label maps")} for one in each]
        found["content"] = _digest(json.dumps(one, sort_keys=True) for one in own)
    elif isinstance(source, PackedRaw):
        records = (f"{source.names[i]} {source.checksum(i)}" for i in indices)
        found["content"] = _digest(records)
    elif isinstance(paths, Sequence):
        sizes = _sizes(paths, root)
        found["bytes"] = sum(size for _, size in sizes)
        found["content"] = _digest(f"{name} {size}" for name, size in sizes)
    elif isinstance(source, (list, tuple)):
        # Iterated, not indexed: a subclass may decode where it is indexed.
        found["items"] = _digest(_item(item) for item in source)
    pictures = getattr(source, "pictures", None)
    if isinstance(pictures, PictureFiles):
        files = [file for i in indices if (file := pictures.file(i)) is not None]
        found["pictures"] = _digest(f"{n} {size}" for n, size in _sizes(files, None))
    if isinstance(maps, LabelMaps):
        found["label maps"] = _digest(f"{n} {size}" for n, size in _sizes(maps.paths, None))
    elif isinstance(paths, Sequence) and hasattr(source, "label"):
        found["labels"] = _digest(repr(source.label(i)) for i in indices)
    return found


def differences(saved: dict[str, Any], now: dict[str, dict[str, Any]]) -> list[str]:
    """In words, what of two runs' belongings differs, part by part."""
    found = []
    for part, values in now.items():
        before = saved.get(part)
        before = before if isinstance(before, dict) else {}
        if before == values:
            continue
        if not before or not values:
            found.append(f"{part}: there was {'some' if before else 'none'} before")
            continue
        names = sorted(n for n in {*before, *values} if before.get(n) != values.get(n))
        words = [_difference(n, before.get(n), values.get(n)) for n in names[:_NAMED]]
        if len(names) > _NAMED:
            words.append(f"and {len(names) - _NAMED} more")
        found.append(f"{part}: {', '.join(words)}")
    return found


def _difference(name: str, before: Any, now: Any) -> str:
    if name in _DIGESTS:
        return _DIGESTS[name]
    if before is None:
        return f"{name} is new"
    return f"{name} is gone" if now is None else f"{name} was {before}, is {now}"


def _digest(lines: Iterable[str]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for line in lines:
        # File names may hold what is not UTF-8.
        found.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()


def _sizes(paths: Sequence[Any], root: Any) -> list[tuple[str, int]]:
    """Name and size of each file, -1 where it is gone; names below the root, or alone."""
    found = []
    for path in map(Path, paths):
        try:
            size = os.stat(path).st_size
        except OSError:
            size = -1
        below = root is not None and path.is_relative_to(root)
        name = path.relative_to(root).as_posix() if below else path.name
        found.append((name, size))
    return found


def _item(item: Any) -> str:
    if isinstance(item, tuple):
        return " ".join(_item(part) for part in item)
    if isinstance(item, RawImage):
        camera: Any = (item.pattern, item.black, item.white, item.white_balance, item.ccm)
        if item.linearise is not None:
            camera = *camera, item.linearise
        return f"{_item(item.mosaic)} {camera!r}"
    if isinstance(item, Tensor):
        item = item.detach().cpu().numpy()
    if isinstance(item, np.ndarray) and not item.dtype.hasobject:
        flat = item.reshape(-1)
        values = flat[:: max(1, len(flat) // _SAMPLED)].tobytes()
        return f"{item.dtype} {item.shape} {_digest([values.hex()])}"
    if item is None or isinstance(item, (int, float, str, np.generic)):
        return repr(item)
    return type(item).__qualname__
