"""Train vision models on camera RAW by distilling them from RGB teachers."""

from isp_distill.backend import use_backend
from isp_distill.errors import BackendError, CorruptRawError, RawError, UnsupportedRawError
from isp_distill.losses import DistillLoss
from isp_distill.ops.distill_loss import (
    distill_loss,
    linear_distill_loss,
    upsampled_distill_loss,
)
from isp_distill.ops.raw_conv import raw_conv

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CorruptRawError",
    "DistillLoss",
    "RawError",
    "UnsupportedRawError",
    "distill_loss",
    "linear_distill_loss",
    "raw_conv",
    "upsampled_distill_loss",
    "use_backend",
]
