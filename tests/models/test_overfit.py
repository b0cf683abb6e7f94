"""Every model learns one image by heart: loss, matching, gradients and post-processing pull in the same direction."""

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.data.dataset import Record
from boxquery.evaluation.metrics import evaluate
from boxquery.models.base import DetectionTransformer
from tests.models.builders import create

SIDE = 64
STEPS, CHECK, RATE = 300, 10, 1e-3
#: a layer less, and fewer queries
SMALL = {"ffn_dim": 128, "decoder_layers": 2, "num_queries": 20}
#: cxcywh in pixels, and a label each
BOXES = torch.tensor([[18.0, 20.0, 20.0, 24.0], [46.0, 22.0, 18.0, 28.0], [30.0, 49.0, 36.0, 18.0]])
LABELS = torch.tensor([0, 1, 2])


def scene() -> torch.Tensor:
    """[1, 3, 64, 64]: three plain rectangles on noise."""
    image = 0.1 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for (cx, cy, w, h), label in zip(BOXES.int().tolist(), LABELS.tolist(), strict=True):
        image[label, cy - h // 2 : cy + h // 2, cx - w // 2 : cx + w // 2] += 2.0
    return image[None]


@torch.no_grad()
def average_precision(model: DetectionTransformer, image: torch.Tensor) -> float:
    model.eval()
    found = model.postprocess(model(image), [(SIDE, SIDE)])[0]
    model.train()
    corners = torch.cat((BOXES[:, :2] - BOXES[:, 2:] / 2, BOXES[:, :2] + BOXES[:, 2:] / 2), -1).numpy()
    record = Record(
        id="scene", path=None, width=SIDE, height=SIDE, boxes=corners, labels=LABELS.numpy(),
        areas=BOXES[:, 2:].prod(-1).numpy(), ignore=np.zeros(len(BOXES), bool),
    )  # fmt: skip
    found = tuple(found[k].numpy() for k in ("boxes", "scores", "labels"))
    return evaluate([record], {0: found}, ["a", "b", "c"], [1, 2, 3])["AP"]


def learned(model: DetectionTransformer) -> float:
    """The AP on the one image, as soon as it is 1 or after ``STEPS`` steps."""
    image, targets = scene(), [{"labels": LABELS, "boxes": BOXES / SIDE}]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    reached = 0.0
    for step in range(1, STEPS + 1):
        loss, _ = model.loss(model(image, targets=targets), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        if step % CHECK == 0 and (reached := average_precision(model, image)) > 1 - 1e-9:
            break
    return reached


@pytest.mark.slow
@pytest.mark.parametrize("name", bq.list_models())
def test_learns_one_image_by_heart(name):
    assert learned(create(name, **SMALL).train()) == pytest.approx(1.0)
