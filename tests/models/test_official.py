"""``load_official`` takes all of a checkpoint or none of it, and says which keys are invalid."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.cli import run
from boxquery.models.base import DetectionTransformer
from boxquery.official import authors_of, load_official, rename
from boxquery.official.checkpoint import open_checkpoint

SMALL: dict[str, Any] = {
    "backbone": "resnet10t", "hidden_dim": 32, "heads": 4, "ffn_dim": 48, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5,
}  # fmt: skip
CLASSES = 4


def both(*stems: str) -> list[str]:
    return [f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")]


def mlp(stem: str) -> list[str]:
    return both(*(f"{stem}.layers.{i}" for i in range(3)))


def attention(stem: str) -> list[str]:
    return [f"{stem}.in_proj_weight", f"{stem}.in_proj_bias", *both(f"{stem}.out_proj")]


def sampled(stem: str) -> list[str]:
    return both(*(f"{stem}.{part}" for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")))


def detr_keys() -> list[str]:
    """As facebookresearch/detr names them (without the backbone)."""
    encoder, decoder = "transformer.encoder.layers.0", [f"transformer.decoder.layers.{i}" for i in range(2)]
    keys = ["query_embed.weight", *both("input_proj", "class_embed", "transformer.decoder.norm"), *mlp("bbox_embed")]
    keys += attention(f"{encoder}.self_attn") + both(*(f"{encoder}.{part}" for part in ("linear1", "linear2", "norm1", "norm2")))
    for layer in decoder:
        keys += attention(f"{layer}.self_attn") + attention(f"{layer}.multihead_attn")
        keys += both(*(f"{layer}.{part}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3")))
    return keys


def deformable_keys(two_stage: bool) -> list[str]:
    """As fundamentalvision/Deformable-DETR names them (without the backbone); heads are listed once per layer."""
    encoder, decoder = "transformer.encoder.layers.0", [f"transformer.decoder.layers.{i}" for i in range(2)]
    keys = ["transformer.level_embed", *both(*(f"input_proj.{level}.{part}" for level in range(4) for part in range(2)))]
    keys += sampled(f"{encoder}.self_attn") + both(*(f"{encoder}.{part}" for part in ("linear1", "linear2", "norm1", "norm2")))
    for layer in decoder:
        keys += attention(f"{layer}.self_attn") + sampled(f"{layer}.cross_attn")
        keys += both(*(f"{layer}.{part}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3")))
    for i in range(3 if two_stage else 2):
        for prefix in ("", "transformer.decoder.") if two_stage else ("",):
            keys += both(f"{prefix}class_embed.{i}") + mlp(f"{prefix}bbox_embed.{i}")
    if two_stage:
        return keys + both(*(f"transformer.{part}" for part in ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")))
    return [*keys, "query_embed.weight", *both("transformer.reference_points")]


def dn_keys() -> list[str]:
    """As IDEA-Research/DN-DETR names them (without the backbone): DAB-DETR's and the table of labels."""
    encoder, decoder = "transformer.encoder", "transformer.decoder"
    keys = ["refpoint_embed.weight", "label_enc.weight", *both("input_proj", "class_embed", f"{decoder}.norm")]
    for prefix in ("", f"{decoder}."):
        keys += mlp(f"{prefix}bbox_embed")
    heads = (f"{encoder}.query_scale", f"{decoder}.query_scale", f"{decoder}.ref_point_head", f"{decoder}.ref_anchor_head")
    keys += both(*(f"{stem}.layers.{i}" for stem in heads for i in range(2)))
    first = f"{encoder}.layers.0"
    keys += attention(f"{first}.self_attn") + both(*(f"{first}.{part}" for part in ("linear1", "linear2", "norm1", "norm2")))
    keys.append(f"{first}.activation.weight")
    for i in range(2):
        parts = ["sa_qcontent_proj", "sa_qpos_proj", "sa_kcontent_proj", "sa_kpos_proj", "sa_v_proj", "self_attn.out_proj"]
        parts += ["ca_qcontent_proj", "ca_kcontent_proj", "ca_kpos_proj", "ca_v_proj", "ca_qpos_sine_proj", "cross_attn.out_proj"]
        parts += ["ca_qpos_proj"] * (i == 0) + ["linear1", "linear2", "norm1", "norm2", "norm3"]
        keys += [*both(*(f"{decoder}.layers.{i}.{part}" for part in parts)), f"{decoder}.layers.{i}.activation.weight"]
    return keys


def dino_keys() -> list[str]:
    """As IDEA-Research/DINO names them (without the backbone); the one head of all layers is listed per layer, twice."""
    keys = [key for key in deformable_keys(True) if not re.search(r"pos_trans|(class|bbox)_embed\.2", key)]
    keys += ["transformer.tgt_embed.weight", "label_enc.weight", *both("transformer.decoder.norm", "transformer.enc_out_class_embed")]
    return keys + mlp("transformer.enc_out_bbox_embed") + both(*(f"transformer.decoder.ref_point_head.layers.{i}" for i in range(2)))


def sam_keys(several: bool) -> list[str]:
    """As ZhangGongjie/SAM-DETR names them (without the backbone); several levels have Deformable DETR's encoder and a norm a level."""
    encoder, decoder = "transformer.encoder.layers.0", [f"transformer.decoder.layers.{i}" for i in range(2)]
    neck = [f"input_proj.{level}.{i}" for level in range(3) for i in range(2)] if several else ["input_proj.0.0"]
    keys = ["query_embed.weight", *both(*neck)]
    keys += ["transformer.level_embed"] * several + (sampled if several else attention)(f"{encoder}.self_attn")
    keys += both(*(f"{encoder}.{part}" for part in ("linear1", "linear2", "norm1", "norm2")))
    for i, layer in enumerate(decoder):
        parts = ["sa_qcontent_proj", "sa_qpos_proj", "sa_kcontent_proj", "sa_kpos_proj", "sa_v_proj", "self_attn.out_proj"]
        parts += ["ca_qcontent_proj", "ca_kcontent_proj", "ca_v_proj", "cross_attn.out_proj", "attn1", "attn2", "point1.0"]
        parts += [f"ca_{side}pos_sine_proj.layers.{j}" for side in "qk" for j in range(2)] + [f"point2.{j}" for j in (0, 2, 4, 6)]
        keys += both(*(f"{layer}.{part}" for part in (*parts, "linear1", "linear2", "norm1", "norm2", "norm3")))
        keys += both(f"class_embed.{i}") + mlp(f"bbox_embed.{i}") + mlp(f"transformer.decoder.bbox_embed.{i}")
    return keys


def smca_keys() -> list[str]:
    """As gaopengcuhk/SMCA-DETR names them (without the backbone)."""
    layers = [f"transformer.decoder.layers.{i}.{part}" for i in range(2) for part in ("norm4", "point2", "point3")]
    return detr_keys() + mlp("transformer.decoder.layers.0.point1") + both(*layers)


SYSTEMS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "detr": ("detr", {}, detr_keys()),
    "deformable": ("deformable-detr", {}, deformable_keys(False)),
    "deformable-two-stage": ("deformable-detr", {"box_refine": True, "two_stage": True}, deformable_keys(True)),
    "dn": ("dn-detr", {}, dn_keys()),
    "dino": ("dino-detr", {}, dino_keys()),
    "sam": ("sam-detr", {}, sam_keys(False)),
    "sam-levels-gaussian": ("sam-detr", {"levels": 3, "smca": True}, sam_keys(True)),
    "smca": ("smca-detr", {}, smca_keys()),
}


def build(system: str, seed: int) -> DetectionTransformer:
    torch.manual_seed(seed)
    name, options, _ = SYSTEMS[system]
    return bq.create_model(name, classes=CLASSES, **SMALL, **options)


def checkpoint(system: str) -> tuple[DetectionTransformer, dict[str, Tensor]]:
    """A model of ours and the same weights under the authors' names."""
    model = build(system, seed=1)
    rules = authors_of(SYSTEMS[system][0]).keys(model)
    own = model.state_dict()
    keys = [*SYSTEMS[system][2], *(f"backbone.0.body.{k.removeprefix('backbone.body.')}" for k in own if k.startswith("backbone."))]
    tensors = {key: own[rename(key, rules)].clone() for key in keys}
    if "label_enc.weight" in tensors:
        last = own["queries.content"] if system == "dn" else torch.randn(1, SMALL["hidden_dim"])
        tensors["label_enc.weight"] = torch.cat((tensors["label_enc.weight"], last))
    return model, tensors


@pytest.fixture(params=SYSTEMS)
def system(request) -> str:
    return request.param


def test_every_tensor_is_used(system):
    source, tensors = checkpoint(system)
    tensors["backbone.0.body.somewhere.num_batches_tracked"] = torch.tensor(3)
    model = build(system, seed=2)
    report = bq.load_official(model, tensors)
    assert report["constants"] == ["backbone.0.body.somewhere.num_batches_tracked"]
    aliases = set(tensors) - set(report["used"]) - set(report["constants"])
    assert all(("class_embed" in key or "bbox_embed" in key) and system != "detr" for key in aliases)
    ours, theirs = model.state_dict(), source.state_dict()
    for key, value in ours.items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, theirs[key]), key
    assert model.config["frozen"] is True


@pytest.mark.parametrize("key", ["input_proj", "transformer.encoder.layers.0.linear1.bias", "backbone.0.body.layer3.0.conv1.weight"])
def test_missing(system, key):
    _, tensors = checkpoint(system)
    (lost, *_) = (k for k in tensors if k.startswith(key))
    del tensors[lost]
    model = build(system, seed=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(bq.UserError, match="missing: " + re.escape(lost)):
        bq.load_official(model, tensors)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unknown(system):
    _, tensors = checkpoint(system)
    tensors["transformer.mystery.weight"] = torch.zeros(3)
    with pytest.raises(bq.UserError, match=r"not understood: transformer\.mystery\.weight"):
        bq.load_official(build(system, seed=2), tensors)


def test_layer_too_many(system):
    _, tensors = checkpoint(system)
    tensors["transformer.encoder.layers.1.linear1.bias"] = torch.zeros(SMALL["ffn_dim"])
    with pytest.raises(bq.UserError, match=r"not understood: transformer\.encoder\.layers\.1\.linear1\.bias"):
        bq.load_official(build(system, seed=2), tensors)


def test_other_class_count(system):
    _, tensors = checkpoint(system)
    name, options, _ = SYSTEMS[system]
    model = bq.create_model(name, classes=CLASSES + 1, **SMALL, **options)
    with pytest.raises(bq.UserError, match=r"'class_embed.*check "):
        bq.load_official(model, tensors)


def test_aliases_that_differ():
    """Without refinement one head serves every layer: a checkpoint with two heads is another model's."""
    _, tensors = checkpoint("deformable")
    tensors["class_embed.1.bias"] += 1
    with pytest.raises(bq.UserError, match=r"class_embed\.0\.bias' and 'class_embed\.1\.bias"):
        bq.load_official(build("deformable", seed=2), tensors)


@pytest.mark.parametrize("system", ["dn", "dino"])
def test_rows_of_labels(system):
    """One more than there are classes; without denoising, or with a new class head, those of the classes are not used."""
    source, tensors = checkpoint(system)
    report = bq.load_official(build(system, seed=2), tensors)
    assert report["dropped"] == ([] if system == "dn" else [f"label_enc.weight[{CLASSES}]"])
    name, options, _ = SYSTEMS[system]
    plain = bq.create_model(name, classes=CLASSES, matching="one-to-one", **SMALL, **options)
    assert f"label_enc.weight[:{CLASSES}]" in bq.load_official(plain, tensors)["dropped"]
    headless = {key: value for key, value in tensors.items() if "class_embed" not in key}
    other = bq.create_model(name, classes=CLASSES + 3, **SMALL, **options)
    report = load_official(other, headless, new_head=True)
    assert "queries.denoising.labels" in report["new"]
    assert len(other.queries.denoising.labels) == CLASSES + 3
    for model in (plain, other):
        assert torch.equal(model.queries.content, source.queries.content)


@pytest.mark.parametrize("system", ["dn", "dino"])
def test_options_are_those_of_the_tensors(system, tmp_path):
    name, _, keys = SYSTEMS[system]
    small = {key: value for key, value in SMALL.items() if key not in ("backbone", "heads")}
    source = bq.create_model(name, classes=CLASSES, **small, **({"levels": 4, "points": 3} if system == "dino" else {}))
    rules, own = authors_of(name).keys(source), source.state_dict()
    keys = [*keys, *(f"backbone.0.body.{k.removeprefix('backbone.body.')}" for k in own if k.startswith("backbone."))]
    tensors = {key: own[rename(key, rules)] for key in keys}
    rows = own["queries.content"] if system == "dn" else torch.zeros(1, small["hidden_dim"])
    tensors["label_enc.weight"] = torch.cat((tensors["label_enc.weight"], rows))
    torch.save({"model": {key: value.clone() for key, value in tensors.items()}}, tmp_path / "theirs.pth")
    model, _ = open_checkpoint(tmp_path / "theirs.pth", name, {})
    assert model.config["options"] == source.config["options"]
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked"))


def test_of_another_paper():
    _, tensors = checkpoint("detr")
    with pytest.raises(bq.UserError, match=r"query_embed\.weight|not a checkpoint of deformable-detr"):
        bq.load_official(build("deformable", seed=2), tensors)


def test_without_authors():
    model = build("detr", seed=0)
    model.config["name"] = "nobody"
    with pytest.raises(bq.UserError, match=r"'nobody'; known: .*detr"):
        bq.load_official(model, {})


@pytest.mark.parametrize("dilation", [None, True])
def test_import_says_what_no_tensor_shows(tmp_path, capsys, dilation):
    """A DC5 checkpoint has the tensors of a C5 one: what is assumed is printed, and can be given."""
    small = {key: value for key, value in SMALL.items() if key not in ("backbone", "heads")}
    source = bq.create_model("detr", classes=91, **small)
    rules = authors_of("detr").keys(source)
    own = source.state_dict()
    keys = [*detr_keys(), *(f"backbone.0.body.{k.removeprefix('backbone.body.')}" for k in own if k.startswith("backbone."))]
    torch.save({"model": {key: own[rename(key, rules)].clone() for key in keys}}, tmp_path / "theirs.pth")
    words = ["import-official", str(tmp_path / "theirs.pth"), "--model", "detr", "--out", str(tmp_path / "ours")]
    assert run(words + (["--option", "dilation=true"] if dilation else [])) == 0
    said = capsys.readouterr().err
    assert ("dilation" in said) is (dilation is None)
    model = bq.load(tmp_path / "ours").model
    assert model.config["options"]["dilation"] is bool(dilation)
    assert model.config["options"]["decoder_layers"] == small["decoder_layers"]
