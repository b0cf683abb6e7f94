"""What is saved, loaded and used: answers with the data set's own ids, and files in which nothing is executed."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import boxquery as bq
from boxquery.api import Detector
from boxquery.cli import run
from boxquery.data.dataset import Data, Record, Split
from boxquery.data.preprocessing import Preprocessing
from boxquery.official.coco import CATEGORIES

TINY = {"backbone": "resnet10t", "num_queries": 9, "hidden_dim": 64, "heads": 4, "ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 2}


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(bq.create_model("detr", classes=3, **TINY), ["cat", None, "owl"], [17, 18, 90], Preprocessing(64), threshold=0.0)


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (48, 80, 3), dtype=np.uint8))


def same(a, b) -> bool:
    return np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and a.names == b.names


def test_every_kind_of_source_gives_the_same(detector, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    wanted = detector.predict(photo)
    assert same(detector.predict(str(tmp_path / "a.png")), wanted)
    assert same(detector.predict(tmp_path / "a.png"), wanted)
    assert same(detector.predict(np.asarray(photo)), wanted)
    listed = detector.predict([photo, photo])
    assert isinstance(listed, list)
    assert all(same(r, wanted) for r in listed)
    assert detector.predict(str(tmp_path / "a.png")).path == str(tmp_path / "a.png")


def test_a_generator_is_read_as_it_is_needed(detector, photo):
    asked = []

    def photos():
        for i in range(100):
            asked.append(i)
            yield photo

    stream = detector.predict(photos(), batch_size=2)
    next(stream)
    assert len(asked) == 2


def test_a_batch_answers_as_one_by_one(detector, photo):
    """Whatever else is in it: only images of one shape run together."""
    images = [photo, photo.resize((150, 48)), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), photo.resize((48, 80))]
    for result, image in zip(detector.predict(images, batch_size=4), images, strict=True):
        assert result.size == (image.height, image.width)
        np.testing.assert_allclose(result.boxes, detector.predict(image).boxes, atol=1e-2)


def test_which_detections_are_kept(detector, photo):
    every = detector.predict(photo)
    for names in (["OWL"], ["cat"], ["cat", "owl"]):  # no query gets another label since its own is not wanted
        kept = np.isin(every.names, [name.lower() for name in names])
        assert np.array_equal(detector.predict(photo, classes=names).boxes, every.boxes[kept])
    assert np.array_equal(detector.predict(photo, max_detections=2).boxes, every.boxes[:2])
    assert len(detector.predict(photo, nms=0.01)) < len(every)
    with pytest.raises(bq.UserError, match=r"does not know cta \(did you mean cat\?\); it knows cat, owl"):
        detector.predict(iter([photo]), classes=["cta"])
    for wrong in ({"nms": 0}, {"nms": 2}, {"batch_size": 0}, {"max_detections": 0}):
        with pytest.raises(bq.UserError, match=next(iter(wrong))):
            detector.predict(photo, **wrong)


def test_a_result_draws_itself_and_becomes_coco(detector, photo, tmp_path):
    photo.save(tmp_path / "0042.png")
    for source, id_ in ((tmp_path / "0042.png", 42), (photo, 0)):
        result = detector.predict(source)
        result.draw().save(tmp_path / "out.jpg")
        assert Image.open(tmp_path / "out.jpg").size == photo.size
        rows = result.to_coco()
        assert json.loads(json.dumps(rows)) == rows
        assert [row["category_id"] for row in rows] == result.ids
        assert {row["image_id"] for row in rows} == {id_}
        x, y, width, height = rows[0]["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], result.boxes[0], atol=0.02)
    assert {row["image_id"] for row in result.to_coco("frame 7")} == {"frame 7"}
    assert (np.asarray(result.draw()) != np.asarray(photo)).any()
    (tmp_path / "0042.png").unlink()
    gone = detector.predict(photo)
    assert gone.draw().size == photo.size


@pytest.mark.parametrize(("size", "drawn"), [((2000, 10), (2000, 40)), ((1, 300), (40, 300)), ((6000, 20), (6000, 60))])
def test_a_strip_is_drawn_with_room_for_names(size, drawn):
    boxes = np.array([[0, 0, *size]], np.float32)
    result = bq.Result(boxes, np.ones(1), np.zeros(1, np.int64), ["cat"], [1], size[::-1], image=Image.new("RGB", size, "red"))
    picture = result.draw()
    assert picture.size == drawn
    assert len(set(picture.crop((0, 0, *drawn)).getdata())) > 3, "a name on its tag"


def test_what_is_printed_of_a_detector_and_a_result(detector, photo):
    assert repr(detector) == "<Detector detr (paper), 2 classes: cat, owl; image size 64, threshold 0.00, on cpu>"
    found = repr(detector.predict(photo, max_detections=3))
    assert re.fullmatch(r"<Result of an image, 80 x 48: 3 objects: [123] (cat|owl)(, 1 \w+)?; scores 0\.\d\d to 0\.\d\d>", found)
    assert repr(detector.predict(photo, threshold=1)) == "<Result of an image, 80 x 48: no objects>"


def test_another_image_size(detector, photo):
    other = Detector(detector.model, detector.classes, detector.ids, Preprocessing(64), 0.0)
    other.image_size = 96
    assert other.transform(photo).shape == (3, 96, 160)
    assert not same(other.predict(photo), detector.predict(photo))
    with pytest.raises(bq.UserError, match="image_size=0"):
        other.image_size = 0


def test_answers_are_in_the_image_sorted_named_and_one_a_query(detector, photo):
    result = detector.predict(photo)
    assert 0 < len(result) <= TINY["num_queries"]
    assert (np.diff(result.scores) <= 0).all()
    assert (result.boxes >= 0).all()
    assert (result.boxes <= [80, 48, 80, 48]).all()
    assert set(result.names) <= {"cat", "owl"}
    assert result.ids == [{0: 17, 2: 90}[i] for i in result.labels]
    assert result.size == (48, 80)
    assert len(detector.predict(photo, threshold=1.0)) == 0


def test_a_column_without_a_name_is_never_an_answer(photo):
    torch.manual_seed(0)
    model = bq.create_model("detr", classes=3, **TINY)
    with torch.no_grad():
        model.heads[0].classes.bias[1] = 50.0
    result = Detector(model, ["cat", None, "owl"], [1, 2, 3], Preprocessing(64)).predict(photo, threshold=0.0)
    assert 1 not in result.labels


def test_a_suppressed_answer_has_no_better_one_near_it(detector, photo):
    """The family answers with every query; only who asks for suppression gets it."""
    pixels = detector.transform(photo)[None]
    every, disabled, kept = (detector.predict_batch(pixels, None, [(48, 80)], top_k=1000, nms=nms)[0] for nms in (None, 1.0, 0.5))
    assert len(kept["scores"]) < len(every["scores"]) == len(disabled["scores"])
    assert kept["scores"][0] == every["scores"][0]
    for label in kept["labels"].unique():
        boxes = kept["boxes"][kept["labels"] == label]
        assert (box_iou(boxes, boxes).triu(1) <= 0.5).all()


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_are_no_rgb_images(detector, wrong):
    with pytest.raises(bq.UserError, match="RGB uint8"):
        detector.predict(wrong)


def test_thresholds_out_of_range(detector, photo):
    with pytest.raises(bq.UserError, match="threshold=2"):
        detector.predict(photo, threshold=2)


def test_saved_and_loaded(detector, photo, tmp_path):
    detector.save(tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    again = bq.load(tmp_path / "model")
    assert (again.classes, again.ids, again.image_size, again.threshold) == (["cat", None, "owl"], [17, 18, 90], 64, 0.0)
    assert same(again.predict(photo), detector.predict(photo))
    detector.save(tmp_path / "model")
    assert same(bq.load(tmp_path / "model").predict(photo), detector.predict(photo))


def test_preprocessing_is_saved_with_the_model(detector, photo, tmp_path):
    square = Preprocessing(96, square=True, mean=None, std=None, interpolation="bicubic")
    other = Detector(detector.model, detector.classes, detector.ids, square, 0.0)
    again = bq.load(other.save(tmp_path / "model"))
    assert (again.preprocessing, again.image_size) == (square, 96)
    assert again.transform(photo).shape == (3, 96, 96)
    assert same(again.predict(photo), other.predict(photo))


def test_configurations_of_other_versions(detector, photo, tmp_path):
    folder = detector.save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    options = {**config["model"]["options"], "denoising": 0}
    del options["matching"], options["contrastive"], options["class_loss"]
    first = {**config, "model": {**config["model"], "options": options}, "image_size": 64}
    del first["format"], first["preprocessing"]
    (folder / "config.json").write_text(json.dumps(first))
    assert bq.load(folder).preprocessing == Preprocessing(64)
    assert same(bq.load(folder).predict(photo), detector.predict(photo))
    (folder / "config.json").write_text(json.dumps({**config, "format": config["format"] + 1}))
    with pytest.raises(bq.UserError, match=r"config\.json: format 4 is of a newer boxquery"):
        bq.load(folder)


def test_a_model_stays_what_it_was_when_its_preset_gets_new_options(tmp_path):
    """``tiny`` of PETR has norms that models of before do not have."""
    before = {"qk_norm": False, "cell_content": True}
    small = {"hidden_dim": 32, "heads": 4, "num_queries": 5, "depths": 4}
    made = bq.create_model("petr", classes=2, preset="tiny", **small, **before)
    bq.SceneDetector(made, ["cat", "owl"], [1, 2], Preprocessing(48), (60, 100)).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    for name in before:
        del config["model"]["options"][name]
    path.write_text(json.dumps(config))
    found = bq.load(tmp_path / "model").model
    assert {name: found.config["options"][name] for name in before} == before
    assert all(torch.equal(found.state_dict()[name], weights) for name, weights in made.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json"),
        (lambda f: (f / "config.json").write_text('{"model": {"name": "detr"}}'), "config.json"),
        (lambda f: (f / "config.json").unlink(), "neither a run nor a model folder"),
        (lambda f: (f / "model.safetensors").unlink(), "neither a run nor a model folder"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 40), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]), "model.safetensors"),
    ],
)
def test_spoilt_files_are_named(detector, tmp_path, spoil, said):
    folder = detector.save(tmp_path / "model")
    spoil(folder)
    with pytest.raises(bq.UserError, match=said):
        bq.load(folder)


def test_weights_of_another_model_are_refused(detector, tmp_path):
    folder = detector.save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["options"]["num_queries"] = 10
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(bq.UserError, match=r"model\.safetensors"):
        bq.load(folder)


def test_neither_a_folder_nor_a_hub_id():
    with pytest.raises(bq.UserError, match="no such folder"):
        bq.load("no/such/folder")
    with pytest.raises(bq.UserError, match="hub"):
        bq.load("nobody/nothing")


def labelled(names, labels):
    """One image with objects of these labels."""
    boxes, areas = np.array([[1, 1, 20, 20]] * len(labels), np.float32).reshape(-1, 4), np.full(len(labels), 361, np.float32)
    record = Record("a", None, 80, 48, boxes, np.array(labels, np.int64), np.zeros(len(labels), bool), areas)
    split = Split("val", [record], lambda _: Image.new("RGB", (80, 48)))
    return Data("here", "coco", names, list(range(len(names))), {"val": split})


def test_evaluation_matches_classes_by_name(detector):
    found = detector.evaluate(labelled(["owl", "cat"], [0, 1, 1]))
    assert {row["name"]: row["objects"] for row in found["per_class"] if row["objects"]} == {"cat": 2, "owl": 1}
    assert found["notes"] == []
    loose = detector.evaluate(labelled(["OWL", "Cat"], [0, 1, 1]))
    assert loose.pop("notes") == ["class names are matched without case, space, hyphen and underscore: OWL is owl, Cat is cat"]
    assert loose == {name: value for name, value in found.items() if name != "notes"}
    with pytest.raises(bq.UserError, match=r"does not know wolf; it knows cat, owl$"):
        detector.evaluate(labelled(["wolf"], [0]))
    with pytest.raises(bq.UserError, match=r"does not know wolf; .* --classes cat evaluates what both know"):
        detector.evaluate(labelled(["wolf", "cat"], [0, 1]))
    assert detector.evaluate(labelled(["wolf", "cat"], [0, 1]), classes=["cat"])["objects"] == 1
    with pytest.raises(bq.UserError, match="no split 'test'"):
        detector.evaluate(labelled(["owl"], [0]), split="test")


def test_evaluate_takes_tiles(detector):
    data = labelled(["owl", "cat"], [0, 1, 1])
    plain, tiled = (detector.evaluate(data, threshold=0, max_detections=1000, **more) for more in ({}, {"tiles": 32, "overlap": 0.0}))
    assert plain["detections"] < tiled["detections"]
    with pytest.raises(bq.UserError, match=r"overlap=2"):
        detector.evaluate(data, tiles=32, overlap=2)


def sigmoid_detector(*classes: str, num_queries: int) -> Detector:
    """One whose queries give several classes each."""
    torch.manual_seed(0)
    options = {"backbone": "resnet10t", "num_queries": num_queries, "encoder_layers": 1}
    model = bq.create_model("deformable-detr", classes=len(classes), preset="tiny", **options)
    return Detector(model, classes, [10 * (i + 1) for i in range(len(classes))], Preprocessing(96))


def test_classes_that_the_data_does_not_list_are_left_out():
    """Of precision, thresholds, duplicates and false positives, as of AP."""
    detector = sigmoid_detector("cat", "owl", num_queries=9)
    every = detector.evaluate(labelled(["owl", "cat"], [0]), threshold=0)
    owls = detector.evaluate(labelled(["owl"], [0]), threshold=0)
    assert owls["notes"] == ["1 class that the detector knows and the data does not list is left out, predictions too: cat"]
    assert owls["per_class"][1] == every["per_class"][1]
    assert owls["precision"] == owls["per_class"][1]["precision"]
    assert owls["per_class"][0] == {"name": "cat", "id": 10, "AP": None, "AP50": None, "objects": 0, "precision": None, "recall": None}
    assert (owls["detections"], every["detections"]) == (9, 18)
    chosen = detector.evaluate(labelled(["owl", "cat"], [0]), threshold=0, classes=["owl"])
    assert {**chosen, "notes": []} == {**owls, "notes": []}
    empty = labelled(["owl"], [])
    assert detector.evaluate(empty, threshold=0)["false_positives_per_empty_image"] == 9


def test_more_detections_count_where_more_are_asked_for_or_there_are_more_objects():
    """COCO's AP has 100 per class and image; what is beyond is counted, and said."""
    many = sigmoid_detector("cell", num_queries=200)
    few, crowd = labelled(["cell"], [0] * 3), labelled(["cell"], [0] * 150)
    for data, more, counted, beyond in ((few, {}, 100, 0), (crowd, {}, 100, 100), (crowd, {"max_detections": 300}, 200, 0)):
        found = many.evaluate(data, **more)
        assert (found["detections"], found["truncated"]) == (counted, beyond)
        assert found["max_detections"] == more.get("max_detections", 100)
        assert any("recall can be at most 0.67" in note for note in found["notes"]) == (beyond > 0)
    with pytest.raises(bq.UserError, match="max_detections=0"):
        many.evaluate(few, max_detections=0)


def test_the_page_of_an_evaluation(detector, tmp_path):
    data = labelled(["owl", "<b>cat</b>"], [0, 1])
    odd = Detector(detector.model, ["<b>cat</b>", None, "owl"], [17, 18, 90], Preprocessing(64), 0.0)
    metrics = odd.evaluate(data, out=tmp_path / "out", threshold=0)
    out = tmp_path / "out"
    names = {"evaluation.html", "evaluation.json", "analysis.json", "per_class.csv", "confusion.csv", "curves.csv", "errors.csv"}
    assert names | {"pictures", "pictures.json"} == {path.name for path in out.iterdir()}
    assert json.loads((out / "evaluation.json").read_text()) == {"val": metrics}
    page = (out / "evaluation.html").read_text()
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "<b>cat" not in page
    for heading in ("Scores", "By class", "Confusion matrix", "Precision by recall", "What AP50 would gain", "Truth and prediction"):
        assert heading in page
    assert (out / "confusion.csv").read_text().splitlines()[0] == "object,<b>cat</b>,owl,not found"
    with pytest.raises(bq.UserError, match="holds another evaluation"):
        odd.evaluate(data, out=out)


def official_names(model) -> dict[str, torch.Tensor]:
    """A released DETR checkpoint as its authors would have written it: our tensors under their keys."""
    theirs = {}
    for key, value in model.state_dict().items():
        key = key.replace("backbone.body.", "backbone.0.body.").replace("neck.projections.0.0.", "input_proj.")
        if key.startswith("encoder.layers"):
            key = "transformer." + key.replace(".read.attention.", ".self_attn.").replace(".ffn.", ".")
            key = key.replace("read_residual.norm", "norm1").replace("ffn_residual.norm", "norm2")
        elif key.startswith("layers"):
            key = "transformer.decoder." + key.replace("self_attention.attention", "self_attn").replace("read.attention", "multihead_attn")
            key = key.replace(".ffn.", ".").replace("self_residual.norm", "norm1").replace("read_residual.norm", "norm2")
            key = key.replace("ffn_residual.norm", "norm3")
        key = key.replace("in_proj.weight", "in_proj_weight").replace("in_proj.bias", "in_proj_bias")
        key = (
            key.replace("heads.0.classes", "class_embed")
            .replace("heads.0.boxes", "bbox_embed")
            .replace("queries.position", "query_embed.weight")
        )
        theirs["transformer.decoder." + key if key.startswith("norm.") else key] = value
    return theirs


def test_a_released_checkpoint_becomes_a_model_with_cocos_names(tmp_path, photo, capsys):
    torch.manual_seed(0)
    model = bq.create_model("detr", classes=91, **{k: v for k, v in TINY.items() if k not in ("backbone", "heads")})
    torch.save({"model": official_names(model)}, tmp_path / "detr.pth")
    words = [
        "import-official",
        str(tmp_path / "detr.pth"),
        "--model",
        "detr",
        "--out",
        str(tmp_path / "out"),
        "--image-size",
        "64",
        "--json",
    ]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["options"]["num_queries"] == 9
    imported = bq.load(tmp_path / "out")
    assert imported.classes[1] == "person"
    assert imported.classes[0] is None
    assert sum(name is not None for name in imported.classes) == len(CATEGORIES) == 80
    result = imported.predict(photo, threshold=0.0)
    assert result.ids == result.labels.tolist()
    images = torch.randn(1, 3, 64, 96)
    assert torch.allclose(imported.model.eval()(images).logits, model.eval()(images).logits, atol=1e-5)
    assert run(words) == 2
    assert "exists" in capsys.readouterr().err


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [Hostile(), {"model": Hostile()}, [1, 2], {"model": {}}, {"model": {"a": 1}}])
def test_a_checkpoint_executes_nothing(content, tmp_path, capsys):
    with (tmp_path / "bad.pth").open("wb") as file:
        pickle.dump(content, file)
    assert run(["import-official", str(tmp_path / "bad.pth"), "--model", "detr", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "executed" not in captured.out
    assert captured.err.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_measured_at_a_threshold_is_what_predict_shows(tmp_path):
    """A sigmoid gives a query several classes: AP counts them, precision and recall those that users see."""
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/c", "val/d", "val/e"):
        folder, _, stem = name.partition("/")
        for kind in ("images", "labels"):
            (tmp_path / kind / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 80, 3), dtype=np.uint8)).save(tmp_path / "images" / folder / f"{stem}.png")
        (tmp_path / "labels" / folder / f"{stem}.txt").write_text("0 0.5 0.5 0.4 0.4\n1 0.3 0.3 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\nowl\n")
    torch.manual_seed(0)
    model = bq.create_model("conditional-detr", classes=2, **TINY)
    detector = Detector(model, ["cat", "owl"], [0, 1], Preprocessing(64), threshold=0.0)
    detector.evaluate(tmp_path, threshold=0.001, out=tmp_path / "measured")
    matrix = np.array(json.loads((tmp_path / "measured" / "analysis.json").read_text())["val"]["confusion"]["matrix"])
    shown = detector.predict(sorted((tmp_path / "images" / "val").iterdir()), threshold=0.001)
    assert matrix[:, :-1].sum() == sum(len(result.boxes) for result in shown) == 3 * TINY["num_queries"]
