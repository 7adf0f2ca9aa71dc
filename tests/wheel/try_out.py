"""Installs a wheel into fresh environments, one for each release of torch, and uses it there.

``python tests/wheel/try_out.py dist/isp_distill-*.whl 2.10.0 2.13.0 newest``. An environment takes
up to 6 GB and a few minutes, and is removed after its turn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

SMOKE = Path(__file__).with_name("smoke.py")


def try_out(wheel: Path, release: str, folder: Path) -> None:
    """Install torch and the wheel in ``folder``, and run doctor and the smoke test from there.

    Raises:
        CalledProcessError: where a step fails; its output stands above.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    torch = "torch" if release == "newest" else f"torch=={release}"
    # Not from a folder that has the sources: the installed package is what is tried.
    run([python, "-m", "pip", "install", "--quiet", torch, wheel.resolve()], folder)
    run([folder / "bin" / "isp-distill", "doctor"], folder)
    run([python, "-I", SMOKE], folder)


def run(command: list[object], folder: Path) -> None:
    subprocess.run([str(part) for part in command], cwd=folder, check=True)


def main() -> int:
    """Try the wheel under each release; 1 where one fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("torch", nargs="+", help="a release, or newest")
    arguments = parser.parse_args()
    failed = []
    for release in arguments.torch:
        print(f"-- torch {release}", flush=True)
        with tempfile.TemporaryDirectory(prefix="isp-distill-wheel-") as folder:
            try:
                try_out(arguments.wheel, release, Path(folder))
            except subprocess.CalledProcessError as error:
                print(f"torch {release}: {error}", file=sys.stderr)
                failed.append(release)
    print(f"works under {len(arguments.torch) - len(failed)} of {len(arguments.torch)} releases")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
