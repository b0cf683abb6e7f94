"""A run from beginning to end: a folder of labelled images in, a trained detector and its report out."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch.utils.data import DataLoader

from boxquery.augment import augment_parts, augmentation, name_of, recorded
from boxquery.auto import SCENE_MODEL
from boxquery.check.annotation_format import open_checked
from boxquery.check.findings import Finding
from boxquery.data.dataset import AnyData, Data
from boxquery.data.loading import EpochSampler
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.open import holds_scenes, only_images, open_scenes
from boxquery.data.scenes.records import SceneData
from boxquery.errors import UserError, count, first_line
from boxquery.evaluation.predictions import drop_unreadable, warn_skipped
from boxquery.files import write_json
from boxquery.flags import DEFAULT_PRESET, OUR_PRESETS
from boxquery.model_folder import Loaded
from boxquery.models import check_image_model, check_options, check_scene_model, preset
from boxquery.models.recipes import recipe_of
from boxquery.parts.weights import BackboneWeights
from boxquery.progress import stderr_console
from boxquery.report.page import write_report
from boxquery.report.run_files import DATA
from boxquery.training.config import FILE, RunConfig, RunFlags, TrainFlags
from boxquery.training.epoch_end import EpochEnd
from boxquery.training.image_task import ImageTask
from boxquery.training.module import Training
from boxquery.training.preflight import check, report_data, report_findings
from boxquery.training.pretrained import recorded_weights, with_own_file, with_weights
from boxquery.training.processes import attempt, everywhere, join, local_world_size, rank
from boxquery.training.progress import Heartbeat, LiveBar
from boxquery.training.run_length import Costs
from boxquery.training.scene_task import SceneTask
from boxquery.training.settings import check_folder, like, new_folder, resolve, same
from boxquery.training.state import StateFiles, finished_epochs, latest_checkpoint, run_lock
from boxquery.training.task import Task
from boxquery.training.timing import announcement, evaluated_images, evaluation_seconds, measure_costs
from boxquery.transfer import TRANSFER_FILE, fingerprint, read_source, transfer

Opener = Callable[[Any, RunFlags], tuple[Task[Any], list[Finding]]]
"""From opened data, or what names it, and flags to the task, and what the raw files show."""


def open_task(source: Any, flags: RunFlags) -> tuple[Task[Any], list[Finding]]:
    """What is learned from data is decided by what they hold. Raises ``UserError``."""
    scenes = isinstance(source, SceneData) or (not isinstance(source, Data) and holds_scenes(source))
    if flags.named_model is not None:
        (check_scene_model if scenes else check_image_model)(flags.model)
    elif scenes and flags.preset is not None:
        preset(SCENE_MODEL, flags.preset)  # before scenes are drawn or read
    if isinstance(source, AnyData):
        return SceneTask(source) if isinstance(source, SceneData) else ImageTask(source), []
    if scenes:
        only_images({name: getattr(flags, name) for name in ("images", "annotations")}, source)
        return SceneTask(open_scenes(source, strict=flags.strict)), []
    data, findings = open_checked(str(source), strict=flags.strict, images=flags.images, annotations=flags.annotations)
    return ImageTask(data), findings


def start(source: Any, out: Path | None, requested: TrainFlags, resume: bool, opener: Opener = open_task) -> Any:
    """Train as requested. See ``boxquery.training.run.train``."""
    console = stderr_console(quiet=rank() > 0)
    with Heartbeat(console) as heartbeat:
        return _start(source, out, requested, resume, opener, console, heartbeat)


def _start(
    source: Any, out: Path | None, requested: TrainFlags, resume: bool, opener: Opener, console: Console, heartbeat: Heartbeat
) -> Any:
    opened = isinstance(source, AnyData)
    data = source.source if opened else None if source is None else str(source)
    # torchrun has started it again after one of its processes died: then it is resumed
    resume = resume or (attempt() > 0 and out is not None and (out / FILE).is_file())
    origin = None
    if requested.start_from and not resume:
        origin, remarks = read_source(
            requested.start_from, requested.named_model or "", requested.options or {}, download=requested.download
        )  # fmt: skip
        requested = like(origin, requested)
        for line in remarks:
            console.print(f"note: {line}", markup=False)
    check_folder(out, resume)
    config = same(RunConfig.read(out), data, requested, out) if resume and out is not None else None
    if config is None and requested.named_model is not None:
        check_options(requested.model, requested.preset or DEFAULT_PRESET, requested.options or {})  # before data are read
    task, findings = opener(source if opened else config.data if config else str(data), config or requested)
    report_data(console, task)
    if config is None:
        config, origin = _new_config(str(data), requested, task, console, origin)
    folder = out or new_folder(config)
    with run_lock(folder) if rank() == 0 else contextlib.nullcontext():
        join(config.device)
        state, note = latest_checkpoint(folder) if resume else (None, "")
        if note:
            console.print(note, markup=False)
        weights = None
        if not resume:
            # the first process asks the hub; the others find what it has found, or fetch it where they are on another machine
            config = with_own_file(everywhere(with_weights(config, _line(console)) if rank() == 0 else config)[0])
            if config.start_from and origin is None:
                origin, _ = read_source(config.start_from, download=requested.download)
        if state is None:
            weights = recorded_weights(config)
        if resume and state is None and config.start_from:
            origin, config = _same_source(config), replace(config, frozen=False)
        if (own := augment_parts(requested.augment).get("own")) is not None and config.workers:
            _check_sendable(own)
        run = Run(folder, config, task, console, heartbeat, resume, weights, own)
        if origin is not None:
            if requested.pretrained != "auto":
                word = "none" if requested.pretrained is False else "required" if requested.pretrained is True else requested.pretrained
                console.print(
                    f"note: --from counts before --pretrained {word}: a backbone that fits is that of {config.start_from}", markup=False
                )
            run.start_from(origin)
        run.plan()
        heartbeat.doing = "checking the data"
        checked = check(task, run.config, run.model, run.augment, findings) if state is None else None
        try:
            if not resume:
                run.begin()
            if checked is not None:
                if rank() == 0:
                    checked.write(folder)
                report_findings(console, checked)
            return run.fit(state)
        except KeyboardInterrupt:
            if not (folder / FILE).is_file():
                raise
            kept = finished_epochs(folder)
            lost = "no epoch had finished, so of the run only its settings are kept"
            what = f"{count(kept, 'finished epoch')} kept, one that had begun is lost" if kept else lost
            how = ("resume" if kept else "begin again") + " with" + " torchrun and" * (config.world_size > 1)
            raise KeyboardInterrupt(f"{what}\n{how}: {run.config.resume_command(folder)}") from None


def _new_config(data: str, requested: TrainFlags, task: Task, console: Console, origin: Loaded | None) -> tuple[RunConfig, Loaded | None]:
    """The settings of a new run, chosen where they are not given, and what it starts from."""
    if requested.named_model is not None:
        requested, chosen = task.with_rate(requested, _line(console))
        return resolve(data, requested, chosen, origin), origin
    requested, chosen, lines, origin = task.automatic(requested, _line(console))
    for line in lines:
        console.print(line, markup=False)
    return resolve(data, requested, chosen, origin), origin


def _line(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False)


def _check_sendable(own: Callable[..., Any]) -> None:
    """Raises ``UserError`` for a function that processes which read images cannot be given, where they are not forked from this one."""
    if multiprocessing.get_start_method() == "fork":
        return
    try:
        pickle.dumps(own)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"augment: {name_of(own)} cannot be sent to the processes that read images ({first_line(error)}): define it at the top of a "
            "module, or give workers=0"
        ) from error


def _same_source(config: RunConfig) -> Loaded:
    """What a run started from that has no state yet. Raises ``UserError`` where it is no longer what it was."""
    origin, _ = read_source(config.start_from or "", config.model, config.options)
    if fingerprint(origin) != config.start_hash:
        raise UserError(f"{config.start_from} is not what the run started from any more; train again in another --out")
    return origin


class Run:
    """Task, model and settings of one run.

    Args:
        heartbeat: what is being done, for those without a terminal.
        weights: what the backbone of a run starts from that has no state yet; None: random values.
        own: the user's own transform of training images, if there is one.
    """

    def __init__(
        self, folder: Path, config: RunConfig, task: Task[Any], console: Console, heartbeat: Heartbeat, resume: bool,
        weights: BackboneWeights | None = None, own: Callable[..., Any] | None = None,
    ):  # fmt: skip
        self.folder, self.task, self.console, self.heartbeat = folder, task, console, heartbeat
        #: measured where minutes had to become steps
        self.costs: Costs | None = None
        #: what became of the model that it started from, if it did
        self.transferred: dict[str, Any] = {}
        torch.manual_seed(config.seed)
        self.model = task.build(config, weights)
        if config.frozen or config.pretrained:
            self.model.freeze()
        if config.freeze_backbone:
            self.model.backbone.requires_grad_(False)
        recipe = recipe_of(preset(config.model, config.preset, pretrained=bool(config.pretrained)), config.recipe)
        factor = config.backbone_lr_factor or recipe.backbone_lr / recipe.lr
        self.recipe = replace(recipe, lr=config.lr, backbone_lr=config.lr * factor)
        preprocessing = Preprocessing.of(config.image_size, square=bool(config.square), normalize=config.normalize)
        if not resume:
            each = len(task.train) // config.world_size
            size = max(min(config.batch_size, each), 1)
            length = config.length.with_data(max(each // size, 1), size * config.world_size)
            chosen = {name: value for name, value in task.model_options().items() if name not in config.options}
            chosen |= task.fit_to_data(self.model, preprocessing)
            options = config.options | chosen
            values = augmentation(task.augment(config), recipe.augment).values() | {"own": None if own is None else name_of(own)}
            config = replace(
                config, augmentation=values, batch_size=size, length=length, options=options, chosen=sorted({*config.chosen, *chosen})
            )
        self.config = config
        self.augment = recorded(config.augmentation, own)
        self.train = task.dataset(config, self.model, preprocessing, self.augment)
        self.detector = task.detector(self.model, preprocessing)

    def sampler(self) -> EpochSampler:
        c = self.config
        shapes = self.task.shapes() if self.recipe.group_shapes and not c.square else None
        return EpochSampler(len(self.task.train), c.seed, rank(), c.world_size, shapes=shapes, group=c.batch_size * c.world_size)

    def loader(self, sampler: EpochSampler) -> DataLoader:
        c = self.config
        return DataLoader(
            self.train, c.batch_size, sampler=sampler, collate_fn=self.task.collate, drop_last=True, num_workers=c.workers,
            persistent_workers=c.workers > 0, pin_memory=c.device == "cuda",
        )  # fmt: skip

    def start_from(self, origin: Loaded) -> None:
        """Take what a trained model has learned, say what that was, and keep of its backbone what the preset keeps of trained weights."""
        c, names = self.config, self.detector.classes
        found = transfer(origin.transformer, self.detector.transformer, origin.classes, names)
        frozen = bool(c.pretrained) or (
            found.backbone and (c.preset not in OUR_PRESETS or c.freeze_backbone or origin.model.config["frozen"])
        )
        if frozen:
            self.model.freeze()
        self.config = replace(c, frozen=frozen, start_hash=fingerprint(origin))
        self.transferred = asdict(found) | {"from": c.start_from, "hash": self.config.start_hash, "frozen": frozen}
        self.console.print(found.table(f"from {c.start_from}"))
        self.console.print(found.summary(), markup=False)
        self.console.print(self._backbone())
        theirs, ours = ((p.mean, p.std, p.interpolation) for p in (origin.preprocessing, self.detector.preprocessing))
        if theirs != ours:
            self.console.print(f"note: {c.start_from} had mean, standard deviation and interpolation {theirs}; here they are {ours}")

    def plan(self) -> None:
        """Turn the minutes of a new run into steps."""
        c = self.config
        if c.length.needs_timing:
            self.costs = self.measure_costs()
            self.config = c.with_length(everywhere(c.length.plan(self.costs))[0])  # the first process's clock decides for all

    def measure_costs(self) -> Costs:
        self.heartbeat.doing = "timing a few steps"
        with self._readers():
            return measure_costs(self.config, self.recipe, self.model, self.loader(self.sampler()), self.detector, self.task)

    def begin(self) -> None:
        """Say what will be trained, and write the configuration."""
        c = self.config
        shape = "squares" if c.square else "short side"
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.console.print(f"{c.model} ({c.preset}), {parameters:.1f} M parameters, {c.image_size} px {shape}, {c.precision} on {c.device}")
        if c.pretrained:
            left = ", ".join(self.model.backbone.left_out)
            used = f"{BackboneWeights(**c.weights)}{f', without its {left}' if left else ''}"
            self.console.print(f"backbone from {used}", markup=False)
        if not c.start_from:
            self.console.print(self._backbone())
        costs = self.costs or (self.measure_costs() if c.length.minutes is None else None)
        for line in announcement(c, costs):
            self.console.print(line, markup=False, highlight=False)
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            c.write(self.folder)

    def _backbone(self) -> str:
        """Which of its layers are trained."""
        if not any(parameter.requires_grad for parameter in self.model.backbone.parameters()):
            return "the backbone stays frozen"
        if self.config.frozen or self.config.pretrained:
            return "stem, first stage and batch norm of the backbone stay frozen, its other layers are trained"
        batch_norm = any(isinstance(module, torch.nn.BatchNorm2d) for module in self.model.backbone.modules())
        return "all layers of the backbone are trained" + ", with batch norm as usual" * batch_norm

    def fit(self, state: Path | None) -> Any:
        """Train from a state, or from the beginning."""
        c = self.config
        if state is None and rank() == 0:
            write_json(self.folder / DATA, self.task.facts())
            if self.transferred:
                write_json(self.folder / TRANSFER_FILE, self.transferred)
        module = Training(self.model, self.recipe, c, [r.id for r in self.task.train])
        bar, sampler = LiveBar(self.console, c.length, self.heartbeat, self.task), self.sampler()
        end = EpochEnd(self.folder, c, self.detector, self.task, bar, sampler)
        # with the learning rate schedule, which is planned anew where minutes turn out to be more or fewer steps
        sampler.plain_from = lambda epoch: end.config.length.schedule_end(epoch) * (1 - self.augment.plain_end)
        if c.length.ends_by_clock:
            end.evaluator.read_images()  # its clock should not count what is done once
        if self.costs is not None:
            end.clock.per_batch = self.costs.later
        if c.length.minutes is not None:
            end.clock.evaluation = evaluation_seconds(c, self.detector, self.task, evaluated_images(c), end.evaluator.images)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")  # of workers and steps, which are decided here on purpose
            warnings.filterwarnings("ignore", message="Grad strides do not match")  # of 1x1 convolutions, which read channels last
            trainer = L.Trainer(
                accelerator={"cuda": "gpu"}.get(c.device, c.device),
                devices=local_world_size(), num_nodes=c.world_size // local_world_size(), use_distributed_sampler=False,
                strategy=DDPStrategy(gradient_as_bucket_view=True) if c.world_size > 1 else "auto", max_epochs=-1,
                limit_train_batches=c.length.epoch_batches, num_sanity_val_steps=0,
                callbacks=[end, bar], plugins=[StateFiles(module.state_dict())], default_root_dir=self.folder,
                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            try:
                with self._readers():
                    trainer.fit(module, self.loader(sampler), ckpt_path=state, weights_only=True)
            except SystemExit as stopped:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from stopped
        if rank() == 0:
            self._note(end.unreadable)
            return self.finish(str(end.best))
        return self.task.load(self.folder)

    @contextlib.contextmanager
    def _readers(self) -> Iterator[None]:
        """Raises ``UserError`` where a process that reads images dies."""
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            again = "resume with --resume --workers 0" if (self.folder / FILE).is_file() else "train again with --workers 0"
            raise UserError(f"{self.folder}: a process that reads images died ({error}), as where memory ends; {again}") from error

    def _note(self, unreadable: dict[str, list[str]]) -> None:
        """Into ``data.json``, and with it into the report, what only reading showed."""
        lines = [f"{name} {self.task.unit} {line}; skipped" for name, skipped in unreadable.items() for line in skipped]
        if lines:
            facts = self.task.facts()
            write_json(self.folder / DATA, facts | {"skipped": [*facts["skipped"], *lines]})

    def finish(self, kept: str) -> Any:
        """Evaluate the model that was kept, in words, on val and, where there is one, on test; write the report."""
        task = self.task
        best = task.load(self.folder)
        best.to(self.config.device)
        for name in ("val", "test"):
            if name in task.data.splits:
                split = task.data.splits[name]
                self.heartbeat.doing = f"evaluating on {count(len(split), f'{name} {task.unit}')}"
                found = task.predict(best, split, self.config, strict=self.config.strict, warn=warn_skipped)
                end = task.close(self.folder, *drop_unreadable(split, found), best, self.config)
                self.console.print(f"{name}, {kept}: {self._scores(end.metrics)}; {task.baseline}: {self._scores(end.baseline)}")
                for line in end.warnings:
                    self.console.print(f"warning: {line}", markup=False)
        self.heartbeat.doing = "writing the report"
        page = write_report(self.folder)
        self.console.print(f"report: {page}", markup=False, soft_wrap=True)
        return best

    def _scores(self, metrics: Mapping[str, Any]) -> str:
        return "  ".join(f"{key} -" if metrics[key] is None else f"{key} {metrics[key]:.3f}" for key in self.task.shown)
