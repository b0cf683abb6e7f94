"""Everything that is needed to repeat a run, in one frozen record and one file. Imports no torch."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from boxquery.errors import UserError, first_line
from boxquery.files import atomic_write
from boxquery.flags import option_word

FILE = "config.yaml"
#: what the values of a field may be, by its annotation
_KINDS = {
    "str": str,
    "int": int,
    "float": int | float,
    "float | None": int | float | None,
    "bool": bool,
    "dict[str, Any]": dict,
    "list[str]": list,
}


def usual_val_every(epochs: int) -> int:
    """Epochs from one evaluation to the next where nobody said: about 50 evaluations in all."""
    return max(1, round(epochs / 50))


@dataclass(frozen=True)
class RunConfig:
    """A run, complete: written to ``config.yaml`` before the first step.

    Attributes:
        data: what the user named; ``scenes`` is how the built-in ones are drawn.
        options: the model's options that differ from the preset.
        chosen: which of these the data chose (anchors), not the user.
        start_from, start_hash: the trained model whose weights it began with, as the user named it, and what they were (see
            ``boxquery.transfer.fingerprint``).
        frozen: stem, first stage and batch norm of the backbone kept what that model had.
        image_size: short side in pixels.
        batch_size, accumulate: images a step of one process, and steps whose gradients are added up.
        epochs, steps: passes over the data, and optimizer steps in all (per process).
        batches, last: batches of an epoch, and of the last one where it is cut short (0: it is not).
        minutes: what the user asked for, if that is how ``epochs`` came about.
        clock: whose minutes: "wall", or "processor" (the time that this process computes, which a busy machine does not shorten). On CUDA,
            where the processor only waits, both are the wall's.
        by_clock: whether that clock ends the run. ``epochs``, ``last`` and ``steps`` are then what was planned, and from the end of the run
            on what came of it.
        schedule_steps: optimizer steps that the schedule of the rate is made for; 0: those of the run.
        images_seen: what the user asked for, if that is how ``epochs`` and ``last`` came about.
        val_every: epochs from one evaluation to the next.
        patience: stop after so many evaluations without a better AP; 0: never.
        precision: "float32" or "bf16".
        world: processes.
        force: train even where the check says that it is worth nothing.
    """

    data: str
    model: str
    preset: str
    options: dict[str, Any] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)
    pretrained: bool = False
    freeze_backbone: bool = False
    start_from: str = ""
    start_hash: str = ""
    frozen: bool = False
    image_size: int = 800
    batch_size: int = 2
    accumulate: int = 1
    epochs: int = 1
    steps: int = 1
    batches: int = 1
    last: int = 0
    minutes: float | None = None
    clock: str = "wall"
    by_clock: bool = False
    schedule_steps: int = 0
    images_seen: int | None = None
    lr: float = 1e-4
    val_every: int = 1
    patience: int = 0
    device: str = "cpu"
    precision: str = "float32"
    workers: int = 0
    world: int = 1
    seed: int = 0
    strict: bool = False
    force: bool = False

    def command(self, out: Path | str) -> str:
        """The command line that repeats the run; ``--minutes`` has become the images that it was worth here."""
        words = ["boxquery", "train", self.data, "--model", self.model, "--preset", self.preset]
        shortened = self.minutes is not None or self.images_seen is not None
        words += ["--images-seen", str(self.seen())] if shortened else ["--epochs", str(self.epochs)]
        if self.schedule_steps not in (0, self.steps):
            words += ["--schedule-steps", str(self.schedule_steps)]
        if self.val_every != usual_val_every(self.epochs):
            words += ["--val-every", str(self.val_every)]
        for name in ("image_size", "batch_size", "lr", "seed", "precision"):
            words += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        for name, usual in (("accumulate", 1), ("patience", 0)):
            if getattr(self, name) != usual:
                words += [f"--{name}", str(getattr(self, name))]
        words += ["--from", self.start_from] * bool(self.start_from)
        for name in ("pretrained", "freeze_backbone", "strict", "force"):
            words += [f"--{name.replace('_', '-')}"] * bool(getattr(self, name))
        for name, value in self.options.items():
            words += ["--option", option_word(name, value)]
        return shlex.join([*words, "--out", str(out)])

    def seen(self) -> int:
        """Images that the whole run sees, all processes together."""
        return ((self.epochs - 1) * self.batches + (self.last or self.batches)) * self.batch_size * self.world

    def lasting(self, batches: int) -> RunConfig:
        """This run with so many batches of one process in all: whole epochs and, if anything is left, a last one that is cut short.

        It is cut between two updates, or the gradients since the last one would be lost: up to ``accumulate - 1`` batches fewer, and at
        least one update.
        """
        whole, rest = divmod(max(batches, min(self.accumulate, self.batches)), self.batches)
        last = rest - rest % self.accumulate
        steps = whole * -(-self.batches // self.accumulate) + last // self.accumulate
        return replace(self, epochs=whole + (last > 0), last=last, steps=steps)

    def write(self, folder: Path) -> None:
        atomic_write(
            folder / FILE,
            yaml.safe_dump({**asdict(self), "boxquery": version("boxquery"), "command": self.command(folder)}, sort_keys=False).encode(),
        )

    @classmethod
    def read(cls, folder: Path) -> RunConfig:
        """Raises ``UserError`` where there is no run or its configuration cannot be understood."""
        try:
            text = (folder / FILE).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder / FILE}: no run to go on with ({error.strerror}); leave out --resume to start one") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{folder / FILE}: not a run's configuration (not text)") from error
        try:
            given = yaml.safe_load(text)
            kinds = {f.name: _KINDS.get(str(f.type), object) for f in fields(cls)}
            known = {k: v for k, v in given.items() if k in kinds}
            if wrong := [f"{k} is a {type(v).__name__}" for k, v in known.items() if not isinstance(v, kinds[k])]:
                raise TypeError(wrong[0])
            return cls(**known)
        except (yaml.YAMLError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"{folder / FILE}: not a run's configuration ({first_line(error)})") from error


#: a wish of somebody who says nothing: what can be chosen is open
UNSET = RunConfig(
    data="", model="", preset="", image_size=0, batch_size=0, epochs=0, lr=0.0, val_every=0, workers=-1, device="auto", precision="auto"
)  # fmt: skip
