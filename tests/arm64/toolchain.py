"""Debian's cross compiler for ARM64 and qemu-user: those installed, or fetched into a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

TRIPLE = "aarch64-linux-gnu"
PACKAGES = [f"g++-{TRIPLE}", "qemu-user-static"]
#: Longer than this nobody waits for a server that does not answer.
PATIENCE = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]


class MissingError(Exception):
    """Why there is no cross compiler or emulator, in one sentence."""


@dataclass(frozen=True)
class Toolchain:
    """What compiles for ARM64 here, and what runs it."""

    compiler: list[str]
    emulator: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def toolchain(folder: Path) -> Toolchain:
    """The tools on this machine; where some are missing, those of packages unpacked in ``folder``.

    Raises:
        MissingError: where they are neither here nor to be had from the system's packages.
    """
    found = _look("", Path("/"))
    if found is not None:
        return found
    root = folder / "root"
    if not (root / "complete").exists():
        _unpack(folder, root)
    paths = [str(root / "usr" / "bin"), os.environ.get("PATH", os.defpath)]
    found = _look(os.pathsep.join(paths), root)
    if found is None:
        raise MissingError(f"{' and '.join(PACKAGES)} hold no compiler or emulator for ARM64.")
    libraries = root / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
    return Toolchain(
        [*found.compiler, f"--sysroot={root}"],
        found.emulator,
        # gcc finds what it runs, and what it includes, from where it lies itself.
        {"LD_LIBRARY_PATH": str(libraries), "PATH": os.pathsep.join(paths)},
    )


def _look(path: str, root: Path) -> Toolchain | None:
    compiler = shutil.which(f"{TRIPLE}-g++", path=path or None)
    emulator = shutil.which("qemu-aarch64", path=path or None) or shutil.which(
        "qemu-aarch64-static", path=path or None
    )
    if compiler is None or emulator is None:
        return None
    return Toolchain([compiler], [emulator, "-L", str(root / "usr" / TRIPLE)])


def _unpack(folder: Path, root: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MissingError(
            f"ARM64 needs {' and '.join(PACKAGES)}, and this system has no apt-get to fetch them."
        )
    downloads = folder / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    names, options = _needed(folder)
    _apt(["download", *options, *names], downloads)
    root.mkdir(exist_ok=True)
    for package in sorted(downloads.glob("*.deb")):
        # Of thirty emulators, one.
        others = ["--wildcards", "--exclude=./usr/bin/qemu-[!a]*", "--exclude=./usr/bin/qemu-al*"]
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
        ) as unpacked:
            taken = subprocess.run(
                ["tar", "-x", "-C", str(root), *others],
                stdin=unpacked.stdout,
                capture_output=True,
                text=True,
            )
        if taken.returncode or unpacked.returncode:
            last = taken.stderr.strip().splitlines()[-1:]
            raise MissingError(
                f"ARM64 needs {' and '.join(PACKAGES)}, and {package.name} cannot be unpacked: "
                f"{last[0] if last else f'dpkg-deb ended with status {unpacked.returncode}'}."
            )
    shutil.rmtree(downloads)
    (root / "complete").touch()


def _needed(folder: Path) -> tuple[list[str], list[str]]:
    """The packages that installing the tools would bring, and apt's options that know of them."""
    plan = ["install", "--print-uris", "-qq", "--no-install-recommends", *PACKAGES]
    # What lies in the system's own cache would not be printed.
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    plan += ["-o", f"Dir::Cache::archives={archives}"]
    options: list[str] = []
    try:
        lines = _apt(plan, folder)
    except MissingError:
        # No lists of packages, as in many containers: fetch some, beside the system's own.
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        options = ["-o", f"Dir::State::lists={lists}"]
        _apt(["update", *options], folder)
        lines = _apt([*plan, *options], folder)
    return re.findall(r"' ([^ _]+)_[^ ]+\.deb ", lines), options


def _apt(arguments: list[str], folder: Path) -> str:
    run = subprocess.run(
        ["apt-get", *PATIENCE, *arguments], cwd=folder, capture_output=True, text=True
    )
    if run.returncode:
        said = [line for line in run.stderr.splitlines() if line.startswith("E: ")]
        raise MissingError(
            f"ARM64 needs {' and '.join(PACKAGES)}, and apt-get {arguments[0]} cannot get them: "
            f"{said[0][3:] if said else f'exit status {run.returncode}'}."
        )
    return run.stdout
