"""A detector meets data with other classes, in every format: what both know is measured, and what was decided is said."""

import json

import pytest
import torch

import boxquery as bq
from boxquery.cli import run
from boxquery.data.preprocessing import Preprocessing
from tests.data.writers import FORMATS, pictures

#: the detector's classes (the data has cat, dog, owl), what is said, the status
KINDS = {
    "equal": (["cat", "dog", "owl"], None, 0),
    "another order": (["owl", "cat", "dog"], None, 0),
    "another case": (["Cat", "DOG", "owl"], "cat is Cat, dog is DOG", 0),
    "more": (["cat", "dog", "owl", "fox", None, "wolf"], "2 classes that the detector knows and the data does not list are left out", 0),
    "fewer": (["cat", "dog"], "the detector does not know owl; it knows cat, dog; --classes cat,dog evaluates what both know", 2),
    "others": (["fox", "wolf"], "the detector does not know cat, dog, owl; it knows fox, wolf", 2),
}
FLAGS = {
    "": [],
    "at a threshold": ["--threshold", "0"],
    "some classes": ["--classes", "CAT,dog", "--threshold", "0"],
    "with a page": ["--out", "page"],
}


def saved(folder, classes) -> str:
    torch.manual_seed(0)
    options = {"backbone": "resnet10t", "num_queries": 20, "encoder_layers": 1, "decoder_layers": 1}
    model = bq.create_model("deformable-detr", classes=len(classes), preset="tiny", **options)
    detector = bq.Detector(model, classes, [100 + i for i in range(len(classes))], Preprocessing(48))
    return str(detector.save(folder / "-".join(map(str, classes))))


@pytest.fixture(scope="module")
def detectors(tmp_path_factory) -> dict[str, str]:
    return {kind: saved(tmp_path_factory.mktemp("models"), classes) for kind, (classes, _, _) in KINDS.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    return {name: str(write(tmp_path_factory.mktemp(name) / "photos", pictures(24))) for name, write in FORMATS.items()}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format_", FORMATS)
def test_classes_of_detector_and_data(format_, kind, flags, detectors, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, said, status = KINDS[kind]
    some = flags == "some classes"
    if some:  # of which "fewer" has all, and "others" none
        said, status = ("does not know CAT, dog", 2) if kind == "others" else (None, 0)
    assert run(["evaluate", detectors[kind], data[format_], *FLAGS[flags], "--json"]) == status
    captured = capsys.readouterr()
    assert said is None or said in captured.err
    assert captured.err.count("error:") == (status == 2)
    if status:
        assert captured.out == ""
        assert not list(tmp_path.iterdir())
        return
    told = json.loads(captured.out)
    objects = {row["name"].lower(): row["objects"] for row in told["per_class"] if row["objects"]}
    wanted = ("cat", "dog") if some else ("cat", "dog", "owl")
    things = [thing.name for picture in pictures(24) if picture.split == "val" for thing in picture.things]
    assert objects == {name: things.count(name) for name in wanted}
    assert told["objects"] == sum(objects.values())
    for row in told["per_class"]:  # of what is not listed, nothing is measured
        assert row["name"].lower() in wanted or row["AP"] is row["precision"] is row["recall"] is None
    if "--threshold" in FLAGS[flags]:
        assert told["detections"] == told["images"] * 20 * len(wanted)
    assert (told["notes"] == []) == (said is None)
    assert (tmp_path / "page/evaluation.html").exists() == (flags == "with a page")
