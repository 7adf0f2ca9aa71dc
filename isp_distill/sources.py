"""What data may be given as: a path, a list of files or a dataset, opened as what it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, cast

from isp_distill.data.folder import RAW_EXTENSIONS, RawFolder
from isp_distill.data.image_folder import IMAGE_EXTENSIONS, ImageFolder
from isp_distill.data.label_file import LabelFile, is_label_file
from isp_distill.data.labels import Labels, stated
from isp_distill.data.picture_files import BESIDE, EMBEDDED
from isp_distill.data.sensor_files import is_sensor_folder
from isp_distill.data.sensor_folder import SensorFolder, missing_description
from isp_distill.data.several_folders import SeveralFolders, several_folders
from isp_distill.data.source import Source, check_first_label
from isp_distill.files.listed import common_folder, is_list_of_files
from isp_distill.files.tree import files_below
from isp_distill.packs.reader import PackedRaw, is_packed
from isp_distill.raw.sensor_file import ARRAYS

#: What data may be given as: a folder, a file, a dataset, or a list of files, of folders, or of
#: datasets that are folders.
Data = (
    str
    | os.PathLike[str]
    | Sequence[str | os.PathLike[str]]
    | Sequence[RawFolder | SensorFolder | ImageFolder | PackedRaw]
    | Source
)

_FOLDERS = (RawFolder, PackedRaw, ImageFolder, SensorFolder)
# So many decoded files show what decoding costs.
_MEASURED = 16


def open_source(
    data: Data,
    label_maps: str | os.PathLike[str] | None = None,
    *,
    labels: Labels = None,
    picture: str | os.PathLike[str] | None = None,
    use_stored_teacher: bool = True,
) -> Source:
    """A packed folder, one of RAW files, of sensor dumps, of pictures; several; or a dataset.

    Several folders are one dataset, see :class:`isp_distill.data.several_folders.SeveralFolders`.
    Their label maps, and the paths in a file of labels, lie as the folders do below the innermost
    folder that holds them all; with "folder" a class is the first folder below each.

    Args:
        data: the path of a folder or a file, a list of files or of folders, or a dataset.
        label_maps: the folder of its label maps, see :class:`RawFolder`. Those of named files lie
            as the files do below the innermost folder that holds them all.
        labels: see :class:`RawFolder`. Packed folders have their own: "folder" asks for these.
        picture: of RAW files and sensor dumps, the cameras' own pictures: see :class:`RawFolder`. A
            folder of them holds those of several folders as ``label_maps`` does.
        use_stored_teacher: see :class:`isp_distill.PackedRaw`; False asks for packed folders.

    Raises:
        FileNotFoundError: for a folder without either, or a file, a label map or a file of labels
            that is missing.
        ValueError: for an empty dataset, a list of both RAW files and pictures, a folder that lies
            in another one, a first item whose label is none, labels that are asked of a packed
            folder which has none, or ``picture`` where there is nothing that it could belong to.
        TypeError: for something that is neither a path nor a dataset.
    """
    if isinstance(data, (str, os.PathLike)):
        root = Path(data)
        if root.is_file():
            return _open_files([root], label_maps, labels, picture)
        return _open_folder(root, label_maps, labels, picture, use_stored_teacher)
    if is_list_of_files(data):
        listed = [Path(one) for one in cast("Sequence[str | os.PathLike[str]]", data)]
        if all(one.is_dir() for one in listed):
            return _open_folders(listed, label_maps, labels, picture, use_stored_teacher)
        return _open_files(listed, label_maps, labels, picture)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        if len(data) == 0:
            raise ValueError("the dataset is empty")
        if picture is not None:
            raise ValueError("picture is of paths: a dataset has its own, RawFolder(..., picture=)")
        if isinstance(data, (list, tuple)) and all(isinstance(one, _FOLDERS) for one in data):
            return several_folders(data)
        if not isinstance(data, (*_FOLDERS, SeveralFolders)):
            check_first_label(cast(Source, data))
        return cast(Source, data)
    raise TypeError(
        f"data must be a folder, a file, a list of files or of folders, or a dataset with a "
        f"length, not {type(data).__name__}"
    )


def _open_folder(
    root: Path,
    label_maps: str | os.PathLike[str] | None,
    labels: Labels,
    picture: str | os.PathLike[str] | None,
    use_stored_teacher: bool,
) -> Source:
    """A folder as what it is."""
    if is_packed(root) or not use_stored_teacher:
        if picture is not None:
            raise ValueError(
                f"{root}: is packed, with whatever pictures it has: leave picture (--picture) out, "
                "or pack it again with picture= (--picture)"
            )
        packed = PackedRaw(root, label_maps=label_maps, use_stored_teacher=use_stored_teacher)
        _check_packed_labels(packed, labels)
        return cast(Source, packed)
    if is_sensor_folder(root):
        dumps = SensorFolder(root, labels=labels, label_maps=label_maps, picture=picture)
        return cast(Source, dumps)
    if root.is_dir():
        held = _held_below(root)
        if held == "pictures":
            _check_no_picture(root, picture)
            return ImageFolder(root, labels=labels, label_maps=label_maps)
        if isinstance(held, Path):
            raise FileNotFoundError(missing_description(root, held))
    whole = RawFolder(root, labels=labels, label_maps=label_maps, picture=picture)
    return cast(Source, whole)


def _check_no_picture(path: Path, picture: str | os.PathLike[str] | None) -> None:
    """Refuse the pictures of cameras where the data are pictures themselves."""
    if picture is not None:
        raise ValueError(
            f"{path}: is a picture, or holds them, and mosaics are made of them: leave picture "
            "(--picture) out, which is of RAW files"
        )


def _check_packed_labels(packed: PackedRaw, labels: Labels) -> None:
    """Refuse labels that a packed folder has not, before anything is trained on it."""
    if labels is None:
        return
    if not (isinstance(labels, str) and labels == "folder"):
        raise ValueError(
            f"{packed.path}: is packed with its labels: pack it again with --labels FILE to give "
            "it others (nothing is decoded anew), and train with --labels alone"
        )
    if packed.label(0) is None:
        raise ValueError(
            f"{packed.path}: was packed without labels: pack it again with --labels (nothing is "
            "decoded anew)"
        )


def _open_folders(
    roots: Sequence[Path],
    label_maps: str | os.PathLike[str] | None,
    labels: Labels,
    picture: str | os.PathLike[str] | None,
    use_stored_teacher: bool,
) -> Source:
    """Several folders, each as what it is, as one dataset."""
    if len(roots) == 1:
        return _open_folder(roots[0], label_maps, labels, picture, use_stored_teacher)
    places = [root.resolve() for root in roots]
    for number, place in enumerate(places):
        for other in (*places[:number], *places[number + 1 :]):
            if place == other or place.is_relative_to(other):
                raise ValueError(
                    f"{roots[number]}: lies in {roots[places.index(other)]}, or is it: its files "
                    "would come twice"
                )
    packed = [is_packed(root) for root in roots]
    if not use_stored_teacher and not any(packed):
        raise FileNotFoundError(f"{roots[0]}: none of the folders is packed: they store no logits")
    whole = common_folder(roots)
    file = LabelFile.read(cast("str | Path", labels)) if is_label_file(labels) else None
    parts = []
    for root, has_pack in zip(roots, packed, strict=True):
        below = root.absolute().relative_to(whole)
        own = labels if file is None else file.below(PurePosixPath(below.as_posix()))
        maps = None if label_maps is None else Path(label_maps) / below
        shown = picture
        if picture is not None and os.fspath(picture) not in (EMBEDDED, BESIDE):
            shown = Path(picture) / below
        parts.append(_open_folder(root, maps, own, shown, use_stored_teacher or not has_pack))
    found = several_folders(parts)
    said = stated(labels)
    found.stated = {
        "data": [str(root) for root in roots],
        "label_maps": None if label_maps is None else str(Path(label_maps)),
        "labels": said if file is not None else said is not None,
        "picture": None if picture is None else os.fspath(picture),
        "live_teacher": not use_stored_teacher,
    }
    return found


def _held_below(root: Path) -> Literal["raw", "pictures"] | Path | None:
    """What a folder holds: RAW files, else pictures, else arrays, of which the first is named."""
    found = files_below(root, (*RAW_EXTENSIONS, *IMAGE_EXTENSIONS, *ARRAYS))[0]
    suffixes = {path.suffix.lower() for path in found}
    if suffixes & set(RAW_EXTENSIONS):
        return "raw"
    if suffixes & set(IMAGE_EXTENSIONS):
        return "pictures"
    return found[0] if found else None


def _open_files(
    files: Sequence[Path],
    label_maps: str | os.PathLike[str] | None,
    labels: Labels,
    picture: str | os.PathLike[str] | None,
) -> Source:
    pictures = [file.suffix.lower() in IMAGE_EXTENSIONS for file in files]
    if any(pictures) and not all(pictures):
        raise ValueError(
            f"{files[pictures.index(True)]}: is a picture, {files[pictures.index(False)]} is none: "
            "give RAW files or pictures, not both"
        )
    root = common_folder(files)
    if pictures[0]:
        _check_no_picture(files[0], picture)
        return ImageFolder(root, labels=labels, label_maps=label_maps, files=files)
    chosen = RawFolder(root, labels=labels, label_maps=label_maps, files=files, picture=picture)
    return cast(Source, chosen)


def packing_note(source: Source, workers: int) -> str | None:
    """What packing folders of RAW files would save, once enough files of them were decoded.

    Args:
        source: any; only a RawFolder that keeps nothing decoded has something to save, alone or
            among several folders.
        workers: files decoded at a time.
    """
    parts = source.parts if isinstance(source, SeveralFolders) else [source]
    folders = [part for part in parts if isinstance(part, RawFolder) and not part.keeps_decoded]
    files = sum(folder.decoded[0] for folder in folders)
    if files < _MEASURED:
        return None
    each = sum(folder.decoded[1] for folder in folders) / files
    count = sum(map(len, folders))
    kept = "" if folders[0].pictures is None else f" --picture {folders[0].pictures.where}"
    advice = (
        f"isp-distill pack {folders[0].root} OUT{kept}, then train on OUT (or keep them with "
        "RawFolder(..., cache=FOLDER))"
    )
    if len(folders) > 1:
        named = ", ".join(str(folder.root) for folder in folders)
        advice = (
            f"pack each of {named} into a folder of its own (isp-distill pack FOLDER OUT), then "
            "train on the packs in their place (or keep them with RawFolder(..., cache=FOLDER))"
        )
    return (
        f"decoding takes {1e3 * each:.0f} ms a RAW file ({files} measured), so {count} files "
        f"cost {each * count / workers:.1f} s of every epoch with {workers} workers; packed "
        f"they cost it once: {advice}"
    )
