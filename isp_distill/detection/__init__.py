"""Detection: detectors as teachers and students, their heads compared place by place.

Example:
    >>> heads = isp_distill.detection.Heads(logits=80)
    >>> heads.confidence
    0.3
"""

from isp_distill.detection.detected import Detections, detections
from isp_distill.detection.detector import Detector
from isp_distill.detection.heads import Heads
from isp_distill.detection.known import teacher
from isp_distill.detection.loss import DetectionLoss

__all__ = ["DetectionLoss", "Detections", "Detector", "Heads", "detections", "teacher"]
