"""Scenes as batches: whatever is done to images and frame, a point of the world stays on its pixel; and chance is that of the scene."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from boxquery import UserError
from boxquery.boxes3d import project
from boxquery.data.loading import EpochSampler, Item
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.loading import SceneAugment, SceneDataset, SceneTransform, augment_view, collate_scenes
from boxquery.data.surround import surround_data

RAW = Preprocessing(96, mean=None, std=None)
DATA = surround_data(train=12, val=4)


def planted(record, size: int = 5):
    """A black image for each camera, with a white square where the first box that all of it sees has its centre; the box's number."""
    pixels, depth = project(record.boxes[:, :3], record.lidar2img)
    inside = (depth > 1) & (pixels > 12).all(2) & (pixels < np.array([148, 84])).all(2)
    v, n = np.argwhere(inside)[0]
    images = np.zeros((6, 96, 160, 3), np.uint8)
    x, y = pixels[v, n].astype(int)
    images[v, y - size // 2 : y + size // 2 + 1, x - size // 2 : x + size // 2 + 1] = 255
    return [Image.fromarray(image) for image in images], n


def lit(images: torch.Tensor) -> tuple[int, np.ndarray]:
    """Which image has the square, and its middle (x, y) in pixels."""
    bright = images.float().mean(1)
    v = int(bright.amax((1, 2)).argmax())
    weight = bright[v] * (bright[v] > bright[v].max() / 2)
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in weight.shape), indexing="ij")
    return v, np.array([float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())])


@pytest.mark.parametrize("height", [96, 48, 144, 61])
def test_resizing_keeps_points_on_their_pixels(height):
    split = DATA.splits["train"]
    transform = SceneTransform(replace(RAW, image_size=height), 96, 160, DATA.area)
    for record in split[:6]:
        images, n = planted(record)
        view = transform.view(transform.pixels(images), record)
        v, middle = lit(view.images)
        pixels, _ = project(view.boxes[:, :3], view.lidar2img)
        assert abs(pixels[v, n] - middle).max() < 0.75 * height / 96 + 0.3


@pytest.mark.parametrize(
    "augment",
    [
        SceneAugment(1.0, 0.0, (1.0, 1.0), 0.0),
        SceneAugment(0.0, 180.0, (1.0, 1.0), 0.0),
        SceneAugment(0.0, 0.0, (0.8, 0.9), 0.0),
        SceneAugment(0.0, 0.0, (1.05, 1.1), 0.0),
        SceneAugment(0.5, 90.0, (0.85, 1.1), 0.1),
    ],
    ids=["flip", "rotation", "smaller", "larger", "all"],
)
def test_augmentation_keeps_points_on_their_pixels(augment):
    transform = SceneTransform(RAW, 96, 160, DATA.area)
    checked = 0
    for i, record in enumerate(DATA.splits["train"]):
        images, n = planted(record)
        before = transform.view(transform.pixels(images), record)
        after = augment_view(before, record.cameras, augment, torch.Generator().manual_seed(i), (0, 0, 0))
        assert after.images.shape == before.images.shape
        pixels, _ = project(after.boxes[:, :3], after.lidar2img)
        v, middle = lit(after.images)
        if (pixels[v, n] > 4).all() and (pixels[v, n] < (156, 92)).all():
            assert abs(pixels[v, n] - middle).max() < 1.2
            checked += 1
        np.testing.assert_allclose(np.hypot(*after.boxes[:, :2].T), np.hypot(*before.boxes[:, :2].T))
    assert checked >= 6


def test_a_mirrored_scene_is_one_that_cameras_could_see():
    """Mirroring twice is nothing; left and right cameras change places, and no image is inside out."""
    transform, record = SceneTransform(RAW, 96, 160, DATA.area), DATA.splits["train"][0]
    before = transform.view(transform.pixels(DATA.splits["train"].read(0)), record)
    flip = SceneAugment(1.0, 0.0, (1.0, 1.0), 0.0)
    once = augment_view(before, record.cameras, flip, torch.Generator(), (0, 0, 0))
    assert torch.equal(once.images[1], before.images[5].flip(-1))
    assert (np.sign(np.linalg.det(once.lidar2img[:, :3, :3])) == np.sign(np.linalg.det(before.lidar2img[:, :3, :3]))).all()
    np.testing.assert_allclose(once.boxes[:, 1], -before.boxes[:, 1])
    twice = augment_view(once, record.cameras, flip, torch.Generator(), (0, 0, 0))
    assert torch.equal(twice.images, before.images)
    np.testing.assert_allclose(twice.lidar2img, before.lidar2img, atol=1e-9)
    np.testing.assert_allclose(twice.boxes, before.boxes, atol=1e-12)


def test_a_batch():
    transform = SceneTransform(Preprocessing(48), 96, 160, DATA.area)
    loader = DataLoader(SceneDataset(DATA.splits["train"], transform), 3, collate_fn=collate_scenes)
    batch = next(iter(loader)).to("cpu")
    assert batch.images.shape == (3, 6, 3, 48, 80)
    assert batch.images.dtype == batch.lidar2img.dtype == batch.targets[0]["boxes"].dtype == torch.float32
    assert batch.lidar2img.shape == (3, 6, 4, 4)
    assert batch.indices == [0, 1, 2]
    record = DATA.splits["train"][1]
    assert batch.targets[1]["labels"].tolist() == record.labels.tolist()
    np.testing.assert_allclose(batch.targets[1]["boxes"], record.boxes, rtol=1e-6)
    np.testing.assert_allclose(batch.lidar2img[1, :, :2], record.lidar2img[:, :2] / 2, rtol=1e-5)
    sample = SceneDataset(DATA.splits["train"], transform)[0]
    with pytest.raises(UserError, match="scenes of 5 and of 6 cameras in one batch"):
        collate_scenes([sample, {**sample, "images": sample["images"][:5]}])


def test_objects_to_be_ignored_or_outside_are_no_targets():
    record = DATA.splits["train"][0]
    hidden = np.arange(len(record.boxes)) == 1
    moved = record.boxes.copy()
    moved[0, :2] = 60, 0
    split = replace(DATA.splits["train"], records=[replace(record, ignore=hidden, boxes=moved, id="train/0")])
    target = SceneDataset(split, SceneTransform(RAW, 96, 160, DATA.area))[0]["target"]
    np.testing.assert_allclose(target["boxes"][:, 0], record.boxes[2:, 0], rtol=1e-6)


def test_chance_is_that_of_seed_epoch_and_scene():
    transform, split = SceneTransform(RAW, 96, 160, DATA.area), DATA.splits["train"]
    first, again = (SceneDataset(split, transform, augment=SceneAugment(), seed=3, cache=cache) for cache in (False, True))
    a, b = first[Item(1, 2)], again[Item(1, 2)]
    assert torch.equal(a["images"], b["images"])
    assert torch.equal(a["lidar2img"], b["lidar2img"])
    assert torch.equal(again[Item(1, 2)]["images"], a["images"])  # now from the cache
    assert not torch.equal(first[Item(2, 2)]["lidar2img"], a["lidar2img"])
    assert not torch.equal(SceneDataset(split, transform, augment=SceneAugment(), seed=4)[Item(1, 2)]["lidar2img"], a["lidar2img"])
    loader = DataLoader(again, 4, sampler=EpochSampler(len(split), 0), collate_fn=collate_scenes, num_workers=2)
    assert sorted(i for batch in loader for i in batch.indices) == list(range(12))


def test_unreadable_scenes_are_replaced_and_named():
    def read(record):
        if record.id == "train/1":
            raise UserError("x.jpg: not an image; replace it")
        return DATA.splits["train"].reader(record)

    split, transform = replace(DATA.splits["train"], reader=read), SceneTransform(RAW, 96, 160, DATA.area)
    sample = SceneDataset(split, transform)[1]
    assert (sample["index"], sample["unreadable"]) == (2, ["x.jpg: not an image; replace it"])
    with pytest.raises(UserError, match=r"x\.jpg: not an image"):
        SceneDataset(split, transform, strict=True)[1]
