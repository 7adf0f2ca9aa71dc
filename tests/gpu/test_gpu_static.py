"""The table of the GPU kernels' machine code, and that it fails where a kernel got worse."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import compiled_cuda
import gpu_static
import pytest
from gpu_cases import KERNELS, cases, traffic
from gpu_rates import GPUS
from machine_code import Compiled

GOOD = Compiled(64, 0, 0, Counter({"LDG.E.128": 2, "LDG.E": 9, "STG.E.U16": 1, "HMMA.16816": 4}))


def with_code(**instructions: int) -> Compiled:
    names = {name.replace("_", "."): count for name, count in instructions.items()}
    return dataclasses.replace(GOOD, instructions=Counter(names))


def test_the_table_of_one_architecture(tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["--architectures", "90", "--case", "rows fp32", "--json", str(path)]
    assert gpu_static.main([*arguments, "--backends", "triton"]) == 0
    assert "distill_loss (triton) | rows fp32" in capsys.readouterr().out
    (row,) = json.loads(path.read_text())
    assert row["spills"] == 0
    assert (row["widest_load"], row["widest_store"]) == (16, 16)
    # Two logits of 4 bytes read and a gradient written, at 3.35 TB/s.
    assert row["loaded"] == pytest.approx(8, rel=1e-3)
    assert row["stored"] == pytest.approx(4, rel=1e-2)
    assert row["predicted_us"] == pytest.approx(4096 * 1000 * 12 / 3.35e6, rel=1e-2)


@pytest.mark.skipif(compiled_cuda.missing() is not None, reason=str(compiled_cuda.missing()))
def test_the_cuda_lines_of_one_architecture(tmp_path):
    """No spill, 16 bytes at a time, matrix units in the convolution: else it does not return 0."""
    path = tmp_path / "rows.json"
    arguments = ["--architectures", "90", "--backends", "cuda", "--json", str(path)]
    assert gpu_static.main(arguments) == 0
    found = json.loads(path.read_text())
    kernels = Counter(row["operation"] for row in found)
    assert kernels == {"raw_conv": 8, "distill_loss": 5, "upsampled_distill_loss": 2}
    assert all(row["spills"] == 0 and row["widest_load"] == 16 for row in found)
    pixels, cells = (row for row in found if row["operation"] == "upsampled_distill_loss")
    # Two maps at a sixteenth of the size, 16 bytes a pixel between the kernels, for 150 classes.
    assert pixels["loaded"] == pytest.approx(2 * 2 / 16)
    assert pixels["stored"] == pytest.approx(16 / 150)
    assert cells["loaded"] == pytest.approx(2 * 2 / 16 + 16 / 150)
    assert cells["stored"] == pytest.approx(2 / 16)


def test_names_of_templates():
    plain = compiled_cuda._plain
    assert plain("_ZN11isp_distill4cuda15raw_conv_add_upEPKfPfii") == "raw_conv_add_up"
    held = "_ZN11isp_distill4cuda4heldILNS_9ObjectiveE1ELNS0_5ShapeE3EEEvNS0_8LossCallE"
    assert plain(held) == "held<1, 3>"
    cells = "_ZN11isp_distill4cuda15upsampled_cellsILNS_9ObjectiveE1ELb0EEEvNS0_13UpsampledLossE"
    assert plain(cells) == "upsampled_cells<1, 0>"


def test_a_spill_a_narrow_load_and_a_lost_matrix_instruction_fail(monkeypatch, capsys):
    def check(code):
        return gpu_static.failures_of("k", code, ("k",), ("k",))

    assert check(GOOD) == ()
    assert "1 spills" in check(with_code(LDG_E_128=1, HMMA_16816=1, LDL_LU=1))[0]
    assert "8 bytes, not 16" in check(with_code(LDG_E_64=1, HMMA_16816=1))[0]
    assert check(with_code(LDGSTS_E_BYPASS_128=1)) == ("no matrix instruction",)
    assert gpu_static.failures_of("other", with_code(LDG_E=1), ("k",), ("k",)) == ()
    narrow = with_code(LDG_E_64=1)
    monkeypatch.setattr(gpu_static, "compile_launch", lambda launch, architecture: narrow)
    arguments = ["--architectures", "80", "--case", "rows fp32", "--backends", "triton"]
    assert gpu_static.main(arguments) == 1
    assert "sm_80: its widest load has 8 bytes, not 16" in capsys.readouterr().err


def test_widths():
    assert GOOD.widest_load == 16
    assert GOOD.widest_store == 2
    assert with_code(LDG_E_LTC128B_CONSTANT=1).widest_load == 4
    assert with_code(LDG_E_LTC128B_64_CONSTANT=1).widest_load == 8


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "expected"),
    [
        (32, 0, 256, 1.0),
        (64, 0, 128, 0.5),  # 65536 / (64 x 128) = 8 blocks of 4 warps
        (65, 0, 128, 28 / 64),  # 72 a thread: 7 warps a scheduler
        (255, 0, 1024, 0.0),
        (32, 100 * 1024, 256, 16 / 64),  # two blocks of 101 KiB in 228
        (16, 0, 32, 0.5),  # 32 blocks
    ],
)
def test_occupancy_of_an_h100(registers, shared, threads, expected):
    assert GPUS[1].occupancy(registers, shared, threads) == expected


def test_every_kernel_has_a_case_and_every_argument_that_is_written_exists():
    launched = {}
    for case in cases():
        for launch in case.launches():
            launched[launch.kernel.__name__] = launch
            assert sum(traffic(launch)) > 0
    assert set(launched) == set(KERNELS)
    for name, launch in launched.items():
        assert KERNELS[name][1] <= set(launch.kernel.arg_names), name
