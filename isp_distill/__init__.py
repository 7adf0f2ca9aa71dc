"""Train vision models on camera RAW by distilling them from RGB teachers."""

from isp_distill.augmentation import ISPAugmentation
from isp_distill.backend import use_backend
from isp_distill.binning import bin_mosaic
from isp_distill.collate import collate
from isp_distill.data import ImageFolder
from isp_distill.dng import write_dng
from isp_distill.doctor import doctor
from isp_distill.errors import (
    BackendError,
    CorruptRawError,
    DamagedPackError,
    RawError,
    UnsupportedRawError,
)
from isp_distill.evaluation import Report, evaluate
from isp_distill.export import camera_inputs, export
from isp_distill.exposure import ShortExposure
from isp_distill.folder import RawFolder
from isp_distill.isp import ISP, NoiseModel
from isp_distill.losses import DistillLoss
from isp_distill.ops.distill_loss import (
    distill_loss,
    linear_distill_loss,
    upsampled_distill_loss,
)
from isp_distill.ops.output_memory import release_memory
from isp_distill.ops.raw_conv import raw_conv
from isp_distill.ops.render import render
from isp_distill.ops.unprocess import expose, unprocess
from isp_distill.pack import PackReport, pack
from isp_distill.packed import PackedRaw
from isp_distill.raw import RawImage, read_raw, upright
from isp_distill.stem import RawModel, RawStem
from isp_distill.takeover import rawify
from isp_distill.teacher import Teacher
from isp_distill.trained_view import cut_view
from isp_distill.training import TrainResult, train
from isp_distill.verify import VerifyReport, verify
from isp_distill.views import View

__version__ = "0.1.0"

__all__ = [
    "ISP",
    "BackendError",
    "CorruptRawError",
    "DamagedPackError",
    "DistillLoss",
    "ISPAugmentation",
    "ImageFolder",
    "NoiseModel",
    "PackReport",
    "PackedRaw",
    "RawError",
    "RawFolder",
    "RawImage",
    "RawModel",
    "RawStem",
    "Report",
    "ShortExposure",
    "Teacher",
    "TrainResult",
    "UnsupportedRawError",
    "VerifyReport",
    "View",
    "bin_mosaic",
    "camera_inputs",
    "collate",
    "cut_view",
    "distill_loss",
    "doctor",
    "evaluate",
    "export",
    "expose",
    "linear_distill_loss",
    "pack",
    "raw_conv",
    "rawify",
    "read_raw",
    "release_memory",
    "render",
    "train",
    "unprocess",
    "upright",
    "upsampled_distill_loss",
    "use_backend",
    "verify",
    "write_dng",
]
