"""What ``make demo`` trained, as a product: loaded in a new process, and exported to two runtimes.

``python demo/exported.py [--out demo-output]``, after demo/run.py. Loads the student that the run
left and lets ``predict`` see the held-out RAW files. Then writes it as ONNX in float32 and in int8,
calibrated on the training files, and runs both in onnxruntime and in OpenVINO; each camera's
numbers are inputs. Measured: how often the top class is the RGB teacher's, in the middle of each
file and in all five views of it: of one view each, chance moves int8's figure by as much as is
asked of it. Ends with 1 unless ``predict`` and float32 agree as often as the run's report says, and
int8 nearly as often as float32 does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher import load_teacher
from torch import nn
from tqdm import tqdm

from isp_distill import ISP, RawFolder, Teacher, View, camera_inputs, export, load, predict
from isp_distill.data.batch import RawBatch
from isp_distill.data.draw import FIXED_PLACES, Draw

#: How far an agreement in int8 may fall below float32's. Some files near a tie always change their
#: class, to the teacher's as well: more is no fault.
INT8 = 0.02
#: Float32 is the same arithmetic in another order: a tie may fall the other way, once.
FLOAT32 = 1.5


def seen(
    teacher: Teacher, student: nn.Module, files: RawFolder
) -> tuple[np.ndarray[Any, Any], list[dict[str, np.ndarray[Any, Any]]]]:
    """Of each file's five views, the middle first: the class that the teacher sees, and what an
    exported student takes."""
    view = View(student.view.crop, binning=student.view.binning)
    classes, feeds = [], []
    with torch.no_grad():
        for raw in tqdm(files, "teacher", leave=False):
            for place in FIXED_PLACES:
                cut, camera = view.cut_raw(raw, Draw(place))
                mosaic = torch.from_numpy(np.ascontiguousarray(cut))[None]
                isp = ISP.from_raw(camera)
                picture = teacher.picture(RawBatch(mosaic, isp))
                classes.append(int(teacher.logits(picture).argmax()))
                feeds.append({"mosaic": mosaic.numpy(), **camera_inputs(isp)})
    return np.array(classes), feeds


def sessions(file: Path) -> dict[str, Callable[[dict[str, np.ndarray[Any, Any]]], Any]]:
    """An ONNX file in each runtime: from named inputs to logits."""
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    # Else OpenVINO computes in bfloat16 where the processor has it.
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "onnxruntime": lambda feed: session.run(None, feed)[0],
        "OpenVINO": lambda feed: next(iter(compiled(feed).values())),
    }


@dataclass(frozen=True)
class Agreement:
    """How often a way to run the student says what the teacher says.

    Attributes:
        middles: share of the files, by their middle view.
        views: share of all views; None where only middles were seen.
        same: share of the middles with ``predict``'s class.
    """

    middles: float
    views: float | None
    same: float


def agreements(out: Path) -> dict[str, Agreement]:
    """Of each way to run the student: its agreement with the teacher."""
    for runtime in ("onnx", "onnxruntime", "openvino"):
        importlib.import_module(runtime)  # missing now, or never
    run, held_out = out / "student", out / "raw" / "held-out"
    teacher = load_teacher()
    student = load(run, model=teacher.module)
    wanted, feeds = seen(teacher, student, RawFolder(held_out))
    middles = slice(None, None, len(FIXED_PLACES))
    ours = np.array([one.top[0].index for one in predict(student, held_out, top=1)])
    found = {"load and predict": Agreement(float((ours == wanted[middles]).mean()), None, 1.0)}
    for precision in ("float32", "int8"):
        file = export(
            student,
            out / f"student-{precision}.onnx",
            precision=precision,
            calibration=out / "raw" / "train" if precision == "int8" else None,
        )
        for runtime, answer in sessions(file).items():
            shown = tqdm(feeds, f"{runtime}, {precision}", leave=False)
            said = np.array([int(answer(feed).argmax()) for feed in shown])
            found[f"{runtime}, {precision}"] = Agreement(
                float((said == wanted)[middles].mean()),
                float((said == wanted).mean()),
                float((said[middles] == ours).mean()),
            )
    return found


def main() -> int:
    """Print the table; 0 if every way says what the run's report says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    out = parser.parse_args().out
    report = out / "student" / "report.json"
    if not report.is_file():
        print(f"{report} is not there: train the demo's student first, make demo", file=sys.stderr)
        return 2
    after = json.loads(report.read_text())["after"]
    if after is None:
        print(f"{report} has no validation: train with one, as make demo does", file=sys.stderr)
        return 2
    reported, files = after["agreement_top1"], after["samples"]
    found = agreements(out)
    lines = [
        "| way | agreement with the teacher | in five views each | same class as predict |",
        "|---|--:|--:|--:|",
    ]
    for name, one in found.items():
        views = "" if one.views is None else f"{one.views:.3f}"
        lines.append(f"| {name} | {one.middles:.3f} | {views} | {one.same:.3f} |")
    text = "\n".join(lines)
    print(f"\n{text}\n\nthe run's report: {reported:.3f} over {files} files")
    (out / "exported.md").write_text(text + "\n")
    failed = False
    for name, one in found.items():
        if "int8" in name:
            exact = found[name.replace("int8", "float32")].views
            assert exact is not None
            assert one.views is not None
            lost, limit = exact - one.views, INT8
        else:
            lost, limit = abs(reported - one.middles), FLOAT32 / files
        if lost > limit:
            print(f"FAILED: {name}: {lost:.3f} of agreement lost, at most {limit:.3f} is allowed")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
