"""Real photographs from packages, and the side of the split that each stays on.

Which photographs, from where, under which licence and on which side: ``photographs.toml``. Python
packages bring a few; Debian packages bring the rest, where ``apt-get`` is there to fetch them.
Nothing is installed and root is not needed: a package is downloaded and unpacked into the cache.
Where that fails, the demo says so and goes on with fewer.
"""

from __future__ import annotations

import glob
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LISTED = Path(__file__).with_name("photographs.toml")


@dataclass(frozen=True)
class Photograph:
    """One photograph, and the side of the split that everything made from it stays on."""

    source: str
    path: Path
    held_out: bool

    @property
    def name(self) -> str:
        """The file's name without its extension, after its source: some names are in several."""
        return f"{self.source.partition('-')[0]}-{self.path.stem}"


def listed() -> dict[str, dict[str, Any]]:
    """What ``photographs.toml`` says of every source."""
    sources: dict[str, dict[str, Any]] = tomllib.loads(_LISTED.read_text())["sources"]
    return sources


def gather(cache: Path, few: bool = False) -> list[Photograph]:
    """All photographs that can be had here.

    Args:
        cache: folder that Debian packages are unpacked into; made if need be.
        few: only of the sources that are marked ``few``: 32 photographs of the 206.

    Returns:
        The photographs, source by source; of each, alphabetically.

    Raises:
        FileNotFoundError: if not even one training and one held-out photograph was found.
    """
    found: list[Photograph] = []
    for source, says in listed().items():
        if few and not says.get("few", False):
            continue
        if "module" in says:
            folder = _module_folder(says["module"], says["folder"])
        else:
            folder = debian_folder(source, cache, says["folder"])
        if folder is None:
            continue
        held_out = set(says["held_out"])
        for name in sorted((*says["train"], *says["held_out"])):
            if (folder / name).is_file():
                found.append(Photograph(source, folder / name, name in held_out))
            else:
                print(f"photographs: {source} has no {name} here; going on without it")
    if len({photograph.held_out for photograph in found}) < 2:
        raise FileNotFoundError("too few photographs: pip install scikit-image scikit-learn")
    return found


def _module_folder(module: str, inside: str) -> Path | None:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        print(f"photographs: {module} is not installed; going on without it")
        return None
    return Path(spec.origin).parent / inside


def debian_folder(package: str, cache: Path, inside: str) -> Path | None:
    """A folder of a Debian package, unpacked into the cache; None, with a line, where it fails.

    Args:
        package: its name.
        cache: folder that packages are unpacked into.
        inside: the folder that is wanted.
    """
    root = cache / package
    folder = root / inside
    if folder.is_dir():
        return folder
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        print(f"photographs: no apt-get and dpkg-deb here; going on without {package}")
        return None
    download = cache / "download"
    download.mkdir(parents=True, exist_ok=True)
    print(f"photographs: fetching Debian's {package}", flush=True)
    failure = _run(["apt-get", "download", package], download)
    if failure:
        # A fresh container has no package lists yet; without root this fails, and that is fine.
        _run(["apt-get", "update"], download)
        failure = _run(["apt-get", "download", package], download)
    files = sorted(glob.glob(f"{package}_*.deb", root_dir=download))
    if not failure and files:
        partial = cache / f"{package}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        failure = _run(["dpkg-deb", "-x", files[-1], str(partial.resolve())], download)
        if not failure:
            partial.replace(root)
            if folder.is_dir():
                return folder
            failure = f"it holds no {inside}"
    print(f"photographs: going on without {package}: {failure or 'nothing was downloaded'}")
    return None


def _run(command: list[str], folder: Path) -> str:
    """Run a command in a folder; why it failed, in one line, or nothing."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"{command[0]} ended with {done.returncode}"
