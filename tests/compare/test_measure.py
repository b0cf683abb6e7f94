"""What is measured of a finished run: multiply-adds as the family's page counts them."""

import pytest
import torch

import boxquery as bq
from boxquery.compare.measure import gflops
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
