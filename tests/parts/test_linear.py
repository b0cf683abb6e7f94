"""Products by oneDNN, and norms that convolutions apply, give the same numbers as PyTorch's own."""

import copy
from typing import cast

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from boxquery.parts import linear as module
from boxquery.parts.backbone import Backbone
from boxquery.parts.convolution import Convolution, FoldedNorm
from boxquery.parts.linear import linear


@pytest.fixture(params=[False, True], ids=["own", "oneDNN"])
def library(request, monkeypatch):
    """Either library, whatever the CPU and the size."""
    if request.param and not module.COUNTED:
        pytest.skip("no oneDNN here")
    monkeypatch.setattr(module, "_has_slow_mkl", lambda: request.param)
    monkeypatch.setattr(module, "LEAST", 0)


def gradients(output, *inputs):
    return torch.autograd.grad((output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum(), inputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [5, 40])
def test_a_product_and_its_gradients(library, bias, outputs):
    torch.manual_seed(0)
    x = torch.randn(2, 12, 3, 20).transpose(1, 2).requires_grad_()
    weight, shift = torch.randn(outputs, 20, requires_grad=True), torch.randn(outputs, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, shift) if t is not None]
    ours, expected = linear(x, weight, shift), F.linear(x, weight, shift)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, *inputs), gradients(expected, *inputs))
    torch.testing.assert_close(linear(x, weight.detach(), None), F.linear(x, weight))


class Strides(TorchDispatchMode):
    """Strides of what oneDNN's product is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.seen += [t.stride() for t in args[:2]]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("library", [True], indirect=True)
def test_expanded_tensors_are_copied_for_onednn_which_is_slow_on_them(library):
    x, weight = torch.randn(20), torch.randn(40, 20, requires_grad=True)
    with Strides() as strides:
        linear(x.expand(2, 30, 20).requires_grad_(), weight).sum().backward()  # whose gradient is expanded, too
    assert len(strides.seen) == 6
    assert not any(0 in stride for stride in strides.seen)
    torch.testing.assert_close(weight.grad, (60 * x).expand(40, 20))


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_a_1x1_convolution_may_be_changed_in_place(library, order):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 7).contiguous(memory_format=order).requires_grad_()
    convolution = Convolution(8, 6, 1)
    expected = F.conv2d(x, convolution.weight, convolution.bias).relu()
    ours = convolution(x).relu_()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        gradients(ours, x, *convolution.parameters()), gradients(expected, x, *convolution.parameters()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["resnet10t", "resnet26d", "hgnetv2_b0"])
def test_fixed_norms_are_part_of_the_convolutions_before_them(library, name):
    """Outputs, gradients and names are those of timm's own frozen model."""
    torch.manual_seed(0)
    ours = Backbone(name, 2)
    for norm in ours.body.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(cast(Tensor, norm.running_mean), std=0.1)
            nn.init.uniform_(cast(Tensor, norm.running_var), 0.5, 1.5)
    theirs = timm.create_model(name, features_only=True, out_indices=(-2, -1))
    theirs.load_state_dict(ours.body.state_dict())
    theirs = freeze_batch_norm_2d(theirs)
    ours.freeze()
    assert any(isinstance(part, FoldedNorm) for part in ours.body.modules())
    assert ours.body.state_dict().keys() == theirs.state_dict().keys()
    images, again = torch.randn(1, 3, 64, 64), copy.deepcopy(ours)
    for backbone in (ours, again):  # a copy has norms of its own
        learned = {n: p for n, p in backbone.body.named_parameters() if p.requires_grad}
        of_theirs = [p for n, p in theirs.named_parameters() if n in learned]
        out, expected = backbone.train()(images)[-1], theirs.train()(images)[-1]
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        for a, b in zip(gradients(out, *learned.values()), gradients(expected, *of_theirs), strict=True):
            assert (a - b).norm() <= 1e-4 * b.norm() + 1e-5
        for body in (again.body, theirs):
            body.load_state_dict({k: v * 1.1 for k, v in ours.body.state_dict().items()})
