"""What a benchmark found on one machine, as a file; and the table of all such files."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

#: Kept in the repository: one file for each processor and instruction set.
FOLDER = Path(__file__).resolve().parent / "results"
#: Machines that nobody has measured yet.
MISSING = ("ARM64", "NVIDIA GPU")


@dataclass(frozen=True)
class Row:
    """One task.

    Attributes:
        operation: what was timed.
        task: on what.
        milliseconds: of ours, the least.
        ratios: of each other way, how many times as long as ours it took.
        floor: the floor's share of our time; see the benchmark for what its floor is.
    """

    operation: str
    task: str
    milliseconds: float
    ratios: dict[str, float]
    floor: float


@dataclass(frozen=True)
class Results:
    """What one run found.

    Attributes:
        processor: its name.
        instructions: the kernels' instruction set; that of the processor, or one that was chosen.
        chosen: whether ``ISP_DISTILL_CPU`` chose it.
        threads: of each call.
        torch: its version.
        day: of the run.
        load: of the machine before the run, in processes.
        rows: the tasks.
    """

    processor: str
    instructions: str
    chosen: bool
    threads: int
    torch: str
    day: str
    load: float
    rows: tuple[Row, ...]

    @property
    def machine(self) -> str:
        """As the table calls it."""
        return f"{self.processor}, {self._held}{self.instructions}, {self.threads} threads"

    @property
    def _held(self) -> str:
        return "held to " if self.chosen else ""

    def path(self, folder: Path = FOLDER) -> Path:
        """The file of such a machine."""
        whole = f"{self.processor} {self._held}{self.instructions}"
        name = re.sub(r"[^a-z0-9]+", "-", whole.lower())
        return folder / f"{name.strip('-')}.json"

    def write(self, folder: Path = FOLDER) -> Path:
        """Write it as JSON, in place of an earlier run on such a machine."""
        folder.mkdir(parents=True, exist_ok=True)
        path = self.path(folder)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Results:
        """From its file.

        Raises:
            ValueError: the file is none of ours.
        """
        try:
            found = json.loads(path.read_text())
            rows = tuple(Row(**row) for row in found.pop("rows"))
            return cls(**found, rows=rows)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: is no benchmark's result ({error})") from error


def row_of(operation: str, task: str, seconds: Mapping[str, float], others: Sequence[str]) -> Row:
    """A row from seconds by way, of which "ours" and "floor" are two."""
    ours = seconds["ours"]
    ratios = {name: round(seconds[name] / ours, 3) for name in others if name in seconds}
    floor = round(seconds["floor"] / ours, 3)
    return Row(operation, task, round(1e3 * ours, 3), ratios, floor)


def generation(name: str, cpuinfo: str) -> str:
    """A processor's name, with AMD's family where it has no number: clouds hide the model.

    Args:
        name: as the system gives it, "AMD EPYC".
        cpuinfo: the text of ``/proc/cpuinfo``.
    """
    family = re.search(r"^cpu family\s*:\s*(\d+)", cpuinfo, re.MULTILINE)
    if "AMD" not in name or re.search(r"\d", name) or family is None:
        return name
    return f"{name} (family {family[1]})"


def load() -> float:
    """How many processes wanted a processor in the last minute."""
    return round(os.getloadavg()[0], 1)


def all_results(folder: Path = FOLDER) -> list[Results]:
    """Every file's, the widest instructions first."""
    found = [Results.read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda r: (-_width(r.instructions), r.chosen, r.processor))


def _width(instructions: str) -> int:
    return 512 if "512" in instructions else 256 if "2" in instructions else 128


def table(results: Iterable[Results]) -> str:
    """All machines side by side, as Markdown."""
    columns = list(results)
    tasks = list(dict.fromkeys((row.operation, row.task) for one in columns for row in one.rows))
    titles = [one.machine.replace("|", "/") for one in columns] + list(MISSING)
    lines = [
        f"| operation | task | {' | '.join(titles)} |",
        "| --- | --- |" + " --- |" * len(titles),
    ]
    for operation, task in tasks:
        cells = []
        for one in columns:
            row = next((r for r in one.rows if (r.operation, r.task) == (operation, task)), None)
            cells.append("-" if row is None else _cell(row))
        lines.append(f"| `{operation}` | {task} | {' | '.join(cells + ['-'] * len(MISSING))} |")
    runs = [f"{one.machine}: {one.day}, torch {one.torch}, load {one.load}" for one in columns]
    return "\n".join(lines) + f"\n\nRuns: {'; '.join(runs)}.\n"


def _cell(row: Row) -> str:
    others = ", ".join(f"{name} {_short(ratio)}" for name, ratio in row.ratios.items())
    parts = [f"**{_short(row.milliseconds)} ms**", others, f"floor {row.floor:.2f}"]
    return "; ".join(part for part in parts if part)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 3 else f"{value:.2f}"


def torch_version() -> str:
    """Without the build's name."""
    return torch.__version__.partition("+")[0]
