"""Times of reading boxes' regions from a pyramid: torchvision's RoIAlign, level by level, and ours, all levels at once.

    python benchmarks/regions.py

One thread, process time, the best of six: four images of 160 x 160 pixels, 40 boxes each, 128 features, strides 8 to 32.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import roi_align

from boxquery.parts.attention.regions import SIDE, read_samples, region_samples
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.memory import Memory

IMAGES, BOXES, DIM, PIXELS, STRIDES = 4, 40, 128, 160, (8, 16, 32)


def times(read: Callable[[], Tensor]) -> str:
    """Milliseconds forward, and backward."""
    found = []
    for _ in range(6):
        start = time.process_time()
        out = read()
        middle = time.process_time()
        out.sum().backward()
        found.append((middle - start, time.process_time() - middle))
    forward, backward = (1000 * min(each) for each in zip(*found, strict=True))
    return f"{forward:.1f} ms forward, {backward:.1f} backward"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = tuple((PIXELS // stride, PIXELS // stride) for stride in STRIDES)
    tokens = torch.randn(IMAGES, sum(h * w for h, w in shapes), DIM, requires_grad=True)
    memory = Memory(tokens, None, None, shapes, torch.ones(IMAGES, len(shapes), 2), torch.full((IMAGES, 2), float(PIXELS)))
    boxes = torch.cat((torch.rand(IMAGES, BOXES, 2), 0.02 + 3 * torch.rand(IMAGES, BOXES, 2)), -1)
    levels = region_samples(memory, boxes, STRIDES).level.flatten()
    maps = [cells.permute(0, 3, 1, 2).contiguous().detach().requires_grad_() for cells in memory.maps(tokens)]
    image = torch.arange(IMAGES).repeat_interleave(BOXES)[:, None]
    rois = torch.cat((image, cxcywh_to_xyxy(boxes).flatten(0, 1) * PIXELS), -1)

    def aligned(level: int, chosen: Tensor) -> Tensor:
        return roi_align(maps[level], rois[chosen], SIDE, 1 / STRIDES[level], 2, aligned=True)

    def sorted_by_level() -> Tensor:
        out = rois.new_zeros(len(rois), DIM, SIDE, SIDE)
        for level in range(len(STRIDES)):
            chosen = (levels == level).nonzero()[:, 0]
            out = out.index_put((chosen,), aligned(level, chosen))
        return out

    def every_level() -> Tensor:
        every = torch.arange(len(rois))
        return torch.stack([(levels == level)[:, None, None, None] * aligned(level, every) for level in range(len(STRIDES))]).sum(0)

    print("boxes by level:", torch.bincount(levels, minlength=len(STRIDES)).tolist())
    print("torchvision, boxes sorted by level:", times(sorted_by_level))
    print("torchvision, every box at every level:", times(every_level))
    print("ours:", times(lambda: read_samples(memory, region_samples(memory, boxes, STRIDES))))


if __name__ == "__main__":
    main()
