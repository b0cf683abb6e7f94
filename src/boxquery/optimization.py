"""One training step, and what it is made of: learning rates by parameter group, their schedule, clipping, the moving average."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from boxquery.data.loading import Batch
from boxquery.data.scenes.loading import SceneBatch
from boxquery.errors import UserError
from boxquery.models.interface import Model
from boxquery.models.recipes import Recipe


class NoLoss(UserError):
    """The model's output has no loss, as it is not finite. ``out`` is the output."""

    def __init__(self, error: UserError, out: Any):
        super().__init__(str(error))
        self.out = out


class StepResult(NamedTuple):
    """loss [] and its terms as ``Model.loss`` returns them, detached; norm [] of the gradient, None where nothing was updated."""

    loss: Tensor
    terms: dict[str, Tensor]
    norm: Tensor | None


def training_step(
    model: Model, batch: Batch | SceneBatch, optimizer: torch.optim.Optimizer, *, clip: float = 0.0, precision: str = "float32",
    share: float = 1.0, first: bool = True, last: bool = True, backward: Callable[[Tensor], Any] = Tensor.backward,
) -> StepResult:  # fmt: skip
    """Forward, loss, backward, and an update of the weights. Nothing here waits for the device.

    Args:
        clip: the largest norm of the gradient; 0 does not clip it.
        precision: "float32", or "bf16" for the matrix products of the forward pass.
        share: of this batch in the gradient of the update; first, last: whether the update begins or ends with this batch.
        backward: computes the gradients of a loss.

    Raises ``NoLoss`` for an output that is not finite; gradients that are not finite are left to the caller.
    """
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        out = model(*batch.inputs, targets=batch.targets)
        try:
            loss, terms = model.loss(out, batch.targets)
        except UserError as error:
            raise NoLoss(error, out) from error
    if first:
        optimizer.zero_grad()
    backward(loss * share)
    norm = None
    if last:
        norm = clip_gradients(model, clip)
        optimizer.step()
    return StepResult(loss.detach(), {name: value.detach() for name, value in terms.items()}, norm)


def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """Scale the gradient down to a norm of at most ``most`` (0: any); returns the norm that it had."""
    parameters = list(model.parameters())  # once: to walk through the modules takes longer than all else here
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most:
        # scaled by NaN all gradients would be NaN; by 0 only those that are to be named
        nn.utils.clip_grads_with_norm_(parameters, most, norm.where(~norm.isnan(), torch.inf))
    return norm


class Optimization:
    """A model's optimizer, learning rate schedule and moving average, as its recipe has them.

    Args:
        schedule: steps that the learning rate schedule is made for, see ``progress``; read anew at every step.
        average: a copy of the model that becomes the moving average of its weights.
        accumulate: batches per update.
    """

    def __init__(
        self, model: Model, recipe: Recipe, schedule: Mapping[int, int], *, average: Model | None = None, precision: str = "float32",
        accumulate: int = 1,
    ):  # fmt: skip
        self.model, self.recipe, self.average, self.precision, self.accumulate = model, recipe, average, precision, accumulate
        groups, decay = parameter_groups(model, recipe), recipe.weight_decay
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=decay, fused=True)
        else:
            self.optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        self.optimizer.register_load_state_dict_post_hook(_lay_out_like_weights)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate_factor(recipe, schedule))

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self.schedule.last_epoch

    def step(
        self, batch: Batch | SceneBatch, number: int, *, end: bool = False, backward: Callable[[Tensor], Any] = Tensor.backward
    ) -> StepResult:
        """A training step on the batch with this number in its epoch, which may be the ``end`` of the epoch."""
        last = (number + 1) % self.accumulate == 0 or end
        result = training_step(
            self.model, batch, self.optimizer, clip=self.recipe.clip, precision=self.precision, share=1 / self.accumulate,
            first=number % self.accumulate == 0, last=last, backward=backward,
        )  # fmt: skip
        if last:
            self.schedule.step()
            if self.average is not None:
                update_average(self.average, self.model, self.recipe.ema, self.steps)
        return result


@torch.no_grad()
def _lay_out_like_weights(optimizer: torch.optim.Optimizer) -> None:
    """Of a loaded state: a fused update goes through memory without looking at strides, and an older run may have kept others."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def parameter_groups(model: Model, recipe: Recipe) -> list[dict[str, Any]]:
    """Rates of transformer, backbone, what the paper trains more slowly (reference points, offsets), and what is learned per query."""
    own, backbone = ({id(parameter) for parameter in part} for part in (model.query_parameters(), model.backbone.parameters()))
    groups: dict[str, list[nn.Parameter]] = {"transformer": [], "backbone": [], "slow": [], "queries": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            slow = any(part in name for part in model.low_lr_patterns)
            kind = "backbone" if id(parameter) in backbone else "slow" if slow else "queries" if id(parameter) in own else "transformer"
            groups[kind].append(parameter)
    rates = {
        "transformer": recipe.lr,
        "backbone": recipe.backbone_lr,
        "slow": recipe.lr * recipe.low_lr_factor,
        "queries": recipe.lr * recipe.query_lr_factor,
    }
    return [{"params": parameters, "lr": rates[name], "name": name} for name, parameters in groups.items() if parameters]


def rate_factor(recipe: Recipe, schedule: Mapping[int, int]) -> Callable[[int], float]:
    """Number of a step -> factor on the rate: a linear warm-up, then a drop to a tenth, or half a cosine down to a hundredth."""
    warmup = round(recipe.warmup * schedule[0])

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        done = progress(schedule, step)
        if recipe.decay == "step":
            return rise * (0.1 if done >= recipe.decay_at else 1.0)
        return rise * max(0.5 * (1 + math.cos(math.pi * done)), 0.01)

    return factor


def progress(schedule: Mapping[int, int], step: int) -> float:
    """Share of a schedule that is over at a step, from 0 to 1.

    {0: 700, 32: 900} was made for 700 steps, and after the first 32 what was left of it was stretched to end after 900.
    """
    done, begin, total = 0.0, 0, schedule[0]
    for start, steps in sorted(schedule.items()):
        if 0 < start <= step:
            done += (1 - done) * (start - begin) / max(total - begin, 1)
            begin, total = start, steps
    return min(done + (1 - done) * (step - begin) / max(total - begin, 1), 1.0)


@torch.no_grad()
def update_average(averaged: nn.Module, current: nn.Module, decay: float, step: int) -> None:
    """The moving average of the weights; it forgets faster at the start, when there is little to remember. Buffers are copied."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), share)
    if buffers := list(averaged.buffers()):  # without batch norm there may be none
        torch._foreach_copy_(buffers, list(current.buffers()))
