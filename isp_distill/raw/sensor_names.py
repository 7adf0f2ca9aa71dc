"""What drivers and cameras call their formats: V4L2, libcamera and GenICam's PFNC.

Sources: the Linux kernel's documentation of V4L2's Bayer and grey formats; libcamera's
``formats.yaml``; GenICam Pixel Format Naming Convention 2.4.
"""

from __future__ import annotations

import re
from typing import Any

# S, the pattern, bits, and P (V4L2) or _CSI2P (libcamera) where it is packed.
_V4L2 = re.compile(r"S(RGGB|GRBG|GBRG|BGGR)(8|10|12|14|16)(P|_CSI2P)?")
# Bayer, the first two colours, bits, and p or Packed.
_PFNC = re.compile(r"Bayer(RG|GR|GB|BG)(8|10|12|14|16)(p|Packed)?")
_PATTERNS = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}
_PACKED = {
    ("P", 10): "mipi10",
    ("P", 12): "mipi12",
    ("P", 14): "mipi14",
    ("p", 10): "pfnc10p",
    ("p", 12): "pfnc12p",
    ("Packed", 12): "gige12packed",
}
# Without colours: Y (V4L2) or R (libcamera), and Mono (GenICam).
_GREY = re.compile(r"[YR](8|10|12|14|16)(P|_CSI2P)?")
_MONO = re.compile(r"Mono(8|10|12|14|16)(p|Packed)?")


def named(name: str) -> dict[str, Any]:
    """What a name decides: packing, bits and pattern.

    Raises:
        ValueError: it is none of these names, or of a packing or filter that is not served.
    """
    pattern, bits, way = _read(name)
    if not way:
        return {"packing": "uint8" if bits == 8 else "uint16", "bits": bits, "pattern": pattern}
    if (way, bits) not in _PACKED:
        raise ValueError(f"{name}: its packing of {bits} bits is not read; unpack it to uint16")
    return {"packing": _PACKED[way, bits], "bits": bits, "pattern": pattern}


def _read(name: str) -> tuple[str, int, str]:
    """Pattern, bits, and how they are packed: one of the ways of ``_PACKED``, or ""."""
    if (found := _V4L2.fullmatch(name)) is not None:
        return found[1], int(found[2]), "P" if found[3] else ""
    if (found := _PFNC.fullmatch(name)) is not None:
        return _PATTERNS[found[1]], int(found[2]), found[3] or ""
    if name == "GREY":
        return "mono", 8, ""
    if (found := _GREY.fullmatch(name)) is not None:
        return "mono", int(found[1]), "P" if found[2] else ""
    if (found := _MONO.fullmatch(name)) is not None:
        return "mono", int(found[1]), found[2] or ""
    raise ValueError(
        f"{name!r} is no format of V4L2, libcamera or GenICam that is known here, such as "
        "SRGGB10, SRGGB10P, SRGGB10_CSI2P, BayerRG12p, BayerRG12Packed or Mono12p: give packing, "
        "bits and pattern instead"
    )
