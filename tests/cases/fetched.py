"""Real files that tests use and the repository does not hold."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

_PACKAGE = "tinydng==0.1.0"
_MEMBER = "tinydng-0.1.0/colorchart.dng"
_SIZE = 3_906_864
# Debian's source package of a converter of RAW files, GPL-3, whose documentation has one.
_SOURCE, _SOURCE_SIZE = "rawtran", 7_523_286
_SOURCE_MEMBER = "rawtran-1.1/doc/IMG_5952.CR2"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "isp-distill-tests"


def colorchart() -> Path:
    """A real camera's DNG (Canon, 14 bits packed, margins): the tinydng source package's sample.

    Fetched once with pip into the user's cache. The test that asks is skipped, with the reason,
    where the package registry cannot be reached; after that none waits for it again.
    """
    return _kept("colorchart.dng", _PACKAGE, _MEMBER, _SIZE, _by_pip)


def canon_raw() -> Path:
    """A real Canon EOS 30D's CR2, with a JPEG of 1728 x 1152 in it: of Debian's rawtran.

    Fetched once with apt-get, which needs no rights for it, into the user's cache; skipped, with
    the reason, where there is no apt-get or no network.
    """
    return _kept("canon-30d.cr2", f"Debian's {_SOURCE}", _SOURCE_MEMBER, _SOURCE_SIZE, _by_apt)


def _kept(
    name: str, package: str, member: str, size: int, download: Callable[[Path], Path]
) -> Path:
    """A file of the user's cache, fetched where it is missing.

    Args:
        name: of the file there.
        package: that has it, for the reason.
        member: the file in the package's archive.
        size: of the file, bytes.
        download: puts the archive into a folder, and returns its path.
    """
    path = _cache() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of several workers one fetches it.
    with FileLock(path.with_suffix(".lock")):
        if not (path.exists() and path.stat().st_size == size):
            reason = _fetch(path, package, member, size, download)
            if reason is not None:
                pytest.skip(reason)
    return path


@functools.cache
def _fetch(
    path: Path, package: str, member: str, size: int, download: Callable[[Path], Path]
) -> str | None:
    """Put the file there; why not, if it cannot be."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(download(Path(folder))) as archive:
                found = archive.extractfile(member)
                assert found is not None
                data = found.read()
        except (OSError, ValueError, KeyError, tarfile.TarError, subprocess.SubprocessError) as e:
            # Of a command that failed its last words; of one that took too long, that it did.
            said = e.stderr if isinstance(e, subprocess.CalledProcessError) else None
            reason = (said or str(e) or repr(e)).strip().splitlines()[-1]
            return f"{package} could not be fetched: {reason}"
    if len(data) != size:
        digest = hashlib.sha256(data).hexdigest()
        return f"{package} holds another {member} ({len(data)} bytes, {digest})"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return None


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=180)


def _by_pip(folder: Path) -> Path:
    # Through pip, so that the user's own index settings apply. A source package runs its build
    # backend for its metadata; pip isolates that.
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    _run([sys.executable, "-m", "pip", "download", *options, _PACKAGE], folder)
    (archive,) = folder.glob("tinydng-*.tar.gz")
    return archive


def _by_apt(folder: Path) -> Path:
    (folder / "sources.list").write_text("deb-src http://deb.debian.org/debian bookworm main\n")
    (folder / "lists").mkdir()
    # Lists of its own: the machine's are neither read nor changed.
    own = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder,
    }
    options = [f"-o{name}={value}" for name, value in own.items()]
    for command in (["update"], ["source", "--download-only", "--tar-only", _SOURCE]):
        _run(["apt-get", "-qq", *options, *command], folder)
    (archive,) = folder.glob("*.orig.tar.*")
    return archive
