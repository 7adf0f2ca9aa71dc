"""Decoded mosaics kept in a folder, so that a RAW file is decoded once and not in every epoch.

One file for each RAW file, mapped into memory when it is read: a view costs the rows that it shows.
For a whole data set, :func:`isp_distill.pack` is the better way: fewer files, with checksums.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

from isp_distill.errors import CorruptRawError
from isp_distill.raw.image import RawImage
from isp_distill.raw.record_fields import image_fields, stored_fields


class DecodedCache:
    """A folder of decoded mosaics; safe for several threads and processes at once.

    A RAW file whose size or time of change is no longer the same is decoded again. A cached file
    appears whole or not at all; a damaged one counts as missing. Only the user deletes files.

    Args:
        folder: where; made if missing.
        upright: whether what is kept was turned upright.
        corrected: whether its lens shading was corrected.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(
        self, folder: str | os.PathLike[str], upright: bool, corrected: bool = False
    ) -> None:
        self.folder, self.upright, self.corrected = Path(folder), upright, corrected
        self.folder.mkdir(parents=True, exist_ok=True)
        self._full = False

    def _place(self, path: Path) -> tuple[str, dict[str, object]]:
        from isp_distill.storage import shards

        try:
            stamp = shards.stamp_of(path)
        except OSError as error:
            raise CorruptRawError(str(path), f"cannot be opened: {error.strerror}") from error
        name = f"{os.path.abspath(path)}\n{self.upright}"
        if self.corrected:
            name += "\ncorrected"
        digest = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
        return f"{digest}.safetensors", dict(stamp)

    def get(self, path: Path) -> RawImage | None:
        """The decoded file, its mosaic a view of the cached one; None where it is not there.

        Raises:
            CorruptRawError: the RAW file itself is missing.
        """
        from isp_distill.storage import shards
        from isp_distill.storage.manifest import digest_of
        from isp_distill.storage.manifest_schema import check_fields

        name, stamp = self._place(path)
        kept = self.folder / name
        try:
            shard = shards.Shard(kept, kept.stat().st_size)
            about, mosaic = shard.about(), shard.array("mosaic")
            if about["stamp"] != stamp:
                return None
            height, width = mosaic.shape
            check_fields(about["fields"], (height, width))
            said = digest_of(name, stamp, about["fields"], [height, width])
            if said != about["digest"]:
                return None
            return RawImage(mosaic=mosaic, path=str(path), **image_fields(about["fields"]))
        except (OSError, shards.DamagedShardError):
            return None
        except (ValueError, TypeError, KeyError):  # its header is not one that put() wrote
            return None

    def put(self, path: Path, raw: RawImage) -> None:
        """Keep a decoded file. Where there is no room, warn once and keep no more."""
        from isp_distill.storage import shards
        from isp_distill.storage.field_checks import FieldError
        from isp_distill.storage.manifest import digest_of
        from isp_distill.storage.manifest_schema import check_fields

        if self._full:
            return
        name, stamp = self._place(path)
        fields = stored_fields(raw)
        shape = (raw.height, raw.width)
        try:
            check_fields(fields, shape)
        except FieldError:
            return  # get() would refuse it
        digest = digest_of(name, stamp, fields, list(shape))
        about = {"stamp": stamp, "fields": fields, "digest": digest}
        try:
            shards.write_shard(self.folder, name, {"mosaic": raw.mosaic}, about)
        except OSError as error:
            self._full = True
            warnings.warn(
                f"{self.folder}: no more decoded files are kept there: {error}", stacklevel=2
            )
