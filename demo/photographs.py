"""Real photographs from packages, split by photograph into training and held-out.

Two Python packages bring a few (scikit-image, scikit-learn); two Debian packages bring more, where
``apt-get`` is there to fetch them. Nothing is installed and root is not needed: a package is
downloaded and unpacked into the cache. Where that fails, the demo says so and goes on with fewer.

Left out after looking at them: of scikit-image the drawings, the microscope, fundus and telescope
pictures, and ``motorcycle_right`` (the same scene as ``motorcycle_left``); of lomiri-wallpapers
``analogpattern`` and ``umang`` (patterns, not scenes); of mate-backgrounds everything outside
``nature/`` (computer graphics).
"""

from __future__ import annotations

import glob
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

#: Source -> photographs in alphabetical order. Every third, from the second on, is held out.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "scikit-image": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "scikit-learn": ("china.jpg", "flower.jpg"),
    "lomiri-wallpapers-16.04": (
        "Bridge_by_Sander_Klootwijk.jpg",
        "Dragonfly_by_Bolly.jpg",
        "Picture_0B_by_freespace.jpg",
        "Picture_1A_by_freespace.jpg",
        "Wine_by_Jakkub_Mede.jpg",
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "free_by_Peter_Nerlich.jpg",
        "friends_by_Aitzol_Berasategi.jpg",
        "greentock_by_Peter_Nerlich.jpg",
        "life_by_Aitzol_Berasategi.jpg",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "seeding_by_Clements_Engelhardt.jpg",
        "sunset_by_Aitzol_Berasategi.jpg",
    ),
    "mate-backgrounds": (
        "Aqua.jpg",
        "Blinds.jpg",
        "Dune.jpg",
        "FreshFlower.jpg",
        "Garden.jpg",
        "GreenMeadow.jpg",
        "LadyBird.jpg",
        "RainDrops.jpg",
        "Storm.jpg",
        "TwoWings.jpg",
        "Wood.jpg",
        "YellowFlower.jpg",
    ),
}
# Where the pictures lie: in an installed module, or in an unpacked Debian package.
_MODULES = {"scikit-image": ("skimage", "data"), "scikit-learn": ("sklearn", "datasets/images")}
_UNPACKED = {
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
}


@dataclass(frozen=True)
class Photograph:
    """One photograph, and the side of the split that everything made from it stays on."""

    source: str
    path: Path
    held_out: bool

    @property
    def name(self) -> str:
        """The file's name without its extension."""
        return self.path.stem


def gather(cache: Path) -> list[Photograph]:
    """All photographs that can be had here.

    Args:
        cache: folder that Debian packages are unpacked into; made if need be.

    Returns:
        The photographs, in the order of :data:`PHOTOGRAPHS`.

    Raises:
        FileNotFoundError: if not even one training and one held-out photograph was found.
    """
    found: list[Photograph] = []
    for source, names in PHOTOGRAPHS.items():
        folder = _module_folder(source) if source in _MODULES else _debian_folder(source, cache)
        if folder is None:
            continue
        for position, name in enumerate(names):
            if (folder / name).is_file():
                found.append(Photograph(source, folder / name, held_out=position % 3 == 1))
            else:
                print(f"photographs: {source} has no {name} here; going on without it")
    if len({photograph.held_out for photograph in found}) < 2:
        raise FileNotFoundError("too few photographs: pip install scikit-image scikit-learn")
    return found


def _module_folder(source: str) -> Path | None:
    module, inside = _MODULES[source]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        print(f"photographs: {source} is not installed; going on without it")
        return None
    return Path(spec.origin).parent / inside


def _debian_folder(package: str, cache: Path) -> Path | None:
    root = cache / package
    folder = root / _UNPACKED[package]
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
            failure = f"it holds no {_UNPACKED[package]}"
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
