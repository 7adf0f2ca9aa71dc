"""Memory that outputs leave behind is used again, never by two tensors at once, and bounded."""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType

import pytest
import torch

from isp_distill import raw_conv, release_memory
from isp_distill.backends import output_memory
from isp_distill.backends.output_memory import recycled

MIB = 2**20


def block_of(megabytes: float) -> torch.Tensor:
    return recycled(torch.empty(int(megabytes * MIB / 4)))


@pytest.fixture(autouse=True)
def nothing_kept():
    release_memory()
    yield
    release_memory()


def test_a_storage_that_python_holds_is_in_use():
    """What torch counts are the tensors on a storage; this one has none."""
    first = block_of(8)
    address, storage = first.data_ptr(), first.untyped_storage()
    del first
    assert block_of(8).data_ptr() != address
    del storage
    assert address in {block_of(8).data_ptr() for _ in range(2)}


@pytest.mark.parametrize("megabytes", [4, 16])
def test_a_resized_output_leaves_its_memory_to_nobody(megabytes):
    first = block_of(8)
    first.untyped_storage().resize_(megabytes * MIB)
    first.set_(first.untyped_storage(), 0, (megabytes * MIB // 4,), (1,)).fill_(1.0)
    others = [block_of(size) for size in (8, megabytes)]
    for other in others:
        other.fill_(2.0)
    assert bool((first == 1.0).all())
    assert len(output_memory._blocks) == 2


def test_shared_memory_is_not_handed_out_again():
    """Another process may still read it when the tensor here is gone."""
    first = block_of(8).share_memory_()
    address = first.data_ptr()
    del first
    assert block_of(8).data_ptr() != address


def test_a_tensor_saved_for_the_backward_pass_is_in_use():
    weight = torch.ones((), requires_grad=True)
    result = (weight * block_of(8).fill_(3.0)).sum()
    block_of(8).fill_(5.0)
    result.backward()
    assert weight.grad == 3.0 * 8 * MIB / 4


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
    first = recycled(empty.clone())
    address = first.data_ptr()
    del first
    ours = recycled(empty.clone())
    assert ours.data_ptr() == address
    assert (ours.shape, ours.stride(), ours.dtype) == (empty.shape, empty.stride(), dtype)
    assert ours.untyped_storage().nbytes() == empty.untyped_storage().nbytes()
    assert ours.storage_offset() == 0


def test_small_tensors_are_left_alone():
    empty = torch.empty(1000)
    assert recycled(empty) is empty


def test_what_lies_unused_is_bounded_and_the_oldest_goes(monkeypatch):
    monkeypatch.setattr(output_memory, "KEPT_BYTES", 40 * MIB)
    blocks = [block_of(size) for size in (12, 14, 16)]
    addresses = [block.data_ptr() for block in blocks]
    while blocks:
        blocks.pop(0)
    kept = output_memory._blocks.values()
    assert [block.size for block in kept] == [14 * MIB, 16 * MIB]
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


def started_with(variable: str) -> ModuleType:
    """The module, run anew as at the start of a process whose environment has the variable."""
    spec = importlib.util.spec_from_file_location("started_anew", output_memory.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISP_DISTILL_KEPT_MEMORY", variable)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("variable", "kept"), [("0", 0), ("64", 1)])
def test_the_environment_turns_it_off(variable, kept):
    module = started_with(variable)
    module.recycled(torch.empty(2**22))
    assert len(module._blocks) == kept


def test_an_environment_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="ISP_DISTILL_KEPT_MEMORY is 'a lot'"):
        started_with("a lot")


def test_memory_that_numpy_held_is_not_used_again():
    """A storage that was lent to numpy can never be resized again, and an output must be."""
    first = block_of(8)
    first.numpy()
    del first
    second = block_of(8)
    second.resize_(4 * 2**20)
    assert second.numel() == 4 * 2**20
