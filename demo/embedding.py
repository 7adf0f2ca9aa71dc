"""An embedding distilled into a student that sees the mosaic, without a label or a class.

``python demo/embedding.py [--out demo-output]``: the photographs, files and split of demo/run.py.
The teacher is EfficientNet-Lite0 without its classifier: 1280 numbers of a picture. The student's
embedding of a mosaic is made like the teacher's of the rendered picture, by their cosine. Measured
on held-out photographs: the mean cosine, and whether the student's embedding of a shot finds the
teacher's embedding of the same shot among those of all of them, eight details of each photograph
included. Ends with 1 unless the student is ahead of every baseline in both.
"""

from __future__ import annotations

import sys
import time

from comparison import compare, not_ahead, training_options
from make_raw import make_raw
from photographs import gather
from teacher import load_embedding_teacher

from isp_distill import Report


def main() -> int:
    """Run the demo; 0 if the student ends ahead of every baseline."""
    options = training_options(__doc__, steps=60, batch_size=16).parse_args()
    began = time.perf_counter()

    photographs = gather(options.out / "photographs")
    training, held_out = make_raw(photographs, options.out / "raw")
    rows, _ = compare(
        load_embedding_teacher(),
        training,
        held_out,
        options.out / "embedding",
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        stem_lr=options.stem_lr,
        seed=options.seed,
    )
    print(f"{time.perf_counter() - began:.0f} s in all")
    return not_ahead(rows, _ahead)


def _ahead(one: Report, other: Report) -> bool:
    """Whether the embedding is nearer to the teacher's, and finds as many shots."""
    assert None not in (one.cosine, one.retrieval_top1, other.cosine)
    return (
        one.cosine > other.cosine  # type: ignore[operator]  # checked above
        and one.retrieval_top1 >= other.retrieval_top1  # type: ignore[operator]  # likewise
    )


if __name__ == "__main__":
    sys.exit(main())
