"""Distillation in a loop of one's own under Hugging Face's accelerate.

accelerate places the models and batches, and splits the batches over the processes that
``accelerate launch`` starts. Needs ``pip install accelerate``.

    python examples/accelerate_loop.py                               # on four photographs
    accelerate launch examples/accelerate_loop.py photos/raw --weights DEFAULT  # on your RAW files
"""

import argparse
import functools

import stand_ins
import torch
import torchvision
from accelerate import Accelerator
from torch.utils.data import DataLoader

from isp_distill import DistillLoss, RawFolder, View, collate, rawify, render

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's models

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", nargs="?", help="of RAW files")
parser.add_argument("--weights", help="of the teacher, e.g. DEFAULT; random ones if not given")
parser.add_argument("--epochs", type=int, default=10)
options = parser.parse_args()

accelerator = Accelerator()
torch.manual_seed(0)
teacher = torchvision.models.resnet18(weights=options.weights)
if options.weights is None:
    stand_ins.settle(teacher)
# Batch norms keep the statistics that the teacher was trained with, hence eval.
student = rawify(teacher, mean=MEAN, std=STD, curve="gamma", colour_matrix=True).eval()
teacher = teacher.eval().requires_grad_(False).to(accelerator.device)
camera = student.stem.camera_parameters()
weights = list(set(student.parameters()) - set(camera))
optimizer = torch.optim.AdamW([{"params": camera, "lr": 1e-3}, {"params": weights, "lr": 1e-5}])

photos = RawFolder(options.folder) if options.folder else stand_ins.raw_photographs()
middle = functools.partial(collate, view=View(448))  # 448 sensor pixels a side, of any sensor
loader = DataLoader(photos, batch_size=4, shuffle=True, collate_fn=middle)
student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
loss_of = DistillLoss(temperature=2.0)
for epoch in range(options.epochs):
    for batch in loader:
        with torch.no_grad():
            picture = render(batch.mosaic, batch.isp, size=224, mean=MEAN, std=STD)
            target = teacher(picture)
        loss = loss_of(student(batch.mosaic, batch.isp), target)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}")
