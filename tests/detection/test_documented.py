"""Each name of ``isp_distill.detection`` has its place in the documentation, and works there."""

from __future__ import annotations

import doctest
import inspect

import documentation_cases as cases
import pytest

from isp_distill import detection

NAMES = [name for name in detection.__all__ if name != "Detections"]  # made by detections()


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_name_runs(name):
    text = inspect.getdoc(getattr(detection, name))
    example = doctest.DocTestParser().get_doctest(text, cases.namespace(), name, None, None)
    assert example.examples
    said: list[str] = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.failed == 0, "".join(said)


def test_every_name_is_on_the_page():
    page = (cases.ROOT / "docs" / "api" / "detection.md").read_text()
    named = {line.split(".")[-1] for line in page.splitlines() if line.startswith("::: ")}
    assert named == {*detection.__all__, "detection"}
