"""What is measured of a finished run: multiply-adds as the family's page counts them, and what suppression takes away."""

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.compare.measure import gflops, suppressed
from boxquery.data.loading import Batch
from boxquery.detector import Detector
from boxquery.models import sizes


@pytest.mark.parametrize("name", bq.list_models())
def test_multiply_adds_are_those_of_the_familys_page(name):
    """Counted there on shapes alone, here on a real pass, in which attention must not hide in one fused operation."""
    model = bq.create_model(name, classes=91, preset="tiny").eval()
    detector = Detector(model, [str(i) for i in range(91)], list(range(91)), 160)
    batch = Batch(torch.zeros(1, 3, 160, 160), None, [], [0])
    assert gflops(detector, batch) == pytest.approx(sizes(name)["tiny"]["gflops"], abs=0.006)


def test_suppression_takes_the_worse_of_two_of_a_class():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 8], [0, 0, 10, 6], [50, 50, 60, 60]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.1], np.float32), np.array([0, 0, 1, 0, 0])
    kept = {t: suppressed({3: (boxes, scores, labels)}, t)[3] for t in (0.7, 0.5)}
    # IoU with the best: 0.8, (another class), 0.6
    assert sorted(kept[0.7][1].tolist()) == pytest.approx([0.1, 0.6, 0.7, 0.9])
    assert sorted(kept[0.5][1].tolist()) == pytest.approx([0.1, 0.7, 0.9])
    assert suppressed({0: (boxes[:0], scores[:0], labels[:0])}, 0.5)[0][0].shape == (0, 4)
