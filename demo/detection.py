"""A detector distilled into a student that sees the mosaic, without a box that anybody drew.

``python demo/detection.py [--out demo-output]``: the teacher finds pedestrians in frames of a
street (see pedestrian_detector.py and footage.py) as its ISP renders them; the student, the same
network on the mosaic, learns its scores and boxes at all 1917 places. Measured on a later part of
the footage: mean average precision, the teacher's detections taken for true. Ends with 1 unless the
student is ahead of the untrained one and of every baseline, also of the teacher's own network on
linear RAW.
"""

from __future__ import annotations

import sys
import time

from comparison import compare, not_ahead, training_options
from footage import gather_frames
from make_raw import make_raw
from pedestrian_detector import SIDE, load_pedestrian_teacher

from isp_distill import Report

#: Side of the mosaics: room for random crops of twice the teacher's side.
MOSAIC = 2 * SIDE + 40
# Of each frame its left and its right part, as large as they can be.
TILES = ((1.0, 0.5, 0.1), (1.0, 0.5, 0.9))


def main() -> int:
    """Run the demo; 0 if the student ends ahead of every baseline."""
    options = training_options(__doc__, steps=32, batch_size=8).parse_args()
    began = time.perf_counter()

    frames = gather_frames(options.out / "footage")
    out = options.out / "detection"
    training, held_out = make_raw(frames, out / "raw", side=MOSAIC, tiles=TILES)
    counts = [len(list(folder.glob("*.dng"))) for folder in (training, held_out)]
    print(
        f"{counts[0]} training and {counts[1]} held-out DNG files: "
        f"{time.perf_counter() - began:.0f} s",
        flush=True,
    )
    rows, _ = compare(
        load_pedestrian_teacher(),
        training,
        held_out,
        out,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        stem_lr=options.stem_lr,
        temperature=1.0,
        seed=options.seed,
    )
    print(f"{time.perf_counter() - began:.0f} s in all")
    return not_ahead(rows, _ahead)


def _ahead(one: Report, other: Report) -> bool:
    """Whether more of the teacher's detections are found."""
    assert one.mean_ap is not None
    assert other.mean_ap is not None
    return one.mean_ap > other.mean_ap


if __name__ == "__main__":
    sys.exit(main())
