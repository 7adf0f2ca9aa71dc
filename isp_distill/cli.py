"""``isp-distill``: the Python functions from a shell, one thin command each."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from isp_distill import cli_training
from isp_distill.errors import BackendError, RawError
from isp_distill.jobs.interruption import Terminated, end_process, last_words
from isp_distill.version import __version__

_TEACHER = "a pretrained timm model, or MODULE:FUNCTION of yours that returns a Teacher"


def _pack(a: argparse.Namespace) -> None:
    from isp_distill.models.teacher import teacher_by_name
    from isp_distill.packs.pack import pack

    report = pack(
        a.folder,
        a.out,
        labels="folder" if a.labels else None,
        binning=a.binning,
        compression=a.compression,
        workers=a.workers,
        prune=a.prune,
        teacher=None if a.teacher is None else teacher_by_name(a.teacher),
        views=a.views,
        crop=a.crop,
        crop_area=None if a.crop_area is None else tuple(a.crop_area),
        vertical_flip=a.vertical_flip,
        top=a.top,
        seed=a.seed,
        batch_size=a.batch_size,
        device=a.device,
    )
    print(report)


def _verify(a: argparse.Namespace) -> None:
    from isp_distill.packs.verify import verify

    report = verify(a.packed, drop=a.drop)
    print(report)
    if not report.sound:
        raise SystemExit(1)


def _render(a: argparse.Namespace) -> None:
    from isp_distill.isp.camera import ISP
    from isp_distill.ops.render.call import render
    from isp_distill.raw.image import read_raw

    raw = read_raw(a.raw)
    isp = ISP.from_raw(raw, demosaic=a.demosaic, tone=a.tone)
    isp = isp.replace(exposure=isp.exposure * 2.0**a.exposure)
    picture = render(torch.from_numpy(raw.mosaic)[None], isp, size=a.size)[0]
    out = Path(a.out) if a.out else Path(a.raw).with_suffix(".png")
    _save_picture(picture, out)
    print(out)


def _save_picture(picture: torch.Tensor, out: Path) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "writing a picture needs Pillow: pip install isp-distill[images]"
        ) from error
    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(out)


def _unprocess(a: argparse.Namespace) -> None:
    from isp_distill.data.loader import skipped_report
    from isp_distill.data.unprocess_folder import unprocess_folder
    from isp_distill.ops.unprocess.noise import NoiseModel

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


def _doctor(_: argparse.Namespace) -> None:
    from isp_distill.doctor import doctor

    doctor()


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="isp-distill", description="Train vision models on RAW.")
    top.add_argument("--version", action="version", version=f"isp-distill {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        one.set_defaults(run=run)
        return one

    def shared(one: argparse.ArgumentParser) -> None:
        one.add_argument("data", help="folder of RAW files, of pictures, or a packed one")
        one.add_argument("--teacher", required=True, help=_TEACHER)
        one.add_argument(
            "--label-maps", metavar="FOLDER",
            help="a class for every pixel: FOLDER/a/b.png (or .npy) for a/b.dng of the data",
        )  # fmt: skip
        one.add_argument(
            "--labels", action="store_true",
            help="the first folder is a file's class; a packed folder has its own labels",
        )  # fmt: skip
        one.add_argument(
            "--dense-size", type=int, metavar="SIDE",
            help="side at which dense logits are compared; default: the teacher's own",
        )  # fmt: skip
        one.add_argument("--batch-size", type=int, default=16)
        one.add_argument(
            "--crop", type=int, help="side of the mosaics; default: twice the teacher's"
        )
        one.add_argument("--exposure", type=float, help="the student sees this share of the light")
        one.add_argument("--device", help="default: cuda if there is one")
        one.add_argument("--workers", type=int, default=2)
        one.add_argument("--seed", type=int, default=0)

    one = command("train", cli_training.train, "distil an RGB teacher into a RAW student")
    shared(one)
    one.add_argument("--out", default="runs/isp-distill")
    one.add_argument("--validation", help="folder to measure agreement on")
    one.add_argument("--validation-label-maps", metavar="FOLDER", help="its label maps")
    one.add_argument("--steps", type=int, default=500)
    one.add_argument("--objective", default="forward_kl")
    one.add_argument("--temperature", type=float, default=2.0)
    one.add_argument(
        "--alpha", type=float, default=1.0,
        help="share of the objective; the rest is the labels' cross entropy",
    )  # fmt: skip
    one.add_argument("--lr", type=float, default=3e-5)
    one.add_argument("--stem-lr", type=float, default=2e-2)
    one.add_argument("--trainable", choices=("all", "stem"), default="all")
    one.add_argument(
        "--crop-area", type=float, nargs=2, metavar=("LEAST", "LARGEST"),
        help="random resized crops: share of the picture in a view, e.g. 0.25 1",
    )  # fmt: skip
    one.add_argument("--vertical-flip", action="store_true", help="upside down, half of the views")
    one.add_argument(
        "--live-teacher", action="store_true", help="packed data: do not use its stored logits"
    )
    one.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    one.add_argument("--restart", action="store_true", help="ignore the checkpoint in --out")
    one.add_argument("--profile", action="store_true", help="print where the time of a step went")

    one = command("evaluate", cli_training.evaluate, "agreement of a RAW student with its teacher")
    shared(one)
    one.add_argument("--checkpoint", help="of isp-distill train; without: the untrained student")
    one.add_argument("--views", type=int, default=1, help="crops a file, 1 to 5")

    one = command("pack", _pack, "decode a folder of RAW files once, for training without waiting")
    one.add_argument("folder")
    one.add_argument("out")
    one.add_argument("--labels", action="store_true", help="the first folder is a file's class")
    one.add_argument("--binning", type=int, default=1, help="average so many sites of one colour")
    one.add_argument("--compression", choices=("none", "zstd"), default="none")
    one.add_argument("--workers", type=int, help="decoding processes; default: one a core")
    one.add_argument("--prune", action="store_true", help="drop what is no longer in FOLDER")
    one.add_argument("--teacher", help=f"store its logits as well: {_TEACHER}")
    one.add_argument("--views", type=int, default=8, help="stored views a file")
    one.add_argument("--crop", type=int, help="their side; default: twice the teacher's")
    one.add_argument(
        "--crop-area", type=float, nargs=2, metavar=("LEAST", "LARGEST"),
        help="random resized crops, as in train",
    )  # fmt: skip
    one.add_argument("--vertical-flip", action="store_true", help="as in train")
    one.add_argument("--top", type=int, default=0, help="store so many classes a view; 0: all")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--batch-size", type=int, default=16)
    one.add_argument("--device", help="default: cuda if there is one")

    one = command("verify", _verify, "compare a packed folder with its checksums")
    one.add_argument("packed")
    one.add_argument("--drop", action="store_true", help="forget what is damaged: pack it again")

    one = command(
        "export", cli_training.export, "write a student as ONNX or as a torch.export program"
    )
    one.add_argument("out", help="ends in .onnx or .pt2")
    one.add_argument("--teacher", required=True, help=_TEACHER)
    one.add_argument("--checkpoint", help="of isp-distill train; without: the untrained student")
    one.add_argument(
        "--camera", metavar="RAW", help="build in this file's camera; without: it is an input"
    )
    one.add_argument(
        "--crop", type=int, help="side of the mosaics that it sees; default: what it was trained "
        "with"
    )  # fmt: skip
    one.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="of the mosaics that come in, if larger than the crop: the middle is binned and used",
    )  # fmt: skip
    one.add_argument("--batch", type=int, help="a fixed batch size; default: any")

    one = command("render", _render, "turn a RAW file into a PNG")
    one.add_argument("raw")
    one.add_argument("out", nargs="?", help="default: beside the RAW file, .png")
    one.add_argument("--demosaic", choices=("superpixel", "bilinear", "malvar"), default="malvar")
    one.add_argument("--tone", choices=("linear", "srgb", "gamma", "smoothstep"), default="srgb")
    one.add_argument("--exposure", type=float, default=0.0, help="in stops")
    one.add_argument("--size", type=int, help="shorter side, pixels")

    one = command("unprocess", _unprocess, "turn a tree of pictures into one of DNG files")
    one.add_argument("pictures")
    one.add_argument("out")
    one.add_argument("--pattern", default="all", help="RGGB, GRBG, GBRG, BGGR, or all in turn")
    one.add_argument("--bits", type=int, default=14)
    one.add_argument("--black", type=float, default=512)
    one.add_argument("--noise", action="store_true", help="add sensor noise")
    one.add_argument("--seed", type=int, default=0)

    command("doctor", _doctor, "what serves which operation on this machine, and why not")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's error is one line on standard error and status 2.

    Ctrl-C and SIGTERM are one line too, and status 130 or 143.

    Args:
        arguments: without the program's name. None for those of this process, which then is ended
            here where it is stopped: it waits for no thread, and for nobody to read its output.
    """
    try:
        chosen = parser().parse_args(arguments)
        chosen.run(chosen)
    except (
        RawError,
        BackendError,
        ValueError,
        TypeError,
        OSError,
        ImportError,
        RuntimeError,
    ) as error:
        print(f"isp-distill: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as stopped:
        status = 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)
        # On a line of its own: a bar may have been drawn.
        text = f"\nisp-distill: {str(stopped) or 'stopped'}"
        if arguments is not None:
            print(text, file=sys.stderr)
            return status
        if os.environ.get("RANK", "0") == "0":  # of several processes, the first one speaks
            last_words(text)
        end_process(status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
