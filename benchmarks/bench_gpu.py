"""Every operation and backend on this machine's GPU: right, and how fast.

    make bench-gpu                                    # on a machine with a GPU
    python benchmarks/bench_gpu.py --only distill     # tasks whose name or operation holds a word
    python benchmarks/bench_gpu.py --device cpu --small    # the dry run that the tests make

First each backend's results and gradients are compared with the reference's, and on a GPU each call
is captured in a CUDA graph and replayed. Then every way takes turns: each backend, eager PyTorch,
torch.compile, and Liger-Kernel where it is installed; CUDA events time them with a cold cache, and
the least time counts. The floor is what the bytes take at the rate of a large copy, or the
operations at that of a large matrix product, in the same run. Written: bench_gpu.md, bench_gpu.json
and plots. Ends with status 1 if any backend is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from device_timer import DeviceTimer, captured
from floor import Floor, floor_from, rate_cases
from gpu_task import FULL, SMALL, TOLERANCE, Task, Way
from gpu_tasks import tasks


def difference(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest difference, each tensor's as a share of the truth's largest value."""
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in truth]:
        return float("inf")
    worst = 0.0
    for one, true in zip(found, truth, strict=True):
        one, true = one.detach().double(), true.detach().double()
        if not bool(torch.isfinite(one).all()):
            return float("inf")
        largest = max(float(true.abs().max()), 1e-12)
        worst = max(worst, float((one - true).abs().max()) / largest)
    return worst


def verdict(run: Way, truth: tuple[Tensor, ...], tolerance: float) -> tuple[bool, str]:
    """Whether a way agrees with the reference, and how far it is off, or why it failed."""
    try:
        off = difference(run(), truth)
    except Exception as error:
        return False, f"failed: {str(error).splitlines()[0]}"
    return off <= tolerance, f"{off:.1e}"


def graph_verdict(run: Way) -> tuple[bool, str]:
    """Whether a call captured in a CUDA graph gives, replayed, what it gives outside."""
    try:
        plain = [t.clone() for t in run()]
        off = difference(captured(run), tuple(plain))
    except Exception as error:
        return False, f"cannot be captured: {str(error).splitlines()[0]}"
    return off == 0, "the same" if off == 0 else f"{off:.1e}"


def floors(timer: DeviceTimer, rounds: int, small: bool) -> dict[torch.dtype, Floor]:
    """The device's rates now, for products in float32 and in bfloat16."""
    size, megabytes = (
        (128, 1) if small else (8192 if timer.gpu else 2048, 512 if timer.gpu else 256)
    )
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        cases = rate_cases(size, megabytes, timer.device, dtype)
        found[dtype] = floor_from(timer.interleaved(cases, rounds), size, megabytes)
    return found


def measure(task: Task, timer: DeviceTimer, floor: dict[torch.dtype, Floor], rounds: int) -> dict:
    """One task: verdicts, then times, as the JSON holds them."""
    truth = tuple(t.clone() for t in task.truth())
    tolerance = TOLERANCE[task.dtype] if task.tolerance is None else task.tolerance
    row: dict[str, Any] = {
        "operation": task.operation, "task": task.name, "dtype": str(task.dtype).split(".")[1],
        "verdicts": {}, "graphs": {}, "skipped": {}, "milliseconds": {}, "megabytes": {},
    }  # fmt: skip
    ways: dict[str, Way] = {}
    for name, objection in task.backends().items():
        if objection is not None:
            row["skipped"][name] = objection
            continue
        ways[name] = task.by(name)
        row["verdicts"][name] = verdict(ways[name], truth, tolerance)
        if timer.gpu and task.capturable:
            row["graphs"][name] = graph_verdict(ways[name])
    for name, run in task.peers.items():
        # A peer that rounds elsewhere is not wrong; but one that fails is not timed.
        limit = 0.1 if name in task.unlike else max(tolerance, 1e-4)
        fine, text = verdict(run, truth, limit)
        if fine:
            ways[name] = run
        else:
            row["skipped"][name] = f"differs or failed: {text}"
    for name, seconds in timer.interleaved(ways, rounds).items():
        row["milliseconds"][name] = 1e3 * seconds
    for name, run in ways.items():
        peak = timer.peak_bytes(run)
        row["megabytes"][name] = None if peak is None else peak / 1e6
    # Products of float32 in three TensorFloat-32 steps may beat the plain ones: a bound, not a law.
    rates = floor.get(task.dtype, floor[torch.float32])
    row["floor_milliseconds"] = 1e3 * rates.seconds(task.operations, task.traffic)
    return row


OURS = ("cuda", "triton", "cpu")


def best(row: dict[str, Any]) -> str | None:
    """The fastest of our backends in a row."""
    times = row["milliseconds"]
    mine = [name for name in OURS if name in times]
    return min(mine, key=times.__getitem__) if mine else None


def table(rows: Sequence[dict[str, Any]], about: str) -> str:
    """The report in Markdown: verdicts, times, and what did not run."""
    lines = [f"# bench-gpu\n\n{about}\n\n## Right", ""]
    lines += [
        "| task | dtype | backend | off by | captured in a CUDA graph |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        for name, (fine, text) in row["verdicts"].items():
            graph = row["graphs"].get(name)
            shown = "-" if graph is None else f"{graph[1]}{'' if graph[0] else ' **WRONG**'}"
            off = f"{text}{'' if fine else ' **WRONG**'}"
            lines.append(f"| {row['task']} | {row['dtype']} | {name} | {off} | {shown} |")
    peers = sorted({n for r in rows for n in r["milliseconds"] if n not in OURS})
    lines += [
        "",
        "## Fast",
        "",
        "Milliseconds of the fastest backend; the others as multiples of it.",
    ]
    lines += ["", f"| task | dtype | backend | ms | MB | {' | '.join(peers)} | ms / floor |"]
    lines += ["|---" * (6 + len(peers)) + "|"]
    for row in rows:
        name = best(row)
        if name is None:
            continue
        ours = row["milliseconds"][name]
        others = [
            f"{row['milliseconds'][p] / ours:.2f}" if p in row["milliseconds"] else "-"
            for p in peers
        ]
        memory = row["megabytes"][name]
        lines.append(
            f"| {row['task']} | {row['dtype']} | {name} | {ours:.3f} "
            f"| {'-' if memory is None else f'{memory:.0f}'} | {' | '.join(others)} "
            f"| {ours / row['floor_milliseconds']:.2f} |"
        )
    skipped = sorted({(n, why) for r in rows for n, why in r["skipped"].items()})
    if skipped:
        lines += ["", "## Not run", "", *(f"- {name}: {why}" for name, why in skipped)]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], operation: str, path: Path) -> None:
    """One operation's times as bars, a group for each task, the floor as a line across it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [row for row in rows if row["operation"] == operation]
    names = sorted({n for row in chosen for n in row["milliseconds"]}, key=lambda n: n not in OURS)
    figure, axis = plt.subplots(figsize=(10, 1 + 0.6 * len(chosen)), layout="constrained")
    height = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        places = [k + index * height for k, row in enumerate(chosen) if name in row["milliseconds"]]
        times = [row["milliseconds"][name] for row in chosen if name in row["milliseconds"]]
        axis.barh(places, times, height, label=name)
    for k, row in enumerate(chosen):
        axis.plot([row["floor_milliseconds"]] * 2, [k - height / 2, k + 0.8 - height / 2], "k--")
    labels = [f"{row['task']}\n{row['dtype']}" for row in chosen]
    axis.set_yticks([k + 0.4 - height / 2 for k in range(len(chosen))], labels, fontsize=7)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="milliseconds (dashed: floor)", title=operation)
    axis.grid(True, axis="x", which="both", alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a dry run")
    parser.add_argument("--only", nargs="*", default=[], help="words of operations or tasks")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compiler", default="inductor", help="torch.compile's backend")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"))
    a = parser.parse_args(arguments)
    if a.device == "cuda" and not torch.cuda.is_available():
        print(
            "bench-gpu: torch sees no GPU here (isp-distill doctor says more); "
            "--device cpu --small makes a dry run",
            file=sys.stderr,
        )
        return 2
    device = torch.device(a.device)
    timer = DeviceTimer(device)
    name = torch.cuda.get_device_name(device) if timer.gpu else "the CPU: a dry run, no result"
    rates = floors(timer, a.rounds, a.small)
    about = (
        f"{name}, torch {torch.__version__}. Measured: copies "
        f"{rates[torch.float32].bandwidth / 1e9:.0f} GB/s, products "
        f"{rates[torch.float32].operations / 1e12:.1f} TFLOP/s in float32, "
        f"{rates[torch.bfloat16].operations / 1e12:.1f} in bfloat16. Off by: largest difference "
        "from the reference in float32, as a share of its largest value."
    )
    a.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in tasks(device, SMALL if a.small else FULL, a.compiler):
        if a.only and not any(word in f"{task.operation} {task.name}" for word in a.only):
            continue
        torch._dynamo.reset()
        rows.append(measure(task, timer, rates, a.rounds))
        print(f"{task.name}, {rows[-1]['dtype']}: {rows[-1]['milliseconds']}", flush=True)
        # Written each time: a run that is cut short leaves what it had.
        (a.out / "bench_gpu.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
        (a.out / "bench_gpu.md").write_text(table(rows, about))
    for operation in sorted({row["operation"] for row in rows}):
        plot(rows, operation, a.out / f"bench_gpu_{operation}.png")
    print((a.out / "bench_gpu.md").read_text())
    checks = [v for r in rows for v in (*r["verdicts"].values(), *r["graphs"].values())]
    return 0 if checks and all(fine for fine, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
