"""What a run is: the flags of ``boxquery train`` as asked for, and the complete record in ``config.yaml``. Imports no torch."""

import shlex
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import yaml
from cyclopts import Parameter

from boxquery.augment import augment_parts, recorded
from boxquery.errors import UserError, first_line
from boxquery.files import atomic_write
from boxquery.flags import (
    AUTO,
    Augmentation,
    Device,
    Options,
    Precision,
    Pretrained,
    RecipeName,
    Switch,
    check_seed,
    check_workers,
    option_word,
)  # fmt: skip
from boxquery.limits import MAX_DETECTIONS, check_above_zero
from boxquery.training.migration import FORMAT, migrate_config
from boxquery.training.run_length import LengthFlags, RunLength

FILE = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class SharedFlags:
    """The flags that training and comparing share; ``None`` is not given.

    Attributes:
        options: Model option as name=value, repeatable; docs/options.md lists them.
        augment: What is done to training images: none, light, default (the preset's) or strong, and parts as name=value, repeatable, like
            flip=0 or mosaic=0.5; docs/augmentation.md lists them.
        image_size: Short side of the images in pixels; the long side is at most 5/3 of it. Default: auto's choice, or the preset's.
        recipe: How it is trained, apart from the flags here (schedule, moving average, clipping, rate and length that are not given): the
            preset's, or fine-tuning, for a start from weights that know much already. Default: auto's choice, or preset.
        square: Resize images to squares of --image-size, whatever their shape, so that no batch is padded. Default: auto's choice, or the
            preset's.
        batch_size: Images per batch of one process. Default: auto's choice, or the preset's.
        lr: Learning rate of the transformer; the backbone's keeps its ratio to it. Default: the preset's; of small and tiny a lower one
            where a step has few objects.
        backbone_lr_factor: Learning rate of the backbone, as a factor on --lr. Default: the preset's (of small and tiny 1 from random
            weights, 0.1 from released ones).
        pretrained: Weights that the backbone starts from: auto (released ones if the hub or its cache has them, else random ones), required
            (released ones, or it stops; --pretrained alone is the same), none (random ones), or a file or folder.
        freeze_backbone: Do not train the backbone.
        device: Where to train; auto takes CUDA, else MPS, else the CPU.
        precision: Number format of the matrix products; auto takes bf16 where the hardware is fast at it.
        strict: Fail on invalid boxes and images instead of skipping them.
        images: Folder of the images, where it is not found by itself. Relative to the data or the working directory.
        annotations: Folder or file of the annotations, where it is not found by itself. Relative to the data or the working directory.
    """

    options: Options = None
    augment: Augmentation = None
    image_size: int | None = None
    square: bool | None = None
    batch_size: int | None = None
    lr: float | None = None
    backbone_lr_factor: float | None = None
    pretrained: Pretrained = "auto"
    freeze_backbone: Switch = False
    device: Device = "auto"
    precision: Precision = "auto"
    strict: Switch = False
    images: str | None = None
    annotations: str | None = None

    def check(self) -> None:
        """Raise ``UserError`` for values that no run can have."""
        augment_parts(self.augment)
        check_above_zero(
            image_size=self.image_size, batch_size=self.batch_size, lr=self.lr, backbone_lr_factor=self.backbone_lr_factor
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model is trained; ``None`` is not given.

    Attributes:
        start_from: Trained model to start from: a run or model folder, one of transformers, a hub id, a paper's checkpoint, or shapes,
            which comes along. Classes are matched by name and may differ, as may any option. Options not given are taken from the source.
            Default: auto's choice, or none.
        model: Model to train; `boxquery models` lists them. auto chooses model, preset, options, image size, batch size, length and
            augmentation for the data and the processor, and says so; flags that are given win. With --from it is the source's model.
        preset: Size and recipe: paper, small, tiny, or a further size that is published, see `boxquery models NAME`; with --from the recipe
            alone. Default: auto's choice, or small, or that of --from.
    """

    start_from: Annotated[str | None, Parameter(name="--from")] = None
    model: str = AUTO
    preset: str | None = None

    @property
    def named_model(self) -> str | None:
        """The model, unless it is to be chosen."""
        return None if self.model == AUTO else self.model


@dataclass(frozen=True, kw_only=True)
class RunFlags(SharedFlags, ModelFlags):
    """What is trained, on what and how; ``None`` is not given.

    Attributes:
        patience: Stop after this many evaluations without a better AP; 0 never stops.
        workers: Processes that read images. Default: 0 on a CPU, up to 8 for CUDA.
        max_detections: Detections per class and image that count when the best epoch is chosen; COCO's AP is defined with 100.
        seed: Seeds initialisation, data order, augmentation and dropout, but not the train/val split.
        force: Train even where the check before the first epoch fails.
    """

    recipe: RecipeName | None = None
    patience: int = 0
    workers: int | None = None
    max_detections: int = MAX_DETECTIONS
    seed: int = 0
    force: Switch = False


@dataclass(frozen=True, kw_only=True)
class TrainFlags(LengthFlags, RunFlags):
    """The flags of ``boxquery train``, which are the keywords of ``boxquery.train``.

    Attributes:
        download: Fetch a model to start from the hub also if it has more than 200 MB.
    """

    download: Switch = False

    def check(self) -> None:
        """Raise ``UserError`` for values that no run can have."""
        LengthFlags.check(self)
        SharedFlags.check(self)
        check_above_zero(max_detections=self.max_detections)
        check_workers(self.workers)
        if self.patience < 0:
            raise UserError(f"patience={self.patience}: must be 0 or more")
        check_seed(self.seed)

    def recorded(self) -> dict[str, Any]:
        """What ``config.yaml`` has of these flags beside those of every run."""
        return {}

    def words(self) -> Iterator[str]:
        """The command line that gives these flags; those at their default are left out."""
        for flag in fields(self):
            value, name = getattr(self, flag.name), "--" + ("from" if flag.name == "start_from" else flag.name.replace("_", "-"))
            if flag.name == "options":
                yield from (word for option in (value or {}).items() for word in ("--option", option_word(*option)))
            elif flag.name == "augment":
                for part, strength in augment_parts(value).items():
                    yield from ("--augment", strength if part == "level" else option_word(part, strength))
            elif value is True:
                yield name
            elif flag.name == "square" and value is False:
                yield "--no-square"
            elif value != flag.default:
                text = ",".join(f"{k}:{v}" if k else str(v) for k, v in value.items()) if isinstance(value, dict) else str(value)
                text = "none" if value is False else text
                yield from [f"{name}={text}"] if text.startswith("-") else [name, text]


#: a flag that a command does not have
Absent = Parameter(parse=False, show=False)


@dataclass(frozen=True, kw_only=True)
class PretrainFlags(TrainFlags):
    """The flags of ``boxquery pretrain``, which are the keywords of ``boxquery.pretrain``.

    Attributes:
        start_from: Trained model to start from: a run or model folder, one of transformers, a hub id, or a paper's checkpoint. Options not
            given are taken from the source.
        model: Model to train; `boxquery models` lists them. With --from or --teacher it is that one's; otherwise it must be given.
        preset: Size and recipe: paper, small, tiny, or a further size that is published, see `boxquery models NAME`. Default: small, or
            that of --from or --teacher.
        augment: What is done to training images besides cutting patches out: scales, flip, vertical_flip and colour as name=value,
            repeatable. Default: the preset's scales, nothing else.
        patches: Random patches per image that queries are told to find.
        train_backbone: Train the backbone even where it starts from trained weights. Default: it is frozen there, as published, and trained
            where it starts from random ones.
    """

    start_from: Annotated[str | None, Parameter(name="--from")] = None
    model: Annotated[str, Parameter(show_default=False)] = AUTO
    preset: str | None = None
    augment: Augmentation = None
    patches: int = 10
    train_backbone: Switch = False
    annotations: Annotated[str | None, Absent] = None
    images: Annotated[str | None, Absent] = None
    max_detections: Annotated[int, Absent] = MAX_DETECTIONS

    def check(self) -> None:
        """Raise ``UserError`` for values that no run can have."""
        super().check()
        if self.patches < 1:
            raise UserError(f"patches={self.patches}: must be from 1 to the number of the model's queries")
        if self.train_backbone and self.freeze_backbone:
            raise UserError("--train-backbone and --freeze-backbone exclude each other; give one of them")

    def recorded(self) -> dict[str, Any]:
        return {"patches": self.patches, "train_backbone": self.train_backbone}


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunFlags):
    """A run, complete: written to ``config.yaml`` before the first step.

    Attributes:
        data: what the user named.
        model: never ``auto``, but what it chose.
        options: the model's options that differ from the preset.
        chosen: names of options and flags that the data (anchors, ``auto``), the processor or the weights chose, not the user.
        augment: what was asked for; augmentation: every part of what that is for the preset, and the name of an own transform.
        pretrained: False, True or a path; ``auto`` only before weights were looked for.
        weights: what the backbone started from: ``source``, ``file`` and ``sha256``, or "random" as the source.
        start_hash: what the weights that it started from were, see ``boxquery.transfer.fingerprint``.
        frozen: whether stem, first stage and batch norm of the backbone keep what the source had.
        normalize: whether pixels are normalised: as in what it starts from, or as the preset has it.
        world_size: number of processes.
        patches, train_backbone: of a run that learns from images without labels, see ``PretrainFlags``; 0: of any other.
    """

    data: str
    # field(): a default would be inherited otherwise
    model: str = field()
    preset: str = field()
    recipe: RecipeName = "preset"
    options: dict[str, Any] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)
    augment: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    start_hash: str = ""
    frozen: bool = False
    normalize: bool = True
    image_size: int = field()
    batch_size: int = field()
    lr: float = field()
    workers: int = 0
    world_size: int = 1
    patches: int = 0
    train_backbone: bool = False
    length: RunLength

    @property
    def evaluation_batch(self) -> int:
        """Images that are evaluated together: no gradients are kept, so that at least four fit."""
        return max(self.batch_size, 4)

    @property
    def verb(self) -> str:
        """The command that such runs are made by."""
        return "pretrain" if self.patches else "train"

    def flags(self, length: LengthFlags) -> TrainFlags:
        """Those of the run, wherever that is, with a length."""
        own: dict[str, Any] = {flag.name: getattr(self, flag.name) for flag in fields(RunFlags)} | {"workers": None}
        own |= {flag.name: getattr(length, flag.name) for flag in fields(LengthFlags)}
        return PretrainFlags(**own, patches=self.patches, train_backbone=self.train_backbone) if self.patches else TrainFlags(**own)

    def command(self, out: Path | str, length: LengthFlags | None = None) -> str:
        """The command line that repeats the run, wherever that is; or one like it of another length."""
        flags = replace(self.flags(length or self.length.as_flags()), device="auto")
        return shlex.join(["boxquery", self.verb, self.data, *flags.words(), "--out", str(out)])

    def resume_command(self, out: Path | str) -> str:
        """The command line that resumes the run."""
        return shlex.join(["boxquery", self.verb, self.data, "--out", str(out), "--resume"])

    def places(self) -> list[str]:
        """The words of a command line that say where images and annotations are, if the user did."""
        return [word for name in ("images", "annotations") if (value := getattr(self, name)) for word in (f"--{name}", value)]

    def with_length(self, length: RunLength) -> Self:
        return replace(self, length=length)

    def write(self, folder: Path) -> None:
        """``config.yaml``; what starts with ``epochs`` is for readers and follows from the rest."""
        readable = {"epochs": self.length.total_epochs, "steps": self.length.total_steps, "command": self.command(folder)}
        if self.length.minutes is not None:
            readable["command_by_minutes"] = self.command(folder, self.length.as_minutes())
        values = {"format": FORMAT, "boxquery": version("boxquery"), **asdict(self), **readable}
        atomic_write(folder / FILE, yaml.safe_dump(values, sort_keys=False))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises ``UserError`` where there is no run or its configuration cannot be understood."""
        file = folder / FILE
        try:
            values = migrate_config(yaml.safe_load(file.read_text(encoding="utf-8")), file)
            config = cls(**_known(cls, values | {"length": RunLength(**_known(RunLength, values["length"]))}))
        except OSError as error:
            raise UserError(f"{file}: no run to resume ({error.strerror}); leave out --resume to start one") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not a run's configuration (not text)") from error
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{file}: not a run's configuration ({first_line(error)})") from error
        try:
            config.check()
        except UserError as error:
            raise UserError(f"{file}: {error}; was it edited?") from error
        return config

    def check(self) -> None:
        """Raise ``UserError`` for values that no run can have; how many workers are too many is up to the machine that resumes it."""
        self.flags(self.length).check()
        recorded(self.augmentation)
        length = self.length
        check_above_zero(
            world_size=self.world_size,
            epoch_batches=length.epoch_batches,
            batch_images=length.batch_images,
            total_batches=length.total_batches,
        )


def _known(record: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields. Raises ``TypeError`` for one of another type."""
    hints = get_type_hints(record)
    known = {name: value for name, value in values.items() if name in hints}
    for name, value in known.items():
        if not _is(value, hints[name]):
            raise TypeError(f"{name} is a {type(value).__name__}")
    return known


def _is(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(value, bool) and hint in (int, float):
        return False
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_is(value, argument) for argument in arguments)
    return isinstance(value, (int, float) if hint is float else origin or hint)
