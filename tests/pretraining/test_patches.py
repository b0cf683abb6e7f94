"""Random patches: their sizes and places, what is cut out, and that chance comes from (seed, epoch, image) alone; folders of images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from boxquery import UserError
from boxquery.augment import Augment
from boxquery.data.dataset import Record, Split
from boxquery.data.loading import EpochSampler, collate, generator
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.evaluation.metrics import evaluate
from boxquery.pretraining import images as images_room
from boxquery.pretraining.evaluation import mean_iou
from boxquery.pretraining.images import open_images
from boxquery.pretraining.patches import PatchDataset, draw_boxes, fixed_boxes, patch_side, with_patches
from tests.data import writers

AS_IS = Augment(scales=(1.0,), crop=0.0, flip=0.0)


@pytest.fixture(scope="module")
def split() -> Split:
    return with_patches(shapes_data(train=6, size=64).splits["train"], 5)


def dataset(split: Split, size: int = 64, **options) -> PatchDataset:
    return PatchDataset(split, Preprocessing(size, mean=None, std=None), AS_IS, 5, **({"drawn": True} | options))


def test_sizes_and_places_are_drawn_evenly_from_all_that_fit():
    boxes = draw_boxes(40, 100, 20_000, torch.Generator().manual_seed(0)).double()
    for low, high, extent in ((0, 2, 100), (1, 3, 40)):
        side, start = boxes[:, high] - boxes[:, low], boxes[:, low]
        assert side.min() == 8
        assert side.max() == extent - 8
        assert side.mean().item() == pytest.approx(extent / 2, rel=0.02)
        room = start / (extent - side)
        assert start.min() == 0
        assert boxes[:, high].max() == extent
        assert room.mean().item() == pytest.approx(0.5, abs=0.01)
        assert side.unique().numel() == extent - 15, "both ends included"
    assert draw_boxes(17, 17, 50, torch.Generator().manual_seed(0)).max() <= 17


def test_a_patch_is_what_is_inside_its_box():
    pixels = np.zeros((50, 60, 3), np.uint8)
    pixels[10:30, 20:45] = 255
    record = Record("a", None, 60, 50, np.array([[20, 10, 45, 30]], np.float32), np.array([0]), np.zeros(1, bool), np.array([500.0]))
    one = PatchDataset(
        Split("val", [record], lambda r: Image.fromarray(pixels)), Preprocessing(100, mean=None, std=None), AS_IS, 1, drawn=False
    )
    sample = one[0]
    assert sample["target"]["patches"].shape == (1, 3, 32, 32)
    assert bool((sample["target"]["patches"] == 1).all())
    assert sample["image"].shape == (3, 100, 120)
    assert sample["target"]["boxes"][0].tolist() == pytest.approx([32.5 / 60, 20 / 50, 25 / 60, 20 / 50])
    assert sample["target"]["labels"].tolist() == [0], "one class in training"


@pytest.mark.parametrize(("size", "side"), [(480, 128), (160, 48), (240, 64), (16, 32), (800, 208)])
def test_patches_keep_their_share_of_the_image(size, side):
    assert patch_side(size) == side


def test_chance_comes_from_seed_epoch_and_image_alone(split):
    def samples(workers: int, seed: int = 3) -> dict:
        data, sampler = dataset(split, seed=seed), EpochSampler(len(split), seed=7)
        loader = DataLoader(data, 3, sampler=sampler, num_workers=workers, collate_fn=collate)
        out = {}
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            for batch in loader:
                out |= {(epoch, index): target for index, target in zip(batch.indices, batch.targets, strict=True)}
        return out

    first, second, other = samples(0), samples(2), samples(0, seed=4)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key][name], second[key][name]) for key in first for name in ("boxes", "patches"))
    assert not torch.equal(first[0, 2]["boxes"], first[1, 2]["boxes"])
    assert not torch.equal(first[0, 2]["boxes"], other[0, 2]["boxes"])


def test_patches_are_recoloured_only_where_they_are_drawn(split):
    fixed = dataset(split, drawn=False)
    assert all(torch.equal(a, b) for a, b in zip(fixed[(0, 1)]["target"].values(), fixed[(1, 1)]["target"].values(), strict=True))
    assert fixed[0]["target"]["boxes"].shape == (5, 4)
    patch = (torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    data = dataset(split)
    made = [data.recoloured(patch, generator(0, epoch, "a")) for epoch in range(200)]
    grey = [bool((own == own[:1]).all()) for own in made]
    assert sum(grey) / 200 == pytest.approx(0.2, abs=0.08)
    assert 0.02 < sum(torch.equal(own, patch) for own in made) / 200 < 0.2, "0.2 x 0.8 x 0.5 stay as they are"
    assert all(own.shape == patch.shape and own.dtype == torch.uint8 for own in made)


def test_evaluated_patches_are_always_the_same_ones(split):
    record = shapes_data(train=6, size=64).splits["train"][2]
    assert np.array_equal(fixed_boxes(record, 5), split[2].boxes)
    assert not np.array_equal(fixed_boxes(replace(record, id="other"), 5), split[2].boxes)
    assert split[2].labels.tolist() == [0, 1, 2, 3, 4]


def test_each_patch_counts_for_its_own_queries(split):
    right = {i: (record.boxes, np.linspace(0.9, 0.5, 5), record.labels) for i, record in enumerate(split)}
    wrong = {i: (boxes, scores, np.roll(labels, 1)) for i, (boxes, scores, labels) in right.items()}
    names, ids = [f"patch {i}" for i in range(5)], list(range(5))
    assert evaluate(split, right, names, ids)["AP"] == pytest.approx(1.0)
    assert mean_iou(split, right) == pytest.approx(1.0)
    assert evaluate(split, wrong, names, ids)["AP"] < 0.2
    assert mean_iou(split, wrong) < 0.5
    assert mean_iou(split, {}) == 0
    unsure = {i: (np.concatenate((boxes, boxes + 3)), np.full(10, 0.5) + np.repeat([0, 0.1], 5), np.tile(labels, 2))
              for i, (boxes, _, labels) in right.items()}  # fmt: skip
    assert 0.3 < mean_iou(split, unsure) < 1, "the box that it is most sure of"


def test_a_folder_of_images_is_read_without_its_annotations(tmp_path):
    writers.write_voc(tmp_path / "photos", writers.pictures(20))
    (tmp_path / "photos" / "broken.xml").write_text("<no")
    Image.new("RGB", (64, 48)).save(tmp_path / "photos" / "JPEGImages" / "again.png")
    (tmp_path / "photos" / "SegmentationClass").mkdir()
    Image.new("L", (64, 48)).save(tmp_path / "photos" / "SegmentationClass" / "p001.png")
    data = open_images(str(tmp_path / "photos"), 4)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 17, "val": 4}
    assert data.names == ["patch 1", "patch 2", "patch 3", "patch 4"]
    assert data.ids == [1, 2, 3, 4]
    assert all(len(record.boxes) == 4 for split in data.splits.values() for record in split)
    assert any("1 image in folders of masks" in note for note in data.notes)
    assert open_images(str(tmp_path / "photos"), 4).splits["val"][0].id == data.splits["val"][0].id


def test_few_are_held_out_of_many(tmp_path, monkeypatch):
    monkeypatch.setattr(images_room, "MOST_HELD_OUT", 3)
    writers.write_voc(tmp_path / "photos", writers.pictures(30))
    for i, path in enumerate(sorted((tmp_path / "photos").rglob("*.jpg")) + sorted((tmp_path / "photos").rglob("*.png"))):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    assert {name: len(split) for name, split in open_images(str(tmp_path), 4).splits.items()} == {"train": 27, "val": 3}


def test_images_that_cannot_be_used_are_named(tmp_path):
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    Image.new("RGB", (16, 300)).save(tmp_path / "strip.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    data = open_images(str(tmp_path), 3)
    assert sum(map(len, data.splits.values())) == 24
    assert [line for line in data.skipped if "strip" in line and "no room for patches, which takes 17 pixels" in line]
    assert [line for line in data.skipped if "torn.png" in line]
    with pytest.raises(UserError, match=r"strip|torn"):
        open_images(str(tmp_path), 3, strict=True)
    for i in range(6):
        Image.new("RGB", (12 + i, 12)).save(tmp_path / f"small{i}.png")
    with pytest.raises(UserError, match="too small, more than 10%"):
        open_images(str(tmp_path), 3)


def test_a_data_set_that_was_opened_and_built_in_scenes_keep_their_splits():
    data = open_images("shapes:train=5,val=3,size=64", 4)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 5, "val": 3}
    again = open_images(shapes_data(train=5, val=3, size=64), 4)
    assert [record.id for record in again.splits["val"]] == [record.id for record in data.splits["val"]]


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="no such image or folder"):
        open_images(str(tmp_path / "nowhere"), 3)
    with pytest.raises(UserError, match="no image or video there"):
        open_images(str(tmp_path), 3)
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="one image cannot be split"):
        open_images(str(tmp_path), 3)
