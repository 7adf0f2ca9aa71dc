"""Two roads to a teacher's picture: ``render``, or the camera's own JPEG. What each student learns.

``python demo/both_roads.py [--out demo-output]``. The RAW files are made from 32 photographs of
demo/run.py, eight details each. No package ships RAW files with the pictures that a camera made of
them, so the pictures are made by a camera that is not ours: LibRaw's AHD demosaicing, a tone curve
and a contrast that ``render`` has not, a cut of 8 to 30 pixels a side, 0.3% of scale, JPEG of
quality 90. One student is distilled from the teacher's view of ``render``'s pictures and one from
its view of the camera's. Each is measured against both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import rawpy
from comparison import training_options
from make_raw import make_raw
from photographs import gather
from PIL import Image
from teacher import load_teacher
from tqdm import tqdm

from isp_distill import RawFolder, Report, Teacher, evaluate, train
from isp_distill.models.student import Student, student_module

ROADS = ("render", "the camera's pictures")
QUALITY, SCALE = 90, 1.003
#: The least and the most pixels that a picture lacks at a side.
CUT = (8, 30)

# The whole picture, and seven details of it.
TILES = (
    (1.0, 0.5, 0.5),
    (1.25, 0.0, 0.0),
    (1.25, 1.0, 0.7),
    (1.25, 0.3, 1.0),
    (1.6, 0.5, 0.5),
    (1.6, 0.0, 0.9),
    (1.6, 1.0, 0.1),
    (1.6, 0.9, 0.9),
)


def camera_picture(raw: Path, out: Path, seed: int) -> None:
    """The JPEG that a camera with an ISP of its own makes of a RAW file."""
    with rawpy.imread(str(raw)) as decoder:
        linear = decoder.postprocess(
            demosaic_algorithm=rawpy.DemosaicAlgorithm.AHD,
            use_camera_wb=True,
            gamma=(1, 1),
            no_auto_bright=True,
            output_bps=16,
        )
    light = np.clip(1.4 * linear / 65535.0, 0, 1) ** 0.45
    toned = np.clip(light - np.sin(2 * np.pi * light) / 20, 0, 1)
    height, width = toned.shape[:2]
    # One camera cuts all of its pictures alike: registration finds it once for all files.
    above, left, below, right = np.random.default_rng(seed).integers(CUT[0], CUT[1] + 1, 4)
    size = int((width - left - right) * SCALE), int((height - above - below) * SCALE)
    box = (left, above, left + size[0] / SCALE, above + size[1] / SCALE)
    picture = Image.fromarray((255 * toned + 0.5).astype(np.uint8))
    picture.resize(size, Image.Resampling.LANCZOS, box=box).save(out, quality=QUALITY)


def make_pictures(raws: Path, out: Path, seed: int) -> Path:
    """A folder of the camera's pictures, of the RAW files' names."""
    out.mkdir(parents=True, exist_ok=True)
    for raw in tqdm(sorted(raws.glob("*.dng")), desc=f"pictures of {raws.name}", leave=False):
        camera_picture(raw, out / f"{raw.stem}.jpg", seed)
    return out


def table(rows: dict[str, list[Report]]) -> str:
    """Agreement and KL against the teacher on both roads, as Markdown."""
    lines = [
        "| student | " + " | ".join(f"against {road}: top-1 (KL)" for road in ROADS) + " |",
        "|---|" + "--:|" * len(ROADS),
    ]
    for name, reports in rows.items():
        cells = [f"{r.agreement_top1:.3f} ({r.kl:.3f})" for r in reports]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Train both students, print the table, and keep it as both_roads.json and both_roads.md."""
    options = training_options(__doc__, steps=110, batch_size=16).parse_args()
    out = options.out / "roads"
    photographs = gather(options.out / "photographs", few=True)
    training, held_out = make_raw(photographs, out / "raw", tiles=TILES, held_out_tiles=len(TILES))
    pictures = [
        make_pictures(raws, out / "camera" / raws.name, options.seed)
        for raws in (training, held_out)
    ]
    teacher: Teacher = load_teacher()
    data = {
        ROADS[0]: (RawFolder(training), RawFolder(held_out)),
        ROADS[1]: (
            RawFolder(training, picture=pictures[0]),
            RawFolder(held_out, picture=pictures[1]),
        ),
    }

    def measured(student: Student) -> list[Report]:
        return [evaluate(student, teacher, data[road][1], device="cpu") for road in ROADS]

    untrained = student_module("rawify", teacher)
    rows = {"before training": measured(untrained)}  # type: ignore[arg-type]  # a module is one
    for road, (seen, _) in data.items():
        result = train(
            "rawify",
            teacher,
            seen,
            out=options.out / f"road-{ROADS.index(road)}",
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            stem_lr=options.stem_lr,
            channels_last=True,
            device="cpu",
            resume=False,
            seed=options.seed,
        )
        rows[f"distilled from {road}"] = measured(result.student)  # type: ignore[arg-type]  # same
        print(f"\n{table(rows)}\n", flush=True)
    left_out = {
        road: len(reports.skipped)
        for road, reports in zip(ROADS, rows["before training"], strict=True)
    }
    print(f"held-out files left out: {left_out}")
    kept = {name: [vars(report) for report in reports] for name, reports in rows.items()}
    (options.out / "both_roads.json").write_text(json.dumps(kept, indent=1))
    (options.out / "both_roads.md").write_text(table(rows) + "\n")
    # Each student must have come nearer to what it was shown.
    before = rows["before training"]
    nearer = [
        rows[f"distilled from {road}"][place].kl < before[place].kl
        for place, road in enumerate(ROADS)
    ]
    return 0 if all(nearer) else 1


if __name__ == "__main__":
    sys.exit(main())
