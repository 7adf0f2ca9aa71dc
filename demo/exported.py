"""What ``make demo`` trained, as a product: loaded in a new process, and exported to two runtimes.

``python demo/exported.py [--out demo-output]``, after demo/run.py. Loads the student that the run
left and lets ``predict`` see the held-out RAW files. Then writes it as ONNX in float32 and in int8,
calibrated on the training files, and runs both in onnxruntime and in OpenVINO; each camera's
numbers are inputs. Measured: how often the top class is the RGB teacher's. Ends with 1 unless
``predict`` and float32 agree as often as the run's report says, and int8 nearly as often.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher import load_teacher
from torch import nn
from tqdm import tqdm

from isp_distill import (
    RawFolder,
    Teacher,
    View,
    camera_inputs,
    collate,
    cut_view,
    export,
    load,
    predict,
)

#: How far an agreement in int8 may fall below the report's. Some files near a tie always change their
#: class, to the teacher's as well: more is no fault.
INT8 = 0.02
#: Float32 is the same arithmetic in another order: a tie may fall the other way, once.
FLOAT32 = 1.5


def seen(
    teacher: Teacher, student: nn.Module, files: RawFolder
) -> tuple[list[int], list[dict[str, np.ndarray[Any, Any]]]]:
    """Of each file's middle the class that the teacher sees, and what an exported student takes."""
    view = View(student.view.crop, binning=student.view.binning)
    classes, feeds = [], []
    with torch.no_grad():
        for raw in tqdm(files, "teacher", leave=False):
            picture = teacher.picture(collate([raw], view=view))
            classes.append(int(teacher.logits(picture).argmax()))
            mosaic, isp = cut_view(raw, student)
            feeds.append({"mosaic": mosaic.numpy(), **camera_inputs(isp)})
    return classes, feeds


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


def agreements(out: Path) -> dict[str, tuple[float, float]]:
    """Of each way to run the student: its agreement with the teacher, and with ``predict``."""
    for runtime in ("onnx", "onnxruntime", "openvino"):
        importlib.import_module(runtime)  # missing now, or never
    run, held_out = out / "student", out / "raw" / "held-out"
    teacher = load_teacher()
    student = load(run, model=teacher.module)
    classes, feeds = seen(teacher, student, RawFolder(held_out))
    wanted = np.array(classes)
    ours = np.array([one.top[0].index for one in predict(student, held_out, top=1)])
    found = {"load and predict": (float((ours == wanted).mean()), 1.0)}
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
            found[f"{runtime}, {precision}"] = (
                float((said == wanted).mean()),
                float((said == ours).mean()),
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
    reported, views = after["agreement_top1"], after["samples"]
    found = agreements(out)
    lines = ["| way | agreement with the teacher | same class as predict |", "|---|--:|--:|"]
    lines += [f"| {name} | {agreed:.3f} | {same:.3f} |" for name, (agreed, same) in found.items()]
    text = "\n".join(lines)
    print(f"\n{text}\n\nthe run's report: {reported:.3f} over {views} files")
    (out / "exported.md").write_text(text + "\n")
    failed = False
    for name, (agreed, _) in found.items():
        lost = reported - agreed if "int8" in name else abs(reported - agreed)
        limit = INT8 if "int8" in name else FLOAT32 / views
        if lost > limit:
            print(f"FAILED: {name}: {agreed:.3f} is more than {limit:.3f} off the report")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
