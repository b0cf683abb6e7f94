"""Mosaic, mixup, zoom-out, rotation and own transforms: coloured rectangles are found again where their boxes are."""

import math

import pytest
import torch

from boxquery import UserError
from boxquery.augment import Augment
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import Augmented, Labelled, TrainTransform

from .test_transforms import chance, marked, raw, undo

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
