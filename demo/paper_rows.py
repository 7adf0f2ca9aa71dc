"""The table of paper_table.py as Markdown: mean and spread of the seeds, tests of differences."""

from __future__ import annotations

from typing import Any

import numpy as np

# Task -> the figures that are shown, and what they are called.
COLUMNS = {
    "classes": {
        "accuracy, photographs": "Classes: accuracy on real labels, 57 photographs",
        "accuracy, cut-outs": "Classes: accuracy on real labels, 66 files of cut-outs",
        "agreement_top1": "Classes: agreement with the teacher on the clean shot",
        "kl": "Classes: KL (nats)",
    },
    "pixels": {
        "agreement_top1": "Pixels: agreement",
        "mean_iou": "Pixels: mean IoU",
    },
    "embedding": {
        "cosine": "Embedding: mean cosine",
        "retrieval_top1": "Embedding: found among all",
    },
}
DISTILLED = "RAW, distilled, no labels"
BY_DAY = "RAW, distilled at full exposure alone"
#: As results name them, and as factors.
EXPOSURES = {"1/1": 1.0, "1/4": 1 / 4, "1/10": 1 / 10, "1/30": 1 / 30}
_TITLES = " | ".join(["1", *list(EXPOSURES)[1:]])


def rows(found: dict[str, Any], task: str) -> dict[str, list[Any]]:
    """The results of each row of a task, a result a seed."""
    grouped: dict[str, list[Any]] = {}
    for key in found:
        of, name, _ = key.split("; ")
        if of == task:
            grouped.setdefault(name, []).append(found[key])
    first = ("RGB teacher", "RGB weights", "RAW, labels, from the", "RAW, labels, from s")
    return dict(
        sorted(grouped.items(), key=lambda item: [not item[0].startswith(f) for f in first])
    )


def cell(values: list[float]) -> str:
    """Mean of the seeds, and their standard deviation."""
    mean = float(np.mean(values))
    return f"{mean:.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{mean:.3f}"


def table(found: dict[str, Any], task: str) -> str:
    """One task: a column for each figure and exposure."""
    lines: list[str] = []
    for figure, title in COLUMNS[task].items():
        lines += [
            f"| {title} | {_TITLES} |",
            "|---|" + "--:|" * len(EXPOSURES),
        ]
        for name, results in rows(found, task).items():
            cells = [cell([one[e][figure] for one in results]) for e in EXPOSURES]
            seeds = f" ({len(results)} seeds)" if len(results) > 1 else ""
            lines.append(f"| {name}{seeds} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def difference(found: dict[str, Any], student: str, other: str, exposure: str) -> str:
    """Agreement of a distilled student and of another row on the same files; how sure it is.

    A file's value is its share of the seeds that agree with the teacher. The test is a paired t
    test over files (``scipy.stats.ttest_rel``), so it speaks of other photographs like these.
    """
    from scipy.stats import ttest_rel

    named = rows(found, "classes")
    shares = [
        np.mean([result[exposure]["agrees"] for result in named[row]], axis=0)
        for row in (student, other)
    ]
    gap = float(np.mean(shares[0] - shares[1]))
    return f"{gap:+.3f} (p = {float(ttest_rel(*shares).pvalue):.1g})"


def differences(found: dict[str, Any], student: str, title: str) -> str:
    """What a distilled student is ahead of every other row by, in agreement."""
    lines = [
        f"| {title}, minus | {_TITLES} |",
        "|---|" + "--:|" * len(EXPOSURES),
    ]
    for name in rows(found, "classes"):
        if name != student:
            cells = [difference(found, student, name, exposure) for exposure in EXPOSURES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def printed(found: dict[str, Any]) -> str:
    """All tables, and the tests of what is claimed."""
    parts = [table(found, task) for task in COLUMNS if rows(found, task)]
    titles = {BY_DAY: "Distilled at full exposure alone", DISTILLED: "Distilled, no labels"}
    for student, title in titles.items():
        if student in rows(found, "classes"):
            parts.insert(1, differences(found, student, title))
    return "\n".join(parts)
