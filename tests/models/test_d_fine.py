"""D-FINE number for number with `transformers` on random weights; losses and gradients by a slow transcription of the authors' formulas."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.official import fill, rename
from boxquery.official.transformers import d_fine as names
from boxquery.official.transformers.config import Config
from boxquery.official.transformers.patterns import packed
from boxquery.parts.output import LayerPredictions, Output
from tests.matching.slow_d_fine import Slow, box_of, slow_loss, total_of
from tests.models.builders import batch, objects, shaken
from tests.models.transformers_weights import labels

CLASSES = 5
#: of transformers' HGNetV2, by timm's names: its own default is b4
B0: dict[str, Any] = {
    "stem_channels": [3, 16, 16], "stage_in_channels": [16, 64, 256, 512], "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024], "stage_num_blocks": [1, 1, 2, 1], "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True], "stage_kernel_size": [3, 3, 5, 5], "stage_numb_of_layers": [3, 3, 3, 3],
    "hidden_sizes": [64, 256, 512, 1024], "use_learnable_affine_block": True,
}  # fmt: skip


def hgnet(values: dict[str, Any], *stages: int) -> HGNetV2Config:
    config: dict[str, Any] = {**values, "out_indices": list(stages)}
    return HGNetV2Config(**config)


SMALL: dict[str, Any] = {"num_queries": 9, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "auxiliary_loss": True}
#: as N: two levels, a backbone with affine blocks; as X: another width in the encoder, and another curvature
CASES: dict[str, dict[str, Any]] = {
    "two-levels": {
        "backbone_config": hgnet(B0, 3, 4), "encoder_in_channels": [512, 1024], "feat_strides": [16, 32],
        "encoder_hidden_dim": 32, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "decoder_layers": 3, "num_feature_levels": 2,
        "decoder_in_channels": [32, 32], "decoder_n_points": [6, 6], "encode_proj_layers": [1], "hidden_expansion": 0.34, "depth_mult": 0.5,
    },
    "three-levels": {
        "backbone_config": hgnet({}, 2, 3, 4), "encoder_in_channels": [512, 1024, 2048], "encoder_hidden_dim": 48,
        "d_model": 32, "encoder_ffn_dim": 56, "decoder_ffn_dim": 40, "decoder_layers": 2, "decoder_in_channels": [48, 48, 48],
        "decoder_n_points": [3, 6, 3], "depth_mult": 0.34, "reg_scale": 8.0,
    },
}  # fmt: skip


def peer_of(case: str) -> Any:
    """A model of `transformers` with a head per layer, as published; its own share them."""
    torch.manual_seed(0)
    config: dict[str, Any] = {**SMALL, **CASES[case], "num_labels": CLASSES}
    peer: Any = DFineForObjectDetection(DFineConfig(**config))
    for name in ("class_embed", "bbox_embed"):
        heads = nn.ModuleList(copy.deepcopy(head) for head in getattr(peer, name))
        setattr(peer, name, heads)
        setattr(peer.model.decoder, name, heads)
    constants = {name: p.clone() for name, p in peer.named_parameters() if name.endswith(("decoder.up", "reg_scale"))}
    shaken(peer, 0.05)
    for name, parameter in peer.named_parameters():
        if name in constants:
            parameter.data.copy_(constants[name])
        if name.endswith("denoising_class_embed.weight"):
            parameter.data[-1] = 0
    for name, buffer in peer.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return peer.eval()


def ours_of(peer: Any) -> DetectionTransformer:
    options = names.options(Config(peer.config.to_dict(), "config.json")) | names.seen(peer.state_dict())
    model = bq.create_model("d-fine", classes=CLASSES, **options)
    fill(model, packed(peer.state_dict()), names)
    return model.eval()


@dataclass
class Case:
    peer: Any
    model: DetectionTransformer
    images: Tensor
    targets: list[dict]
    #: theirs
    result: Any
    out: Output

    @property
    def theirs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and boxes of the initial head and every layer, and distributions of every layer."""
        r = self.result
        return tuple(t.transpose(0, 1) for t in (r.intermediate_logits, r.intermediate_reference_points, r.intermediate_predicted_corners))  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    peer = peer_of(request.param).double()
    for name, buffer in peer.named_buffers():
        if name.endswith("num_points_scale"):  # thirds of single precision
            buffer.copy_(1 / (1 / buffer).round())
    # inner layers put out predictions in training mode alone
    peer.model.decoder.training = True
    model = ours_of(peer).double()
    images = batch((96, 128), (96, 128), dtype=torch.float64)[0]
    targets = objects(3, 2, dtype=torch.float64, classes=CLASSES)
    return Case(peer, model, images, targets, peer(pixel_values=images), model(images))


def test_predictions_of_every_layer(case):
    """The first of theirs is the initial box, with the first layer's classes."""
    assert case.out.initial is not None
    assert case.out.proposals is not None
    logits, boxes, corners = case.theirs
    torch.testing.assert_close(case.out.initial.logits, logits[:1], atol=1e-9, rtol=0)
    torch.testing.assert_close(case.out.initial.boxes, boxes[:1], atol=1e-9, rtol=0)
    torch.testing.assert_close(case.out.logits, logits[1:], atol=1e-9, rtol=0)
    torch.testing.assert_close(case.out.boxes, boxes[1:], atol=1e-9, rtol=0)
    torch.testing.assert_close(case.out.raw, corners, atol=1e-9, rtol=0)
    torch.testing.assert_close(case.out.anchor, case.result.initial_reference_points[:, 0], atol=1e-9, rtol=0)
    torch.testing.assert_close(case.out.proposals.logits[0], case.result.enc_topk_logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(case.out.proposals.boxes[0], case.result.enc_topk_bboxes, atol=1e-9, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_single_precision(name):
    peer = peer_of(name)
    model, images = ours_of(peer), batch((96, 128), (96, 128))[0]
    result, out = peer(pixel_values=images), model(images, last_only=True)
    torch.testing.assert_close(out.logits[-1], result.logits, atol=2e-4, rtol=0)
    torch.testing.assert_close(out.boxes[-1], result.pred_boxes, atol=2e-4, rtol=0)


def test_the_curvature_is_that_of_the_tensors():
    """Of X it is 8 in the checkpoint, and 4 in the configuration beside it."""
    config = Config({"reg_scale": 4.0, "encoder_hidden_dim": 384, "decoder_in_channels": [384] * 3}, "config.json")
    tensors = {"model.decoder.reg_scale": torch.tensor([8.0]), "model.decoder.up": torch.tensor([0.5])}
    options = names.options(config) | names.seen(tensors)
    assert options["reg_scale"] == 8
    with pytest.raises(bq.UserError, match=r"'model\.decoder\.up' is 0\.25: only 0\.5"):
        names.seen(tensors | {"model.decoder.up": torch.tensor([0.25])})


def test_boxes_are_the_means_of_distributions(case):
    """By the slow transcription, from distributions and the initial box."""
    scale = case.model.config["options"]["reg_scale"]
    assert case.out.raw is not None
    assert case.out.anchor is not None
    for layer in range(len(case.out.boxes)):
        expected = box_of(case.out.raw[layer, 1, 4].detach(), case.out.anchor[1, 4], scale)
        torch.testing.assert_close(case.out.boxes[layer, 1, 4].detach(), expected)


def test_every_gradient(case):
    """Of all predictions, at every parameter: nothing is detached that should not be, and the reverse."""
    logits, boxes, corners = case.theirs
    score = torch.stack([weighted(t, seed) for seed, t in enumerate((logits, boxes, corners))]).sum()
    score = score + weighted(case.result.enc_topk_logits, 3) + weighted(case.result.enc_topk_bboxes, 4)
    theirs = {name: p for name, p in case.peer.named_parameters() if p.requires_grad}
    grads = dict(zip(theirs, torch.autograd.grad(score, list(theirs.values()), allow_unused=True, retain_graph=True), strict=True))
    tensors, _ = names.adapt(case.model, packed({name: g for name, g in grads.items() if g is not None}))
    expected = {rename(name, names.keys(case.model)): grad for name, grad in tensors.items()}
    out = case.out
    score = weighted(torch.cat((out.initial.logits, out.logits)), 0) + weighted(torch.cat((out.initial.boxes, out.boxes)), 1)
    score = score + weighted(out.raw, 2) + weighted(out.proposals.logits[0], 3) + weighted(out.proposals.boxes[0], 4)
    ours = {name: p for name, p in case.model.named_parameters() if p.requires_grad and "denoising" not in name}
    found = dict(zip(ours, torch.autograd.grad(score, list(ours.values()), retain_graph=True), strict=True))
    assert set(found) <= set(expected)
    assert {name for name in expected if name not in found} <= {n for n, p in case.model.named_parameters() if not p.requires_grad}
    largest = max(float(grad.norm()) for grad in expected.values())
    for name, grad in found.items():
        assert (grad - expected[name]).norm() <= 1e-8 * max(float(grad.norm()), 1e-3 * largest), name


def weighted(values: Tensor, seed: int) -> Tensor:
    """The sum, weighted at random."""
    return (values * torch.randn(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(seed))).sum()


def test_loss_and_its_gradients(case):
    """By the authors' formulas, at every parameter, with denoising: the boxes of all layers learn the union of their pairs."""
    torch.manual_seed(0)
    case.model.queries.denoising.queries = 12
    out = case.model(case.images, targets=case.targets)
    group = out.extra["denoising"]
    assert group.matches is not None
    pairs = [list(zip(q.tolist(), j.tolist(), strict=True)) for q, j in group.matches.pairs()[0]]
    assert group.repeats == 2
    assert [len(own) for own in pairs] == [6, 4]
    total, terms = case.model.loss(out, case.targets)
    expected = slow_loss(
        slow(out), case.targets, slow(out.initial), slow(out.proposals), slow(group), slow(group.initial), pairs, group.repeats,
        scale=case.model.config["options"]["reg_scale"],
    )  # fmt: skip
    assert set(terms) == set(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-8, atol=1e-10)
    ours = {name: p for name, p in case.model.named_parameters() if p.requires_grad}
    found, slowly = (torch.autograd.grad(loss, list(ours.values()), retain_graph=True) for loss in (total, total_of(expected)))
    largest = max(float(grad.norm()) for grad in slowly)
    for name, a, b in zip(ours, found, slowly, strict=True):
        assert (a - b).norm() <= 1e-8 * max(float(b.norm()), 1e-3 * largest), name


def slow(p: LayerPredictions | None) -> Slow:
    assert p is not None
    return Slow(list(p.logits), list(p.boxes), [] if p.raw is None else list(p.raw), p.anchor)


def test_the_loss_of_transformers(case):
    """It differs from the authors' in four ways, and is equal where these are undone.

    - every layer uses its own pairs and the number of objects in all its losses, not the union;
    - boxes are limited to the image;
    - distributions of a layer are weighed by the boxes of the layer before (the initial ones for the first), whose classes and boxes are
      what learns: those of the last layer but one do not;
    - the last layer's distributions learn nothing by themselves.
    """
    peer, last = case.peer.float(), len(case.out.boxes) - 1
    logits, boxes, corners = (t.detach().float() for t in case.theirs)
    anchors, proposals = case.result.initial_reference_points.detach().float(), case.out.proposals
    targets = [{**t, "boxes": t["boxes"].float()} for t in case.targets]
    _, theirs, _ = peer.loss_function(
        logits[-1], labels(targets), logits.device, boxes[-1], peer.config, logits.transpose(0, 1), boxes.transpose(0, 1),
        enc_topk_logits=proposals.logits[0].detach().float(), enc_topk_bboxes=proposals.boxes[0].detach().float(),
        predicted_corners=corners.transpose(0, 1), initial_reference_points=anchors,
    )  # fmt: skip
    peer.double()
    kept = [*range(last), last + 1]
    out = Output(
        logits[kept], boxes[kept].clamp(0, 1), LayerPredictions(proposals.logits.float(), proposals.boxes.float()),
        raw=corners, anchor=anchors[:, 0],
    )  # fmt: skip
    criterion = copy.copy(case.model.criterion)
    criterion.joint = False
    _, terms = criterion(out, targets)
    distilled = sum(theirs[f"loss_ddf_aux_{layer}"].item() for layer in range(last))
    assert distilled == pytest.approx(1.5 * terms["ddf"].item(), rel=1e-4)
    for stem, name, weight in (("vfl", "class", 1), ("bbox", "l1", 5), ("giou", "giou", 2), ("fgl", "fgl", 0.15)):
        for layer in range(last):
            assert theirs[f"loss_{stem}_aux_{layer}"].item() == pytest.approx(weight * terms[name][layer].item(), rel=1e-4)
        if name != "fgl":
            assert theirs[f"loss_{stem}"].item() == pytest.approx(weight * terms[name][last].item(), rel=1e-4)
            assert theirs[f"loss_{stem}_aux_{last}"].item() == pytest.approx(weight * terms[f"proposals.{name}"].item(), rel=1e-4)
    assert "loss_fgl" not in theirs
    assert f"loss_vfl_aux_{last + 1}" not in theirs
