"""Which implementation serves a call: by the tensor's device, by what was built, by an override.

Each operation has up to four implementations: ``reference`` (plain PyTorch, any device, the
specification), ``cpu`` (the compiled extension), ``triton`` and ``cuda``. An implementation that
cannot serve a call says why in one sentence. Nothing is ever computed by a backend other than the
one that was asked for.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from isp_distill.errors import BackendError

BACKENDS = ("reference", "cpu", "triton", "cuda")
OPERATIONS = ("raw_conv", "distill_loss", "feature_loss", "render", "unprocess")

# Fastest first. On a GPU Triton comes before the CUDA kernels until these have been run on one: its
# compiler has many users.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
_ENVIRONMENT = "ISP_DISTILL_BACKEND"
_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


_Asked = TypeVar("_Asked", bound=Callable[..., str])


def asked_once(choose: _Asked) -> _Asked:
    """A function that ``torch.compile`` calls when it compiles, and takes the answer for good.

    What ``torch.compiler.assume_constant_result`` does, which imports the whole compiler for it:
    4 of 8 seconds of ``import isp_distill``, on two slow cores.

    Args:
        choose: gives the name of a backend; must depend on its arguments alone.
    """
    # torch's own mark, which is no attribute that a function is known to have.
    choose._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return choose


def _always(*_: Any, **__: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One operation on one backend.

    Attributes:
        operation: one of :data:`OPERATIONS`.
        backend: one of :data:`BACKENDS`.
        functions: what runs; its form is the operation's own affair (see ``ops/``).
        devices: device types whose tensors it takes; empty means any.
        missing: why it cannot run on this machine at all, or None.
        refuses: called with the keyword arguments that the operation passes to :func:`choose`;
            why it cannot serve this call, or None.
    """

    operation: str
    backend: str
    functions: Any
    devices: tuple[str, ...] = ()
    missing: Callable[[], str | None] = _always
    refuses: Callable[..., str | None] = _always

    def objection(self, device: torch.device, **call: Any) -> str | None:
        """Why this implementation cannot serve a call on ``device``, or None."""
        if self.devices and device.type not in self.devices:
            return f"it takes tensors on {' or '.join(self.devices)}, not on {device.type}"
        return self.missing() or self.refuses(**call)


_implementations: dict[tuple[str, str], Implementation] = {}

#: Why a backend without kernels for an operation cannot serve it.
NOT_THERE = "it has no kernels for it"


def register(implementation: Implementation) -> None:
    """Make an implementation known to :func:`choose`. Called once by each file in ``ops/``.

    Raises:
        ValueError: for an unknown operation or backend.
    """
    if implementation.operation not in OPERATIONS or implementation.backend not in BACKENDS:
        raise ValueError(f"unknown: {implementation.operation} on {implementation.backend}")
    _implementations[implementation.operation, implementation.backend] = implementation


def registered(operation: str, backend: str) -> Implementation | None:
    """The implementation of an operation on a backend, if there is one."""
    return _implementations.get((operation, backend))


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Have every operation inside the ``with`` served by one backend, and by no other.

    The environment variable ``ISP_DISTILL_BACKEND`` does the same for a whole process.

    Args:
        name: "reference", "cpu", "triton", "cuda", or "auto" for the usual choice.

    Raises:
        ValueError: for any other name.
        BackendError: from an operation that this backend cannot serve.

    Examples:
        >>> with isp_distill.use_backend("reference"):
        ...     loss = isp_distill.distill_loss(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> float(loss)
        0.0
    """
    token = _override.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _override.reset(token)


def _checked(name: str, source: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise ValueError(
            f"{source}: unknown backend {name!r}, expected auto, {', '.join(BACKENDS)}"
        )
    return name


def requested() -> str:
    """The backend in force: the innermost ``use_backend``, the environment's, or "auto"."""
    override = _override.get()
    if override is not None:
        return override
    return _checked(os.environ.get(_ENVIRONMENT) or "auto", _ENVIRONMENT)


def preferred(operation: str, device: str) -> Implementation | None:
    """What :func:`choose` asks first of a call on a type of device, if it is there."""
    name = requested()
    if name == "auto":
        name = _PREFERENCE.get(device, ("reference",))[0]
    return _implementations.get((operation, name))


def choose(operation: str, device: torch.device, **call: Any) -> Implementation:
    """The implementation that serves a call.

    Args:
        operation: one of :data:`OPERATIONS`.
        device: where the operation's tensors are.
        **call: what the operation tells its implementations about the call.

    Raises:
        BackendError: if the backend that was asked for cannot serve it, with the reason.
    """
    name = requested()
    candidates = _PREFERENCE.get(device.type, ("reference",)) if name == "auto" else (name,)
    for candidate in candidates:
        implementation = _implementations.get((operation, candidate))
        if implementation is None:
            objection: str | None = NOT_THERE
        else:
            objection = implementation.objection(device, **call)
            if objection is None:
                return implementation
    raise BackendError(f"backend {name!r} cannot serve {operation} here: {objection}")
