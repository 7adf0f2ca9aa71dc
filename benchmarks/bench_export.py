"""What the removed ISP saves: mosaic to prediction, beside mosaic to picture to prediction.

    python benchmarks/bench_export.py                   # the table
    pytest benchmarks/bench_export.py --benchmark-only  # the same calls under pytest-benchmark

One network (timm's efficientnet_lite0, random weights: time does not depend on them) in two forms,
one picture at a time on the CPU. As the RAW student it takes the mosaic, exported by isp_distill
with one camera built in. As the RGB model it takes a picture of 224 pixels, which an ISP makes of
the same mosaic: black level, demosaicing, white balance, highlight clip, colour matrix, gamma,
resize. Mean and standard deviation are in the graphs. Both are run by onnxruntime and by OpenVINO,
in float32 and in int8, which is made of both by the same tool with the same settings (weights
with a sign, for processors with VNNI or of ARM). The ISPs:

- OpenCV 16-bit: demosaiced and resized in 16 bits, all else at 224 pixels; the fastest chain that a
  careful user writes.
- OpenCV float: demosaiced, then everything in float32 at the sensor's size, resized at the end.
- LibRaw: rawpy's postprocess at full or at half size (bilinear, 8 bits), then OpenCV's resize. It
  has no way to process a part, so it always makes the whole picture.
- render: this library's fused ISP, the same steps and pixels as the teacher sees in training.

Two sensors: one that bins to 448 x 448 itself, and 12 MP, of which both sides use the square in the
middle: the student's graph bins it, the ISPs resize it. Decoding a file is in neither.
All take turns, and the least time of each counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from exported_models import FORMS, PRECISIONS, Form, Predict, forms, settled
from floor import interleaved
from microbenchmark import identifier, shape, time_way, workload

from isp_distill import ISP, RawImage, export, rawify, render, write_dng
from isp_distill.exports.model_card import processor
from isp_distill.exports.precision import quantise

SIZES = {"448 x 448": (448, 448), "12 MP": (3000, 4000)}
CROP, PICTURE = 448, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLACK, WHITE, BALANCE = 512.0, 16383.0, (1.9, 1.0, 1.5)
CCM = ((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49))
CAMERA = ISP(black=BLACK, white=WHITE, white_balance=BALANCE, ccm=CCM)

#: Seconds for the other runtime's threads to fall asleep.
_REST = 0.01

Way = Callable[[], object]
Array = np.ndarray[Any, Any]


class Normalised(nn.Module):
    """An RGB model that takes pictures in [0, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, picture: torch.Tensor) -> Any:
        """What the model makes of it."""
        return self.model((picture - self.mean) / self.std)


class Workload:
    """One sensor's mosaic, the two graphs, and every way from one to the other."""

    def __init__(
        self,
        sensor: str,
        folder: Path,
        threads: int,
        precisions: tuple[str, ...] = PRECISIONS,
    ) -> None:
        import cv2

        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        height, width = SIZES[sensor]
        self.mosaic = scene(height, width)
        side = min(height, width) // CROP * CROP
        top, left = (height - side) // 4 * 2, (width - side) // 4 * 2
        self.box = (top, left, side, side)
        self.middle = self.mosaic[top : top + side, left : left + side]

        self.raw, self.rgb = _models(height, width, folder, threads, precisions)
        self.ready: Array = np.random.default_rng(0).random((1, 3, PICTURE, PICTURE), np.float32)
        self.dng = write_dng(
            folder / "sensor.dng", self.mosaic, black=BLACK, white=WHITE,
            white_balance=BALANCE, ccm=CCM,
        )  # fmt: skip

    # ------------------------------------------------------------------ predictions

    def raw_model(self, form: Form = FORMS[0]) -> object:
        """Mosaic in, prediction out."""
        return self.raw[form](self.mosaic[None])

    def rgb_model(self, picture: Array | None = None, form: Form = FORMS[0]) -> object:
        """Picture in, prediction out."""
        return self.rgb[form](self.ready if picture is None else picture)

    # ------------------------------------------------------------------ pictures

    def opencv_16_bit(self) -> Array:
        """16 bits until the picture is small."""
        import cv2

        rgb = cv2.cvtColor(self.middle, cv2.COLOR_BayerRG2BGR)  # OpenCV's name for RGGB to RGB
        rgb = cv2.resize(rgb, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
        return _planes(_colours(rgb.astype(np.float32)))

    def opencv_float(self) -> Array:
        """Everything at the sensor's size in float32, then the resize."""
        import cv2

        rgb = cv2.cvtColor(self.middle, cv2.COLOR_BayerRG2BGR).astype(np.float32)
        picture = cv2.resize(_colours(rgb), (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
        return _planes(picture)

    def render(self) -> Array:
        """This library's ISP."""
        mosaic = torch.from_numpy(self.mosaic)[None]
        return render(mosaic, CAMERA, size=(PICTURE, PICTURE), crop=self.box).numpy()

    def libraw(self, half: bool) -> Callable[[], Array]:
        """LibRaw's whole picture of the decoded file, cut and resized."""
        import cv2
        import rawpy

        raw = rawpy.imread(str(self.dng))
        _ = raw.raw_image.sum()  # decoded now
        top, left, side, _ = (edge // (1 + half) for edge in self.box)

        def picture() -> Array:
            rgb = raw.postprocess(
                demosaic_algorithm=rawpy.DemosaicAlgorithm.LINEAR, half_size=half,
                use_camera_wb=True, no_auto_bright=True, user_flip=0, gamma=(2.4, 12.92),
            )  # fmt: skip
            rgb = rgb[top : top + side, left : left + side]
            rgb = cv2.resize(rgb, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
            return _planes(rgb.astype(np.float32) / 255)

        return picture

    def isps(self) -> dict[str, Callable[[], Array]]:
        """Every ISP, by name."""
        return {
            "OpenCV 16-bit": self.opencv_16_bit,
            "OpenCV float": self.opencv_float,
            "LibRaw half size": self.libraw(True),
            "LibRaw": self.libraw(False),
            "render (ours)": self.render,
        }


def scene(height: int, width: int) -> Array:
    """A mosaic of something smooth, with noise."""
    light = torch.rand(1, 1, 28, 28)
    light = nn.functional.interpolate(light, (height, width), mode="bicubic")[0, 0].clamp(0, 1)
    values = BLACK + light * (WHITE - BLACK) * 0.8 + 50 * torch.rand(height, width)
    return values.numpy().astype(np.uint16)


def _models(
    height: int, width: int, folder: Path, threads: int, precisions: tuple[str, ...]
) -> tuple[dict[Form, Predict], dict[Form, Predict]]:
    """The student and the RGB model, in every runtime and in these precisions."""
    import timm

    model = settled(timm.create_model("efficientnet_lite0"), torch.rand(4, 3, PICTURE, PICTURE))
    # As train("rawify", ...) makes it.
    student = rawify(
        model, mean=MEAN, std=STD, curve="gamma", colour_matrix=True, demosaic="malvar"
    )
    frames = [
        RawImage(mosaic=scene(height, width), pattern="RGGB", black=BLACK, white=WHITE,
                 white_balance=BALANCE, ccm=CCM)
        for _ in range(2)
    ]  # fmt: skip
    how = {"isp": CAMERA, "crop": CROP, "size": (height, width), "batch": 1}
    raw = {"float32": export(student, folder / "raw.onnx", **how)}
    if "int8" in precisions:
        raw["int8"] = export(
            student, folder / "raw-int8.onnx", precision="int8_signed", calibration=frames, **how
        )
    picture = torch.rand(1, 3, PICTURE, PICTURE)
    rgb = {"float32": folder / "rgb.onnx"}
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(Normalised(model).eval(), (picture,), rgb["float32"], dynamo=True,
                          input_names=["picture"], external_data=False, verbose=False)  # fmt: skip
    if "int8" in precisions:
        rgb["int8"] = folder / "rgb-int8.onnx"
        feeds = [{"picture": picture.numpy()}]
        quantise(rgb["float32"], rgb["int8"], feeds, kept=lambda _: [], signed=True)
    return forms(raw, threads), forms(rgb, threads)


def _colours(rgb: Array) -> Array:
    """Demosaiced sensor values to display values, ``[H, W, 3]`` float32."""
    import cv2

    gain = np.array(BALANCE) / (WHITE - BLACK)
    scale = np.concatenate([np.diag(gain), -BLACK * gain[:, None]], 1)
    balanced = np.clip(cv2.transform(rgb, scale), 0, 1)
    return cv2.pow(np.clip(cv2.transform(balanced, np.array(CCM)), 0, 1), 1 / 2.2)


def _planes(picture: Array) -> Array:
    return np.ascontiguousarray(picture.transpose(2, 0, 1))[None]


def measure(sensor: str, folder: Path, threads: int, rounds: int) -> dict[str, float]:
    """Seconds of both models alone in each form, of each ISP, and of each ISP and the RGB model."""
    work = Workload(sensor, folder, threads)
    # mypy cannot infer lambdas with defaults, hence the ignores.
    ways: dict[str, Way] = {}
    for form in FORMS:
        ways[f"RAW {form}"] = lambda f=form: work.raw_model(f)  # type: ignore[misc]
        ways[f"RGB {form}"] = lambda f=form: work.rgb_model(None, f)  # type: ignore[misc]
    for name, isp in work.isps().items():
        ways[f"ISP {name}"] = isp
        for form in FORMS:
            ways[f"{name} {form}"] = (
                lambda isp=isp, f=form: work.rgb_model(isp(), f)  # type: ignore[misc]
            )
    slow = {name: way for name, way in ways.items() if "LibRaw" in name}
    fast = {name: way for name, way in ways.items() if "LibRaw" not in name}
    few = max(2, rounds // 10)
    return {**interleaved(fast, rounds, _REST), **interleaved(slow, few, _REST)}


def agreement(sensor: str, folder: Path) -> dict[str, float]:
    """Mean distance of each ISP's picture from render's, to see that they do the same work."""
    work = Workload(sensor, folder, 1)
    ours = work.render()
    return {name: float(np.abs(isp() - ours).mean()) for name, isp in work.isps().items()}


#: Under pytest-benchmark: way, and the ISP before the RGB model; the RAW student has none.
RIVALS = {
    "ours": None, "ours, render and RGB model": "render (ours)",
    "OpenCV 16-bit and RGB model": "OpenCV 16-bit", "OpenCV float and RGB model": "OpenCV float",
    "LibRaw half size and RGB model": "LibRaw half size",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench-export")


@pytest.mark.parametrize("way", RIVALS, ids=identifier)
@pytest.mark.parametrize("sensor", SIZES, ids=identifier)
def test_mosaic_to_prediction(benchmark: Any, folder: Path, sensor: str, way: str) -> None:
    mosaic = f"{shape(1, *SIZES[sensor])} uint16"
    benchmark.group = f"mosaic to prediction, {mosaic}, efficientnet_lite0 in float32, forward"
    work = workload(Workload, sensor, folder, torch.get_num_threads(), PRECISIONS[:1])
    name = RIVALS[way]
    if name is None:
        time_way(benchmark, work.raw_model)
        return
    isp = work.isps()[name]
    time_way(benchmark, lambda: work.rgb_model(isp()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sensors", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    import onnxruntime
    import openvino

    print(
        f"{processor()}, {arguments.threads} threads, onnxruntime {onnxruntime.__version__}, "
        f"OpenVINO {openvino.__version__}; ms from the mosaic to the prediction, the least of "
        f"{arguments.rounds} rounds (LibRaw: of a tenth)\n"
    )
    print(f"| mosaic | way | ISP alone | {' | '.join(' '.join(form) for form in FORMS)} |")
    print("|---|---|--:|" + "--:|" * len(FORMS))
    for sensor in arguments.sensors:
        with tempfile.TemporaryDirectory() as folder:
            far = agreement(sensor, Path(folder))
            seconds = measure(sensor, Path(folder), arguments.threads, arguments.rounds)
        ms = {name: 1e3 * found for name, found in seconds.items()}

        def row(way: str, alone: str, key: str, sensor: str = sensor, ms: Any = ms) -> None:
            cells = " | ".join(f"{ms[f'{key} {form}']:.2f}" for form in FORMS)
            print(f"| {sensor} | {way} | {alone} | {cells} |", flush=True)

        row("RAW student", "none", "RAW")
        for name in far:
            row(f"{name}, RGB model", f"{ms[f'ISP {name}']:.2f}", name)
        row("RGB model alone, its picture ready", "-", "RGB")
        print(f"mean distance of the pictures from render's: {far}", file=sys.stderr)


if __name__ == "__main__":
    main()
