"""``upsampled_distill_loss`` by the CUDA kernels' source on the CPU, as a backend named "cuda".

What is taken of each call: the blocks of either kernel.
"""

from __future__ import annotations

import distill_upsampled_host
from distill_host_call import Operator


def sizes(given):
    """Batch and classes, of the full resolution, of both maps."""
    student, teacher = (tuple(given[name].shape) for name in ("student", "teacher"))
    size = (given["height"], given["width"])
    return {
        "sizes": (*student[:2], *size),
        "size": size,
        "student_size": student[2:],
        "teacher_size": teacher[2:],
    }


operator = Operator("distill_loss/upsampled.cu", distill_upsampled_host, sizes)
plan = distill_upsampled_host.plan
