"""What mkdocs runs beside itself: the public names on the API pages, and the map's tables."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from public_names import directives, public_names, undocumented, with_the_rest
from roles import as_markdown

_ROOT = Path(__file__).resolve().parents[2]
_API = _ROOT / "docs" / "api"
_FILES = re.compile(r"^<!-- files of ([\w/]+) -->$", re.MULTILINE)


def on_pre_build(**_: Any) -> None:
    """Fail the build where a public name is documented nowhere, or a documented one not public."""
    try:
        wrong = undocumented(_API, public_names(_ROOT))
    except ValueError as error:
        raise PluginError(str(error)) from error
    if wrong:
        raise PluginError(
            f"{', '.join(wrong)}: isp_distill.__all__ and the pages in docs/api differ; write "
            "'::: isp_distill.NAME' on the page of its room, or take it off"
        )


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what pages leave to be looked up in the sources."""
    if page.file.src_uri.startswith("api/"):
        return with_the_rest(markdown, directives(_API), public_names(_ROOT))
    return _FILES.sub(_table, markdown)


def _table(match: re.Match[str]) -> str:
    folder = _ROOT / match[1]
    # A room whole; of the package itself only what lies in no room.
    below = "*.py" if match[1] == "isp_distill" else "**/*.py"
    rows = ["| file | what it is |", "| --- | --- |"]
    for path in sorted(folder.glob(below)):
        if path.name != "__init__.py":
            rows.append(f"| `{path.relative_to(_ROOT).as_posix()}` | {_sentence(path)} |")
    return "\n".join(rows)


def _sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text()))
    if text is None:
        raise PluginError(
            f"{path}: a file says in its first line what it is, and this one does not"
        )
    first = text.split("\n\n")[0].replace("\n", " ")
    return as_markdown(first).replace("|", "\\|")
