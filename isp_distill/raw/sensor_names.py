"""What drivers and cameras call their formats: V4L2, libcamera and GenICam's PFNC.

Sources: the Linux kernel's documentation of V4L2's Bayer formats; libcamera's ``formats.yaml``;
GenICam Pixel Format Naming Convention 2.4.
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
_MONO = re.compile(r"(GREY|Y1?\d(P|_CSI2P)?|R\d+(_CSI2P)?|Mono\d+(p|Packed)?)")


def named(name: str) -> dict[str, Any]:
    """What a name decides: packing, bits and pattern.

    Raises:
        ValueError: it is none of these names, or of a packing or filter that is not served.
    """
    found = _V4L2.fullmatch(name)
    if found is not None:
        pattern, way = found[1], "P" if found[3] else ""
    else:
        found = _PFNC.fullmatch(name)
        if found is None:
            if _MONO.fullmatch(name):
                raise ValueError(f"{name} has no colours: only Bayer mosaics are read")
            raise ValueError(
                f"{name!r} is no format of V4L2, libcamera or GenICam that is known here, such as "
                "SRGGB10, SRGGB10P, SRGGB10_CSI2P, BayerRG12p or BayerRG12Packed: give packing, "
                "bits and pattern instead"
            )
        pattern, way = _PATTERNS[found[1]], found[3] or ""
    bits = int(found[2])
    if not way:
        return {"packing": "uint8" if bits == 8 else "uint16", "bits": bits, "pattern": pattern}
    if (way, bits) not in _PACKED:
        raise ValueError(f"{name}: its packing of {bits} bits is not read; unpack it to uint16")
    return {"packing": _PACKED[way, bits], "bits": bits, "pattern": pattern}
