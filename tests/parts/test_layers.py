"""Layers with norms after and before, against PyTorch's own transformer (which knows no positions)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from boxquery.parts.attention.dense import DenseAttention, SelfAttention
from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.layers import DecoderLayer, Encoder, EncoderLayer, FeedForward, reset_transformer
from boxquery.parts.memory import Memory
from tests.parts.memories import DIM, memory

HEADS, FFN = 4, 24


def unplaced() -> Memory:
    """A memory whose positions are zero."""
    seen = memory((4, 6))
    return replace(seen, position=torch.zeros_like(seen.position))


def random(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.double().eval()


def fill(theirs: nn.Module, ours: nn.Module, names: dict[str, str]) -> None:
    """Copy our weights under their names; all of them."""
    own = dict(ours.named_parameters())
    new = {}
    for key in theirs.state_dict():
        stem = next(a for a in sorted(names, key=len, reverse=True) if key.startswith(a))
        new[key] = own.pop(names[stem] + key.removeprefix(stem).replace("in_proj_", "in_proj."))
    assert not own
    theirs.load_state_dict(new)


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_encoder(pre_norm):
    layers = [EncoderLayer(DenseAttention(DIM, HEADS), FeedForward(DIM, FFN), DIM, 0.0, pre_norm) for _ in range(2)]
    ours = random(Encoder(layers, nn.LayerNorm(DIM) if pre_norm else None))
    layer = nn.TransformerEncoderLayer(DIM, HEADS, FFN, 0.0, batch_first=True, norm_first=pre_norm)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(DIM) if pre_norm else None, enable_nested_tensor=False).double().train()
    names = {"norm": "norm"}
    for i in range(2):
        at = f"layers.{i}."
        names |= {f"{at}self_attn": f"{at}read.attention", f"{at}linear": f"{at}ffn.linear"}
        names |= {f"{at}norm1": f"{at}read_residual.norm", f"{at}norm2": f"{at}ffn_residual.norm"}
    fill(theirs, ours, names)
    seen = unplaced()
    out = ours(seen)
    expected = theirs(seen.tokens, src_key_padding_mask=seen.mask)
    torch.testing.assert_close(out.tokens[~seen.mask], expected[~seen.mask])
    assert out.shapes == seen.shapes


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_decoder_layer(pre_norm):
    ours = random(DecoderLayer(SelfAttention(DIM, HEADS), DenseAttention(DIM, HEADS), FeedForward(DIM, FFN), DIM, 0.0, pre_norm))
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, FFN, 0.0, batch_first=True, norm_first=pre_norm).double().train()
    names = {"self_attn": "self_attention.attention", "multihead_attn": "read.attention", "linear": "ffn.linear"}
    names |= {"norm1": "self_residual.norm", "norm2": "read_residual.norm", "norm3": "ffn_residual.norm"}
    fill(theirs, ours, names)
    seen, content = unplaced(), torch.randn(2, 5, DIM, dtype=torch.float64)
    out = ours(content, QueryGeometry(), seen)
    torch.testing.assert_close(out, theirs(content, seen.tokens, memory_key_padding_mask=seen.mask))


def test_initialisation_packs_the_projections():
    """Xavier-uniform, the packed [3D, D] matrix as one; biases of attention zero."""
    torch.manual_seed(0)
    layer = EncoderLayer(DenseAttention(64, 4), FeedForward(64, 32), 64)
    reset_transformer(layer)

    def bound(weight: Tensor) -> float:
        return (6 / sum(weight.shape)) ** 0.5

    for name, weight in layer.named_parameters():
        if weight.dim() > 1:
            assert 0.95 * bound(weight) < weight.abs().max().item() <= bound(weight), name
    assert not layer.read.attention.in_proj.bias.any()
    assert not layer.read.attention.out_proj.bias.any()
