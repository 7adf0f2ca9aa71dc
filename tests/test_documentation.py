"""The documentation does what it says: examples run, names, flags, paths and links exist."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import documentation_cases as cases
import pytest
import torch
import torchvision

import isp_distill
from isp_distill import version
from isp_distill.cli.main import parser

sys.path.insert(0, str(cases.ROOT / "docs" / "tools"))

from public_names import public_names, undocumented


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that examples name, and the working directory of the test."""
    cases.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def _docstring(name: str) -> str:
    thing = getattr(isp_distill, name)
    if not isinstance(thing, str):
        return inspect.getdoc(thing) or ""
    # A constant has no docstring at run time: it stands below it in the source.
    body = ast.parse(Path(version.__file__).read_text()).body
    place = next(i for i, node in enumerate(body) if isinstance(node, ast.Assign))
    return inspect.cleandoc(ast.literal_eval(body[place + 1].value))


@pytest.mark.parametrize("name", isp_distill.__all__)
def test_the_example_of_a_public_name_runs(name, folder):
    example = doctest.DocTestParser().get_doctest(
        _docstring(name), cases.namespace(), name, None, None
    )
    assert example.examples, f"{name} has no example in its docstring"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        example, out=said.append
    )
    assert result.failed == 0, "".join(said)


def test_an_example_that_says_something_wrong_is_found(folder):
    wrong = doctest.DocTestParser().get_doctest(
        ">>> isp_distill.View(32).crop\n33\n", cases.namespace(), "wrong", None, None
    )
    assert doctest.DocTestRunner().run(wrong, out=lambda _: None).failed == 1


@pytest.mark.parametrize(
    "page", cases.PAGES, ids=lambda page: page.relative_to(cases.ROOT).as_posix()
)
def test_the_python_blocks_of_a_page_run(page, folder):
    # Without weights to fetch: of a model with 10 classes, so that the file is soon written.
    python = [block for block in cases.blocks(page) if block.language == "python"]
    if any("resnet18.pth" in block.text for block in python):
        torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), "resnet18.pth")
    names: dict[str, object] = {}
    for block in python:
        # Blank lines, so that an error names the line of the page.
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)


def _commands(page: Path) -> list[str]:
    lines = [line for b in cases.blocks(page) if not b.language for line in b.text.splitlines()]
    return [line for line in lines if "isp-distill " in line or "-m isp_distill " in line]


def test_the_shell_takes_every_command_of_the_pages():
    commands = [line for page in cases.PAGES for line in _commands(page)]
    assert len(commands) > 8
    for line in commands:
        words = shlex.split(line, comments=True)
        start = words.index("isp_distill" if "torchrun" in line else "isp-distill")
        parser().parse_args(words[start + 1 :])


def test_every_path_that_a_page_names_is_there():
    named = re.compile(
        r"`((?:isp_distill|kernels|csrc|tests|benchmarks|demo|docs|examples)/[\w./-]+|[A-Z]+\.(?:md|cff))`"
    )
    missing, count = [], 0
    for page in cases.PAGES:
        for path in named.findall(page.read_text()):
            count += 1
            if "NAME" in path:
                continue
            if not (cases.ROOT / path).exists():
                missing.append(f"{page.name}: {path}")
    assert not missing
    assert count > 40


def test_the_readme_is_short_and_its_links_lead_somewhere():
    readme = (cases.ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
    assert len(links) > 8
    assert [link for link in links if not (cases.ROOT / link).exists()] == []


def test_a_public_name_that_is_on_no_page_is_found(tmp_path):
    public = public_names(cases.ROOT)
    assert set(public) == set(isp_distill.__all__)
    assert undocumented(cases.ROOT / "docs" / "api", public) == []
    assert undocumented(cases.ROOT / "docs" / "api", {**public, "unheard_of": "elsewhere"}) == [
        "unheard_of"
    ]
    (tmp_path / "page.md").write_text("::: isp_distill.train\n\n<!-- the rest of isp_distill -->\n")
    rooms = {
        "train": "isp_distill.training.train",
        "TrainSettings": "isp_distill.training.settings",
    }
    assert undocumented(tmp_path, rooms) == []


def _inventory(path: Path) -> set[str]:
    """The names in a Sphinx inventory: four lines of text, then compressed ones."""
    packed = path.read_bytes().split(b"\n", 4)[4]
    return {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}


def test_the_pages_build_and_hold_every_public_name(tmp_path):
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=cases.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    names = _inventory(tmp_path / "site" / "objects.inv")
    assert {f"isp_distill.{name}" for name in isp_distill.__all__} <= names
    fetched = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"')
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {url for page in pages for url in fetched.findall(page.read_text())} == set()
