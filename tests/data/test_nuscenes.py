"""nuScenes' layout, in a miniature of it: joins, frames and velocities; to its result file and back; and what is wrong is named."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxquery import UserError
from boxquery.boxes3d import corners, project
from boxquery.data.nuscenes.classes import NAMES
from boxquery.data.nuscenes.results import read_results, to_results
from boxquery.data.scenes import SceneDetections
from boxquery.data.scenes.open import holds_scenes, open_scenes
from boxquery.evaluation.nuscenes import evaluate_scenes

from . import nuscenes_layout

EXPECTED = json.loads((Path(__file__).parents[1] / "evaluation" / "nuscenes_expected.json").read_text(encoding="utf-8"))["layout"]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    root = tmp_path_factory.mktemp("nuscenes") / "mini"
    return root, nuscenes_layout.write(root)


def test_samples_are_the_scenes_that_they_were_made_of(mini):
    root, made = mini
    data = open_scenes(root)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 3}
    assert data.names == list(NAMES)
    assert "3 train, 3 val samples of 6 cameras" in data.notes[0]
    assert "6 objects without a lidar or radar point" in data.notes[1]
    for record in (*data.split("train"), *data.split("val")):
        source = made[record.id]
        assert len(record.boxes) == len(source.boxes) + 1  # and a bicycle; neither its rack nor a wheelchair
        np.testing.assert_allclose(record.boxes[:-1, :6], source.boxes[:, :6], atol=1e-9)
        np.testing.assert_allclose(np.exp(1j * record.boxes[:-1, 6]), np.exp(1j * source.boxes[:, 6]), atol=1e-9)
        kinds = made[f"{record.id.partition('/')[0]}/0"].labels  # an instance keeps its category
        assert [NAMES[label] for label in record.labels[:-1]] == [("car", "truck", "bus", "trailer")[label] for label in kinds]
        assert NAMES[record.labels[-1]] == "bicycle"
        assert np.flatnonzero(record.ignore).tolist() == [2]
        np.testing.assert_allclose(record.racks[:, :6], [[8, 9, 1, 4, 6, 2]], atol=1e-9)
        assert record.attributes[-1] == "cycle.without_rider"
        assert record.sizes.tolist() == [[64, 38]] * 6


def test_cameras_project_exactly_although_the_vehicle_moves_rolls_and_pitches(mini):
    root, made = mini
    order = [("front", "front_left", "rear_left", "rear", "rear_right", "front_right").index(name) for name in made["scene-0061/0"].cameras]
    assert order == list(range(6))  # that of the reader's cameras
    for record in open_scenes(root).split("val"):
        points = corners(record.boxes[:-1])
        (pixels, depth), (expected, far) = project(points, record.lidar2img), project(points, made[record.id].lidar2img)
        np.testing.assert_allclose(depth, far, atol=1e-6)
        np.testing.assert_allclose(pixels[far > 0.2], expected[far > 0.2], atol=1e-5)


def test_images_are_read_in_the_order_of_the_cameras(mini):
    root, _ = mini
    data = open_scenes(root)
    images = data.split("train").read(0)
    assert [image.size for image in images] == [(64, 38)] * 6
    assert [path.parent.name for path in data.split("train")[0].paths] == list(data.split("train")[0].cameras)


def test_velocities_are_from_the_annotations_before_and_after(mini):
    root, _ = mini
    records = open_scenes(root).split("train")
    places = [record.boxes[:, :3] @ record.pose[:3, :3].T + record.pose[:3, 3] for record in records]
    speeds = [(record.boxes[:, 7:] @ record.pose[:2, :2].T) for record in records]
    np.testing.assert_allclose(speeds[0], (places[1] - places[0])[:, :2] / 0.5, rtol=1e-6)
    np.testing.assert_allclose(speeds[1], (places[2] - places[0])[:, :2] / 2.5, rtol=1e-6)  # centred: up to three seconds
    assert np.isnan(speeds[2]).all()  # two seconds, one-sided


def test_there_and_back_gives_the_metric_that_the_devkit_gives(mini, tmp_path):
    data = open_scenes(mini[0])
    val = data.split("val")
    found = nuscenes_layout.detections(val)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(to_results(val, found)))
    direct, back = evaluate_scenes(val, found, data.protocol), evaluate_scenes(val, read_results(path, val), data.protocol)
    assert 0.1 < direct["mAP"] < 0.5
    for name in ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"):
        assert back[name] == pytest.approx(EXPECTED[name], abs=1e-6), name
        if name not in ("NDS", "mAAE"):  # the file has likely attributes, the detections none
            assert direct[name] == pytest.approx(back[name], abs=1e-6), name
    for own, other in zip(back["classes"], EXPECTED["classes"], strict=True):
        for name, value in other.items():
            assert own[name] == (value if value is None else pytest.approx(value, abs=1e-6)), (own["name"], name)


def test_a_result_file_holds_every_sample_and_the_best_of_too_many(mini):
    val = open_scenes(mini[0]).split("val")
    boxes = np.ones((600, 9))
    results = to_results(val, {1: SceneDetections(boxes, np.linspace(0, 1, 600), np.zeros(600, int))})["results"]
    assert [len(results[record.id]) for record in val] == [0, 500, 0]
    assert results[val[1].id][0]["detection_score"] == 1
    assert results[val[1].id][0]["attribute_name"] == "vehicle.moving"


def test_the_folder_of_the_tables_is_taken_too(mini):
    root, _ = mini
    assert holds_scenes(root)
    assert holds_scenes(root / "v1.0-mini")
    assert not holds_scenes(root / "samples")
    assert len(open_scenes(root / "v1.0-mini").split("val")) == 3


def edit(table, change):
    """A fault: the rows of a table changed in place."""

    def make(root):
        path = root / "v1.0-mini" / f"{table}.json"
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows))

    return make


def image(root) -> Path:
    return next((root / "samples" / "CAM_BACK").iterdir())


FAULTS = {
    "no table": (lambda root: (root / "v1.0-mini" / "ego_pose.json").unlink(), "ego_pose.json: no such file; nuScenes has 13 tables"),
    "cut": (lambda root: (root / "v1.0-mini" / "sensor.json").write_text("[{"), "sensor.json: cannot be read (Expecting"),
    "no list": (lambda root: (root / "v1.0-mini" / "sensor.json").write_text("{}"), "sensor.json: a dict, not a list of rows"),
    "no token": (edit("instance", lambda rows: rows[3].pop("token")), "instance.json: row 3 has no token"),
    "token twice": (edit("category", lambda rows: rows.append(rows[0])), "category.json: two rows have the token c0"),
    "no key": (edit("sample_annotation", lambda rows: rows[0].pop("size")), "sample_annotation.json: scene-0061/0/0: no size"),
    "lost token": (edit("ego_pose", lambda rows: rows.pop(0)), "there is no 'scene-0061/0/LIDAR_TOP' in ego_pose.json"),
    "no camera": (
        edit("sample_data", lambda rows: rows.pop(1)),
        "sample.json: scene-0061/0: no keyframe of CAM_FRONT in sample_data.json",
    ),
    "no calibration": (
        edit("calibrated_sensor", lambda rows: rows[1].update(camera_intrinsic=[])),
        "calibrated_sensor.json: scene-0061/0/CAM_FRONT: camera_intrinsic is [], not 3 x 3 numbers",
    ),
    "no rotation": (edit("ego_pose", lambda rows: rows[0].update(rotation=[0, 0, 0, 0])), "ego_pose.json: scene-0061/0/LIDAR_TOP: its rot"),
    "two attributes": (
        edit("sample_annotation", lambda rows: rows[0].update(attribute_tokens=["a0", "a1"])),
        "scene-0061/0/0: attribute_tokens is ['a0', 'a1'], not a list of one or none",
    ),
    "elsewhere": (edit("sample_data", lambda rows: rows[1].update(filename="../x.jpg")), "'../x.jpg' leaves the data folder"),
    "nameless": (edit("scene", lambda rows: rows[0].update(name="first")), "scene.json: scene-0061: name 'first' is not like scene-0061"),
    "no image": (
        lambda root: image(root).unlink(),
        "1 of 6 samples lack an image that can be used, more than 10%: unpack all of samples/ ",
    ),
    "several versions": (
        lambda root: shutil.copytree(root / "v1.0-mini", root / "v1.0-trainval"),
        "several versions: v1.0-trainval, v1.0-mini; give one of these folders",
    ),
    "no samples": (lambda root: (root / "v1.0-mini" / "sample.json").write_text("[]"), "no samples; unpack v1.0-mini again"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_named(name, mini, tmp_path):
    root = shutil.copytree(mini[0], tmp_path / "mini")
    make, said = FAULTS[name]
    make(root)
    with pytest.raises(UserError, match=re.escape(said)):
        open_scenes(root)


def test_invalid_boxes_are_skipped_and_named(mini, tmp_path):
    root = shutil.copytree(mini[0], tmp_path / "mini")
    edit("sample_annotation", lambda rows: (rows[0].update(size=[0, 1, 1]), rows[1].update(translation=[1, float("nan"), 2])))(root)
    data = open_scenes(root)
    assert len(data.skipped) == 2
    assert "v1.0-mini/sample_annotation.json: scene-0061/0/0: a box without size" in data.messages()[-2]
    assert len(data.split("train")[0].boxes) == 7
    with pytest.raises(UserError, match="scene-0061/0/0: a box without size"):
        open_scenes(root, strict=True)
    edit("sample_annotation", lambda rows: [row.update(size=[0, 1, 1]) for row in rows[:9]])(root)
    with pytest.raises(UserError, match="boxes are invalid, more than 10%"):
        open_scenes(root)


def test_samples_with_broken_images_are_skipped_and_named_when_the_tables_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nuscenes_layout, "SCENES", {"scene-0061": 30, "scene-0103": 3})
    nuscenes_layout.write(tmp_path)
    files = sorted((tmp_path / "samples" / "CAM_BACK").iterdir())
    lost, cut, small = files[:3]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:400])
    Image.new("RGB", (32, 19)).save(small)
    data = open_scenes(tmp_path)
    assert len(data.split("train")) == 27
    says = [
        f"no such file (samples/CAM_BACK/{lost.name})", f"cannot be read (samples/CAM_BACK/{cut.name}: ",
        f"stated size is not the file's (samples/CAM_BACK/{small.name}: stated 64 x 38, the file is 32 x 19)",
    ]  # fmt: skip
    for said in says:
        assert any(said in line and line.startswith("skipped: v1.0-mini/sample.json: scene-0061/") for line in data.messages()), said
    assert any(f"no such file ({lost})" in line for line in open_scenes(tmp_path / "v1.0-mini").skipped), "it is not below the tables"
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: v1.0-mini/sample.json: scene-0061/")):
        open_scenes(tmp_path, strict=True)


def test_an_image_of_another_size_is_not_used(mini, tmp_path):
    root = shutil.copytree(mini[0], tmp_path / "mini")
    split = open_scenes(root).split("train")
    Image.new("RGB", (32, 19)).save(split[0].paths[2])
    with pytest.raises(UserError, match=r"32 x 19 pixels, but sample_data\.json says 64 x 38"):
        split.read(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-9], "cannot be read"),
        (lambda text: "[]", "not nuScenes' results of these samples"),
        (lambda text: text.replace("scene-0103/1", "other"), "not nuScenes' results of these samples (no 'scene-0103/1')"),
        (lambda text: text.replace('"car"', '"plane"'), "no class 'plane'; classes are car, truck"),
        (lambda text: re.sub(r'"detection_score": [\d.]+', '"detection_score": NaN', text, count=1), "its score and box must be finite"),
        (lambda text: re.sub(r'"size": \[[\d.]+, ', '"size": [', text, count=1), "size is [", ),
    ],
)  # fmt: skip
def test_results_that_cannot_be_used(change, said, mini, tmp_path):
    val = open_scenes(mini[0]).split("val")
    path = tmp_path / "results.json"
    path.write_text(change(json.dumps(to_results(val, nuscenes_layout.detections(val)))))
    with pytest.raises(UserError, match=re.escape(said)):
        read_results(path, val)
