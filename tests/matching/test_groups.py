"""Noised copies of the objects: how far they move, what they are trained to be, and which queries attend to which."""

from unittest.mock import patch

import pytest
import torch

import boxquery as bq
from boxquery.matching.groups import Denoising, Noise
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.state import QueryState

CLASSES = 5


def objects(count: int) -> dict:
    centre = 0.3 + 0.4 * torch.rand(count, 2)
    return {"labels": torch.randint(CLASSES, (count,)), "boxes": torch.cat((centre, 0.05 + 0.15 * torch.rand(count, 2)), -1)}


@pytest.fixture
def batch() -> list[dict]:
    torch.manual_seed(0)
    return [objects(3), objects(0), objects(5)]


def noisy(batch, noise: Noise = Noise(), **options):  # noqa: B008
    torch.manual_seed(1)
    return Denoising(CLASSES, 8, 40, noise, **options).noised(batch, torch.zeros(len(batch), 1, 4))


def test_as_many_groups_as_fit(batch):
    made = noisy(batch)
    assert made.group.repeats == 40 // (2 * 5)
    assert made.content.shape == (3, 4 * 2 * 5, 8)
    assert made.reference.shape == (3, 40, 4)
    assert made.group.valid.view(3, 4, 2, 5).sum((1, 2, 3)).tolist() == [4 * 2 * 3, 0, 4 * 2 * 5]


def test_corners_move_less_than_the_noise_to_restore_and_more_to_refuse(batch):
    made = noisy(batch, Noise(box=0.4))
    for image, target in enumerate(batch):
        n = len(target["labels"])
        corners = cxcywh_to_xyxy(made.reference[image].sigmoid()).view(4, 2, 5, 4)[:, :, :n]
        half = (target["boxes"][:, 2:] / 2).repeat(1, 2)
        moved = (corners - cxcywh_to_xyxy(target["boxes"])).abs() / half
        assert (moved[:, 0] <= 0.4 + 1e-4).all()
        assert (moved[:, 1] >= 0.4 - 1e-4).all()
        assert (moved[:, 1] <= 0.8 + 1e-4).all()


def test_only_the_first_half_of_a_group_is_matched_each_to_its_own_object(batch):
    matches = noisy(batch).group.matches
    found = {(i, q): t for i, q, t in zip(*(v.tolist() for v in (matches.image, matches.query, matches.target)), strict=True)}
    wanted = {(i, g * 10 + n): n for i, target in enumerate(batch) for g in range(4) for n in range(len(target["labels"]))}
    assert found == wanted
    assert matches.counts == ((12, 0, 20),)


def test_without_negatives_there_are_five_groups_whose_centres_and_sides_move(batch):
    """DN-DETR: a centre stays in the box, by 0.4 of the way to its side at most; a side changes by 0.4 of itself at most."""
    made = noisy(batch, contrastive=False)
    assert (made.group.repeats, made.group.size, made.group.matches.counts) == (5, 5 * 5, ((15, 0, 25),))
    assert made.group.valid.view(3, 5, 5).sum((1, 2)).tolist() == [15, 0, 25]
    for image, target in enumerate(batch):
        n = len(target["labels"])
        boxes = made.reference[image].sigmoid().view(5, 5, 4)[:, :n]
        centre, size = ((boxes - target["boxes"]).abs() / target["boxes"][:, 2:].repeat(1, 2)).split(2, -1)
        assert (centre <= 0.2 + 1e-4).all()
        assert (size <= 0.4 + 1e-4).all()
        if n:
            assert centre.max() > 0.1
            assert size.max() > 0.2
    matches = made.group.matches
    found = {(i, q): t for i, q, t in zip(*(v.tolist() for v in (matches.image, matches.query, matches.target)), strict=True)}
    assert found == {(i, g * 5 + n): n for i, target in enumerate(batch) for g in range(5) for n in range(len(target["labels"]))}
    hidden = QueryState(content=torch.zeros(3, 7, 8)).with_group(made.group, made.content).self_mask
    assert not hidden[:25, 25:].any()
    assert hidden[25:, :25].all()
    assert Denoising(CLASSES, 8, 40, Noise(), contrastive=False).label_noise == 0.2


def test_labels_are_replaced_with_the_given_probability():
    torch.manual_seed(0)
    batch = [objects(50)]
    for noise in (0.0, 0.5):
        module = Denoising(CLASSES, 8, 4000, Noise(label=noise))
        drawn = (module.noised(batch, torch.zeros(1, 1, 4)).content[0, :, None] - module.labels).abs().sum(-1).argmin(-1).view(-1, 2, 50)
        wrong = (drawn != batch[0]["labels"]).float().mean().item()
        assert wrong == pytest.approx(noise * (CLASSES - 1) / CLASSES, abs=0.03)


def test_who_sees_whom(batch):
    made = noisy(batch)
    state = QueryState(content=torch.zeros(3, 7, 8)).with_group(made.group, made.content)
    hidden = state.self_mask
    assert hidden.shape == (47, 47)
    for a in range(47):
        for b in range(47):
            group_a, group_b = (x // 10 if x < 40 else None for x in (a, b))
            assert hidden[a, b].item() == (group_b is not None and group_a != group_b)


def test_nothing_to_denoise():
    assert noisy([objects(0), objects(0)]) is None


def test_ordinary_queries_predict_as_without_denoising(batch):
    torch.manual_seed(0)
    model = bq.create_model("deformable-detr", classes=CLASSES, preset="tiny").eval()
    images = torch.randn(3, 3, 96, 96)
    with_noise, without = model(images, targets=batch), model(images)
    assert set(with_noise.extra) == {"denoising"}
    assert without.extra == {}
    torch.testing.assert_close(with_noise.logits, without.logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(with_noise.boxes, without.boxes, atol=1e-5, rtol=0)


def test_slots_without_an_object_are_neither_right_nor_wrong(batch):
    """The loss of a batch is that of its images apart: empty slots of the smaller one add nothing."""
    torch.manual_seed(0)
    model = bq.create_model("deformable-detr", classes=CLASSES, preset="tiny").eval()
    out = model(torch.randn(3, 3, 96, 96), targets=batch)
    group = out.extra["denoising"]
    assert torch.isneginf(group.logits[:, 1]).all()
    total, terms = model.loss(out, batch)
    total.backward()
    assert terms["denoising.class"].shape == (3,)
    assert torch.isfinite(terms["denoising.class"]).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def moved(low: float, high: float, **options) -> torch.Tensor:
    """The noised boxes (cxcywh) of one object at .5, .5 of size .2, .4, whose low and high corners move by those shares."""
    target = [{"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]], dtype=torch.float64)}]
    module = Denoising(CLASSES, 8, 2, Noise(box=1.0), **options)

    def share(like: torch.Tensor) -> torch.Tensor:
        return torch.tensor([low, low, high, high], dtype=torch.float64).abs().expand_as(like).clone()

    def sign(like: torch.Tensor, most: int) -> torch.Tensor:
        signs = torch.tensor([low, low, high, high], dtype=torch.float64) > 0 if most == 2 else torch.zeros(())
        return signs.to(like.dtype).expand_as(like).clone()

    with patch.object(torch, "rand_like", share), patch.object(torch, "randint_like", sign):
        return module.noised(target, torch.zeros(1, 1, 4, dtype=torch.float64)).reference[0].sigmoid().detach()


def test_corners_by_hand():
    """Half the sides are .1 and .2. Both corners by +.5 of that, the negative by +1.5; and towards each other, where the positive keeps
    half of its size and the negative would have less than nothing: its sides are the least that there is."""
    torch.testing.assert_close(moved(0.5, 0.5), torch.tensor([[0.55, 0.6, 0.2, 0.4], [0.65, 0.8, 0.2, 0.4]], dtype=torch.float64))
    least = 1e-3 / 1.001
    wanted = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.5, 0.5, least, least]], dtype=torch.float64)
    torch.testing.assert_close(moved(0.5, -0.5), wanted)


def test_empty_slots_have_no_content_and_a_box_in_the_middle(batch):
    """As the authors of DN-DETR and DINO leave them; the indicator of DN-DETR says which queries are noised objects."""
    for options, noise in (({"contrastive": False}, Noise(slots=0.0, indicator=True)), ({}, Noise(box=1.0, slots=0.0, background=True))):
        made = noisy(batch, noise, **options)
        present = noisy(batch, **options).group.valid
        assert (made.group.valid is None) == noise.background
        assert not made.content[~present].any()
        assert not made.reference[~present].any()
        assert bool(made.content[present].any(-1).all())
        if noise.indicator:
            assert torch.equal(made.content[..., -1], present.float())


@pytest.mark.parametrize("name", ["dn-detr", "dino-detr"])
def test_what_noised_queries_learn(name, batch):
    """Against loops: DN-DETR's five groups of positives alone; DINO's positives, negatives and empty slots, the last two as background.
    All is divided by objects times groups, and boxes are the positives' alone."""
    torch.manual_seed(0)
    model = bq.create_model(name, classes=CLASSES, preset="tiny", class_loss="paper").double().eval()
    targets = [{"labels": t["labels"], "boxes": t["boxes"].double()} for t in batch]
    out = model(torch.randn(3, 3, 96, 96, dtype=torch.float64), targets=targets)
    group, (_, terms) = out.extra["denoising"], model.loss(out, targets)
    groups, copies, largest = (5, 1, 5) if name == "dn-detr" else (60 // (2 * 5), 2, 5)
    assert group.logits.shape[1:3] == (3, groups * copies * largest)
    wanted, l1 = torch.zeros(len(model.layers), dtype=torch.float64), torch.zeros(len(model.layers), dtype=torch.float64)
    for image, target in enumerate(targets):
        for query in range(groups * copies * largest):
            copy, number = divmod(query % (copies * largest), largest)
            positive = copy == 0 and number < len(target["labels"])
            if not positive and name == "dn-detr":
                continue
            for label in range(CLASSES):
                p = group.logits[:, image, query, label].sigmoid()
                true = positive and label == int(target["labels"][number])
                wanted += -0.25 * (1 - p) ** 2 * p.log() if true else -0.75 * p**2 * (1 - p).log()
            if positive:
                l1 += (group.boxes[:, image, query] - target["boxes"][number]).abs().sum(-1)
    torch.testing.assert_close(terms["denoising.class"], wanted / (8 * groups))
    torch.testing.assert_close(terms["denoising.l1"], l1 / (8 * groups))


def test_targets_must_be_as_many_as_images(batch):
    model = bq.create_model("detr", classes=CLASSES, preset="tiny").eval()
    out = model(torch.randn(2, 3, 64, 64))
    with pytest.raises(bq.UserError, match="3 targets for a batch of 2"):
        model.loss(out, batch)
