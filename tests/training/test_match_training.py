"""Features matched: their losses, projectors, reports, checkpoints, stored teachers."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from packed_folders import write
from torch import nn
from training_run import raw_image

import isp_distill
from isp_distill import Match, Teacher
from isp_distill.models.feature_match import RunningStatistics, aligned, as_map
from isp_distill.reports.features import FeatureTally, RetrievalTally

QUIET = {"progress": False, "tensorboard": False}


class Small(nn.Module):
    """A classifier, or an encoder, with a map of features in it."""

    def __init__(self, width=8, classes=5, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.1))
        self.head = nn.Linear(width, classes) if classes else nn.Identity()
        self.num_classes = classes

    def forward(self, x):
        return 5 * self.head(self.body(self.stem(x)).mean((2, 3)))


def teacher(**settings):
    return Teacher(Small(**settings), size=16)


def student(width=6, **settings):
    return isp_distill.rawify(Small(width, seed=1, **settings), size=16)


MATCHES = [
    Match("logits"),
    Match("body", objective="cosine_smooth_l1", weight=0.5, project="mlp", normalise="teacher"),
    Match("stem", objective="mse", weight=0.1, project="linear"),
]


def run(out, steps=12, pupil=None, match=MATCHES, target=None, **settings):
    data = [raw_image(i) for i in range(10)]
    options = {"batch_size": 4, "checkpoint_every": 3, "seed": 3, "dropout": True, "ema": 0.9,
               "lr": 1e-2, "match": match, **QUIET}  # fmt: skip
    return isp_distill.train(
        pupil or student(), target or teacher(), settings.pop("data", data), out=out, steps=steps,
        **{**options, **settings},
    )  # fmt: skip


def checkpoint(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_every_match_is_trained_and_reported(tmp_path):
    data = [raw_image(i) for i in range(10)]
    result = run(tmp_path, 60, validation=data, ema=0.0, dropout=False)
    before, after = result.before, result.after
    assert list(after.matches) == ["logits", "body", "stem"]
    assert after.matches["logits"] == {"agreement": after.agreement_top1, "kl": after.kl}
    for name in ("body", "stem"):
        assert set(after.matches[name]) == {"cosine", "relative_error", "cka"}
        assert after.matches[name]["cosine"] > before.matches[name]["cosine"]
        assert after.matches[name]["relative_error"] < before.matches[name]["relative_error"]
        assert 0 <= after.matches[name]["cka"] <= 1 + 1e-9
    assert after.kl < before.kl
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        whole = line["logits/loss"] + 0.5 * line["body/loss"] + 0.1 * line["stem/loss"]
        assert line["loss"] == pytest.approx(whole, rel=1e-4)
        assert line["agreement"] == line["logits/agreement"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["after"]["matches"]["body"] == after.matches["body"]
    # What was trained beside the student is in the checkpoint, and not in the student.
    beside = checkpoint(tmp_path)["matching"]
    assert {name.split(".")[0] for name in beside} == {"projectors", "losses"}
    assert not any("projector" in name for name in result.student.state_dict())
    assert not any(m._forward_hooks for m in result.student.modules())
    path = isp_distill.export(result.student, tmp_path / "s.pt2")
    program = torch.export.load(path)
    assert not any("projector" in name for name in program.state_dict)
    # The projectors of the run say the same again; without them widths differ.
    again = isp_distill.evaluate(result.student, teacher(), data, match=result.matching,
                                 progress=False)  # fmt: skip
    assert again.matches["body"] == pytest.approx(after.matches["body"])
    alone = isp_distill.evaluate(result.student, teacher(), data, match=["body"], progress=False)
    assert alone.matches["body"]["cosine"] is None
    assert 0 < alone.matches["body"]["cka"] <= 1
    assert "body: cka" in str(alone)


def test_a_run_with_projectors_goes_on_exactly(tmp_path):
    run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped here"):
        run(tmp_path / "parts", data=StoppingList([raw_image(i) for i in range(10)], 31), workers=1)
    assert checkpoint(tmp_path / "parts")["step"] in (3, 6)
    run(tmp_path / "parts", data=StoppingList([raw_image(i) for i in range(10)], 10**9), workers=1)
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    for part in ("student", "average", "matching", "optimizer", "random"):
        assert same(whole[part], parts[part]), part
    assert float(whole["matching"]["losses.1.statistics.count"]) == 12 * 4 * 16
    with pytest.raises(ValueError, match="match was"):
        run(tmp_path / "parts", match=MATCHES[:2])


class StoppingList(list):
    """A dataset that fails after so many items."""

    def __init__(self, items, left):
        super().__init__(items)
        self.left = left

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("stopped here")
        return super().__getitem__(index)


def test_a_compiled_student_is_matched_as_an_eager_one(tmp_path):
    torch._dynamo.reset()
    eager = run(tmp_path / "eager", steps=3, dropout=False)
    compiled = run(tmp_path / "compiled", steps=3, dropout=False, compile=True)
    for (name, a), b in zip(
        eager.student.state_dict().items(), compiled.student.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
    lines = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("eager", "compiled")]
    losses = [[json.loads(line)["body/loss"] for line in text.splitlines()] for text in lines]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


PROGRAM = """
import sys, torch
from pathlib import Path
sys.path[:0] = sys.argv[2:]
torch.set_num_threads(1)
from test_match_training import run
run(Path(sys.argv[1]), steps=4, batch_size=2, dropout=False)
"""


def test_two_processes_train_what_one_does(tmp_path):
    """Gradients of projectors are averaged, and the teacher's statistics are of all processes."""
    run(tmp_path / "one", steps=4, batch_size=4, dropout=False)
    here = Path(__file__).resolve()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(program), str(tmp_path / "two"), str(here.parent), str(here.parents[1] / "cases")],
        check=True, capture_output=True, timeout=300, cwd=here.parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    for part in ("student", "matching"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_stored_features_train_what_the_teacher_does(tmp_path):
    for i in range(4):
        write(tmp_path / f"raw/{i}.dng", i)
    options = {"crop": 32, "progress": False}
    said = isp_distill.pack(
        tmp_path / "raw", tmp_path / "packed", teacher=teacher(), views=2, match=MATCHES, **options
    )
    assert said.files == 4
    manifest = json.loads(next((tmp_path / "packed/teachers").glob("*/*.json")).read_text())
    assert manifest["views"]["features"] == ["body", "stem"]
    assert manifest["features"] == [[8, 4, 4], [8, 4, 4]]
    assert isp_distill.verify(tmp_path / "packed", progress=False).sound
    settings = {"crop": 32, "dropout": False, "profile": True}
    stored = run(tmp_path / "stored", 4, data=tmp_path / "packed", **settings)
    assert not {"teacher", "teacher's picture"} & set(stored.stages)
    lines = (tmp_path / "stored/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["body/loss"] > 0 for line in lines)
    # A subset of what is stored serves as well; another feature does not.
    run(tmp_path / "subset", 1, data=tmp_path / "packed", match=[MATCHES[2]], **settings)
    with pytest.raises(ValueError, match=r"features of body\.0 are not stored"):
        run(tmp_path / "other", 1, data=tmp_path / "packed",
            match=[Match("body.0", project="linear")], **settings)  # fmt: skip


def test_the_size_of_what_is_stored_is_said_first(tmp_path, capsys):
    write(tmp_path / "raw/0.dng", 0)
    isp_distill.pack(tmp_path / "raw", tmp_path / "packed", teacher=teacher(), views=2,
                     match=["body"], crop=32)  # fmt: skip
    said = capsys.readouterr().out
    assert "teacher: logits [5] 0.0 kB, body [8, 4, 4] 0.3 kB a view; 2 views of 1 files" in said


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (["body"], r"match 'body': .*\[1, 6, 4, 4\].*widths differ, so give project=\"linear\""),
        ([Match("body", "logits", project="linear")], "one is of a whole picture"),
        (["bodi"], r"the teacher has no module 'bodi'.*did you mean 'body'\?"),
        ([Match("nothing", "body")], "the student has no module 'nothing'"),
    ],
)
def test_what_cannot_be_matched_is_refused_at_once(match, words, tmp_path):
    with pytest.raises((TypeError, ValueError), match=words):
        run(tmp_path, match=match)


def test_embeddings_are_distilled_by_default(tmp_path):
    data = [raw_image(i) for i in range(12)]
    encoder = teacher(classes=0)
    classes = F.normalize(encoder.logits(torch.rand(3, 3, 16, 16)).detach(), dim=1)
    named = Teacher(encoder.model, size=16, class_embeddings=classes, classes=["a", "b", "c"])
    pupil = isp_distill.rawify(Small(8, 0, seed=4), size=16)
    result = run(tmp_path, 150, pupil, None, named, data=data, validation=data, dropout=False,
                 ema=0.0)  # fmt: skip
    before, after = result.before, result.after
    assert after.cosine > max(0.9, before.cosine)
    assert after.retrieval_top1 >= before.retrieval_top1
    assert after.retrieval_top5 >= after.retrieval_top1
    assert after.agreement_top1 > 0.6  # of the three classes
    assert str(after).startswith("cosine 0.9")
    assert (tmp_path / "contact_sheet.png").exists()
    plain = isp_distill.evaluate(result.student, encoder, data, progress=False)
    assert plain.agreement_top1 is None
    assert plain.cosine == pytest.approx(after.cosine)
    with pytest.raises(ValueError, match=r"class_embeddings are \[3, 5\], .*of the same width"):
        Teacher(encoder.model, class_embeddings=torch.rand(3, 5)).zero_shot(torch.rand(2, 8))


def test_retrieval_finds_what_is_near_and_nothing_where_all_is_one():
    torch.manual_seed(0)
    theirs = torch.randn(40, 8)
    near, same_for_all, shuffled = RetrievalTally(), RetrievalTally(), RetrievalTally()
    near.add(3 * theirs + 0.01, theirs)
    same_for_all.add(torch.ones(40, 8), torch.ones(40, 8))
    shuffled.add(theirs.roll(1, 0), theirs)
    assert near.found() == (1.0, 1.0)
    assert same_for_all.found() == (0.0, 0.0)
    assert shuffled.found()[0] == 0.0
    first, rest = RetrievalTally(), RetrievalTally()
    first.add(theirs[:15], theirs[:15])
    rest.add(theirs[15:], theirs[15:])
    first.merge(rest)
    assert first.found() == (1.0, 1.0)


def test_cka_is_that_of_its_definition_however_the_views_are_divided():
    torch.manual_seed(0)
    s, t = torch.randn(30, 6), torch.randn(30, 4) + 5
    t[:, :3] += s[:, :3]
    centred = [x - x.mean(0) for x in (s.double(), t.double())]
    grams = [x @ x.T for x in centred]
    expected = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    parts = [FeatureTally(), FeatureTally()]
    parts[0].add(s[:7], t[:7])
    parts[1].add(s[7:], t[7:])
    parts[0].merge(parts[1])
    figures = parts[0].figures()
    assert figures["cka"] == pytest.approx(float(expected), rel=1e-9)
    assert figures["cosine"] is None
    tally = FeatureTally()
    tally.add(t, t @ torch.linalg.qr(torch.randn(4, 4))[0])
    assert tally.figures()["cka"] == pytest.approx(1)
    tally = FeatureTally()
    tally.add(2 * t, t)
    assert tally.figures() == pytest.approx({"cosine": 1, "relative_error": 1, "cka": 1})


def test_grids_and_tokens_are_brought_together():
    tokens = torch.arange(2 * 21 * 3.0).reshape(2, 21, 3)  # 4 x 4 after a class token, 4 registers
    grid = as_map(tokens)
    assert grid.shape == (2, 3, 4, 4)
    assert torch.equal(grid[:, :, 0, 1], tokens[:, 6])
    _, t, size = aligned(torch.rand(2, 3, 8, 8), tokens)
    assert t.shape == (2, 3, 4, 4)
    assert size == (4, 4)
    assert aligned(tokens, tokens)[2] is None
    with pytest.raises(ValueError, match="no square grid"):
        as_map(torch.rand(1, 60, 3)[:, :48])
    with pytest.raises(ValueError, match="one is of a whole picture"):
        aligned(torch.rand(2, 3), tokens)


def test_running_statistics_are_those_of_everything_seen():
    torch.manual_seed(0)
    found = RunningStatistics(3)
    assert torch.equal(found.current()[1], torch.ones(3))
    batches = [torch.randn(4, 3, 2, 2) * 3 + 7 for _ in range(5)]
    for batch in batches:
        found.update(batch, lambda value: value)
    rows = torch.cat(batches).movedim(1, -1).reshape(-1, 3)
    mean, deviation = found.current()
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deviation, rows.std(0, unbiased=False), rtol=1e-5, atol=1e-5)


def test_a_match_of_the_outputs_alone_is_what_it_was(tmp_path):
    """The same weights, to the bit, whether the match is said or not."""
    run(tmp_path / "a", 3, match=None)
    run(tmp_path / "b", 3, match=[Match("logits", objective="forward_kl", temperature=2.0)])
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert same(a["student"], b["student"])
    assert "matching" not in a


def test_a_trained_teacher_and_student_are_left_as_they_were(tmp_path):
    chosen = teacher()
    before = copy.deepcopy(chosen.model.state_dict())
    run(tmp_path, 1, target=chosen)
    assert same(before, chosen.model.state_dict())
    assert not any(m._forward_hooks for m in chosen.model.modules())


class Last(nn.Module):
    """Moves a map's channels last, as Swin has them all along."""

    def forward(self, x):
        return x.movedim(1, -1)


class ChannelsLast(Small):
    """The same network, with its features once more in the other layout."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.last = Last()

    def forward(self, x):
        return 5 * self.head(self.last(self.body(self.stem(x))).mean((1, 2)))


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_maps_with_their_channels_last_train_as_those_with_them_first(tmp_path):
    def trained(name, *match):
        pupil = isp_distill.rawify(ChannelsLast(width=6, seed=1), size=16)
        run(tmp_path / name, 3, pupil, match, Teacher(ChannelsLast(), size=16))
        return losses_of(tmp_path / name)

    how = {"objective": "cosine_smooth_l1", "project": "linear", "normalise": "teacher"}
    expected = trained("first", Match("body", **how))
    assert trained("last", Match("last", layout="channels_last", **how)) == expected
    one = Match("body", "last", teacher_layout="channels_last", **how)
    assert trained("teacher's", one) == expected
    said = r"match 'last': the teacher's features are \[1, 4, 4, 8\]: a square map of 8 channels"
    with pytest.raises(ValueError, match=said + r' that come last.*layout="channels_last"'):
        trained("unsaid", Match("last", **how))
    with pytest.raises(ValueError, match="layout of a match: forward_kl compares classes"):
        Match("logits", objective="forward_kl", layout="channels_last")
    with pytest.raises(ValueError, match="unknown layout 'nhwc' of a match"):
        Match("last", layout="nhwc")


def test_a_real_swin_needs_its_layout_said(tmp_path):
    swin = torchvision.models.swin_transformer.SwinTransformer(
        [4, 4], 8, [2, 2], [1, 2], [2, 2], num_classes=4
    ).eval()
    target = Teacher(swin, size=16)
    with pytest.raises(ValueError, match="square map of 8 channels that come last"):
        run(tmp_path / "x", 1, "rawify", [Match("features.1")], target)
    result = run(tmp_path / "y", 1, "rawify", [Match("features.1", layout="channels_last")], target)
    assert result.steps == 1
