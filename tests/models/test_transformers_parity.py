"""Number for number with `transformers`' models of the same papers, on random weights: a second opinion that needs no reference files.

Where the library departs from the papers' code, the comparison goes around it:

- its DETR feeds the *normed* output of a decoder layer into the next one when auxiliary losses are on, so predictions of every layer are
  taken from a run without them;
- its Deformable DETR ties the heads of all layers also when boxes are refined, and weighs the class loss by 1 where the paper says 2;
- it computes the sine features of two-stage proposals in float32 (hence a wider tolerance there).
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boxquery.models.base import DetectionTransformer
from boxquery.parts.output import Output
from tests.models.builders import batch, objects, shaken
from tests.models.transformers_weights import labels, ours, theirs

CLASSES = 5
SMALL: dict[str, Any] = {
    "backbone": "resnet10t", "hidden_dim": 64, "heads": 4, "ffn_dim": 96, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 9,
    "dropout": 0.0,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "detr": ("detr", {}, 1e-7),
    "detr-learned": ("detr", {"position": "learned"}, 1e-7),
    "detr-dc5": ("detr", {"dilation": True}, 1e-7),
    "deformable": ("deformable-detr", {}, 1e-7),
    "deformable-single-scale": ("deformable-detr", {"levels": 1}, 1e-7),
    "deformable-refined": ("deformable-detr", {"box_refine": True}, 1e-7),
    "deformable-two-stage": ("deformable-detr", {"box_refine": True, "two_stage": True}, 1e-6),
}
TERMS = {"loss_ce": "class", "loss_bbox": "l1", "loss_giou": "giou"}


@dataclass
class Case:
    name: str
    tolerance: float
    peer: nn.Module
    model: DetectionTransformer
    images: Tensor
    mask: Tensor
    out: Output
    #: theirs, every decoder layer
    logits: Tensor
    boxes: Tensor


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    name, options, tolerance = CASES[request.param]
    torch.manual_seed(0)
    peer = shaken(theirs(name, CLASSES, SMALL | options), 0.05)
    for key, buffer in peer.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    peer = peer.double().eval()
    model = ours(name, CLASSES, SMALL | options, peer).double().eval()
    images, mask = batch((96, 128), (64, 80), dtype=torch.float64)
    out = model(images, mask)
    return Case(name, tolerance, peer, model, images, mask, out, *every_layer(peer, images, mask))


def every_layer(peer: nn.Module, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Their class logits and boxes of every decoder layer, from the heads on what each layer put out."""
    kept: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda module, given, out: kept.append(out)) for layer in peer.model.decoder.layers]
    is_detr = hasattr(peer, "bbox_predictor")
    peer.config.auxiliary_loss = not is_detr
    result = peer(pixel_values=images, pixel_mask=(~mask).long())
    for hook in hooks:
        hook.remove()
    if is_detr:
        content = peer.model.decoder.layernorm(torch.stack(kept))
        return peer.class_labels_classifier(content), peer.bbox_predictor(content).sigmoid()
    logits = [head(content) for head, content in zip(peer.class_embed, kept, strict=False)]
    start, later = result.init_reference_points, result.intermediate_reference_points
    boxes = []
    for i, content in enumerate(kept):
        reference = (start if i == 0 else later[:, i - 1]).logit()
        delta = peer.bbox_embed[i](content)
        boxes.append(torch.cat((delta[..., : reference.shape[-1]] + reference, delta[..., reference.shape[-1] :]), -1).sigmoid())
    torch.testing.assert_close(logits[-1], result.logits)
    torch.testing.assert_close(boxes[-1], result.pred_boxes)
    return torch.stack(logits), torch.stack(boxes)


def test_predictions_of_every_layer(case):
    assert len(case.out.logits) == SMALL["decoder_layers"]
    torch.testing.assert_close(case.out.logits, case.logits, atol=case.tolerance, rtol=0)
    torch.testing.assert_close(case.out.boxes, case.boxes, atol=case.tolerance, rtol=0)


@torch.no_grad()
def test_predictions_without_a_mask(case):
    case.peer.config.auxiliary_loss = case.name != "detr"
    result, out = case.peer(pixel_values=case.images), case.model(case.images, last_only=True)
    torch.testing.assert_close(out.logits[-1], result.logits, atol=case.tolerance, rtol=0)
    torch.testing.assert_close(out.boxes[-1], result.pred_boxes, atol=case.tolerance, rtol=0)


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (12, 1)], ids=str)
def test_loss(case, counts):
    """Matching and every term, in float32 (their class weights are); the total with their class weight and without proposals."""
    targets = objects(*counts, classes=CLASSES)
    case.peer.config.auxiliary_loss = True
    logits, boxes = case.logits.float(), case.boxes.float()
    total, terms, _ = case.peer.loss_function(logits[-1], labels(targets), logits.device, boxes[-1], case.peer.config, logits, boxes)
    our_total, our_terms = case.model.loss(Output(case.out.logits.float(), case.out.boxes.float()), targets)
    last = SMALL["decoder_layers"] - 1
    for stem, name in TERMS.items():
        for layer in range(last + 1):
            expected = terms[stem if layer == last else f"{stem}_{layer}"].item()
            assert our_terms[name][layer].item() == pytest.approx(expected, rel=1e-5, abs=20 * case.tolerance)
    twice = (case.model.criterion.weights["class"] - 1) * our_terms["class"].sum()
    assert (our_total - twice).item() == pytest.approx(total.item(), rel=1e-5)


def test_gradients(case):
    """Of the mean prediction, at the first convolution and the queries: nothing is detached that should not be, and the reverse."""
    names = {"detr": ("queries.position",), "deformable-detr": ("tokens.level_embedding",)}[case.name]
    parameters = dict(case.model.named_parameters())
    peers = {"queries.position": "model.query_position_embeddings.weight", "tokens.level_embedding": "model.level_embed"}
    theirs_by_name = dict(case.peer.named_parameters())
    names_of_both = [*names, "backbone.body.layer2.0.conv1.weight"]
    given = [theirs_by_name[peers.get(n, n.replace("backbone.body", "model.backbone.model"))].requires_grad_() for n in names_of_both]
    expected = torch.autograd.grad(score(case.logits, case.boxes), given, retain_graph=True)
    found = torch.autograd.grad(score(case.out.logits, case.out.boxes), [parameters[n] for n in names_of_both], retain_graph=True)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= max(100 * case.tolerance, 1e-6) * b.norm()


def score(logits: Tensor, boxes: Tensor) -> Tensor:
    return logits.square().mean() + boxes.square().mean()
