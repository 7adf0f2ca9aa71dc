"""The whole of isp-distill on real photographs, measured on photographs it never trained on.

``python demo/run.py [--out demo-output]``: makes the RAW files, measures three baselines, trains a
student on the mosaics and measures it the same way. Ends with 1 unless the student is ahead of all
three.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from comparison import AFTER, BEFORE, compare
from make_raw import make_raw, picture_of
from photographs import gather
from teacher import load_teacher

BATCH = 16


def main() -> int:
    """Run the demo; 0 if the student ends ahead of every baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()

    photographs = gather(options.out / "photographs")
    held = [p.name for p in photographs if p.held_out]
    print(f"{len(photographs)} photographs, {len(held)} of them held out: {', '.join(held)}")
    training, held_out = make_raw(photographs, options.out / "raw")
    counts = [len(list(folder.glob("*.dng"))) for folder in (training, held_out)]
    print(
        f"{counts[0]} training and {counts[1]} held-out DNG files (4 CFA patterns, 12 and 14 bits)"
        f" written, and read back bit for bit by LibRaw: {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    picture_of(sorted(held_out.glob("*.dng"))[0]).save(options.out / "rendered.png")

    rows, _ = compare(
        load_teacher(),
        training,
        held_out,
        options.out,
        steps=options.steps,
        batch_size=BATCH,
        seed=options.seed,
    )
    print(f"a RAW file as the teacher sees it: {options.out / 'rendered.png'}")
    print(f"{time.perf_counter() - began:.0f} s in all")
    best = max(rows[name].agreement_top1 for name in rows.keys() - {BEFORE, AFTER})
    if rows[AFTER].agreement_top1 <= best:
        print(f"FAILED: the student is not ahead of the best baseline ({best:.3f})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
