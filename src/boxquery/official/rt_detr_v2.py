"""lyuwenyu/RT-DETR, ``rtdetrv2_pytorch``: RT-DETR's names.

Of github.com/lyuwenyu/storage, Apache-2.0: ``rtdetrv2_r18vd_120e_coco.pth`` (v0.2: ``..._rerun_48.1.pth``),
``rtdetrv2_r34vd_120e_coco_ema.pth``, ``rtdetrv2_r50vd_m_7x_coco_ema.pth``, ``rtdetrv2_r50vd_6x_coco_ema.pth``,
``rtdetrv2_r101vd_6x_coco_from_paddle.pth``. Those with ``dsp`` in their name need ``sampling=discrete``, which no tensor shows. Their
HGNetv2 models are not read.
"""

from typing import Any

from boxquery.official import rt_detr
from boxquery.official.rt_detr import CONSTANTS, adapt, keys

__all__ = ["CONSTANTS", "adapt", "keys", "options"]


def options(tensors) -> tuple[int | None, dict[str, Any]]:
    rows, found = rt_detr.options(tensors)
    scales = tensors.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    if scales is not None:  # 1 / n for each of the n points of a level
        numbers: list[int] = []
        while (done := sum(numbers)) < len(scales):
            numbers.append(round(1 / float(scales[done])))
        found["points"] = numbers if len(set(numbers)) > 1 else numbers[0]
    return rows, found | {"class_agnostic": rows != 1 and len(tensors["decoder.enc_score_head.bias"]) == 1}
