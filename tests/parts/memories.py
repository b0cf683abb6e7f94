"""A memory to test parts on: two images of different size, any levels."""

import torch
from torch import Tensor

from boxquery.parts.memory import Memory, Tokens
from boxquery.parts.positions import SinePosition

DIM = 16


def memory(*shapes: tuple[int, int], padded: bool = True, dim: int = DIM, seed: int = 0) -> Memory:
    """float64 maps of the given sizes (fractions of a 64 x 96 image), the second image 5/8 as high and 2/3 as wide."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, dim, h, w, dtype=torch.float64, generator=generator) for h, w in shapes]
    return Tokens(SinePosition(dim, offset=0.5), dim)(maps, pixel_mask() if padded else None, (64, 96))


def pixel_mask() -> Tensor:
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    mask[1, :, 64:] = True
    return mask
