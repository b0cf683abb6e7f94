"""Baselines keep the family's promises: inputs, outputs, and that they learn."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import boxquery as bq
from boxquery.api import Detector
from boxquery.cli import run as command_line
from boxquery.data.loading import DetectionDataset, collate
from boxquery.data.preprocessing import Preprocessing, object_shares, object_sizes
from boxquery.data.shapes import shapes_data
from boxquery.models import describe, facts, list_baselines
from boxquery.models.baselines.base import summed
from boxquery.models.interface import Model
from boxquery.models.recipes import Recipe
from boxquery.optimization import parameter_groups
from tests.models.baselines.builders import create
from tests.models.builders import batch, objects

NAMES = list_baselines()
SIZE, STEPS, CHECK = 96, 500, 20
BOXES = ((96, 128), (64, 80))


def test_they_are_not_of_the_family(capsys):
    assert NAMES == ["faster-rcnn", "fcos", "retinanet"]
    assert not set(NAMES) & set(bq.list_models())
    for name in NAMES:
        assert {"Paper", "Year", "Queries", "Encoder", "Matching", "Published"} <= set(facts(name))
        assert command_line(["models", name]) == 0
        assert describe(name).splitlines()[0] in capsys.readouterr().out
    assert command_line(["models"]) == 0
    assert ", ".join(NAMES) in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
def test_every_preset_can_be_made(name, preset):
    model = bq.create_model(name, classes=["a", "b"], preset=preset)
    assert model.config["classes"] == 2
    again = bq.create_model(name, classes=2, preset="paper", **model.config["options"])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained_and_has_its_rate(name):
    model = create(name).train()
    images, mask = batch(*BOXES)
    targets = objects(6, 6)
    loss, terms = model.loss(model(images, mask, targets=targets), targets)
    loss.backward()
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()))
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    groups = parameter_groups(model, Recipe(lr=1.0, backbone_lr=0.5))
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert all(rates[id(p)] == (0.5 if n.startswith("backbone.") else 1.0) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (40, 1)])
@pytest.mark.parametrize("bf16", [False, True])
def test_any_number_of_objects_and_classes(name, classes, counts, bf16):
    model = create(name, classes=classes).train()
    images, mask = batch(*BOXES)
    targets = objects(*counts, classes=classes)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, terms = model.loss(model(images, mask, targets=targets), targets)
        loss.backward()
        model.eval()
        with torch.inference_mode():
            detections = model.postprocess(model(images, mask, last_only=True), [(960, 1280), (64, 80)], nms=1.0)
    assert all(bool(t.isfinite().all()) and t.dtype == torch.float32 for t in (loss, *terms.values()))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    for found, (height, width) in zip(detections, [(960, 1280), (64, 80)], strict=True):
        assert found["boxes"].dtype == found["scores"].dtype == torch.float32
        assert len(found["scores"]) == 100 or name == "faster-rcnn"
        assert (found["scores"].diff() <= 0).all()
        assert (found["labels"] >= 0).all()
        assert (found["labels"] < classes).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2) * (1 + 1e-5)).all()


def sure(model: Model, classes: int, label: int) -> None:
    """Every detection is now of that class."""
    with torch.no_grad():
        if hasattr(model.net, "roi_heads"):
            layer = model.net.roi_heads.box_predictor.cls_score
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([0.0] + [3.0 if c == label else -3.0 for c in range(classes)]))
        else:
            layer = model.net.head.classification_head.cls_logits
            layer.weight.zero_()
            layer.bias.view(-1, classes).copy_(torch.tensor([2.0 if c == label else -6.0 for c in range(classes)]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_labels_are_ours_on_both_ends(name, label):
    """A planted class comes out under its own number, and being sure of it costs least where the objects are of it."""
    model = create(name)
    sure(model, 3, label)
    images, mask = batch(*BOXES)
    model.eval()
    with torch.inference_mode():
        for found in model.postprocess(model(images, mask), list(BOXES)):
            assert len(found["labels"])
            assert (found["labels"] == label).all()
    model.train()
    costs = []
    for trained_class in range(3):
        targets = [{**target, "labels": torch.full_like(target["labels"], trained_class)} for target in objects(5, 5)]
        torch.manual_seed(0)  # of the sampled anchors and regions
        costs.append(model.loss(model(images, mask, targets=targets), targets)[1]["class"].item())
    assert int(np.argmin(costs)) == label


@pytest.mark.parametrize("name", NAMES)
def test_one_label_and_nms(name):
    """Without NMS and with all labels, boxes repeat; with one label each no box does, and after NMS none of a class overlaps."""
    sizes = ((32, 48), (32, 32))  # few enough anchors that torchvision takes them all
    model = create(name, score=0.0).eval()
    if name == "fcos":  # whose untrained boxes are too small to overlap
        torch.nn.init.constant_(model.net.head.regression_head.bbox_reg.bias, 3.0)
    images, mask = batch(*sizes)
    with torch.inference_mode():
        out = model(images, mask)
        many, single, few = (
            model.postprocess(out, list(sizes), top_k=4000, **how)[0] for how in ({"nms": 1.0}, {"nms": 1.0, "one_label": True}, {})
        )
    assert len(single["scores"]) * 3 == len(many["scores"])  # three classes
    assert len(few["scores"]) < len(many["scores"])
    for label in range(3):
        boxes = few["boxes"][few["labels"] == label]
        assert (box_iou(boxes, boxes).triu(1) <= model.options.nms + 1e-4).all()
    assert single["scores"][0].item() == pytest.approx(many["scores"][0].item())
    assert single["labels"][0] == many["labels"][0]
    with torch.inference_mode():
        assert len(model.postprocess(out, list(sizes), top_k=3)[0]["scores"]) == 3


def trained(name: str) -> tuple[Detector, object]:
    """A detector trained until it has overfitted two scenes."""
    data = shapes_data(train=2, val=1, test=1, size=SIZE, max_objects=3)
    split = data.splits["train"]
    model = create(name, classes=len(data.names))
    model.fit_to_data(np.concatenate(object_sizes(split, Preprocessing(SIZE))), np.concatenate(object_shares(split)))
    detector = Detector(model, data.names, data.ids, Preprocessing(SIZE))
    dataset = DetectionDataset(split, detector.transform)
    images = collate([dataset[i] for i in range(len(split))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(1, STEPS + 1):
        model.train()
        loss, _ = model.loss(model(images.images, images.mask, targets=images.targets), images.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % CHECK == 0 and detector.evaluate(data, split="train")["AP50"] > 0.95:
            break
    model.eval()
    return detector, data


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) if name != "fcos" else name for name in NAMES])
def learned(request):
    return trained(request.param)


def test_overfits_two_scenes(learned):
    detector, data = learned
    metrics = detector.evaluate(data, split="train")
    assert metrics["AP50"] > 0.9
    assert metrics["duplicate_rate"] < 0.2
    with_nms, without = (detector.evaluate(data, split="train", nms=nms, threshold=0.05)["duplicate_rate"] for nms in (None, 1.0))
    assert without > with_nms


def test_saved_and_loaded_it_predicts_the_same(learned, tmp_path):
    detector, data = learned
    again = bq.load(detector.save(tmp_path / "model"))
    again.save(tmp_path / "again")
    image = data.splits["train"].read(0)
    first, second = detector.predict(image, threshold=0.1), again.predict(image, threshold=0.1)
    assert len(first) > 0
    assert (first.boxes == second.boxes).all()
    assert (first.scores == second.scores).all()
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "model" / "config.json").read_text()


def test_padding_changes_no_detection(learned):
    """The same scene alone, and with 40 pixels more below and 72 to the right.

    Convolutions see what is under padding, as torchvision's do, and so a little moves. A wrong extent would stretch boxes by 1.4 and more,
    a shifted anchor move them by some pixels; what was sure must stay within an IoU of 0.8 of itself.
    """
    detector, data = learned
    image = detector.transform(data.splits["train"].read(0))
    padded, mask = torch.zeros(1, 3, SIZE + 40, SIZE + 72), torch.ones(1, SIZE + 40, SIZE + 72, dtype=torch.bool)
    padded[0, :, :SIZE, :SIZE], mask[0, :SIZE, :SIZE] = image, False
    alone = detector.predict_batch(image[None], None, [(SIZE, SIZE)], one_label=True)[0]
    wide = detector.predict_batch(padded, mask, [(SIZE, SIZE)], one_label=True)[0]
    certain = alone["scores"] > 0.6
    assert certain.any()
    for box, label in zip(alone["boxes"][certain], alone["labels"][certain], strict=True):
        same = wide["labels"] == label
        assert box_iou(box[None], wide["boxes"][same]).max() > 0.8
    assert (wide["boxes"] <= SIZE * (1 + 1e-5)).all()


def test_two_images_of_one_batch_have_each_their_extent(learned):
    """A scene beside a larger one is found where it is found alone."""
    detector, data = learned
    split = data.splits["train"]
    small, large = split.read(0), split.read(1).resize((SIZE + 64, SIZE))
    alone, (together, _) = detector.predict(small, threshold=0.6), detector.predict([small, large], threshold=0.3, batch_size=2)
    assert len(alone) > 0
    for box, label in zip(alone.boxes, alone.labels, strict=True):
        same = together.boxes[together.labels == label]
        assert box_iou(torch.tensor(box)[None], torch.tensor(same)).max() > 0.8


def test_there_is_nothing_to_explain(learned):
    detector, data = learned
    image = data.splits["train"].read(0)
    from boxquery.explain.missed import missed
    from boxquery.explain.usage import usage

    for analyse in (lambda: detector.explain(image), lambda: missed(detector, data, "train"), lambda: usage(detector, data, "train")):
        with pytest.raises(bq.UserError, match="has no queries"):
            analyse()


def test_a_frozen_backbone_stays_frozen(tmp_path):
    data = shapes_data(train=1, val=1, test=1, size=64)
    detector = Detector(create("retinanet", classes=len(data.names)), data.names, data.ids, Preprocessing(64))
    detector.model.freeze()
    for model in (detector.model, bq.load(detector.save(tmp_path / "model")).model):
        assert model.config["frozen"]
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.backbone.modules())
        assert not any(p.requires_grad for p in model.backbone.body.conv1.parameters())
        assert any(p.requires_grad for p in model.backbone.body.layer4.parameters())


def test_what_is_not_finite_stops():
    with pytest.raises(bq.UserError, match="class nan"):
        summed({"class": torch.tensor(float("nan")), "l1": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("retinanet", {"num_queries": 10}, "unknown option 'num_queries'"),
        ("retinanet", {"nms": 0.0}, "nms=0.0"),
        ("retinanet", {"score": 1.0}, "score=1.0"),
        ("retinanet", {"anchor_sizes": [[8.0], [16.0, 20.0]]}, "equally many"),
        ("retinanet", {"anchor_sizes": [[8.0]]}, "1 lists for 5 levels"),
        ("retinanet", {"anchor_sizes": [8.0]}, "a list per level"),
        ("retinanet", {"anchor_ratios": [0.5, -1]}, "anchor_ratios"),
        ("faster-rcnn", {"proposals": 0}, "proposals=0"),
        ("fcos", {"anchor_sizes": [[4], [8], [16], [32], [60]]}, "twice the one before"),
        ("fcos", {"anchor_ratios": [1.0]}, "no anchors"),
        ("fcos", {"hidden_dim": 32}, "multiple of 32"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(bq.UserError, match=said):
        create(name, **options)


def test_faster_rcnn_names_the_mode_that_it_needs():
    model = create("faster-rcnn")
    images, _ = batch((64, 64))
    with pytest.raises(bq.UserError, match="needs targets in training mode"):
        model(images)
    targets = objects(2)
    out = model(images, targets=targets)
    with pytest.raises(bq.UserError, match="evaluation mode"):
        model.postprocess(out, [(64, 64)])
    with pytest.raises(bq.UserError, match="loss in training mode"):
        model.loss(model.eval()(images), targets)
