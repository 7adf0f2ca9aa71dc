"""Where there is no compiler for ARM64, the reason names what is missing."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import toolchain


def lacking(monkeypatch, *missing):
    """A machine that has neither compiler nor emulator for ARM64, nor the commands named."""
    which = shutil.which

    def found(name, path=None):
        gone = name in missing or name.startswith(("aarch64-", "qemu-"))
        return None if gone else which(name, path=path) or f"/usr/bin/{name}"

    monkeypatch.setattr(shutil, "which", found)


def test_without_apt(monkeypatch, tmp_path):
    lacking(monkeypatch, "apt-get")
    with pytest.raises(toolchain.MissingError, match=r"g\+\+-aarch64.* qemu-user.* no apt-get"):
        toolchain.toolchain(tmp_path)


def test_without_network(monkeypatch, tmp_path):
    """apt-get's own first complaint is in the sentence, and nothing is taken for unpacked."""
    lacking(monkeypatch)

    def fail(command, **_):
        complaint = "W: slow\nE: Unable to locate package\nE: and more"
        return subprocess.CompletedProcess(command, 100, "", complaint)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(toolchain.MissingError, match=r"get them: Unable to locate package\.$"):
        toolchain.toolchain(tmp_path)
    assert not (tmp_path / "root" / "complete").exists()


def test_a_package_that_is_damaged_is_named(monkeypatch, tmp_path):
    downloads = tmp_path / "packages"
    downloads.mkdir()
    (downloads / "g++.deb").write_bytes(b"no package")
    lacking(monkeypatch)
    monkeypatch.setattr(toolchain, "_needed", lambda folder: ([], []))
    monkeypatch.setattr(toolchain, "_apt", lambda arguments, folder: "")
    with pytest.raises(toolchain.MissingError, match=r"g\+\+.deb cannot be unpacked: "):
        toolchain.toolchain(tmp_path)
    assert not (tmp_path / "root" / "complete").exists()
