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
from boxquery.data.transforms import Augmented, EvalTransform, Labelled, TrainTransform, recolour, to_picture


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
    out = EvalTransform(record)(image)
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


COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)


def coloured(label, height=120, width=160, box=(30, 40, 110, 100)):
    """A black image with a rectangle whose colour is that of its label."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = COLOURS[label].view(3, 1, 1)
    return Labelled(image, torch.tensor([box], dtype=torch.float32), torch.tensor([label]))


def others_of(pictures):
    """Draws from a list, in its order."""
    rest = iter(pictures)
    return lambda generator: next(rest)


def where(image, label, threshold=90):
    """The box around everything of a label's colour, xyxy in pixels; None if there is nothing."""
    distance = (image * 255 - COLOURS[label].view(3, 1, 1)).abs().amax(0)
    rows, columns = torch.nonzero(distance < threshold, as_tuple=True)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float() if len(rows) else None


def assert_fits(out, tolerance=2.0):
    """Every box is where the rectangle of its colour is."""
    corners = undo(out.boxes, *out.image.shape[1:])
    for box, label in zip(corners, out.labels.tolist(), strict=True):
        found = where(out.image, label)
        assert found is not None
        assert (found - box).abs().max() < tolerance


GREY = Preprocessing(96, mean=None, std=None)


def test_a_mosaic_has_four_images_and_the_size_of_one():
    transform = TrainTransform(GREY, Augment(mosaic=1.0, scales=(1.0,), vertical_flip=0.3))
    seen = torch.zeros(5)
    for seed in range(60):
        sizes = ((120, 160), (150, 90), (100, 100), (60, 200))
        pictures = [coloured(k, *size, (10, 10, size[1] - 10, size[0] - 10)) for k, size in enumerate(sizes)]
        out = transform(*pictures[0], chance(seed), others_of(pictures[1:]))
        assert out.image.shape == (3, *GREY.size(120, 160))
        assert len(set(out.labels.tolist())) == len(out.labels)
        assert_fits(out)
        seen[len(out.labels)] += 1
    assert seen[4] > 30
    assert seen[:2].sum() < 5


def test_a_mosaic_leaves_out_what_it_cuts_away():
    """Objects at the edge of an image that is larger than its quarter are cut; slivers of them are not labelled."""
    transform = TrainTransform(GREY, Augment(mosaic=1.0, scales=(1.0,), flip=0.0, mosaic_scales=(1.0, 1.0)))
    kept = 0
    for seed in range(40):
        pictures = [coloured(k, box=(0, 0, 60, 60)) for k in range(4)]
        out = transform(*pictures[0], chance(seed), others_of(pictures[1:]))
        corners = undo(out.boxes, *out.image.shape[1:])
        whole = (60 * 96 / 120) ** 2
        areas = (corners[:, 2:] - corners[:, :2]).prod(1)
        assert (areas > 0.19 * whole).all()
        for label in {0, 1, 2, 3} - set(out.labels.tolist()):
            found = where(out.image, label)
            assert found is None or (found[2:] - found[:2]).prod() < 0.22 * whole
        kept += len(out.labels)
        assert_fits(out)
    assert 10 < kept < 120


def test_zooming_out_shrinks_the_image():
    transform = TrainTransform(GREY, Augment(zoom_out=1.0, zoom_out_scales=(0.4, 0.6), scales=(1.0,), crop=0.0))
    for seed in range(20):
        out = transform(*coloured(2), chance(seed))
        assert out.image.shape == (3, 96, 128)
        assert 0.4 * 80 / 160 - 0.02 < out.boxes[0, 2] < 0.6 * 80 / 160 + 0.02
        assert_fits(out)


@pytest.mark.parametrize("parts", [{"crop": 0.0}, {"mosaic": 1.0}, {"crop": 1.0, "zoom_out": 0.5}])
def test_rotated_boxes_enclose_their_objects(parts):
    transform = TrainTransform(GREY, Augment(rotation=30.0, scales=(1.0,), **parts))
    sizes, kept = [], 0
    for seed in range(30):
        out = transform(*coloured(0), chance(seed), others_of([coloured(k) for k in (1, 2, 3)]))
        assert out.image.shape[1:] <= (128, 160)
        inside = ((out.boxes[:, :2] - out.boxes[:, 2:] / 2 > 0.02) & (out.boxes[:, :2] + out.boxes[:, 2:] / 2 < 0.98)).all(1)
        assert_fits(Augmented(out.image, out.boxes[inside], out.labels[inside]))
        kept += int(inside.sum())
        sizes += out.boxes[:, 2].tolist()
    assert kept > 5
    assert max(sizes) > 0.55 or "crop" not in parts  # 80 of 160 pixels before


def test_mixup_shows_two_images_and_counts_the_objects_of_both():
    transform = TrainTransform(GREY, Augment(mixup=1.0, scales=(1.0,), crop=0.0))
    for seed in range(20):
        first, second = coloured(0, box=(5, 5, 70, 50)), coloured(1, 150, 90, (10, 80, 80, 140))
        out = transform(*first, chance(seed), others_of([second]))
        assert out.labels.tolist() == [0, 1]
        assert out.image.shape == (3, 96, 128)
        corners = undo(out.boxes, 96, 128)
        for channel, box in zip(out.image, corners, strict=False):  # red is the first's alone, green the second's
            rows, columns = torch.nonzero(channel > 0.3, as_tuple=True)
            found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (found - box).abs().max() < 2
        assert 0.44 < out.image[0].max() < 1.01  # alone where the second does not reach, at about half where it does
        assert 0.44 < out.image[1].max() < 0.56


def test_nothing_is_drawn_for_parts_that_are_off():
    """A recipe draws the same numbers, and makes the same images, whatever parts exist beside those that it uses."""
    image, boxes = marked(120, 160, (30, 40, 110, 100))
    for seed in range(40):
        generator, same = chance(seed), chance(seed)
        out = TrainTransform(Preprocessing(96), Augment(colour=0.2))(image, boxes, torch.tensor([0]), generator, others_of([]))
        flipped = torch.rand((), generator=same) < 0.5
        torch.rand((), generator=same)
        changed = image.flip(2) if flipped else image
        if torch.rand((), generator=same) < 0.5:
            top, left, high, wide = TrainTransform(Preprocessing(96)).draw_crop(120, 160, same)
            changed = changed[:, top : top + high, left : left + wide]
        torch.randint(0, 11, (), generator=same)
        torch.rand(4, generator=same)
        assert torch.equal(generator.get_state(), same.get_state())
        assert abs(out.image.shape[2] / out.image.shape[1] - changed.shape[2] / changed.shape[1]) < 0.1


def test_the_end_of_a_run_is_plain():
    augment = Augment(mosaic=1.0, mixup=1.0, rotation=90.0, zoom_out=1.0, colour=0.2)
    mild = Augment(colour=0.2)
    for seed in range(10):
        plain = TrainTransform(GREY, augment)(*coloured(0), chance(seed), others_of([]), plain=True)
        expected = TrainTransform(GREY, mild)(*coloured(0), chance(seed))
        assert all(torch.equal(one, other) for one, other in zip(plain, expected, strict=True))


def test_images_are_mixed_only_up_to_a_number_of_objects():
    transform = TrainTransform(GREY, Augment(mosaic=1.0, mixup=1.0, scales=(1.0,), crop=0.0), most_objects=1)
    for seed in range(10):
        out = transform(*coloured(0), chance(seed), others_of([coloured(k) for k in (1, 2, 3, 1)]))
        assert len(out.labels) <= 1
        assert_fits(out)


def test_mixing_images_without_objects():
    nothing = Labelled(torch.full((3, 40, 60), 9, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    transform = TrainTransform(GREY, Augment(mosaic=1.0, mixup=1.0, rotation=20.0, zoom_out=1.0, colour=0.1))
    for seed in range(5):
        out = transform(*nothing, chance(seed), others_of([nothing] * 4))
        assert out.boxes.shape == (0, 4)
        assert out.labels.dtype == torch.int64


def test_an_own_transform_comes_first_and_sees_every_image():
    seen = []

    def own(image, boxes, labels, generator):
        seen.append(labels.tolist())
        return image.flip(1), torch.stack((boxes[:, 0], image.shape[1] - boxes[:, 3], boxes[:, 2], image.shape[1] - boxes[:, 1]), 1), labels

    out = TrainTransform(raw(96), Augment(own=own, scales=(1.0,), crop=0.0, flip=0.0))(*coloured(0, box=(0, 0, 50, 30)), chance())
    assert_fits(out)
    assert out.boxes[0, 1] > 0.8
    mixed = TrainTransform(raw(96), Augment(own=own, mosaic=1.0, mixup=1.0))
    mixed(*coloured(0), chance(), others_of([coloured(k) for k in (1, 2, 3, 1)]))
    assert seen == [[0], [0], [1], [2], [3], [1]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda image, boxes, labels: None, "returned a NoneType"),
        (lambda image, boxes, labels: (image, boxes), "image, boxes and labels"),
        (lambda image, boxes, labels: (image / 255, boxes, labels), r"as image float32 \[3, 120, 160\]; must be a tensor, uint8"),
        (lambda image, boxes, labels: (image[0], boxes, labels), r"must be a tensor, uint8 \[3, H, W\]"),
        (lambda image, boxes, labels: (image.permute(1, 2, 0), boxes, labels), r"image \[120, 160, 3\]"),
        (lambda image, boxes, labels: (image, boxes.double(), labels), "as boxes float64"),
        (lambda image, boxes, labels: (image, boxes.numpy(), labels), "as boxes a ndarray"),
        (lambda image, boxes, labels: (image, boxes, torch.tensor([0, 1])), r"labels \[2\]"),
        (lambda image, boxes, labels: (image, boxes * math.nan, labels), "NaN or inf"),
    ],
)
def test_what_an_own_transform_may_not_return(change, named):
    transform = TrainTransform(raw(96), Augment(own=lambda image, boxes, labels, generator: change(image, boxes, labels)))
    with pytest.raises(UserError, match=named):
        transform(*coloured(0), chance())
