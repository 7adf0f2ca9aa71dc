"""DecodePool: the same answer as read_raw, whatever happens to its workers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fetched import colorchart
from slow_decoders import by_name

import isp_distill
from isp_distill.errors import CorruptRawError, RawError, UnsupportedRawError
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.dng.writer import write_dng
from isp_distill.raw.image import RawImage, read_raw

pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")


def small_dng(path, **arguments):
    mosaic = np.random.default_rng(0).integers(1, 4096, (32, 40), dtype=np.uint16)
    settings = {"black": (10, 20.5, 30, 40), "white": 4095, "white_balance": (2, 1, 1.5)}
    return write_dng(path, mosaic, **{**settings, **arguments})


def metadata(raw):
    return {name: value for name, value in vars(raw).items() if name != "mosaic"}


def gone(pid):
    """Whether a process has ended (a zombie that nobody has reaped counts)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pool():
    with DecodePool(2) as shared:
        yield shared


@pytest.fixture
def odd_pool():
    """Two workers that do what the file name says."""
    with DecodePool(2, timeout_s=20, decoder=by_name) as own:
        yield own


def test_same_as_in_process(tmp_path, pool):
    path = small_dng(tmp_path / "x.dng", orientation=6, exposure_time=0.01, iso=100)
    expected, raw = read_raw(path), pool.read(path)
    assert metadata(raw) == metadata(expected)
    np.testing.assert_array_equal(raw.mosaic, expected.mosaic)
    assert raw.mosaic.flags.writeable
    # Types survive too: JSON has no tuples.
    assert isinstance(raw.ccm[0], tuple)


@pytest.mark.registry
def test_same_as_in_process_on_a_camera_file(pool):
    expected, raw = read_raw(colorchart()), pool.read(colorchart())
    assert metadata(raw) == metadata(expected)
    np.testing.assert_array_equal(raw.mosaic, expected.mosaic)


def test_warnings_come_through(tmp_path, pool):
    tifffile = pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")
    path = small_dng(tmp_path / "x.dng")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[50721].overwrite((0, 1) * 9)
    with pytest.warns(UserWarning, match=r"x\.dng: no usable colour matrix"):
        pool.read(path)


def test_relative_paths_and_odd_names(tmp_path, pool, monkeypatch):
    monkeypatch.chdir(tmp_path)  # after the workers have started elsewhere
    small_dng(tmp_path / "a\nb é.dng")
    raw = pool.read("a\nb é.dng")
    assert raw.path == "a\nb é.dng"
    Path("c.dng").write_bytes(b"")
    with pytest.raises(CorruptRawError) as caught:
        pool.read("c.dng")
    assert caught.value.path == "c.dng"


def test_errors_of_the_file(tmp_path, pool):
    with pytest.raises(FileNotFoundError) as caught:
        pool.read(tmp_path / "none.dng")
    assert caught.value.filename == str(tmp_path / "none.dng")
    (tmp_path / "x.dng").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    with pytest.raises(UnsupportedRawError, match="JPEG"):
        pool.read(tmp_path / "x.dng")


def test_many_threads_share_the_workers(tmp_path):
    paths = [small_dng(tmp_path / f"{i}.dng", iso=i + 1) for i in range(12)]
    with DecodePool(2) as pool, ThreadPoolExecutor(8) as threads:
        raws = list(threads.map(pool.read, paths * 8))
        assert [raw.iso for raw in raws] == list(range(1, 13)) * 8
        assert 1 <= len(pool.pids) <= 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("segfault", r"the decoder died with signal 11 \(SIGSEGV\)"),
        ("abort", r"the decoder died with signal 6 \(SIGABRT\)"),
        ("exit", "the decoder ended with status 3"),
        ("nonsense", "the decoder died with signal 9"),
        ("allocate", "ran out of memory"),
        ("bug", "the decoder failed with KeyError"),
        ("complain", "LibRaw says: data corrupted at 123"),
    ],
)
def test_bad_days(odd_pool, name, message):
    for _ in range(2):
        with pytest.raises(CorruptRawError, match=message) as caught:
            odd_pool.read(f"{name}.dng")
        assert caught.value.path == f"{name}.dng"
        good = odd_pool.read("good.dng")  # the pool still works, its worker old or new
        assert (good.pattern, good.black) == ("GBRG", (1.5, 2, 3, 4))


def test_decoder_errors_keep_their_kind(odd_pool):
    with pytest.raises(UnsupportedRawError, match="no mosaic"):
        odd_pool.read("unsupported.dng")
    odd_pool.read("chatter.dng")  # prints do not end up among the replies
    odd_pool.read("good.dng")


@pytest.mark.parametrize("name", ["hang", "hang-locked"])
def test_hanging_decoder_is_stopped(name):
    with DecodePool(1, timeout_s=2.5, decoder=by_name) as pool:
        pool.read("good.dng")
        (before,) = pool.pids
        start = time.monotonic()
        with pytest.raises(CorruptRawError, match=r"longer than 2\.5 s"):
            pool.read(f"{name}.dng")
        assert time.monotonic() - start < 60  # it would hang for ten minutes
        assert gone(before)
        pool.read("good.dng")


def test_killed_in_the_middle(odd_pool):
    """A kill from outside says little about the file."""
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(odd_pool.read, "slow.dng")
        wait_until(lambda: odd_pool.pids)
        time.sleep(0.4)  # started and asked by now
        os.kill(odd_pool.pids[0], signal.SIGKILL)
        assert reading.result(timeout=100).white == 99


def test_killed_every_time(odd_pool, tmp_path):
    """Four times in a row are held against it, as where it takes all the memory there is."""
    with pytest.raises(CorruptRawError, match=r"killed\.dng: .*signal 9 \(SIGKILL\)"):
        odd_pool.read(tmp_path / "killed.dng")
    assert len((tmp_path / "killed.txt").read_text().splitlines()) == 4
    odd_pool.read("good.dng")


def test_a_file_is_not_blamed_for_the_ones_before():
    with DecodePool(1, decoder=by_name) as pool:
        pool.read("good.dng")
        (before,) = pool.pids
        assert pool.read("grudge.dng").white == 99
        assert pool.pids != [before]


def test_idle_workers_may_die(odd_pool):
    odd_pool.read("good.dng")
    for pid in odd_pool.pids:
        os.kill(pid, signal.SIGKILL)
    odd_pool.read("good.dng")


def test_close_wakes_readers_and_ends_workers():
    pool = DecodePool(2, decoder=by_name)
    pool.read("good.dng")
    with ThreadPoolExecutor(3) as threads:
        readings = [threads.submit(pool.read, "hang.dng") for _ in range(3)]
        wait_until(lambda: len(pool.pids) == 2)
        pids = pool.pids
        pool.close()
        for reading in readings:
            with pytest.raises(RuntimeError, match="closed"):
                reading.result(timeout=100)
    wait_until(lambda: all(gone(pid) for pid in pids))
    with pytest.raises(RuntimeError, match="closed"):
        pool.read("good.dng")
    pool.close()


def test_forgotten_pool_ends_its_workers():
    pool = DecodePool(1, decoder=by_name)
    pool.read("good.dng")
    pids = pool.pids
    del pool
    gc.collect()
    wait_until(lambda: all(gone(pid) for pid in pids))


PARENT = """
import sys, threading, time
sys.path[:0] = [{root!r}, {tests!r}]
import types
package = types.ModuleType("isp_distill")  # without torch: this test starts it thrice
package.__path__ = [{package!r}]
sys.modules["isp_distill"] = package
from isp_distill.raw.decoding.pool import DecodePool
from slow_decoders import by_name
pool = DecodePool(2, decoder=by_name)
thread = threading.Thread(target=pool.read, args=("good.dng",))
thread.start()
thread.join()
thread = threading.Thread(target=pool.read, args=({name!r},), daemon=True)
thread.start()
time.sleep(0.5)
print(*pool.pids, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is needed")
@pytest.mark.parametrize("name", ["good.dng", "hang.dng", "hang-locked.dng"])
def test_workers_end_with_a_killed_parent(name):
    package = Path(isp_distill.__file__).parent
    script = PARENT.format(
        root=str(package.parent),
        package=str(package),
        tests=str(Path(__file__).parents[1] / "cases"),
        name=name,
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    assert not any(gone(pid) for pid in pids)  # the thread that started them has ended
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: all(gone(pid) for pid in pids))


def _read_in_child(pool, queue):
    raw = pool.read("good.dng")
    queue.put((raw.pattern, pool.pids))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_has_workers_of_its_own(odd_pool):
    """Even one that is made while every worker of the parent is busy."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with ThreadPoolExecutor(2) as threads:
        readings = [threads.submit(odd_pool.read, "slow.dng") for _ in range(2)]
        wait_until(lambda: len(odd_pool.pids) == 2)
        ours = odd_pool.pids
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
            child = context.Process(target=_read_in_child, args=(odd_pool, queue))
            child.start()
        child.join(100)
        if child.exitcode is None:
            child.kill()
        assert child.exitcode == 0
        pattern, theirs = queue.get()
        assert [reading.result(timeout=100).pattern for reading in readings] == ["GBRG"] * 2
    assert pattern == "GBRG"
    assert not set(theirs) & set(ours)
    wait_until(lambda: all(gone(pid) for pid in theirs))
    assert odd_pool.pids == ours  # the child has not harmed them


def test_lying_header_cannot_take_the_memory(tmp_path):
    """A sparse file that is as large as its header says gets past every check of sizes."""
    tifffile = pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")
    path = small_dng(tmp_path / "x.dng")
    side = 22000
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag, value in ((256, side), (257, side), (278, side), (279, 2 * side * side)):
            file.pages[0].tags[tag].overwrite(value)
    os.truncate(path, 4096 + 2 * side * side)
    with (
        DecodePool(1, memory_limit_bytes=512 << 20) as pool,
        pytest.raises(CorruptRawError, match="memory"),
    ):
        pool.read(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"memory_limit_bytes": 1000}, "256 MiB"),
        ({"decoder": lambda path: None}, "module-level"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecodePool(**arguments)


def test_a_worker_that_cannot_start_says_why():
    def elsewhere(path):
        raise AssertionError

    elsewhere.__qualname__, elsewhere.__module__ = "elsewhere", "no_such_module"
    with (
        DecodePool(1, decoder=elsewhere) as pool,
        pytest.raises(RuntimeError, match=r"(?s)could not start.*no_such_module"),
    ):
        pool.read("x.dng")


# --- fuzzing


def mutate(data, rng):
    """One seeded way to damage a file."""
    data = bytearray(data)
    # Most of a file is pixels, whose damage is harmless: half of the time, aim at the header.
    end = len(data) if rng.random() < 0.5 else min(len(data), 600)
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(end) :]
    elif kind == 2:
        start = rng.randrange(end)
        stop = min(len(data), start + rng.choice((1, 4, 64, 1024)))
        data[start:stop] = bytes(stop - start)
    elif kind == 3:
        for _ in range(rng.choice((1, 2, 8))):
            start = rng.randrange(0, min(600, len(data) - 4), 2)
            value = rng.choice((0, 1, 2, 255, 65535, 2**31 - 1, 2**32 - 1, rng.getrandbits(32)))
            data[start : start + 4] = value.to_bytes(4, "little")
    elif kind == 4:
        size = rng.choice((2, 12, 64))
        a, b = rng.randrange(end - size), rng.randrange(end - size)
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    else:
        data += rng.randbytes(rng.choice((1, 100, 10000)))
    return bytes(data)


def survive(pool, path, data):
    """Read damaged data; the kind of outcome."""
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            raw = pool.read(path)
        except RawError as error:
            failure = error
        else:
            failure = None
        finally:
            path.unlink()
    if failure is not None:
        # What read_raw does not foresee is a bug of ours, not of the file.
        assert "failed with" not in failure.reason, (failure, data)
        assert "longer than" not in failure.reason, (failure, data)
        return type(failure).__name__
    assert isinstance(raw, RawImage)
    assert raw.mosaic.any()
    assert 0 <= min(raw.black) <= max(raw.black) < raw.white <= 65535
    assert np.isfinite(raw.ccm).all()
    assert np.isfinite(raw.white_balance).all()
    return "RawImage"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    plain = small_dng(folder / "plain.dng")
    full = small_dng(
        folder / "full.dng",
        pattern="GBRG",
        orientation=8,
        active_area=(3, 5, 30, 38),
        exposure_time=0.1,
        iso=100,
    )
    return [plain.read_bytes(), full.read_bytes()]


def test_two_thousand_damaged_files(tmp_path, seeds):
    outcomes = {"RawImage": 0, "CorruptRawError": 0, "UnsupportedRawError": 0}
    counted = threading.Lock()
    with DecodePool(2, timeout_s=20) as pool:

        def run(number):
            rng = random.Random(number)
            data = mutate(seeds[number % 2], rng)
            outcome = survive(pool, tmp_path / f"{number}.dng", data)
            with counted:
                outcomes[outcome] += 1

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(run, range(2000)))
        assert sum(outcomes.values()) == 2000
        # Damage that never mattered, or always did, would mean that nothing was tried.
        assert all(count >= 20 for count in outcomes.values()), outcomes
        (tmp_path / "good.dng").write_bytes(seeds[0])
        assert pool.read(tmp_path / "good.dng").pattern == "RGGB"


@pytest.mark.registry
def test_damaged_camera_files(tmp_path):
    """The same on a real camera's file, where the header has a hundred more tags."""
    data = colorchart().read_bytes()
    with DecodePool(2, timeout_s=20) as pool:
        for number in range(40):
            rng = random.Random(number)
            survive(pool, tmp_path / "x.dng", mutate(data, rng))
        assert pool.read(colorchart()).pattern == "RGGB"
