"""The optimizer's state, whatever memory format it was saved in."""

import pytest
import torch
from torch import Tensor, nn

import boxquery as bq
from boxquery.models import preset
from boxquery.optimization import Optimization, update_average


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_state_of_another_memory_format_is_laid_out_like_the_weights(optimizer):
    """As of a run from before convolutions kept their features last: a fused update would mix up its numbers."""
    weights = []
    for order in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        model = bq.create_model("deformable-detr", classes=2, preset="tiny")
        recipe = preset("deformable-detr", "tiny").recipe
        made = Optimization(model, recipe.__class__(**{**vars(recipe), "optimizer": optimizer}), {0: 10})
        for step in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.linspace(-1, 1 + step, parameter.numel()).view(parameter.shape).contiguous()
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            made.optimizer.step()
            state = made.optimizer.state_dict()
            for kept in state["state"].values():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.dim() == 4:
                        kept[name] = value.contiguous(memory_format=order)
            made.optimizer.load_state_dict(state)
        assert any(not parameter.is_contiguous() for parameter in model.parameters())
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm2d(3), lambda: nn.GroupNorm(1, 3)], ids=["with buffers", "without"])
def test_an_average_of_a_model_with_and_without_buffers(norm):
    """A backbone with group norms has none."""
    averaged, current = (nn.Sequential(nn.Conv2d(3, 3, 1), norm()) for _ in range(2))
    before = averaged[0].weight.clone()
    update_average(averaged, current, decay=0.9, step=10_000)
    assert torch.allclose(averaged[0].weight, 0.9 * before + 0.1 * current[0].weight)
    assert all(torch.equal(a, c) for a, c in zip(averaged.buffers(), current.buffers(), strict=True))
