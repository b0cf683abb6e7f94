"""Peterande/D-FINE (Apache-2.0): the keys of its released checkpoints.

Of github.com/Peterande/storage, release dfinev1.0: ``dfine_{n,s,m,l,x}_coco.pth``, ``dfine_{s,m,x}_obj2coco.pth``,
``dfine_l_obj2coco_e25.pth``, and with 366 classes ``dfine_{s,m,l,x}_obj365.pth``; the weights are under ``model``.
"""

from collections.abc import Sequence
from typing import Any

from boxquery.errors import UserError
from boxquery.official.patterns import Rules
from boxquery.official.real_time import CONSTANTS as REAL_TIME
from boxquery.official.real_time import LAYER, class_rows, conv_block, count, real_time_keys, real_time_options, without_padding_class

CONSTANTS = (*REAL_TIME, r"decoder\.(decoder\.)?(up|reg_scale|project)")
#: of all published models
HEADS = 8
#: width of the layers in HGNetV2's last stage -> timm's name, and whether it has affine blocks there
BACKBONES = {128: ("hgnetv2_b0", True), 256: ("hgnetv2_b2", True), 384: ("hgnetv2_b4", False), 512: ("hgnetv2_b5", False)}


def options(tensors) -> tuple[int | None, dict[str, Any]]:
    """The class count and our options, as read from the tensors. How points are shared out among levels is known by their number alone."""
    found = real_time_options(tensors)
    width = tensors["backbone.stages.3.blocks.0.layers.0.conv2.conv.weight"].shape[0]
    name, usual = BACKBONES[width]
    affine = any(".lab." in key for key in tensors)
    samples = len(tensors["decoder.decoder.layers.0.cross_attn.attention_weights.bias"]) // HEADS
    fusion = len(tensors["encoder.fpn_blocks.0.cv2.1.norm.bias"])
    dim = len(tensors["encoder.lateral_convs.0.norm.bias"])
    if (up := float(tensors["decoder.up"])) != 0.5:
        raise UserError(f"the tensor 'decoder.up' is {up}: only 0.5 is supported")
    return class_rows(tensors), found | {
        "backbone": name,
        "backbone_options": {} if affine == usual else {"use_lab": affine},
        "points": {(2, 12): [6, 6], (3, 12): [3, 6, 3]}[found["levels"], samples],
        "fusion_blocks": count(tensors, "encoder.fpn_blocks.0.cv2.0.bottlenecks."),
        "fusion_expansion": 2 * fusion / dim,
        "reg_max": len(tensors["decoder.dec_bbox_head.0.layers.2.bias"]) // 4 - 1,
        "reg_scale": float(tensors["decoder.reg_scale"]),
    }


def adapt(model, tensors):
    return without_padding_class(tensors)


def keys(model) -> Rules:
    """The authors' keys (patterns) -> ours."""
    levels = len(model.neck.projections)
    return [
        (r"backbone\.stem\.(.+)", r"backbone.body.stem.\1"),
        (r"backbone\.stages\.(\d)\.(.+)", r"backbone.body.stages_\1.\2"),
        *gelan(r"encoder\.", levels, ("cv1", r"cv2\.1", r"cv3\.1", "cv4"), (r"cv2\.0", r"cv3\.0"), (r"0\.cv1", r"0\.cv2")),
        (LAYER + r"cross_attn\.((?:sampling_offsets|attention_weights)\..+)", r"layers.\1.read.\2"),
        (LAYER + r"gateway\.gate\.(.+)", r"layers.\1.read_residual.gates.\2"),
        (LAYER + r"gateway\.norm\.(.+)", r"layers.\1.read_residual.norm.\2"),
        (r"decoder\.decoder\.lqe_layers\.(\d+)\.reg_conf\.(.+)", r"heads.\1.quality.mlp.\2"),
        (r"decoder\.pre_bbox_head\.(.+)", r"heads.0.initial_boxes.\1"),
        *real_time_keys(levels),
    ]


def gelan(prefix: str, levels: int, convolutions: Sequence[str], stages: Sequence[str], halving: Sequence[str]) -> Rules:
    """The convolutions between levels, which the authors, and transformers, number from the coarsest on top down.

    Args:
        convolutions: names of a fusion's four convolutions there; stages: of its two stages; halving: of the two that halve a map.
    """
    rules: Rules = []
    for i in range(levels - 1):
        top = levels - 2 - i
        rules += conv_block(rf"{prefix}lateral_convs\.{i}", f"encoder.lateral.{top}")
        for theirs, ours in zip(halving, ("mix", "halve"), strict=True):
            rules += conv_block(rf"{prefix}downsample_convs\.{i}\.{theirs}", f"encoder.shrink.{i}.{ours}")
        for theirs, ours in (
            (rf"{prefix}fpn_blocks\.{i}", f"encoder.top_down.{top}"),
            (rf"{prefix}pan_blocks\.{i}", f"encoder.bottom_up.{i}"),
        ):
            for part, own in zip(convolutions, ("enter", "wide.0", "wide.1", "leave"), strict=True):
                rules += conv_block(rf"{theirs}\.{part}", f"{ours}.{own}")
            for stage, part in enumerate(stages):
                for inner, own in (("conv1", "enter"), ("conv2", "beside")):
                    rules += conv_block(rf"{theirs}\.{part}\.{inner}", f"{ours}.stages.{stage}.{own}")
                for inner, own in (("conv1", "wide"), ("conv2", "narrow")):
                    rules += conv_block(rf"{theirs}\.{part}\.bottlenecks\.(\d+)\.{inner}", rf"{ours}.stages.{stage}.blocks.\1.{own}")
    return rules
