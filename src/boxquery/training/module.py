"""The model as Lightning sees it: what to do with a batch, and what belongs to the state."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from boxquery.data.loading import Batch, generator
from boxquery.models.interface import Model
from boxquery.models.recipes import Recipe
from boxquery.optimization import NoLoss, Optimization
from boxquery.training.config import RunConfig
from boxquery.training.diagnosis import Step, not_finite
from boxquery.training.processes import everywhere


class Training(L.LightningModule):
    """A model with its optimizer, schedule and moving average.

    The average is a second model and a part of the state: it is evaluated and saved, and nothing is ever swapped. (torch's
    ``AveragedModel`` asks the device for its count at every step.)

    Args:
        ids: image ids by position in the training split, to name the images of a failed step.
    """

    def __init__(self, model: Model, recipe: Recipe, config: RunConfig, ids: Sequence[int | str]):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.recipe, self.config, self.ids = model, recipe, config, ids
        self.average = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None
        #: of the rate; what is put into it counts from the next step on
        self.schedule = dict(config.length.schedule_steps)
        #: sums over the epoch so far, on the device: the total, and every term of the last layer
        self.sums: dict[str, Tensor] = {}
        #: of the epoch so far, one number per batch and per update, still on the device
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        #: seconds of the epoch that passed in waiting for images, and its beginning and the last step's end on the host's clock
        self.waited, self.began, self.ended = 0.0, 0.0, 0.0
        #: the step before this one, should it have been the one that broke
        self.previous: Step | None = None

    @property
    def best_guess(self) -> Model:
        """The model to evaluate and to save."""
        return self.model if self.average is None else self.average

    def configure_optimizers(self) -> Any:
        self.optimization = Optimization(
            self.model, self.recipe, self.schedule, average=self.average, precision=self.config.precision,
            accumulate=self.config.length.accumulate,
        )  # fmt: skip
        return {"optimizer": self.optimization.optimizer, "lr_scheduler": self.optimization.schedule}

    def on_train_epoch_start(self) -> None:
        self.sums, self.losses, self.norms = {}, [], []
        self.waited, self.began = 0.0, time.monotonic()
        self.ended = self.began

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.waited += time.monotonic() - self.ended
        # set anew for every step, so that dropout and denoising draw the same after a resume; loaders draw from this generator, too
        torch.manual_seed(generator(self.config.seed, self.current_epoch, f"step {batch_idx} of {self.global_rank}").initial_seed())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        rate = self.optimization.optimizer.param_groups[0]["lr"]
        step = Step(self.current_epoch, batch_idx, [self.ids[i] for i in batch.indices], batch.images.shape[-2:], rate)
        try:
            result = self.optimization.step(batch, batch_idx, end=self.trainer.is_last_batch, backward=self.manual_backward)
        except NoLoss as error:
            broken = self.previous if self.previous is not None and self.previous.is_broken() else step
            raise not_finite(broken, str(error), error.out if self.model.has_queries else None, self.model, self.kept()) from error
        step.loss, step.terms, step.norm = result
        self.previous = step
        self.losses.append(result.loss)
        if result.norm is not None:
            self.norms.append(result.norm)
        for name, value in {"loss": result.loss, **{k: v[-1] if v.dim() else v for k, v in result.terms.items()}}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.ended = time.monotonic()

    def epoch_summary(self) -> tuple[list[float], list[float], float]:
        """Losses of the epoch by batch, gradient norms by update, and the share of it that passed in waiting for images."""
        numbers = torch.stack([*self.losses, *self.norms]).float().tolist()
        return numbers[: len(self.losses)], numbers[len(self.losses) :], self.waited / max(self.ended - self.began, 1e-9)

    def epoch_means(self) -> dict[str, float]:
        """The loss and its terms, as means over the epoch and all processes."""
        # a process whose batches held no object at all lacks the terms of denoising
        names = list(dict.fromkeys(name for part in everywhere(list(self.sums)) for name in part))
        sums = torch.stack([self.sums.get(name, torch.zeros((), device=self.device)).float() for name in names])
        means = self.trainer.strategy.reduce(sums, reduce_op="mean") / len(self.losses)
        return dict(zip(names, means.tolist(), strict=True))

    def kept(self) -> str:
        """Which state a broken run can be resumed from, for a message."""
        done = self.current_epoch
        return f"last.ckpt and model/ hold the state of {done} finished epochs." if done else "no epoch was finished."

    def stop_if_broken(self) -> None:
        """At an epoch's end, where the last step is not followed by one that would notice. Raises ``NotFinite``."""
        if self.previous is not None and self.previous.is_broken():
            raise not_finite(self.previous, "", None, self.model, self.kept())
