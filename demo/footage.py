"""Frames of a street with pedestrians, in an early part for training and a late one held out.

OpenCV's documentation, Debian's package ``opencv-doc`` (Apache-2.0), brings ``vtest.avi``: 79
seconds of people who cross a square. It is downloaded and unpacked into the cache, not installed.
Both parts show one scene from one place: what is measured is a camera that stays where it is.
"""

from __future__ import annotations

from pathlib import Path

from photographs import Photograph, debian_folder

PACKAGE, VIDEO = "opencv-doc", "vtest.avi"
_INSIDE = "usr/share/doc/opencv-doc/examples/data"
#: Frames of the two parts, first, last and step: nine seconds between them, 10 frames a second.
TRAINING, HELD_OUT = (0, 500, 10), (590, 795, 8)


def gather_frames(cache: Path) -> list[Photograph]:
    """The frames as pictures.

    Args:
        cache: folder for the package and the frames; made if need be.

    Raises:
        FileNotFoundError: the package cannot be had: it needs apt-get and the network.
        ImportError: OpenCV, which decodes the video, is missing.
    """
    import cv2

    folder = debian_folder(PACKAGE, cache, _INSIDE)
    if folder is None or not (folder / VIDEO).is_file():
        raise FileNotFoundError(
            f"{VIDEO} of Debian's {PACKAGE} is not here: run the demo where apt-get can fetch it"
        )
    frames = cache / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    wanted = {number: False for number in range(*TRAINING)}
    wanted |= {number: True for number in range(*HELD_OUT)}
    video, found = cv2.VideoCapture(str(folder / VIDEO)), []
    for number in range(max(wanted) + 1):
        there, frame = video.read()
        if there and number in wanted:
            path = frames / f"{number:04}.png"
            cv2.imwrite(str(path), frame)
            found.append(Photograph(PACKAGE, path, wanted[number]))
    if len(found) != len(wanted):
        raise FileNotFoundError(f"{folder / VIDEO}: has no {len(wanted)} of the frames")
    return found
