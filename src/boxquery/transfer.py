"""Starting a model from a trained one of the same kind: tensors are copied by what their rows mean, not by their index.

Classes are matched by name, levels by backbone stage, queries, patterns and layers by number; other tensors must have the same shape. What
the source lacks keeps its initial values, and the report says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from boxquery.data.classes import match_names
from boxquery.errors import UserError
from boxquery.model_folder import CONFIG, WEIGHTS, Loaded, open_model, open_official
from boxquery.models.base import QueryTransformer
from boxquery.official import list_official
from boxquery.official.checkpoint import UNSEEN
from boxquery.parts.attention.deformable import DeformableAttention

TRANSFER_FILE = "transfer.json"

#: names of tensors (patterns) -> what their first dimension indexes
COUNTED: tuple[tuple[str, str], ...] = (
    (r"heads\.\d+\.classes\..+", "columns"),
    (r"queries\.denoising\.labels", "classes"),
    # of class-agnostic proposals: column 0 is any object, the others have no meaning
    (r"queries\.head\.classes\..+", "proposal columns"),
    (r"queries\.(further\.)?(position|embedding|anchors|centres|points)|(place\.)+table", "queries"),
    (r"queries\.(further\.)?content", "contents"),
    (r"queries\.patterns", "patterns"),
    (r"tokens\.level_embedding|.+\.read\.selection\..+", "levels"),
    (r".+\.(sampling_offsets|attention_weights)\.(weight|bias)", "samples"),
    (r"tokens\.position\.(row|column)", "cells"),
)

#: modules that exist once per level
PER_LEVEL = re.compile(r"(neck\.(?:projections|outputs)|.+\.read\.(?:keys|values))\.(\d+)\.(.+)")
CLASS_HEAD = re.compile(r"heads\.(\d+)\.classes\.(.+)")

#: beginnings of names (patterns) -> groups of the table
GROUPS: tuple[tuple[str, str], ...] = (
    (r"backbone\.", "backbone"),
    (r"neck\.", "neck"),
    (r"tokens\.", "positions and levels"),
    (r"encoder\.", "encoder"),
    (r"queries\.head\.", "proposal head"),
    (r"queries\.denoising\.", "denoising labels"),
    (r"queries\.further\.", "further training-only queries"),
    (r"queries\.", "queries"),
    (r"place\.", "query geometry"),
    (r"layers\.", "decoder"),
    (r"heads\.\d+\.classes\.", "class heads"),
    (r"heads\.", "box heads"),
    (r"", "other"),
)


@dataclass
class Group:
    """How many values of a part of the model were kept at their index, moved from another, or newly initialised, and why."""

    name: str
    kept: int = 0
    moved: int = 0
    new: int = 0
    how: list[str] = field(default_factory=list)

    def note(self, reason: str) -> None:
        if reason and reason not in self.how:
            self.how.append(reason)


@dataclass(frozen=True)
class Transfer:
    """What a model took over from its source.

    Attributes:
        model: the name of both.
        groups: the parts of the new model.
        classes: per class of the new model, the source's class whose rows it has; None if they are new.
        left: classes of the source that the new model lacks.
        unused: tensors of the source that the new model lacks.
        notes: options that differ.
        backbone: whether it was taken over.
    """

    model: str
    groups: list[Group]
    classes: dict[str, str | None]
    left: list[str]
    unused: list[str]
    notes: list[str]
    backbone: bool

    def summary(self) -> str:
        """Lines about classes, options that differ, and what was left out."""
        known = [name if origin == name else f"{name} (from {origin})" for name, origin in self.classes.items() if origin is not None]
        new = [name for name, origin in self.classes.items() if origin is None]
        lines = [f"classes taken over: {', '.join(known) or 'none'}; new: {', '.join(new) or 'none'}"]
        if self.notes:
            lines.append(f"options that differ: {'; '.join(self.notes)}")
        if self.unused:
            lines.append(f"{len(self.unused)} tensors of the source are not used")
        return "\n".join(lines)

    def table(self, title: str) -> Table:
        caption = "numbers of values; moved: from another row, level or layer"
        table = Table(title=Text(title), title_justify="left", caption=caption, caption_justify="left")
        table.add_column("part", no_wrap=True)
        for column in ("kept", "moved", "new"):
            table.add_column(column, justify="right")
        table.add_column("how", overflow="fold")
        for group in self.groups:
            table.add_row(group.name, *(f"{n:,}" if n else "-" for n in (group.kept, group.moved, group.new)), "; ".join(group.how))
        return table


def read_source(
    source: str | Path, model: str = "", options: Mapping[str, Any] | None = None, *, download: bool = False
) -> tuple[Loaded, list[str]]:
    """Load what ``--from`` names: a run folder, a model folder, a hub id, or a paper's released checkpoint. Nothing in it is executed.

    Args:
        model: the model that a released checkpoint is of; its file does not say.
        options: the new model's; those that a released checkpoint's tensors do not show (``dilation``) hold for the source, too.
        download: fetch a model from the hub also if it has more than 200 MB.

    Returns the detector and notes on what was taken off or assumed. Raises ``UserError``.
    """
    path = Path(source)
    if not path.is_file():
        lines: list[str] = []
        return open_model(source, download=download, say=lines.append), lines
    if any((path.parent / file).is_file() for file in (CONFIG, "config.yaml")) and path.name in (CONFIG, WEIGHTS, "last.ckpt"):
        raise UserError(f"{path}: give the folder of the run or model, not a file in it")
    if not model:
        raise UserError(f"{path}: the file does not say which model it is; add --model, one of {', '.join(list_official())}")
    given = {name: value for name, value in (options or {}).items() if name in UNSEEN}
    detector, report = open_official(path, model, given)
    notes = report["notes"]
    if report["rows"] is not None and not any(detector.classes):
        notes.append(
            f"{path.name}: its class head has {report['rows']} rows and the file no names, so none is taken over "
            "(import-official --classes a,b,c gives them names)"
        )
    return detector, notes


def fingerprint(detector: Loaded) -> str:
    """SHA-256 of model name, class names and all tensors: equal if a transfer would give the same."""
    digest = hashlib.sha256(json.dumps([detector.model.config["name"], detector.classes]).encode())
    for name, value in sorted(detector.model.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (before, now) for the options of ``now`` that differ; tuples and lists are equal, as in JSON."""
    before, now = (json.loads(json.dumps(options)) for options in (before, now))
    return {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}


def check_same_model(source: QueryTransformer, name: str, what: str = "the source") -> None:
    """Raises ``UserError`` if the source, called ``what``, is another model, whose tensors have another meaning."""
    if (theirs := source.config["name"]) != name:
        raise UserError(
            f"{what}: its model is {theirs}, the new one {name}: weights can only be taken over from the same model; use --model {theirs}"
        )


@torch.no_grad()
def transfer(
    source: QueryTransformer, target: QueryTransformer, source_classes: Sequence[str | None], target_classes: Sequence[str | None]
) -> Transfer:
    """Copy what ``source`` has learned into ``target``; the source is not changed.

    Args:
        source, target: two models with the same ``config["name"]``; classes, queries, levels, layers and any option may differ.
        source_classes, target_classes: class names, one per logit column; None for a column without a name, which matches nothing.

    - Class rows (heads of all layers, or a shared one, and the label embeddings of denoising) are matched by name (``match_names``), a
      softmax's "no object" with its like, unless no class of the source has a name (as after pre-training without labels). Columns of a
      two-stage model's proposal head have no names, the first is "an object": by number.
    - Queries go by number; of fewer, the first ones are kept (they were initialised at random, so any choice is as good). Anchors and
      patterns are stored separately, so patterns stay patterns.
    - Levels are matched by backbone stage. A learned table of positions is resampled.
    - A head shared by all layers gives its classes to every layer, its boxes only to the first: later layers have another reference.
    - With another backbone, the backbone and the neck's projections of it are new.

    What the source lacks keeps the target's initial values. Raises ``UserError`` for different models, or not one class name per column.
    """
    check_same_model(source, target.config["name"])
    for model, classes in ((source, source_classes), (target, target_classes)):
        if len(classes) != model.config["classes"]:
            raise UserError(f"the model has {model.config['classes']} classes, but {len(classes)} names were given")
    copier = _Copier(source, target, match_names(target_classes, source_classes), named=any(source_classes))
    changed = changed_options(source.config["options"], target.config["options"])
    pairs = zip(target_classes, copier.classes, strict=True)
    return Transfer(
        model=target.config["name"],
        groups=copier.copy(),
        classes={name: source_classes[i] if i >= 0 else None for name, i in pairs if name is not None},
        left=[name for i, name in enumerate(source_classes) if name is not None and i not in copier.classes],
        unused=copier.unused(),
        notes=[f"{name}: {before} became {now}" for name, (before, now) in changed.items()],
        backbone=copier.same_backbone,
    )


#: of one dimension of a tensor: number of rows in the source, and per row of ours its index there (-1: none)
Rows = tuple[int, list[int]]


class _Copier:
    """Copies tensors of one model to another, row by row."""

    def __init__(self, source: QueryTransformer, target: QueryTransformer, classes: list[int], *, named: bool):
        self.source, self.target, self.classes, self.named = source, target, classes, named
        self.theirs, self.ours = source.state_dict(), target.state_dict()
        # levels are matched by backbone stage, counted from the last
        ours, theirs, shift = len(target.neck.projections), len(source.neck.projections), source.neck.inputs - target.neck.inputs
        self.levels = [i + shift if 0 <= i + shift < theirs else -1 for i in range(ours)]
        self.same_backbone = source.backbone.name == target.backbone.name and _shapes(self.theirs) == _shapes(self.ours)
        self.used: set[str] = set()

    def copy(self) -> list[Group]:
        groups = {title: Group(title) for _, title in GROUPS}
        for name, tensor in self.ours.items():
            if _is_learned(name):
                group = groups[next(title for beginning, title in GROUPS if re.match(beginning, name))]
                known, kept = self._fill(name, tensor, group)
                group.kept += kept
                group.moved += known - kept
                group.new += tensor.numel() - known
        return [group for group in groups.values() if group.kept + group.moved + group.new]

    def unused(self) -> list[str]:
        return [name for name in self.theirs if name not in self.used and _is_learned(name)]

    def _fill(self, name: str, ours: Tensor, group: Group) -> tuple[int, int]:
        """Number of values copied to a tensor, and how many of them kept their index."""
        if not self.same_backbone and self._of_backbone(name):
            group.note("another backbone")
            return 0, 0
        origin = self._origin(name)
        theirs = self.theirs.get(origin)
        if theirs is None:
            levels = (len(self.source.neck.projections), self.levels)
            group.note(self._describe("levels", levels) if PER_LEVEL.fullmatch(name) else "some are not in the source")
            return 0, 0
        kind = next((kind for pattern, kind in COUNTED if re.fullmatch(pattern, name)), "")
        if kind == "proposal columns" and not self.target.criterion.class_agnostic_proposals:
            kind = "columns"
        if kind == "samples" and not isinstance(self.target.get_submodule(name.rsplit(".", 2)[0]), DeformableAttention):
            kind = ""  # DETR3D's, of cameras
        rows = self._rows(kind, name, origin, ours, theirs)
        if rows is None:
            group.note("some have another shape")
            return 0, 0
        self.used.add(origin)
        if kind == "cells" and ours.shape != theirs.shape:
            ours.copy_(torch.nn.functional.interpolate(theirs.T[None], size=len(ours), mode="linear", align_corners=True)[0].T)
            group.note(f"resampled from {len(theirs)} to {len(ours)} cells")
            return ours.numel(), 0
        if rows:
            group.note(self._describe(kind, rows[-1]))
        copied, kept = _copy_rows(ours, theirs, rows)
        return copied, kept if origin == name else 0

    def _of_backbone(self, name: str) -> bool:
        """Whether a tensor belongs to the backbone or reads its maps."""
        level = PER_LEVEL.fullmatch(name)
        return name.startswith("backbone.") or (name.startswith("neck.") and bool(level) and int(level[2]) <= self.target.neck.inputs)

    def _origin(self, name: str) -> str:
        """The source's name of a tensor of ours; empty if it cannot have it."""
        if (found := PER_LEVEL.fullmatch(name)) is not None:
            level = self.levels[int(found[2])]
            return f"{found[1]}.{level}.{found[3]}" if level >= 0 else ""
        if (found := CLASS_HEAD.fullmatch(name)) is not None:
            return f"heads.{min(int(found[1]), len(self.source.heads) - 1)}.classes.{found[2]}"
        return name

    def _rows(self, kind: str, name: str, origin: str, ours: Tensor, theirs: Tensor) -> list[Rows] | None:
        """Per leading dimension that is matched; None if tensors or rows have another shape."""
        if kind == "samples":
            return self._samples(name, origin)
        if not kind:
            return [] if ours.shape == theirs.shape else None
        if ours.shape[1:] != theirs.shape[1:]:
            return None
        if kind in ("classes", "columns"):
            no_object = [len(theirs) - len(ours) + i for i in range(len(self.classes), len(ours))]  # comes after the classes
            no_object = no_object if self.named else [-1] * len(no_object)
            return [(len(theirs), [*self.classes, *no_object])]
        by_number = [i if i < len(theirs) else -1 for i in range(len(ours))]
        return [(len(theirs), self.levels if kind == "levels" else by_number)]

    def _describe(self, kind: str, rows: Rows) -> str:
        """What was done with rows, in words; empty if all kept their index."""
        theirs, ours = rows
        if ours == list(range(theirs)):
            return ""
        if kind in ("classes", "columns"):
            return f"{sum(i >= 0 for i in self.classes)} of {len(self.classes)} classes by name"
        known, what = sum(i >= 0 for i in ours), "levels" if kind == "samples" else kind
        if known < len(ours):
            return f"{known} of {len(ours)} {what}, the others are new"
        return f"{'the first ' if ours == list(range(known)) else ''}{known} of {theirs} {what}"

    def _samples(self, name: str, origin: str) -> list[Rows] | None:
        """Of deformable attention, whose rows are heads x levels x points (x 2)."""
        ours, theirs = (m.get_submodule(n.rsplit(".", 2)[0]) for m, n in ((self.target, name), (self.source, origin)))
        if not isinstance(ours, DeformableAttention) or not isinstance(theirs, DeformableAttention):
            return None
        heads = (theirs.heads, list(range(ours.heads)))
        if ours.heads != theirs.heads:
            return None
        if len({*ours.points, *theirs.points}) == 1:
            return [heads, (theirs.levels, self.levels)]
        return [heads] if ours.points == theirs.points and self.levels == list(range(theirs.levels)) else None


def _copy_rows(ours: Tensor, theirs: Tensor, rows: list[Rows]) -> tuple[int, int]:
    """Copy matched rows, or all for no dimensions; returns the number of values copied, and how many of them kept their index."""
    index = torch.zeros(1, dtype=torch.int64)  # per row of ours the row of theirs, all dimensions flattened; -1: none
    for count, axis in rows:
        inner, outer = torch.tensor(axis), index[:, None]
        index = torch.where((inner >= 0) & (outer >= 0), outer * count + inner, -1).flatten()
    known, width = index >= 0, ours.numel() // len(index)
    copied = ours.reshape(-1, width).clone()  # not a view: convolutions keep their features last
    copied[known] = theirs.reshape(-1, width)[index[known]].to(ours)
    ours.copy_(copied.view(ours.shape))
    same = math.prod(sum(i == j for i, j in enumerate(axis)) for _, axis in rows)
    return int(known.sum()) * width, same * width


def _is_learned(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items() if name.startswith("backbone.") and _is_learned(name)}
