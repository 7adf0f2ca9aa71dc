"""OpenVINO in a process of its own.

In one that has run onnxruntime and torch for long it has ended the whole process now and then.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np


def openvino_outputs(path, feed, folder):
    """The first output of an ONNX file for named inputs, computed in float32.

    Args:
        path: of the file.
        feed: arrays by name.
        folder: for the inputs and the output.
    """
    given, made = Path(folder) / "inputs.npz", Path(folder) / "output.npy"
    np.savez(given, **feed)
    subprocess.run([sys.executable, __file__, str(path), str(given), str(made)], check=True)
    return np.load(made)


if __name__ == "__main__":
    import openvino

    path, given, made = sys.argv[1:]
    # Else it computes in bfloat16 where the processor has it.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.save(made, next(iter(compiled(dict(np.load(given))).values())))
