"""What the Detector shares with exported models: resizing, NMS, and no torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from boxquery.data.preprocessing import Preprocessing, Resize
from boxquery.runtime.nms import nms_per_class


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "side"), [((90, 130), 64), ((48, 80), 96), ((300, 40), 64)])
def test_resizing_is_pillows_and_training_differs_by_rounding(interpolation, size, side):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    resize = Resize(Preprocessing(side, interpolation=interpolation))
    height, width = resize.size(*size)
    pixels = resize(image)
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (3, height, width), True)
    assert np.array_equal(pixels.transpose(1, 2, 0), image.resize((width, height), Image.Resampling[interpolation.upper()]))
    ours = F.resize(F.pil_to_tensor(image), [height, width], InterpolationMode(interpolation), antialias=True)
    assert np.abs(pixels.astype(int) - ours.numpy()).max() <= 2


def test_a_fixed_size_is_that_of_every_image():
    resize = Resize(Preprocessing(64), fixed=(48, 80))
    assert [resize(Image.new("RGB", size)).shape for size in ((20, 20), (300, 100))] == [(3, 48, 80)] * 2


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7, 1.0])
def test_nms_is_torchvisions(threshold):
    chance = np.random.default_rng(1)
    corners = chance.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + chance.uniform(5, 40, (200, 2))], 1).astype(np.float32)
    scores, labels = chance.permutation(200).astype(np.float32), chance.integers(0, 3, 200)
    kept = nms_per_class(boxes, scores, labels, threshold)
    assert kept.tolist() == batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), threshold).tolist()
    assert len(kept) == 200 if threshold == 1 else 3 <= len(kept) < 200
    assert nms_per_class(boxes[:0], scores[:0], labels[:0], threshold).tolist() == []


def test_what_is_shared_needs_numpy_and_pillow_alone():
    code = "import sys; import boxquery.runtime.predictor; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert {"numpy", "PIL"} <= loaded
    assert loaded.isdisjoint({"torch", "torchvision", "scipy", "yaml", "cyclopts", "rich", "jinja2", "huggingface_hub", "hotcoco"})
