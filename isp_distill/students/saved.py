"""``save`` and ``load``: a student as two files, ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from isp_distill.data.cut_view import trained_view
from isp_distill.detection.heads import heads_of
from isp_distill.files.atomic import replaced_folder
from isp_distill.isp.camera import ISP
from isp_distill.models.loaded_weights import load_weights
from isp_distill.models.modes import evaluating
from isp_distill.models.named import is_function
from isp_distill.models.output import Output, described_output, is_embedding, read_output
from isp_distill.models.student import as_student
from isp_distill.models.trained_view import any_size, students_in
from isp_distill.raw.sensor_format import SensorFormat
from isp_distill.students.architecture import Architecture, check_trusted
from isp_distill.students.description import StudentDescription

WEIGHTS, CONFIG = "model.safetensors", "config.json"
#: Of a run's folder, the part that holds the student.
STUDENT = "student"
_HUB = ("hf-hub:", "hf_hub:")
# The side at which a student that was never trained is asked for its output's shape.
_USUAL = 448


def save(
    student: nn.Module,
    folder: str | os.PathLike[str],
    *,
    function: str | None = None,
    output: Output = None,
    embedding: bool | None = None,
    classes: Sequence[str] | None = None,
    sensor: SensorFormat | None = None,
    exposure: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write a student as ``model.safetensors`` and ``config.json``, for :func:`load`.

    :func:`isp_distill.train` does so by itself, into ``out/student``. The folder is written whole,
    or not at all.

    Args:
        student: a rawified model, or any module that :func:`isp_distill.train` takes; it is run
            once, on a black mosaic.
        folder: is replaced if it is there.
        function: MODULE:FUNCTION of yours that returns it, or the RGB model that it was made of;
            not needed for models of timm.
        output: which part of what it returns is the prediction, where it is none of the usual ones:
            ``student_output`` of :func:`isp_distill.train`.
        embedding: whether that is an embedding, and no logits; if None, where its library calls it
            one.
        classes: names of what it predicts.
        sensor: of the frames that it is for, where all have one format.
        exposure: the short exposure that it was trained at.
        training: how it was trained, in what JSON can hold.

    Returns:
        The folder.

    Raises:
        TypeError: for a student that is no module.
        ValueError: for weights that safetensors cannot hold.
        OSError: where the folder cannot be written.

    Examples:
        >>> student = isp_distill.rawify(model)
        >>> isp_distill.save(student, "students/first", classes=["cat", "dog", "bird", "boat"])
        PosixPath('students/first')
        >>> again = isp_distill.load("students/first", model=model)
    """
    pupil = as_student(student)
    if not isinstance(pupil, nn.Module):
        raise TypeError(f"a student to save must be an nn.Module, not {type(student).__name__}")
    content = save_safetensors(_tensors(pupil), metadata={"format": "pt"})
    view = trained_view(pupil)
    returned = _returned(pupil)
    shape = tuple(read_output(returned, output).shape[1:])
    heads = heads_of(pupil)
    if embedding is None:
        embedding = is_embedding(returned, output)
    if heads is not None:
        heads.check(read_output(returned, output), "student")
    elif len(shape) not in (1, 3):
        raise ValueError(
            f"the student predicts [N, {', '.join(map(str, shape))}]: logits [N, C] or "
            "[N, C, h, w], or an embedding [N, D], can be saved; say which part with output="
        )
    kind = "embedding" if embedding else "class map" if len(shape) == 3 else "classes"
    description = StudentDescription(
        architecture=Architecture.of(pupil, function),
        weights=_digest(content),
        output=kind if heads is None else "boxes",
        shape=shape,
        reads=described_output(output),
        crop=None if view is None else view.crop,
        binning=None if view is None else view.binning,
        classes=None if classes is None else tuple(str(name) for name in classes),
        exposure=exposure,
        sensor=sensor,
        training=training,
    )
    with replaced_folder(Path(folder)) as made:
        (made / WEIGHTS).write_bytes(content)
        (made / CONFIG).write_text(description.text())
    for module in students_in(pupil):
        module.description = description
    return Path(folder)


def load(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    trust: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> nn.Module:
    """The student that :func:`isp_distill.train` or :func:`save` left, ready to predict.

    Nothing is unpickled, and no code runs but timm's and that of a function that ``trust`` names.

    Args:
        path: of a run, or of its folder ``student``; or ``hf-hub:OWNER/NAME``, a repository of the
            Hugging Face hub that :func:`push_to_hub` made.
        model: the architecture, where it is neither timm's nor a trusted function's: the RGB model
            that the student was made of, or the student itself, with any weights. It is not changed
            where it is the RGB model.
        trust: packages whose functions may be called to make the model, as ``("my_models",)``.
        device: where to put it; the CPU if None.

    Returns:
        The student in eval mode. It takes ``(mosaic, isp)``, as :func:`isp_distill.cut_view` gives
        them; its ``description`` is a :class:`~isp_distill.students.description.StudentDescription`
        with the names of its classes and how it was trained.

    Raises:
        FileNotFoundError: there is no student.
        ValueError: it is damaged, of another model, or made by a function that is not trusted.
        ImportError: timm, huggingface_hub or the function's module is missing.

    Examples:
        >>> result = isp_distill.train(
        ...     "rawify", isp_distill.Teacher(model, size=32), "photos/raw", out="runs/first",
        ...     steps=2, batch_size=2, progress=False,
        ... )
        >>> student = isp_distill.load("runs/first", model=model)
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> student(*isp_distill.cut_view(raw, student)).shape
        torch.Size([1, 4])
    """
    folder = _folder_of(path)
    description = StudentDescription.read(folder / CONFIG)
    content = (folder / WEIGHTS).read_bytes()
    if _digest(content) != description.weights:
        raise ValueError(
            f"{folder / WEIGHTS}: is not what {CONFIG} was written with: it is damaged, or the two "
            "are of different students"
        )
    try:
        weights = load_safetensors(content)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: cannot be read ({error})") from error
    try:
        if description.reads is not None and is_function(description.reads):
            check_trusted(description.reads, trust, "the student's output is read by")
        student = description.architecture.make(model, trust)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    load_weights(folder / WEIGHTS, student, weights, own_types=False)
    for module in students_in(student):
        module.description = description
    return student.to(device).eval() if device is not None else student.eval()


def push_to_hub(path: str | os.PathLike[str], repository: str, **options: Any) -> str:
    """Upload a saved student to the Hugging Face hub; :func:`load` has it as ``hf-hub:...``.

    Args:
        path: of a run, or of its folder ``student``.
        repository: OWNER/NAME; made if it is missing.
        options: of ``huggingface_hub.HfApi.create_repo``, such as ``private=True``.

    Returns:
        Its address.

    Raises:
        FileNotFoundError: there is no student.
        ImportError: huggingface_hub is missing.

    Examples:
        >>> address = isp_distill.push_to_hub(
        ...     "runs/first", "someone/raw-resnet18", private=True
        ... )  # doctest: +SKIP
    """
    folder = _folder_of(path)
    hub = _hub()
    api = hub.HfApi()
    made = api.create_repo(repository, exist_ok=True, **options)
    api.upload_folder(repo_id=repository, folder_path=str(folder))
    return str(made)


@torch.no_grad()
def _returned(student: nn.Module) -> Any:
    """What the student makes of one black mosaic."""
    view = trained_view(student)
    side = _USUAL if view is None else view.crop
    first = next(student.parameters(), torch.empty(0))
    mosaic = torch.zeros(1, side, side, dtype=torch.int32, device=first.device)
    with evaluating(student), any_size(student):
        return student(mosaic, ISP(black=0, white=1).to(first.device))


def _folder_of(path: str | os.PathLike[str]) -> Path:
    """The folder with the two files.

    Raises:
        FileNotFoundError: that names what was looked for.
    """
    name = os.fspath(path)
    if name.startswith(_HUB):
        repository, _, revision = name.partition(":")[2].partition("@")
        fetched = _hub().snapshot_download(
            repository, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG]
        )
        return Path(fetched)
    for folder in (Path(name), Path(name) / STUDENT):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    what = f"holds neither {CONFIG} and {WEIGHTS} nor a folder {STUDENT} with them"
    if (Path(name) / "checkpoint.pt").is_file():
        what += "; there is a checkpoint: let its run end, which leaves the student"
    raise FileNotFoundError(f"{name}: {what if Path(name).exists() else 'is not there'}")


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError("the hub needs huggingface_hub: pip install huggingface_hub") from error


def _tensors(student: nn.Module) -> dict[str, Tensor]:
    """The state dict as safetensors holds it: on the CPU, nothing shared.

    Raises:
        ValueError: a module keeps something else there.
    """
    found = {}
    for name, value in student.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} of the student is a {type(value).__name__}: safetensors holds tensors "
                "alone; keep it out of the module's extra state, or save the module yourself"
            )
        found[name] = value.detach().cpu().contiguous().clone()
    return found


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()
