"""A run that Weights & Biases follows: settings, losses, agreement and the contact sheet.

It writes into ``wandb/`` without a network; ``--online`` sends what it sees to your account.
Needs ``pip install wandb``.

    python examples/weights_and_biases.py                               # on four photographs
    python examples/weights_and_biases.py photos/raw --weights DEFAULT  # on your RAW files
"""

import argparse
from collections.abc import Mapping

import stand_ins
import torchvision
import wandb

from isp_distill import Teacher, TrainCallback, TrainResult, TrainSettings, train


class WeightsAndBiases(TrainCallback):
    """Hands a run's numbers and its contact sheet to Weights & Biases."""

    def on_start(self, settings: TrainSettings, step: int) -> None:
        """Settings become the configuration of W&B's run."""
        wandb.config.update(settings.plain())

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Each number becomes a curve."""
        wandb.log(dict(values), step=step)

    def on_end(self, result: TrainResult) -> None:
        """The picture of what teacher and student say."""
        wandb.log({"contact sheet": wandb.Image(str(result.out / "contact_sheet.png"))})


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", nargs="?", help="of RAW files")
parser.add_argument("--weights", help="of the teacher, e.g. DEFAULT; random ones if not given")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--out", default="runs/wandb")
parser.add_argument("--online", action="store_true", help="send it to W&B's server")
options = parser.parse_args()

model = torchvision.models.resnet18(weights=options.weights)
if options.weights is None:
    stand_ins.settle(model)
with wandb.init(project="isp-distill", mode="online" if options.online else "offline") as run:
    result = train(
        "rawify",
        Teacher(model, size=224),
        options.folder or stand_ins.raw_photographs(),
        out=options.out,
        steps=options.steps,
        batch_size=4,
        callbacks=[WeightsAndBiases()],
    )
    print(f"{result.steps} steps, written to {run.dir}")
