"""Sparse R-CNN: number for number with a slow transcription of the authors' formulas, under their key names; and what its parts promise."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

import boxquery as bq
from boxquery.cli import run
from boxquery.models.base import DetectionTransformer
from boxquery.official import authors_of, rename
from boxquery.official.checkpoint import open_checkpoint
from boxquery.parts.attention.regions import read_samples, region_samples
from boxquery.parts.box_coder import LARGEST_SCALE, DeltaBoxCoder
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.memory import Memory
from tests.models import slow_sparse_rcnn as slow
from tests.models.builders import batch, create, objects

CLASSES, HIDDEN, HEADS = 5, 6, 4
BLOCKS = (1, 2, 1, 1)
#: a narrow ResNet of bottlenecks, as the published one is
OPTIONS: dict[str, Any] = {
    "backbone": "resnet50", "backbone_options": {"layers": BLOCKS, "channels": (8, 12, 16, 20)}, "hidden_dim": 32, "heads": HEADS,
    "ffn_dim": 40, "num_queries": 7, "decoder_layers": 3, "dynamic_dim": HIDDEN,
}  # fmt: skip
#: (height, width); a multiple of 32 for the batch, as the authors pad
SIZES = ((128, 192), (96, 160))


def build(**options: Any) -> DetectionTransformer:
    return bq.create_model("sparse-rcnn", classes=CLASSES, **(OPTIONS | options))


def checkpoint(model: DetectionTransformer, stages: int = 3, blocks: tuple[int, ...] = BLOCKS, seed: int = 0) -> slow.Weights:
    """Random tensors under the authors' names, in the shapes of ours: boxes of all sizes, deltas that move them far."""
    generator = torch.Generator().manual_seed(seed)
    own, rules = model.state_dict(), authors_of("sparse-rcnn").keys(model)
    out = {}
    for name in slow.names(stages, blocks):
        like = own[rename(name, rules)]
        noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        if name == "init_proposal_boxes.weight":
            # from a few pixels to more than the image
            size = torch.logspace(-1.6, 0.8, len(like), dtype=torch.float64)[:, None] * (1 + 0.3 * noise[:, 2:].tanh())
            out[name] = torch.cat((0.5 + 0.15 * noise[:, :2], size), -1)
        elif name.endswith("running_var"):
            out[name] = noise.square() + 0.5
        elif like.dim() > 1:
            out[name] = noise / math.sqrt(like[0].numel()) * (0.5 if "bboxes_delta" in name else 1.2)
        else:
            out[name] = 0.1 * noise + (name.endswith(".weight"))
    return out


@dataclass
class Case:
    model: DetectionTransformer
    weights: slow.Weights
    images: Tensor
    mask: Tensor
    targets: list[dict]
    stages: list[tuple[Tensor, Tensor]]
    total: Tensor
    terms: dict[str, list[Tensor]]
    pairs: list[slow.Pairs]


def in_pixels(boxes: Tensor) -> Tensor:
    """[..., B, N, 4] cxcywh of ours -> corners."""
    scale = torch.tensor([[w, h, w, h] for h, w in SIZES], dtype=boxes.dtype)
    return cxcywh_to_xyxy(boxes) * scale[:, None]


@pytest.fixture(scope="module")
def case() -> Case:
    model = build().double()
    weights = checkpoint(model)
    bq.load_official(model, weights)
    for parameter in model.parameters():
        parameter.requires_grad_()
    for name, value in weights.items():
        value.requires_grad_("running" not in name)
    images, mask = batch(*SIZES, dtype=torch.float64)
    targets = objects(3, 2, dtype=torch.float64, classes=CLASSES)
    sizes = [(w, h) for h, w in SIZES]
    stages = slow.forward(weights, images, sizes, HEADS, HIDDEN)
    corners = [cxcywh_to_xyxy(t["boxes"]) * torch.tensor([w, h, w, h]) for t, (h, w) in zip(targets, SIZES, strict=True)]
    total, terms, pairs = slow.losses(stages, [t["labels"] for t in targets], corners, sizes)
    total.backward()
    return Case(model, weights, images, mask, targets, stages, total, terms, pairs)


@torch.no_grad()
def test_every_stage(case):
    out = case.model.eval()(case.images, case.mask)
    for stage, (logits, boxes) in enumerate(case.stages):
        torch.testing.assert_close(out.logits[stage], logits, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(in_pixels(out.boxes[stage]), boxes, atol=1e-7, rtol=1e-9)
        assert logits.std(1).min() > 1e-3
    levels = region_samples(case.model.encoder(case.model.embed_image(case.images, case.mask)), out.boxes[0], (4, 8, 16, 32)).level
    assert len(levels.unique()) >= 3
    assert bool((out.boxes[-1].abs() > 1.2).any())  # nothing is clipped


@torch.no_grad()
def test_single_precision(case):
    model = build()
    bq.load_official(model, {name: value.detach().float() for name, value in case.weights.items()})
    out = model.eval()(case.images.float(), case.mask, last_only=True)
    torch.testing.assert_close(out.logits[-1].double(), case.stages[-1][0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(in_pixels(out.boxes[-1].double()), case.stages[-1][1], atol=0.05, rtol=1e-3)


def test_losses_and_the_gradient_of_every_parameter(case):
    model = case.model.eval()
    out = model(case.images, case.mask)
    assert [[list(zip(q.tolist(), t.tolist(), strict=True)) for q, t in images] for images in model.match(out, case.targets)] == case.pairs
    total, terms = model.loss(out, case.targets)
    for name, values in case.terms.items():
        torch.testing.assert_close(terms[name], torch.stack(values).detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(total, case.total, atol=1e-9, rtol=1e-9)
    model.zero_grad()
    total.backward()
    rules, own = authors_of("sparse-rcnn").keys(model), dict(model.named_parameters())
    theirs = {rename(name, rules): value.grad for name, value in case.weights.items() if value.requires_grad}
    # batch norm is a fixed map
    assert {name for name in theirs if not re.search(r"\.(bn\d|downsample\.1)\.", name)} == own.keys()
    for name, parameter in own.items():
        ours, gradient = parameter.grad, theirs[name]
        assert ours is not None, name
        assert gradient.norm() > 0, name
        assert (ours - gradient).norm() <= 1e-7 * gradient.norm() + 1e-10, name


def test_options_are_those_of_the_tensors(tmp_path, capsys):
    """Also under a wrapper's prefix; what is left out is said."""
    small: dict[str, Any] = {"hidden_dim": 32, "ffn_dim": 48, "num_queries": 5, "decoder_layers": 2, "dynamic_dim": 8}
    source = bq.create_model("sparse-rcnn", classes=80, **small)
    tensors = {name: value.float() for name, value in checkpoint(source, 2, (3, 4, 6, 3)).items()}
    wrapped = {f"module.{name}": value for name, value in tensors.items()} | {"module.pixel_mean": torch.zeros(3, 1, 1)}
    torch.save({"model": wrapped, "iteration": 1}, tmp_path / "theirs.pth")
    model, report = open_checkpoint(tmp_path / "theirs.pth", "sparse-rcnn", {})
    assert model.config["options"] == source.config["options"]
    assert report["assumed"] == {}
    assert report["constants"] == 1
    bq.load_official(source, tensors)
    ours, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if not name.endswith("num_batches_tracked"))
    words = ["import-official", str(tmp_path / "theirs.pth"), "--model", "sparse-rcnn", "--out", str(tmp_path / "ours")]
    assert run(words) == 0
    detector = bq.load(tmp_path / "ours")
    assert (detector.classes[0], detector.classes[79], detector.ids[79]) == ("person", "toothbrush", 90)
    del wrapped["module.init_proposal_boxes.weight"]
    torch.save({"model": wrapped}, tmp_path / "cut.pth")
    with pytest.raises(bq.UserError, match=r"missing: init_proposal_boxes\.weight"):
        open_checkpoint(tmp_path / "cut.pth", "sparse-rcnn", {})


# -- parts ----------------------------------------------------------------------------------------------------------------------


def pyramid(*shapes: tuple[int, int], extent: tuple[int, int], images: int = 2, dim: int = 3) -> Memory:
    tokens = torch.randn(images, sum(h * w for h, w in shapes), dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Memory(
        tokens, None, None, shapes, torch.ones(images, len(shapes), 2, dtype=torch.float64), torch.tensor([extent] * images).double()
    )


BOXES = torch.tensor([
    [0.5, 0.5, 1.0, 1.0], [0.31, 0.62, 0.1, 0.4], [0.9, 0.1, 0.7, 0.6], [-0.2, 1.3, 0.5, 0.9], [0.4, 0.4, 1e-6, 1e-6],
    [0.5, 0.5, 40.0, 3.0], [3.0, 3.0, 0.2, 0.2], [0.02, 0.98, 0.05, 0.03],
], dtype=torch.float64)  # fmt: skip


@pytest.mark.parametrize("level", [0, 1])
def test_regions_are_those_of_torchvision(level, monkeypatch):
    """Values and gradients, at each level, inside, across and beyond the edges; in export, too."""
    sides = ((20, 30), (10, 15))
    memory = pyramid(*sides, extent=(240, 160))
    boxes = BOXES.expand(2, -1, -1)
    samples = region_samples(memory, boxes, (8, 16))
    chosen = samples.level == level
    assert bool(chosen.any())
    tokens = memory.tokens.requires_grad_()
    ours = read_samples(memory, samples)
    cells = memory.maps(tokens)[level].permute(0, 3, 1, 2)
    corners = cxcywh_to_xyxy(boxes) * torch.tensor([240.0, 160.0] * 2)
    image = torch.arange(2)[:, None, None].expand(-1, len(BOXES), -1)
    rois = torch.cat((image, corners), -1).flatten(0, 1)
    theirs = roi_align(cells, rois, 7, 1 / (8 * 2**level), 2, aligned=True).flatten(2).transpose(1, 2).unflatten(0, (2, -1))
    torch.testing.assert_close(ours[chosen], theirs[chosen], atol=1e-10, rtol=0)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(read_samples(memory, samples), ours, atol=1e-12, rtol=0)
    direction = torch.randn(ours[chosen].shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((t[chosen] * direction).sum(), tokens, retain_graph=True)[0] for t in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


def test_levels_by_size():
    """224 pixels at stride 16, half of that at 8; the ends take the rest."""
    memory = pyramid((256, 256), (128, 128), (64, 64), (32, 32), extent=(1024, 1024), images=1)
    sides = torch.tensor([1.0, 111.0, 112.1, 223.0, 224.1, 447.0, 448.1, 5000.0], dtype=torch.float64) / 1024
    boxes = torch.stack((torch.full_like(sides, 0.5),) * 2 + (sides / 2, sides * 2), -1)[None]
    assert region_samples(memory, boxes, (4, 8, 16, 32)).level[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert region_samples(memory, boxes, (16, 32)).level[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_a_box_of_nan_is_read_as_nan():
    """So that the matching names layer and image, instead of an index out of range."""
    memory = pyramid((4, 4), extent=(64, 64), images=1)
    boxes = torch.tensor([[[float("nan"), 0.5, 0.5, 0.5], [0.5, 0.5, float("inf"), 0.5], [0.5] * 4]], dtype=torch.float64)
    cells = read_samples(memory, region_samples(memory, boxes, (16,)))
    assert cells[0, 0].isnan().all()
    assert cells[0, 2].isfinite().all()


def test_the_trace_has_the_samples_and_what_their_cells_add():
    """Points give back the region: the bilinear weights of the heat map are those of RoIAlign."""
    torch.manual_seed(0)
    model = create("sparse-rcnn").double().eval()
    (images, mask), size = batch((96, 128), dtype=torch.float64), (12, 16)
    with torch.no_grad():
        layer = model(images, mask, trace=True).trace.layers[0]
        boxes = torch.tensor([0.4, 0.5, 0.3, 0.4], dtype=torch.float64)
        model.queries.anchors.copy_(boxes.expand_as(model.queries.anchors))
        layer = model(images, mask, trace=True).trace.layers[0]
        cells = layer.weights.unflatten(-1, (49, 4))
        uniform = layer.weights.sum(3).mul(0).add(1 / 196)
        masses = layer.masses(0, [0])[0, 0]
        layer.weights = torch.zeros_like(layer.weights)
        layer.weights[:, :, :, 0] = uniform
        mean = (layer.masses(0, [0])[0, 0][..., None] * layer.memory.maps(layer.memory.tokens)[0][0]).sum((0, 1))
    assert layer.locations.shape == (1, 40, 1, 3, 196, 2)
    torch.testing.assert_close(cells.sum((-2, -1)).sum(-1), torch.ones(1, 40, 1, dtype=torch.float64))
    torch.testing.assert_close(cells, cells[..., :1].expand_as(cells))
    assert cells[0, 0, 0, 0].std() > 1e-4
    assert masses.sum().item() == pytest.approx(1)
    read = read_samples(layer.memory, region_samples(layer.memory, boxes.expand(1, 1, -1), (8, 16, 32)))
    torch.testing.assert_close(mean, read[0, 0].mean(0))
    heat = layer.heatmap(0, size)
    inside = torch.zeros(size)
    inside[3:9, 3:10] = 1
    assert float((heat.map * inside).sum()) > 0.85


def test_deltas():
    coder, box = DeltaBoxCoder(), torch.tensor([0.4, 0.5, 0.2, 0.1])
    raw = torch.tensor([1.0, -2.0, math.log(3), 100.0])
    assert coder.decode(raw, box).tolist() == pytest.approx([0.5, 0.4, 0.6, 0.1 * LARGEST_SCALE])
    costs = coder.costs(box.expand(1, 1, 1, -1), torch.tensor([0.5, 0.5, 0.4, 0.1]).expand(1, 1, 1, -1))
    assert costs["l1"].item() == pytest.approx(0.2)  # corners .3..5 and .3..7: not cxcywh's .1 + .2


def test_start():
    """Whole images, content of variance one, classes at .01, everything else of the head Xavier-uniform."""
    model = create("sparse-rcnn", num_queries=200)
    assert model.queries.anchors.tolist() == [[0.5, 0.5, 1.0, 1.0]] * 200
    assert model.queries.content.std().item() == pytest.approx(1, abs=0.03)
    for layer, head in zip(model.layers, model.heads, strict=True):
        assert head.classes.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)
        for matrix in (layer.read.dynamic_layer.weight, layer.read.out_layer.weight, head.boxes[-1].weight):
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.9 * bound < matrix.abs().max() <= bound


def test_learned_sides_cannot_turn_negative():
    model = create("sparse-rcnn")
    with torch.no_grad():
        model.queries.anchors[:, 2:] = -0.3
    out = model(*batch((64, 64)), targets=objects(2))
    loss, _ = model.loss(out, objects(2))
    assert bool(loss.isfinite())
    assert bool((out.boxes[..., 2:] > 0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 5}, r"levels=5: must be 1 to 4"),
        ({"dilation": True, "levels": 2}, r"dilation=True: .* halving size"),
        ({"position": "sine"}, r"position='sine': .* needs encoder_layers"),
        ({"dynamic_dim": 0}, r"dynamic_dim=0: must be at least 1"),
        ({"backbone": "vit_tiny_patch16_224", "backbone_options": {"dynamic_img_size": True}}, r"strides 16, 16, 16, .*must double"),
        ({"relative_bias": True}, r"relative_bias=True .*DynamicConvolution has none"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_it_cannot_be(options, message):
    with pytest.raises(bq.UserError, match=message) as raised:
        create("sparse-rcnn", **options)
    assert "\n" not in str(raised.value)
