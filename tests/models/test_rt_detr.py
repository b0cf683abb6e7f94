"""RT-DETR and RT-DETRv2: number for number with ``transformers``, and in training with the authors' formulas written out."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.official import fill, rename
from boxquery.official.checkpoint import open_checkpoint
from boxquery.official.transformers import module_of
from boxquery.official.transformers.config import Config
from boxquery.official.transformers.patterns import packed
from boxquery.parts.backbone import Backbone
from tests.models.builders import objects, shaken
from tests.models.slow_rt_detr import training_terms

CLASSES, NOISED = 5, 10
#: as R18: basic blocks, whose first has a shortcut of its own; narrow fusions
SMALL: dict[str, Any] = {
    "backbone": {"layer_type": "basic", "hidden_sizes": [64, 24, 32, 40], "depths": [1, 2, 1, 1]}, "encoder_in_channels": [24, 32, 40],
    "encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32] * 3, "hidden_expansion": 0.5, "decoder_layers": 2,
    "num_queries": 9, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
}  # fmt: skip
#: as R101: bottlenecks; an encoder that is wider than the decoder
WIDE: dict[str, Any] = {
    "backbone": {"layer_type": "bottleneck", "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]},
    "encoder_in_channels": [64, 96, 128], "encoder_hidden_dim": 48, "d_model": 32, "decoder_in_channels": [48] * 3, "decoder_layers": 3,
    "num_queries": 12, "encoder_ffn_dim": 64, "decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "decoder_n_points": 3,
}  # fmt: skip
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rt-detr": ("rt-detr", "RTDetr", SMALL),
    "rt-detr-wide": ("rt-detr", "RTDetr", WIDE),
    "rt-detr-v2": ("rt-detr-v2", "RTDetrV2", SMALL | {"decoder_offset_scale": 0.7}),
    "rt-detr-v2-discrete": ("rt-detr-v2", "RTDetrV2", WIDE | {"decoder_method": "discrete"}),
}


@dataclass
class Case:
    name: str
    peer: Any
    model: DetectionTransformer


def build(case: str) -> Case:
    """Their model with weights that are all random, and ours with the same."""
    name, kind, values = CASES[case]
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(embedding_size=64, out_indices=[2, 3, 4], **values["backbone"])
    given = {key: value for key, value in values.items() if key != "backbone"}
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone, num_labels=CLASSES, num_denoising=NOISED, attn_implementation="eager", **given
    )
    peer = shaken(getattr(transformers, f"{kind}ForObjectDetection")(config), 0.05)
    for key, value in [*peer.named_buffers(), *peer.named_parameters()]:
        if key.endswith(("running_mean", "running_var")):
            value.normal_(std=0.1) if key.endswith("mean") else value.uniform_(0.5, 1.5)
        if ("norm.weight" in key or "normalization.weight" in key) and value.dim() == 1:
            value.data.uniform_(0.7, 1.3)  # the library starts batch norm near zero, and matrices, too
        if value.dim() > 1:
            value.data.normal_(std=value[0].numel() ** -0.5 * (1.0 if value.dim() == 2 else 1.4))
    with torch.no_grad():
        peer.model.denoising_class_embed.weight[-1] = 0.0
    model = bq.create_model(name, classes=CLASSES, **module_of(name).options(Config(config.to_dict(), "config.json")))
    fill(model, packed(peer.state_dict()), module_of(name))
    return Case(name, peer.eval(), model.eval())


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return build(request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["float64", "float32"])
@pytest.mark.parametrize("size", [(96, 96), (64, 128)], ids=str)
@torch.no_grad()
def test_predictions_of_every_layer_and_proposals(case, dtype, tolerance, size):
    """Also on maps that are not square, where the authors' own positions are out of order, and the library's are not."""
    peer, model = case.peer.to(dtype), case.model.to(dtype)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
    theirs, out = peer(pixel_values=images, labels=None), model(images)
    for ours, expected in (
        (out.logits, theirs.intermediate_logits.transpose(0, 1)),
        (out.boxes, theirs.intermediate_reference_points.transpose(0, 1)),
        (out.proposals.logits[0], theirs.enc_topk_logits),
        (out.proposals.boxes[0], theirs.enc_topk_bboxes),
    ):
        assert ours.std(-2).min() > 1e-3  # over the queries
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


def gradients_in_our_names(model: DetectionTransformer, peer: nn.Module) -> dict[str, Tensor]:
    """Those of all parameters of theirs that learn, under our names."""
    grads = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}
    rules = module_of(model.config["name"]).keys(model)
    named = {rename(key, rules): value for key, value in packed(grads).items()}
    assert None not in named
    named["queries.denoising.labels"] = named["queries.denoising.labels"][:-1]
    return named


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    assert (ours.detach() - expected).norm() <= tolerance * (expected.norm() + 1e-3)


@pytest.mark.parametrize("agnostic", [False, True], ids=["by class", "agnostic"])
def test_training_is_the_authors(case, agnostic):
    """Every term, and the gradient of every parameter: look forward twice, noised objects with empty slots, proposals."""
    if agnostic and case.name == "rt-detr":
        pytest.skip("an option of RT-DETRv2")
    peer, model, head = case.peer.double().train(), case.model.double().train(), None
    if agnostic:
        torch.manual_seed(4)
        head = nn.Linear(32, 1).double()
        options = model.config["options"] | {"class_agnostic": True}
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("queries.head.classes")}
        model = bq.create_model(case.name, classes=CLASSES, **options)
        model.freeze()
        model.double().train().load_state_dict(weights | {f"queries.head.classes.{k}": v for k, v in head.state_dict().items()})
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)).double()
    targets = objects(3, 1, dtype=torch.float64, classes=CLASSES)
    peer.zero_grad(), model.zero_grad()
    torch.manual_seed(3)
    expected = training_terms(peer, images, targets, noised=NOISED, agnostic=head)
    expected.total.backward()
    torch.manual_seed(3)
    total, terms = model.loss(model(images, targets=targets), targets)
    total.backward()
    assert set(terms) == set(expected.by_name)
    for name, values in expected.by_name.items():
        torch.testing.assert_close(terms[name].reshape(-1), torch.stack(values), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(total, expected.total, atol=1e-8, rtol=1e-9)
    wanted = gradients_in_our_names(model, peer)
    if head is not None:
        wanted |= {"queries.head.classes.weight": head.weight.grad, "queries.head.classes.bias": head.bias.grad}
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learning.keys() <= wanted.keys()
    largest = max(float(value.norm()) for value in wanted.values())
    for name, p in learning.items():
        assert p.grad is not None
        assert (p.grad - wanted[name]).norm() <= 1e-8 * wanted[name].norm() + 1e-11 * largest, name


def test_the_library_measures_from_detached_boxes(case):
    """Its values are the authors', its gradients are not: a layer's box head learns from that layer alone."""
    peer, model = case.peer.double().eval(), case.model.double().eval()
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)).double()
    peer.zero_grad(), model.zero_grad()
    peer(pixel_values=images).intermediate_reference_points[:, 1].sum().backward()
    model(images).boxes[1].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in peer.model.decoder.bbox_embed[0].parameters())
    assert all(bool(p.grad.any()) for p in model.heads[0].boxes.parameters())


def test_positions_of_the_authors_on_a_map_that_is_not_square():
    """They count the cells column by column, so that all but square maps have positions of other cells."""
    from boxquery.parts.positions import CellSinePosition

    def authors(h: int, w: int, dim: int) -> Tensor:
        x, y = torch.meshgrid(torch.arange(w).double(), torch.arange(h).double(), indexing="ij")
        frequencies = 1.0 / 10000.0 ** (torch.arange(dim // 4).double() / (dim // 4))
        # named after the axes that they are of in a square
        a, b = (values.flatten()[:, None] * frequencies for values in (x, y))
        return torch.cat((a.sin(), a.cos(), b.sin(), b.cos()), 1)

    for h, w in ((4, 4), (3, 5)):
        ours = CellSinePosition(8)(torch.zeros(1, h, w, dtype=torch.bool), torch.zeros(1, dtype=torch.float64))[0].flatten(0, 1)
        assert torch.allclose(ours, authors(h, w, 8)) == (h == w)


def test_a_size_for_evaluation_takes_positions_away_in_the_library():
    """With ``eval_size`` its encoder layer has positions in training alone; such a configuration is not read."""
    made = build("rt-detr")
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    before = made.peer.double()(pixel_values=images.double()).logits
    made.peer.model.encoder.aifi[0].eval_size = (96, 96)
    assert (made.peer(pixel_values=images.double()).logits - before).abs().max() > 1e-3  # far above the tolerance of parity
    config = Config(made.peer.config.to_dict() | {"eval_size": [96, 96]}, "config.json")
    with pytest.raises(bq.UserError, match=r"eval_size=.* only None"):
        module_of("rt-detr").options(config)


def authors_names(model: DetectionTransformer) -> dict[str, Tensor]:
    """The weights of ours as the authors name them, with what a checkpoint holds beside them."""
    own, out = model.state_dict(), {}
    rules = {"neck.projections": "encoder.input_proj", "encoder.project": "decoder.input_proj"}
    levels = len(model.neck.projections)
    for key, value in own.items():
        if key.startswith("backbone.body."):
            *place, kind = key.removeprefix("backbone.body.").split(".")
            if place[0] in ("conv1", "bn1"):
                number = 7 if place[0] == "bn1" else int(place[1])
                name = f"backbone.conv1.conv1_{number // 3 + 1}.{'norm' if number % 3 == 1 else 'conv'}"
            else:
                stage, block, part = int(place[0][-1]) - 1, int(place[1]), place[2]
                name = f"backbone.res_layers.{stage}.blocks.{block}."
                if part == "downsample":
                    name += "short." + "conv." * (stage > 0) + ("conv" if place[3] == "1" else "norm")
                else:
                    name += f"branch2{'abc'[int(part[-1]) - 1]}.{'conv' if part.startswith('conv') else 'norm'}"
            out[f"{name}.{kind}"] = value
            continue
        name = key
        for ours, theirs in rules.items():
            name = re.sub(rf"^{ours}\.(\d)\.0", rf"{theirs}.\1.conv", re.sub(rf"^{ours}\.(\d)\.1", rf"{theirs}.\1.norm", name))
        if (found := re.match(r"encoder\.(lateral|top_down|shrink|bottom_up)\.(\d)\.(.+)", name)) is not None:
            part, level, rest = found[1], int(found[2]), found[3]
            theirs = {"lateral": "lateral_convs", "top_down": "fpn_blocks", "shrink": "downsample_convs", "bottom_up": "pan_blocks"}[part]
            for a, b in (
                ("enter", "conv1"), ("beside", "conv2"), ("leave", "conv3"),
                ("blocks", "bottlenecks"), ("wide", "conv1"), ("narrow", "conv2"),
            ):  # fmt: skip
                rest = re.sub(rf"\b{a}\b", b, rest)
            rest = re.sub(r"(^|\.)([01])\.(\w+)$", lambda m: f"{m[1]}{('conv', 'norm')[int(m[2])]}.{m[3]}", rest)
            name = f"encoder.{theirs}.{levels - 2 - level if part in ('lateral', 'top_down') else level}.{rest}"
        layers = {"encoder.layers": "encoder.encoder.0.layers", "layers": "decoder.decoder.layers"}
        for ours, theirs in layers.items():
            name = re.sub(rf"^{ours}\.", f"{theirs}.", name)
        encoding = name.startswith("encoder.encoder.")
        for a, b in (
            ("read.attention.in_proj.", "self_attn.in_proj_"), ("self_attention.attention.in_proj.", "self_attn.in_proj_"),
            ("read.attention.out_proj", "self_attn.out_proj"), ("self_attention.attention.out_proj", "self_attn.out_proj"),
            ("read.out_proj", "cross_attn.output_proj"), ("read.", "cross_attn."), ("self_residual.norm", "norm1"),
            ("read_residual.norm", "norm1" if encoding else "norm2"), ("ffn_residual.norm", "norm2" if encoding else "norm3"), ("ffn.", ""),
            ("queries.memory_proj", "decoder.enc_output.0"), ("queries.memory_norm", "decoder.enc_output.1"),
            ("queries.head.classes", "decoder.enc_score_head"), ("queries.head.boxes", "decoder.enc_bbox_head"),
            ("place.position", "decoder.query_pos_head"),
        ):  # fmt: skip
            name = name.replace(a, b)
        name = re.sub(
            r"^heads\.(\d)\.classes", r"decoder.dec_score_head.\1", re.sub(r"^heads\.(\d)\.boxes", r"decoder.dec_bbox_head.\1", name)
        )
        if name == "queries.denoising.labels":
            name, value = "decoder.denoising_class_embed.weight", torch.cat((value, torch.zeros_like(value[:1])))
        out[name] = value
    return out | {"decoder.anchors": torch.zeros(1, 4), "decoder.valid_mask": torch.zeros(1)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rt-detr", {"preset": "r18"}),
        ("rt-detr", {"preset": "r50m"}),
        ("rt-detr-v2", {"preset": "r34", "points": [2, 4, 3]}),
        ("rt-detr-v2", {"preset": "r101", "class_agnostic": True}),
    ],
    ids=["r18", "r50m", "r34-points", "r101-agnostic"],
)
def test_the_authors_checkpoints(name, options, tmp_path):
    """Options are read from the tensors, and every tensor finds its place; the names are written out here once more."""
    torch.manual_seed(0)
    slim = {"hidden_dim": 16, "ffn_dim": 8, "encoder_dim": 24 if options["preset"] == "r101" else 0, "encoder_ffn_dim": 12}
    source = bq.create_model(name, classes=CLASSES, **options, **slim)
    tensors = authors_names(source)
    if name == "rt-detr-v2":
        for i, layer in enumerate(source.layers):
            scale = torch.tensor([1 / n for n in layer.read.points for _ in range(n)])
            tensors[f"decoder.decoder.layers.{i}.cross_attn.num_points_scale"] = scale
    torch.save({"ema": {"module": tensors, "updates": 3}, "last_epoch": 71}, tmp_path / "coco.pth")
    made, report = open_checkpoint(tmp_path / "coco.pth", name, {})
    assert report["rows"] == CLASSES
    own, other = (model.config["options"] for model in (source, made))
    assert {k: v for k, v in other.items() if v != own[k]} == {}
    for key, value in source.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(made.state_dict()[key], value), key


def test_the_first_shortcut_starts_as_none():
    """timm's ResNet-18 without it gives the same, apart from the norm's eps, so that its released weights can be loaded."""
    torch.manual_seed(0)
    plain, extra = Backbone("resnet18d", 1), Backbone("resnet18d", 1, options={"first_shortcut": True})
    assert {k for k in extra.state_dict() if k not in plain.state_dict()} == {
        f"body.layer1.0.downsample.{name}"
        for name in ("1.weight", "2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked")
    }
    extra.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(extra.eval()(images)[0], plain.eval()(images)[0], atol=1e-3, rtol=1e-3)
    with pytest.raises(bq.UserError, match="first_shortcut"):
        Backbone("resnet50d", 1, options={"first_shortcut": True})


@torch.no_grad()
def test_fewer_layers_in_inference():
    """As R50-m: the first layers' predictions alone, in training all of them."""
    options = {"preset": "tiny", "classes": 3}
    torch.manual_seed(0)
    whole, short = (bq.create_model("rt-detr", **options, **more) for more in ({}, {"inference_layers": 2}))
    short.load_state_dict(whole.state_dict())
    images = torch.rand(1, 3, 96, 96)
    ours, expected = short.eval()(images, last_only=True), whole.eval()(images)
    torch.testing.assert_close(ours.logits[0], expected.logits[1])
    torch.testing.assert_close(ours.boxes[0], expected.boxes[1])
    assert len(short.train()(images).logits) == 3
    with pytest.raises(bq.UserError, match="inference_layers=4"):
        bq.create_model("rt-detr", **options, inference_layers=4)
