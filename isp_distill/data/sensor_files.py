"""The files of a folder of sensor dumps: what each is, how many frames it holds, one of them.

The name of a frame is that of its file below the folder; where the file holds several, the frame's
number follows as if the file were a folder: ``a/b.raw/0003``. Packs and label maps use these names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from isp_distill.data.sensor_description import SENSOR_TOML, SensorDescription
from isp_distill.files.tree import files_below, is_file, nothing_found
from isp_distill.raw.image import RawImage, read_raw
from isp_distill.raw.sensor_file import BYTES, SENSOR_EXTENSIONS, count_frames, read_pixels
from isp_distill.raw.sensor_format import SensorFormat

# How a camera's own .raw begins (Panasonic, Leica and others): a TIFF, which LibRaw reads.
_CAMERA_FILES = (b"II*\0", b"MM\0*", b"IIU\0", b"IIRO", b"IIRS", b"FUJIFILM", b"FOVb")
_ENDINGS = "|".join(re.escape(suffix) for suffix in SENSOR_EXTENSIONS)
# No dump's name is a number alone, since it needs a suffix; so this is a frame of a file.
_FRAME = re.compile(rf"(?P<file>.+(?:{_ENDINGS}))/(?P<frame>\d{{4,}})", re.IGNORECASE)


def is_sensor_folder(root: Path) -> bool:
    """Whether a folder says that it holds sensor dumps: it has a ``sensor.toml``."""
    return is_file(root / SENSOR_TOML)


def frame_names(name: str, frames: int) -> list[str]:
    """The names of a file's frames.

    Args:
        name: the file's, below the folder, with forward slashes.
        frames: how many it holds.
    """
    return [name] if frames == 1 else [f"{name}/{frame:04}" for frame in range(frames)]


def file_and_frame(name: str) -> tuple[str, int]:
    """The name of a frame's file, and the frame's number in it."""
    found = _FRAME.fullmatch(name)
    return (name, 0) if found is None else (found["file"], int(found["frame"]))


def frame_order(name: str) -> tuple[tuple[str, ...], int]:
    """By this frames are sorted as their files are, and those of a file by their number."""
    file, frame = file_and_frame(name)
    return PurePosixPath(file).parts, frame


def sensor_files_below(
    root: Path, extensions: Iterable[str] = SENSOR_EXTENSIONS
) -> tuple[list[Path], dict[str, str]]:
    """The dumps below a folder, sorted, and why folders could not be listed.

    Raises:
        FileNotFoundError: there is no such folder, or none in it.
        OSError: none was found, and a folder could not be listed.
        ValueError: an extension is not one of a dump.
    """
    wanted = _checked(extensions)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    found, unlisted = files_below(root, wanted)
    if not found:
        raise nothing_found(
            root, f"no sensor dump in it (looked for {', '.join(wanted)})", unlisted
        )
    return found, unlisted


def _checked(extensions: Iterable[str]) -> Sequence[str]:
    wanted = tuple(f".{e.lower().lstrip('.')}" for e in extensions)
    unknown = sorted(set(wanted) - set(SENSOR_EXTENSIONS))
    if unknown or not wanted:
        raise ValueError(
            f"extensions of sensor dumps are {', '.join(SENSOR_EXTENSIONS)}, not "
            f"{', '.join(unknown) or 'none'}"
        )
    return wanted


class SensorFiles:
    """What the files below a folder are, and their frames. Thread-safe; nothing is kept open.

    Args:
        root: the folder.
        form: of all files; None reads its ``sensor.toml``.

    Raises:
        FileNotFoundError: there is no ``sensor.toml``.
        ValueError: it says something that a format has not.
    """

    def __init__(self, root: Path, form: SensorFormat | None = None) -> None:
        self.root = root
        self._description = SensorDescription(root, form)
        self._formats: dict[Path, SensorFormat | None] = {}

    def format(self, path: Path) -> SensorFormat | None:
        """What a file is; None where it is a camera's own, which LibRaw reads.

        Raises:
            RawError: nothing says what it is, or what lies beside it cannot be used.
        """
        if path not in self._formats:
            camera = path.suffix.lower() in BYTES and _is_camera_file(path)
            name = path.relative_to(self.root).as_posix()
            self._formats[path] = None if camera else self._description.of(path, name)
        return self._formats[path]

    def frames(self, path: Path) -> int:
        """How many frames a file holds.

        Raises:
            RawError: it is not what the description says.
        """
        form = self.format(path)
        return 1 if form is None else count_frames(path, form)

    def read(
        self, path: Path, frame: int, camera: Callable[[Path], RawImage] = read_raw
    ) -> RawImage:
        """One frame of a file, as it lies in it: packed bytes where it may hold them.

        Args:
            path: of the file.
            frame: its number in the file.
            camera: reads a camera's own file.

        Raises:
            RawError: the file is damaged, or not what the description says.
        """
        form = self.format(path)
        if form is None:
            return camera(path)
        return form.image(read_pixels(path, frame, 0, form.height, form), str(path))

    def read_rows(self, path: Path, frame: int, top: int, bottom: int) -> RawImage:
        """Rows ``top .. bottom - 1``, both even, of a frame that is no camera's own file.

        Raises:
            RawError: the file is damaged, or not what the description says.
        """
        form = self.format(path)
        assert form is not None
        first, last = form.block * top, form.block * bottom
        return form.image(read_pixels(path, frame, first, last, form), str(path))


def _is_camera_file(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(16).startswith(_CAMERA_FILES)
    except OSError:
        return False
