"""``pack``: decode a folder of RAW files or sensor dumps once, into shards that training maps.

A packed folder holds ``isp-distill.json`` (every file: where it is stored, its metadata, label and
checksum; and every file left out, with the reason) and ``shard-*.safetensors`` (the mosaics).
:mod:`isp_distill.storage.shards` says what keeps it whole; ``PackedRaw`` reads it; ``verify``
checks it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from isp_distill.data.labels import Labels, labelled
from isp_distill.data.pairs import MAX_MISALIGNMENT
from isp_distill.data.skipped import skipped_report
from isp_distill.data.views import View
from isp_distill.detection.heads import heads_of
from isp_distill.files.atomic import only_writer
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.models.match import Match, matches_of
from isp_distill.models.taps import MAIN
from isp_distill.models.teacher import Teacher, as_teacher
from isp_distill.packs.originals import Originals, RawFiles, found_originals
from isp_distill.packs.packed_pictures import PicturePacker
from isp_distill.packs.reader import PackedRaw
from isp_distill.packs.records import Decoded, decoded
from isp_distill.packs.stored_teacher import ViewSettings
from isp_distill.packs.teacher_writer import store_teacher
from isp_distill.packs.writer import PackWriter
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.sensor_format import SensorFormat
from isp_distill.storage.manifest_schema import COMPRESSIONS
from isp_distill.storage.mosaic_codec import compress


@dataclass(frozen=True)
class PackReport:
    """What :func:`pack` did.

    Attributes:
        out: the packed folder.
        files: mosaics in it now.
        packed: of these, decoded by this call.
        skipped: files left out, with reasons.
        missing: packed files that are no longer in the source folder; they stay packed.
        damaged: records that were there and could not be used, with reasons; they were packed anew
            where their files are still there.
        unseen: packed files below a folder that could not be listed; they stay packed, and while
            there is such a folder nothing is pruned.
        mosaic_bytes: of all mosaics, decoded.
        stored_bytes: of all shards.
        seconds: of this call.

    Examples:
        >>> first = isp_distill.pack("photos/raw", "packed", progress=False)
        >>> again = isp_distill.pack("photos/raw", "packed", progress=False)
        >>> first.packed, again.packed, again.files
        (3, 0, 3)
    """

    out: Path
    files: int
    packed: int
    skipped: dict[str, str]
    missing: list[str]
    mosaic_bytes: int
    stored_bytes: int
    seconds: float
    damaged: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.files} mosaics in {self.out}, {self.packed} of them decoded now in "
            f"{self.seconds:.1f} s: {self.stored_bytes / 1e6:.1f} MB"
        ]
        if self.stored_bytes < self.mosaic_bytes:
            ratio = self.mosaic_bytes / self.stored_bytes
            lines[0] += f", {ratio:.2f} times less than 16 bits a pixel"
        if self.missing:
            lines.append(
                f"{len(self.missing)} packed files are no longer in the source folder and stay "
                f"packed, for example {self.missing[0]}"
            )
        if self.unseen:
            lines.append(
                f"{len(self.unseen)} packed files lie in folders that cannot be listed now; "
                "nothing was pruned"
            )
        if self.damaged:
            lines.append(f"{len(self.damaged)} damaged records were dropped:")
            lines += [f"  {name}: {reason}" for name, reason in sorted(self.damaged.items())]
        if self.skipped:
            lines.append(skipped_report(self.skipped))
        return "\n".join(lines)


def pack(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    labels: Labels = None,
    upright: bool = True,
    binning: int = 1,
    compression: Literal["none", "zstd"] = "none",
    workers: int | None = None,
    timeout_s: float = 60.0,
    shard_bytes: int = 128 << 20,
    extensions: Sequence[str] | None = None,
    format: SensorFormat | None = None,
    prune: bool = False,
    teacher: Teacher | nn.Module | str | None = None,
    views: int = 8,
    crop: int | None = None,
    crop_binning: int | None = None,
    crop_area: tuple[float, float] | None = None,
    vertical_flip: bool = False,
    augmentation: ISPAugmentation | None = None,
    top: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    progress: bool = True,
    packed: bool = True,
    picture: str | os.PathLike[str] | None = None,
    picture_side: int | None = None,
    max_misalignment: float = MAX_MISALIGNMENT,
    match: Sequence[Match | Mapping[str, Any] | str] | None = None,
) -> PackReport:
    """Decode all RAW files or sensor dumps of a folder once, into shards for :class:`PackedRaw`.

    Safe to stop at any moment, ``kill -9`` and power cuts included, and to call again: it goes on
    where it was, decodes files that were added or have changed since (by size, time of modification
    and what describes them), tries damaged ones again, packs anew what is damaged in ``out``, and
    leaves the rest alone.

    A folder with a ``sensor.toml`` is one of sensor dumps, see :class:`SensorFolder`: every frame
    is a record, and they are read in threads.

    Args:
        folder: of RAW files, see :class:`RawFolder`; or of sensor dumps.
        out: the packed folder; made if need be.
        labels: see :class:`RawFolder`. They may change from call to call: nothing is decoded again.
            Label maps stay where they are: ``PackedRaw(out, label_maps=FOLDER)``.
        upright: apply the orientation of each file.
        binning: store the averages of so many sites of one colour per side, for training that
            never looks closer: a quarter of the bytes with 2.
        compression: "zstd" for lossless compression in bands of 64 rows (needs zstandard): about
            two thirds of the bytes, decoded at some 0.8 GB/s a core. It pays where the disk is
            slower than that, or full.
        workers: decoding processes, or threads that read sensor dumps; as many as there are cores
            if None.
        timeout_s: seconds for one file.
        shard_bytes: a shard is written when it has so many bytes; a kill loses one shard's work.
        extensions: suffixes to look for; if None those of RAW files, or of sensor dumps.
        format: what the folder's files are, where they are sensor dumps and no ``sensor.toml`` says
            so.
        prune: drop packed files that are no longer in the source folder; none while a folder in it
            cannot be listed.
        teacher: store this teacher's logits as well, for ``views`` fixed views of every file; then
            ``train()`` with the same teacher, crop, binning and augmentation never runs it.
        views: of each file; epoch e of a training sees view e modulo ``views``.
        crop: side of their mosaics; twice the teacher's size if None, as in ``train()``.
        crop_binning: their binning, ``train(binning=...)``.
        crop_area: as in ``train()``, with its usual range of ``crop_ratio``.
        vertical_flip: as in ``train()``.
        augmentation: of the teacher's ISP, drawn for each view.
        top: store only so many of the largest log-probabilities a view, see
            :class:`isp_distill.packs.stored_teacher.ViewSettings`; 0 stores all logits as float16.
        seed: of the views.
        batch_size: views that the teacher sees at once.
        device: where the teacher runs; a GPU if there is one, if None.
        progress: show a progress bar.
        packed: store frames of sensor dumps whose codes share bytes as the bytes that they are
            (10 bits: 37% less), where neither orientation, binning nor compression needs their
            codes. The numbers are the same. Packs without such frames can be read by older
            versions too.
        picture: store the cameras' own pictures too, which teachers then see instead of what
            :func:`isp_distill.render` makes: "embedded", "beside" or a folder, see
            :class:`RawFolder`. Logits that are stored are then of these pictures. A picture beside
            its RAW file that changed is stored anew when the RAW file changes.
        picture_side: shorter side of the stored pictures, resized once; None stores JPEGs as they
            are.
        max_misalignment: see :class:`RawFolder`.
        match: as in ``train()``: the teacher's features that it names are stored beside its logits,
            as float16; how much that will be is said before it starts.

    Returns:
        The :class:`PackReport`. Damaged and non-Bayer files are left out and listed there.

    Raises:
        FileNotFoundError: the folder is missing, or holds nothing to pack; where it holds arrays,
            the message says which ``sensor.toml`` to write.
        ValueError: an argument is out of range, ``sensor.toml`` says something that a format has
            not, or ``out`` was packed with other settings.
        DamagedPackError: the manifest in ``out`` cannot be read, or is of another version.
        RuntimeError: another process is packing into ``out``.
        RawError: ``crop`` does not fit a mosaic.
        ImportError: zstandard is needed and missing.
        OSError: ``out`` cannot be written, for example because the disk is full.

    Examples:
        >>> report = isp_distill.pack("photos/raw", "packed", progress=False)
        >>> report.files, report.skipped
        (3, {})
    """
    began = time.perf_counter()
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be none or zstd, not {compression!r}")
    if binning < 1 or shard_bytes < 1:
        raise ValueError("binning and shard_bytes must be at least 1")
    root, target = Path(folder), Path(out)
    count = workers or _cores()
    settings: dict[str, Any] = {
        "upright": upright,
        "binning": binning,
        "compression": compression,
    }
    if not packed:
        settings["packed"] = False
    if picture is None and picture_side is not None:
        raise ValueError(
            f"picture_side={picture_side} is of the cameras' pictures, and none are packed: give "
            "picture (--picture) too"
        )
    if picture is not None:
        if not upright:
            raise ValueError("pictures stand upright, and so must mosaics: leave upright at True")
        settings.update(picture=os.fspath(picture), picture_side=picture_side)
    if compression == "zstd":
        compress(np.zeros((2, 2), np.uint16))  # zstandard is missing now, or never
    chosen = None if teacher is None else as_teacher(teacher)
    wanted = None
    if chosen is not None:
        # Now, so that a setting out of range is not found after hours of decoding.
        if heads_of(chosen.model) is not None:
            raise ValueError(
                f"pack stores no output of a detector ({type(chosen.model).__name__}): its heads "
                "are larger than the pictures; pack without a teacher, and train runs it live"
            )
        side = 2 * chosen.size if crop is None else crop
        view = View(side, crop_binning, crop_area, flip=vertical_flip)
        named = matches_of(match) or ()
        features = tuple(dict.fromkeys(m.target for m in named if m.target not in MAIN))
        wanted = ViewSettings(views, view, seed, augmentation, top, features)
    with DecodePool(count, timeout_s) as pool, contextlib.ExitStack() as closing:
        originals = found_originals(root, format, extensions, pool)
        pictures = None
        if picture is not None:
            pictures = _picture_packer(picture, picture_side, max_misalignment, originals, pool)
            closing.callback(pictures.close)
        with only_writer(target):
            writer = PackWriter(target, root, settings, shard_bytes)
            todo = writer.begin(originals, prune)
            _label(writer, originals, labels)
            bar = tqdm(total=len(todo), desc="pack", unit="file", disable=not progress)
            _write(writer, decoded(originals, todo, count, settings, pictures), bar)
            if chosen is not None and wanted is not None:
                store_teacher(
                    PackedRaw(target, gain_map=False),
                    chosen,
                    wanted,
                    batch_size=batch_size,
                    device=device,
                    workers=count,
                    progress=progress,
                )
    return _report(writer, target, root, time.perf_counter() - began)


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _label(writer: PackWriter, originals: Originals, labels: Labels) -> None:
    # Packed files that are gone from the source still have their classes.
    known = [originals.file(name) for name in writer.names]
    values, classes = labelled(originals.root, known, labels)
    writer.label(classes, values)


def _write(writer: PackWriter, records: Decoded, bar: tqdm[Any]) -> None:
    """Write records as they are decoded; what was before Ctrl-C, or before an error, is kept."""
    try:
        with contextlib.closing(records):
            for record in records:
                writer.add(record)
                bar.update()
    finally:
        bar.close()
        writer.flush()
    writer.end()


def _report(writer: PackWriter, target: Path, root: Path, seconds: float) -> PackReport:
    return PackReport(
        out=target,
        files=len(writer.records),
        packed=writer.added,
        skipped={str(root / name): why["reason"] for name, why in writer.skipped.items()},
        missing=writer.missing,
        mosaic_bytes=sum(2 * math.prod(entry["shape"]) for entry in writer.records.values()),
        stored_bytes=writer.stored_bytes,
        seconds=seconds,
        damaged=writer.damaged,
        unseen=writer.unseen,
    )


def _picture_packer(
    picture: str | os.PathLike[str],
    side: int | None,
    max_misalignment: float,
    originals: Originals,
    pool: DecodePool,
) -> PicturePacker:
    """What stores the cameras' pictures of RAW files.

    Raises:
        ValueError: the folder holds sensor dumps.
    """
    if not isinstance(originals, RawFiles):
        raise ValueError(
            f"{originals.root}: holds sensor dumps, and pack stores the pictures of RAW files: "
            "train on the folder itself, SensorFolder(root, picture=...)"
        )
    paths = [originals.file(name) for name in originals.names]
    return PicturePacker(picture, side, max_misalignment, originals.root, paths, pool)
