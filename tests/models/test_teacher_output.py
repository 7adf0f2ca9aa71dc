"""What a teacher returns is looked at before a file is decoded."""

import json
import warnings

import pytest
import torch
from torch import nn
from training_run import files, raw_image, run, teacher
from unreadable import Unreadable

import isp_distill
from isp_distill.models.teacher import Teacher
from isp_distill.models.teacher_output import warn_of_features

CPU = torch.device("cpu")


class Tokens(nn.Module):
    """Patch tokens [N, T, C], as a transformer without its head returns them."""

    def __init__(self, norm=True, head=None):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12) if norm else nn.Identity()
        self.head = head or nn.Identity()

    def forward(self, x):
        return self.head(self.norm(self.patches(x).flatten(2).transpose(1, 2)))


class Pooled(Tokens):
    def forward(self, x):
        return self.head(super().forward(x).mean(1) if isinstance(self.head, nn.Identity)
                         else self.norm(self.patches(x).flatten(2).mean(2)))  # fmt: skip


def test_tokens_are_refused_before_a_file_is_decoded(tmp_path):
    files(tmp_path / "raw", 2).close()
    data = Unreadable(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"the teacher returns \[N, 16, 12\]: .*class token"):
        isp_distill.train(
            "rawify", Teacher(Tokens(), size=16), data, out=tmp_path / "out", objective="forward_kl"
        )


class Residual(nn.Module):
    """A convolutional network without its classifier: norm, sum, activation, pooling."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.norm_a(self.a(x)).relu()
        return (x + self.norm_b(self.b(x))).relu().mean((2, 3))


class Numbered(nn.Module):
    """As timm's: a convolution and an activation before the classifier that was left out."""

    num_classes = 0

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 16)

    def forward(self, x):
        return self.a(x).relu().flatten(1)


class Similarities(nn.Module):
    """Classes by their embeddings, a product outside of any layer."""

    def __init__(self):
        super().__init__()
        self.body, self.classes = Residual(), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        return 10 * nn.functional.normalize(self.body(x), dim=1) @ self.classes.T


def said(model, objective="forward_kl"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_features(Teacher(model.eval(), size=16), objective, CPU)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("model", [Pooled(), Residual(), Numbered()])
def test_embeddings_are_warned_of(model):
    (words,) = said(model)
    assert "seems to have no classifier" in words
    assert 'objective="forward_kl"' in words
    assert said(model, "mse") == []


@pytest.mark.parametrize(
    "model",
    [
        Pooled(head=nn.Linear(12, 7)),
        Pooled(norm=False),  # who knows
        nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(Residual(), nn.Linear(8, 7)),
        Similarities(),
        teacher().model,
        teacher(dense=True).model,
    ],
)
def test_classifiers_are_not(model):
    assert said(model) == []


def test_train_warns(tmp_path):
    data = [raw_image(i) for i in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 16), nn.Flatten(), nn.LayerNorm(8))
    options = {"steps": 1, "batch_size": 2, "progress": False, "tensorboard": False}
    with pytest.warns(UserWarning, match="no classifier"):
        isp_distill.train(
            "rawify", Teacher(model, size=16), data, out=tmp_path / "a", objective="forward_kl",
            **options,
        )  # fmt: skip
    with warnings.catch_warnings():  # unless somebody says so, it is distilled by its embedding
        warnings.simplefilter("error")
        isp_distill.train("rawify", Teacher(model, size=16), data, out=tmp_path / "b", **options)
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert report["settings"]["objective"] == "cosine"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "usual", steps=1, data=data)
