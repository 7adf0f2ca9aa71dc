"""A training step on an accelerator: nothing waits for it, nothing is copied from it.

There is no GPU here, so the step runs on ``meta`` tensors, which hold no values: what would read
one fails, and every operator that torch dispatches is recorded. Triton's launches are recorded in
the place of running. What this cannot show is the time that kernels take, or what torch's own
kernels do inside.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_run import teacher

import isp_distill
from isp_distill.backends import choice
from isp_distill.data.batch import RawBatch
from isp_distill.data.exposure import ShortExposure
from isp_distill.isp.camera import ISP
from isp_distill.jobs.processes import Processes
from isp_distill.models.losses import DistillLoss
from isp_distill.models.match import Match
from isp_distill.models.matching import Matching
from isp_distill.ops.distill_loss import operator as distill_operators
from isp_distill.ops.raw_conv import call as raw_conv_module
from isp_distill.ops.raw_conv import operator as raw_conv_operator
from isp_distill.ops.render import call as render_module
from isp_distill.ops.render import operator as render_operator
from isp_distill.ops.unprocess import operator as unprocess_operator
from isp_distill.training.log import Window
from isp_distill.training.loop import Forward
from isp_distill.training.models import Average, parameter_groups

SYNCHRONISES = ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique", "is_nonzero")


class Recorder(TorchDispatchMode):
    """Every operator, the devices it met, and the bytes of the tensors that it made."""

    def __init__(self):
        super().__init__()
        self.calls, self.crossings, self.made = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func)
        taken, given = (
            {t.device.type for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
            for tree in ((args, kwargs), out)
        )
        self.calls.append((name, taken))
        if len(taken | given) > 1:
            self.crossings.append((name, taken, given, (kwargs or {}).get("non_blocking", False)))
        if name.startswith("aten.empty"):
            self.made.append(out.nbytes)
        return out


@pytest.fixture
def triton_everywhere(monkeypatch):
    """Triton's implementations are chosen for fake tensors, as they are on a GPU."""
    monkeypatch.setitem(choice._PREFERENCE, "meta", ("triton", "reference"))
    # Autocast does not know the meta device.
    known = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda d: d != "meta" and known[0](d))
    monkeypatch.setattr(
        torch, "autocast",
        lambda d, *a, **k: contextlib.nullcontext() if d == "meta" else known[1](d, *a, **k),
    )  # fmt: skip
    for key, found in choice._implementations.items():
        if key[1] == "triton":
            usable = dataclasses.replace(
                found, missing=lambda: None, devices=("cuda", "meta", "cpu")
            )
            monkeypatch.setitem(choice._implementations, key, usable)


def cameras(count, device):
    return ISP(
        black=torch.zeros(count, 4, device=device),
        white=torch.ones(count, device=device),
        pattern=torch.zeros(count, dtype=torch.int64, device=device),
        white_balance=torch.ones(count, 3, device=device),
        ccm=torch.ones(count, 3, 3, device=device),
    )


def batch_on(device, labels=(), count=4, side=32):
    """``labels``: the shape of one label; None for none."""
    mosaic = torch.zeros(count, side, side, dtype=torch.uint16, device=device)
    known = None if labels is None else torch.zeros(count, *labels, dtype=int, device=device)
    return RawBatch(mosaic, cameras(count, device), known)


def step_parts(device, dense=False, size=None):
    chosen = teacher(dense=dense)
    student = isp_distill.rawify(
        chosen.model, curve="gamma", white_balance=True, colour_matrix=True
    )
    chosen.model.to(device).requires_grad_(False)
    student.to(device)
    alpha = 0.5 if size or not dense else 1.0
    loss = DistillLoss(temperature=2.0, alpha=alpha, return_agreement=True, size=size)
    matching = Matching([Match("logits", objective="forward_kl")], [loss])
    forward = Forward(
        matching.student(student), chosen, matching, short=ShortExposure(0.5),
        augmentation=isp_distill.ISPAugmentation(),
    )  # fmt: skip
    return student, forward


def check(recorder):
    # Adam counts its steps in numbers on the CPU, which nobody has to wait for.
    names = {name.split(".")[1] for name, taken in recorder.calls if taken - {"cpu"}}
    assert not names & set(SYNCHRONISES)
    for name, taken, given, non_blocking in recorder.crossings:
        assert name == "aten._to_copy.default", name
        assert taken == {"cpu"}, f"{name} reads from {taken} to {given}"
        assert non_blocking, f"{name} makes the processor wait"
    operators = {c.split(".")[1] for c, _ in recorder.calls if c.startswith("isp_distill")}
    return operators


@pytest.mark.parametrize(("dense", "size"), [(False, None), (True, None), (True, 64)])
def test_a_whole_step_waits_for_nothing(triton_everywhere, dense, size):
    device = torch.device("meta")
    student, forward = step_parts(device, dense, size)
    optimizer = torch.optim.AdamW(parameter_groups(student, "all", 1e-3, 1e-2, 0.01))
    average = Average(student, 0.9)
    window = Window(device, 2)
    with Recorder() as recorder:
        window.begin()
        # With a size, a map of labels.
        labels = () if not dense else (size, size) if size else None
        loss, parts = forward(batch_on(device, labels), 7)
        loss.backward()
        window.add(loss, parts)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(student)
    served = check(recorder)
    loss_operator = "upsampled_distill_loss" if size else "distill_loss"
    assert {"expose", "render", "raw_conv", "raw_conv_backward", loss_operator} <= served
    # The numbers are read when the window is, and not before.
    with pytest.raises((NotImplementedError, RuntimeError)):
        window.read(Processes(device), 1)


def test_drawing_an_exposure_waits_for_nothing():
    with Recorder() as recorder:
        factors = isp_distill.ShortExposure((0.1, 1.0)).draw(4, 0, "meta")
    check(recorder)
    assert factors.device.type == "meta"


def test_the_forward_of_a_step_on_a_fake_gpu(triton_everywhere):
    """As above, with the device called "cuda" (autograd needs a real one for its backward)."""
    student, forward = step_parts("cpu")
    forward.autocast = True
    with FakeTensorMode(allow_non_fake_inputs=True):
        student.to("cuda")
        forward.teacher.model.to("cuda")
        with Recorder() as recorder:
            loss, (part,) = forward(batch_on("cuda"), 7)
    assert loss.device.type == part.figure.device.type == "cuda"
    assert {"expose", "render", "raw_conv", "distill_loss"} <= check(recorder)


def test_the_recorder_sees_what_it_looks_for():
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = torch.zeros(3, device="cuda")
        for act in (
            lambda: there[:, None] + torch.as_tensor([1.0], device="cuda"),
            lambda: there.cpu(),
            lambda: there[[0, 2]],
        ):
            with Recorder() as recorder:
                act()
            with pytest.raises(AssertionError, match=r"wait|reads"):
                check(recorder)


@pytest.fixture
def launches(triton_everywhere, monkeypatch):
    """Names of the kernels that were launched; the operators go straight to Triton's launchers."""
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is for Linux")
    autotuner = pytest.importorskip("triton.runtime.autotuner", reason="Triton is for Linux")
    found = []

    def run(self, *_, grid, **__):
        function = self
        while not hasattr(function, "__name__"):
            function = function.fn
        found.append(function.__name__)

    for kind in (jit.JITFunction, autotuner.Autotuner, autotuner.Heuristics):
        monkeypatch.setattr(kind, "run", run)

    def direct(operation, tensors, settings, pick):
        functions = choice.registered(operation, "triton").functions
        count = len(tensors._fields)
        return lambda *a: pick(functions)(tensors(*a[:count]), settings(*a[count:-1]))

    of = raw_conv_operator
    monkeypatch.setattr(
        raw_conv_module, "operator",
        direct("raw_conv", of.Tensors, of.Settings, lambda f: f.forward),
    )  # fmt: skip
    of = render_operator
    monkeypatch.setattr(
        render_module, "operator", direct("render", of.Tensors, of.Settings, lambda f: f)
    )
    unprocess = choice.registered("unprocess", "triton").functions
    monkeypatch.setattr(
        unprocess_operator, "expose",
        lambda *a: unprocess.expose(unprocess_operator.ExposeCall(*a[:-1])),
    )  # fmt: skip
    return found


@pytest.mark.parametrize("resize_in", ["display", "linear"])
def test_launchers_allocate_what_they_return(launches, resize_in):
    """Beside its output an operation allocates some numbers of each camera, and says what else."""
    device = torch.device("meta")
    batch = batch_on(device, side=512)
    mosaic, isp = batch.mosaic, batch.isp
    weight = torch.zeros(32, 4, 3, 3, device=device)
    few = 64 * 1024

    def extra(run, *known):
        with Recorder() as recorder:
            out = run()
        check(recorder)
        return sum(recorder.made) - out.nbytes - sum(known)

    convolved = {"black": isp.black, "white": isp.white, "pattern": isp.pattern, "stride": 2}
    assert extra(lambda: isp_distill.raw_conv(mosaic, weight, **convolved)) <= few
    size = (224, 224)
    # Rows are resized first: a picture as high as the result and as wide as the mosaic.
    between = len(mosaic) * 3 * size[0] * mosaic.shape[2] * 4
    rendered = extra(lambda: isp_distill.render(mosaic, isp, size=size, resize_in=resize_in),
                     between)  # fmt: skip
    assert rendered <= few
    assert extra(lambda: isp_distill.render(mosaic, isp)) <= few
    dark = extra(
        lambda: isp_distill.expose(
            mosaic, 0.5, isp_distill.NoiseModel(), black=isp.black, white=isp.white,
            pattern=isp.pattern,
        )
    )  # fmt: skip
    assert dark <= few
    assert {"raw_conv_forward_kernel", "render_rows_kernel", "render_columns_kernel"} <= set(
        launches
    )
    assert len(launches) >= 5


@pytest.mark.parametrize("shape", [(64, 1000), (2, 19, 64, 64)])
def test_the_loss_allocates_its_gradient_alone(launches, shape):
    student, teacher_logits = (torch.zeros(shape, device="meta") for _ in range(2))
    student.requires_grad_()
    with Recorder() as recorder:
        loss, _ = distill_operators._distill_loss._init_fn(
            student.detach(), teacher_logits, None, None, None, "forward_kl", [], 2.0, 1.0, -100,
            0.0, "mean", True, 1.0,
        )[:2]  # fmt: skip
    check(recorder)
    assert loss.shape == ()
    assert launches
    # A loss and a count of each program: eight bytes for many thousand that are read.
    assert sum(recorder.made) <= student.nbytes + max(4096, student.nbytes // 100)


def test_the_gradients_of_the_stem_wait_for_nothing(launches):
    device = torch.device("meta")
    isp = cameras(4, device)
    tensors = raw_conv_operator.Tensors(
        mosaic=torch.zeros(4, 64, 64, dtype=torch.uint16, device=device),
        weight=torch.zeros(32, 4, 3, 3, device=device), bias=None, black=isp.black,
        white=isp.white, pattern=isp.pattern, gain=torch.ones(4, 4, device=device),
        padding_value=None, mix=torch.zeros(4, 4, 4, device=device),
        gamma=torch.ones((), device=device),
    )  # fmt: skip
    settings = raw_conv_operator.Settings(
        2, (1, 1, 1, 1), True, "gamma", "none", torch.float32, False
    )
    grad = raw_conv_operator.output_like(tensors.mosaic, tensors.weight, settings)
    needs = raw_conv_operator.Needs(True, False, True, True, True)
    functions = choice.registered("raw_conv", "triton").functions
    with Recorder() as recorder:
        found = functions.backward(grad, None, tensors, settings, needs)
    check(recorder)
    assert [None if g is None else tuple(g.shape) for g in found] == [
        (32, 4, 3, 3), None, (4, 4), (4, 4, 4), (),
    ]  # fmt: skip
    assert "raw_conv_weight_kernel" in launches


@pytest.mark.parametrize("dense", [False, True])
def test_a_student_compiles_to_one_graph(dense):
    """No graph break in forward, loss and backward; and the numbers are the eager ones."""
    torch._dynamo.reset()
    student, forward = step_parts("cpu", dense)
    student.eval()  # dropout is random
    parameters = [p for p in student.parameters() if p.requires_grad]
    target = torch.randn(4, 7, 8, 8) if dense else torch.randn(4, 7)
    labels = None if dense else torch.tensor([0, 3, 6, 1])
    mosaic = torch.randint(0, 2**14, (4, 32, 32), dtype=torch.int32).to(torch.uint16)
    isp = ISP(black=512.0, white=16383.0).batched(4)

    def step(mosaic, isp):
        loss, (part,) = forward.matching(forward.student(mosaic, isp), [target], labels)
        return loss, part.figure

    eager = step(mosaic, isp)
    wanted = torch.autograd.grad(eager[0], parameters, allow_unused=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = compiled(mosaic, isp)
    gradients = torch.autograd.grad(found[0], parameters, allow_unused=True)
    torch.testing.assert_close(found, eager)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert sum(g is not None for g in gradients) >= 4
