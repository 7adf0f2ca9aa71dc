"""``distill_loss`` by the CUDA kernels' source on the CPU, as a backend named "cuda".

What is taken of each call: its kernel (Shape in csrc/cuda/distill_loss/call.h), and whether it used
vectors.
"""

from __future__ import annotations

import distill_loss_host
from distill_host_call import Operator

operator = Operator(
    "distill_loss/call.cu",
    distill_loss_host,
    lambda given: {"sizes": tuple(given["student"].shape)},
)
