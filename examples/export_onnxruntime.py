"""A RAW student as an ONNX file, run by onnxruntime on the sensor's own values.

The file holds standard operators and needs no part of this library. Its inputs are the mosaic and
the numbers of its camera; with ``export(..., isp=...)`` one camera is built in, and the mosaic is
all that it takes. Needs ``pip install "isp-distill[export]"``.

    python examples/export_onnxruntime.py                  # on a photograph
    python examples/export_onnxruntime.py photo.dng --weights DEFAULT  # on your RAW file
"""

import argparse

import onnxruntime
import stand_ins
import torch
import torchvision

from isp_distill import View, camera_inputs, cut_view, export, rawify, read_raw

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("file", nargs="?", help="a RAW file")
parser.add_argument("--weights", help="of the model, e.g. DEFAULT; random ones if not given")
parser.add_argument("--crop", type=int, default=448, help="side of the student's mosaics")
parser.add_argument("--out", default="student.onnx")
options = parser.parse_args()

# A student that `train` has trained is exported in the same way, and knows its crop by itself.
model = torchvision.models.mobilenet_v3_small(weights=options.weights).eval()
if options.weights is None:
    stand_ins.settle(model)
student = rawify(model, curve="gamma", colour_matrix=True).eval()
export(student, options.out, crop=options.crop)

raw = read_raw(options.file) if options.file else stand_ins.raw_photographs()[0]
mosaic, isp = cut_view(raw, View(options.crop))
session = onnxruntime.InferenceSession(options.out)
(answer,) = session.run(None, {"mosaic": mosaic.numpy(), **camera_inputs(isp)})
with torch.no_grad():
    expected = student(mosaic, isp).numpy()

print(f"onnxruntime: class {answer.argmax()}, torch: class {expected.argmax()}")
difference = abs(answer - expected).max()
print(f"largest difference of a logit: {difference:.1e}, of logits up to {abs(expected).max():.4f}")
