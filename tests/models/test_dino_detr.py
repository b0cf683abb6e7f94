"""What of DINO no output of given weights shows."""

import math

import pytest
import torch

import boxquery as bq
from boxquery.models import preset
from tests.models.builders import create


def test_constants_of_the_published_weights():
    """The scripts' noise, not the configuration's; and 100 // n groups for n objects, as ``dn_number=100`` means."""
    assert create("dino-detr").queries.denoising.noise.box == 1.0
    published = preset("dino-detr").options
    module = create("dino-detr", denoising=published.denoising).queries.denoising
    for count in (1, 6, 7, 40, 150):
        target = {"labels": torch.zeros(count, dtype=torch.int64), "boxes": torch.full((count, 4), 0.4)}
        assert module.noised([target], torch.zeros(1, 1, 4)).group.repeats == max(100 // count, 1)


def test_content_starts_as_their_code_leaves_it():
    content = create("dino-detr", num_queries=60).queries.content
    bound = math.sqrt(6 / sum(content.shape))
    assert content.abs().max() <= bound
    assert content.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_proposals_have_no_learned_position():
    with pytest.raises(bq.UserError, match="query_position='learned': proposals of each image have no learned position"):
        create("dino-detr", matching="one-to-one", query_position="learned")
