"""Which models rawify takes over: one small member of every family of timm and torchvision.

    python benchmarks/rawify_table.py                # all of them, into benchmarks/rawify_models.md
    python benchmarks/rawify_table.py repvgg vgg     # some families, on the screen

Weights are random, and so is whatever starts at zero (layer scales, last layers); batch norms have
statistics of random pictures, changed at random: each layer counts. The error is the largest
difference of the logits from the RGB model's on the superpixel picture of the same mosaics, over
the largest logit, at the size that the model was made for, or 96 pixels if it takes any. Results
are kept while it runs: a second start goes on.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill import ISP, rawify
from isp_distill.models.rawify import relative_difference

OUT = Path(__file__).with_name("rawify_models.md")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATTERNS = ("GRBG", "BGGR")
BALANCE = (1.875, 1.0, 1.375)  # what float32 holds
BLACK, WHITE = 500.0, 16383.0
EXACT = 2e-3
#: What small members are called; the first that fits is looked at first.
SMALL = (
    *("test_", "atto", "femto", "pico", "nano", "xxs", "_xs", "tiny", "mini", "micro", "_small"),
    *("_s_", "_s", "_t", "b0", "_0", "a0", "s0", "m0", "t0", "18", "26", "050", "base"),
)
#: First layers that the smallest members do not have.
MORE = (
    *("repvgg_a0", "mobileone_s0", "fastvit_t8", "crossvit_9_240", "resnetv2_50x1_bit"),
    *("dm_nfnet_f0", "tresnet_m", "naflexvit_base_patch16_gap", "tnt_s_patch16_224"),
)
SIDES = (224, 240, 256, 288, 320, 384, 448, 512, 1024)


def roused(model: nn.Module) -> nn.Module:
    """The model in eval mode with no parameter left at zero."""
    draw = torch.Generator().manual_seed(0)
    for value in model.parameters():
        if value.numel() and float(value.abs().max()) < 1e-3:
            value.copy_(0.05 * torch.randn(value.shape, generator=draw))
    return model.eval()


def randomise_statistics(model: nn.Module, image: Tensor) -> None:
    """Batch norms as after some training: near the statistics of a picture, but not those.

    With 0 and 1 the signal dies out in a deep network, and any first layer would be exact.
    """
    draw = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(image)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.eval().momentum = momentum
        mean, variance = norm.running_mean, norm.running_var
        if mean is not None and variance is not None:
            mean.add_(0.3 * variance.sqrt() * torch.randn(mean.shape, generator=draw))
            variance.mul_(0.5 + torch.rand(variance.shape, generator=draw))
            # A channel that these pictures leave dark would magnify rounding a thousand times.
            variance.clamp_(min=0.01 * float(variance.mean()))


def pictures(mosaics: Tensor) -> Tensor:
    """The normalised superpixel pictures, from the sites of each colour by its name."""
    found = []
    for mosaic, pattern in zip(mosaics.double(), PATTERNS, strict=True):
        sites: dict[str, list[Tensor]] = {colour: [] for colour in "RGB"}
        for index, colour in enumerate(pattern):
            sites[colour].append(mosaic[index // 2 :: 2, index % 2 :: 2])
        found.append(torch.stack([torch.stack(sites[colour]).mean(0) for colour in "RGB"]))
    gain, mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (BALANCE, MEAN, STD)
    )
    linear = (torch.stack(found) - BLACK) / (WHITE - BLACK) * gain
    return (linear - mean) / std


@torch.no_grad()
def measured(build: Callable[[], nn.Module], sides: list[int]) -> dict[str, Any]:
    """One line of the table."""
    torch.manual_seed(0)
    model = roused(build())
    line: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    draw = torch.Generator().manual_seed(1)
    fault = ""
    for side in sides:
        # Below saturation under every gain: the plain formula needs no clipping.
        mosaics = torch.randint(600, 8500, (2, 2 * side, 2 * side), generator=draw)
        image = pictures(mosaics).float()
        try:
            expected = model(image)
        except Exception as error:  # another size is tried
            fault = fault or f"{type(error).__name__}: {error}"
            continue
        break
    else:
        return {**line, "refused": f"the RGB model itself fails: {fault}"}
    randomise_statistics(model, image)
    expected = model(image)
    moved = relative_difference(model(image.flip(0)), expected)
    try:
        student = rawify(model, mean=MEAN, std=STD).eval()
    except ValueError as error:
        return {**line, "refused": str(error)}
    isp = ISP(black=BLACK, white=WHITE, pattern=list(PATTERNS), white_balance=BALANCE)
    error = relative_difference(student(mosaics.to(torch.int32), isp), expected)
    made = student.takeover
    assert made is not None
    readers = [r.split(":")[0] for r in made.readers]
    if error > EXACT:
        # Whether that is a difference or rounding that the network magnifies.
        model = model.double()
        student = rawify(model, mean=MEAN, std=STD).eval()
        expected = model(pictures(mosaics))
        line["error64"] = relative_difference(student(mosaics.to(torch.int32), isp), expected)
    line |= {"side": side, "error": error, "moved": moved, "form": made.form, "readers": readers}
    return line


def smallest(names: list[str], build: Callable[[str], nn.Module]) -> str:
    """The member with the fewest parameters, of the few that are called small."""

    def rank(name: str) -> tuple[int, int, str]:
        order = next((i for i, word in enumerate(SMALL) if word in name), len(SMALL))
        return order, len(name), name

    found = []
    for name in sorted(names, key=rank)[:4]:
        try:
            with torch.device("meta"):
                model = build(name)
        except Exception:  # some compute numbers while they are built
            continue
        found.append((sum(p.numel() for p in model.parameters()), name))
    return min(found)[1] if found else min(names, key=rank)


@dataclass
class Member:
    """A model of a family: its name, how it is built, and sides to try."""

    name: str
    build: Callable[[], nn.Module]
    sides: list[int]


def of_timm() -> Iterator[tuple[str, Callable[[], Member]]]:
    """Each family of timm, and how its smallest member is found."""
    import timm
    from timm.models import _registry

    members = defaultdict(list)
    for name in timm.list_models():
        members[_registry._model_to_module[name]].append(name)

    def build(name: str) -> nn.Module:
        made: nn.Module = timm.create_model(name, pretrained=False)
        return made

    def member(names: list[str]) -> Member:
        name = smallest(names, build)
        config = timm.get_pretrained_cfg(name)
        side = config.input_size[-1] if config is not None else SIDES[0]
        fixed = config is not None and config.fixed_input_size
        return Member(name, partial(build, name), [side] if fixed else [96, side, *SIDES])

    for family, names in sorted(members.items()):
        yield f"timm {family}", partial(member, names)
    for name in MORE:
        yield f"timm {_registry._model_to_module[name]}, {name}", partial(member, [name])


def of_torchvision() -> Iterator[tuple[str, Callable[[], Member]]]:
    """Likewise of torchvision's classification models, and every segmentation model."""
    import torchvision

    models = torchvision.models

    def build(name: str) -> nn.Module:
        whole = {"weights_backbone": None} if name in segmentation else {}
        if name in ("googlenet", "inception_v3"):
            whole = {"init_weights": False, "transform_input": True}
        return models.get_model(name, weights=None, **whole)

    segmentation = models.list_models(module=models.segmentation)
    members = defaultdict(list)
    for name in models.list_models(module=models):
        members[models.get_model_builder(name).__module__.split(".")[-1]].append(name)
    for name in segmentation:
        members[name] = [name]

    def member(names: list[str]) -> Member:
        name = smallest(names, build)
        sides = [299] if name == "inception_v3" else [96, *SIDES]
        return Member(name, partial(build, name), sides)

    for family, names in sorted(members.items()):
        yield f"torchvision {family}", partial(member, names)


def _exact(line: dict[str, Any]) -> bool:
    # Logits that hardly move from one picture to another would prove nothing.
    limit = min(EXACT, line.get("moved", 0.0) / 10)
    return line.get("error", 1.0) <= limit or line.get("error64", 1.0) <= limit / 1e4


def written(lines: list[dict[str, Any]]) -> str:
    """The page."""
    exact = [line for line in lines if _exact(line)]
    forms = {f: sum(line.get("form") == f for line in exact) for f in ("stem", "stems", "picture")}
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("timm", "torchvision"))
    page = [
        "# Which models `rawify` takes over",
        "",
        f"Made by `python benchmarks/rawify_table.py` with {versions}: a small member",
        "of every family of timm and of torchvision's classification models, a few more with other",
        "first layers, and every segmentation model of torchvision; random weights and batch-norm",
        "statistics.",
        "",
        f"**{len(exact)} of {len(lines)} are exact** ({100 * len(exact) / len(lines):.1f}%). Of",
        f"these, {forms['stem']} start with one RawStem, {forms['stems']} with several, and",
        f"{forms['picture']} read a picture that one RawStem makes.",
        "",
        "The error is the largest difference from the RGB model's logits, over the largest logit.",
        f"Exact is below {EXACT}, and below a tenth of how far another picture moves the logits. A",
        "network that magnifies float32's rounding beyond that is tried again in float64.",
        "",
        "| family | model | side | error | taken over as | who reads the input |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        start = f"| {line['family'].split(',')[0]} | {line['model']} |"
        if "refused" in line:
            reason = " ".join(line["refused"].split())[:300].replace("|", "/")
            page.append(f"{start} | | refused | {reason} |")
            continue
        error = f"{line['error']:.1e}"
        if "error64" in line:
            error += f" ({line['error64']:.1e} in float64)"
        error = error if _exact(line) else f"**{error}**"
        readers = ", ".join(line["readers"])
        page.append(f"{start} {line['side']} | {error} | {line['form']} | {readers} |")
    return "\n".join(page) + "\n"


def main() -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--kept", type=Path, default=Path("rawify_models.jsonl"))
    a = parser.parse_args()
    done: dict[str, dict[str, Any]] = {}
    if a.kept.exists() and not a.families:
        done = {line["family"]: line for line in map(json.loads, a.kept.read_text().splitlines())}
    lines = []
    for source in (of_timm, of_torchvision):
        for family, member in source():
            if a.families and family.split()[1] not in a.families:
                continue
            line = done.get(family)
            if line is None:
                chosen = member()
                result = measured(chosen.build, chosen.sides)
                line = {"family": family, "model": chosen.name, **result}
                print(json.dumps(line), flush=True)
                if not a.families:
                    with a.kept.open("a") as kept:
                        kept.write(json.dumps(line) + "\n")
            lines.append(line)
            gc.collect()
    if not a.families:
        a.out.write_text(written(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
