"""The kernels in a training loop of your own, without ``train()``.

The student is a small network whose first layer, a RawStem, reads the sensor's mosaic. The teacher
is an RGB model, and looks at the picture that ``render`` makes of the same mosaic. ``distill_loss``
says how far the student's prediction is from the teacher's, and how often both name the same class.
RawStem is a module around ``raw_conv``: call that one where you keep weights and camera yourself.

    python examples/kernels_in_a_loop.py                               # on four photographs
    python examples/kernels_in_a_loop.py photos/raw --weights DEFAULT  # on your RAW files
"""

import argparse
import functools

import stand_ins
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from isp_distill import RawFolder, RawModel, RawStem, View, collate, distill_loss, render

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's models

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", nargs="?", help="of RAW files")
parser.add_argument("--weights", help="of the teacher, e.g. DEFAULT; random ones if not given")
parser.add_argument("--epochs", type=int, default=20)
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
teacher = torchvision.models.resnet18(weights=options.weights).eval()
if options.weights is None:
    stand_ins.settle(teacher)
stem = RawStem(32, kernel_size=3, stride=2, padding=1, curve="gamma", learn_camera=True)
body = [nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
student = RawModel(nn.Sequential(stem, *body, nn.Flatten(), nn.Linear(64, 1000)))
optimizer = torch.optim.AdamW(student.to(device).parameters(), lr=1e-3)
teacher.to(device)

photos = RawFolder(options.folder) if options.folder else stand_ins.raw_photographs()
middle = functools.partial(collate, view=View(448))  # 448 sensor pixels a side, of any sensor
loader = DataLoader(photos, batch_size=4, shuffle=True, collate_fn=middle)

for epoch in range(1, options.epochs + 1):
    for batch in loader:
        batch = batch.to(device)
        with torch.no_grad():
            picture = render(batch.mosaic, batch.isp, size=224, mean=MEAN, std=STD)
            target = teacher(picture)
        prediction = student(batch.mosaic, batch.isp)
        loss, agreed = distill_loss(prediction, target, temperature=2.0, return_agreement=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"epoch {epoch}: loss {loss:.4f}, the same class for {agreed} of {len(prediction)}")
