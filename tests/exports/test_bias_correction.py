"""Biases of int8 files take back what rounded weights move on average."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from isp_distill.exports import precision
from isp_distill.exports.bias_correction import add_biases, correct_biases


class Head(nn.Module):
    """Strides, padding, groups, a layer without a bias, and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 1, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network, its feeds, and its int8 file without the correction."""
    folder = tmp_path_factory.mktemp("corrected")
    torch.manual_seed(0)
    model = Head().eval()
    with torch.no_grad():  # far from 0 on average, as activations after a ReLU are
        for layer in model.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.add_(0.1)
    example = torch.rand(2, 3, 21, 17)
    torch.onnx.export(
        model, (example,), folder / "f.onnx", dynamo=True, verbose=False, external_data=False,
        input_names=["x"],
    )  # fmt: skip
    feeds = [{"x": torch.rand(2, 3, 21, 17).numpy()} for _ in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "correct_biases", lambda *_: 0)
        precision.quantise(folder / "f.onnx", folder / "q.onnx", feeds, kept=lambda _: [])
    return folder, feeds


def convolution_of(path, feeds):
    """Every channel's mean in the first convolution's output, and in the logits."""
    model = onnx.load(path)
    first = next(node for node in model.graph.node if node.op_type == "Conv").output[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(first))
    options = onnxruntime.SessionOptions()
    # As written: a fused integer convolution has another output of that name.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [session.run([first], feed)[0] for feed in feeds]
    return np.concatenate(found).mean((0, 2, 3))


def test_means_come_back(files, tmp_path):
    folder, feeds = files
    (tmp_path / "q.onnx").write_bytes((folder / "q.onnx").read_bytes())
    # Weights of four bits: the mean error stands out.
    model = onnx.load(tmp_path / "q.onnx")
    for one in model.graph.initializer:
        if one.name.endswith("weight_quantized"):
            codes = onnx.numpy_helper.to_array(one) & 0xF0
            one.CopyFrom(onnx.numpy_helper.from_array(codes, one.name))
    onnx.save(model, tmp_path / "q.onnx")
    exact = convolution_of(folder / "f.onnx", feeds)
    before = np.abs(convolution_of(tmp_path / "q.onnx", feeds) - exact).max()
    # Of the convolution without a bias too: it was given one.
    assert correct_biases(folder / "f.onnx", tmp_path / "q.onnx", feeds) == 4
    after = np.abs(convolution_of(tmp_path / "q.onnx", feeds) - exact).max()
    assert before > 0.02
    assert after < before / 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.onnx"]


def test_the_logits_are_nearer(files, tmp_path):
    folder, feeds = files
    precision.quantise(folder / "f.onnx", tmp_path / "c.onnx", feeds, kept=lambda _: [])

    def said(path):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, feed)[0] for feed in feeds])

    exact = said(folder / "f.onnx")
    off = [np.abs(said(at) - exact).mean() for at in (folder / "q.onnx", tmp_path / "c.onnx")]
    assert off[1] < off[0]


def test_nothing_quantised_is_left_alone(files, tmp_path):
    folder, feeds = files
    (tmp_path / "f.onnx").write_bytes((folder / "f.onnx").read_bytes())
    assert correct_biases(folder / "f.onnx", tmp_path / "f.onnx", feeds) == 0
    assert (tmp_path / "f.onnx").read_bytes() == (folder / "f.onnx").read_bytes()


def test_layers_are_given_biases(files, tmp_path):
    folder, feeds = files
    path = tmp_path / "b.onnx"
    path.write_bytes((folder / "f.onnx").read_bytes())
    bare = [n for n in onnx.load(path).graph.node if n.op_type == "Conv" and len(n.input) == 2]
    add_biases(path, but=[node.name for node in bare])
    assert path.read_bytes() == (folder / "f.onnx").read_bytes()
    add_biases(path)
    layers = [n for n in onnx.load(path).graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(bare) == 1
    assert [len(node.input) for node in layers] == [3, 3, 3, 3]
    onnx.checker.check_model(str(path), full_check=True)
    sessions = [
        onnxruntime.InferenceSession(at, providers=["CPUExecutionProvider"])
        for at in (folder / "f.onnx", path)
    ]
    before, after = (session.run(None, feeds[0])[0] for session in sessions)
    np.testing.assert_array_equal(before, after)


def test_names_stay_apart(files, tmp_path):
    """Nodes without a name are left alone, and a name that is taken is not taken twice."""
    folder, _ = files
    model = onnx.load(folder / "f.onnx")
    bare = next(n for n in model.graph.node if n.op_type == "Conv" and len(n.input) == 2)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones(3, np.float32), f"{bare.name}.bias")
    )
    onnx.save(model, tmp_path / "taken.onnx")
    add_biases(tmp_path / "taken.onnx")
    onnx.checker.check_model(str(tmp_path / "taken.onnx"), full_check=True)
    onnxruntime.InferenceSession(tmp_path / "taken.onnx", providers=["CPUExecutionProvider"])
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "unnamed.onnx")
    before = (tmp_path / "unnamed.onnx").read_bytes()
    add_biases(tmp_path / "unnamed.onnx")
    assert (tmp_path / "unnamed.onnx").read_bytes() == before
