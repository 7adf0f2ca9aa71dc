"""CONTRIBUTING.md names what is there: the rooms in their order, and the files of the path."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def section(title):
    return re.search(rf"^## {title}$(.*?)(?=^## )", TEXT, re.M | re.S)[1]


def test_the_table_of_rooms_is_the_contract():
    (layers,) = re.findall(
        r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    wanted = [re.findall(r"isp_distill\.(\w+)", line) for line in re.findall(r'"(.+)"', layers)]
    rows = re.findall(r"^\| (`.+?) \|", section("The rooms"), re.M)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == wanted


def test_the_path_leads_through_files_that_say_so():
    steps = re.findall(
        r"^\d+\. `(\S+)`: (.+?)(?=^\d+\. |\n\n)", section(".*line that computes"), re.M | re.S
    )
    assert len(steps) == 10
    for path, says in steps:
        file = ROOT / path if path.startswith("csrc") else ROOT / "isp_distill" / path
        source = file.read_text()
        names = [
            name for quoted in re.findall(r"`(.+?)`", says) for name in re.findall(r"\w+", quoted)
        ]
        assert names
        assert [name for name in names if name not in source] == [], path
