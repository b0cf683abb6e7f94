"""Batches: padding, masks, and images that do not depend on workers, order, cache or a resumed run."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from boxquery import UserError
from boxquery.augment import Augment
from boxquery.data import loading
from boxquery.data.dataset import Record, Split
from boxquery.data.images import read_image
from boxquery.data.loading import Batch, DetectionDataset, EpochSampler, Item, collate, generator
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.data.transforms import EvalTransform, TrainTransform

from . import writers


@pytest.fixture(scope="module")
def split():
    return shapes_data(train=12, size=64).splits["train"]


def batches(dataset, epochs=(0, 1), workers=0, batch=4):
    """Every sample of the epochs by (epoch, index), through a loader as training has it."""
    sampler = EpochSampler(len(dataset), seed=7)
    loader = DataLoader(dataset, batch, sampler=sampler, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0)
    result = {}
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for item in loader:
            for i, index in enumerate(item.indices):
                valid = item.images[i] if item.mask is None else item.images[i][:, ~item.mask[i].all(1)][:, :, ~item.mask[i].all(0)]
                result[epoch, index] = (valid, item.targets[i])
    return result


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key][0], b[key][0])
        assert all(torch.equal(a[key][1][name], b[key][1][name]) for name in ("boxes", "labels"))


def test_sample(split):
    sample = DetectionDataset(split, EvalTransform(Preprocessing(96)))[3]
    assert sample["image"].shape == (3, 96, 96)
    assert sample["index"] == 3
    record = split[3]
    x, y, w, h = (sample["target"]["boxes"].numpy() * 64).T
    np.testing.assert_allclose(np.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1), record.boxes, atol=1e-4)
    assert sample["target"]["labels"].tolist() == record.labels.tolist()


def test_images_do_not_depend_on_workers_batches_or_resuming(split):
    dataset = DetectionDataset(split, TrainTransform(Preprocessing(64)), seed=5)
    expected = batches(dataset)
    assert_same(batches(dataset, workers=2, batch=3), expected)
    later = batches(dataset, epochs=(1,))  # as after a restart
    assert_same(later, {key: value for key, value in expected.items() if key[0] == 1})


MIXED = Augment(mosaic=0.7, mixup=0.5, rotation=10.0, zoom_out=0.3, colour=0.2)


def test_mixed_images_do_not_depend_on_workers_batches_cache_or_resuming(split):
    dataset = DetectionDataset(split, TrainTransform(Preprocessing(64), MIXED), seed=5)
    expected = batches(dataset)
    assert_same(batches(DetectionDataset(split, dataset.transform, seed=5, cache=True), workers=2, batch=3), expected)
    later = batches(dataset, epochs=(1,))
    assert_same(later, {key: value for key, value in expected.items() if key[0] == 1})
    counts = [len(target["labels"]) for _, target in expected.values()]
    assert max(counts) > max(len(record.labels) for record in split), "as many objects as several images have"
    assert max(max(image.shape[1:]) for image, _ in expected.values()) <= 64 * 1333 / 800


def test_the_end_of_a_run_has_plain_images(split):
    """From a point of the run on, in the middle of an epoch too, the sampler asks for plain images."""
    sampler, dataset = EpochSampler(12, 0), DetectionDataset(split, TrainTransform(Preprocessing(64), MIXED))
    sampler.plain_from = lambda epoch: 1.5
    plain = {}
    for epoch in range(3):
        sampler.set_epoch(epoch)
        plain[epoch] = [item.plain for item in sampler]
    assert plain == {0: [False] * 12, 1: [False] * 6 + [True] * 6, 2: [True] * 12}
    without = DetectionDataset(split, TrainTransform(Preprocessing(64), MIXED.plain()))
    for index in range(12):
        one, other = dataset[Item(2, index, plain=True)], without[2, index]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["target"]["boxes"], other["target"]["boxes"])


def test_a_split_of_one_image_is_mixed_with_itself(split):
    alone = Split("train", [split[0]], split.reader)
    sample = DetectionDataset(alone, TrainTransform(Preprocessing(64), Augment(mosaic=1.0, mixup=1.0)))[0]
    assert set(sample["target"]["labels"].tolist()) <= set(split[0].labels.tolist())


def test_an_unreadable_partner_is_replaced_and_named(split):
    def read(record):
        if record.id == split[3].id:
            raise UserError("image 3 is broken")
        return split.reader(record)

    damaged = Split("train", split.records, read)
    mixed = DetectionDataset(damaged, TrainTransform(Preprocessing(64), Augment(mosaic=1.0)))
    lines = [line for epoch in range(4) for index in range(12) if index != 3 for line in mixed[epoch, index]["unreadable"]]
    assert set(lines) == {"image 3 is broken"}
    strict = DetectionDataset(damaged, mixed.transform, strict=True)
    with pytest.raises(UserError, match="image 3"):
        _ = [strict[epoch, 0] for epoch in range(20)]


def test_images_depend_on_epoch_seed_and_image(split):
    dataset = DetectionDataset(split, TrainTransform(Preprocessing(64)), seed=5)
    first = dataset[0, 2]["image"]
    others = [dataset[1, 2]["image"], DetectionDataset(split, TrainTransform(Preprocessing(64)), seed=6)[0, 2]["image"]]
    assert all(first.shape != other.shape or not torch.equal(first, other) for other in others)
    assert torch.equal(dataset[2]["image"], first)
    draws = {generator(seed, epoch, name).initial_seed() for seed in (0, 1) for epoch in range(50) for name in (0, 1, "0", "train/1")}
    assert len(draws) == 2 * 50 * 4


def test_the_global_generator_is_left_alone(split):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    _ = DetectionDataset(split, TrainTransform(Preprocessing(64)))[0, 0]
    list(EpochSampler(5, 0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_changes_nothing_and_is_shared(split, workers):
    reads = []
    counted = Split(split.name, split.records, lambda record: reads.append(record.id) or split.reader(record))
    cached = DetectionDataset(counted, TrainTransform(Preprocessing(64)), seed=5, cache=True)
    assert_same(batches(cached, workers=workers), batches(DetectionDataset(split, TrainTransform(Preprocessing(64)), seed=5)))
    if workers == 0:
        assert len(reads) == len(split)
    reads.clear()
    _ = [cached[0, i] for i in range(len(split))]
    assert reads == []  # the workers' reading is seen here


def test_cache_has_a_limit(split, monkeypatch):
    assert DetectionDataset(split, EvalTransform(Preprocessing(64)), cache=True).cache is not None
    monkeypatch.setattr(loading, "cache_limit", lambda: 1000)
    assert DetectionDataset(split, EvalTransform(Preprocessing(64)), cache=True).cache is None
    monkeypatch.undo()
    dataset = DetectionDataset(split, EvalTransform(Preprocessing(64)), cache=True)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["image"], dataset[0]["image"])  # noqa: S301
    assert DetectionDataset(shapes_data(train=2**32).splits["train"], EvalTransform(Preprocessing(64)), cache=True).cache is None


def test_ignored_objects_are_not_targets():
    record = Record(
        id=1,
        path=None,
        width=32,
        height=32,
        boxes=np.float32([[0, 0, 9, 9], [1, 1, 30, 30]]),
        labels=np.int64([0, 1]),
        ignore=np.array([True, False]),
        areas=np.float32([81, 841]),
    )
    split = Split("train", [record], lambda record: Image.new("RGB", (32, 32)))
    for transform in (EvalTransform(Preprocessing(32)), TrainTransform(Preprocessing(32))):
        assert set(DetectionDataset(split, transform)[0]["target"]["labels"].tolist()) <= {1}


def sample(height, width, value=1.0):
    target = {"labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}
    return {"image": torch.full((3, height, width), value), "target": target, "index": height}


def test_collate_without_padding_has_no_mask():
    batch = collate([sample(5, 7), sample(5, 7)])
    assert batch.mask is None
    assert batch.images.shape == (2, 3, 5, 7)
    assert batch.indices == [5, 5]


def test_collate_pads_to_the_largest():
    batch = collate([sample(5, 9), sample(8, 4)])
    assert batch.images.shape == (2, 3, 8, 9)
    assert batch.mask.shape == (2, 8, 9)
    assert batch.mask.dtype == torch.bool
    assert torch.equal(batch.mask, batch.images[:, 0] == 0)
    assert (~batch.mask).sum((1, 2)).tolist() == [45, 32]
    assert not batch.mask[0, :5, :9].any()
    moved = batch.to("cpu")
    assert isinstance(moved, Batch)
    assert torch.equal(moved.images, batch.images)


@pytest.mark.parametrize("shapes", [None, [0.5, -0.5, 0.1]])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 10, 11])
def test_sampler(n, world, shapes):
    own = None if shapes is None else [shapes[i % 3] for i in range(n)]
    samplers = [EpochSampler(n, 3, rank, world, shapes=own, group=2 * world) for rank in range(world)]
    orders = []
    for epoch in (0, 1, 0):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        parts = [list(sampler) for sampler in samplers]
        assert {len(part) for part in parts} == {len(samplers[0])}
        assert {item.epoch for part in parts for item in part} == {epoch}
        assert {item.index for part in parts for item in part} == set(range(n))
        orders.append([item.index for part in parts for item in part])
    assert orders[0] == orders[2]
    assert n < 10 or orders[0] != orders[1]


@pytest.mark.parametrize("world", [1, 2])
def test_batches_are_of_images_with_one_shape_where_those_suffice(world):
    shapes = [-0.3, 0.3] * 38
    samplers = [EpochSampler(75, 3, rank, world, shapes=shapes[:75], group=4) for rank in range(world)]
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        parts = [[item.index for item in sampler] for sampler in samplers]
        batches = [[index for part in parts for index in part[i : i + 4 // world]] for i in range(0, 72 // world, 4 // world)]
        mixed = [len({shapes[index] for index in batch}) > 1 for batch in batches]
        assert sum(mixed) <= 2  # one per window, of which there are two
        portrait = [shapes[batch[0]] < 0 for batch in batches]
        assert portrait != sorted(portrait)
        assert portrait != sorted(portrait, reverse=True)


def test_sampler_rejects_wrong_arguments():
    for wrong in ({"n": 0}, {"n": 3, "rank": 2, "world": 2}):
        with pytest.raises(ValueError, match="EpochSampler"):
            EpochSampler(seed=0, **wrong)


def test_files_to_batches(tmp_path):
    """A data set on disk, with images of several sizes and one without objects, through the loader."""
    images = writers.pictures(12)
    for i, picture in enumerate(images):
        picture.size = picture.stated = (64 + 8 * (i % 3), 48)
    images[0].things = []
    data = open_data(writers.write_voc(tmp_path, images))
    dataset = DetectionDataset(data.splits["train"], TrainTransform(Preprocessing(48)))
    result = batches(dataset, workers=2)
    assert len(result) == 2 * len(data.splits["train"])
    assert all(target["boxes"].shape == (len(target["labels"]), 4) for _, target in result.values())


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("cache", [False, True])
def test_an_image_much_larger_than_what_is_shown_is_read_smaller(tmp_path, name, cache):
    """With its boxes; evaluation reads all of it."""
    pixels = np.zeros((601, 803, 3), np.uint8)
    pixels[300:, 400:] = 255
    Image.fromarray(pixels).save(tmp_path / name)
    box = np.array([[400, 300, 803, 601]], np.float32)
    record = Record("a", tmp_path / name, 803, 601, box, np.zeros(1, np.int64), np.zeros(1, bool), np.ones(1, np.float32))
    split = Split("train", [record], lambda record: read_image(record.path))
    plain = Augment(scales=(1.0,), crop=0.0, flip=0.0)
    dataset = DetectionDataset(split, TrainTransform(Preprocessing(64), plain), cache=cache)
    assert dataset.shapes() == [(3, 151, 201)]
    assert dataset._pixels(0).shape == (3, 151, 201)
    sample = dataset[0, 0]
    torch.testing.assert_close(sample["target"]["boxes"], torch.tensor([[0.749, 0.7496, 0.5019, 0.5008]]), atol=0.002, rtol=0)
    whole = DetectionDataset(split, TrainTransform(Preprocessing(64), replace(plain, own=lambda *picture: picture[:3])))
    assert whole.shapes() == [(3, 601, 803)]
    assert (sample["image"] - whole[0, 0]["image"]).abs().mean() < 0.05
    assert DetectionDataset(split, EvalTransform(Preprocessing(64)))[0]["image"].shape == sample["image"].shape
    assert DetectionDataset(split, TrainTransform(Preprocessing(320), plain)).shapes() == [(3, 601, 803)]
