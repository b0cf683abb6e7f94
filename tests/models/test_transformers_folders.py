"""Folders of Hugging Face's transformers: the same logits, boxes and class names, and one line for what is not read."""

import copy

import pytest
import torch
from torch import nn

import boxquery as bq
from boxquery.models import papers
from boxquery.official.transformers import list_kinds
from tests.models.builders import batch
from tests.models.transformers_folders import CASES, NAMES, model, save


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_same_predictions_and_names(case, tmp_path):
    theirs = model(case)
    for version in (4, 5):
        detector = bq.load(save(theirs, tmp_path / str(version), version=version))
        for sizes in (((96, 128), (64, 80)), ((128, 96),)):
            images, mask = batch(*sizes)
            expected = theirs(pixel_values=images, pixel_mask=(~mask).long())
            found = detector.model(images, mask, last_only=True)
            torch.testing.assert_close(found.logits[-1], expected.logits, atol=2e-4, rtol=0)
            torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=2e-4, rtol=0)
        assert detector.classes == [None if name == "N/A" else name for name in NAMES]
        assert detector.ids == [0, 1, 2, 3, 4]


@torch.no_grad()
@pytest.mark.parametrize("case", ["deformable-detr-refined", "deformable-detr-two-stage"])
def test_heads_that_are_not_shared(case, tmp_path):
    """As released checkpoints have them; a fresh model of the library shares its heads, and its files have one."""
    theirs, images = model(case), batch((96, 128))[0]
    for name in ("class_embed", "bbox_embed"):
        own = nn.ModuleList(copy.deepcopy(head) for head in getattr(theirs, name))
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        setattr(theirs, name, own)
        decoder = theirs.get_submodule("model.decoder")
        if getattr(decoder, name) is not None:
            setattr(decoder, name, own)
    for version in (4, 5):
        found = bq.load(save(theirs, tmp_path / str(version), version=version)).model(images, last_only=True)
        expected = theirs(pixel_values=images)
        torch.testing.assert_close(found.logits[-1], expected.logits, atol=2e-4, rtol=0)
        torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=2e-4, rtol=0)


def test_every_kind_has_a_case():
    assert set(list_kinds()) == {name for name in papers() if any(case.startswith(name) for case in CASES)}
