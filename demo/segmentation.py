"""A RAW student that predicts a class for every pixel, measured as demo/run.py measures one.

``python demo/segmentation.py [--out demo-output]``: the ImageNet teacher made dense (see
teacher.py) looks at 224-pixel pictures, its student at 448-pixel mosaics; the loss is taken at 56
pixels, where neither's logits ever exist. The photographs and files are demo/run.py's, and all
weights are trained. Ends with 1 unless the student is ahead of every baseline by 0.05 of pixel
agreement and 0.03 of mean IoU, and training has lowered the KL.
"""

from __future__ import annotations

import sys
import time

from comparison import AFTER, BEFORE, compare, training_options
from make_raw import make_raw
from photographs import gather
from teacher import load_dense_teacher

from isp_distill.training.settings import TRAINABLE

#: Side of the teacher's pictures, the one it was trained on. At 448 half of the pixels have a top
#: class below a tenth of the probability, and maps of such classes are noise.
PICTURE = 224
LOSS_SIZE = 56
#: How far the student must be ahead of every row that was not trained.
AHEAD_AGREEMENT, AHEAD_IOU = 0.05, 0.03


def main() -> int:
    """Run the demo; 0 if the student ends ahead of every baseline, and nearer to the teacher."""
    parser = training_options(__doc__, steps=140, batch_size=8)
    parser.add_argument("--trainable", choices=TRAINABLE, default="all")
    # At 2, usual for classes of pictures, it is mostly the tail of 1000 classes that is compared.
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    began = time.perf_counter()

    photographs = gather(options.out / "photographs")
    out = options.out / "segmentation"
    training, held_out = make_raw(photographs, options.out / "raw")
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
    assert None not in (before.kl, after.kl, after.agreement_top1, after.mean_iou)
    others = [row for name, row in rows.items() if name != AFTER]
    best = max(row.agreement_top1 or 0 for row in others)
    best_iou = max(row.mean_iou or 0 for row in others)
    failures = {
        f"pixel agreement is not {AHEAD_AGREEMENT} ahead of the best other row ({best:.3f})": (
            after.agreement_top1 < best + AHEAD_AGREEMENT
        ),
        f"mean IoU is not {AHEAD_IOU} ahead of the best other row ({best_iou:.3f})": (
            after.mean_iou < best_iou + AHEAD_IOU
        ),
        "training did not bring the student nearer to the teacher": after.kl >= before.kl,
    }
    for failure, happened in failures.items():
        if happened:
            print(f"FAILED: {failure}")
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
