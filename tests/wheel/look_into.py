"""Looks into a built wheel: its tag, its libraries, and that nothing of this machine is in it.

``python tests/wheel/look_into.py dist/isp_distill-*.whl``, in the environment of ``make wheel``
(pyelftools comes with auditwheel).
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[2]
#: What every Linux of the wheel's tag has, and what torch brings.
GIVEN = re.compile(
    r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|torch_cpu|torch_cuda)\.so(\.\d+)?|ld-linux-.*"
)
#: Where compilers and build environments put things.
PLACES = (str(ROOT), str(Path.home()), sys.prefix, "/tmp/", "site-packages/")


def faults_of(wheel: Path) -> list[str]:
    """What is wrong with the wheel, a sentence each."""
    faults = []
    if not re.search(r"-cp310-abi3-manylinux_2_\d+_(x86_64|aarch64)\.whl$", wheel.name):
        faults.append(f"{wheel.name} is no abi3 wheel for manylinux.")
    with zipfile.ZipFile(wheel) as archive:
        libraries = {n: archive.read(n) for n in archive.namelist() if re.search(r"\.so\b", n)}
    wanted = {"isp_distill/_C.abi3.so"}
    if shutil.which("nvcc"):
        wanted.add("isp_distill/_cuda.abi3.so")
    if set(libraries) != wanted:
        faults.append(f"its libraries are {sorted(libraries)}, and should be {sorted(wanted)}.")
    for name, content in libraries.items():
        faults += [f"{name} {fault}" for fault in faults_of_library(content)]
    return faults


def faults_of_library(content: bytes) -> list[str]:
    """What is wrong with a library, the rest of a sentence each."""
    dynamic = ELFFile(io.BytesIO(content)).get_section_by_name(".dynamic")
    faults = []
    for tag in dynamic.iter_tags():
        if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
            faults.append("looks for libraries in a folder of its own.")
        if tag.entry.d_tag == "DT_NEEDED" and not GIVEN.fullmatch(tag.needed):
            faults.append(f"needs {tag.needed}, which nobody may have.")
    for text in re.findall(rb"[\x20-\x7e]{6,}", content):
        if any(place.encode() in text for place in PLACES):
            faults.append(f"names a place of this machine: {text[:120].decode()}.")
    return faults


def main(wheels: list[str]) -> int:
    """Print each wheel's faults; 1 where there are any."""
    wrong = False
    for wheel in map(Path, wheels):
        faults = faults_of(wheel)
        wrong |= bool(faults)
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name}, {size:.1f} MB:", *(faults or ["as it should be."]), sep="\n  ")
    return int(wrong or not wheels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
