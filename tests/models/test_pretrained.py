"""The backbone of every model and preset starts from exactly what a file holds, and is frozen as published."""

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file

import boxquery as bq
from boxquery.models import list_baselines, preset
from boxquery.parts.weights import find_weights


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    torch.manual_seed(3)
    tensors = {name: value.clone() for name, value in timm.create_model("resnet18").state_dict().items()}
    for name, value in tensors.items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(tensors, file)
    return file, tensors


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("name", [*bq.list_models(), *list_baselines()])
def test_the_tensors_are_those_of_the_file(name, size, resnet18):
    file, tensors = resnet18
    model = bq.create_model(name, classes=3, preset=size, pretrained=find_weights("resnet18", file))
    prefix = "backbone.body."
    own = {key.removeprefix(prefix): value for key, value in model.state_dict().items() if key.startswith(prefix)}
    known = {key: value for key, value in tensors.items() if not key.startswith("fc.") and "num_batches" not in key}
    assert own.keys() >= known.keys()
    assert all(torch.equal(own[key], value) for key, value in known.items())
    assert model.backbone.left_out == ["fc"]
    assert model.config["frozen"]
    assert model.config["options"]["backbone_options"] == {}
    frozen = {key for key, parameter in model.backbone.body.named_parameters() if not parameter.requires_grad}
    assert {"conv1.weight", "layer1.0.conv1.weight"} <= frozen
    assert "layer2.0.conv1.weight" not in frozen
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.backbone.modules())


def test_only_the_backbone_of_a_preset_depends_on_weights(resnet18):
    """Everything else starts as without them, and what the user says of the backbone holds."""
    torch.manual_seed(0)
    model = bq.create_model("detr", classes=3, preset="tiny", pretrained=resnet18[0])
    torch.manual_seed(0)
    wide = bq.create_model("detr", classes=3, preset="tiny", backbone_options={})
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(model.layers.named_parameters(), wide.layers.named_parameters(), strict=True))
    assert not wide.config["frozen"]
    own = {"backbone_options": {"channels": [8, 8, 8, 8], "stem_width": 8, "stem_type": "deep", "layers": [1, 1, 1, 1]}}
    with pytest.raises(bq.UserError, match="without backbone_options that reshape it"):
        bq.create_model("detr", classes=3, preset="tiny", pretrained=resnet18[0], **own)


@pytest.mark.parametrize("name", [*bq.list_models(), *list_baselines()])
def test_presets_without_weights_are_what_they_were(name):
    for size in ("small", "tiny"):
        narrow, whole = preset(name, size), preset(name, size, pretrained=True)
        assert narrow.options.backbone_options["channels"] == (32, 64, 128, 256)
        assert dataclasses.replace(whole.options, backbone_options=narrow.options.backbone_options) == narrow.options
        assert dataclasses.replace(whole.recipe, backbone_lr=narrow.recipe.backbone_lr) == narrow.recipe
        assert whole.recipe.backbone_lr == whole.recipe.lr / 10
    assert preset(name, "paper", pretrained=True) is preset(name, "paper")
