"""An ONNX file in int8, calibrated on mosaics, by onnxruntime's own tools.

The way from sensor values to the stem's convolution stays in float32: eight bits of a linear
mosaic would throw its shadows away. The rest is quantised statically, in QDQ form: weights for each
channel, weights and activations of 8 bits without a sign. What rounding the weights moves on
average is taken out of the biases, see bias_correction.py.

Whether weights have a sign is a choice between processors. With one, two products overflow the 16
bits that they are summed in where a processor has no VNNI, and onnxruntime says nothing of it
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html). Without one, the
result is right everywhere, but onnxruntime computes such convolutions slowly where there is VNNI:
efficientnet-lite0 took 4 times as long as in float32, and 0.6 of it with a sign (AMD EPYC with
AVX-512). So "int8" has none, and "int8_signed" is there for those who know their processor. Weights
of 7 bits would serve both, but lose twice as much.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.exports.bias_correction import add_biases, correct_biases

Feed = dict[str, np.ndarray[Any, Any]]

PRECISIONS = ("float32", "float16", "int8", "int8_signed")
#: Those that are calibrated.
INT8 = ("int8", "int8_signed")
# Weights by whose names the convolutions are known that end and begin the float32 part.
_STEM, _PLANES = "stems.", "model.identity"


def to_int8(source: Path, target: Path, feeds: Sequence[Feed], signed: bool = False) -> None:
    """An ONNX file with its network in int8.

    Args:
        source: the float32 file.
        target: the new one.
        feeds: inputs to calibrate on: of real mosaics, since the ranges of activations follow them.
        signed: whether weights have a sign, see above.

    Raises:
        ImportError: onnx or onnxruntime is missing.
        ValueError: there is nothing to calibrate on.
    """
    if not feeds:
        raise ValueError("int8 needs mosaics to calibrate on, and there are none")
    onnx = _needed("onnx")
    quantise(source, target, feeds, float32_nodes, signed)
    made = onnx.load(target)
    # The tool forgets what the file said of itself.
    kept = {entry.key for entry in made.metadata_props}
    for entry in onnx.load(source).metadata_props:
        if entry.key not in kept:
            made.metadata_props.add(key=entry.key, value=entry.value)
    onnx.save(made, target)


def quantise(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    kept: Callable[[Any], list[str]],
    signed: bool = False,
) -> None:
    """Any ONNX file in int8, as :func:`to_int8` quantises a student's.

    Args:
        source: the float32 file.
        target: the new one.
        feeds: inputs to calibrate on.
        kept: of the model, the names of the nodes that stay in float32.
        signed: whether weights have a sign.

    Raises:
        ImportError: onnx or onnxruntime is missing.
    """
    onnx, tools = _needed("onnx"), _needed("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]  # untyped
        """Hands the tool one input after another."""

        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantise.") as folder, _quiet():
        ready = Path(folder) / "ready.onnx"
        # Shapes, and batch norms folded into convolutions, as the tool's manual asks for.
        _needed("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(source), str(ready), skip_symbolic_shape=True
        )
        excluded = kept(onnx.load(ready))
        add_biases(ready, but=excluded)
        tools.quantize_static(
            str(ready),
            str(target),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8 if signed else tools.QuantType.QUInt8,
            per_channel=True,
            nodes_to_exclude=excluded,
        )
        correct_biases(ready, target, feeds)


def float32_nodes(model: Any) -> list[str]:
    """The nodes before a stem's convolution, by name: what stays in float32.

    Args:
        model: an ONNX model that :func:`isp_distill.export` wrote.

    Raises:
        ValueError: if there is no such convolution.
    """
    nodes = list(model.graph.node)
    maker = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends: list[str] = []
    for node in nodes:
        if node.op_type != "Conv":
            continue
        weight = node.input[1]
        if weight.startswith(_STEM) and weight.endswith(".weight"):
            ends.append(node.input[0])
        elif weight == _PLANES:  # ends at the clamp to [0, 1]
            ends += _first_outputs(node, "Clip", readers)
    if not ends:
        raise ValueError("the file holds no stem: only files of isp_distill.export are converted")
    found: dict[str, None] = {}
    waiting = [maker[name] for name in ends if name in maker]
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found[node.name] = None
        waiting += [maker[name] for name in node.input if name in maker]
    return list(found)


def _first_outputs(start: Any, kind: str, readers: dict[str, list[Any]]) -> list[str]:
    """The outputs of the first node of a kind downstream."""
    waiting = [start]
    for node in waiting:
        if node.op_type == kind:
            return list(node.output)
        waiting += [reader for name in node.output for reader in readers.get(name, ())]
    return []


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"other precisions need onnx and onnxruntime ({error}): pip install isp-distill[export]"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools talk of what is theirs to mind."""
    logger = logging.getLogger()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
