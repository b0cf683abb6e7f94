"""Sizes by DETR's rule, boxes that stay on their objects, reproducible augmentation."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as F

from boxquery import UserError
from boxquery.augment import DETR, Augment
from boxquery.data.preprocessing import MEAN, STD, Preprocessing, resized_size
from boxquery.data.transforms import EvalTransform, TrainTransform, recolour, to_picture


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def raw(image_size):
    """A size and nothing else: pixels stay in 0..1."""
    return Preprocessing(image_size, mean=None, std=None)


STILL = Augment(scales=(1.0,), crop=0.0, flip=0.0)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1066)),  # 800 * 640 / 480 = 1066.67, truncated
        (640, 480, (1066, 800)),
        (500, 500, (800, 800)),
        (800, 900, (800, 900)),
        (400, 1000, (533, 1332)),  # 1333 * 400 / 1000 = 533.2; 533 * 2.5 = 1332.5
        (375, 1242, (402, 1331)),  # 402.48 -> 402; 402 * 3.312 = 1331.4
        (427, 640, (800, 1199)),
        (1, 5000, (1, 5000)),  # the rule gives 0, which no image has; 1 is what it is already
    ],
)
def test_detr_sizes(height, width, expected):
    assert resized_size(height, width, 800, 1333) == expected
    assert Preprocessing().size(height, width) == expected


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(16, 1200))
@settings(max_examples=200, deadline=None)
def test_sizes_keep_the_ratio_and_the_limit(height, width, short):
    long = round(short * 1333 / 800)
    high, wide = Preprocessing(short).size(height, width)
    assert min(high, wide) >= 1
    if max(height, width) < long * min(height, width):  # otherwise not even one pixel would fit
        assert min(high, wide) <= short
        assert max(high, wide) <= long + long / min(high, wide)  # the short side is rounded first
        assert (high <= wide) == (height <= width) or high == wide
        assert math.isclose(high / wide, height / width, rel_tol=1.01 / min(high, wide))


def test_eval_is_resize_and_normalise():
    colour = (10, 100, 250)
    transform = EvalTransform(Preprocessing(64))
    image = transform(Image.new("RGB", (200, 100), colour))
    assert image.shape == (3, 54, 108)  # 107 * 100 / 200 = 53.5, rounded
    assert image.dtype == torch.float32
    for channel, value, mean, std in zip(image, colour, MEAN, STD, strict=True):
        torch.testing.assert_close(channel, torch.full_like(channel, (value / 255 - mean) / std))
    assert transform.preprocessing.size(100, 200) == (54, 108)


def test_eval_resizes_as_pillow_does():
    array = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    image = EvalTransform(raw(40))(Image.fromarray(array))
    expected = np.asarray(Image.fromarray(array).resize((53, 40), Image.Resampling.BILINEAR))
    assert np.abs(image.permute(1, 2, 0).numpy() * 255 - expected).max() <= 1.01


def marked(height, width, box, value=255):
    """A black image with a white box, uint8 [3, H, W], and the box as float32 [1, 4]."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = value
    return image, torch.tensor([box], dtype=torch.float32)


@pytest.mark.parametrize("augment", [DETR, Augment(vertical_flip=0.5, crop=1.0, scales=(0.5, 1.0, 1.3)), Augment(colour=0.2)])
def test_boxes_stay_on_their_objects(augment):
    """After any augmentation the white rectangle is where the box is."""
    transform = TrainTransform(raw(96), augment)
    image, boxes = marked(120, 160, (30, 40, 110, 100))
    kept = 0
    for seed in range(60):
        out = transform(image, boxes, torch.tensor([3]), chance(seed))
        white = out.image.mean(0) > 0.45
        if len(out.boxes) == 0:
            assert not white.any()
            continue
        kept += 1
        rows, columns = torch.nonzero(white, as_tuple=True)
        high, wide = white.shape
        x, y, w, h = out.boxes[0].tolist()
        found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        box = torch.tensor([(x - w / 2) * wide, (y - h / 2) * high, (x + w / 2) * wide, (y + h / 2) * high])
        assert (found - box).abs().max() < 1.6
        assert out.labels.tolist() == [3]
    assert kept > 50


@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 200), st.integers(0, 2**40), st.data())
@settings(max_examples=150, deadline=None)
def test_boxes_are_inside_and_never_invented(height, width, size, seed, data):
    count = data.draw(st.integers(0, 4))
    corners = [[data.draw(st.floats(0, 0.99)) * limit for limit in (width, height)] + [float(width), float(height)] for _ in range(count)]
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    transform = TrainTransform(Preprocessing(size), Augment(vertical_flip=0.5))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    out = transform(image, boxes, torch.arange(count), chance(seed))
    assert min(out.image.shape[1:]) >= 1
    assert torch.isfinite(out.image).all()
    assert out.boxes.shape == (len(out.labels), 4)
    assert out.boxes.dtype == torch.float32
    assert set(out.labels.tolist()) <= set(range(count))
    x, y, w, h = out.boxes.unbind(1)
    assert (out.boxes[:, 2:] > 0).all()
    for low, high in ((x - w / 2, x + w / 2), (y - h / 2, y + h / 2)):
        assert (low >= -1e-6).all()
        assert (high <= 1 + 1e-6).all()


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_flipped_twice_is_the_same(seed):
    size = 48
    generator = chance(seed)
    image = torch.randint(0, 256, (3, size, size + 9), dtype=torch.uint8, generator=generator)
    corners = torch.rand(5, 2, generator=generator) * 20
    boxes = torch.cat((corners, corners + 1 + torch.rand(5, 2, generator=generator) * 20), 1)
    flip = TrainTransform(raw(size), Augment(scales=(1.0,), crop=0.0, flip=1.0, vertical_flip=1.0))
    still = TrainTransform(raw(size), STILL)
    labels = torch.arange(5)
    once = flip(image, boxes, labels, chance())
    plain = still(image, boxes, labels, chance())
    torch.testing.assert_close(once.image.flip(1, 2), plain.image)
    centres = once.boxes.clone()
    centres[:, :2] = 1 - centres[:, :2]
    torch.testing.assert_close(centres, plain.boxes)
    pixels = (once.image * 255).round().to(torch.uint8)
    back = flip(pixels, undo(once.boxes, size, size + 9), labels, chance())
    torch.testing.assert_close(back.image, plain.image)
    torch.testing.assert_close(back.boxes, plain.boxes)


def undo(boxes, height, width):
    """Relative cxcywh to xyxy in pixels."""
    x, y, w, h = (boxes * torch.tensor([width, height, width, height])).unbind(1)
    return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1)


def test_detr_draws_what_the_paper_says():
    """Short sides 480..800 in steps of 32; about half cropped; long sides within 1333; crops of 384..600 after a resize."""
    transform = TrainTransform(Preprocessing(800))
    image, boxes = marked(600, 800, (0, 0, 800, 600))
    shorts, ratios = set(), []
    for seed in range(100):
        out = transform(image, boxes, torch.tensor([0]), chance(seed))
        high, wide = out.image.shape[1:]
        ratios.append(wide / high)
        if max(high, wide) < 1300:
            shorts.add(min(high, wide))
        assert max(high, wide) <= 1333
    assert shorts <= set(range(480, 801, 32))
    assert len(shorts) > 8
    uncropped = sum(abs(ratio - 4 / 3) < 0.01 for ratio in ratios)
    assert 35 < uncropped < 65
    for seed in range(100):
        _, _, high, wide = transform.draw_crop(600, 800, chance(seed))
        scales = [short / 600 for short in (400, 500, 600)]
        assert any(383 <= high * scale <= 601 and 383 <= wide * scale <= 601 for scale in scales)


def test_a_crop_without_objects_is_an_image_without_objects():
    transform = TrainTransform(Preprocessing(64), Augment(crop=1.0))
    image, boxes = marked(300, 300, (0, 0, 2, 2))
    lost = sum(len(transform(image, boxes, torch.tensor([0]), chance(seed)).boxes) == 0 for seed in range(30))
    assert lost > 15


def test_colour_changes_pixels_and_nothing_else():
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8, generator=chance())
    boxes, labels = torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.tensor([0])
    plain = TrainTransform(Preprocessing(48), STILL)(image, boxes, labels, chance(1))
    tinted = TrainTransform(Preprocessing(48), Augment(scales=(1.0,), crop=0.0, flip=0.0, colour=0.4))(image, boxes, labels, chance(1))
    assert tinted.image.shape == plain.image.shape
    assert not torch.equal(tinted.image, plain.image)
    torch.testing.assert_close(tinted.boxes, plain.boxes)


def test_colours_change_as_torchvision_changes_them():
    image = torch.randint(70, 150, (3, 40, 50), dtype=torch.uint8, generator=chance())
    same = torch.stack([image[0]] * 3)
    for changed, expected in (
        (recolour(image, 1.2, 1, 1, 0), F.adjust_brightness(image, 1.2)),
        (recolour(image, 0.7, 1, 1, 0), F.adjust_brightness(image, 0.7)),
        (recolour(image, 1, 1.3, 1, 0), F.adjust_contrast(image, 1.3)),
        (recolour(image, 1, 1, 0.6, 0), F.adjust_saturation(image, 0.6)),
        (recolour(image, 1.1, 0.8, 1.2, 0), F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(image, 1.1), 0.8), 1.2)),
        (recolour(image, 1, 1, 1, 1 / 3), F.adjust_hue(image, 1 / 3)),
        (recolour(image, 1, 1, 1, -1 / 3), F.adjust_hue(image, -1 / 3)),
        (recolour(same, 1, 1, 1, 0.1), same),
    ):
        assert (changed.int() - expected.int()).abs().max() <= 3  # which rounds down after every step
    shifted = F.adjust_hue(image, 0.05).int()  # by HSV's hexagon, not a circle
    there, back = ((recolour(image, 1, 1, 1, hue).int() - shifted).abs().float().mean() for hue in (0.05, -0.05))
    assert there < 0.5 * back
    assert torch.equal(recolour(image, 1, 1, 1, 0), image)


def test_input_is_not_changed():
    image, boxes = marked(64, 64, (1, 2, 30, 40))
    before = image.clone(), boxes.clone()
    for seed in range(20):
        TrainTransform(Preprocessing(64), Augment(vertical_flip=0.5, colour=0.5))(image, boxes, torch.tensor([0]), chance(seed))
    assert torch.equal(image, before[0])
    assert torch.equal(boxes, before[1])


@pytest.mark.parametrize("wrong", [{"flip": 2}, {"crop": -0.1}, {"scales": ()}, {"scales": (0.0,)}, {"crop_sides": (0.9, 0.1)}])
def test_wrong_augmentation(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Augment(**wrong)


@pytest.mark.parametrize("size", [0, 15, 10_000, 64.5])
def test_wrong_size(size):
    with pytest.raises(UserError, match="image_size"):
        Preprocessing(size)


def test_a_square_without_normalisation():
    """As released real-time models take it: every side the same, pixels in 0..1, nothing to pad."""
    record = Preprocessing(64, square=True, mean=None, std=None)
    image, boxes = marked(90, 150, (15, 30, 75, 60))
    out = EvalTransform(record)(F.to_pil_image(image))
    assert out.shape == (3, 64, 64)
    assert (out.min(), out.max()) == (0, 1)
    for seed in range(10):
        trained = TrainTransform(record, Augment(scales=(0.5, 1.0), crop=0.0, flip=0.0))(image, boxes, torch.tensor([0]), chance(seed))
        assert trained.image.shape in ((3, 64, 64), (3, 32, 32))
        torch.testing.assert_close(trained.boxes, torch.tensor([[0.3, 0.5, 0.4, 1 / 3]]))


@pytest.mark.parametrize("record", [Preprocessing(), Preprocessing(640, square=True, mean=None, std=None, interpolation="bicubic")])
def test_a_record_survives_json(record):
    assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": None}, {"std": [1, 2]}, {"std": [1, 0, 1]}, {"mean": [0.5, float("nan"), 0.5]}, {"mean": ["a", "b", "c"]},
        {"interpolation": "nearest"}, {"longest_ratio": 0.5}, {"longest_ratio": float("nan")}, {"image_size": "640"}, {"image_size": None},
        {"letterbox": True},
    ],
)  # fmt: skip
def test_wrong_records(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Preprocessing.from_dict({**Preprocessing().to_dict(), **wrong})
    with pytest.raises(UserError, match="no image_size"):
        Preprocessing.from_dict({"square": True})


@pytest.mark.parametrize("record", [Preprocessing(50), Preprocessing(50, mean=None, std=None)])
def test_the_input_back_as_a_picture(record):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture = to_picture(EvalTransform(record)(Image.fromarray(pixels)), record)
    assert np.array_equal(np.asarray(picture), pixels)
