"""What three GPUs can do by their data sheets, and how many blocks fit one of their processors.

Rates are peak rates of the SXM boards, without sparsity:

* A100 80 GB: "NVIDIA A100 Tensor Core GPU" data sheet (2021): 2039 GB/s, float32 19.5, TF32 156,
  bfloat16 312 TFLOPS.
* H100: "NVIDIA H100 Tensor Core GPU" data sheet (2023): 3.35 TB/s, float32 67, TF32 989 and
  bfloat16 1979 TFLOPS with sparsity, which is twice the dense rate.
* B200 (HGX, 1000 W): "NVIDIA Blackwell Architecture Technical Brief" (2024): 8 TB/s, float32 80,
  TF32 2.2 and bfloat16 4.5 PFLOPS with sparsity.

The limits of a multiprocessor are those of table "Technical Specifications per Compute Capability"
in the CUDA C++ Programming Guide, and how registers and shared memory are rounded up that of the
occupancy calculator in Nsight Compute.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes of shared memory that the runtime takes for itself in every block, since sm_80.
_RESERVED_SHARED = 1024
_WARP = 32
#: Registers are handed out to a warp in units of this many.
_REGISTER_UNIT = 256
_SHARED_UNIT = 128
#: Results of the special functions a clock and multiprocessor (CUDA C++ Programming Guide, table
#: "Throughput of Native Arithmetic Instructions"); float32 lanes are 64 on sm_80, else 128.
_SPECIAL = 16
#: Warps that issue an instruction in a clock.
_SCHEDULERS = 4


@dataclass(frozen=True)
class Gpu:
    """One board.

    Attributes:
        name: as it is sold.
        architecture: 80, 90 or 100.
        bandwidth: of its memory, bytes a second.
        rates: a second, by what computes them: ``half`` and ``tf32`` are operations of the matrix
            units (a multiply-add is two), ``scalar`` instructions of float32 lanes, ``special``
            exponentials, logarithms, roots and reciprocals, ``issue`` instructions of any kind
            and lane.
        shared: bytes of shared memory of a multiprocessor.
        blocks: resident blocks of a multiprocessor at most.
        warps: resident warps of a multiprocessor at most.
        registers: 32-bit registers of a multiprocessor.
    """

    name: str
    architecture: int
    bandwidth: float
    rates: dict[str, float]
    shared: int
    blocks: int = 32
    warps: int = 64
    registers: int = 65536

    def occupancy(self, registers: int, shared: int, threads: int) -> float:
        """The share of resident warps, 0 to 1, where only these three limit it."""
        warps = -(-threads // _WARP)
        of_warp = _rounded(registers * _WARP, _REGISTER_UNIT)
        # Each of the four schedulers has a quarter of the registers, and takes whole warps.
        by_registers = self.registers // _SCHEDULERS // of_warp * _SCHEDULERS // warps
        by_shared = self.shared // _rounded(shared + _RESERVED_SHARED, _SHARED_UNIT)
        blocks = min(self.blocks, self.warps // warps, by_registers, by_shared)
        return blocks * warps / self.warps

    def seconds(self, traffic: float, operations: dict[str, float]) -> tuple[float, str]:
        """The least time for so many bytes and operations, and what of them takes it.

        Memory and the units work at the same time, so it is the longest of them: a bound from
        below, not an estimate.
        """
        every = {kind: count / self.rates[kind] for kind, count in operations.items()}
        every["memory"] = traffic / self.bandwidth
        limit = max(every, key=lambda kind: every[kind])
        return every[limit], limit


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _rates(fp32: float, lanes: int, tf32: float, half: float) -> dict[str, float]:
    clocks = fp32 / 2 / lanes  # of all multiprocessors together, a second
    return {
        "scalar": clocks * lanes,
        "special": clocks * _SPECIAL,
        "issue": clocks * _SCHEDULERS * _WARP,
        "tf32": tf32,
        "half": half,
    }


GPUS = (
    Gpu("A100", 80, 2.039e12, _rates(19.5e12, 64, 156e12, 312e12), 164 * 1024),
    Gpu("H100", 90, 3.35e12, _rates(67e12, 128, 494.5e12, 989.5e12), 228 * 1024),
    Gpu("B200", 100, 8e12, _rates(80e12, 128, 1100e12, 2250e12), 228 * 1024),
)
