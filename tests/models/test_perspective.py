"""Boxes that cells propose, and queries at the best of them: against slow loops and a hand-worked case, and what is asked of any model."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.boxes3d import project
from boxquery.matching.hungarian import pad_targets
from boxquery.matching.perspective import PerspectiveLoss
from boxquery.models.scenes.base import SceneTransformer
from boxquery.parts.box_coder_3d import CENTRE, Box3DCoder, PolarBox3DCoder, to_boxes
from boxquery.parts.cameras import Cameras
from boxquery.parts.memory import Memory
from boxquery.parts.output import PerspectivePredictions
from boxquery.parts.perspective import PerspectiveHead, PerspectiveQueries
from boxquery.parts.scene_tokens import SceneTokens
from tests.models.builders import shaken
from tests.models.test_scenes import AREA_HERE, CLASSES, NAMES, SIZE, VIEWS, build, objects, rig, scenes

H, W = 8, 12
CODER = Box3DCoder(tuple(AREA_HERE))


def memory(batch: int = 2, dim: int = 8, seed: int = 0) -> Memory:
    chance = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch * VIEWS, dim, H, W, generator=chance, dtype=torch.float64)
    return SceneTokens()([maps, maps[..., ::2, ::2]], Cameras(rig(batch), SIZE, tuple(AREA_HERE)))


def head(dim: int = 8, seed: int = 0) -> PerspectiveHead:
    torch.manual_seed(seed)
    return shaken(PerspectiveHead(dim, CLASSES, AREA_HERE).double(), 0.3)


@torch.no_grad()
def test_a_cell_proposes_what_the_formulas_say():
    """Every cell of every view by itself, from the numbers of the head."""
    tokens, own = memory(), head()
    hidden, got = own(tokens)
    numbers = own.boxes(hidden)
    assert got.cells == (H, W)
    assert got.logits.shape == (2, VIEWS * H * W, CLASSES)
    far = math.hypot(20, 20)
    for scene in range(2):
        for cell in range(0, VIEWS * H * W, 7):
            view, y, x = cell // (H * W), cell // W % H, cell % W
            matrix = tokens.cameras.lidar2img[scene, view]
            inverse = torch.linalg.inv(matrix)
            dx, dy, share, w, length, h, sine, cosine, along, left = numbers[scene, cell].tolist()
            u, v = (x + 0.5 + dx) * SIZE[1] / W, (y + 0.5 + dy) * SIZE[0] / H
            start, end = ((inverse @ torch.tensor([u * d, v * d, d, 1.0], dtype=torch.float64))[:3] for d in (0.0, 1.0))
            down = (start - end)[2].item()
            depth = start[2].item() / down if down > start[2].item() / far else far
            depth *= math.exp(share)
            foot = start + depth * (end - start)
            azimuth = math.atan2(end[1] - start[1], end[0] - start[0])
            yaw, speed, course = math.atan2(sine, cosine) + azimuth, math.hypot(along, left), math.atan2(left, along) + azimuth
            box = to_boxes(got.codes[scene, cell])
            expected = [foot[0], foot[1], foot[2] + math.exp(h) / 2, math.exp(w), math.exp(length), math.exp(h)]
            torch.testing.assert_close(box[:6], torch.tensor(expected, dtype=torch.float64))
            assert abs(math.remainder(box[6].item() - yaw, 2 * math.pi)) < 1e-9
            assert abs(math.remainder(math.atan2(box[8], box[7]) - course, 2 * math.pi)) < 1e-9
            assert abs(math.hypot(box[7], box[8]) - speed) < 1e-9
            assert abs(got.depths[scene, cell].item() - depth) < 1e-9
            torch.testing.assert_close(got.places[scene, cell], torch.tensor([u / SIZE[1], v / SIZE[0]], dtype=torch.float64))


def one_camera(boxes: list[list[float]]) -> tuple[PerspectivePredictions, list[dict[str, Tensor]]]:
    """A camera 2 m above the origin that looks forward, 8 x 4 cells of 10 pixels, focal length 40; cells propose nothing yet."""
    matrix = torch.tensor([[40.0, -40, 0, 0], [20, 0, -40, 80], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)[None, None]
    cameras = Cameras(matrix, (40, 80), tuple(AREA_HERE))
    nothing = torch.zeros(1, 32, 10, dtype=torch.float64)
    out = PerspectivePredictions(nothing[..., :2] - 2.0, nothing, nothing[..., :2], nothing[..., 0] + 1, (4, 8), cameras)
    filled = torch.tensor([[*box, 1.0, 3.0, 2.0, 0.5, math.nan, math.nan] for box in boxes], dtype=torch.float64).view(-1, 9)
    return out, [{"labels": torch.arange(len(boxes)) % 2, "boxes": filled}]


def test_which_cells_learn_by_hand():
    """Ahead at 8 m its centre (z = 1) is at u = 40, v = 25: in cells (4, 2.5). The one at 16 m, whose centre is at (4, 2.25), is behind it,
    and that behind the camera is seen by no cell."""
    out, targets = one_camera([[16.0, 0, 1], [8.0, 0, 1], [-8.0, 0, 1], [10.0, 7.5, 1]])
    padded = pad_targets(targets, out.codes, 1, 2)
    found = PerspectiveLoss(CODER, reach=0.5).assign(out, padded)
    # cell centres at most half a cell from it: columns 3 and 4, row 2; and of the last, whose centre is at u = 10, v = 24: columns 0 and 1
    assert [(i.item(), t.item()) for i, t in zip(found.cell, found.target, strict=True)] == [
        (2 * 8 + 0, 3), (2 * 8 + 1, 3), (2 * 8 + 3, 1), (2 * 8 + 4, 1)
    ]  # fmt: skip
    torch.testing.assert_close(found.depths, torch.tensor([10.0, 10, 8, 8], dtype=torch.float64))
    # the foot of that at 8 m is at v = 30, of that at 10 m at v = 28
    expected = torch.tensor([[10 / 80, 28 / 40]] * 2 + [[0.5, 30 / 40]] * 2, dtype=torch.float64)
    torch.testing.assert_close(found.places, expected)


def test_losses_are_those_of_loops():
    _, out = head()(memory())
    targets = objects(3, 5, seed=6)
    padded, loss = pad_targets(targets, out.codes, 2, CLASSES), PerspectiveLoss(CODER, reach=1.5)
    size = torch.tensor([W, H], dtype=torch.float64)
    learned: dict[tuple[int, int], tuple] = {}
    for scene, target in enumerate(targets):
        for n, box in enumerate(target["boxes"]):
            foot = box[:3] - torch.tensor([0.0, 0, 0.5]) * box[5]
            pixels, depth = project(torch.stack((box[:3], foot)).numpy(), out.cameras.lidar2img[scene].numpy())
            for view in range(VIEWS):
                centre, low = torch.from_numpy(pixels[view]) / torch.tensor([SIZE[1], SIZE[0]]) * size
                if depth[view, 0] <= 0 or not (0 < centre[0] < W and 0 < centre[1] < H):
                    continue
                for y in range(H):
                    for x in range(W):
                        cell = (scene, view * H * W + y * W + x)
                        near = abs(x + 0.5 - centre[0]) <= 1.5 and abs(y + 0.5 - centre[1]) <= 1.5
                        if near and depth[view, 1] < learned.get(cell, (1e9,))[0]:
                            learned[cell] = (depth[view, 1], n, low, 2 * float((low - centre).norm()))
    assert len(learned) > 20
    sums = dict.fromkeys(("class", "place", "depth", "box"), torch.zeros((), dtype=torch.float64))
    for scene in range(2):
        for cell in range(VIEWS * H * W):
            own = learned.get((scene, cell))
            for column in range(CLASSES):
                p = out.logits[scene, cell, column].sigmoid()
                if own is not None and targets[scene]["labels"][own[1]] == column:
                    distance = (out.codes[scene, cell, :2].detach() - targets[scene]["boxes"][own[1], :2]).norm()
                    wanted = 0.3 + 0.7 * math.exp(-distance / 3)
                    entropy = -wanted * p.log() - (1 - wanted) * (1 - p).log()
                    sums["class"] = sums["class"] + 0.25 * (p - wanted) ** 2 * entropy
                else:
                    sums["class"] = sums["class"] + 0.75 * p**2 * -(1 - p).log()
            if own is None:
                continue
            depth, n, low, tall = own
            sums["place"] = sums["place"] + (out.places[scene, cell] * size - low).abs().sum() / max(tall, 1)
            sums["depth"] = sums["depth"] + (out.depths[scene, cell].log() - math.log(depth)).abs()
            term = CODER.terms(out.codes[scene, cell][None], targets[scene]["boxes"][n][None])["l1"][0]
            sums["box"] = sums["box"] + term[[2, 3, 5, 6, 7, 8, 9]].sum()
    terms = loss.terms(out, padded)
    assert set(terms) == set(sums) == set(loss.weights)
    for name, total in sums.items():
        torch.testing.assert_close(terms[name], total / len(learned))


def test_queries_are_at_peaks_first():
    """Of two neighbours the better comes before, and the other after all peaks, cells of another view being no neighbours."""
    tokens = memory(1)
    queries = PerspectiveQueries(VIEWS * H * W, 8, head()).double()
    state = queries(tokens)
    scores = state.proposed.logits[0].amax(-1)
    maps = scores.view(VIEWS, H, W)
    is_peak = torch.zeros(VIEWS, H, W, dtype=torch.bool)
    for view in range(VIEWS):
        for y in range(H):
            for x in range(W):
                near = maps[view, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                is_peak[view, y, x] = maps[view, y, x] >= near.max()
    order = sorted(range(len(scores)), key=lambda i: (not is_peak.flatten()[i], -scores[i].item()))
    low, high = torch.tensor(AREA_HERE, dtype=torch.float64).chunk(2)
    points = ((state.proposed.codes[0, order][:, CENTRE] - low) / (high - low)).clamp(1e-5, 1 - 1e-5)
    torch.testing.assert_close(state.reference[0].sigmoid(), points)
    fewer = PerspectiveQueries(5, 8, queries.head).double()(tokens)
    torch.testing.assert_close(fewer.reference[0], state.reference[0, :5])
    assert not state.reference.requires_grad
    assert state.content.requires_grad


def test_polar_codes_turn_with_their_anchor():
    area = (-20.0, -20.0, -1.0, 20.0, 20.0, 3.0)
    coder, raw = PolarBox3DCoder(area), torch.randn(7, 10, dtype=torch.float64)
    places = torch.rand(7, 3, dtype=torch.float64) * torch.tensor([12.0, 12, 2]) - torch.tensor([6.0, 6, 0])
    low, high = torch.tensor(area, dtype=torch.float64).chunk(2)
    turn, still = 0.7, torch.zeros(7, 10, dtype=torch.float64)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]], dtype=torch.float64)

    def decoded(points: Tensor, numbers: Tensor) -> Tensor:
        return to_boxes(coder.boxes(coder.decode(numbers, ((points - low) / (high - low)).logit())))

    torch.testing.assert_close(decoded(places, still)[:, :3], places)
    a, b = decoded(places, raw), decoded(places @ matrix.T, raw)
    torch.testing.assert_close(a[:, :3] @ matrix.T, b[:, :3])
    torch.testing.assert_close(a[:, 3:6], b[:, 3:6])
    torch.testing.assert_close(a[:, 7:9] @ matrix[:2, :2].T, b[:, 7:9])
    assert ((b[:, 6] - a[:, 6] - turn + math.pi) % (2 * math.pi) - math.pi).abs().max() < 1e-9
    # what counts is shares of the distance
    boxes, codes = objects(4)[0]["boxes"], coder.compared(objects(7, seed=5)[0]["boxes"])
    costs = coder.costs(codes[None, None], boxes[None, None])["l1"][0, 0]
    for q in range(7):
        for n in range(4):
            apart = (codes[q] - coder.compared(boxes)[n]).abs()
            apart[:2] /= 0.1 * max(boxes[n, :2].norm().item(), 1)
            assert abs(costs[q, n] - apart[:8].sum()) < 1e-9
            term = coder.terms(codes[q][None], boxes[n][None])["l1"]
            assert abs(term[0, :8].sum() - apart[:8].sum()) < 1e-9


def two_stage(name: str, **options) -> SceneTransformer:
    return build(name, two_stage=True, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (20, 2)], ids=["none", "one-scene-without", "more-than-queries"])
def test_any_number_of_objects(name, counts):
    model = two_stage(name)
    images, lidar2img = scenes(dtype=torch.float32)
    targets = objects(*counts, dtype=torch.float32)
    loss, terms = model.loss(model(images, lidar2img, targets=targets), targets)
    loss.backward()
    assert set(terms) == {"class", "l1", "dense.class", "dense.place", "dense.depth", "dense.box"}
    assert all(bool(t.isfinite().all()) for t in (loss, *terms.values()))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert bool(terms["dense.place"]) == any(counts)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    model = shaken(two_stage(name), 0.05)
    images, lidar2img = scenes(dtype=torch.float32)
    targets = objects(4, 4, dtype=torch.float32)
    model.loss(model(images, lidar2img, targets=targets), targets)[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_objects_that_no_camera_shows_teach_the_decoder_alone(name):
    model = two_stage(name, **({"cameras": 1} if name == "detr3d" else {}))
    images, lidar2img = scenes(1, dtype=torch.float32)
    camera = lidar2img[:, :1]
    targets = objects(6, dtype=torch.float32)
    seen = Cameras(camera, SIZE, tuple(AREA_HERE)).project(targets[0]["boxes"][None, :, :3])[1][0, 0]
    hidden = [{key: value[~seen] for key, value in targets[0].items()}]
    assert len(hidden[0]["labels"]) > 0
    loss, terms = model.loss(model(images[:, :1], camera, targets=hidden), hidden)
    loss.backward()
    assert terms["dense.place"] == terms["dense.depth"] == terms["dense.box"] == 0
    assert bool(terms["l1"].any())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_scenes_do_not_see_each_other(name):
    model = shaken(two_stage(name).double().eval(), 0.05)
    images, lidar2img = scenes()
    together = model(images, lidar2img)
    for i in range(2):
        alone = model(images[i : i + 1], lidar2img[i : i + 1], last_only=True)
        torch.testing.assert_close(together.boxes[-1:, i], alone.boxes[:, 0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("matching", ["group", "hybrid"])
def test_proposals_have_no_further_queries(matching):
    with pytest.raises(bq.UserError, match="two_stage=True"):
        two_stage("petr", matching=matching)


def test_the_loss_has_its_weights():
    model = two_stage("petr")
    images, lidar2img = scenes(1, dtype=torch.float32)
    targets = objects(3, dtype=torch.float32)
    out = model(images, lidar2img, targets=targets)
    assert isinstance(model.criterion.dense, PerspectiveLoss)
    loss, terms = model.loss(out, targets)
    weights = model.criterion.dense.weights
    own = sum(weights[name] * terms[f"dense.{name}"] for name in weights)
    rest = model.loss(replace(out, dense=None), targets)[0]
    torch.testing.assert_close(loss - rest, own)


@torch.no_grad()
def test_queries_of_petr_start_at_the_cells_that_proposed_them():
    """What they read at first is mostly near their cell, by position alone: of themselves they know nothing. (Without norms, and with the
    content of cells, .02 of it is, as of all cells.)"""
    torch.manual_seed(0)
    model = bq.create_model("petr", classes=CLASSES, preset="tiny", area=AREA_HERE).eval()
    images, lidar2img = torch.randn(1, 6, 3, 96, 160), rig(1, 6).float()
    memory = model.embed_scene(images, lidar2img)
    state = model.queries(memory)
    assert not state.content.any()
    codes = state.proposed.codes[0]
    feet = memory.cameras.metres(state.reference.sigmoid()[0])
    cell = torch.cdist(feet, codes[:, list(CENTRE)]).argmin(-1)
    view, y, x = cell // (12 * 20), cell // 20 % 12, cell % 20
    attention = model(images, lidar2img, trace=True).trace.layers[0].attention[0][0].mean(0).unflatten(1, (6, 12))
    near = [float(attention[q, view[q], max(y[q] - 2, 0) : y[q] + 3, max(x[q] - 2, 0) : x[q] + 3].sum()) for q in range(len(cell))]
    assert sum(near) / len(near) > 0.08
