"""Models from several cameras: number for number with a slow transcription of the authors' formulas, and what is asked of any model."""

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.boxes3d import project, rigid, yaw_matrix
from boxquery.cli import run
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes import SceneDetections
from boxquery.data.scenes.loading import SceneAugment, SceneDataset, SceneTransform, collate_scenes
from boxquery.data.scenes.open import open_scenes
from boxquery.evaluation.nuscenes import evaluate_scenes
from boxquery.models import list_scene_models, preset
from boxquery.models.scenes.base import AREA, SceneTransformer
from boxquery.optimization import training_step
from boxquery.parts.box_coder_3d import Box3DCoder, to_boxes
from boxquery.parts.cameras import Cameras
from tests.models import slow_scenes as slow
from tests.models.builders import shaken

NAMES = list_scene_models()
CLASSES, VIEWS = 3, 3
AREA_HERE = [-20.0, -20.0, -1.0, 20.0, 20.0, 3.0]
SIZE = (64, 96)
#: as published, and narrow
OPTIONS: dict[str, Any] = {
    "backbone": "resnet10t", "hidden_dim": 32, "heads": 4, "ffn_dim": 40, "num_queries": 9, "decoder_layers": 2, "dropout": 0.0,
    "area": AREA_HERE,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {"petr": {"depths": 5, "levels": 3}, "detr3d": {"cameras": VIEWS}}


def build(name: str, seed: int = 0, **options: Any) -> SceneTransformer:
    torch.manual_seed(seed)
    return bq.create_model(name, classes=CLASSES, **(OPTIONS | OWN[name] | options))


def rig(batch: int, views: int = VIEWS, seed: int = 0) -> Tensor:
    """float64 [B, V, 4, 4]: cameras all around, a little different in each scene."""
    chance = torch.Generator().manual_seed(seed)
    focal = SIZE[1] / 2 / math.tan(math.radians(190 / views))
    image = torch.tensor([[focal, 0, SIZE[1] / 2, 0], [0, focal, SIZE[0] / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    look = torch.tensor([[0, -1, 0, 0], [0, 0, -1, 1.5], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    out = []
    for turn in torch.rand(batch, generator=chance).tolist():
        yaws = [2 * math.pi * v / views + 0.3 * turn for v in range(views)]
        out.append(torch.stack([image @ look @ torch.from_numpy(rigid(yaw_matrix(-yaw), [0.1, 0.2, 0.0])) for yaw in yaws]))
    return torch.stack(out)


def scenes(batch: int = 2, views: int = VIEWS, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(batch, views, 3, *SIZE, generator=chance, dtype=torch.float64).to(dtype), rig(batch, views).to(dtype)


def objects(*counts: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    """Random boxes; every second has no known velocity."""
    chance, out = torch.Generator().manual_seed(seed), []
    for count in counts:
        numbers = torch.rand(count, 9, generator=chance, dtype=torch.float64)
        centre = numbers[:, :3] * torch.tensor([34.0, 34, 2]) - torch.tensor([17.0, 17, 0])
        boxes = torch.cat((centre, 0.5 + 4 * numbers[:, 3:6], 6 * numbers[:, 6:7] - 3, 4 * numbers[:, 7:] - 2), -1)
        boxes[::2, 7:] = torch.nan
        out.append({"labels": torch.randint(CLASSES, (count,), generator=chance), "boxes": boxes.to(dtype)})
    return out


def transcribed(name: str, model: SceneTransformer, images: Tensor, lidar2img: Tensor):
    weights, maps = dict(model.named_parameters()), model.backbone(images.flatten(0, 1))
    if name == "petr":
        return slow.petr(weights, maps, lidar2img, SIZE, AREA_HERE, layers=2, heads=4, depths=5)
    return slow.detr3d(weights, maps, lidar2img, SIZE, AREA_HERE, layers=2, heads=4, levels=4)


@pytest.fixture(scope="module", params=NAMES)
def both(request):
    """The model's name, our outputs, losses and gradients, and those of the slow one."""
    torch.manual_seed(3)
    model = shaken(build(request.param).double().eval(), 0.05)
    images, lidar2img = scenes()
    targets = objects(4, 3)
    out = model(images, lidar2img, trace=True)
    loss, terms = model.loss(out, targets)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = transcribed(request.param, model, images, lidar2img)
    slow_loss, slow_terms, pairs = slow.losses(found[0], found[1], targets)
    slow_loss.backward()
    theirs = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return request.param, model, targets, (out, loss, terms, ours), (found, slow_loss, slow_terms, pairs, theirs)


def test_outputs_are_those_of_the_formulas(both):
    _, _, _, (out, *_), (found, *_) = both
    torch.testing.assert_close(out.logits, found[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.boxes, found[1], atol=1e-9, rtol=1e-9)


def test_losses_and_matches_are_those_of_the_formulas(both):
    _, model, targets, (out, loss, terms, _), (_, slow_loss, slow_terms, pairs, _) = both
    torch.testing.assert_close(loss, slow_loss, atol=1e-9, rtol=1e-9)
    assert set(terms) == set(slow_terms)
    for name, term in slow_terms.items():
        torch.testing.assert_close(terms[name], term, atol=1e-9, rtol=1e-9)
    ours = [[list(zip(q.tolist(), t.tolist(), strict=True)) for q, t in layer] for layer in model.match(out, targets)]
    assert ours == pairs


def test_every_parameter_has_the_gradient_of_the_formulas(both):
    _, model, _, (_, _, _, ours), (_, _, _, _, theirs) = both
    assert set(ours) == set(theirs) == {n for n, _ in model.named_parameters()}
    for name, gradient in theirs.items():
        assert bool(gradient.any()), name
        torch.testing.assert_close(ours[name], gradient, atol=1e-9, rtol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


def test_a_query_has_one_map_over_all_cameras(both):
    """It sums to one, and is what the slow formulas say each cell was read with."""
    name, _, _, (out, *_), (found, *_) = both
    layer, size = out.trace.layers[-1], (16, 24)
    empty = 0
    for scene in range(2):
        for query in range(9):
            expected = torch.zeros(VIEWS, *size, dtype=torch.float64)
            if name == "petr":
                h, w = SIZE[0] // 8, SIZE[1] // 8
                cells = found[2][scene][:, query].mean(0).view(VIEWS, h, w)
                weights = {(0, v, y, x): cells[v, y, x].item() for v in range(VIEWS) for y in range(h) for x in range(w)}
            else:
                weights = found[2][scene][query]
            for (level, view, row, column), weight in weights.items():
                high, wide = size[0] * VIEWS // layer.memory.shapes[level][0], size[1] // layer.memory.shapes[level][1]
                cell = expected[view, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                cell += weight / cell.numel()
            got = layer.heatmap(query, size, scene)
            assert got.map.shape == (VIEWS, *size)
            if not weights:
                empty += 1
                assert not got.map.any()
                assert got.lost == 1
                continue
            assert abs(float(got.map.sum()) - 1) < 1e-5
            torch.testing.assert_close(got.map.double(), expected / expected.sum(), atol=1e-6, rtol=0)
            every = layer.heatmaps([query], size, scene, heads=True).map
            assert every.shape == (1, 4 if name == "petr" else 1, VIEWS, *size)
            torch.testing.assert_close(every.mean(1)[0], got.map, atol=1e-6, rtol=0)
    assert empty < 18


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_pattern_comes_back(name):
    """A query's map shows the one cell of one camera that was made to count."""
    model = build(name).double().eval()
    images, lidar2img = scenes(1)
    layer = model(images, lidar2img, trace=True).trace.layers[0]
    view, row, column, size = 1, 3, 5, (8, 12)
    if name == "petr":
        attention = torch.zeros_like(layer.attention[0])
        attention[0, :, 2, view * 8 + row, column] = 1
        layer.attention = (attention,)
    else:
        layer.weights = torch.zeros_like(layer.weights)
        layer.weights[0, 2, 0, 0, view] = 1
        layer.locations = torch.zeros_like(layer.locations)
        layer.locations[0, 2, 0, 0, view] = torch.tensor([(column + 0.5) / 12, (row + 0.5) / 8])
    found = layer.heatmap(2, size)
    assert abs(found.map[view, row, column] - 1) < 1e-6
    assert abs(found.map.sum() - 1) < 1e-6
    assert found.lost == 0


def test_a_sample_at_the_edge_of_a_view_gives_nothing_to_the_next():
    model = build("detr3d").double().eval()
    layer = model(*scenes(1), trace=True).trace.layers[0]
    layer.weights = torch.zeros_like(layer.weights)
    layer.weights[0, 0, 0, 0, 0] = 1
    layer.locations = torch.full_like(layer.locations, 1.0 - 1e-9)
    found = layer.heatmap(0, (8, 12))
    assert found.map[0, 7, 11] == 1
    assert not found.map[1:].any()
    assert abs(found.lost - 0.75) < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 0), (20, 2)], ids=["none", "one-scene-without", "one", "more-than-queries"])
def test_any_number_of_objects(name, counts):
    model = build(name)
    images, lidar2img = scenes(dtype=torch.float32)
    targets = objects(*counts, dtype=torch.float32)
    out = model(images, lidar2img, targets=targets)
    loss, terms = model.loss(out, targets)
    loss.backward()
    assert all(bool(t.isfinite().all()) for t in (loss, *terms.values()))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert bool(terms["l1"].any()) == any(counts)
    for scene, count in enumerate(counts):
        for query, target in (layer[scene] for layer in model.match(out, targets)):
            assert len(query) == len(target) == min(count, 9) == len(set(query.tolist())) == len(set(target.tolist()))


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in NAMES for size in ("paper", "small", "tiny")])
def test_every_preset_learns(name, size):
    torch.manual_seed(0)
    few = {"num_queries": 20, "decoder_layers": 1} if size == "paper" else {}
    model = bq.create_model(name, classes=CLASSES, preset=size, **few)
    images, lidar2img = torch.randn(1, 6, 3, 64, 64), rig(1, 6).float()
    out = model(images, lidar2img)
    queries = 20 if size == "paper" else preset(name, size).options.num_queries
    layers = 1 if size == "paper" else preset(name, size).options.decoder_layers
    assert out.logits.shape == (layers, 1, queries, CLASSES)
    assert out.boxes.shape == (layers, 1, queries, 10)
    loss, _ = model.loss(out, objects(2, dtype=torch.float32))
    loss.backward()
    assert bool(loss.isfinite())
    assert preset(name).options == type(preset(name).options)()


@pytest.mark.parametrize("name", NAMES)
def test_one_scene_is_overfitted(name):
    narrow = {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}
    model = build(name, backbone="resnet18", backbone_options=narrow, levels=3)
    images, lidar2img = scenes(1, dtype=torch.float32)
    images = images[..., :32, :64]
    targets = objects(2, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 200)
        loss, _ = model.loss(model(images, lidar2img), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.postprocess(model(images, lidar2img), top_k=2)[0]
    wanted = targets[0]
    order = (found["boxes"][:, None, :2] - wanted["boxes"][:, :2]).norm(dim=-1).argmin(0)
    assert sorted(order.tolist()) == [0, 1]
    torch.testing.assert_close(found["boxes"][order, :6], wanted["boxes"][:, :6], atol=1.0, rtol=0)
    assert torch.equal(found["labels"][order], wanted["labels"])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_scenes_do_not_see_each_other_and_the_last_layer_alone_is_the_same(name):
    model = build(name).double().eval()
    images, lidar2img = scenes()
    together = model(images, lidar2img)
    for i in range(2):
        alone = model(images[i : i + 1], lidar2img[i : i + 1], last_only=True)
        torch.testing.assert_close(together.logits[-1:, i], alone.logits[:, 0], atol=1e-9, rtol=0)
        torch.testing.assert_close(together.boxes[-1:, i], alone.boxes[:, 0], atol=1e-9, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_cameras_count(name):
    """The same pixels of a rig that is turned are another scene."""
    model = build(name).double().eval()
    images, lidar2img = scenes(1)
    turned = lidar2img @ torch.from_numpy(rigid(yaw_matrix(1.0), [0.0, 0.0, 0.0]))
    assert not torch.allclose(model(images, lidar2img).boxes, model(images, turned).boxes, atol=1e-3)


@torch.no_grad()
def test_points_are_projected_as_boxes3d_has_it():
    cameras = Cameras(rig(2), SIZE, tuple(AREA_HERE))
    points = torch.rand(2, 50, 3, dtype=torch.float64)
    places, visible = cameras.project(cameras.metres(points))
    for scene in range(2):
        pixels, depth = project(cameras.metres(points)[scene].numpy(), cameras.lidar2img[scene].numpy())
        expected = torch.from_numpy(pixels) / torch.tensor(SIZE[::-1])
        inside = (torch.from_numpy(depth) > 0.1) & ((expected > 0) & (expected < 1)).all(-1)
        assert int((inside != visible[scene]).sum()) <= int((torch.from_numpy(depth).abs() < 0.1).sum())
        torch.testing.assert_close(places[scene][inside], expected[inside])
    # a cell's ray goes through its first pixel, at the depths
    depths = torch.tensor([2.0, 9.0], dtype=torch.float64)
    rays = cameras.unproject((4, 6), depths)
    assert rays.shape == (2, VIEWS, 4, 6, 2, 3)
    pixels, depth = project(rays[1, 2].numpy(), cameras.lidar2img[1].numpy())
    torch.testing.assert_close(torch.from_numpy(depth[2]), depths.expand(4, 6, 2))
    torch.testing.assert_close(torch.from_numpy(pixels[2][3, 5, 0]), torch.tensor([5 * 16.0, 3 * 16.0], dtype=torch.float64))


def test_boxes_become_codes_and_boxes_again():
    coder, boxes = Box3DCoder(tuple(AREA_HERE)), objects(6)[0]["boxes"].nan_to_num()
    torch.testing.assert_close(to_boxes(coder.compared(boxes)), boxes)
    anchor = torch.randn(6, 3, dtype=torch.float64)
    low, high = torch.tensor(AREA_HERE, dtype=torch.float64).chunk(2)
    centres = to_boxes(coder.boxes(coder.decode(torch.zeros(6, 10, dtype=torch.float64), anchor)))[:, :3]
    torch.testing.assert_close(centres, anchor.sigmoid() * (high - low) + low)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_detections_are_best_first_and_near(name):
    model = build(name).double().eval()
    out = model(*scenes())
    for found in model.postprocess(out):
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert found["boxes"].shape == (27, 9)  # of 9 queries, 3 classes each
    assert [len(found["scores"]) for found in model.postprocess(out, one_label=True)] == [9, 9]
    assert [len(found["scores"]) for found in model.postprocess(out, top_k=4)] == [4, 4]
    out.boxes[-1, 0, :, 0] = 20 + 10 + 1e-6  # beyond the area and its margin
    assert [len(found["scores"]) for found in model.postprocess(out)] == [0, 27]
    with pytest.raises(bq.UserError, match="nms"):
        model.postprocess(out, nms=0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("matching", ["group", "hybrid"])
def test_further_queries_learn(name, matching):
    model = build(name, matching=matching, groups=2, hybrid_queries=1, hybrid_repeats=2)
    images, lidar2img = scenes(1, dtype=torch.float32)
    targets = objects(3, dtype=torch.float32)
    out = model(images, lidar2img, targets=targets)
    loss, terms = model.loss(out, targets)
    loss.backward()
    assert out.logits.shape[2] == 9
    assert f"{matching}.l1" in terms


@pytest.mark.parametrize("name", NAMES)
def test_queries_can_be_dropped_and_bfloat16_learns(name):
    model = build(name, num_queries=[9, 5])
    images, lidar2img = scenes(1, dtype=torch.float32)
    targets = objects(3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, lidar2img, targets=targets)
        loss, terms = model.loss(out, targets)
    loss.backward()
    assert {t.dtype for t in (loss, *terms.values())} == {torch.float32}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert int(out.alive[-1].sum()) == 5
    assert len(model.postprocess(out)[0]["scores"]) == 15


@pytest.mark.parametrize("name", NAMES)
def test_configuration_builds_the_model_again(name):
    model = build(name)
    config = json.loads(json.dumps(model.config))
    again = bq.create_model(config["name"], classes=config["classes"], preset=config["preset"], **config["options"])
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("petr", {"encoder_layers": 2}, "encoder_layers=2"),
        ("petr", {"area": [0.0, 0.0, 0.0, 1.0]}, "area="),
        ("petr", {"area": [0.0, 0.0, 2.0, 1.0, 1.0, 1.0]}, "area="),
        ("petr", {"depths": 0}, "depths=0"),
        ("detr3d", {"cameras": 0}, "cameras=0"),
        ("detr3d", {"matching": "denoising"}, "denoising"),
        ("detr3d", {"class_loss": "position"}, "class_loss='position'"),
        ("detr3d", {"dilation": True}, "strides"),
        ("detr3d", {"relative_bias": True}, "relative_bias=True"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(bq.UserError, match=message):
        build(name, **options)


@torch.no_grad()
def test_inputs_that_cannot_be():
    images, lidar2img = scenes(1, dtype=torch.float32)
    with pytest.raises(bq.UserError, match="scenes of 2 cameras"):
        build("detr3d")(images[:, :2], lidar2img[:, :2])
    build("petr")(images[:, :2], lidar2img[:, :2])
    for given in ((images[0], lidar2img), (images, None), (images, lidar2img[:, :2])):
        with pytest.raises(bq.UserError, match="lidar2img"):
            build("petr")(*given)


@pytest.mark.parametrize("name", NAMES)
def test_the_training_step_of_images_takes_batches_of_scenes(name):
    """Of the built-in scenes, whose velocities are not known."""
    data = open_scenes("surround:train=2,val=1,test=1,width=80")
    scenes = SceneDataset(data.split("train"), SceneTransform(Preprocessing(48), 48, 80, data.area), augment=SceneAugment())
    model = bq.create_model(name, classes=data.names, preset="tiny", area=list(data.area))
    optimizer = torch.optim.AdamW(model.parameters())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = training_step(model, collate_scenes([scenes[0], scenes[1]]), optimizer, clip=35.0)
    assert bool(result.loss.isfinite())
    assert bool(result.norm > 0)
    assert set(result.terms) == {"class", "l1", "dense.class", "dense.place", "dense.depth", "dense.box"}
    # what comes before the backbone's last norms, which start at zero, has no gradient yet
    assert all("bn1.bias" in n for n, p in model.named_parameters() if torch.equal(p, before[n]))
    found = model.eval()(*collate_scenes([scenes[0]]).inputs, last_only=True)
    detections = {0: SceneDetections(**{k: v.detach().numpy() for k, v in model.postprocess(found)[0].items()})}
    assert evaluate_scenes(list(data.split("train"))[:1], detections, data.protocol)["scenes"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_it_is_no_model_of_images_and_its_area_is_nuscenes(name):
    assert name not in bq.list_models()
    assert preset(name).options.area == list(AREA)


def test_commands_that_take_images_say_so(capsys):
    for command in (["train", "shapes", "--model", "petr", "--preset", "tiny", "--epochs", "1"], ["check", "shapes", "--model", "detr3d"]):
        assert run(command) == 2
        assert re.fullmatch(r"error: model '(petr|detr3d)' finds 3-D boxes in scenes of several cameras .*\n", capsys.readouterr().err)
    assert run(["models", "petr"]) == 0
    assert "Differs from DETR in:" in capsys.readouterr().out
