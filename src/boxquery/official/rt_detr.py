"""lyuwenyu/RT-DETR, ``rtdetr_pytorch``: ``rtdetr_r18vd_dec3_6x_coco_from_paddle.pth`` and the like.

Of github.com/lyuwenyu/storage, release v0.1, Apache-2.0: ``rtdetr_r18vd_dec3_6x_coco_from_paddle.pth``, ``rtdetr_r34vd_dec4_6x_...``,
``rtdetr_r50vd_m_6x_...``, ``rtdetr_r50vd_6x_...``, ``rtdetr_r101vd_6x_...``; the weights are under ``ema.module``.
"""

from typing import Any

from boxquery.official.patterns import Rules
from boxquery.official.real_time import (
    CONSTANTS,
    class_rows,
    deformable_keys,
    fusion,
    real_time_keys,
    real_time_options,
    resnet_options,
    resnet_vd,
    without_padding_class,
)

__all__ = ["CONSTANTS", "adapt", "keys", "options"]
#: of all published models
HEADS = 8


def options(tensors) -> tuple[int | None, dict[str, Any]]:
    found = real_time_options(tensors) | resnet_options(tensors)
    samples = len(tensors["decoder.decoder.layers.0.cross_attn.attention_weights.bias"])
    return class_rows(tensors), found | {"points": samples // (HEADS * found["levels"])}


def adapt(model, tensors):
    return without_padding_class(tensors)


def keys(model) -> Rules:
    levels = len(model.neck.projections)
    return [*resnet_vd(), *real_time_keys(levels), *deformable_keys(), *fusion(r"encoder\.", levels)]
