"""A segmentation model as the teacher: its student predicts a class for every pixel.

``dense_size`` is the resolution at which both class maps are compared, in the loss and in the
reports. Nothing of that size is ever stored: the loss upsamples in its kernel.

    python examples/dense_teacher.py                               # on four photographs
    python examples/dense_teacher.py photos/raw --weights DEFAULT  # on your RAW files, or pictures

Other teachers of torchvision: ``--model deeplabv3_mobilenet_v3_large``, ``--model fcn_resnet50``.
"""

import argparse

import stand_ins
import torchvision

from isp_distill import Teacher, train

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", nargs="?", help="of RAW files, or of ordinary pictures")
parser.add_argument("--model", default="lraspp_mobilenet_v3_large")
parser.add_argument("--weights", help="of the teacher, e.g. DEFAULT; random ones if not given")
parser.add_argument("--size", type=int, default=224, help="side of the teacher's pictures")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--out", default="runs/dense")
options = parser.parse_args()

model = torchvision.models.get_model(options.model, weights=options.weights, weights_backbone=None)
if options.weights is None:
    stand_ins.settle(model, options.size)
photos = options.folder or stand_ins.raw_photographs(2 * options.size)
result = train(
    "rawify",
    Teacher(model, size=options.size),
    photos,
    validation=photos,  # held-out ones, where you have some
    out=options.out,
    steps=options.steps,
    batch_size=4,
    dense_size=options.size,
    temperature=1.0,
    stem_lr=5e-3,
)
print("before:", result.before)
print("after: ", result.after)
print("Both class maps are drawn in", result.out / "contact_sheet.png")
