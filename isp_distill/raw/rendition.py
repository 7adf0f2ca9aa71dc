"""What a maker wants done with the mosaic: the part to show, how bright, and even light."""

from __future__ import annotations

from typing import Any

from isp_distill.raw import camera_warnings, framing, metadata, tiff
from isp_distill.raw.dng import opcodes


def rendition_of(
    name: str,
    sizes: Any,
    directories: list[tiff.Directory],
    directory: tiff.Directory,
    camera: str,
    pattern: str,
    shape: tuple[int, ...],
) -> tuple[dict[str, Any], list[str]]:
    """Default crop, baseline exposure and gain map, as a RawImage's fields, and warnings.

    Corrections that are not applied are named here, once for each camera.

    Args:
        name: the file, for that warning.
        sizes: LibRaw's sizes (rawpy's ``ImageSizes``).
        directories: every directory of the file.
        directory: the one of them that describes the sensor data.
        camera: make and model.
        pattern: of the mosaic.
        shape: of the mosaic, which begins at LibRaw's margins.

    Raises:
        opcodes.OpcodeError: the list that gain maps are in is damaged.
    """
    is_dng = tiff.is_dng(directories)
    crop, crop_note = framing.default_crop_of(
        directory if is_dng else {}, sizes, shape[0], shape[1]
    )
    fields: dict[str, Any] = {"default_crop": crop}
    notes = [crop_note]
    if is_dng:
        area = tiff.integers(directory, tiff.ACTIVE_AREA)
        if len(area) != 4 or area[0] >= area[2] or area[1] >= area[3]:
            area = (0, 0, sizes.raw_height, sizes.raw_width)
        placement = opcodes.Placement(
            sizes.top_margin - area[0],
            sizes.left_margin - area[1],
            area[2] - area[0],
            area[3] - area[1],
            pattern,
        )
        corrections = opcodes.corrections_of(directory, placement)
        camera_warnings.warn_of_unapplied(name, camera, corrections.unapplied, stacklevel=4)
        fields["gain_map"] = corrections.gain_map
        stops, stops_note = metadata.baseline_exposure_of(
            tiff.find(directories, tiff.BASELINE_EXPOSURE)
        )
        fields["baseline_exposure"] = stops
        notes.append(stops_note)
    return fields, [note for note in notes if note]
