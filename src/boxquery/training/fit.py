"""The main job: a folder of labelled images in, a trained detector and its report out."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch.utils.data import DataLoader

from boxquery.check.ahead import Plan, drops_queries, queries_of, sides_ahead, steps_ahead
from boxquery.check.examine import Checkup, examine
from boxquery.check.findings import Finding
from boxquery.check.raw import open_with_evidence
from boxquery.data.dataset import Data, Split
from boxquery.data.loading import DetectionDataset, EpochSampler, collate
from boxquery.data.transforms import Augment, TrainTransform
from boxquery.detector import Detector, load
from boxquery.errors import UserError
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import predict_split, readable
from boxquery.models import create_model, preset
from boxquery.report.files import write_data, write_evaluation, write_json
from boxquery.report.page import write_report
from boxquery.report.pictures import write_pictures
from boxquery.training.budget import fitted, within
from boxquery.training.config import FILE, MODEL, PRESET, RunConfig, usual_val_every
from boxquery.training.keeper import Keeper
from boxquery.training.module import Training
from boxquery.training.progress import LiveBar
from boxquery.training.state import StateFiles, held, newest
from boxquery.transfer import FILE as TRANSFERRED
from boxquery.transfer import changed_options, check_same_model, fingerprint, read_source, transfer

CLOCKS = ("wall", "processor")
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}


def start(data: Any, out: Path | None, wish: RunConfig, resume: bool) -> Detector:
    """Train as ``wish`` says; what is 0, "auto" or -1 there is chosen. See ``boxquery.training.run.train``."""
    rank = int(os.environ.get("RANK", 0))
    console = Console(stderr=True, quiet=rank > 0, soft_wrap=True)
    source = data.source if isinstance(data, Data) else str(data)
    resume = resume or _restarted(out)
    origin = None
    if wish.start_from and not resume:
        origin, remarks = read_source(wish.start_from, wish.model, wish.options)
        wish = _like(origin, wish)
        for line in remarks:
            console.print(f"note: {line}", markup=False)
    folder = _folder(out, wish, source, resume)
    wish = replace(wish, data=source)
    config = _same(RunConfig.read(folder), wish, folder) if resume else _resolved(wish)
    opened, evidence = (data, []) if isinstance(data, Data) else open_with_evidence(config.data, strict=config.strict, seed=config.seed)
    _say_data(console, opened)
    with held(folder) if rank == 0 else contextlib.nullcontext():
        _join(config)
        state, note = newest(folder) if resume else (None, "")
        if note:
            console.print(note, markup=False)
        if resume and state is None and config.start_from:
            origin, config = _same_source(config), replace(config, frozen=False)
        run = _Run(folder, config, opened, console, resume)
        if origin is not None:
            run.start_from(origin)
        checkup = run.check(evidence) if state is None else None
        if not resume:
            run.begin()
        if checkup is not None:
            run.keep(checkup)
        return run.fit(state)


def _restarted(out: Path | None) -> bool:
    """Whether torchrun has started this run again after one of its processes died: then it goes on."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and out is not None and (out / FILE).is_file()


def _same_source(config: RunConfig) -> Detector:
    """What a run started from that has no state yet. Raises ``UserError`` where it is no longer what it was."""
    origin, _ = read_source(config.start_from, config.model, config.options)
    if fingerprint(origin) != config.start_hash:
        raise UserError(f"{config.start_from} is not what the run started from any more; train again in another --out")
    return origin


class _Run:
    """Data, model and settings of one run, put together."""

    def __init__(self, folder: Path, config: RunConfig, data: Data, console: Console, resume: bool):
        self.folder, self.data, self.console = folder, data, console
        #: what became of the model that it started from, if it did
        self.transferred: dict[str, Any] = {}
        self.rank = int(os.environ.get("RANK", 0))
        torch.manual_seed(config.seed)
        self.model = create_model(config.model, classes=data.names, preset=config.preset, pretrained=config.pretrained, **config.options)
        if config.frozen:
            self.model.freeze()
        if config.freeze_backbone:
            self.model.backbone.requires_grad_(False)
        recipe = preset(config.model, config.preset).recipe
        self.recipe = replace(recipe, lr=config.lr, backbone_lr=recipe.backbone_lr * config.lr / recipe.lr)
        train, self.val = data.splits["train"], data.splits["val"]
        if drops_queries(self.model):
            _enough_queries(self.model.counts[-1], train)
        if not resume:
            size = max(min(config.batch_size, len(train) // config.world), 1)
            config = replace(config, batch_size=size, batches=max(len(train) // config.world // size, 1))
            chosen = self.model.adapt(np.concatenate(sides_ahead(train, config.image_size)))
            config = replace(config, options=config.options | chosen, chosen=sorted(chosen))
        self.config = config
        augment = Augment(scales=recipe.scales, crop=recipe.crop, colour=recipe.colour)
        transform = TrainTransform(config.image_size, augment)
        self.train = DetectionDataset(train, transform, seed=config.seed, cache=True, strict=config.strict)
        self.detector = Detector(self.model, data.names, data.ids, config.image_size)

    def plan(self, steps: int = 0) -> Plan:
        """What the check looks at the data for; ``steps`` once they are known."""
        c = self.config
        start = "" if c.start_from else "trained" if c.pretrained else "random"
        return Plan(
            c.model, c.preset, queries_of(self.model), self.model.backbone.strides[0], c.image_size, steps,
            c.batch_size * c.accumulate * c.world, c.lr, preset(c.model, c.preset).recipe.lr, start, drops_queries(self.model),
            "num_queries" if self.model.has_queries else "detections",
        )  # fmt: skip

    def check(self, evidence: list[Finding]) -> Checkup:
        """What can be seen beforehand. Raises ``Doomed`` where that is reason enough not to begin, unless the user insists."""
        assert isinstance(self.train.transform, TrainTransform)
        checkup = examine(self.data, evidence, self.plan(), self.train.transform.augment, seed=self.config.seed, picture=self.rank == 0)
        self.say(checkup.findings)
        if not self.config.force:
            checkup.stop_if_doomed()
        return checkup

    def keep(self, checkup: Checkup) -> None:
        """The check into the run folder, with what only the number of steps tells."""
        late = steps_ahead(self.plan(self.config.steps))
        self.say(late)
        checkup.add(late)
        if self.rank == 0:
            checkup.write(self.folder)

    def say(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.console.print(finding.line(), style="" if finding.level == "note" else "yellow", markup=False)

    def loader(self) -> DataLoader:
        c = self.config
        sampler = EpochSampler(len(self.train), c.seed, self.rank, c.world)
        return DataLoader(
            self.train, c.batch_size, sampler=sampler, collate_fn=collate, drop_last=True, num_workers=c.workers,
            persistent_workers=c.workers > 0, pin_memory=c.device == "cuda",
        )  # fmt: skip

    def start_from(self, origin: Detector) -> None:
        """Take what a trained model has learned, say what that was, and keep of its backbone what the preset keeps of trained weights."""
        c, names = self.config, self.data.names
        found = transfer(origin.transformer, self.detector.transformer, origin.classes, names)
        frozen = found.backbone and (c.preset == "paper" or c.freeze_backbone or origin.model.config["frozen"])
        if frozen and not c.pretrained:
            self.model.freeze()
        self.config = replace(c, frozen=frozen)
        self.transferred = found.values() | {"from": c.start_from, "hash": c.start_hash, "frozen": frozen}
        self.console.print(found.table(f"from {c.start_from}"))
        self.console.print(found.said(), markup=False)
        self.console.print(f"stem, first stage and batch norm of the backbone: {'frozen' if frozen else 'trained on'}")

    def begin(self) -> None:
        """Fix the number of steps, warn of what can be seen beforehand, write the configuration."""
        c = self.config
        if c.minutes is not None:
            c = _agreed(within(c, self.model, self.loader(), self.detector, self.val))
            whose = " of the processor" if c.clock == "processor" else ""
            self.console.print(f"{c.minutes:g} minutes{whose} are worth {c.epochs} epochs of {c.batches} steps here")
        elif c.images_seen is not None:
            steps = max(round(c.images_seen / (c.batch_size * c.world)), 1)
            epochs, batches = fitted(steps, c.batches)
            c = replace(c, epochs=epochs, batches=batches)
        c = replace(c, val_every=c.val_every or usual_val_every(c.epochs))
        self.config = replace(c, steps=-(-c.batches // c.accumulate) * c.epochs)
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.console.print(
            f"{c.model} ({c.preset}), {parameters:.1f} M parameters, {c.image_size} px short side, "
            f"{c.epochs} epochs of {c.batches} x {c.batch_size} images, {c.precision} on {c.device}"
        )
        if not c.pretrained and not c.start_from:
            self.console.print("backbone from random weights: nothing is frozen, batch norm uses the batch")
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.config.write(self.folder)

    def fit(self, state: Path | None) -> Detector:
        """Train from a state, or from the beginning."""
        c = self.config
        if state is None and self.rank == 0:
            write_data(self.folder, self.data)
            if self.transferred:
                write_json(self.folder / TRANSFERRED, self.transferred)
        module = Training(self.model, self.recipe, c.steps, [r.id for r in self.data.splits["train"]], c.seed)
        bar = LiveBar(self.console, c.batches, c.epochs)
        keeper = Keeper(self.folder, c, self.detector, self.val, bar, len(self.train))
        started = time.monotonic()
        with _quiet():
            trainer = L.Trainer(
                accelerator="gpu" if c.device == "cuda" else "cpu",
                devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
                num_nodes=c.world // int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
                strategy=DDPStrategy(gradient_as_bucket_view=True) if c.world > 1 else "auto",
                precision=PRECISIONS[c.precision],
                max_epochs=c.epochs,
                limit_train_batches=c.batches,
                accumulate_grad_batches=c.accumulate,
                gradient_clip_val=self.recipe.clip or None,
                callbacks=[keeper, bar],
                plugins=[StateFiles(module.state_dict())],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                default_root_dir=self.folder,
            )
            try:
                trainer.fit(module, self.loader(), ckpt_path=state, weights_only=True)
            except SystemExit as stopped:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from stopped
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                raise UserError(
                    f"{self.folder}: a process that reads images died ({error}), as where memory ends; go on with --resume --workers 0"
                ) from error
        if self.rank == 0:
            self._note(keeper.unreadable)
            return self.finish(time.monotonic() - started)
        return load(self.folder)

    def _note(self, unreadable: dict[str, list[str]]) -> None:
        """Into ``data.json``, and with it into the report, what only reading showed."""
        lines = [f"{name} image {line}; skipped" for name, told in unreadable.items() for line in told]
        if lines:
            write_data(self.folder, replace(self.data, skipped=[*self.data.skipped, *lines]))

    def finish(self, seconds: float) -> Detector:
        """The best model once more over val, over test where there is one, and the report."""
        best = load(self.folder)
        best.to(self.config.device)
        for name in ("val", "test"):
            if name in self.data.splits:
                split = self.data.splits[name]
                found = predict_split(best, split, batch_size=max(self.config.batch_size, 4), strict=self.config.strict)
                split, found = readable(split, found)
                metrics = evaluate(split, found, self.data.names, self.data.ids)
                write_evaluation(self.folder, name, metrics)
                self.console.print(f"{name}: AP {metrics['AP'] or 0:.3f}  AP50 {metrics['AP50'] or 0:.3f}")
                if name == "val":
                    write_pictures(self.folder, split, found, self.data.names, threshold=best.threshold)
        page = write_report(self.folder)
        self.console.print(f"report: {page}")
        return best


def _enough_queries(queries: int, split: Split) -> None:
    """Raises ``UserError`` where an image has more objects than the last layer keeps queries: every layer matches each to one."""
    fullest = max(split, key=lambda record: int((~record.ignore).sum()))
    if (most := int((~fullest.ignore).sum())) > queries:
        raise UserError(
            f"image {fullest.id!r} has {most} objects, but the last layer keeps {queries} queries: end num_queries with {most} or more"
        )


def _join(config: RunConfig) -> None:
    """Meet the other processes.

    Not left to Lightning: torchrun keeps one store over restarts, where a process that comes early would find addresses of the dead.
    """
    if config.world == 1 or torch.distributed.is_initialized():
        return
    if config.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world = next(torch.distributed.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    torch.distributed.init_process_group(
        "nccl" if config.device == "cuda" else "gloo",
        store=torch.distributed.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world,
    )


def _agreed(config: RunConfig) -> RunConfig:
    """The first process's clock decides for all."""
    if config.world == 1:
        return config
    said = [config]
    torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def _same(config: RunConfig, wish: RunConfig, folder: Path) -> RunConfig:
    """The run's own settings. Raises ``UserError`` where the user asked for others: they would not be the same run."""
    unsaid = RunConfig(
        data="", model="", preset="", image_size=0, batch_size=0, epochs=0, lr=0.0, val_every=0, workers=-1, device="auto", precision="auto"
    )  # fmt: skip
    for name, asked in vars(wish).items():
        own = getattr(config, name)
        # where it runs and how it reads may change; a batch may have been larger than the data
        if name in ("device", "workers", "batch_size") or asked in (getattr(unsaid, name), own):
            continue
        if name in ("data", "start_from") and own and Path(str(asked)).resolve() == Path(own).resolve():
            continue
        # what was said is among what the source, the user and the data chose; a file makes lists of sequences
        if name == "options" and all(key in own and own[key] == value for key, value in json.loads(json.dumps(asked)).items()):
            continue
        raise UserError(f"{folder} was started with {name}={own!r}, not {asked!r}: resume it as it is, or choose another --out")
    if (processes := int(os.environ.get("WORLD_SIZE", 1))) != config.world:
        raise UserError(f"{folder} was started with {config.world} processes, not {processes}: resume it with as many")
    return config


def _like(origin: Detector, wish: RunConfig) -> RunConfig:
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


def _resolved(wish: RunConfig) -> RunConfig:
    """What was left open is the preset's, or this machine's. Raises ``UserError`` for values that no run can have."""
    wish = replace(wish, model=wish.model or MODEL, preset=wish.preset or PRESET)
    recipe = preset(wish.model, wish.preset).recipe
    device = choose_device(wish.device)
    config = replace(
        wish,
        device=device,
        precision=choose_precision(wish.precision, device),
        clock="wall" if device == "cuda" else wish.clock,
        world=int(os.environ.get("WORLD_SIZE", 1)),
        workers=_workers(device) if wish.workers < 0 else wish.workers,
        **{name: getattr(wish, name) or getattr(recipe, name) for name in ("image_size", "batch_size", "lr", "epochs")},
    )
    for name in ("epochs", "batch_size", "accumulate", "lr", "minutes"):
        if (value := getattr(config, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value}: must be a finite number above 0")
    if config.images_seen is not None and (config.minutes is not None or wish.epochs):
        raise UserError("--images-seen, --minutes and --epochs are three ways to say how long; give one of them")
    if config.clock not in CLOCKS:
        raise UserError(f"clock={config.clock!r}: choose {' or '.join(CLOCKS)}")
    if config.patience < 0:
        raise UserError(f"patience={config.patience}: must not be below 0")
    return config


def _folder(out: Path | None, wish: RunConfig, source: str, resume: bool) -> Path:
    """The run folder; an existing run is never written over."""
    if out is not None:
        try:
            if not resume and (out / FILE).exists() and int(os.environ.get("RANK", 0)) == 0:
                raise UserError(f"{out} holds another run; go on with it by --resume, or choose another --out")
            if out.is_file():
                raise UserError(f"{out} is a file; choose another --out")
        except OSError as error:
            raise UserError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from error
        return out
    if resume:
        raise UserError("--resume needs --out, the folder of the run to go on with")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("several processes need --out, a folder for all of them")
    stem = f"{wish.model or MODEL}-{wish.preset or PRESET}-{Path(source).name}"
    taken = {p.name for p in Path("runs").iterdir()} if Path("runs").is_dir() else set()
    number = next(i for i in range(1, len(taken) + 2) if f"{stem}-{i}" not in taken)
    return Path("runs") / f"{stem}-{number}"


def choose_device(device: str) -> str:
    """ "auto", "cpu" or "cuda" -> what there is. Raises ``UserError``."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda': this PyTorch sees no CUDA device; use cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def choose_precision(precision: str, device: str) -> str:
    """What "auto" is on this device: bf16 where it is fast. Raises ``UserError``."""
    if precision not in ("auto", *PRECISIONS):
        raise UserError(f"precision={precision!r}: choose auto, {' or '.join(PRECISIONS)}")
    if precision == "auto":
        return "bf16" if _fast_bf16(device) else "float32"
    return precision


def _fast_bf16(device: str) -> bool:
    """Whether the hardware multiplies bf16 itself; elsewhere it is emulated and slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def _workers(device: str) -> int:
    """None on a processor, which is better used for the model; on CUDA what the machine has, up to eight."""
    return min(8, max((os.cpu_count() or 1) - 1, 0)) if device == "cuda" else 0


def _say_data(console: Console, data: Data) -> None:
    counts = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    console.print(f"{data.source}: {data.format}, {counts} images, {len(data.names)} classes: {', '.join(data.names[:12])}", markup=False)
    for note in data.notes:
        console.print(f"note: {note}", markup=False)
    for line in data.skipped:
        console.print(f"skipped: {line}", style="yellow", markup=False)
    for name in ("train", "val"):
        if name not in data.splits or not len(data.splits[name]):
            raise UserError(f"{data.source}: no images in split {name!r}")
    for name, split in data.splits.items():
        for record in split:  # once here, since a loss that looked would make a GPU wait in every step
            if len(record.labels) and not 0 <= record.labels.min() <= record.labels.max() < len(data.names):
                found, most = f"{record.labels.min()} to {record.labels.max()}", len(data.names) - 1
                raise UserError(f"{data.source}: split {name!r}, image {record.id}: labels {found}, where classes go from 0 to {most}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning says much that nobody asked; its warnings about workers and steps are decided here on purpose."""
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message="Grad strides do not match")  # of 1x1 convolutions, which read channels last
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
