"""D-FINE's released checkpoints: names written out here once more, options read from the tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.official import authors_of, rename
from boxquery.official.checkpoint import open_checkpoint

CLASSES = 4
NORM = ("weight", "bias", "running_mean", "running_var")


def both(*stems: str) -> list[str]:
    return [f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")]


def mlp(stem: str, layers: int) -> list[str]:
    return both(*(f"{stem}.layers.{i}" for i in range(layers)))


def block(stem: str, norm: str = "norm") -> list[str]:
    return [f"{stem}.conv.weight", *(f"{stem}.{norm}.{kind}" for kind in NORM)]


def attention(stem: str) -> list[str]:
    return [f"{stem}.in_proj_weight", f"{stem}.in_proj_bias", *both(f"{stem}.out_proj")]


def backbone(blocks: list[int], layers: int, affine: bool) -> list[str]:
    """HGNetV2: stages 3 and 4 have light layers, of two convolutions."""

    def active(stem: str) -> list[str]:
        return block(stem, "bn") + ([f"{stem}.lab.scale", f"{stem}.lab.bias"] if affine else [])

    keys = [key for part in ("1", "2a", "2b", "3", "4") for key in active(f"backbone.stem.stem{part}")]
    for stage, count in enumerate(blocks):
        stem = f"backbone.stages.{stage}"
        keys += block(f"{stem}.downsample", "bn") if stage else []
        for b in range(count):
            for k in range(layers):
                layer = f"{stem}.blocks.{b}.layers.{k}"
                keys += block(f"{layer}.conv1", "bn") + active(f"{layer}.conv2") if stage > 1 else active(layer)
            keys += [key for i in (0, 1) for key in active(f"{stem}.blocks.{b}.aggregation.{i}")]
    return keys


def encoder(levels: int, blocks: int) -> list[str]:
    layer = "encoder.encoder.0.layers.0"
    keys = [key for i in range(levels) for key in block(f"encoder.input_proj.{i}")]
    keys += attention(f"{layer}.self_attn") + both(*(f"{layer}.{part}" for part in ("linear1", "linear2", "norm1", "norm2")))
    for i in range(levels - 1):
        keys += block(f"encoder.lateral_convs.{i}")
        keys += block(f"encoder.downsample_convs.{i}.0.cv1") + block(f"encoder.downsample_convs.{i}.0.cv2")
        for way in ("fpn", "pan"):
            stem = f"encoder.{way}_blocks.{i}"
            keys += [key for part in ("cv1", "cv2.1", "cv3.1", "cv4") for key in block(f"{stem}.{part}")]
            for stage in ("cv2.0", "cv3.0"):
                keys += block(f"{stem}.{stage}.conv1") + block(f"{stem}.{stage}.conv2")
                inner = [f"{stem}.{stage}.bottlenecks.{j}.conv{n}" for j in range(blocks) for n in (1, 2)]
                keys += [key for part in inner for key in block(part)]
    return keys


def decoder(layers: int, projected: int) -> list[str]:
    keys = [key for i in range(projected) for key in block(f"decoder.input_proj.{i}")]
    keys += both("decoder.enc_output.proj", "decoder.enc_output.norm", "decoder.enc_score_head") + mlp("decoder.enc_bbox_head", 3)
    keys += mlp("decoder.query_pos_head", 2) + mlp("decoder.pre_bbox_head", 3) + ["decoder.denoising_class_embed.weight"]
    for i in range(layers):
        stem = f"decoder.decoder.layers.{i}"
        keys += attention(f"{stem}.self_attn") + both(*(f"{stem}.{part}" for part in ("linear1", "linear2", "norm1", "norm3")))
        keys += both(f"{stem}.cross_attn.sampling_offsets", f"{stem}.cross_attn.attention_weights")
        keys += both(f"{stem}.gateway.gate", f"{stem}.gateway.norm", f"decoder.dec_score_head.{i}")
        keys += mlp(f"decoder.dec_bbox_head.{i}", 3) + mlp(f"decoder.decoder.lqe_layers.{i}.reg_conf", 2)
    return keys


def constants(layers: int, samples: int, reg_scale: float) -> dict[str, Tensor]:
    """What a checkpoint holds beside the parameters; the decoder has two of them twice."""
    scale, up = torch.tensor([reg_scale]), torch.tensor([0.5])
    out = {"decoder.up": up, "decoder.reg_scale": scale, "decoder.decoder.up": up, "decoder.decoder.reg_scale": scale}
    out |= {f"decoder.decoder.layers.{i}.cross_attn.num_points_scale": torch.ones(samples) for i in range(layers)}
    return out | {"decoder.anchors": torch.zeros(1, 7, 4), "decoder.valid_mask": torch.ones(1, 7, 1)}


#: preset, narrowed -> what its file holds: blocks per stage, layers per block, affine blocks; levels, blocks per fusion; projections
CASES: dict[str, tuple[dict[str, Any], tuple[list[int], int, bool], tuple[int, int], int]] = {
    "n": ({"hidden_dim": 32, "encoder_dim": 0}, ([1, 1, 2, 1], 3, True), (2, 2), 0),
    "s": ({"hidden_dim": 32, "encoder_dim": 0}, ([1, 1, 2, 1], 3, True), (3, 1), 0),
    "x": ({"hidden_dim": 32, "encoder_dim": 48, "decoder_layers": 2}, ([1, 2, 5, 2], 6, False), (3, 3), 3),
}


def saved(model: DetectionTransformer, case: str) -> dict[str, Tensor]:
    """The weights of a model of ours under the authors' names."""
    _, body, fused, projected = CASES[case]
    options, own = model.config["options"], model.state_dict()
    rules, layers = authors_of("d-fine").keys(model), options["decoder_layers"]
    names = backbone(*body) + encoder(*fused) + decoder(layers, projected)
    tensors = {name: own[str(rename(name, rules))] for name in names}
    embedding = tensors["decoder.denoising_class_embed.weight"]
    tensors["decoder.denoising_class_embed.weight"] = torch.cat((embedding, torch.zeros_like(embedding[:1])))
    assert len(names) == len({rename(name, rules) for name in names})
    return tensors | constants(layers, sum(options["points"]), options["reg_scale"])


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_finds_its_place(case, tmp_path):
    torch.manual_seed(0)
    source = bq.create_model("d-fine", classes=CLASSES, preset=case, ffn_dim=24, encoder_ffn_dim=40, **CASES[case][0])
    torch.save({"model": saved(source, case), "date": "today"}, tmp_path / "dfine.pth")
    made, report = open_checkpoint(tmp_path / "dfine.pth", "d-fine", {})
    assert report["rows"] == CLASSES
    own, read = (model.config["options"] for model in (source, made))
    for name, value in own.items():
        assert read[name] == (pytest.approx(value, abs=0.03) if name == "fusion_expansion" else value), name
    for key, value in source.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(made.state_dict()[key], value), key


def test_another_upper_bound_is_not_read(tmp_path):
    source = bq.create_model("d-fine", classes=CLASSES, preset="s", **CASES["s"][0])
    torch.save(saved(source, "s") | {"decoder.up": torch.tensor([0.25])}, tmp_path / "dfine.pth")
    with pytest.raises(bq.UserError, match=r"'decoder\.up' is 0\.25: only 0\.5 is supported"):
        open_checkpoint(tmp_path / "dfine.pth", "d-fine", {})
