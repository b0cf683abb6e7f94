"""``RTDetrV2ForObjectDetection``: its configuration; the names of its tensors are RT-DETR's."""

from typing import Any

from boxquery.official.transformers.config import Config, real_time_sizes
from boxquery.official.transformers.rt_detr import PROCESSOR, adapt, keys

__all__ = ["CONSTANTS", "PROCESSOR", "adapt", "keys", "options"]
CONSTANTS = (r".+\.n_points_scale",)


def options(config: Config) -> dict[str, Any]:
    sizes = real_time_sizes(config)
    config.require(decoder_n_levels=sizes["levels"])
    return sizes | {
        "points": config.get("decoder_n_points", 4),
        "offset_scale": config.number("decoder_offset_scale", 0.5),
        "sampling": {"default": "bilinear"}.get(method := config.get("decoder_method", "default"), method),
    }
