"""Folders of small RAW files, and files that are refused."""

from __future__ import annotations

from dng_cases import CFA, bare_dng, noise
from training_run import write_image


def write_folder(folder, count):
    folder.mkdir()
    for index in range(count):
        write_image(folder / f"{index:02}.dng", index)


def write_xtrans(path):
    period = (1, 2, 1, 1, 0, 1, 0, 1, 0, 2, 1, 2, 1, 2, 1, 1, 0, 1)
    period += (1, 0, 1, 1, 2, 1, 2, 1, 2, 0, 1, 0, 1, 0, 1, 1, 2, 1)
    tags = [(33421, "H", 2, (6, 6), True), (33422, "B", 36, period, True), *CFA[2:]]
    bare_dng(path, noise((60, 96)), tags)
