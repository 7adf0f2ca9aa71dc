"""What a module computes with, beside its weights: part of its state dict, checked on loading.

It is JSON in a uint8 tensor, the module's extra state: that survives
``torch.load(weights_only=True)`` and safetensors, which know tensors only. Its length is the same
whatever it says, so whatever copies state from tensor to tensor (an average of weights,
``torch.distributed.checkpoint``) copies it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: What torch.nn.Module calls the extra state, after the module's own prefix.
KEY = "_extra_state"
# Bytes, filled with spaces after the JSON. A longer record takes a multiple of them.
_LENGTH = 1024


class RecordedModule(nn.Module):
    """A module whose state dict says what it computes with.

    Loading into one that computes otherwise is a RuntimeError that names what differs, with
    ``strict=False`` too; nothing of the module has been written then. A state dict without the
    record (of version 0.1) is loaded as before. To load weights into another kind of module on
    purpose, leave the entries that end in ``_extra_state`` out.
    """

    def settings(self) -> dict[str, Any]:
        """What must be equal where weights are loaded: names and what JSON can hold."""
        raise NotImplementedError

    def notes(self) -> dict[str, Any]:
        """What is taken over with the weights."""
        raise NotImplementedError

    def take_notes(self, notes: dict[str, Any]) -> None:
        """Take over what :meth:`notes` of the saved module said."""
        raise NotImplementedError

    def loads_without_record(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Called after weights were loaded that came without a record."""

    def get_extra_state(self) -> Tensor:
        """The record: see the module's docstring."""
        return record_tensor({"settings": self.settings(), "notes": self.notes()})

    def set_extra_state(self, state: Any) -> None:
        """Take over a record.

        Raises:
            RuntimeError: if it is of a module that computes otherwise.
        """
        record = self._checked(KEY, state)
        if record is not None:
            self.take_notes(record["notes"])

    def _checked(self, name: str, state: object) -> dict[str, Any] | None:
        record = record_of(name, state)
        if record is None:
            return None
        saved, own = record["settings"], self.settings()
        keys = [k for k in sorted({*saved, *own}) if saved.get(k) != own.get(k)]
        if keys:
            was, now = (
                ", ".join(f"{k}={values.get(k)!r}" for k in keys) for values in (saved, own)
            )
            raise RuntimeError(
                f"{name}: the weights belong to a {type(self).__name__} with {was}, this one has "
                f"{now}: make it with what they were trained with"
            )
        return record

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # torch loads a module before its children: all are checked before the first is written.
        for name, module in self.named_modules():
            entry = f"{prefix}{name}.{KEY}" if name else prefix + KEY
            if isinstance(module, RecordedModule) and entry in state_dict:
                module._checked(entry, state_dict[entry])
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + KEY not in state_dict:
            if prefix + KEY in missing_keys:
                missing_keys.remove(prefix + KEY)
            self.loads_without_record(state_dict, prefix)


def record_tensor(record: dict[str, Any]) -> Tensor:
    """A record (what JSON can hold) as a uint8 tensor."""
    text = json.dumps(record, sort_keys=True).encode()
    padded = text.ljust(-(-len(text) // _LENGTH) * _LENGTH)
    return torch.frombuffer(bytearray(padded), dtype=torch.uint8)


def record_of(name: str, state: object) -> dict[str, Any] | None:
    """The record that :func:`record_tensor` wrote; None of a tensor without values ("meta").

    Args:
        name: of the entry in the state dict, for the error.
        state: the entry; a tensor of another type is taken too, as where a whole state dict was
            made float16.

    Raises:
        RuntimeError: if it cannot be read.
    """
    try:
        if not isinstance(state, Tensor):
            raise TypeError(f"it is a {type(state).__name__}")
        if state.device.type == "meta":
            return None
        record = json.loads(state.detach().cpu().to(torch.uint8).numpy().tobytes())
        if not (
            isinstance(record, dict)
            and isinstance(record.get("settings"), dict)
            and isinstance(record.get("notes"), dict)
        ):
            raise TypeError("it holds no settings")
    except (TypeError, ValueError, RecursionError) as error:
        raise RuntimeError(
            f"{name}: cannot be read as what a module computes with ({error}); where state dicts "
            "were averaged or edited, take this entry from one of them as it is"
        ) from error
    return record
