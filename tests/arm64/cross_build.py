"""The CPU library and the driver that runs it, compiled for ARM64."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch
from toolchain import TRIPLE, Toolchain

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
HEADERS = Path(torch.__file__).parent / "include"


def build(tools: Toolchain, folder: Path) -> tuple[list[str], Path, dict[str, str]]:
    """Command of the driver, path of the library, and environment for both.

    What was built from the same sources before is taken as it is.
    """
    library = folder / "lib" / "isp_distill" / "_C.abi3.so"
    driver = folder / "driver"
    flags = os.environ.get("CXXFLAGS", "-O2")
    environment = {**os.environ, **tools.environment, "CXXFLAGS": flags}
    digest, stamp = _digest(tools, flags), folder / "built-from"
    if not (stamp.exists() and stamp.read_text() == digest):
        stamp.unlink(missing_ok=True)
        _build_library(tools, folder, environment)
        compile_driver = [*tools.compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror"]
        compile_driver += ["-rdynamic", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
        compile_driver += [f"-isystem{HEADERS}", *map(str, sorted(HERE.glob("*.cpp")))]
        _run([*compile_driver, "-ldl", "-o", str(driver)], environment)
        stamp.write_text(digest)
    # The library asks for a libtorch_cpu; the one that it was linked against holds nothing.
    empty = folder / "objects" / "kernels"
    return (
        [*tools.emulator, "-E", f"LD_LIBRARY_PATH={empty}", str(driver)],
        library,
        {"ISP_DISTILL_CPU": ""},
    )


def _build_library(tools: Toolchain, folder: Path, environment: dict[str, str]) -> None:
    settings = {
        "ISP_DISTILL_CROSS": TRIPLE,
        "ISP_DISTILL_REQUIRE_EXTENSION": "1",
        "CXX": " ".join(tools.compiler),
    }
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "objects")]
    _run(command, {**environment, **settings})


def _run(command: list[str], environment: dict[str, str]) -> None:
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout[-5000:]}{run.stderr[-10000:]}"


def _digest(tools: Toolchain, flags: str) -> str:
    digest = hashlib.sha256(f"{tools}{flags}{torch.__version__}".encode())
    sources = [*(ROOT / "csrc").rglob("*.*"), *HERE.glob("*.cpp"), *HERE.glob("*.h")]
    for path in sorted([ROOT / "setup.py", *sources]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
