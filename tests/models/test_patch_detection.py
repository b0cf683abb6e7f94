"""Random query patch detection: DETR number for number with a slow transcription of UP-DETR, and the whole family by what it promises."""

import pytest
import torch
from torch import Tensor

from boxquery.errors import UserError
from boxquery.matching.patches import PatchQueries, patch_of_query
from boxquery.models import create_model
from boxquery.parts.state import QueryState
from boxquery.pretraining.model import PatchDetection, PatchOutput, ordinary_state
from boxquery.transfer import transfer
from tests.models import slow_updetr as slow
from tests.models.builders import batch, create, shaken, systems
from tests.training.runs import SMALL

SIZES = ((64, 96), (48, 64))


def patches(count: int, dtype: torch.dtype = torch.float32, images: int = 2, seed: int = 3) -> list[dict[str, Tensor]]:
    """Random boxes and patches."""
    chance = torch.Generator().manual_seed(seed)
    boxes = [torch.cat((0.3 + 0.4 * torch.rand(count, 2, generator=chance), 0.1 + 0.4 * torch.rand(count, 2, generator=chance)), 1)
             for _ in range(images)]  # fmt: skip
    pixels = [torch.randn(count, 3, 32, 32, generator=chance).to(dtype) for _ in range(images)]
    return [
        {"labels": torch.zeros(count, dtype=torch.int64), "boxes": box.to(dtype), "patches": own}
        for box, own in zip(boxes, pixels, strict=True)
    ]


def looking(name: str, **options) -> PatchDetection:
    return PatchDetection(create(name, classes=1, **{**SMALL, **options}))


def last(out: PatchOutput) -> Tensor:
    return torch.cat((out.found.logits[-1], out.found.boxes[-1]), -1)


def test_detr_is_up_detr_number_for_number():
    model = PatchDetection(create("detr", classes=1, **SMALL | {"decoder_layers": 2, "encoder_layers": 1}))
    model = shaken(model, 0.05).double().train()
    model.backbone.eval()  # or its batch norm would depend on what is computed together
    images, targets = batch((64, 96), (64, 96), dtype=torch.float64)[0], patches(4, torch.float64)
    torch.manual_seed(7)
    kept = torch.rand(2, 12, 1)[..., 0] > PatchQueries.MASKED
    assert 0 < (~kept).sum() < 12, "some queries are masked"
    torch.manual_seed(7)
    out = model(images, None, targets=targets)
    total, terms = model.loss(out, targets)

    weights = dict(model.named_parameters())
    logits, boxes, made, features = slow.detect(
        weights, model.backbone, images, torch.stack([t["patches"] for t in targets]), kept, 4, (1, 2)
    )
    assert torch.allclose(out.found.logits, logits, atol=1e-9)
    assert torch.allclose(out.found.boxes, boxes, atol=1e-9)
    assert torch.allclose(out.features, features, atol=1e-9)
    expected, each = slow.losses(logits, boxes, made, features, torch.stack([t["boxes"] for t in targets]))
    assert terms.keys() == each.keys()
    for name, values in terms.items():
        assert torch.allclose(values, each[name], atol=1e-8), name
    assert total.item() == pytest.approx(expected.item(), abs=1e-8)
    trained = [parameter for parameter in weights.values() if parameter.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(total, trained), torch.autograd.grad(expected, trained), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("system", systems())
def test_every_model_learns_from_patches_and_keeps_its_names(system):
    name, options = systems()[system]
    small = SMALL | ({"hidden_dim": 32} if name != "anchor-detr" else {})
    torch.manual_seed(0)
    ordinary = create(name, classes=1, **{**small, **options})
    model = PatchDetection(ordinary).train()
    assert list(ordinary_state(model.state_dict())) == list(create(name, classes=1, **{**small, **options}).state_dict())
    targets = patches(4)
    out = model(*batch(*SIZES), targets=targets)
    loss, terms = model.loss(out, targets)
    loss.backward()
    assert terms["feature"].shape == (len(out.content),)
    assert bool(torch.isfinite(loss))
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    torch.optim.SGD(model.parameters(), 1e-4).step()
    again = PatchDetection(create(name, classes=1, **{**small, **options}))
    again.load_state_dict(model.state_dict())
    found = model.eval()(*batch(*SIZES), targets=targets, last_only=True)
    assert torch.equal(last(again.eval()(*batch(*SIZES), targets=targets, last_only=True)), last(found)), "its state is all of it"
    taken = transfer(again.model, create(name, classes=3, **{**small, **options}), [None], ["a", "b", "c"])
    parts = {group.name: group for group in taken.groups}
    assert parts["decoder"].new == 0
    assert parts["class heads"].kept == parts["class heads"].moved == 0, "that of one patch is of no use"
    first, second = model.postprocess(found, [(64, 96), (48, 64)])
    queries = out.found.boxes.shape[2]
    assert first["boxes"].shape == (queries, 4)
    assert torch.equal(first["labels"].bincount(), second["labels"].bincount())
    assert bool((first["scores"].diff() <= 0).all())
    assert set(first["labels"].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "options"), [("detr", {}), ("dab-detr", {"patterns": 2}), ("anchor-detr", {"patterns": 2})])
def test_no_group_learns_of_another_groups_patch(name, options):
    model = shaken(looking(name, **options)).eval()
    targets = patches(3)
    for target in targets:
        target["patches"].requires_grad_()
    found = last(model(*batch(*SIZES), targets=targets))
    runs = options.get("patterns", 1)
    group = patch_of_query(found.shape[1], 3, runs)
    for patch in range(3):
        own = torch.autograd.grad(found[:, group == patch].square().sum(), [t["patches"] for t in targets], retain_graph=True)
        for gradient in own:
            reached = gradient.flatten(1).abs().sum(1) > 0
            assert reached.tolist() == [i == patch for i in range(3)]


def test_queries_are_dealt_out_evenly():
    assert patch_of_query(100, 10).tolist() == [q // 10 for q in range(100)], "as published"
    uneven = patch_of_query(17, 4).bincount()
    assert uneven.tolist() == [5, 4, 4, 4]
    assert patch_of_query(6, 3, runs=2).tolist() == [0, 1, 2, 0, 1, 2], "each pattern anew"


def test_where_the_feature_goes_and_how_often_it_is_masked():
    torch.manual_seed(0)
    features = torch.randn(1, 2, 5)
    only_position = QueryState(content=torch.zeros(1, 4, 8), position=torch.zeros(1, 4, 8))
    with_reference = QueryState(content=torch.zeros(1, 4, 8), position=torch.zeros(1, 4, 8), reference=torch.zeros(1, 4, 4))
    queries = PatchQueries(5, 8).eval()
    expected = queries.project(features)[:, [0, 0, 1, 1]]
    first, second = queries(only_position, features), queries(with_reference, features)
    assert torch.equal(first.position, expected)
    assert not first.content.any()
    assert torch.equal(second.content, expected)
    assert not second.position.any()
    assert (~first.self_mask).tolist() == [[i // 2 == j // 2 for j in range(4)] for i in range(4)]
    many = QueryState(content=torch.zeros(8, 500, 8))
    masked = (queries.train()(many, torch.randn(8, 2, 5)).content == 0).all(-1).float().mean().item()
    assert masked == pytest.approx(0.1, abs=0.02)
    assert not (queries.eval()(many, torch.randn(8, 2, 5)).content == 0).all(-1).any()


def test_a_reconstruction_that_is_right_costs_nothing_whatever_its_length():
    model = looking("detr")
    targets = patches(4)
    out = model(*batch(*SIZES), targets=targets)
    learned = model.model.criterion.learned(out.found, targets)[0][1]
    features = torch.ones(2, 4, 16)
    with torch.no_grad():
        for layer in model.patches.reconstruct.layers:
            layer.weight.zero_()
            layer.bias.fill_(3.0)
    assert torch.allclose(model.patches.loss(out.content, features, learned), torch.zeros(len(out.content)), atol=1e-6)
    assert torch.allclose(model.patches.loss(out.content, -features, learned), torch.full((len(out.content),), 4.0), atol=1e-5)


def test_proposals_are_spread_over_the_image_and_the_backbone_learns_by_queries_alone():
    torch.manual_seed(0)
    model = looking("dino-detr", num_queries=12).train()
    targets = patches(4)
    memory = model.model.encoder(model.model.embed_image(*batch((64, 64), (64, 64))))
    reference = model.model.queries(memory, None).reference.sigmoid()
    centres = reference[..., :2]
    quarters = (centres > 0.5).long() @ torch.tensor([1, 2])
    assert all(own.bincount(minlength=4).min() >= 1 for own in quarters), "in every quarter"
    out = model(*batch(*SIZES), targets=targets)
    loss = model.patches.loss(out.content, out.features, model.model.criterion.learned(out.found, targets)[0][1]).sum()
    (own,) = torch.autograd.grad(loss, [out.features], retain_graph=True, allow_unused=True)
    constant = PatchOutput(out.found, out.content.detach(), out.features)
    aim = model.patches.loss(constant.content, constant.features, model.model.criterion.learned(out.found, targets)[0][1]).sum()
    assert own is not None, "through the queries that were given them"
    assert torch.autograd.grad(aim, [out.features], allow_unused=True) == (None,), "not as the aim"


def test_pruned_queries_and_images_without_patches():
    model = looking("deformable-detr", num_queries=[12, 8, 6], decoder_layers=3, two_stage=False, matching="one-to-one").train()
    targets = patches(4)
    out = model(*batch(*SIZES), targets=targets)
    assert out.content.shape[:3] == out.found.logits.shape[:3]
    dropped = ~out.found.alive[-1]
    assert dropped.sum() == 12
    assert not out.content[-1][dropped].any()
    assert torch.isfinite(model.loss(out, targets)[0])
    with pytest.raises(UserError, match="targets with patches"):
        model(*batch(*SIZES))


def test_what_was_learned_is_an_ordinary_model():
    model = looking("detr")
    plain = create_model("detr", classes=1, preset="tiny", **{name: model.config["options"][name] for name in SMALL})
    plain.load_state_dict(ordinary_state(model.state_dict()))
    images, mask = batch(*SIZES)
    assert torch.equal(plain.eval()(images, mask).boxes, model.model.eval()(images, mask).boxes)
