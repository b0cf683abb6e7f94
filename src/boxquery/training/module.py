"""What one step does: the only thing that Lightning is told about a model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from boxquery.data.loading import Batch, generator
from boxquery.errors import UserError
from boxquery.models.interface import Model
from boxquery.models.options import Recipe
from boxquery.training.diagnosis import Step, not_finite


class Training(L.LightningModule):
    """A model with its optimizer, schedule and moving average.

    The average is a second model and a part of the state: evaluation and the saved model read it, nothing is ever swapped. (torch's
    ``AveragedModel`` asks the device for its count at every step.)

    Args:
        recipe: rates and schedule.
        steps: optimizer steps of the whole run.
        ids: image ids by position in the training split, to name the images of a failed step.
        seed: of everything that a step draws (dropout, denoising); set anew for every step, so that a resumed run draws the same.
    """

    def __init__(self, model: Model, recipe: Recipe, steps: int, ids: Sequence[int | str], seed: int):
        super().__init__()
        self.model, self.recipe, self.steps, self.ids, self.seed = model, recipe, steps, ids, seed
        self.average = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None
        #: sums over the epoch so far, on the device: the total, and every term of the last layer
        self.sums: dict[str, Tensor] = {}
        #: of the epoch so far, a number a step, still on the device: losses, norms of the gradient
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

    def on_train_epoch_start(self) -> None:
        self.sums, self.losses, self.norms = {}, [], []
        self.waited, self.began = 0.0, time.monotonic()
        self.ended = self.began

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.waited += time.monotonic() - self.ended
        # loaders draw from the same generator when they start: a seed a step is what neither workers nor a resume can shift
        torch.manual_seed(generator(self.seed, self.current_epoch, f"step {batch_idx} of {self.global_rank}").initial_seed())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.model(batch.images, batch.mask, targets=batch.targets)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        step = Step(self.current_epoch, batch_idx, [self.ids[i] for i in batch.indices], batch.images.shape[-2:], rate)
        try:
            loss, terms = self.model.loss(out, batch.targets)
        except UserError as error:
            broken = self.previous if self.previous is not None and self.previous.broken() else step
            raise not_finite(broken, str(error), out if self.model.has_queries else None, self.model, self.kept()) from error
        step.loss, step.terms = loss.detach(), {name: value.detach() for name, value in terms.items()}
        self.previous = step
        self.losses.append(step.loss)
        shown = {"loss": step.loss, **{k: v[-1] if v.dim() else v for k, v in step.terms.items()}}
        for name, value in shown.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        return loss

    def kept(self) -> str:
        """What state there is to go on from, in words."""
        done = self.current_epoch
        return f"last.ckpt and model/ hold the state of {done} finished epochs." if done else "no epoch was finished."

    def stop_if_broken(self) -> None:
        """At an epoch's end, where the last step is not followed by one that would notice. Raises ``NotFinite``."""
        if self.previous is not None and self.previous.broken():
            raise not_finite(self.previous, "", None, self.model, self.kept())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.ended = time.monotonic()
        done = batch_idx + 1
        if self.average is not None and (done % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch):
            average(self.average, self.model, self.recipe.ema, self.global_step)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses to clip for a fused optimizer in mixed precision, since half precision would need unscaling; bf16 has no scale
        parameters = list(self.model.parameters())  # once: to walk through the modules takes longer than all else here
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if gradient_clip_val:
            # scaled by a NaN all would be none; by 0 those alone that are to be named
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm.where(~norm.isnan(), torch.inf))
        self.norms.append(norm)
        if self.previous is not None:
            self.previous.norm = norm

    def configure_optimizers(self) -> Any:
        groups, decay = parameter_groups(self.model, self.recipe), self.recipe.weight_decay
        if self.recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=decay, fused=True)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate(self.recipe, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(model: Model, recipe: Recipe) -> list[dict[str, Any]]:
    """Rates of the transformer, the backbone, what the paper trains slower (reference points, offsets), and what is learned a query."""
    own = {id(parameter) for parameter in model.query_parameters()}
    groups: dict[str, list[nn.Parameter]] = {"transformer": [], "backbone": [], "slow": [], "queries": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            slow = any(part in name for part in model.low_lr_patterns)
            kind = "backbone" if name.startswith("backbone.") else "slow" if slow else "queries" if id(parameter) in own else "transformer"
            groups[kind].append(parameter)
    rates = {
        "transformer": recipe.lr,
        "backbone": recipe.backbone_lr,
        "slow": recipe.lr * recipe.slow,
        "queries": recipe.lr * recipe.queries,
    }
    return [{"params": parameters, "lr": rates[name], "name": name} for name, parameters in groups.items() if parameters]


def rate(recipe: Recipe, steps: int):
    """Step number -> factor on the rate: a linear warm-up, then a drop to a tenth, or half a cosine down to a hundredth."""
    warmup = max(round(recipe.warmup * steps), 0)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        done = min(step / max(steps, 1), 1.0)
        if recipe.decay == "step":
            return rise * (0.1 if done >= recipe.decay_at else 1.0)
        return rise * max(0.5 * (1 + math.cos(math.pi * done)), 0.01)

    return factor


@torch.no_grad()
def average(averaged: nn.Module, current: nn.Module, decay: float, step: int) -> None:
    """The moving average of the weights; it forgets faster at the start, when there is little to remember. Buffers are copied."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), share)
    torch._foreach_copy_(list(averaged.buffers()), list(current.buffers()))
