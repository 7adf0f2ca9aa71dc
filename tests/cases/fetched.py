"""Real files that tests use and the repository does not hold."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

_PACKAGE = "tinydng==0.1.0"
_MEMBER = "tinydng-0.1.0/colorchart.dng"
_SIZE = 3_906_864


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "isp-distill-tests"


def colorchart() -> Path:
    """A real camera's DNG (Canon, 14 bits packed, margins): the tinydng source package's sample.

    Fetched once with pip into the user's cache. The test that asks is skipped, with the reason,
    where the package registry cannot be reached.
    """
    path = _cache() / "colorchart.dng"
    if path.exists() and path.stat().st_size == _SIZE:
        return path
    with tempfile.TemporaryDirectory() as folder:
        try:
            # Through pip, so that the user's own index settings apply. A source package runs its
            # build backend for its metadata; pip isolates that.
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--no-binary", ":all:", "--dest", folder, _PACKAGE),
                ],
                check=True,
                capture_output=True,
                text=True,
                timeout=180,
            )
            (archive,) = Path(folder).glob("tinydng-*.tar.gz")
            with tarfile.open(archive) as file:
                member = file.extractfile(_MEMBER)
                assert member is not None
                data = member.read()
        except (OSError, ValueError, KeyError, tarfile.TarError, subprocess.SubprocessError) as e:
            detail = (getattr(e, "stderr", "") or str(e)).strip().splitlines()
            pytest.skip(f"{_PACKAGE} could not be fetched with pip: {detail[-1] if detail else e}")
    if len(data) != _SIZE:
        digest = hashlib.sha256(data).hexdigest()
        pytest.skip(f"{_PACKAGE} holds another colorchart.dng ({len(data)} bytes, {digest})")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path
