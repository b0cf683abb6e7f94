"""Which runtimes and precisions are measured, and the files that they need. Imports no torch where an exported file is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from boxquery.benchmark.measure import Measured
from boxquery.benchmark.process import Job
from boxquery.errors import UserError
from boxquery.flags import DEFAULT_PRESET

#: classes of a model that is named, as many as COCO has
CLASSES = 80
#: width and height of the images of a built-in scene of several cameras
CAMERA = (800, 480)
#: by runtime what it can compute in
PRECISIONS = {
    "pytorch": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
}
#: runtimes of exported files: the ending of a file
ENDINGS = {"onnxruntime": ".onnx", "openvino": ".xml"}


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; None: what is installed, and what is usual."""

    runtimes: tuple[str, ...] | None
    precisions: tuple[str, ...] | None

    @classmethod
    def of(cls, runtimes: Sequence[str] | None, precisions: Sequence[str] | None) -> Self:
        """From flags whose values may be several words with commas. Raises ``UserError`` for words that are not known."""
        known = list(dict.fromkeys(each for own in PRECISIONS.values() for each in own))
        return cls(_chosen("runtimes", runtimes, PRECISIONS), _chosen("precision", precisions, known))

    def pairs(self, usual: Sequence[str]) -> list[tuple[str, str]]:
        """Runtimes with their precisions. Raises ``UserError`` where there is none.

        Args:
            usual: precisions where the user named none.
        """
        runtimes = self.runtimes or [name for name in PRECISIONS if name == "pytorch" or find_spec(name) is not None]
        found = [(name, each) for name in runtimes for each in self.precisions or usual if each in PRECISIONS[name]]
        if not found:
            each = " or ".join(f"{name} in {', '.join(PRECISIONS[name])}" for name in runtimes)
            raise UserError(f"--precision {','.join(self.precisions or usual)}: choose among {each}")
        return found


def _chosen(flag: str, given: Sequence[str] | None, known: Iterable[str]) -> tuple[str, ...] | None:
    words = [name for word in given or () for name in word.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise UserError(f"--{flag} {unknown[0]}: choose among {', '.join(known)}")
    return tuple(dict.fromkeys(words)) or None


def plan(
    run: str,
    preset: str | None,
    wanted: Wanted,
    make: Callable[..., Job],
    folder: Path,
    *,
    device: str,
    download: bool,
    say: Callable[[str], None],
) -> tuple[list[Job], list[Measured]]:
    """The jobs, and those that cannot be measured with the reasons. Raises ``UserError`` for a source that cannot be used.

    Args:
        make: a ``Job`` from its first four fields.
        folder: where files are written that are made for the measurement alone.
    """
    if Path(run).suffix in ENDINGS.values():
        if preset is not None or wanted != Wanted(None, None):
            raise UserError(f"{run}: an exported file has its own runtime, precision and preset; leave these flags out")
        return [_of_file(Path(run), make)], []
    from boxquery.device import choose_device, has_fast_bf16

    device = choose_device(device)
    pairs = wanted.pairs(["fp32", *(["bf16"] if has_fast_bf16(device) else [])])
    source = _source(run, preset, folder, download, say)
    if files := [f"{runtime} {precision}" for runtime, precision in pairs if runtime != "pytorch"]:
        without = "; --runtimes pytorch does without" if len(files) < len(pairs) else ""
        say(f"{', '.join(files)}: exported before anything is timed, which takes ten seconds to a few minutes each{without}")
    jobs, left_out = [], []
    for runtime, precision in pairs:
        if runtime == "pytorch":
            jobs.append(make(runtime, precision, source, device))
            continue
        say(f"{runtime} {precision}: exporting")
        file = folder / f"{precision}{ENDINGS[runtime]}"
        job = make(runtime, precision, str(file), "cpu")
        try:
            _export(source, file, precision)
            jobs.append(job)
        except UserError as error:
            left_out.append(Measured(job, failed=error.line()))
    return jobs, left_out


def _of_file(file: Path, make: Callable[..., Job]) -> Job:
    """An exported file, opened once to know its precision. Raises ``UserError``."""
    from boxquery.runtime.engines import open_file

    runtime_name = next(name for name, ending in ENDINGS.items() if ending == file.suffix)
    return make(runtime_name, open_file(file, "cpu", None).record.precision, str(file), "cpu")


def _export(source: str, file: Path, precision: str) -> None:
    """For any size and batch, as ``boxquery export`` does it. Raises ``UserError``."""
    from boxquery.export.writer import export
    from boxquery.model_folder import open_model

    export(open_model(source), file, precision=precision)


def takes_scenes(run: str, *, download: bool, say: Callable[[str], None]) -> bool:
    """Whether what is to be measured takes scenes of several cameras. Raises ``UserError`` for a source that is none."""
    from boxquery.models import list_baselines, list_models, list_scene_models

    file = Path(run)
    if file.suffix in ENDINGS.values():
        from boxquery.runtime.engines import open_file

        return file.is_file() and open_file(file, "cpu", None).record.scenes is not None
    if not file.is_dir() and run in [*list_models(), *list_baselines(), *list_scene_models()]:
        return run in list_scene_models()
    from boxquery.model_folder import find_folder, holds_scene_model

    return holds_scene_model(find_folder(run, download=download, say=say))


def _source(run: str, preset: str | None, folder: Path, download: bool, say: Callable[[str], None]) -> str:
    """The run or model folder to load; a model that is named is made and saved. Raises ``UserError``."""
    from boxquery.models import list_baselines, list_models, list_scene_models

    if run not in [*list_models(), *list_baselines(), *list_scene_models()] or Path(run).is_dir():
        if preset is not None:
            names = ", ".join([*list_models(), *list_scene_models()])
            raise UserError(f"--preset {preset}: {run} has its own; a preset is of a model's name: {names}")
        from boxquery.model_folder import find_folder

        return str(find_folder(run, download=download, say=say))
    import torch

    from boxquery.data.preprocessing import Preprocessing
    from boxquery.detector import Detector
    from boxquery.model_folder import save
    from boxquery.models import create_model
    from boxquery.models import preset as preset_of
    from boxquery.scene_detector import SceneDetector

    preset = preset or DEFAULT_PRESET
    torch.manual_seed(0)
    recipe = preset_of(run, preset).recipe
    names = [f"class {i}" for i in range(CLASSES)]
    model = create_model(run, classes=names, preset=preset)
    parts = model, names, range(CLASSES), Preprocessing.of(recipe.image_size, square=recipe.square, normalize=recipe.normalize)
    made = SceneDetector(*parts, (CAMERA[1], CAMERA[0])) if run in list_scene_models() else Detector(*parts)
    say(f"note: {run}, preset {preset}, {CLASSES} classes, with random weights: as fast as a trained one, but it detects nothing")
    return str(save(made, folder / "model"))
