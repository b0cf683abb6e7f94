"""Noised copies of the objects: how far they move, what they are trained to be, and which queries attend to which."""

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


def test_targets_must_be_as_many_as_images(batch):
    model = bq.create_model("detr", classes=CLASSES, preset="tiny").eval()
    out = model(torch.randn(2, 3, 64, 64))
    with pytest.raises(bq.UserError, match="3 targets for a batch of 2"):
        model.loss(out, batch)
