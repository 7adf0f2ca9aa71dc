"""The shell's ``pack`` and ``verify``."""

from __future__ import annotations

import argparse

from isp_distill.cli.arguments import TEACHER, Command, add_classes, add_picture, chosen_labels
from isp_distill.cli.flags import matches
from isp_distill.packs.pack import pack
from isp_distill.packs.verify import verify


def add_pack(command: Command) -> None:
    """``isp-distill pack``."""
    one = command(
        "pack",
        _pack,
        "decode a folder of RAW files or sensor dumps once, for training without waiting",
    )
    one.add_argument("folder")
    one.add_argument("out")
    add_classes(one)
    add_picture(one)
    one.add_argument(
        "--picture-side", type=int, metavar="SIDE",
        help="resize them once, to this shorter side; default: the JPEGs are stored as they are",
    )  # fmt: skip
    one.add_argument("--binning", type=int, default=1, help="average so many sites of one colour")
    one.add_argument("--compression", choices=("none", "zstd"), default="none")
    one.add_argument(
        "--unpacked", action="store_true",
        help="store frames of sensor dumps as 16-bit codes, not as their packed bytes",
    )  # fmt: skip
    one.add_argument(
        "--workers", type=int, help="decoding processes, or threads; default: one a core"
    )
    one.add_argument("--prune", action="store_true", help="drop what is no longer in FOLDER")
    one.add_argument("--teacher", help=f"store its logits as well: {TEACHER}")
    one.add_argument("--views", type=int, default=8, help="stored views a file")
    one.add_argument("--crop", type=int, help="their side; default: twice the teacher's")
    one.add_argument(
        "--crop-area", type=float, nargs=2, metavar=("LEAST", "LARGEST"),
        help="random resized crops, as in train",
    )  # fmt: skip
    one.add_argument("--vertical-flip", action="store_true", help="as in train")
    one.add_argument("--top", type=int, default=0, help="store so many classes a view; 0: all")
    one.add_argument(
        "--match", type=matches, metavar="TOML", help="store these features too, as in train"
    )
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--batch-size", type=int, default=16)
    one.add_argument("--device", help="default: cuda if there is one")


def add_verify(command: Command) -> None:
    """``isp-distill verify``."""
    one = command("verify", _verify, "compare a packed folder with its checksums")
    one.add_argument("packed")
    one.add_argument("--drop", action="store_true", help="forget what is damaged: pack it again")


def _pack(a: argparse.Namespace) -> None:
    report = pack(
        a.folder,
        a.out,
        labels=chosen_labels(a.labels),
        picture=a.picture,
        picture_side=a.picture_side,
        binning=a.binning,
        compression=a.compression,
        packed=not a.unpacked,
        workers=a.workers,
        prune=a.prune,
        teacher=a.teacher,
        views=a.views,
        crop=a.crop,
        crop_area=None if a.crop_area is None else tuple(a.crop_area),
        vertical_flip=a.vertical_flip,
        top=a.top,
        seed=a.seed,
        batch_size=a.batch_size,
        device=a.device,
        match=a.match,
    )
    print(report)


def _verify(a: argparse.Namespace) -> None:
    report = verify(a.packed, drop=a.drop)
    print(report)
    if not report.sound:
        raise SystemExit(1)
