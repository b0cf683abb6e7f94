"""From the flags of a user to the settings of a run: what was not given is chosen, what no run can have is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from boxquery.augment import augment_parts, name_of
from boxquery.auto import DataFacts, Given, choose, fit_rate
from boxquery.data.dataset import Data
from boxquery.device import Processor, choose_device, choose_precision, default_workers
from boxquery.errors import UserError
from boxquery.fine_tuning import find_start, from_shapes, tune
from boxquery.flags import DEFAULT_PRESET, OUR_PRESETS, check_workers
from boxquery.model_folder import Loaded, load
from boxquery.models import preset
from boxquery.models.recipes import recipe_of
from boxquery.training.config import FILE, PretrainFlags, RunConfig, RunFlags, TrainFlags
from boxquery.training.processes import rank, world_size
from boxquery.training.run_length import LengthFlags, RunLength
from boxquery.transfer import changed_options, check_same_model


class Automatic(NamedTuple):
    """What ``auto`` chose: ``flags`` with it in place of those that were not given, names of the ``chosen`` ones, ``lines`` that say so,
    and the ``origin`` that the run starts from, if there is one."""

    flags: TrainFlags
    chosen: list[str]
    lines: list[str]
    origin: Any = None


def automatic(requested: TrainFlags, data: Data, say: Callable[[str], Any]) -> Automatic:
    """What ``auto`` chooses for the data and this machine.

    Of several processes only the first one looks for a start, see ``boxquery.training.fit``. Raises ``UserError``.
    """
    asked = _given(requested)
    facts, processor = DataFacts.of(data.splits["train"]), Processor.of(choose_device(requested.device))
    start = find_start(facts, processor, asked, say) if requested.pretrained == "auto" and rank() == 0 else None
    if start is not None:
        try:
            origin = load(start[1].fetch(large=requested.download, say=say), say=lambda line: say(f"note: {line}"))
            if (theirs := origin.model.config["name"]) != start[0].model:
                raise UserError(f"{start[0].name} in the hub's cache is a {theirs}, not the {start[0].model} that it should be")
        except UserError as error:
            say(f"note: no weights trained on COCO to start from: {error}")
        else:
            choice = tune(facts, processor, asked, *start)
            return Automatic(like(origin, replace(requested, **choice.flags())), choice.chosen, choice.lines, origin)
    choice = choose(facts, processor, asked)
    if requested.pretrained == "auto":
        choice = from_shapes(choice, asked, data.source)
    chosen = {name: value for name, value in choice.flags().items() if value is not None}
    origin = load(choice.start_from) if choice.start_from else None
    return Automatic(replace(requested, **chosen), choice.chosen, choice.lines, origin)


def with_rate(requested: TrainFlags, data: Data, say: Callable[[str], Any]) -> tuple[TrainFlags, list[str]]:
    """Flags with a learning rate for the objects of a step, as ``auto`` chooses it, where "small" or "tiny" is trained and none is given.

    Also returns the names of the flags that were chosen. A published recipe keeps its own rate.
    """
    size = requested.preset or DEFAULT_PRESET
    if requested.lr is not None or size not in OUR_PRESETS:
        return requested, []
    recipe, split = recipe_of(preset(requested.model, size), requested.recipe or "preset"), data.splits["train"]
    objects = sum(int((~record.ignore).sum()) for record in split) / len(split)
    lr, why = fit_rate(objects, _given(requested), recipe, min(requested.batch_size or recipe.batch_size, len(split)))
    if lr == recipe.lr:
        return requested, []
    say(f"{why}; the preset's is {recipe.lr:g} (--lr)")
    return replace(requested, lr=lr), ["lr"]


def _given(requested: TrainFlags) -> Given:
    own = {flag.name: getattr(requested, flag.name) for flag in fields(Given) if flag.name != "processes"}
    return Given(**own, processes=world_size())


def resolve(data: str, requested: TrainFlags, chosen: Sequence[str] = (), origin: Loaded | None = None) -> RunConfig:
    """The settings of a run: flags that were not given are the preset's, or suit this machine. Raises ``UserError``.

    Args:
        requested: with a model's name, see ``automatic``.
        chosen: names of the flags and options that ``auto`` chose.
        origin: what it starts from, whose images were normalised or not.
    """
    model, size = requested.model, requested.preset or DEFAULT_PRESET
    name, device = requested.recipe or "preset", choose_device(requested.device)
    recipe = recipe_of(preset(model, size), name)
    asked, by_preset = vars(requested), ("image_size", "square", "batch_size", "lr")
    values: dict[str, Any] = {flag.name: asked[flag.name] for flag in fields(RunFlags)}
    values |= {name: getattr(recipe, name) for name in by_preset if values[name] is None}
    values |= {"model": model, "preset": size, "recipe": name, "device": device, "precision": choose_precision(requested.precision, device)}
    values |= {"augment": {name: value for name, value in augment_parts(requested.augment).items() if name != "own"}}
    values |= {"options": requested.options or {}, "workers": default_workers(device) if requested.workers is None else requested.workers}
    values |= {"normalize": recipe.normalize if origin is None else origin.preprocessing.mean is not None}
    long: dict[str, Any] = {flag.name: asked[flag.name] for flag in fields(LengthFlags)} | {"schedule_steps": _schedule(requested)}
    if requested.epochs is None and requested.minutes is None and requested.images_seen is None:
        long["epochs"] = recipe.epochs
    length = RunLength(**long)
    if length.ends_by_clock and world_size() > 1:
        raise UserError("--clock cpu counts the time of one process; with several give --clock wall")
    return RunConfig(**values, **requested.recorded(), data=data, world_size=world_size(), length=length, chosen=list(chosen))


def like(origin: Loaded, requested: TrainFlags) -> TrainFlags:
    """Flags that were not given are as in the source: its options, so that weights fit, and its image size, unless a preset is given."""
    made = origin.model.config
    check_same_model(origin.transformer, requested.named_model or made["name"], f"--from {requested.start_from}")
    size = requested.preset or made["preset"]
    options = {name: own for name, (_, own) in changed_options(asdict(preset(made["name"], size).options), made["options"]).items()}
    return replace(
        requested,
        model=made["name"],
        preset=size,
        options=options | (requested.options or {}),
        image_size=requested.image_size or (None if requested.preset else origin.preprocessing.image_size),
        square=origin.preprocessing.square if requested.square is None and not requested.preset else requested.square,
    )


def same(config: RunConfig, data: str | None, requested: TrainFlags, folder: Path) -> RunConfig:
    """The run's own settings, except for where it runs and how it reads. Raises ``UserError`` where the flags contradict them."""
    known = vars(config.length) | vars(config)
    if bool(config.patches) != isinstance(requested, PretrainFlags):
        raise UserError(f"{folder} is a run of boxquery {config.verb}; resume it with {config.resume_command(folder)}")
    given = {flag.name: value for flag in fields(requested) if (value := getattr(requested, flag.name)) not in (None, flag.default)}
    for name, asked in {**({} if data is None else {"data": data}), **given}.items():
        # the clock is of no use once minutes have become steps
        if name in ("device", "workers", "clock", "download") or asked == (own := known[name]):
            continue
        if name == "batch_size" and asked > own and config.length.epoch_batches == 1:  # it was larger than the data
            continue
        if name == "schedule_steps" and _schedule(requested) == own:
            continue
        is_path = name in ("data", "start_from", "pretrained") and isinstance(asked, str) and isinstance(own, str)
        if is_path and Path(asked).resolve() == Path(own).resolve():
            continue
        # options are among what the source, the user and the data chose; a file makes lists of sequences
        if name == "options" and all(key in own and own[key] == value for key, value in json.loads(json.dumps(asked)).items()):
            continue
        if name == "augment" and _same_augment(config, augment_parts(asked), folder):
            continue
        raise UserError(f"{folder} was started with {name}={own!r}, not {asked!r}: resume it as it is, or choose another --out")
    if config.augmentation.get("own") and "own" not in augment_parts(requested.augment):
        name = config.augmentation["own"]
        raise UserError(f"{folder} was started with the own transform {name}: resume it in Python with augment={name.rpartition('.')[2]}")
    if (processes := world_size()) != config.world_size:
        raise UserError(f"{folder} was started with {config.world_size} processes, not {processes}: resume it with as many")
    if config.length.batch_images != config.batch_size * processes:
        raise UserError(
            f"{folder / FILE}: batch_images={config.length.batch_images} contradicts batch_size={config.batch_size}; was it edited?"
        )
    device = choose_device(config.device if requested.device == "auto" else requested.device)
    workers = config.workers if requested.workers is None else requested.workers
    check_workers(workers)
    return replace(config, device=device, workers=workers)


def _same_augment(config: RunConfig, asked: dict[str, Any], folder: Path) -> bool:
    """Whether what was asked for is part of what the run was started with. Raises ``UserError`` for another own transform."""
    known, own = config.augmentation.get("own"), asked.pop("own", None)
    if own is not None and name_of(own) != known:
        raise UserError(f"{folder} was started with {known or 'no own transform'}, not {name_of(own)}: resume it as it is")
    return all(config.augment.get(name) == value for name, value in asked.items())


def _schedule(requested: TrainFlags) -> dict[int, int]:
    steps = requested.schedule_steps
    return {0: steps} if isinstance(steps, int) else dict(steps or {})


def check_folder(out: Path | None, resume: bool) -> None:
    """Raise ``UserError`` for a run folder that cannot be: an existing run is never overwritten."""
    if out is None:
        if resume:
            raise UserError("--resume needs --out, the folder of the run to resume")
        if world_size() > 1:
            raise UserError("several processes need --out, a folder for all of them")
        return
    try:
        if not resume and (out / FILE).exists() and rank() == 0:
            raise UserError(f"{out} holds another run; resume it with --resume, or choose another --out")
        if out.is_file():
            raise UserError(f"{out} is a file; choose another --out")
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from error


def new_folder(config: RunConfig) -> Path:
    """A folder under ``runs/`` that there is not yet, named after the run."""
    stem = f"{config.model}-{config.preset}-{Path(config.data).name}"
    taken = {p.name for p in Path("runs").iterdir()} if Path("runs").is_dir() else set()
    number = next(i for i in range(1, len(taken) + 2) if f"{stem}-{i}" not in taken)
    return Path("runs") / f"{stem}-{number}"
