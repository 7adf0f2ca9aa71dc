"""Pretrained weights of timm: from this machine, or a plain sentence at once."""

import socket

import pytest
import safetensors.torch
import timm
import torch

from isp_distill import Teacher
from isp_distill.models.timm_weights import class_names

NAME = "test_resnet.r160_in1k"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, an empty cache; every connection that is tried is listed."""
    hub = pytest.importorskip("huggingface_hub", reason="timm fetches weights with it")
    tried = []

    def refuse(address, *_, **__):
        tried.append(address)
        raise OSError("the network is unreachable")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tried


def test_without_a_network_it_is_said_at_once(offline, monkeypatch):
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(a))
    with pytest.raises(RuntimeError, match=r"cannot be reached.*isp_distill.Teacher\(model"):
        Teacher.from_timm(NAME)
    assert (len(offline), asked) == (1, [])
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    with pytest.raises(RuntimeError, match="cannot be reached"):
        Teacher.from_timm(NAME)
    assert offline[-1] == ("proxy.example", 3128)


def test_weights_in_the_cache_need_no_network(offline, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(NAME)
    # As the hub's client keeps it.
    kept = tmp_path / f"models--timm--{NAME}"
    (kept / "snapshots" / "1").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("1")
    safetensors.torch.save_file(model.state_dict(), kept / "snapshots" / "1" / "model.safetensors")
    found = Teacher.from_timm(NAME)
    assert offline == []
    assert found.size == 160
    assert found.classes is not None
    assert (len(found.classes), found.classes[1]) == (1000, "goldfish, Carassius auratus")
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_names_of_classes_are_those_of_the_weights_or_of_imagenet():
    model = timm.create_model("test_resnet", num_classes=3)
    assert class_names(model, "test_resnet") is None  # three classes of somebody's own
    model.pretrained_cfg["label_names"] = ["cat", "dog", "boat"]
    assert class_names(model, "hf-hub:someone/pets") == ("cat", "dog", "boat")
    model.pretrained_cfg["label_names"] = ["cat", "dog"]
    assert class_names(model, "hf-hub:someone/pets") is None  # names of other classes
    whole = timm.create_model("test_resnet")
    assert class_names(whole, "test_resnet")[0] == "tench, Tinca tinca"
    assert class_names(whole, "hf-hub:someone/else") is None  # any thousand classes
    assert class_names(timm.create_model("test_resnet", num_classes=0), "test_resnet") is None
