"""Train vision models on camera RAW by distilling them from RGB teachers."""

from isp_distill.backend import use_backend
from isp_distill.errors import BackendError, CorruptRawError, RawError, UnsupportedRawError
from isp_distill.ops.raw_conv import raw_conv

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CorruptRawError",
    "RawError",
    "UnsupportedRawError",
    "raw_conv",
    "use_backend",
]
