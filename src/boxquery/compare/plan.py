"""The plan of a comparison: the same data, budget, settings and seeds for every entry. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from boxquery.augment import augment_parts
from boxquery.data.scenes.open import holds_scenes
from boxquery.errors import UserError, count
from boxquery.evaluation.metric_names import OF_IMAGES, OF_SCENES, MetricNames
from boxquery.files import atomic_write
from boxquery.flags import option_word
from boxquery.limits import check_above_zero
from boxquery.models import check_image_model, check_options, check_scene_model, list_baselines, list_models, list_scene_models, preset
from boxquery.training.config import RunConfig, SharedFlags, TrainFlags
from boxquery.training.migration import FORMAT, migrate_overrides

FILE = "compare.yaml"
#: by how much the images that an adopted run saw may differ from those planned
CLOSE = 0.02
_ENTRY = ("model", "preset", "options", "lr")
#: of a plan, the same for all of its runs; of the budgets exactly one is given
_SETTINGS = (
    "augment", "image_size", "square", "batch_size", "backbone_lr_factor", "pretrained", "freeze_backbone", "precision", "strict",
    "images", "annotations",
)  # fmt: skip
_BUDGETS = ("epochs", "minutes", "images_seen")


@dataclass(frozen=True, kw_only=True)
class BudgetFlags:
    """The budget of every run of a comparison, one of three, and the presets; ``None`` is not given.

    Attributes:
        minutes: Budget of every run in CPU minutes, which other load does not shorten; on a GPU in minutes of wall time.
        epochs: Budget in passes over the training images. Default, without another budget: the presets', which must agree.
        images_seen: Budget in training images; the last epoch is cut short.
        preset: Size and recipe: paper, small, tiny, or a further size that is published, see `boxquery models NAME`.
    """

    minutes: float | None = None
    epochs: int | None = None
    images_seen: int | None = None
    preset: str = "small"


@dataclass(frozen=True, kw_only=True)
class CompareFlags(SharedFlags, BudgetFlags):
    """Budget and settings of every run of a comparison."""

    def check(self) -> None:
        """Raise ``UserError`` for values that no comparison can have."""
        super().check()
        check_above_zero(**{name: getattr(self, name) for name in _BUDGETS})
        if sum(getattr(self, name) is not None for name in _BUDGETS) > 1:
            raise UserError("--minutes, --epochs and --images-seen each set the budget of a run; give one of them")


@dataclass(frozen=True)
class Entry:
    """A model with its settings.

    Attributes:
        label: its name in the report; unique, and the start of its run folders' names.
        options: the model's options that differ from the preset.
        lr: learning rate of the transformer; None until resolved: the preset's.
    """

    label: str
    model: str
    preset: str
    options: dict[str, Any]
    lr: float | None

    @property
    def metrics(self) -> MetricNames:
        """What is measured of the model: that of images, or of scenes of several cameras."""
        return OF_SCENES if self.model in list_scene_models() else OF_IMAGES

    def settings(self) -> dict[str, Any]:
        """Everything but the label."""
        return {name: getattr(self, name) for name in _ENTRY}


@dataclass(frozen=True)
class ComparisonPlan:
    """What is compared, complete: ``compare.yaml``.

    Attributes:
        data: as given by the user.
        seeds: every entry runs with each of them.
        epochs, minutes, images_seen: the budget, one of the three; minutes are CPU time (on a GPU wall time).
        image_size, square, batch_size, precision, device, ...: the same for all, as ``train`` takes them.
        pretrained: False, True or a path, never ``auto``: all entries start alike.
    """

    data: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    epochs: int | None
    minutes: float | None
    images_seen: int | None
    image_size: int
    batch_size: int
    pretrained: bool | str
    freeze_backbone: bool
    device: str
    precision: str
    strict: bool
    backbone_lr_factor: float | None = None
    images: str | None = None
    annotations: str | None = None
    square: bool = False
    augment: dict[str, Any] = field(default_factory=dict)

    def runs(self) -> list[PlannedRun]:
        """All runs; every entry with one seed before the next seed, so that finished runs can be compared."""
        return [PlannedRun(entry, seed) for seed in self.seeds for entry in self.entries]

    @property
    def metrics(self) -> MetricNames:
        """What is measured, the same of all entries."""
        return self.entries[0].metrics

    def budget(self) -> str:
        """The budget, for people."""
        if self.epochs is not None:
            return count(self.epochs, "epoch")
        if self.images_seen is not None:
            return count(self.images_seen, self.metrics.unit)
        return f"{self.minutes:g} {'CPU ' if self.device == 'cpu' else ''}minute{'s' * (self.minutes != 1)}"

    def command_line(self, planned: PlannedRun, out: Path, timed: RunConfig | None = None) -> list[str]:
        """The arguments of ``boxquery`` that train a run of this plan.

        Args:
            timed: another seed's run of the same entry, whose minutes have become steps: all seeds share its schedule and evaluations.
        """
        common = {name: getattr(self, name) for name in (*_SETTINGS, *_BUDGETS, "device")}
        flags = TrainFlags(**planned.entry.settings(), **common, seed=planned.seed, clock="wall" if self.minutes is None else "cpu")
        if timed is not None:
            flags = replace(flags, schedule_steps=timed.length.schedule_steps, val_every=timed.length.val_every)
        return ["train", self.data, *flags.words(), "--out", str(out)]

    def fits(self, planned: PlannedRun, config: RunConfig) -> bool:
        """Whether a run is the planned one by its configuration, whatever its device and workers."""
        wanted = planned.entry.settings() | {name: getattr(self, name) for name in _SETTINGS}
        planned_options = {name: value for name, value in config.options.items() if name not in config.chosen}
        own = vars(config) | {"square": bool(config.square), "options": planned_options}
        if any(_plain(own[name]) != _plain(value) for name, value in wanted.items()):
            return False
        length, usual = config.length, (planned.seed, 1, 0, 1)
        if (config.seed, length.accumulate, config.patience, config.world_size) != usual or not same_data(self.data, config.data):
            return False
        if self.epochs is not None:
            return length.epochs == self.epochs and length.minutes is None
        if self.images_seen is not None:
            return abs(length.images_total - self.images_seen) <= CLOSE * self.images_seen
        return length.minutes == self.minutes and length.ends_by_clock

    def values(self) -> dict[str, Any]:
        """As in ``compare.yaml``: entries by label."""
        values = asdict(self)
        entries = {entry.pop("label"): entry for entry in values.pop("entries")}
        return {**values, "seeds": list(self.seeds), "entries": entries}

    def write(self, folder: Path) -> None:
        """Raises ``UserError`` where the folder cannot be written."""
        atomic_write(folder / FILE, yaml.safe_dump({"format": FORMAT, **self.values()}, sort_keys=False, allow_unicode=True))

    @classmethod
    def read(cls, folder: Path) -> ComparisonPlan:
        """Raises ``UserError`` for a folder without a comparison, or an invalid plan."""
        try:
            given = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
            entries = tuple(Entry(str(label), **settings) for label, settings in given.pop("entries").items())
            if (number := given.pop("format", 1)) < FORMAT:
                entries = tuple(replace(own, options=migrate_overrides(own.options, own.model, own.preset, number)) for own in entries)
            return cls(**{**given, "entries": entries, "seeds": tuple(given["seeds"])})
        except OSError as error:
            raise UserError(f"{folder}: no comparison there ({FILE}: {error.strerror}); name the folder that compare wrote") from error
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / FILE}: not a comparison's plan ({str(error).splitlines()[0]})") from error

    def merge(self, other: ComparisonPlan, folder: Path) -> ComparisonPlan:
        """This plan with the other's additional entries and seeds. Raises ``UserError`` where they contradict each other."""
        for name in (each.name for each in fields(self)):
            if name in ("entries", "seeds"):
                continue
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not (name == "data" and same_data(mine, theirs)):
                raise UserError(f"{folder} compares with {name}={mine!r}, not {theirs!r}: choose another --out")
        known = {entry.label: entry for entry in self.entries}
        for entry in other.entries:
            if _plain(known.setdefault(entry.label, entry).settings()) != _plain(entry.settings()):
                raise UserError(f"{folder}: {entry.label!r} is {known[entry.label].settings()} there, not {entry.settings()}; rename one")
        return replace(self, entries=tuple(known.values()), seeds=tuple(dict.fromkeys((*self.seeds, *other.seeds))))


@dataclass(frozen=True)
class PlannedRun:
    """An entry with a seed."""

    entry: Entry
    seed: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.entry.label}-{self.seed}"


def same_data(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _plain(value: Any) -> Any:
    """As YAML keeps it: tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def entries_of(models: Sequence[str], file: Path | None, sweep: Mapping[str, Sequence[Any]], flags: CompareFlags) -> list[Entry]:
    """The entries: models by name, one model over the values of an option, or those of a file. Raises ``UserError``.

    Preset, options and learning rate of the flags apply to all that do not say otherwise.
    """
    if (bool(models) + (file is not None)) != 1:
        raise UserError("name what to compare: --models A,B,... (one model with --sweep NAME=a,b,...) or --plan FILE")
    common, options = {"preset": flags.preset, "lr": flags.lr}, flags.options or {}
    if file is not None:
        if sweep:
            raise UserError("--sweep goes with --models and one model; a plan file lists its entries itself")
        entries = [_entry(label, given, flags, file) for label, given in _file(file).items()]
    elif sweep:
        if len(models) != 1 or len(sweep) != 1:
            raise UserError("--sweep needs one model in --models, and one option: --sweep num_queries=10,30,100")
        (name, values), (model,) = next(iter(sweep.items())), models
        entries = [Entry(_label(option_word(name, value)), model, options={**options, name: value}, **common) for value in values]
    else:
        entries = [Entry(model, model, options=dict(options), **common) for model in models]
    labels = [entry.label for entry in entries]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"{', '.join(sorted(twice))}: named twice; in a plan file (--plan) each entry has its own label")
    if not entries:
        raise UserError("nothing to compare: the list is empty")
    return entries


def _label(text: str) -> str:
    return re.sub(r"[^\w=.+-]+", "_", text).strip("_")[:80]


def _file(file: Path) -> dict[Any, Any]:
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(given, dict):
        raise UserError(f"{file}: expected labels with settings ({', '.join(_ENTRY)}), found a {type(given).__name__}")
    return given


def _entry(label: Any, given: Any, flags: CompareFlags, file: Path) -> Entry:
    given = {} if given is None else given
    if not isinstance(label, str) or label != _label(label) or label.startswith("."):
        raise UserError(f"{file}: {label!r} is not a label; use letters, digits and - _ = . + (it names folders)")
    unknown = sorted(map(str, given.keys() - set(_ENTRY))) if isinstance(given, dict) else [repr(given)]
    if unknown:
        raise UserError(f"{file}: {label}: {', '.join(unknown)} is not known; an entry has {', '.join(_ENTRY)}")
    own = given.get("options") or {}
    if not isinstance(own, dict) or not all(isinstance(given.get(name, ""), str) for name in ("model", "preset")):
        raise UserError(f"{file}: {label}: model and preset are names, options is a mapping")
    lr = given.get("lr", flags.lr)
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf):
        raise UserError(f"{file}: {label}: lr={lr!r} must be a number above 0 (in YAML 5.0e-4, not 5e-4)")
    return Entry(label, given.get("model", label), given.get("preset", flags.preset), {**(flags.options or {}), **own}, lr)


def resolved_plan(
    data: str, entries: Sequence[Entry], seeds: Iterable[int], flags: CompareFlags, say: Callable[[str], Any] = lambda line: None
) -> ComparisonPlan:
    """The plan; what the flags do not give is the presets', or suits this machine; ``say`` is told what that was. Imports torch.

    Raises:
        UserError: an unknown model, preset or option; models of images and of scenes, or of other data than these; presets that differ in
            image or batch size, or in epochs if no budget is given.
    """
    from boxquery.device import choose_device, choose_precision
    from boxquery.models.options import with_options

    device = choose_device(flags.device)
    settings = {name: getattr(flags, name) for name in (*_SETTINGS, *_BUDGETS)}
    settings |= {"augment": augment_parts(flags.augment), "device": device, "precision": choose_precision(flags.precision, device)}
    not_given = [name for name in ("image_size", "square", "batch_size") if settings[name] is None]
    not_given += ["epochs"] * all(settings[name] is None for name in _BUDGETS)
    check_kind(data, [entry.model for entry in entries])
    known = [preset(entry.model, entry.preset) for entry in entries]
    for entry, own in zip(entries, known, strict=True):
        with_options(own.options, entry.options, entry.label)
        check_options(entry.model, entry.preset, entry.options)
    for name in not_given:
        settings[name], *others = sorted({getattr(own.recipe, name) for own in known})
        if others:
            values = ", ".join(map(str, (settings[name], *others)))
            raise UserError(f"the presets differ in {name} ({values}): give --{name.replace('_', '-')} for all")
    settings["pretrained"] = _start(entries, flags.pretrained, say)
    resolved = (replace(entry, lr=entry.lr or own.recipe.lr) for entry, own in zip(entries, known, strict=True))
    return ComparisonPlan(data=data, entries=tuple(resolved), seeds=tuple(seeds), **settings)


def check_kind(data: str, models: Sequence[str]) -> None:
    """Raises ``UserError`` for models of images beside models of scenes, or where the data hold the other."""
    kinds = {True: list_scene_models(), False: [*list_models(), *list_baselines()]}
    scenes, images = ([name for name in models if name in known] for known in (kinds[True], kinds[False]))
    if scenes and images:
        raise UserError(
            f"{scenes[0]} finds 3-D boxes in scenes of several cameras, and {images[0]} boxes in images, which no data set has both of; "
            f"compare models of scenes ({', '.join(kinds[True])}) or models of images with each other"
        )
    for name in models:
        (check_scene_model if holds_scenes(data) else check_image_model)(name)


def _start(entries: Sequence[Entry], wanted: bool | str, say: Callable[[str], Any]) -> bool | str:
    """What the backbones of all entries start from: with ``auto`` released weights only where all have some. Raises ``UserError``."""
    from boxquery.training.pretrained import choose_weights

    for entry in entries:
        if choose_weights(entry.model, entry.preset, entry.options, wanted, say) is None:
            return False
    return True if wanted == "auto" else wanted
