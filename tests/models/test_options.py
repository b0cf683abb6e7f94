"""Every option of every model: what it changes, and that the error for a wrong name or value names the right ones."""

from typing import Any

import pytest
import torch

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.parts.queries import ProposalQueries
from tests.models.builders import batch, create, has_option, objects, options_of

#: Each is tried on every model that has all of its options.
SETTINGS: list[dict[str, Any]] = [
    {"dilation": True},
    {"encoder_layers": 0},
    {"decoder_layers": 1},
    {"num_queries": 1},
    {"dropout": 0.0},
    {"backbone": "regnety_002"},
    *({"position": kind} for kind in ("sine", "learned", "none")),
    {"pre_norm": True},
    {"pre_norm": True, "encoder_layers": 0},
    *({"levels": levels} for levels in range(1, 6)),
    {"levels": 1, "dilation": True},
    *({"dynamic_scale": kind} for kind in ("type1", "type2", "type3", "type4")),
    {"dynamic_scale": "type4", "levels": 3, "dilation": False, "encoder_layers": 5},
    {"gaussian_smooth": 2.5},
    {"centre_stride": 32},
    {"centre_stride": 0},
    {"levels": 5, "box_refine": True, "two_stage": True},
    {"points": 1},
    {"patterns": 1},
    {"patterns": 2},
    {"spatial_prior": "grid"},
    {"attention": "dense"},
    {"attention": "dense", "spatial_prior": "grid"},
    {"fixed_xy": True},
    {"fixed_xy": True, "anchor_size": 0.3},
    {"anchor_size": 0.0},
    {"smca": True},
    {"cross_attention": False},
    {"neck_norm": True},
    {"levels": 3, "dilation": False, "smca": True},
    {"levels": 3, "dilation": False, "cross_attention": False, "decoder_layers": 4},
    {"points": 3, "levels": 2, "box_refine": True, "two_stage": False, "matching": "one-to-one"},
    {"box_refine": False, "two_stage": False, "matching": "one-to-one"},
    {"box_refine": True, "two_stage": False, "matching": "one-to-one"},
    {"box_refine": True, "two_stage": True, "matching": "one-to-one"},
    {"box_refine": True, "two_stage": True, "matching": "denoising", "denoising": 1},
    {"two_stage": True, "box_refine": True, "matching": "dense+denoising", "contrastive": False},
]

#: how many levels a model takes, where not any number
LEVELS = {"sam-detr": (1, 3), "sparse-rcnn": (1, 2, 3, 4), **dict.fromkeys(("d-fine", "rt-detr", "rt-detr-v2"), (2, 3, 4, 5))}


#: models whose encoder or pyramid fuses levels, which must halve in size
FUSING = ("d-fine", "rt-detr", "rt-detr-v2", "sparse-rcnn")


def levels_of(name: str) -> tuple[int, ...]:
    return LEVELS.get(name, tuple(range(1, 6)))


CASES = [
    pytest.param(name, options, id="-".join([name, *(f"{k}={v}" for k, v in options.items())]))
    for name in bq.list_models()
    for options in SETTINGS
    if has_option(name, *options)
    if options.get("levels", levels_of(name)[0]) in levels_of(name)
    if not (name in ("anchor-detr", "sparse-rcnn") and "position" in options)
    if not (name in FUSING and options.get("dilation") and options.get("levels", 3) > 1)
]


def learns(model: DetectionTransformer, *sizes: tuple[int, int], counts: tuple[int, ...]) -> torch.Size:
    """One step of training with finite numbers everywhere -> the shape of the logits."""
    images, mask = batch(*sizes)
    targets = objects(*counts)
    out = model(images, mask, targets=targets)
    loss, terms = model.loss(out, targets)
    loss.backward()
    assert all(bool(t.isfinite().all()) for t in (loss, *terms.values()))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    return out.logits.shape


@pytest.mark.parametrize(("name", "options"), CASES)
def test_setting(name, options):
    model = create(name, **options)
    layers, images, queries, _ = learns(model, (96, 128), (64, 80), counts=(2, 1))
    chosen = model.config["options"]
    assert images == 2
    assert layers == chosen["decoder_layers"]
    assert queries >= chosen["num_queries"] or isinstance(model.queries, ProposalQueries)
    for key, value in options.items():
        assert chosen[key] == value


@pytest.mark.parametrize("name", [name for name in bq.list_models() if 1 in levels_of(name)])
def test_dilation_keeps_the_last_stage_at_stride_16(name):
    options = {"levels": 1} if has_option(name, "levels") else {}
    for dilation, stride in ((False, 32), (True, 16)):
        model = create(name, dilation=dilation, **options)
        with torch.no_grad():
            out = model(torch.zeros(1, 3, 128, 96), trace=True)
        assert out.trace.layers[0].memory.shapes == ((128 // stride, 96 // stride),)


@pytest.mark.parametrize("dilation", [False, True])
@pytest.mark.parametrize(("name", "levels"), [(n, k) for n in bq.list_models() if has_option(n, "levels") for k in levels_of(n)])
def test_strides_of_levels(name, levels, dilation):
    """Each doubles the one before it, except that with dilation the backbone's last map keeps the stride of the one before."""
    if dilation and levels > 1 and name in FUSING:
        with pytest.raises(bq.UserError, match=r"dilation=True: the (encoder|pyramid) fuses levels of halving size"):
            create(name, levels=levels, dilation=dilation)
        return
    model = create(name, levels=levels, dilation=dilation)
    with torch.no_grad():
        shapes = model.embed_image(torch.zeros(1, 3, 128, 192)).shapes
    maps = min(levels, {"smca-detr": 2, "dino-detr": max(levels - 1, 3), "sparse-rcnn": 4}.get(name, 3))
    last = 16 if dilation else 32
    strides = [*(4, 8, 16, last)[-maps:], *(last << i for i in range(1, levels - maps + 1))]
    assert model.backbone.strides == strides[:maps]
    assert shapes == tuple((-(-128 // s), -(-192 // s)) for s in strides)


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("dilation", [False, True])
def test_other_levels_than_a_model_has_say_which_it_has(levels, dilation):
    with pytest.raises(bq.UserError, match=f"levels={levels}: must be 1 .+ or 3 .+ with dilation"):
        create("sam-detr", levels=levels, dilation=dilation)


@pytest.mark.parametrize("name", [n for n in bq.list_models() if has_option(n, "position")])
def test_learned_positions_beyond_their_table(name):
    """52 cells wide: two more than the published table has."""
    needs = {"anchor-detr": {"attention": "dense"}, "sparse-rcnn": {"encoder_layers": 1}}
    model = create(name, position="learned", dilation=False, **needs.get(name, {}))
    learns(model, (32, 52 * 32), (32, 50 * 32), counts=(1, 2))
    with torch.no_grad():
        memory = model(torch.zeros(1, 3, 32, 52 * 32), trace=True).trace.layers[0].memory
    assert memory.shapes[-1][1] == 52


@pytest.mark.parametrize("name", ["deformable-detr", "dino-detr"])
class TestTwoStage:
    def build(self, name: str, **options: Any) -> DetectionTransformer:
        own = {"box_refine": True, "two_stage": True} if has_option(name, "two_stage") else {}
        return create(name, num_queries=12, **own, **options)

    def test_fewer_tokens_than_queries(self, name):
        model = self.build(name, levels=1)
        assert learns(model, (64, 96), counts=(9,))[2] == 6
        assert learns(self.build(name, levels=1).eval(), (20, 20), counts=(2,))[2] == 1

    def test_fewer_valid_tokens_than_queries(self, name):
        """The small image has one cell, so its other queries start from invalid proposals, whose boxes are infinite by design."""
        model = self.build(name, levels=1)
        assert learns(model, (96, 128), (32, 32), counts=(3, 1))[2] == 12

    def test_proposals(self, name):
        model = self.build(name)
        images, mask = batch((96, 128), (64, 80))
        out = model(images, mask)
        memory = model(images, mask, trace=True).trace.layers[0].memory
        proposed = 12 if name == "dino-detr" else memory.tokens.shape[1]
        assert out.proposals.logits.shape[:3] == (1, 2, proposed)
        assert out.proposals.boxes.shape == (1, 2, proposed, 4)
        if name == "deformable-detr":
            assert bool((out.proposals.boxes[0][memory.mask] == 1).all())
        terms = model.loss(out, objects(2, 1))[1]
        assert {k: v.shape for k, v in terms.items() if k.startswith("proposals.")} == {
            f"proposals.{k}": torch.Size([]) for k in ("class", "l1", "giou")
        }


def test_proposals_need_refinement():
    with pytest.raises(bq.UserError, match="box_refine"):
        create("deformable-detr", two_stage=True, box_refine=False, matching="one-to-one")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_queries": 0}, "num_queries=0"),
    ({"num_queries": "12"}, "num_queries='12'"),
    ({"num_queries": [12, 6]}, "num_queries=[12, 6]: give one number, or one for each of decoder_layers=3"),
    ({"num_queries": [6, 12, 6]}, "num_queries=[6, 12, 6]: a layer cannot have more queries than the one before it"),
    ({"num_queries": [6, 6, 0]}, "num_queries=[6, 6, 0]: must be at least 1"),
    ({"num_queries": [6, 6, 2.0]}, "num_queries=[6, 6, 2.0]: must be a whole number, or a list of whole numbers"),
    ({"num_queries": []}, "num_queries=[]"),
    ({"query_position": "cosine"}, "'learned', 'sine', 'sine-mlp', 'none'"),
    ({"relative_bias": 1}, "relative_bias=1"),
    ({"encoder": "hybrid", "dilation": True}, "levels=2"),
    ({"encoder": "hybrid", "levels": 1, "dilation": False}, "levels=2"),
    ({"encoder_ffn": "convolutional", "encoder_layers": 0}, "encoder_layers of at least 1"),
    ({"two_stage": True, "box_refine": True, "query_position": "learned"}, "two_stage=False"),
    ({"attention": "rcda", "position": "none"}, "attention='dense'"),
    ({"attention": "rcda", "relative_bias": True}, "attention='dense'"),
    ({"num_queries": 12.0}, "num_queries=12.0"),
    ({"num_queries": True}, "num_queries=True"),
    ({"hidden_dim": 66}, "hidden_dim=66"),
    ({"heads": 5}, "heads=5"),
    ({"heads": 0}, "heads=0"),
    ({"decoder_layers": 0}, "decoder_layers=0"),
    ({"encoder_layers": -1}, "encoder_layers=-1"),
    ({"ffn_dim": 0}, "ffn_dim=0"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"dropout": "none"}, "dropout='none'"),
    ({"dilation": 1}, "dilation=1"),
    ({"backbone_options": {"no_such_option": 1}}, "no_such_option"),
    ({"backbone_options": "narrow"}, "backbone_options='narrow'"),
    ({"position": "cosine"}, "'sine', 'learned'"),
    ({"pre_norm": "yes"}, "pre_norm='yes'"),
    ({"levels": 0}, "levels=0"),
    ({"dynamic_scale": "type5"}, "'type3', 'type4'"),
    ({"gaussian_smooth": 0}, "gaussian_smooth=0"),
    ({"gaussian_smooth": "wide"}, "gaussian_smooth='wide'"),
    ({"centre_stride": -1}, "centre_stride=-1"),
    ({"smca": 1}, "smca=1"),
    ({"smca": True, "cross_attention": False}, "cross_attention=True"),
    ({"neck_norm": True, "hidden_dim": 80}, "hidden_dim=80"),
    ({"centre_stride": 32.0}, "centre_stride=32.0"),
    ({"points": 0}, "points=0"),
    ({"box_refine": "yes"}, "box_refine='yes'"),
    ({"denoising": 0}, "denoising=0: must be at least 1; for no denoising leave it out of matching"),
    ({"matching": "denosing"}, "no strategy 'denosing'; known, joined by +: one-to-one, denoising"),
    ({"matching": "dense+"}, "no strategy ''"),
    ({"spatial_prior": "random"}, "'learned', 'grid'"),
    ({"attention": "full"}, "'rcda', 'dense'"),
    ({"matching": "denoising", "box_refine": True, "query_position": "learned"}, "needs "),
]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        pytest.param(name, options, said, id="-".join([name, *(f"{k}={v}" for k, v in options.items())]))
        for name in bq.list_models()
        for options, said in WRONG
        if has_option(name, *options)
    ],
)
def test_wrong_value(name, options, said):
    with pytest.raises(bq.UserError) as raised:
        create(name, **options)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("detr", {"query_position": kind}) for kind in ("sine", "sine-mlp", "none")),
        ("smca-detr", {"query_position": "sine"}),
        *((name, {"relative_bias": True}) for name in ("deformable-detr", "dab-deformable-detr", "sam-detr")),
        *((name, {"encoder": "hybrid"}) for name in ("detr", "conditional-detr", "dab-detr", "anchor-detr")),
    ],
)
def test_an_option_that_a_model_cannot_take_says_where_it_is_possible(name, options):
    with pytest.raises(bq.UserError, match="possible") as raised:
        create(name, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", bq.list_models())
def test_unknown_option_lists_the_known(name):
    with pytest.raises(bq.UserError) as raised:
        bq.create_model(name, classes=3, queries=100)
    assert "'queries'" in str(raised.value)
    assert all(option in str(raised.value) for option in vars(options_of(name)))


def test_unknown_model_lists_the_known():
    with pytest.raises(bq.UserError) as raised:
        bq.create_model("detr2", classes=3)
    assert all(name in str(raised.value) for name in ("'detr2'", *bq.list_models()))


@pytest.mark.parametrize("name", bq.list_models())
def test_unknown_preset_lists_the_known(name):
    with pytest.raises(bq.UserError) as raised:
        bq.create_model(name, classes=3, preset="huge")
    assert "'huge'" in str(raised.value)
    assert "paper" in str(raised.value)


def test_unknown_backbone_names_some_near_it():
    with pytest.raises(bq.UserError, match=r"'resnet51'.*resnet"):
        bq.create_model("detr", classes=3, backbone="resnet51")


def test_backbone_with_features_last():
    options = {"embed_dim": 24, "depths": (1, 1, 1, 1), "strict_img_size": False}
    model = create("deformable-detr", backbone="swin_tiny_patch4_window7_224", backbone_options=options)
    learns(model, (96, 128), counts=(2,))


def test_backbone_without_dilation():
    with pytest.raises(bq.UserError, match="dilation=True"):
        create("detr", backbone="swin_tiny_patch4_window7_224", dilation=True)


def test_backbone_of_one_size():
    model = bq.create_model("detr", classes=3, backbone="vit_tiny_patch16_224", encoder_layers=1, decoder_layers=1)
    with pytest.raises(bq.UserError, match=r"'vit_tiny_patch16_224' cannot process images of 96 x 128"):
        model(torch.zeros(1, 3, 96, 128))


def test_weights_that_cannot_be_fetched_fail_at_once():
    with pytest.raises(bq.UserError, match="HF_HUB_OFFLINE"):
        bq.create_model("detr", classes=3, backbone="resnet14t", pretrained=True)


@pytest.mark.parametrize("classes", [0, -1, [], 2.5, True, "cat", None])
def test_no_classes(classes):
    with pytest.raises(bq.UserError, match=r"^classes="):
        bq.create_model("detr", classes=classes)


def test_classes_by_name():
    assert create("detr", classes=["cat", "dog"]).config["classes"] == 2
