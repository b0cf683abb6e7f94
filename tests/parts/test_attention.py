"""The attentions, against plain loops, PyTorch's own attention and finite differences."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from boxquery.parts.attention import dense
from boxquery.parts.attention.deformable import DeformableAttention, multi_scale_sample
from boxquery.parts.attention.dense import Attention, DenseAttention, SelfAttention, attend
from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.layers import reset_transformer
from boxquery.parts.trace import LayerTrace
from tests.parts.memories import DIM, memory

SHAPES = ((4, 6), (2, 3))
HEADS, POINTS, QUERIES = 2, 3, 5
#: of each level
EQUAL, DIFFERENT = (POINTS, POINTS), (2, 4)


def slow_sample(value: Tensor, locations: Tensor, weights: Tensor, points: tuple[int, ...], discrete: bool = False) -> Tensor:
    """The definition, one number at a time: bilinear between cell centres, zero outside; or the cell of the nearest number."""
    out = torch.zeros(*weights.shape[:3], value.shape[-1], dtype=value.dtype)
    for b, q, h, p in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        level = next(i for i in range(len(points)) if p < sum(points[: i + 1]))
        height, width = SHAPES[level]
        start = sum(r * c for r, c in SHAPES[:level])
        x, y = (locations[b, q, h, p] * torch.tensor([width, height])).tolist()
        if discrete:
            row, column = (min(max(math.floor(at + 0.5), 0), last - 1) for at, last in ((y, height), (x, width)))
            out[b, q, h] += weights[b, q, h, p] * value[b, start + row * width + column, h]
            continue
        x, y = x - 0.5, y - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[b, q, h] += weights[b, q, h, p] * share * value[b, start + row * width + column, h]
    return out.flatten(2)


def sampling(seed: int = 0, low: float = -0.3, high: float = 1.3, points: tuple[int, ...] = EQUAL) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations (also outside the map), weights."""
    generator = torch.Generator().manual_seed(seed)
    cells = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, cells, HEADS, 4, dtype=torch.float64, generator=generator)
    shape = (2, QUERIES, HEADS, sum(points))
    locations = low + (high - low) * torch.rand(*shape, 2, dtype=torch.float64, generator=generator)
    weights = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return value, locations, weights


@pytest.mark.parametrize("discrete", [False, True], ids=["bilinear", "discrete"])
@pytest.mark.parametrize("points", [EQUAL, DIFFERENT], ids=["equal", "different"])
def test_sample_is_its_definition(points, discrete):
    value, locations, weights = sampling(points=points)
    assert bool(((locations < 0) | (locations > 1)).any())
    out = multi_scale_sample(value, SHAPES, locations, weights, points, discrete)
    torch.testing.assert_close(out, slow_sample(value, locations, weights, points, discrete))


def test_sample_at_a_centre_is_that_cell():
    value, _, _ = sampling()
    locations = torch.tensor([(2 + 0.5) / 6, (1 + 0.5) / 4], dtype=torch.float64).expand(2, 1, HEADS, 2, 2)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 1, HEADS, 2)
    torch.testing.assert_close(multi_scale_sample(value, SHAPES, locations, weights, (1, 1))[:, 0], value[:, 1 * 6 + 2].flatten(1))


def test_sample_far_outside_is_zero():
    value, locations, weights = sampling(low=3.0, high=5.0)
    assert not multi_scale_sample(value, SHAPES, locations, weights, EQUAL).any()


def test_half_precision_rounds_what_is_sampled_not_where():
    """A map of 100 columns, every other one 1: a location rounded to bf16 lies up to a tenth of a cell away."""
    value = (torch.arange(100) % 2).view(1, -1, 1, 1).float()
    locations = torch.stack((torch.linspace(0.8, 0.95, 40), torch.full((40,), 0.5)), -1).view(1, -1, 1, 1, 2)
    weights = torch.ones(1, 40, 1, 1)
    expected = multi_scale_sample(value, ((1, 100),), locations, weights, (1,))
    half = multi_scale_sample(value.bfloat16(), ((1, 100),), locations, weights.bfloat16(), (1,))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=2**-8, rtol=2**-8)


def test_sample_gradients():
    value, locations, weights = sampling(seed=3)
    # finite differences must not cross a cell's centre line, where bilinear sampling bends
    sizes = torch.tensor([(w, h) for h, w in SHAPES], dtype=torch.float64).repeat_interleave(POINTS, 0)
    cells = locations * sizes - 0.5
    locations = (cells.floor() + 0.2 + 0.6 * (cells - cells.floor()) + 0.5) / sizes
    given = [t.requires_grad_() for t in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: multi_scale_sample(v, SHAPES, p, w, EQUAL), given, fast_mode=True)


def deformable_attention(points: tuple[int, ...] = EQUAL, **options) -> DeformableAttention:
    torch.manual_seed(0)
    attention = DeformableAttention(DIM, HEADS, len(SHAPES), points, **options)
    reset_transformer(attention)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return attention.double()


def reference(numbers: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.2 + 0.6 * torch.rand(2, QUERIES, numbers, dtype=torch.float64, generator=generator)


def content(seed: int = 1) -> Tensor:
    return torch.randn(2, QUERIES, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
def test_deformable_attention_gradients(numbers):
    attention, seen = deformable_attention(), memory(*SHAPES)
    query, tokens, at, position = content(), seen.tokens.clone(), reference(numbers), content(2)
    given = [t.requires_grad_() for t in (query, tokens, at, position)]

    def run(query: Tensor, tokens: Tensor, at: Tensor, position: Tensor) -> Tensor:
        return attention(query, QueryGeometry(position=position, reference=at), seen.with_tokens(tokens))

    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize(
    ("points", "options"),
    [(EQUAL, {}), (DIFFERENT, {"offset_scale": 0.7}), (DIFFERENT, {"discrete": True}), (EQUAL, {"project": False})],
    ids=["equal", "different", "discrete", "unprojected"],
)
def test_deformable_attention_is_its_definition(numbers, points, options):
    """Offsets count in cells around a point, in a share of its size over the level's points around a box; one softmax over all points."""
    attention, seen, query, at = deformable_attention(points, **options), memory(*SHAPES), content(), reference(numbers)
    trace = LayerTrace(memory=seen)
    out = attention(query, QueryGeometry(reference=at), seen, trace)
    offsets = attention.sampling_offsets(query).reshape(2, QUERIES, HEADS, sum(points), 2)
    weights = attention.attention_weights(query).reshape(2, QUERIES, HEADS, -1).softmax(-1)
    locations = torch.empty_like(offsets)
    for b, q, h, p in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        level = int(p >= points[0])
        ratio, (height, width) = seen.valid_ratios[b, level], SHAPES[level]
        share = options.get("offset_scale", 0.5) / points[level]
        step = torch.tensor([1 / width, 1 / height]) if numbers == 2 else at[b, q, 2:] * ratio * share
        locations[b, q, h, p] = at[b, q, :2] * ratio + offsets[b, q, h, p] * step
        inner = p - level * points[0]
        read = locations[b, q, h, p]
        if "discrete" in options:  # the trace has the centre of the cell that was read
            size = torch.tensor([width, height])
            read = ((read * size + 0.5).floor().clamp(torch.zeros(2), size - 1) + 0.5) / size
        torch.testing.assert_close(trace.locations[b, q, h, level, inner], read)
        assert trace.weights[b, q, h, level, inner] == weights[b, q, h, p]
    value = attention.value_proj(seen.tokens).masked_fill(seen.mask[..., None], 0).unflatten(-1, (HEADS, -1))
    torch.testing.assert_close(trace.weights.sum((-2, -1)), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(out, attention.out_proj(slow_sample(value, locations, weights, points, options.get("discrete", False))))


def test_discrete_offsets_are_not_trained():
    """No gradient passes the choice of a cell."""
    attention = deformable_attention(discrete=True)
    attention(content(), QueryGeometry(reference=reference(4)), memory(*SHAPES)).sum().backward()
    assert {name for name, p in attention.named_parameters() if p.grad is None} == {"sampling_offsets.weight", "sampling_offsets.bias"}


def test_deformable_attention_starts_as_published():
    """The points of head h lie in the h-th of 8 directions, point p at p cells; all weights are equal."""
    attention = DeformableAttention(64, 8, 2, POINTS)
    reset_transformer(attention)
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    offsets = attention.sampling_offsets.bias.view(8, 2, POINTS, 2)
    torch.testing.assert_close(offsets[0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(offsets[3, 0], torch.tensor([[-1.0, 1], [-2, 2], [-3, 3]]), atol=1e-6, rtol=0)


def torch_attention(ours: DenseAttention | SelfAttention, heads: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(DIM, heads, batch_first=True).double()
    packed = ours.attention
    with torch.no_grad():
        theirs.in_proj_weight.copy_(packed.in_proj.weight)
        theirs.in_proj_bias.copy_(packed.in_proj.bias)
        theirs.out_proj.weight.copy_(packed.out_proj.weight)
        theirs.out_proj.bias.copy_(packed.out_proj.bias)
    return theirs


def noisy(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.double()


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_dense_attention_is_multi_head_attention(padded, with_bias):
    heads = 4
    attention, seen = noisy(DenseAttention(DIM, heads)), memory(*SHAPES, padded=padded)
    query, position = content(), content(2)
    generator = torch.Generator().manual_seed(4)
    bias = torch.randn(2, heads, QUERIES, seen.tokens.shape[1], dtype=torch.float64, generator=generator) if with_bias else None
    trace = LayerTrace(memory=seen)
    out = attention(query, QueryGeometry(position=position, bias=bias), seen, trace)
    padding = None if seen.mask is None else torch.zeros(seen.mask.shape, dtype=torch.float64).masked_fill(seen.mask, -math.inf)
    expected, weights = torch_attention(attention, heads)(
        query + position, seen.tokens + seen.position, seen.tokens, key_padding_mask=padding,
        attn_mask=None if bias is None else bias.flatten(0, 1), average_attn_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.cat([a.flatten(-2) for a in trace.attention], -1), weights)
    torch.testing.assert_close(attention(query, QueryGeometry(position=position, bias=bias), seen), out)


def test_dense_self_attention_of_the_memory():
    """The encoder's case: one projection serves queries and keys."""
    attention, seen = noisy(DenseAttention(DIM, 4)), memory(*SHAPES)
    keys = seen.tokens + seen.position
    expected, _ = torch_attention(attention, 4)(keys, keys, seen.tokens, key_padding_mask=seen.mask)
    torch.testing.assert_close(attention(seen.tokens, QueryGeometry(position=seen.position), seen), expected)


def test_bias_is_shared_by_heads_and_images_if_it_is_one():
    attention, seen, query = noisy(DenseAttention(DIM, 4)), memory(*SHAPES), content()
    bias = torch.randn(1, 1, QUERIES, seen.tokens.shape[1], dtype=torch.float64)
    every = bias.expand(2, 4, -1, -1)
    torch.testing.assert_close(attention(query, QueryGeometry(bias=bias), seen), attention(query, QueryGeometry(bias=every), seen))


@pytest.mark.parametrize("per_image", [False, True])
def test_self_attention_with_a_mask(per_image):
    attention, query, position = noisy(SelfAttention(DIM, 4)), content(), content(2)
    mask = torch.rand(2, QUERIES, QUERIES, generator=torch.Generator().manual_seed(5)) < 0.4
    mask[:, range(QUERIES), range(QUERIES)] = False
    if not per_image:
        mask = mask[:1].expand(2, -1, -1)
    out = attention(query, QueryGeometry(position=position, self_mask=mask if per_image else mask[0]))
    where = query + position
    expected, _ = torch_attention(attention, 4)(where, where, query, attn_mask=mask.repeat_interleave(4, 0))
    torch.testing.assert_close(out, expected)


def test_self_position_replaces_position():
    attention, query, position = noisy(SelfAttention(DIM, 4)), content(), content(2)
    plain = attention(query, QueryGeometry(position=position))
    torch.testing.assert_close(attention(query, QueryGeometry(position=content(7), self_position=position)), plain)


def test_padding_is_not_attended_to():
    seen, query = memory(*SHAPES), content()
    changed = seen.with_tokens(torch.where(seen.mask[..., None], 100.0, seen.tokens))
    moved = replace(changed, position=torch.where(seen.mask[..., None], -100.0, seen.position))
    dense, sampled, geometry = noisy(DenseAttention(DIM, 4)), deformable_attention(), QueryGeometry(reference=reference(4))
    torch.testing.assert_close(dense(query, geometry, seen), dense(query, geometry, moved))
    torch.testing.assert_close(sampled(query, geometry, seen), sampled(query, geometry, moved))


@pytest.mark.parametrize("kind", [None, torch.bool, torch.bfloat16])
def test_attention_in_bf16_is_that_of_float64(kind, monkeypatch):
    """With gradients and without, on either side of the number of pairs up to which it is trained in float32."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).to(torch.bfloat16) for n in (5, 7, 7))
    bias = None if kind is None else torch.randn(2, 1, 5, 7, generator=generator)
    bias = bias > -1 if kind == torch.bool else bias
    exact_bias = bias if kind in (None, torch.bool) else bias.to(kind).double()
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    wanted, _ = attend(*exact, exact_bias, 0.0, False)
    wanted.sum().backward()
    for pairs in (0, 35):
        monkeypatch.setattr(dense, "SMALL", pairs)
        for trained in (False, True):
            own = [x.clone().requires_grad_(trained) for x in (q, k, v)]
            with torch.autocast("cpu", torch.bfloat16):
                out, _ = attend(*own, bias if kind is None or kind == torch.bool else bias.to(kind), 0.0, False)
            assert out.dtype == torch.bfloat16
            torch.testing.assert_close(out.double(), wanted, atol=0.03, rtol=0.02)
            if trained:
                out.sum().backward()
                for x, reference in zip(own, exact, strict=True):
                    torch.testing.assert_close(x.grad.double(), reference.grad, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_normed_queries_and_keys_are_compared_by_their_angle():
    """However large they are, no logit passes the factor; at first what is alike attends to each other."""
    own = Attention(DIM, 2, qk_norm=True).double()
    x = torch.randn(1, 7, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out, weights = own(x, x.clone(), x, weights=True)
    for query, key in ((1000 * x, x), (x, 1000 * x)):
        larger, same = own(query, key, x, weights=True)
        torch.testing.assert_close(same, weights)
        torch.testing.assert_close(larger, out)
    assert torch.equal(weights.argmax(-1), torch.arange(7).expand(1, 2, 7))
    assert own.norm is not None
    own.norm.log_factor.zero_()
    weights = own(x, x.clone(), x, weights=True)[1]
    assert float((weights.amax(-1) / weights.amin(-1)).max()) <= math.exp(2)
    reset_transformer(own)
    assert torch.equal(*own.in_proj.weight.chunk(3)[:2])
