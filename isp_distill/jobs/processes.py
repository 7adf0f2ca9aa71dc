"""The processes of one training run: this one alone, or those that ``torchrun`` started.

``torchrun --nproc-per-node N -m isp_distill train ...`` starts N processes that each run the same
program. Every one takes its share of each batch; torch's DistributedDataParallel averages their
gradients. Numbers that are written are reduced over all of them and written by rank 0.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# How long processes that start look for one another.
_MEETING = timedelta(minutes=2)
# How long a process waits for the others once they have met: one may be writing a checkpoint.
_COLLECTIVE = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """Who takes part in the run.

    Attributes:
        device: where this process computes.
        rank: this process's number, 0 .. count - 1; rank 0 writes the files.
        count: how many there are.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def replicated(self, module: nn.Module, *, buffers: bool, unused: bool) -> nn.Module:
        """The module with gradients averaged over all processes.

        Args:
            module: with the same weights in all of them.
            buffers: take over rank 0's buffers before each forward pass.
            unused: some parameters take no part in the loss; DistributedDataParallel would wait
                for their gradients, and looks for them if it is told.
        """
        if self.count == 1:
            return module
        # Inputs are on the device already, so no device_ids: nothing is scattered.
        return DistributedDataParallel(
            module,
            broadcast_buffers=buffers,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused,
        )

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    @property
    def talks_on_cpu(self) -> bool:
        """Whether the processes exchange small numbers without a GPU that has to wait."""
        return self.count == 1 or dist.get_backend() != "nccl"

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.count == 1:
            return value
        where = torch.device("cpu") if self.talks_on_cpu else self.device
        found = torch.tensor([value], device=where)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def agreed(self, check: Callable[[], None]) -> None:
        """Run a check in rank 0; what is wrong there is raised in every process.

        Raises:
            ValueError: what the check raised.
            OSError: likewise.
        """
        kind = text = None
        if self.first:
            try:
                check()
            except (ValueError, OSError) as error:
                if self.count == 1:
                    raise
                kind, text = "OSError" if isinstance(error, OSError) else "ValueError", str(error)
        found = self.broadcast({"kind": kind, "text": text})
        if found["kind"] is not None:
            raise (OSError if found["kind"] == "OSError" else ValueError)(found["text"])

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, in every process."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, in every process; tensors arrive on the CPU.

        Plain data only (tensors, numbers, strings, containers): it travels as a checkpoint does.
        """
        if self.count == 1:
            return value
        content = None
        if self.first:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        # NCCL sends device memory only.
        where = torch.device("cpu") if self.talks_on_cpu else self.device
        size = torch.tensor([0 if content is None else content.numel()], device=where)
        dist.broadcast(size, 0)
        if content is None:
            content = torch.empty(int(size), dtype=torch.uint8)
        content = content.to(where)
        dist.broadcast(content, 0)
        if self.first:
            return value
        received = io.BytesIO(content.cpu().numpy().tobytes())
        return torch.load(received, map_location="cpu", weights_only=True)


def _agree(store: Any, rank: int, count: int) -> str:
    """A name for this start of the processes, the same in all of them and never used before.

    torchrun keeps one store over its restarts. Without a name of its own, a start finds there the
    addresses that the processes before it left, dials them, and fails or waits for ever. Each
    process asks under a new random key; what rank 0 answers there cannot be old.

    Raises:
        RuntimeError: if they do not find one another in time.
    """
    deadline = time.monotonic() + _MEETING.total_seconds()
    mine = secrets.token_hex(16)
    missing = set(range(1, count)) if rank == 0 else {0}
    if rank:
        store.set(f"isp_distill/ask/{rank}", mine)
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"process {rank} of {count} waited {_MEETING.total_seconds():.0f} s in vain for "
                f"{'process 0' if rank else f'processes {sorted(missing)}'}"
            )
        for other in sorted(missing):
            if rank:
                if store.check([f"isp_distill/answer/{mine}"]):
                    mine = store.get(f"isp_distill/answer/{mine}").decode()
                    store.set(f"isp_distill/joined/{mine}/{rank}", "")
                    missing.discard(other)
            elif store.check([f"isp_distill/joined/{mine}/{other}"]):
                missing.discard(other)
            elif store.check([f"isp_distill/ask/{other}"]):
                # Perhaps of a process that is gone; then nobody reads the answer, and the next
                # look finds the one that took its place.
                asked = store.get(f"isp_distill/ask/{other}").decode()
                store.set(f"isp_distill/answer/{asked}", mine)
        time.sleep(0.01)
    return f"isp_distill/{mine}"


@contextlib.contextmanager
def joined(device: torch.device | str | None) -> Iterator[Processes]:
    """Join the other processes of the run; leave them at the end.

    A process group that the caller has initialised is used, and left as it is. Otherwise one is
    made where ``torchrun`` has set RANK and WORLD_SIZE: gloo on the CPU; on GPUs NCCL, one GPU a
    process.

    Args:
        device: "cuda" if there is one, else "cpu", if None. Without an index, each of several
            processes takes the GPU of its local rank.

    Raises:
        RuntimeError: if there are more processes on this machine than GPUs.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    ours = not (dist.is_available() and dist.is_initialized())
    if ours and not launched:
        yield Processes(where)
        return
    if str(where) == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise RuntimeError(
                f"process {local} of this machine finds only {torch.cuda.device_count()} GPUs: "
                "start torchrun with --nproc-per-node at most that, or pass --device cpu"
            )
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    if ours:
        # Not at the top: torch may be built without them. The second is private, hence the ignore.
        from torch.distributed import PrefixStore, distributed_c10d  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        store, rank, count = next(rendezvous("env://", timeout=_MEETING))
        fresh = PrefixStore(_agree(store, rank, count), store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=count, timeout=_MEETING)
        # Older versions of torch have it by another name.
        set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
        set_timeout(_COLLECTIVE)
    try:
        yield Processes(where, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()
