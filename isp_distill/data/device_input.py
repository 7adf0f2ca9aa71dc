"""Batches on the device: each one's copy runs while the batch before it is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from isp_distill.data.batch import RawBatch
from isp_distill.ops.packed_calls import takes


def moved(batch: RawBatch, device: torch.device) -> RawBatch:
    """A batch on a device, where what its kernels do not read is unpacked and looked up first."""
    return _readable(batch.to(device), device)


def _readable(batch: RawBatch, device: torch.device) -> RawBatch:
    packing, curves = batch.isp.packing, batch.isp.linearise is not None
    if packing is not None and not takes(device, packing=packing):
        batch, packing = batch.unpacked(), None
    return batch.linear() if curves and not takes(device, packing, linearise=True) else batch


def on_device(batches: Iterable[RawBatch], device: torch.device) -> Iterator[RawBatch]:
    """The batches on ``device``, in order, as :func:`moved` has them.

    On a GPU, one batch is copied ahead, from page-locked memory, in a stream of its own: while
    batch k is computed, batch k + 1 is on its way. Nothing waits on the processor's side.
    """
    if device.type != "cuda":
        for batch in batches:
            yield moved(batch, device)
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types
    ahead: tuple[RawBatch, torch.cuda.Event] | None = None
    for batch in batches:
        pinned = batch.pin_memory()
        with torch.cuda.stream(copies):
            copied = pinned.to(device)
            done = copies.record_event()
        if ahead is not None:
            yield _readable(_arrived(*ahead), device)
        ahead = copied, done
    if ahead is not None:
        yield _readable(_arrived(*ahead), device)


def _arrived(batch: RawBatch, done: torch.cuda.Event) -> RawBatch:
    """Make the computing stream wait for the copy, and tell the allocator of both streams."""
    stream = torch.cuda.current_stream()
    stream.wait_event(done)
    for tensor in batch.tensors():
        tensor.record_stream(stream)
    return batch
