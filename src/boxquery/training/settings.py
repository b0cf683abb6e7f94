"""What a user wished, turned into the settings of a run: what was left open is chosen, what no run can have is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from boxquery.detector import Detector
from boxquery.device import choose_device, choose_precision, default_workers
from boxquery.errors import UserError
from boxquery.flags import DEFAULT_MODEL, DEFAULT_PRESET
from boxquery.models import preset
from boxquery.training.config import FILE, UNSET, RunConfig
from boxquery.training.processes import rank, world
from boxquery.transfer import changed_options, check_same_model, fingerprint

CLOCKS = ("wall", "processor")
#: ours -> Lightning's
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}


def resolved(wish: RunConfig) -> RunConfig:
    """What was left open is the preset's, or this machine's. Raises ``UserError`` for values that no run can have."""
    wish = replace(wish, model=wish.model or DEFAULT_MODEL, preset=wish.preset or DEFAULT_PRESET)
    recipe = preset(wish.model, wish.preset).recipe
    device = choose_device(wish.device)
    open_to_choose = ("image_size", "batch_size", "lr", *(() if wish.minutes is not None else ("epochs",)))
    config = replace(
        wish,
        device=device,
        precision=choose_precision(wish.precision, device),
        by_clock=wish.minutes is not None and wish.clock == "processor" and not wish.epochs and world() == 1,
        world=world(),
        workers=default_workers(device) if wish.workers < 0 else wish.workers,
        **{name: getattr(wish, name) or getattr(recipe, name) for name in open_to_choose},
    )
    if config.images_seen is not None and (config.minutes is not None or wish.epochs):
        raise UserError("--images-seen goes with neither --minutes nor --epochs: each says how long; give one of them")
    if config.clock not in CLOCKS:
        raise UserError(f"clock={config.clock!r}: choose {' or '.join(CLOCKS)}")
    if config.patience < 0:
        raise UserError(f"patience={config.patience}: must not be below 0")
    return config


def like(origin: Detector, wish: RunConfig) -> RunConfig:
    """What was not said is as the source has it: its options, so that weights fit, and its image size, unless a preset is asked for."""
    made = origin.model.config
    check_same_model(origin.transformer, wish.model or made["name"])
    size = wish.preset or made["preset"]
    options = {name: own for name, (_, own) in changed_options(asdict(preset(made["name"], size).options), made["options"]).items()}
    return replace(
        wish,
        model=made["name"],
        preset=size,
        options=options | wish.options,
        image_size=wish.image_size or (0 if wish.preset else origin.image_size),
        start_hash=fingerprint(origin),
    )


def same(config: RunConfig, wish: RunConfig, folder: Path) -> RunConfig:
    """The run's own settings, but for where it runs and how it reads. Raises ``UserError`` where the user asked for others."""
    for name, asked in vars(wish).items():
        own = getattr(config, name)
        # the clock is of no use once minutes have become steps
        if name in ("device", "workers", "clock") or asked in (getattr(UNSET, name), own):
            continue
        if name == "batch_size" and asked > own and config.batches == 1:  # it was larger than the data
            continue
        if name == "epochs" and asked > own and config.minutes is not None:  # the minutes ended first
            continue
        if name in ("data", "start_from") and own and Path(str(asked)).resolve() == Path(own).resolve():
            continue
        # what was said is among what the source, the user and the data chose; a file makes lists of sequences
        if name == "options" and all(key in own and own[key] == value for key, value in json.loads(json.dumps(asked)).items()):
            continue
        raise UserError(f"{folder} was started with {name}={own!r}, not {asked!r}: resume it as it is, or choose another --out")
    if (processes := world()) != config.world:
        raise UserError(f"{folder} was started with {config.world} processes, not {processes}: resume it with as many")
    device = choose_device(config.device if wish.device == "auto" else wish.device)
    return replace(config, device=device, workers=config.workers if wish.workers < 0 else wish.workers)


def run_folder(out: Path | None, wish: RunConfig, resume: bool) -> Path:
    """The run folder; an existing run is never written over."""
    if out is not None:
        try:
            if not resume and (out / FILE).exists() and rank() == 0:
                raise UserError(f"{out} holds another run; go on with it by --resume, or choose another --out")
            if out.is_file():
                raise UserError(f"{out} is a file; choose another --out")
        except OSError as error:
            raise UserError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from error
        return out
    if resume:
        raise UserError("--resume needs --out, the folder of the run to go on with")
    if world() > 1:
        raise UserError("several processes need --out, a folder for all of them")
    stem = f"{wish.model or DEFAULT_MODEL}-{wish.preset or DEFAULT_PRESET}-{Path(wish.data).name}"
    taken = {p.name for p in Path("runs").iterdir()} if Path("runs").is_dir() else set()
    number = next(i for i in range(1, len(taken) + 2) if f"{stem}-{i}" not in taken)
    return Path("runs") / f"{stem}-{number}"
