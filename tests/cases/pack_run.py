"""Packs a folder; as a program, the thing that the kill test kills."""

import sys
from pathlib import Path

import isp_distill


def run(folder, out):
    return isp_distill.pack(
        folder, out, workers=2, shard_bytes=40_000, compression="zstd", progress=False
    )


if __name__ == "__main__":
    print("begin", flush=True)
    run(Path(sys.argv[1]), Path(sys.argv[2]))
