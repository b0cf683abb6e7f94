"""The built-in scenes of six cameras are what they claim: places, sizes, projection, occlusion, noise, seeds."""

import hashlib
import pickle
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from boxquery import UserError
from boxquery.boxes3d import corners, project
from boxquery.data.scenes.open import holds_scenes, open_scenes
from boxquery.data.surround import surround_data
from boxquery.data.surround.looks import NAMES, SIZES, SPREAD
from boxquery.data.surround.scenes import CAMERAS, CLEARANCE, SIDE


@pytest.fixture(scope="module")
def records():
    return surround_data().splits["train"][:600]


def test_objects(records):
    counts = np.array([len(record.boxes) for record in records])
    assert (counts.min(), counts.max()) == (3, 12)
    boxes, labels = (np.concatenate([getattr(record, name) for record in records]) for name in ("boxes", "labels"))
    assert len(NAMES) >= 4
    assert abs(np.bincount(labels) / len(labels) * len(NAMES) - 1).max() < 0.12
    nominal = np.array(list(SIZES.values()))[labels]
    assert abs(boxes[:, 3:6] / nominal - 1).max() < SPREAD + 0.03
    np.testing.assert_allclose(boxes[:, 2], boxes[:, 5] / 2)  # on the plane
    assert abs(boxes[:, :2]).max() <= SIDE / 2
    assert np.hypot(boxes[:, 0], boxes[:, 1]).min() >= CLEARANCE
    for turned in (boxes[:, 6], np.arctan2(boxes[:, 1], boxes[:, 0])):
        assert abs(np.histogram(turned, 8, (-np.pi, np.pi))[0] / len(boxes) * 8 - 1).max() < 0.2
    inner = (np.abs(boxes[:, :2]) < SIDE / 4).all(1).mean()
    assert abs(inner - 0.25) < 0.03  # uniform: half of the side holds a quarter of the objects
    assert np.isnan(boxes[:, 7:]).all()


def test_objects_meet_neither_each_other_nor_the_vehicle(records):
    steps = np.linspace(0, 1, 12)
    for record in records[:60]:
        points = corners(record.boxes)[:, :4, :2]
        outline = np.concatenate(
            [points[:, i, None] + steps[:, None] * (points[:, (i + 1) % 4] - points[:, i])[:, None] for i in range(4)], 1
        )
        assert np.hypot(outline[..., 0], outline[..., 1]).min() > CLEARANCE - 1e-9
        for box in record.boxes:
            local = outline - box[:2]
            cosine, sine = np.cos(box[6]), np.sin(box[6])
            along, across = cosine * local[..., 0] + sine * local[..., 1], cosine * local[..., 1] - sine * local[..., 0]
            inside = ((np.abs(along) < box[4] / 2 - 1e-6) & (np.abs(across) < box[3] / 2 - 1e-6)).any(1)
            assert not inside[(record.boxes[:, :2] != box[:2]).any(1)].any()


def test_cameras_see_all_around_from_above_the_plane(records):
    for record in records[:50]:
        assert record.cameras == CAMERAS
        places = -np.linalg.inv(record.lidar2img[:, :3, :3]) @ record.lidar2img[:, :3, 3, None]
        assert ((places[:, 2, 0] > 3.3) & (places[:, 2, 0] < 4.1)).all()
        assert np.hypot(places[:, 0], places[:, 1]).max() < 1.5
        angles = np.linspace(-np.pi, np.pi, 720)
        around = np.stack((50 * np.cos(angles), 50 * np.sin(angles), np.ones(720)), 1)
        pixels, depth = project(around, record.lidar2img)
        seen = (depth > 0) & (pixels[..., 0] > 0) & (pixels[..., 0] < 160) & (pixels[..., 1] > 0) & (pixels[..., 1] < 96)
        assert seen.sum(0).min() >= 1
        assert seen.sum(0).max() <= 2
        assert 1.02 < seen.sum(0).mean() < 1.2
        front = project(np.array([[20.0, 0, 1]]), record.lidar2img)[1][:, 0].argmax()
        assert record.cameras[front] == "front"
        assert record.cameras[project(np.array([[0, 20.0, 1]]), record.lidar2img)[1][:, 0].argmax()] in ("front_left", "rear_left")


def test_boxes_are_those_of_the_pixels():
    """A lone object is drawn inside the outline of its projected corners, and touches all four sides of it, to a pixel."""
    split = surround_data(objects=1).splits["val"]
    checked = 0
    for record in split[:70]:
        met = split.records.render(record)[1]
        pixels, depth = project(corners(record.boxes), record.lidar2img)
        for v in np.flatnonzero(met[:, 0] > 100):
            low, high = pixels[v, 0].min(0), pixels[v, 0].max(0)
            if (depth[v] < 0.5).any() or (low < 1).any() or (high > (159, 95)).any() or NAMES[record.labels[0]] in ("car", "truck"):
                continue  # cut off by the image; boxes that are not full
            image, alone = (np.asarray(draw(split, record, v, boxes)) for boxes in (True, False))
            rows, columns = np.nonzero((image != alone).any(2))
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert abs(found - (*low, *high)).max() < 1.01
            checked += 1
    assert checked > 8


def draw(split, record, view, boxes: bool):
    """An image of a scene with its objects or without; the random numbers are the same."""
    from boxquery.data.surround.paint import paint

    scenes, index = split.records, int(record.id.rpartition("/")[2])
    shown = record.boxes.copy()
    shown[:, 2] -= 0 if boxes else 1e4
    return paint(scenes.rng(index, 3), scenes.cameras(index)[view : view + 1], scenes.size, shown, record.labels)[0][0]


def test_the_nearer_object_hides_the_other():
    from boxquery.data.surround.paint import paint

    scenes = surround_data().splits["train"].records
    near, far = np.array([12.0, 0, 2.2, 2.8, 10, 4.4, np.pi / 2, 0, 0]), np.array([30.0, 0, 1, 2.2, 5, 2, 0, 0, 0])
    cameras = scenes.cameras(0)[:1]
    for boxes, labels in ((np.stack((near, far)), [2, 0]), (np.stack((far, near)), [0, 2])):
        met = paint(np.random.default_rng(0), cameras, (160, 96), boxes, np.array(labels))[1][0]
        assert met[labels.index(0)] == 0 < met[labels.index(2)]
    assert paint(np.random.default_rng(0), cameras, (160, 96), far[None], np.array([0]))[1][0, 0] > 50


def test_most_objects_are_visible(records):
    split = surround_data().splits["val"]
    met = np.concatenate([split.records.render(record)[1].sum(0) for record in split[:40]])
    assert (met == 0).mean() < 0.08
    assert np.median(met) / 4 > 100


def test_faces_tell_front_from_rear_and_classes_apart():
    """The same place and size: turned by half, or of another class, an object looks different."""
    from boxquery.data.surround.paint import paint

    scenes = surround_data().splits["train"].records
    box = np.array([10.0, 0, 1.4, 2.6, 6, 2.8, 0.4, 0, 0])

    def view(label, yaw):
        boxes = box[None].copy()
        boxes[:, 6] += yaw
        return np.asarray(paint(np.random.default_rng(0), scenes.cameras(0)[:1], (160, 96), boxes, np.array([label]))[0][0]).astype(int)

    for label in range(len(NAMES)):
        assert abs(view(label, 0) - view(label, np.pi)).max() > 60
        for other in range(label):
            assert (abs(view(label, 0) - view(other, 0)).max(2) > 40).sum() > 100


def test_noise_is_of_the_stated_calibration_alone():
    quiet, noisy = (surround_data(noise=noise).splits["val"] for noise in (0, 1.0))
    assert np.array_equal(quiet.read(2)[1], noisy.read(2)[1])
    np.testing.assert_array_equal(quiet[2].boxes, noisy[2].boxes)
    far = np.array([[40.0, 0, 1]])
    shifts = []
    for i in range(60):
        (a, _), (b, _) = (project(far, split[i].lidar2img[:1]) for split in (quiet, noisy))
        shifts.append((a - b).ravel())
    assert 1.2 < np.std(shifts) < 3.5  # a degree is about two pixels
    np.testing.assert_array_equal(quiet.records.cameras(2), quiet[2].lidar2img)


def test_scenes_stay_what_they_were():
    """Runs are compared across versions: the same seeds give the same objects and cameras, to a millimetre."""

    def digest(**given) -> str:
        found = hashlib.blake2b(digest_size=8)
        for split in surround_data(**given).splits.values():
            for record in split[:6]:
                rounded = (np.round(values, 3) + 0.0 for values in (record.boxes[:, :7], record.lidar2img))  # 0, not -0
                found.update(b"".join(values.tobytes() for values in (*rounded, record.labels)))
        return found.hexdigest()

    assert digest() == "bae83cc4d374e00d"
    assert digest(objects=12, seed=3, noise=0.5) == "0ad51566a16fa99c"


def test_no_scene_and_no_rig_twice():
    seen, rigs = set(), set()
    for seed in (0, 1):
        for split in surround_data(seed=seed).splits.values():
            seen |= {record.boxes.tobytes() for record in split[:50]}
            rigs |= {record.lidar2img.tobytes() for record in split[:50]}
    assert len(seen) == len(rigs) == 2 * 3 * 50


def test_split_is_a_lazy_sequence():
    split = surround_data(train=2**32).splits["train"]
    last = split[-1]
    assert last.id == f"train/{2**32 - 1}"
    assert [image.size for image in split.read(2**32 - 1)] == [(160, 96)] * 6
    assert last.sizes.tolist() == [[160, 96]] * 6
    assert (last.boxes.dtype, last.labels.dtype, last.lidar2img.shape) == (np.float64, np.int64, (6, 4, 4))
    with pytest.raises(IndexError):
        split[2**32]
    again = pickle.loads(pickle.dumps(split))  # noqa: S301
    assert [image.tobytes() for image in again.read(3)] == [image.tobytes() for image in split.read(3)]


def test_options_in_the_word():
    data = open_scenes("surround:objects=2, train=5,width=64,noise=0.5")
    assert {len(record.boxes) for record in data.splits["train"]} == {2}
    assert data.splits["train"][0].sizes.tolist() == [[64, 38]] * 6
    assert "2 objects per scene, calibration noise 0.5 degrees" in data.notes[0]
    assert open_scenes("surround:seed=4").source == "surround:seed=4"
    assert holds_scenes("surround:objects=2")
    assert not holds_scenes("shapes:objects=2")
    assert data.training_split() is data.split("train")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "surround:object=2",
            "no option 'object=2'; the options of the scenes are train, val, test, width, seed, noise, objects, as in sur",
        ),
        ("surround:objects=13", "objects=13 is out of range; choose 1 to 12"),
        ("surround:noise=nan", "noise=nan is out of range; choose 0 to 10"),
        ("surround:width=8", "width=8 is out of range"),
        ("surround:train=0", "train=0 is out of range"),
        ("surround:width=64,width=64", "width is given twice"),
        ("nowhere", "nowhere: no such file or folder; give nuScenes' folder"),
        (".", ".: no folder v1.0-mini, v1.0-trainval or v1.0-test with sample.json in it; give nuScenes' folder"),
    ],
)
def test_wrong_options_say_what_there_is(word, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(said)):
        open_scenes(word)


def test_scenes_are_read_drawn_and_measured_without_torch():
    modules = "data.scenes.open, data.nuscenes.results, evaluation.nuscenes, evaluation.fixed_boxes, pages.cameras"
    code = "; ".join(f"import boxquery.{name}" for name in modules.split(", ")) + "; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fast():
    split = surround_data(seed=9).splits["train"]
    split.read(0)
    start = time.process_time()
    for i in range(40):
        split.read(i)
    assert (time.process_time() - start) / 40 < 0.04  # about 0.013 on an idle machine
