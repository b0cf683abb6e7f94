"""How long a run is, asked for in epochs, minutes or images and planned in batches. Imports no torch."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, get_args

from cyclopts import Parameter

from boxquery.errors import UserError, count
from boxquery.flags import Word
from boxquery.limits import check_above_zero

#: share of the minutes that is planned; the rest is for reading data, the last evaluation, the report, and a machine that slows down
PLANNED = 0.9
#: share of the planned time that evaluations may take
EVALUATING = 0.08
#: share of the batches by which a new plan must differ from the old one
NOTICEABLE = 0.02

ClockName = Literal["wall", "cpu"]


def parse_schedule(kind: Any, tokens: Any) -> dict[int, int]:
    """``--schedule-steps 900`` or ``--schedule-steps 700,32:900`` -> {0: 900} or {0: 700, 32: 900}."""
    pairs = [part.rpartition(":") for part in tokens[-1].value.split(",")]
    try:
        return {int(start or 0): int(steps) for start, _, steps in pairs}
    except ValueError as error:
        raise ValueError(f"--schedule-steps {tokens[-1].value!r}: write a number of steps") from error


if TYPE_CHECKING:
    Schedule = int | dict[int, int] | None
else:
    Schedule = Annotated[Word | None, Parameter(converter=parse_schedule)]


class Costs(NamedTuple):
    """Seconds of a batch whose images are read for the first time, of one with the same images again, of an evaluation, and of the rest of
    an epoch's end."""

    first: float
    later: float
    evaluation: float
    closing: float


@dataclass(frozen=True, kw_only=True)
class LengthFlags:
    """How long a run is to be; ``None`` is not given.

    Attributes:
        epochs: Passes over the training images. Default: auto's choice or the preset's, or as many as fit into --minutes.
        minutes: Approximate duration. Converted to a step count after timing a few steps; with --epochs, whichever is reached first ends
            the run.
        clock: Which clock --minutes counts: "wall", or "cpu" (CPU time of this process, unaffected by other load; ends the run at 90 % of
            the budget). On a GPU both are wall time.
        images_seen: Training images to see in all, in place of --epochs and --minutes; the last epoch is cut short.
        schedule_steps: Optimizer steps that the learning rate schedule is made for. Default: those of the run.
        accumulate: Batches whose gradients are summed for one optimizer step.
        val_every: Epochs from one evaluation to the next. Default: about 50 evaluations in all.
    """

    epochs: int | None = None
    minutes: float | None = None
    clock: ClockName = "wall"
    images_seen: int | None = None
    schedule_steps: Schedule = None
    accumulate: int = 1
    val_every: int | None = None

    def check(self) -> None:
        """Raise ``UserError`` for values that no run can have."""
        steps = self.schedule_steps if isinstance(self.schedule_steps, int) else min((self.schedule_steps or {0: 1}).values())
        check_above_zero(
            epochs=self.epochs, minutes=self.minutes, images_seen=self.images_seen, schedule_steps=steps, accumulate=self.accumulate,
            val_every=self.val_every,
        )  # fmt: skip
        if isinstance(self.schedule_steps, dict) and self.schedule_steps and min(self.schedule_steps) != 0:
            raise UserError(f"--schedule-steps {self.schedule_steps}: the first part must start at step 0, as in 700,32:900")
        if self.images_seen is not None and (self.minutes is not None or self.epochs is not None):
            raise UserError("--images-seen goes with neither --minutes nor --epochs: each says how long; give one of them")
        if self.clock not in get_args(ClockName):
            raise UserError(f"clock={self.clock!r}: choose {' or '.join(get_args(ClockName))}")


@dataclass(frozen=True, kw_only=True)
class RunLength(LengthFlags):
    """How long a run is. Numbers of batches are those of one process.

    Attributes:
        schedule_steps: steps of the learning rate schedule from a step on: {0: 700, 32: 900} was made for 700 steps, and stretched to 900
            after the first 32.
        epoch_batches: batches per epoch; batch_images: images per batch of all processes. 0 until the data is known.
        total_batches: planned; after the end of the run those that it came to. 0 until planned.
    """

    schedule_steps: dict[int, int] = field(default_factory=dict)
    epoch_batches: int = 0
    batch_images: int = 0
    total_batches: int = 0

    def __str__(self) -> str:
        """For people: "3 epochs of 51 batches of 8 images, the last one cut short after 20"."""
        batches, images = count(self.epoch_batches, "batch", "batches"), count(self.batch_images, "image")
        whole = f"{count(self.total_epochs, 'epoch')} of {batches} of {images}"
        last = "the last one cut short" if self.total_epochs > 1 else "cut short"
        return whole if self.last_batches == self.epoch_batches else f"{whole}, {last} after {self.last_batches}"

    @property
    def total_epochs(self) -> int:
        """The last one may be cut short."""
        return -(-self.total_batches // self.epoch_batches)

    @property
    def last_batches(self) -> int:
        """Batches of the last epoch."""
        return self.total_batches - (self.total_epochs - 1) * self.epoch_batches

    @property
    def total_steps(self) -> int:
        return self.steps_after(self.total_batches)

    @property
    def images_total(self) -> int:
        return self.total_batches * self.batch_images

    @property
    def ends_by_clock(self) -> bool:
        """Whether the CPU's clock ends the run, at about the planned steps."""
        return self.minutes is not None and self.clock == "cpu" and self.epochs is None

    @property
    def seconds(self) -> float:
        """Time for all steps and evaluations of a run of so many minutes."""
        return (self.minutes or 0.0) * 60 * PLANNED

    def steps_after(self, batches: int) -> int:
        """Optimizer steps: one after every ``accumulate`` batches, and one at the end of an epoch."""
        whole, rest = divmod(batches, self.epoch_batches)
        return whole * -(-self.epoch_batches // self.accumulate) + rest // self.accumulate

    def schedule_end(self, epoch: int) -> float:
        """Where the learning rate schedule ends, in epochs, as planned when an epoch (counted from 0) begins; inf without a plan."""
        per_epoch = self.steps_after(self.epoch_batches)
        known = [start for start in self.schedule_steps if start <= epoch * per_epoch]
        return self.schedule_steps[max(known)] / per_epoch if known else math.inf

    def with_data(self, epoch_batches: int, batch_images: int) -> Self:
        """With what is known of the data, and planned, unless ``minutes`` have to be timed first."""
        length = replace(self, epoch_batches=epoch_batches, batch_images=batch_images)
        if length.needs_timing:
            return length
        if self.ends_by_clock:
            return length._planned(self.schedule_steps[0] * self.accumulate)
        return length._planned(round(self.images_seen / batch_images) if self.images_seen else (self.epochs or 1) * epoch_batches)

    @property
    def needs_timing(self) -> bool:
        """A run that its clock ends needs a plan for its schedule alone."""
        return self.minutes is not None and not self.total_batches and not (self.ends_by_clock and self.schedule_steps)

    def with_total_batches(self, batches: int) -> Self:
        """Cut between two optimizer steps, or the last gradients would be lost: up to ``accumulate - 1`` batches fewer, at least a step."""
        whole, rest = divmod(max(batches, min(self.accumulate, self.epoch_batches)), self.epoch_batches)
        return replace(self, total_batches=whole * self.epoch_batches + rest - rest % self.accumulate)

    def plan(self, costs: Costs) -> Self:
        """With the batches and evaluations that fit into ``minutes``, of which ``epochs`` are the most."""
        evaluation, closing = costs.evaluation, costs.closing / self.epoch_batches
        first, later = costs.first + closing, costs.later + closing
        seconds = self.seconds - (0 if self.ends_by_clock else evaluation)  # the best model is evaluated once more at the end
        evaluations = max(int(seconds * EVALUATING / evaluation), 1)
        reading = self.epoch_batches * first
        length, val_every = self, 1
        for _ in range(3):  # evaluations leave time for training, training determines the epochs, and epochs determine the evaluations
            training = seconds - evaluations * evaluation
            batches = training / first if training < reading else self.epoch_batches + (training - reading) / later
            length = self.with_total_batches(int(min(max(batches, 1), self._most_batches)))
            val_every = self.val_every or -(-length.total_epochs // evaluations)
            evaluations = -(-length.total_epochs // val_every)
        return replace(length, val_every=val_every)._planned(length.total_batches)

    def expected_seconds(self, costs: Costs) -> float:
        """What the planned batches, their evaluations and the last one of the best model will take."""
        reading = min(self.total_batches, self.epoch_batches)
        steps = reading * costs.first + (self.total_batches - reading) * costs.later
        evaluations = -(-self.total_epochs // (self.val_every or 1)) + 1
        return steps + evaluations * costs.evaluation + self.total_epochs * costs.closing

    def within(self, minutes: float, costs: Costs) -> Self:
        """The same run, but for so many minutes."""
        return replace(self, epochs=None, images_seen=None, minutes=minutes, val_every=None, schedule_steps={}).plan(costs)

    def replan(self, batches: int, left: float, per_batch: float, per_epoch: float) -> Self:
        """Planned anew after so many batches, from the seconds that are left, and those that a batch and the end of an epoch take now.

        The learning rate schedule goes on from where it is.
        """
        more = left / (per_batch + per_epoch / self.epoch_batches)
        length = self.with_total_batches(int(min(batches + more, self._most_batches)))
        if abs(length.total_batches - self.total_batches) < NOTICEABLE * self.total_batches:
            return self
        last = self.schedule_steps[max(self.schedule_steps)]
        if last != self.total_steps:  # a schedule that was asked for
            return length
        return replace(length, schedule_steps={**self.schedule_steps, self.steps_after(batches): length.total_steps})

    @property
    def _most_batches(self) -> float:
        return math.inf if self.epochs is None else self.epochs * self.epoch_batches

    def _planned(self, batches: int) -> Self:
        length = self.with_total_batches(batches)
        return replace(
            length,
            val_every=self.val_every or default_val_every(length.total_epochs),
            schedule_steps=self.schedule_steps or {0: length.total_steps},
        )

    def finished(self, batches: int, seconds: float) -> bool:
        """Whether the run ends after so many batches, which with the last evaluation take so many seconds of its clock."""
        return seconds >= self.seconds if self.ends_by_clock else batches >= self.total_batches

    def as_minutes(self) -> LengthFlags:
        """The flags of another run of as many minutes."""
        return LengthFlags(epochs=self.epochs, minutes=self.minutes, clock=self.clock, accumulate=self.accumulate)

    def as_flags(self) -> LengthFlags:
        """The flags that repeat the run: ``minutes`` have become the images that it saw."""
        by_epochs = self.minutes is None and self.images_seen is None
        return LengthFlags(
            epochs=self.epochs if by_epochs else None,
            images_seen=None if by_epochs else self.images_total,
            schedule_steps=None if self.schedule_steps == {0: self.total_steps} else self.schedule_steps,
            accumulate=self.accumulate,
            val_every=None if self.val_every == default_val_every(self.total_epochs) else self.val_every,
        )


def default_val_every(epochs: int) -> int:
    """Epochs from one evaluation to the next: about 50 evaluations in all."""
    return max(1, round(epochs / 50))
