"""ONNX files on the CPU in two runtimes, in float32 and in int8: what bench_export.py times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

Array = np.ndarray[Any, Any]
Predict = Callable[[Array], object]

RUNTIMES = ("onnxruntime", "OpenVINO")
PRECISIONS = ("float32", "int8")
#: Runtime and precision.
Form = tuple[str, str]
FORMS: tuple[Form, ...] = tuple((r, p) for r in RUNTIMES for p in PRECISIONS)


def forms(files: Mapping[str, Path], threads: int) -> dict[Form, Predict]:
    """A model's files, one of each precision, ready to predict in both runtimes.

    Args:
        files: by precision; each takes one array, of a fixed batch.
        threads: that a prediction may take.
    """
    return {
        (runtime, precision): (_onnxruntime if runtime == RUNTIMES[0] else _openvino)(file, threads)
        for precision, file in files.items()
        for runtime in RUNTIMES
    }


def _onnxruntime(file: Path, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda value: session.run(None, {name: value})[0]


def _openvino(file: Path, threads: int) -> Predict:
    import openvino

    settings = {
        # Else it computes in bfloat16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    return lambda value: next(iter(request.infer({0: value}).values()))


def settled(model: nn.Module, pictures: Any) -> nn.Module:
    """A model with random weights whose batch norms know some pictures: int8 then has ranges."""
    import torch

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(pictures)
    return model.eval()
