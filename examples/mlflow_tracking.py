"""A run that MLflow follows: settings, losses, agreement, and the student as an artifact.

It writes into the folder ``mlruns`` without a server; ``--tracking`` names yours.
Needs ``pip install mlflow``, or ``mlflow-skinny``.

    python examples/mlflow_tracking.py                               # on four photographs
    python examples/mlflow_tracking.py photos/raw --weights DEFAULT  # on your RAW files
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import mlflow
import stand_ins
import torchvision

from isp_distill import Teacher, TrainCallback, TrainResult, TrainSettings, train


class MLflow(TrainCallback):
    """Hands a run's numbers and files to MLflow."""

    def on_start(self, settings: TrainSettings, step: int) -> None:
        """Settings become parameters."""
        mlflow.log_params(settings.plain())

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Each number becomes a metric."""
        mlflow.log_metrics(dict(values), step=step)

    def on_end(self, result: TrainResult) -> None:
        """The student, for whoever finds the run, and the picture of what it says."""
        mlflow.log_artifacts(str(result.out / "student"), "student")
        mlflow.log_artifact(str(result.out / "contact_sheet.png"))


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", nargs="?", help="of RAW files")
parser.add_argument("--weights", help="of the teacher, e.g. DEFAULT; random ones if not given")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--out", default="runs/mlflow")
parser.add_argument("--tracking", help="URI of a tracking server")
options = parser.parse_args()

model = torchvision.models.resnet18(weights=options.weights)
if options.weights is None:
    stand_ins.settle(model)
# MLflow asks for a yes before it keeps runs in a folder rather than in a database.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
mlflow.set_tracking_uri(options.tracking or Path("mlruns").resolve().as_uri())
with mlflow.start_run() as run:
    result = train(
        "rawify",
        Teacher(model, size=224),
        options.folder or stand_ins.raw_photographs(),
        out=options.out,
        steps=options.steps,
        batch_size=4,
        callbacks=[MLflow()],
    )
    print(f"{result.steps} steps, MLflow's run {run.info.run_id}")
