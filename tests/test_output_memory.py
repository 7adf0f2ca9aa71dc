"""Memory that outputs leave behind is used again, never by two tensors at once, and bounded."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from isp_distill import raw_conv, release_memory
from isp_distill.ops import output_memory
from isp_distill.ops.output_memory import recycled

MIB = 2**20


def block_of(megabytes: float) -> torch.Tensor:
    return recycled(torch.empty(int(megabytes * MIB / 4)))


@pytest.fixture(autouse=True)
def nothing_kept():
    release_memory()
    yield
    release_memory()


def test_a_block_returns_when_its_last_view_is_gone():
    first = block_of(8)
    address, view = first.data_ptr(), first[3:5]
    del first
    other = block_of(8)
    assert other.data_ptr() != address
    del view
    assert block_of(8).data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint16])
def test_shape_strides_and_dtype_are_kept(dtype):
    empty = torch.empty(2, 16, 256, 300, dtype=dtype, memory_format=torch.channels_last)
    ours = recycled(empty)
    assert (ours.shape, ours.stride(), ours.dtype) == (empty.shape, empty.stride(), dtype)
    assert ours.data_ptr() != empty.data_ptr()
    assert ours.untyped_storage().nbytes() == empty.untyped_storage().nbytes()


def test_small_tensors_are_left_alone():
    empty = torch.empty(1000)
    assert recycled(empty) is empty


def test_what_lies_unused_is_bounded_and_the_oldest_goes(monkeypatch):
    monkeypatch.setattr(output_memory, "KEPT_BYTES", 40 * MIB)
    blocks = [block_of(size) for size in (12, 14, 16)]
    addresses = [block.data_ptr() for block in blocks]
    while blocks:
        blocks.pop(0)
    kept = output_memory._unused.values()
    assert sum(block.nbytes for block in kept) <= 40 * MIB
    assert block_of(16).data_ptr() == addresses[2]
    assert len(kept) == 2


def test_threads_never_share_a_block():
    clashes = []

    def work(mark: int) -> None:
        for _ in range(50):
            mine = block_of(2).fill_(mark)
            if not bool((mine == mark).all()):
                clashes.append(mark)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes


def test_an_output_is_never_overwritten_by_the_next_call():
    mosaic = torch.randint(0, 4000, (1, 1024, 1024)).to(torch.uint16)
    weight = torch.randn(8, 4, 3, 3)
    first = raw_conv(mosaic, weight, black=64.0, white=4095.0)
    copy = first.clone()
    second = raw_conv(mosaic, 2 * weight, black=64.0, white=4095.0)
    assert torch.equal(first, copy)
    assert not torch.equal(first, second)


def run(variable: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import torch; from isp_distill.ops.output_memory import recycled;"
        "x = torch.empty(2**22); print(recycled(x) is x)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"ISP_DISTILL_KEPT_MEMORY": variable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_the_environment_turns_it_off():
    assert run("0").stdout.strip() == "True"
    assert run("64").stdout.strip() == "False"
    assert "ISP_DISTILL_KEPT_MEMORY is 'a lot'" in run("a lot").stderr
