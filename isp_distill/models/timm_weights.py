"""timm's pretrained models, with a plain sentence in place of a minute's retries offline."""

from __future__ import annotations

import importlib
import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from torch import nn

_PROBE_S = 3.0


def pretrained_model(name: str) -> nn.Module:
    """A model of timm with its pretrained weights: from the cache, else from where timm keeps them.

    Raises:
        ImportError: if timm is not installed.
        RuntimeError: if the weights are not on this machine and their host cannot be reached, or
            cannot be loaded.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError("a teacher by name needs timm: pip install timm") from error
    options: dict[str, Any] = {}
    host = None
    config = timm.models.get_pretrained_cfg(name) if ":" not in name else None
    if config is not None:
        kept = _kept(config)
        if kept is not None:
            # Else timm asks the hub about weights that are here already.
            options["pretrained_cfg_overlay"] = {"file": str(kept)}
        elif config.hf_hub_id:
            host = _hub()
        elif config.url:
            host = str(config.url)
    elif name.startswith(("hf-hub:", "hf_hub:")):
        host = _hub()
    if host is not None and not _reachable(host):
        raise RuntimeError(
            f"the weights of timm's {name!r} are not on this machine, and "
            f"{urllib.parse.urlsplit(host).hostname} cannot be reached: pass a model whose weights "
            "you have, isp_distill.Teacher(model, mean=..., std=..., size=...)"
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **options)
    except Exception as error:
        raise RuntimeError(f"timm could not load {name!r} with its weights: {error}") from error
    return model


def class_names(model: nn.Module, name: str) -> tuple[str, ...] | None:
    """What a model of timm calls its classes; None where nobody says.

    That is what came with its weights, else ImageNet's names where timm's own model has the number
    of classes of one of its sets. A model of the hub that says nothing may have any classes.

    Args:
        model: as timm made it.
        name: that timm knows it by.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    count = getattr(model, "num_classes", 0)
    named = config.get("label_names")
    if named is not None:
        return tuple(map(str, named)) if len(named) == count else None
    if ":" in name or not count:
        return None
    imagenet = importlib.import_module("timm.data")
    subset = imagenet.infer_imagenet_subset(model)
    if subset is None:
        return None
    info = imagenet.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(count))


def _kept(config: Any) -> Path | None:
    """The file of the weights in the hub's cache on this machine, or None."""
    # Models with a loader of their own read files that only they know.
    if not config.hf_hub_id or getattr(config, "custom_load", False):
        return None
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    own = getattr(config, "hf_hub_filename", None)
    for file in (own,) if own else ("model.safetensors", "pytorch_model.bin"):
        found = hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _reachable(url: str) -> bool:
    """Whether the host of a URL, or the proxy before it, takes a connection within 3 seconds."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), _PROBE_S).close()
    except (OSError, ValueError):
        return False
    return True
