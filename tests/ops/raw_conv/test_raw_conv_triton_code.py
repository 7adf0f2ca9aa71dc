"""What became of raw_conv's Triton kernels as machine code: registers, spills, tensor cores."""

from __future__ import annotations

import pytest
import triton.language as tl
from compiled_triton import ARCHITECTURES, Compiled, compile_for
from isp_distill.kernels.raw_conv import backward, forward

from isp_distill.raw.packings import PACKED

# Kernel, stride, channels of the stems of EfficientNet, ResNet and ConvNeXt.
STEMS = {"efficientnet": (3, 2, 32), "resnet": (7, 2, 64), "convnext": (4, 4, 96)}
POINTERS = {
    **dict.fromkeys(["weight", "bias", "black", "scale", "unit", "mix", "gamma_ptr"], "*fp32"),
    **dict.fromkeys(["padding_value", "weight_sums", "bias_sums", "colour_sums"], "*fp32"),
    "linearise": "*fp32",
    "mosaic": "*i32",  # uint16 in pairs
    "patterns": "*i64",
}
ALIGNED = ["mosaic", "weight", "bias", "black", "scale", "mix", "patterns", "out", "grad"]
ALIGNED += ["out_pixels", "out_channel", "grad_channel", "channels"]


def compiled(
    kernel, architecture, stem, half, pixels, warps, recompute=False, colour=False, packing=None
):
    size, stride, channels = STEMS[stem]
    image = "*bf16" if half else "*fp32"
    constants = {
        "KERNEL": size,
        "STRIDE": stride,
        "CLIP": True,
        "MIX": colour,
        "CURVE": "gamma" if colour else "linear",
        "PADDED": False,
        "PAIRS": packing is None,
        "ELEMENT": packing or "uint16",
        "LINEARISE": packing is not None,
        "OPERAND": tl.bfloat16 if half else tl.float32,
        "PRECISION": "ieee" if half else "tf32x3",
        "BIAS": True,
        "ACTIVATION": "silu" if recompute else "relu",
        "RECOMPUTE": recompute,
        "BLOCK_CHANNELS": min(64 if half else 32, channels),
        "BLOCK_POSITIONS": forward.BLOCK_POSITIONS,
        "BLOCK_PIXELS": pixels,
        # The launcher's contiguous tensors: a stride of 1 is a constant.
        "out_pixel": 1,
        "grad_pixel": 1,
    }
    names = kernel.arg_names
    signature = {name: POINTERS.get(name, "i32") for name in names}
    signature.update({name: image for name in ("out", "grad") if name in names})
    if packing is not None:
        signature["mosaic"] = "*u8"
    return compile_for(
        kernel,
        architecture,
        signature,
        {name: value for name, value in constants.items() if name in names},
        tuple(name for name in ALIGNED if name in names),
        num_warps=warps,
        num_stages=1,
    )


def every_kernel(half):
    """(name, what to compile it for): all launches that the library makes."""
    forward_kernel = forward.raw_conv_forward_kernel.fn
    for colour in (False, True):
        for c in forward.forward_configurations(float32=not half):
            yield forward_kernel, (c.kwargs["BLOCK_PIXELS"], c.num_warps, False, colour)
        for recompute in (False, True):
            tile = backward.weight_tile(float32=not half, recompute=recompute)
            yield backward.raw_conv_weight_kernel, (*tile, recompute, colour)
    for recompute in (False, True):
        tile = backward.colour_tile(float32=not half)
        yield backward.raw_conv_colour_kernel, (*tile, recompute, True)


def check(what) -> str | None:
    kernel, architecture, stem, half, rest = what
    found: Compiled = compiled(kernel, architecture, stem, half, *rest)
    name = f"{kernel.__name__} sm_{architecture} {stem} {'bf16' if half else 'fp32'} {rest}"
    print(f"{name}: {found.registers} registers, {found.shared} B shared")
    if found.spills or found.stack:
        return f"{name}: {found.spills} spills, {found.stack} bytes of stack"
    if not found.tensor_core:
        return f"{name}: no tensor-core instruction"
    return None


@pytest.mark.parametrize("half", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_and_tensor_cores(architecture, half):
    # Every launch on one architecture; where the activation needs no second convolution, on all.
    every = architecture == 90
    work = [
        (k, architecture, "resnet", half, r) for k, r in every_kernel(half) if every or not r[2]
    ]
    for stem in ("efficientnet", "convnext") if every else ():
        work += [(k, architecture, stem, half, r) for k, r in every_kernel(half) if not any(r[2:])]
    # One after the other: Python 3.11's parser, which Triton calls, fails in two threads at once.
    failures = [failure for failure in map(check, work) if failure]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("packing", PACKED)
def test_packed_and_companded_without_spills(packing):
    """The widest tiles of both passes, a byte at a time and with a table."""
    for kernel, rest in every_kernel(half=True):
        if rest[1] == 8 or kernel is not forward.raw_conv_forward_kernel.fn:
            if rest[2]:
                continue
            found = compiled(kernel, 90, "resnet", True, *rest, packing=packing)
            assert not found.spills, (kernel.__name__, rest, found.spills)
            assert not found.stack, (kernel.__name__, rest)


def test_neighbours_of_a_row_are_loaded_together():
    """The two values of a row of a period come in one 32-bit load; alone they take two of 16."""
    kernel = forward.raw_conv_forward_kernel.fn
    pairs = compiled(kernel, 90, "resnet", True, 64, 4)
    assert pairs.count(r"LDG\.E(\.CONSTANT)?") > 0
    assert pairs.count(r"LDG\.E\.U16.*|LDG\.E\.S16.*|LDG\.E\.U8.*") == 0
