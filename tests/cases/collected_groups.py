"""A pytest plugin: the group and parameters of every collected benchmark, none of which is run.

Writes to the file that ``COLLECTED_GROUPS`` names. Each benchmark is called with a fixture that
ends the call where its group is set, so that must come before the work is made.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path


class _Named(BaseException):
    pass


class _Recorder:
    def __setattr__(self, name, value):
        assert name == "group"
        raise _Named(value)

    def __getattr__(self, name):
        raise AssertionError(f"benchmark.{name} is used before benchmark.group is set")

    def __call__(self, *arguments):
        raise AssertionError("something is timed before benchmark.group is set")


def _group(item):
    params = item.callspec.params
    given = {name: params.get(name) for name in inspect.signature(item.obj).parameters}
    try:
        item.obj(**{**given, "benchmark": _Recorder()})
    except _Named as named:
        return named.args[0]
    raise AssertionError(f"{item.nodeid} sets no benchmark.group")


def pytest_collection_finish(session):
    found = [
        {
            "file": item.path.name, "id": item.callspec.id, "group": _group(item),
            "params": {name: str(value) for name, value in item.callspec.params.items()},
        }
        for item in session.items
    ]  # fmt: skip
    Path(os.environ["COLLECTED_GROUPS"]).write_text(json.dumps(found))
