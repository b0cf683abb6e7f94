"""``boxquery train`` and ``boxquery.train``. Imports no torch before it is needed."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from boxquery.augment import augment_parts
from boxquery.errors import UserError
from boxquery.flags import Switch, pretrained_of
from boxquery.training.config import TrainFlags

if TYPE_CHECKING:
    from boxquery.data.dataset import Data
    from boxquery.data.scenes.records import SceneData
    from boxquery.model_folder import Loaded

F = TypeVar("F", bound=TrainFlags)


def train(
    data: str | Path | Data | SceneData | None = None, /, *, out: str | Path | None = None, resume: bool = False, **flags: Any
) -> Loaded:
    """Train a detector; classes and their ids come from the data.

    Args:
        data: a folder or file in COCO, Pascal VOC or YOLO layout, ``shapes`` for the built-in scenes, nuScenes' folder or ``surround`` for
            scenes of several cameras, or a data set that was opened; may be left out with ``resume``: a run knows its data.
        out: the run folder; by default a new one under ``runs/``.
        resume: resume the run in ``out`` from its last finished epoch. Flags are the run's own; others are refused, except ``device``
            and ``workers``.
        flags: the flags of ``boxquery train`` as keywords, see ``boxquery.training.config.TrainFlags``; ``None`` is not given.

    Returns the best model. The run folder then holds ``config.yaml``, ``metrics.csv``, ``model/``, ``last.ckpt`` and ``report.html``.
    Under ``torchrun`` every process calls this and each takes its share. Raises ``UserError``.
    """
    requested = flags_of(TrainFlags, "train", flags)
    if data is None and not resume and requested.pretrained not in (True, False, "auto"):
        raise UserError(f"--pretrained took {requested.pretrained} as weights; write DATA before the flags, or --pretrained=required")
    if data is None and not resume:
        raise UserError("name the data to train on: boxquery train DATA; or resume a run: --resume --out DIR")
    if isinstance(data, str | Path) and not resume:
        from boxquery.data.open import check_exists

        check_exists(data)
    from boxquery.training.fit import start

    return start(data, None if out is None else Path(out), requested, resume)


def flags_of(kind: type[F], function: str, keywords: dict[str, Any]) -> F:
    """The flags that keywords of a function are; ``None`` is not given. Raises ``UserError`` for unknown ones and values that cannot be."""
    known = inspect.signature(kind).parameters
    if unknown := sorted(keywords.keys() - known):
        close = difflib.get_close_matches(unknown[0], known, 1)
        meant = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}; a model's own options go into options={{...}}"
        raise UserError(f"{function}() has no keyword {', '.join(unknown)}; {meant}")
    given: dict[str, Any] = {name: value for name, value in keywords.items() if value is not None}
    given |= {name: str(given[name]) for name in ("start_from", "images", "annotations") if name in given}
    if isinstance(weights := given.get("pretrained"), str | Path):
        given["pretrained"] = pretrained_of(str(weights))
    if "augment" in given:
        given["augment"] = augment_parts(given["augment"])
    requested = kind(**given)
    requested.check()
    return requested


_own = [p for p in inspect.signature(train).parameters.values() if p.kind is not p.VAR_KEYWORD]
train.__signature__ = inspect.Signature([*_own, *inspect.signature(TrainFlags).parameters.values()])  # pyright: ignore[reportFunctionMemberAccess]


def command(
    data: str | None = None,
    /,
    flags: Annotated[TrainFlags, Parameter(name="*")] = TrainFlags(),  # noqa: B008
    *,
    out: Path | None = None,
    resume: Switch = False,
) -> Any:
    """Train a detector; classes and their ids come from the data.

    Args:
        data: Folder or file in COCO, Pascal VOC or YOLO layout, or the word `shapes` for the built-in scenes (with options:
            shapes:objects=12); nuScenes' folder or `surround` for scenes of several cameras; may be omitted with --resume.
        out: Run folder. Default: a new one under `runs/`.
        resume: Resume the run in --out from its last finished epoch, with its own settings; --device and --workers may differ.
    """
    return train(data, out=out, resume=resume, **vars(flags))
