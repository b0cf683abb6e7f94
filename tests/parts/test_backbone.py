"""timm's feature extractors as the family needs them."""

import pytest
import torch
from torchvision.models import resnet50

from boxquery.parts.backbone import Backbone, Neck


@pytest.mark.parametrize("dilation", [False, True], ids=["C5", "DC5"])
@torch.no_grad()
def test_resnet50_is_torchvisions(dilation):
    """The same outputs, also with the last stage dilated instead of strided, as DETR's DC5 models were trained."""
    torch.manual_seed(0)
    theirs = resnet50(replace_stride_with_dilation=[False, False, dilation]).double().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = Backbone("resnet50", 3, dilation=dilation).double().eval()
    known = ours.body.state_dict().keys()
    left = ours.body.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in known})
    assert left.missing_keys == []
    assert ours.strides == [8, 16, 16 if dilation else 32]
    images = torch.randn(1, 3, 97, 130, dtype=torch.float64)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    expected = [x := theirs.layer2(theirs.layer1(x)), x := theirs.layer3(x), theirs.layer4(x)]
    for a, b in zip(ours(images), expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", [None, "group", "batch"])
def test_extra_levels_come_from_the_last_raw_map(norm):
    neck = Neck([8, 16], 32, extra=2, norm=norm).eval()
    maps = [torch.randn(1, 8, 10, 14), torch.randn(1, 16, 5, 7)]
    out = neck(maps)
    assert [tuple(m.shape) for m in out] == [(1, 32, 10, 14), (1, 32, 5, 7), (1, 32, 3, 4), (1, 32, 2, 2)]
    torch.testing.assert_close(out[2], neck.projections[2](maps[1]))
    torch.testing.assert_close(out[3], neck.projections[3](out[2]))


def test_freezing_keeps_the_outputs():
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", 2).eval()
    images = torch.randn(1, 3, 64, 64)
    before = backbone(images)
    backbone.freeze()
    backbone.train()
    for a, b in zip(before, backbone(images), strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_can_be_pickled(tmp_path):
    """As ``torch.save(model)`` does, with its memory format."""
    torch.manual_seed(0)
    for dilation in (False, True):
        backbone = Backbone("resnet10t", 1, dilation=dilation).eval()
        torch.save(backbone, tmp_path / "backbone.pt")
        again = torch.load(tmp_path / "backbone.pt", weights_only=False)
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(backbone(images)[0], again(images)[0])
        assert again.channels_last is not dilation
