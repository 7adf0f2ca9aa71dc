"""The shell's ``render`` and ``unprocess``: RAW files to pictures, and pictures to RAW files."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from isp_distill.cli.arguments import Command
from isp_distill.data.skipped import skipped_report
from isp_distill.data.unprocess_folder import unprocess_folder
from isp_distill.files.pillow import pillow
from isp_distill.isp.camera import DEMOSAICS, ISP, TONES
from isp_distill.ops.render.call import render
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.raw.image import read_raw


def add_render(command: Command) -> None:
    """``isp-distill render``."""
    one = command("render", _render, "turn a RAW file into a PNG")
    one.add_argument("raw")
    one.add_argument("out", nargs="?", help="default: beside the RAW file, .png")
    one.add_argument("--demosaic", choices=DEMOSAICS, default="malvar")
    one.add_argument("--tone", choices=TONES, default="srgb")
    one.add_argument("--exposure", type=float, default=0.0, help="in stops")
    one.add_argument("--size", type=int, help="shorter side, pixels")


def add_unprocess(command: Command) -> None:
    """``isp-distill unprocess``."""
    one = command("unprocess", _unprocess, "turn a tree of pictures into one of DNG files")
    one.add_argument("pictures")
    one.add_argument("out")
    one.add_argument("--pattern", default="all", help="RGGB, GRBG, GBRG, BGGR, or all in turn")
    one.add_argument("--bits", type=int, default=14)
    one.add_argument("--black", type=float, default=512)
    one.add_argument("--noise", action="store_true", help="add sensor noise")
    one.add_argument("--seed", type=int, default=0)


def _render(a: argparse.Namespace) -> None:
    raw = read_raw(a.raw)
    isp = ISP.from_raw(raw, demosaic=a.demosaic, tone=a.tone)
    isp = isp.replace(exposure=isp.exposure * 2.0**a.exposure)
    picture = render(torch.from_numpy(raw.mosaic)[None], isp, size=a.size)[0]
    out = Path(a.out) if a.out else Path(a.raw).with_suffix(".png")
    _save_picture(picture, out)
    print(out)


def _save_picture(picture: torch.Tensor, out: Path) -> None:
    writer = pillow("writing a picture needs")
    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    writer.fromarray(array).save(out)


def _unprocess(a: argparse.Namespace) -> None:
    skipped = unprocess_folder(
        a.pictures,
        a.out,
        pattern=a.pattern,
        bits=a.bits,
        black=a.black,
        noise=NoiseModel() if a.noise else None,
        seed=a.seed,
    )
    if skipped:
        print(skipped_report(skipped))
    print(a.out)
