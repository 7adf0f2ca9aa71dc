"""Train vision models on camera RAW by distilling them from RGB teachers."""

from isp_distill import detection
from isp_distill.backends.choice import use_backend
from isp_distill.backends.output_memory import release_memory
from isp_distill.data.collate import collate
from isp_distill.data.cut_view import cut_view
from isp_distill.data.exposure import ShortExposure
from isp_distill.data.folder import RawFolder
from isp_distill.data.image_folder import ImageFolder
from isp_distill.data.registration import Registration, register
from isp_distill.data.sensor_folder import SensorFolder
from isp_distill.data.views import View
from isp_distill.doctor import doctor
from isp_distill.errors import (
    BackendError,
    CorruptRawError,
    DamagedPackError,
    RawError,
    UnsupportedRawError,
)
from isp_distill.exports.export import camera_inputs, export
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.isp.camera import ISP
from isp_distill.models.losses import DistillLoss
from isp_distill.models.match import Match
from isp_distill.models.raw_model import RawModel
from isp_distill.models.rawify import rawify
from isp_distill.models.stem import RawStem
from isp_distill.models.teacher import Teacher
from isp_distill.ops.distill_loss.call import distill_loss, upsampled_distill_loss
from isp_distill.ops.distill_loss.linear import linear_distill_loss
from isp_distill.ops.feature_loss.call import feature_loss
from isp_distill.ops.raw_conv.call import raw_conv
from isp_distill.ops.render.call import render
from isp_distill.ops.unprocess.call import expose, unprocess
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.packs.pack import PackReport, pack
from isp_distill.packs.reader import PackedRaw
from isp_distill.packs.verify import VerifyReport, verify
from isp_distill.raw.binning import bin_mosaic
from isp_distill.raw.dng.writer import write_dng
from isp_distill.raw.image import RawImage, read_raw, upright
from isp_distill.raw.sensor_format import SensorFormat
from isp_distill.reports.evaluation import evaluate
from isp_distill.reports.report import Report
from isp_distill.students.predict import predict
from isp_distill.students.prediction import Prediction, Predictions
from isp_distill.students.saved import load, push_to_hub, save
from isp_distill.students.stream import Stream
from isp_distill.training.callbacks import TrainCallback
from isp_distill.training.result import TrainResult
from isp_distill.training.settings import TrainSettings
from isp_distill.training.train import train
from isp_distill.version import __version__

__all__ = [
    "ISP",
    "BackendError",
    "CorruptRawError",
    "DamagedPackError",
    "DistillLoss",
    "ISPAugmentation",
    "ImageFolder",
    "Match",
    "NoiseModel",
    "PackReport",
    "PackedRaw",
    "Prediction",
    "Predictions",
    "RawError",
    "RawFolder",
    "RawImage",
    "RawModel",
    "RawStem",
    "Registration",
    "Report",
    "SensorFolder",
    "SensorFormat",
    "ShortExposure",
    "Stream",
    "Teacher",
    "TrainCallback",
    "TrainResult",
    "TrainSettings",
    "UnsupportedRawError",
    "VerifyReport",
    "View",
    "__version__",
    "bin_mosaic",
    "camera_inputs",
    "collate",
    "cut_view",
    "detection",
    "distill_loss",
    "doctor",
    "evaluate",
    "export",
    "expose",
    "feature_loss",
    "linear_distill_loss",
    "load",
    "pack",
    "predict",
    "push_to_hub",
    "raw_conv",
    "rawify",
    "read_raw",
    "register",
    "release_memory",
    "render",
    "save",
    "train",
    "unprocess",
    "upright",
    "upsampled_distill_loss",
    "use_backend",
    "verify",
    "write_dng",
]
