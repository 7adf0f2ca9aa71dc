"""Distillation into a RAW student as a LightningModule, so that Lightning runs the loop.

The student is the teacher itself, made RAW by ``rawify``: it starts with the teacher's weights.
A DataLoader makes the batches with ``collate``, and Lightning moves them to the device.
Needs ``pip install lightning``.

    python examples/lightning_module.py                               # on four photographs
    python examples/lightning_module.py photos/raw --weights DEFAULT  # on your RAW files
"""

import argparse
import functools
from typing import Any

import lightning
import stand_ins
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from isp_distill import DistillLoss, RawFolder, View, collate, rawify, render

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's models


class RawDistillation(lightning.LightningModule):
    """Moves a student's predictions on mosaics towards its teacher's on rendered pictures."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.student = rawify(teacher, mean=MEAN, std=STD, curve="gamma", colour_matrix=True)
        self.teacher = teacher.requires_grad_(False)
        self.loss = DistillLoss(temperature=2.0)
        self.eval()  # batch norms keep the statistics that the teacher was trained with

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The loss of a batch: its mosaics, uint16 [N, H, W], and their cameras."""
        with torch.no_grad():
            picture = render(batch.mosaic, batch.isp, size=224, mean=MEAN, std=STD)
            target = self.teacher(picture)
        loss = self.loss(self.student(batch.mosaic, batch.isp), target)
        self.log("loss", loss, batch_size=len(target))
        self.print(f"epoch {self.current_epoch}: loss {loss:.4f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Fast for the few numbers that stand for the ISP, slow for the weights."""
        camera = self.student.stem.camera_parameters()
        weights = list(set(self.student.parameters()) - set(camera))
        groups = [{"params": camera, "lr": 1e-3}, {"params": weights, "lr": 1e-5}]
        return torch.optim.AdamW(groups)


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", nargs="?", help="of RAW files")
parser.add_argument("--weights", help="of the teacher, e.g. DEFAULT; random ones if not given")
parser.add_argument("--epochs", type=int, default=10)
options = parser.parse_args()

lightning.seed_everything(0, verbose=False)
teacher = torchvision.models.resnet18(weights=options.weights)
if options.weights is None:
    stand_ins.settle(teacher)
photos = RawFolder(options.folder) if options.folder else stand_ins.raw_photographs()
middle = functools.partial(collate, view=View(448))  # 448 sensor pixels a side, of any sensor
loader = DataLoader(photos, batch_size=4, shuffle=True, collate_fn=middle)
trainer = lightning.Trainer(
    max_epochs=options.epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(RawDistillation(teacher), loader)
