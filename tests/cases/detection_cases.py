"""Small detectors: the real classes of torchvision and transformers, random weights, opinions."""

from __future__ import annotations

import json

import torch
import transformers
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

from isp_distill.detection import Detector, Heads, teacher

SIDE = 64


class Pyramid(nn.Module):
    """Features at strides 8 and 16."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 4, 1))
        self.down = nn.Conv2d(32, 32, 3, 2, 1)

    def forward(self, picture):
        first = self.stem(picture).relu()
        return {"0": first, "1": self.down(first).relu()}


def _anchors(*ratios):
    return AnchorGenerator(((12,), (24,)), (ratios,) * 2)


def _retinanet():
    made = RetinaNet(
        Pyramid(), 3, anchor_generator=_anchors(0.5, 1.0, 2.0), min_size=SIDE, max_size=SIDE
    )
    return _opinionated(made, [made.head.classification_head.cls_logits])


def _fcos():
    made = FCOS(Pyramid(), 3, anchor_generator=_anchors(1.0), min_size=SIDE, max_size=SIDE)
    nn.init.constant_(made.head.regression_head.bbox_reg.bias, 2.0)
    return _opinionated(made, [made.head.classification_head.cls_logits])


def _ssd():
    priors = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.4, 0.6])
    made = SSD(Pyramid(), priors, (SIDE, SIDE), 4, head=SSDHead([32, 32], [4, 4], 4))
    return _opinionated(made, list(made.head.classification_head.module_list))


def _backbone(**settings):
    kind = settings.pop("kind", transformers.ResNetConfig)
    return kind(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        **settings,
    )  # fmt: skip


_SMALL = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "num_queries": 6, "num_labels": 3,
}  # fmt: skip


def _detr(config=transformers.DetrConfig, kind=transformers.DetrForObjectDetection):
    backbone = _backbone(out_features=["stage4"])
    made = kind(config(use_timm_backbone=False, backbone_config=backbone, **_SMALL))
    return _opinionated(made, [made.class_labels_classifier])


def _conditional():
    return _detr(transformers.ConditionalDetrConfig, transformers.ConditionalDetrForObjectDetection)


def _rt_detr():
    backbone = _backbone(
        kind=transformers.RTDetrResNetConfig, out_features=["stage2", "stage3", "stage4"]
    )
    small = {k: v for k, v in _SMALL.items() if k != "encoder_layers"}
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[16, 16, 16],
        # Else activations are nearly constant, and the layer norms make noise of their rounding.
        initializer_range=0.1,
        # All positions of 32 pixels: which six are the best changes with every step.
        **{**small, "num_queries": 21},
    )  # fmt: skip
    made = transformers.RTDetrForObjectDetection(config)
    return _opinionated(made, list(made.model.decoder.class_embed))


@torch.no_grad()
def _opinionated(made, layers):
    """Scores from 0 to 1, where fresh weights have them all alike."""
    made.eval()
    chosen = teacher(made, size=SIDE)
    logits = chosen.logits(picture())[..., : chosen.model.heads.classes]
    for layer in layers:
        layer.weight.mul_(2 / logits.std())
        layer.bias.fill_(-1.0)
    return made


def picture(count=2):
    """Coloured blobs, ``[count, 3, SIDE, SIDE]``."""
    drawn = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 8, 8, generator=drawn)
    return nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)


MODELS = {
    "RetinaNet": _retinanet,
    "FCOS": _fcos,
    "SSD": _ssd,
    "DETR": _detr,
    "Conditional DETR": _conditional,
    "RT-DETR": _rt_detr,
}
TORCHVISION = ("RetinaNet", "FCOS", "SSD")


def model(name):
    """A detector of :data:`MODELS`, in eval mode, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


def teacher_of(name, **settings):
    return teacher(model(name), **{"size": SIDE, "confidence": 0.2, **settings})


class Bright(nn.Module):
    """Detects cells of 8 x 8 pixels that are bright, each with itself as its box."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 2, 8, 8)
        with torch.no_grad():
            self.look.weight.zero_()
            self.look.weight[0] = 40 / (3 * 64)
            self.look.bias.copy_(torch.tensor([-20.0, -20.0]))

    def forward(self, picture):
        logits = self.look(picture)
        rows, columns = (torch.arange(n, device=picture.device) for n in logits.shape[2:])
        top, left = torch.meshgrid(rows, columns, indexing="ij")
        corners = torch.stack([left, top, left + 1, top + 1], -1).flatten(0, 1)
        sides = torch.tensor([len(columns), len(rows)] * 2, device=picture.device)
        boxes = (corners / sides).expand(len(picture), -1, -1)
        return logits.flatten(2).transpose(1, 2), boxes


def bright_teacher(size=SIDE):
    heads = Heads(2, nms=None)
    return teacher(Detector(Bright(), heads), size=size, mean=0.0, std=1.0, classes=["sun", "moon"])


def write_boxes(path, images, annotations, categories=((0, "sun"), (1, "moon"))):
    """A COCO JSON: images (name, height, width), annotations (image's place, category, bbox)."""
    content = {
        "images": [
            {"id": i, "file_name": n, "height": h, "width": w} for i, (n, h, w) in enumerate(images)
        ],
        "annotations": [
            {"id": i, "image_id": of, "category_id": c, "bbox": list(box)}
            for i, (of, c, box) in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    path.write_text(json.dumps(content))
    return path
