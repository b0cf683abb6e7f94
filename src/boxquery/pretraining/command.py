"""``boxquery pretrain`` and ``boxquery.pretrain``. Imports no torch before it is needed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from boxquery.errors import UserError
from boxquery.flags import Switch
from boxquery.limits import check_threshold
from boxquery.models import list_baselines, list_models, list_scene_models
from boxquery.pretraining.find import check_images
from boxquery.training.config import PretrainFlags
from boxquery.training.run import flags_of

if TYPE_CHECKING:
    from boxquery.data.dataset import Data
    from boxquery.detector import Detector


#: flags of training that are of no use here
_WITHOUT = ("images", "annotations", "max_detections")


def pretrain(
    images: str | Path | Data | None = None,
    /,
    *,
    teacher: str | Path | None = None,
    threshold: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **flags: Any,
) -> Detector:
    """Teach a model from images without labels, for ``train(..., start_from=...)`` to go on from.

    Random patches are cut out of each image, and queries that are told what is in them learn where they were (UP-DETR). With a
    ``teacher`` they learn what it detects in the images instead.

    Args:
        images: a folder, searched recursively, or a glob; ``shapes`` for the built-in scenes, or a data set that was opened. Annotations
            are ignored. May be left out with ``resume``.
        teacher: a run or model whose detections become labels (docs/pretrain.md); the model is then, unless it is given, as the teacher's.
        threshold: minimum score of its detections; None: the teacher's own.
        out: the run folder; by default a new one under ``runs/``.
        resume: resume the run in ``out`` from its last finished epoch, as ``train`` does.
        flags: the flags of ``boxquery pretrain`` as keywords, see ``boxquery.training.config.PretrainFlags``; ``None`` is not given.

    Returns the best model; without a teacher its one class has no name. The run folder holds what ``train`` writes. Raises ``UserError``.
    """
    requested = flags_of(PretrainFlags, "pretrain", flags)
    if images is None and not resume:
        raise UserError("name the images to learn from: boxquery pretrain IMAGES --model M; or resume a run: --resume --out DIR")
    if isinstance(images, str | Path) and not resume:
        check_images(str(images))
    if not resume and teacher is None and requested.named_model is None and requested.start_from is None:
        raise UserError(f"pretrain needs a model: --model with one of {', '.join(list_models())}, or --from with one that is trained")
    if teacher is None and requested.model in list_scene_models():
        raise UserError(
            f"{requested.model} learns 3-D boxes from several cameras, and a patch of an image has no place in space; pretrain takes "
            f"{', '.join(list_models())}"
        )
    if teacher is None and requested.model in list_baselines():
        raise UserError(
            f"{requested.model} has no queries that could be told what to look for in an image; pretrain takes {', '.join(list_models())}"
        )
    if teacher is None and threshold is not None:
        raise UserError("--threshold is that of a teacher's detections: it goes with --teacher")
    check_threshold(threshold)
    folder = None if out is None else Path(out)
    from boxquery.pretraining.run import start
    from boxquery.pretraining.teacher import PSEUDO_LABELS, learn_from, resume_learning

    if resume and folder is not None and (folder / PSEUDO_LABELS).is_file():
        return resume_learning(folder, requested)
    if teacher is not None:
        if not isinstance(images, str | Path):
            raise UserError("a teacher needs a folder of images or a glob to look at")
        return learn_from(str(teacher), str(images), folder, requested, threshold)
    return start(images, folder, requested, resume)


_own = [p for p in inspect.signature(pretrain).parameters.values() if p.kind is not p.VAR_KEYWORD]
_flags = [p for p in inspect.signature(PretrainFlags).parameters.values() if p.name not in _WITHOUT]
pretrain.__signature__ = inspect.Signature([*_own, *_flags])  # pyright: ignore[reportFunctionMemberAccess]


def command(
    images: str | None = None,
    /,
    flags: Annotated[PretrainFlags, Parameter(name="*")] = PretrainFlags(),  # noqa: B008
    *,
    teacher: str | None = None,
    threshold: float | None = None,
    out: Path | None = None,
    resume: Switch = False,
) -> Any:
    """Teach a model from images without labels; `boxquery train DATA --from RUN` goes on from it.

    Random patches are cut out of each image, and queries that are told what is in them learn where they were (UP-DETR). With --teacher they
    learn what it detects in the images instead.

    Args:
        images: Folder of images, searched recursively, or a glob, or the word `shapes` for the built-in scenes; annotations are ignored.
            May be omitted with --resume.
        teacher: Run, model folder or hub id whose detections become labels. --model and its options are then the teacher's, unless given.
        threshold: Minimum score of the teacher's detections, from 0 to 1. Default: the teacher's own.
        out: Run folder. Default: a new one under `runs/`.
        resume: Resume the run in --out from its last finished epoch, with its own settings; --device and --workers may differ.
    """
    own = {name: value for name, value in vars(flags).items() if name not in _WITHOUT}
    return pretrain(images, teacher=teacher, threshold=threshold, out=out, resume=resume, **own)
