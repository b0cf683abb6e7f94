"""Convolutions inside the transformer: what affects a cell, and that padding does not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from boxquery.models.builders import encoder, encoder_layers, hybrid
from boxquery.models.options import Options
from boxquery.parts.hybrid import ConvBlock, HybridEncoder, RepVGGBlock
from boxquery.parts.layers import ConvolutionalFeedForward, Encoder, FeedForward
from boxquery.parts.memory import Memory

DIM = 16


def memory(shapes: list[tuple[int, int]], valid: list[tuple[int, int]] | None = None, fill: float = 100.0) -> Memory:
    """One image with the same random cells whatever is padded around them; padding holds ``fill``."""
    tokens, masks, ratios = [], [], []
    for level, (h, w) in enumerate(shapes):
        rows, columns = (h, w) if valid is None else valid[level]
        cells = torch.full((h, w, DIM), fill, dtype=torch.float64)
        cells[:rows, :columns] = torch.randn(rows, columns, DIM, generator=torch.Generator().manual_seed(level), dtype=torch.float64)
        mask = torch.ones(h, w, dtype=torch.bool)
        mask[:rows, :columns] = False
        tokens.append(cells.flatten(0, 1))
        masks.append(mask.flatten())
        ratios.append((columns / w, rows / h))
    every = torch.cat(tokens)[None]
    return Memory(
        tokens=every,
        position=None,
        mask=torch.cat(masks)[None],
        shapes=tuple(shapes),
        valid_ratios=torch.tensor([ratios], dtype=torch.float64),
        extents=torch.tensor([[64.0, 64.0]], dtype=torch.float64),
    )


def shaken(part: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    part = part.double().eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return part


def made(**options) -> Encoder:
    o = replace(Options(hidden_dim=DIM, heads=2, ffn_dim=24, dropout=0.0, encoder_layers=2), **options)
    if o.encoder == "hybrid":
        o.__dict__["levels"] = 3
    return shaken(encoder(o))


def published(project: int | None = None) -> Encoder:
    """RT-DETR's own blocks, with batch norm that has seen something."""
    o = replace(Options(hidden_dim=DIM, heads=2, ffn_dim=24, dropout=0.0, encoder_layers=1, fusion_expansion=0.5))
    o.__dict__["levels"] = 3
    last = None if project is None else lambda: ConvBlock(DIM, project, 1, activation=nn.Identity)
    part = shaken(hybrid(o, encoder_layers(o, activation=nn.GELU), published=True, project=last))
    for module in part.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return part


@pytest.mark.parametrize(
    "part",
    [made(encoder="hybrid"), made(encoder_ffn="convolutional"), published(), published(project=8)],
    ids=["hybrid", "convolutional", "published", "projected"],
)
@torch.no_grad()
def test_padding_around_an_image_changes_nothing(part):
    """The same cells in a larger map, with anything beside them, to the last digits; odd sizes too."""
    small, large = [(9, 7), (5, 4), (3, 2)], [(14, 16), (7, 8), (4, 4)]
    alone = part(memory(small))
    for fill in (100.0, -3.0):
        padded = part(memory(large, small, fill))
        for a, b, (h, w) in zip(alone.maps(alone.tokens), padded.maps(padded.tokens), small, strict=True):
            torch.testing.assert_close(b[:, :h, :w], a, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_convolutional_network_starts_as_the_linear_one_and_then_uses_the_neighbours():
    torch.manual_seed(0)
    plain, mixed = FeedForward(DIM, 24).double(), ConvolutionalFeedForward(DIM, 24).double()
    mixed.load_state_dict(mixed.state_dict() | plain.state_dict())
    m = memory([(5, 6), (3, 3)])
    torch.testing.assert_close(mixed(m.tokens, m), plain(m.tokens, m))
    shaken(mixed)
    changed = m.tokens.clone()
    changed[0, 2 * 6 + 3] += 1.0
    moved = (mixed(changed, m.with_tokens(changed)) - mixed(m.tokens, m)).abs().sum(-1)[0] > 1e-9
    fine, coarse = m.maps(moved[None])
    assert fine[0].nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3, 4)]
    assert not coarse.any()


@torch.no_grad()
def test_the_hybrid_attends_on_the_coarsest_level_alone():
    """Without its fusions (their last maps at zero) finer levels stay what the fusions' constants are; with them all know all."""
    part = made(encoder="hybrid")
    assert isinstance(part, HybridEncoder)
    lengths: list[int] = []
    for layer in part.layers:
        layer.read.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
    m = memory([(8, 8), (4, 4), (2, 2)])
    out = part(m)
    assert lengths == [4, 4]
    changed = m.tokens.clone()
    changed[0, -1] += 1.0  # a coarsest cell: every cell of every level hears of it
    assert bool(((part(m.with_tokens(changed)).tokens - out.tokens).abs().sum(-1) > 1e-9).all())
    changed = m.tokens.clone()
    changed[0, 0] += 1.0  # a finest cell: near ones only
    moved = (part(m.with_tokens(changed)).tokens - out.tokens).abs().sum(-1) > 1e-9
    assert bool(moved[0, 0])
    assert not bool(moved[0, 63])


def test_gradients():
    torch.manual_seed(0)
    part = made(encoder="hybrid", encoder_layers=1)
    m = memory([(3, 4), (2, 2), (1, 1)], [(3, 3), (2, 2), (1, 1)])
    tokens = m.tokens.clone().clamp(-2, 2).requires_grad_()
    seen = ~m.mask[0]
    assert torch.autograd.gradcheck(lambda t: part(m.with_tokens(t)).tokens[:, seen], (tokens,), fast_mode=True)


@torch.no_grad()
def test_a_repvgg_block_is_one_convolution_in_inference():
    """Both kernels scaled by their norms and added, the 1 x 1 one in the middle (RepVGG, section 3.3)."""
    block = shaken(RepVGGBlock(4))
    kernel, bias = torch.zeros(4, 4, 3, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for convolution, norm, _ in (block.wide, block.narrow):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        kernel += nn.functional.pad(convolution.weight, [1 - convolution.padding[0]] * 4) * scale[:, None, None, None]
        bias += norm.bias - norm.running_mean * scale
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), nn.functional.silu(nn.functional.conv2d(x, kernel, bias, padding=1)))
