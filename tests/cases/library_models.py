"""Small models of other libraries, with random weights: their real classes, made from configs."""

from __future__ import annotations

import timm
import torch
import torchvision
import transformers
from torch import nn

SIDE = 32


def _vit(seed=0):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=8, num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def _segformer():
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, num_labels=4, sr_ratios=[4, 2, 1, 1],
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def _dinov2():
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8,
        mlp_ratio=2,
    )  # fmt: skip
    return transformers.Dinov2Model(config)


def _siglip():
    config = transformers.SiglipVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=8,
    )  # fmt: skip
    return transformers.SiglipVisionModel(config)


def _clip():
    config = transformers.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=8, projection_dim=12,
    )  # fmt: skip
    return transformers.CLIPVisionModelWithProjection(config)


def _timm(**settings):
    size = {"img_size": SIDE, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **size, **settings)


#: Each with the shape of one picture's output, and whether it is an embedding.
MODELS = {
    "transformers ViTForImageClassification": (_vit, (5,), False),
    "transformers SegformerForSemanticSegmentation": (_segformer, (4, 8, 8), False),
    "transformers Dinov2Model": (_dinov2, (16,), True),
    "transformers SiglipVisionModel": (_siglip, (16,), True),
    "transformers CLIPVisionModelWithProjection": (_clip, (12,), True),
    "timm ViT": (lambda: _timm(num_classes=6), (6,), False),
    "timm ViT without a classifier": (lambda: _timm(num_classes=0), (16,), True),
    "timm ViT's tokens": (lambda: _timm(num_classes=0, global_pool=""), (17, 16), True),
    "torchvision ResNet": (lambda: torchvision.models.resnet18(num_classes=5), (5,), False),
    "torchvision LR-ASPP": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        ),
        (4, SIDE, SIDE),
        False,
    ),
}


def model(name: str) -> nn.Module:
    """A model of :data:`MODELS`, in eval mode, the same at every call."""
    torch.manual_seed(0)
    return MODELS[name][0]().eval()
