"""A RAW student that predicts a class for every pixel, measured as demo/run.py measures one.

``python demo/segmentation.py [--out demo-output]``: the ImageNet teacher made dense (see
teacher.py) looks at 224-pixel pictures, its student at 448-pixel mosaics; the loss is taken at 56
pixels, where neither's logits ever exist. Ends with 1 unless the student is ahead of all baselines,
and training has raised pixel agreement and mean IoU and lowered the KL.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from comparison import AFTER, BEFORE, compare
from make_raw import make_raw
from photographs import gather
from teacher import load_dense_teacher

from isp_distill.training.train import TRAINABLE

#: Side of the teacher's pictures, the one it was trained on. At 448 half of the pixels have a top
#: class below a tenth of the probability, and maps of such classes are noise.
PICTURE = 224
LOSS_SIZE = 56
# The whole picture, and two details of it.
TILES = ((1.0, 0.5, 0.5), (1.3, 0.7, 0.2), (1.6, 0.4, 0.9))


def main() -> int:
    """Run the demo; 0 if the student ends ahead of every baseline, and nearer to the teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--trainable", choices=TRAINABLE, default="stem")
    # At 2, usual for classes of pictures, it is mostly the tail of 1000 classes that is compared.
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--stem-lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()

    photographs = gather(options.out / "photographs")
    out = options.out / "segmentation"
    training, held_out = make_raw(photographs, out / "raw", tiles=TILES)
    counts = [len(list(folder.glob("*.dng"))) for folder in (training, held_out)]
    print(f"{counts[0]} training and {counts[1]} held-out DNG files", flush=True)
    rows, _ = compare(
        load_dense_teacher(PICTURE),
        training,
        held_out,
        out,
        steps=options.steps,
        batch_size=options.batch_size,
        dense_size=LOSS_SIZE,
        lr=options.lr,
        stem_lr=options.stem_lr,
        trainable=options.trainable,
        temperature=options.temperature,
        seed=options.seed,
    )
    print(f"{time.perf_counter() - began:.0f} s in all")
    before, after = rows[BEFORE], rows[AFTER]
    assert before.mean_iou is not None
    assert after.mean_iou is not None
    best = max(rows[name].agreement_top1 for name in rows.keys() - {BEFORE, AFTER})
    failures = {
        f"the student is not ahead of the best baseline ({best:.3f})": after.agreement_top1 <= best,
        "training lowered pixel agreement": after.agreement_top1 <= before.agreement_top1,
        "training lowered mean IoU": after.mean_iou <= before.mean_iou,
        "training did not bring the student nearer to the teacher": after.kl >= before.kl,
    }
    for failure, happened in failures.items():
        if happened:
            print(f"FAILED: {failure}")
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
