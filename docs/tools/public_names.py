"""Which names are public, and from which module each comes: read from the source, not imported."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = "isp_distill"
_DIRECTIVE = re.compile(r"^::: isp_distill\.(\w+)$", re.MULTILINE)
_REST = re.compile(r"^<!-- the rest of ([\w. ]+) -->$", re.MULTILINE)


def public_names(root: Path) -> dict[str, str]:
    """The names of ``isp_distill.__all__``, each with the module that it is imported from.

    Args:
        root: the repository.

    Raises:
        ValueError: if ``__all__`` is missing, or holds a name that is not imported there.
    """
    path = root / PACKAGE / "__init__.py"
    modules: dict[str, str] = {}
    listed: list[str] | None = None
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
    if listed is None:
        raise ValueError(f"{path}: it has no __all__")
    unknown = sorted(set(listed) - set(modules))
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)} in __all__, but not imported there")
    return {name: modules[name] for name in listed}


def directives(pages: Path) -> list[str]:
    """The names that the pages below a folder document one by one, in the order of the pages.

    Raises:
        ValueError: if a name is documented twice.
    """
    found = [
        name for page in sorted(pages.glob("*.md")) for name in _DIRECTIVE.findall(page.read_text())
    ]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(f"{pages}: {', '.join(twice)} stand on the pages twice")
    return found


def with_the_rest(markdown: str, named: list[str], public: dict[str, str]) -> str:
    """A page with what it says only as "the rest of ROOM": public names that no page names.

    Args:
        markdown: of the page, with lines ``<!-- the rest of MODULE MODULE -->``.
        named: what the pages name one by one.
        public: see :func:`public_names`.
    """

    def expanded(match: re.Match[str]) -> str:
        rooms = match[1].split()
        rest = [
            name
            for name, module in public.items()
            if name not in named
            and any(module == room or module.startswith(f"{room}.") for room in rooms)
        ]
        return "\n\n".join(f"::: {PACKAGE}.{name}" for name in rest)

    return _REST.sub(expanded, markdown)


def undocumented(pages: Path, public: dict[str, str]) -> list[str]:
    """The public names that are on none of the pages, and the names there that are not public."""
    named = directives(pages)
    shown = {
        name
        for page in pages.glob("*.md")
        for name in _DIRECTIVE.findall(with_the_rest(page.read_text(), named, public))
    }
    return sorted(shown ^ set(public))
