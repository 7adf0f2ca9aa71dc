"""TrainSettings: one value that Python, the shell and a file say in the same words."""

import dataclasses
import inspect
import json
import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_run import raw_image, teacher

import isp_distill
from isp_distill import ISPAugmentation, Match, NoiseModel, ShortExposure, TrainSettings
from isp_distill.cli.flags import explained, given_settings
from isp_distill.cli.main import main, parser
from isp_distill.models.student import student_module
from isp_distill.training.checkpoint import load_checkpoint
from isp_distill.training.config import RunConfig
from isp_distill.training.keywords import TrainKeywords
from isp_distill.training.settings import FREE

FIELDS = {f.name: f for f in dataclasses.fields(TrainSettings)}
share = st.floats(0, 1)
factor = st.floats(1e-6, 1)
factors = factor | st.tuples(factor, factor).map(lambda pair: tuple(sorted(pair)))
noises = st.builds(NoiseModel, shot=st.none() | st.floats(0, 1))
names = st.sampled_from(["blocks.1", "features", "aux"])
features = st.builds(
    Match, names, names, st.sampled_from(["cosine", "smooth_l1(0.5)"]), st.floats(0, 9),
    project=st.none() | st.sampled_from(["linear", "mlp"]),
    normalise=st.none() | st.sampled_from(["l2", "teacher"]),
)  # fmt: skip
classes = st.builds(
    Match, names, objective=st.just("binary_kl"), temperature=st.none() | st.floats(0.1, 9)
)
matches = features | classes | st.just(Match("blocks.3"))
VALUES = {
    **dict.fromkeys(("steps", "batch_size", "accumulate", "workers"), st.integers(1, 10**6)),
    **dict.fromkeys(("prefetch_bytes", "checkpoint_every"), st.integers(1, 10**12)),
    **dict.fromkeys(("lr", "stem_lr", "weight_decay", "clip_norm"), st.floats(0, 1e30)),
    **dict.fromkeys(("temperature",), st.floats(1e-3, 1e3)),
    **dict.fromkeys(("alpha", "warmup"), share),
    "ema": st.floats(0, 1, exclude_max=True),
    "validation_views": st.integers(1, 5),
    "crop": st.none() | st.integers(1, 4096).map(lambda half: 2 * half),
    "binning": st.none() | st.integers(1, 64),
    "crop_ratio": st.tuples(st.floats(0.1, 1), st.floats(1, 10)),
    "objective": st.none() | st.sampled_from(["forward_kl", "jsd(0.3)", "mse"]),
    "student_output": st.none() | st.sampled_from(["scores", "hidden_states.3", "a.b:c"]),
    "match": st.none()
    | st.lists(matches, min_size=1, max_size=3, unique_by=lambda m: m.name).map(
        lambda drawn: [Match("logits"), *(m for m in drawn if m.name != "logits")]
    ),
    "dense_size": st.none() | st.integers(1, 999) | st.tuples(*[st.integers(1, 999)] * 2),
    "box_objective": st.sampled_from(["giou", "smooth_l1"]),
    "box_weight": st.floats(0, 1e30),
    "boxes": st.none() | st.just("boxes.json"),
    "trainable": st.sampled_from(["all", "stem"]),
    "tone": st.sampled_from([None, "log", "smoothstep"]),
    "curve": st.sampled_from([None, "log", "sqrt"]),
    "demosaic": st.sampled_from([None, "superpixel", "malvar"]),
    "exposure": st.none() | st.builds(ShortExposure, factors, noises),
    "noise": st.none() | noises,
    "augmentation": st.none() | st.builds(ISPAugmentation, red=st.just((0.5, 2.0))),
    "amp": st.none() | st.booleans(),
    "device": st.none() | st.sampled_from(["cpu", "cuda:1"]),
    "metrics_every": st.none() | st.integers(1, 99),
    "seed": st.integers(0, 2**62),
}
settings_of_any_kind = st.fixed_dictionaries(
    {}, optional={name: VALUES.get(name, st.booleans()) for name in FIELDS if name != "crop_area"}
).map(lambda values: TrainSettings(**values))
CROPS = TrainSettings(crop_area=(0.25, 1), crop_ratio=(0.5, 2))


def flags_of(settings):
    """The command line that says what differs from the defaults."""
    words = []
    for name in FIELDS:
        value, flag = getattr(settings, name), f"--{name.replace('_', '-')}"
        if value == FIELDS[name].default:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif name in ("crop_area", "crop_ratio"):
            words += [flag, *map(repr, value)]
        elif name == "dense_size" and not isinstance(value, int):
            words.append(f"{flag}={value[0]}x{value[1]}")
        elif name == "match":
            words.append(f"{flag}={inline([dataclasses.asdict(one) for one in value])}")
        elif dataclasses.is_dataclass(value):
            words.append(f"{flag}={inline(dataclasses.asdict(value))}")
        else:
            words.append(f"{flag}={value}")
    return words


def inline(value):
    if isinstance(value, dict):
        pairs = [f"{k} = {inline(v)}" for k, v in value.items() if v is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return repr(list(value) if isinstance(value, tuple) else value)


@given(settings_of_any_kind | st.just(CROPS))
def test_every_way_of_saying_settings_says_the_same(settings):
    """As plain values, through JSON, through a file's TOML, and as flags of the shell."""
    plain = settings.plain()
    assert TrainSettings.from_plain(plain) == settings
    assert TrainSettings.from_plain(json.loads(json.dumps(plain))) == settings
    flags = given_settings(parser().parse_args(["train", "raw", *flags_of(settings)]))
    assert TrainSettings.of(None, **flags) == settings


@given(settings=settings_of_any_kind | st.just(CROPS))
def test_a_file_says_the_settings(tmp_path_factory, settings):
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_text(RunConfig(teacher="a:b", data="raw", settings=settings.plain()).text())
    read = RunConfig.read(path)
    assert TrainSettings.from_plain(read.settings) == settings
    assert (read.teacher, read.data, read.student, read.out) == ("a:b", "raw", None, None)


def test_train_the_dataclass_and_the_shell_have_the_same_settings():
    signature = inspect.signature(isp_distill.train)
    own = ("student", "teacher", "data", "out", "validation", "settings", "callbacks")
    assert list(signature.parameters) == [*own, *FIELDS]
    for name, field in FIELDS.items():
        assert signature.parameters[name].default == field.default
    hints = typing.get_type_hints(TrainSettings)
    assert typing.get_type_hints(TrainKeywords) == hints
    assert set(explained()) == set(FIELDS)
    assert all(explained().values()), "a setting without a sentence in the docstring"
    assert set(FIELDS) > FREE
    text = parser()._subparsers._group_actions[0].choices["train"].format_help()
    for name in FIELDS:
        assert f"--{name.replace('_', '-')}" in text


REFUSED = [
    ({"stepz": 1}, "train has no setting 'stepz': did you mean 'steps'"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"steps": 2.0}, "steps must be a whole number, got 2.0"),
    ({"lr": -1}, "lr must be 0 or more, got -1"),
    ({"lr": float("nan")}, "lr must be 0 or more, got nan"),
    ({"warmup": 2}, r"warmup must be in \[0, 1\], got 2"),
    ({"ema": 1}, r"ema must be in \[0, 1\), got 1"),
    ({"objective": "kl"}, "unknown objective 'kl'"),
    ({"alpha": 2}, r"alpha must lie in \[0, 1\], got 2"),
    ({"trainable": "head"}, "unknown trainable 'head': expected all or stem"),
    ({"tone": "filmic"}, "unknown tone 'filmic': expected linear or srgb"),
    ({"curve": "srgb"}, "unknown curve 'srgb': expected linear or sqrt or log or gamma"),
    ({"exposure": 2}, r"exposure factor must be in \(0, 1\], got 2"),
    ({"exposure": (1, 0.1)}, r"exposure factor \(1.0, 0.1\): the least is above the largest"),
    ({"exposure": (0.0, 1.0)}, r"exposure factor must be in \(0, 1\], got 0.0"),
    ({"exposure": "dark"}, "exposure must be ShortExposure or None, got 'dark'"),
    ({"noise": 0.1}, "noise must be NoiseModel or None, got 0.1"),
    ({"device": "gpu"}, "device 'gpu': torch knows no such device"),
    ({"dense_size": 0}, "dense_size 0: expected one side"),
    ({"crop": 3}, "crop must be even and at least 2, got 3"),
    ({"crop_area": (0.1, 1), "binning": 2}, "two ways to choose the size"),
    ({"crop_area": 0.5}, r"crop_area must be \(least, largest\), got 0.5"),
    ({"validation_views": 6}, "validation_views must be at most 5, got 6"),
    ({"match": []}, "match must have one Match at least"),
    ({"match": [{"studnt": "a"}]}, "match has no 'studnt': did you mean 'student'"),
    ({"match": [{"teacher": "a"}]}, "names no student's output"),
    ({"match": ["a", "a"]}, "match names 'a' twice"),
    ({"match": [{"student": "a", "objective": "l3"}]}, "unknown objective 'l3': expected one of"),
    ({"match": [{"student": "a", "weight": -1}]}, "weight of a match must be 0 or more, got -1"),
    ({"match": [{"student": "a", "project": "big"}]}, "unknown project 'big' of a match"),
    ({"match": [{"student": "a", "temperature": 2}]}, "temperature of a match: cosine compares"),
    (
        {"match": [{"student": "logits", "objective": "forward_kl", "project": "mlp"}]},
        "project of a match: forward_kl compares classes",
    ),
    ({"match": ["blocks.3"], "alpha": 0.5}, "no logits are matched: leave alpha at 1"),
    ({"objective": "cosine", "alpha": 0.5}, "no logits are matched: leave alpha at 1"),
    ({"student_output": 3}, "student_output must be a key of the model's output"),
    ({"student_output": "a:<lambda>"}, "a file cannot say a lambda"),
    ({"progress": 1}, "progress must be True or False, got 1"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_a_setting_that_is_none_is_refused_by_name(values, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        TrainSettings.of(None, **values)
    with pytest.raises((TypeError, ValueError), match=message):
        isp_distill.train("rawify", teacher(), [raw_image(0)], out=tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3", r"has no key 'steps': it belongs in \[settings\]"),
        ("teachr = 'a'", "has no key 'teachr': did you mean 'teacher'"),
        ("teacher = 3", "teacher must be a string, got 3"),
        ("labels = 'folder'", r"labels must be true or false, or a file that ends in \.csv"),
        ("[settings]\nlr = 'x'", "settings: lr must be a number, got 'x'"),
        ("[settings]\nleer = 1", "settings: train has no setting 'leer': did you mean 'lr'"),
        ("[settings.noise]\nshut = 1", "settings: noise has no 'shut': there are shot, read"),
        ("steps: 3", "is no TOML file"),
        ("\x00", "is no TOML file"),
    ],
)
def test_a_file_that_lies_is_refused_by_name(text, message, tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        RunConfig.read(path)
    assert str(path) in str(refused.value)
    assert main(["train", "raw", "--teacher", "a:b", "--config", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_run_leaves_a_file_that_does_it_again(tmp_path, monkeypatch, capsys):
    """From the shell, with flags before the file's words; the weights are the same."""
    (tmp_path / "own_models.py").write_text(
        "from training_run import teacher as made\n"
        "def teacher():\n    return made()\n"
        "def student():\n"
        "    import isp_distill\n"
        "    return isp_distill.rawify(made().model, curve='gamma')\n"
    )
    monkeypatch.chdir(tmp_path)
    raw = [raw_image(i) for i in range(4)]
    (tmp_path / "raw" / "c").mkdir(parents=True)
    for index, one in enumerate(raw):
        isp_distill.write_dng(
            tmp_path / "raw" / "c" / f"{index}.dng", one.mosaic, pattern=one.pattern,
            black=one.black, white=one.white, bits=14,
        )  # fmt: skip
    flags = ["--steps", "2", "--batch-size", "2", "--crop-area", "0.3", "1", "--no-tensorboard"]
    named = ["--teacher", "own_models:teacher", "--student", "own_models:student"]
    more = ["--exposure", "0.5", "--noise", "low", "--labels", "--no-progress"]
    assert main(["train", "raw", *named, *flags, *more, "--out", "a"]) == 0
    config = RunConfig.read("a/config.toml")
    assert (config.teacher, config.student) == ("own_models:teacher", "own_models:student")
    assert (config.data, config.out, config.labels) == ("raw", "a", True)
    assert main(["train", "--config", "a/config.toml", "--out", "b"]) == 0
    capsys.readouterr()
    first, second = (torch.load(f"{out}/checkpoint.pt", weights_only=True) for out in "ab")
    assert first["settings"] == second["settings"]
    assert first["settings"]["exposure"]["factor"] == 0.5
    for name, value in first["student"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second["student"][name])
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert report["settings"] == json.loads(json.dumps(second["settings"]))
    # A flag comes before the file, and what the weights depend on is compared as ever.
    assert main(["train", "--config", "a/config.toml", "--out", "b", "--lr", "1e-3"]) == 2
    assert "lr was 3e-05, is 0.001" in capsys.readouterr().err


def test_what_a_file_cannot_say_is_said_in_it(tmp_path):
    isp_distill.train(
        "rawify", teacher(), [raw_image(0)], out=tmp_path, steps=1, batch_size=1, progress=False,
        tensorboard=False,
    )  # fmt: skip
    text = (tmp_path / "config.toml").read_text()
    assert "# Its teacher was made in Python" in text
    assert "# Its data was made in Python" in text
    assert RunConfig.read(tmp_path / "config.toml").teacher is None


def test_the_shell_names_what_is_missing(capsys):
    assert main(["train"]) == 2
    assert "data is missing" in capsys.readouterr().err
    assert main(["train", "raw"]) == 2
    assert "teacher is missing: give --teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--exposure", "dark"],
        ["--exposure", "{factor = 2}"],
        ["--exposure", "[0.1, 0.2, 0.3]"],
        ["--noise", "loud"],
        ["--augmentation", "1"],
        ["--augmentation", "{read = [1, 2]}"],
        ["--dense-size", "3x4x5"],
        ["--steps", "x"],
    ],
)
def test_a_flag_that_cannot_be_read_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "raw", "--teacher", "a:b", *flags])
    assert stopped.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_settings_given_twice(tmp_path):
    """Keywords come before a whole value."""
    settings = TrainSettings(steps=5, lr=1e-3, batch_size=1, progress=False, tensorboard=False)
    result = isp_distill.train(
        "rawify", teacher(), [raw_image(0)], out=tmp_path, settings=settings, steps=1
    )
    assert result.steps == 1
    saved = json.loads((tmp_path / "report.json").read_text())["settings"]
    assert saved["lr"] == 1e-3


@pytest.mark.parametrize("name", ["data", "teacher", "picture", "out"])
def test_an_empty_path_is_not_the_working_directory(tmp_path, name):
    (tmp_path / "run.toml").write_text(f'{name} = ""\n')
    with pytest.raises(ValueError, match=f"run.toml: {name} is empty, which is no path"):
        RunConfig.read(tmp_path / "run.toml")


def test_a_seed_below_zero_is_refused_by_name():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        TrainSettings(seed=-1)


def test_a_student_begins_as_its_teachers_pictures_are_demosaiced():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1))
    sides = {
        asked: student_module(
            "rawify", isp_distill.Teacher(network, size=16, demosaic=teachers), None, asked
        ).stem.weight.shape[-1]
        for asked, teachers in ((None, None), ("superpixel", None), ("malvar", "superpixel"))
    }
    assert sides == {None: 5, "superpixel": 3, "malvar": 5}
    coarse = isp_distill.Teacher(network, size=16, demosaic="superpixel")
    assert student_module("rawify", coarse).stem.weight.shape[-1] == 3
    with pytest.raises(ValueError, match=r"demosaic='malvar' is for the student \"rawify\""):
        student_module(isp_distill.rawify(network, size=16), coarse, None, "malvar")


def test_a_run_writes_down_what_its_student_began_with(tmp_path):
    made = dataclasses.replace(teacher(), demosaic="superpixel")
    isp_distill.train(
        "rawify", made, [raw_image(0)], out=tmp_path, steps=1, batch_size=1, device="cpu",
        progress=False, tensorboard=False,
    )  # fmt: skip
    settings = load_checkpoint(tmp_path / "checkpoint.pt")["settings"]
    assert settings["demosaic"] == "superpixel"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["demosaic"] == "superpixel"
