"""Image -> feature maps, by timm; and the neck that brings them to one width."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import timm
import torch
from timm.layers import Format, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.errors import UserError, first_line
from boxquery.parts.convolution import Convolution, as_convolutions, fold_norms
from boxquery.parts.weights import BackboneWeights, fitted

#: names of the shallow blocks that the family freezes once they hold trained weights (DETR, section 4: stem and first stage).
SHALLOW = ("conv1", "bn1", "layer1", "stem", "stages_0", "stages.0")


class Backbone(nn.Module):
    """A timm feature extractor.

    Args:
        name: any timm model that supports ``features_only``.
        maps: how many of its last maps to return.
        weights: what to start from; None: random.
        dilation: DC5, the last stage keeps the resolution of the one before (stride 16 instead of 32).
        options: keyword arguments of the timm model itself, for example narrower ``channels``; and, of a ResNet, ``first_shortcut``: a
            1 x 1 convolution and a norm beside the first block, as RT-DETR's ResNet-18 and -34 have. It starts as the identity.
    """

    def __init__(self, name: str, maps: int, weights: BackboneWeights | None = None, dilation: bool = False, options: dict | None = None):
        super().__init__()
        options = dict(options or {})
        shortcut = options.pop("first_shortcut", False)
        self.body = _create(name, maps, dilation, options)
        self.name = name
        #: modules of the file of weights that are of no use here, as its classifier
        self.left_out = [] if weights is None else _load(self.body, name, weights)
        if shortcut:
            _add_first_shortcut(self.body, name)
        # up to a sixth faster on CPUs, except where convolutions are dilated, which it makes slower (docs/LOG.md)
        self.channels_last = not dilation
        as_convolutions(self.body)
        self.body.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        info: Any = self.body.feature_info
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
        self.features_last = getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> maps [B, C, h, w], the finest first."""
        try:
            order = torch.channels_last if self.channels_last else torch.contiguous_format
            maps = self.body(images.contiguous(memory_format=order))
        except AssertionError as reason:  # how timm's transformers refuse a size
            raise UserError(
                f"backbone {self.name!r} cannot process images of {images.shape[-2]} x {images.shape[-1]} pixels: {reason}; "
                "its backbone_options may allow it (dynamic_img_size or strict_img_size), a convolutional backbone always does"
            ) from reason
        return [m.permute(0, 3, 1, 2) for m in maps] if self.features_last else maps

    def freeze(self) -> None:
        """Stem and first stage take no gradient and every batch norm becomes a fixed affine map, as published for trained weights."""
        self.body = freeze_batch_norm_2d(self.body)
        fold_norms(self.body)
        for name, parameter in self.body.named_parameters():
            if name.startswith(SHALLOW):
                parameter.requires_grad_(False)


def _create(name: str, maps: int, dilation: bool, options: dict):
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]) or "timm.list_models() lists them"
        raise UserError(f"backbone {name!r} is not a timm model; similar: {close}")
    stride = {"output_stride": 16} if dilation else {}
    last = tuple(range(-maps, 0))
    try:
        return timm.create_model(name, features_only=True, out_indices=last, **stride, **options)
    except IndexError as reason:
        raise UserError(f"backbone {name!r} has fewer than {maps} maps: choose another, or fewer levels") from reason
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as reason:
        hint = "; dilation=True needs a backbone whose output_stride can be chosen, as ResNets have" if dilation else ""
        raise UserError(f"backbone {name!r} cannot be built as a feature extractor: {first_line(reason)}{hint}") from reason


def _add_first_shortcut(body: Any, name: str) -> None:
    """Raises ``UserError`` for a backbone that is no ResNet, or whose first block has one already."""
    first = body.layer1[0] if hasattr(body, "layer1") else None
    if first is None or hasattr(first, "conv3"):
        raise UserError(
            f"backbone {name!r} cannot have backbone_options first_shortcut: for ResNets of basic blocks (resnet18d, resnet34d)"
        )
    channels, out = first.conv1.in_channels, first.conv2.out_channels
    if first.downsample is not None:
        raise UserError(
            f"backbone {name!r} cannot have backbone_options first_shortcut: its first block has {channels} channels before "
            f"and {out} after it, so it has a shortcut already; make channels[0] {channels}"
        )
    # with a place for pooling, as timm's others have
    convolution = nn.Conv2d(channels, channels, 1, bias=False)
    first.downsample = nn.Sequential(nn.Identity(), convolution, nn.BatchNorm2d(channels))
    nn.init.dirac_(convolution.weight)


def _load(body: nn.Module, name: str, weights: BackboneWeights) -> list[str]:
    """Fill a body; returns the modules of the file that it has no use for. Raises ``UserError`` where they do not fit each other."""
    tensors, left = fitted(weights.tensors(), body, name, weights.file)
    body.load_state_dict(tensors, strict=False)  # a count of batches may be missing, which nothing here uses
    return left


class Neck(nn.Module):
    """Every map to ``dim`` features by a 1x1 convolution; extra levels by 3x3 convolutions of stride 2 on the last raw map.

    Args:
        norm: None as in DETR; "group": GroupNorm(32), and a Xavier-uniform start with zero bias (Deformable DETR, appendix A.2); "batch":
            batch norm after convolutions without bias (RT-DETR).
    """

    def __init__(self, channels: Sequence[int], dim: int, extra: int = 0, norm: Literal["group", "batch"] | None = None):
        super().__init__()
        bias = norm != "batch"
        convolutions = [Convolution(c, dim, 1, bias=bias) for c in channels]
        for level in range(extra):
            convolutions.append(Convolution(channels[-1] if level == 0 else dim, dim, 3, stride=2, padding=1, bias=bias))
        norms = {"group": lambda: [nn.GroupNorm(32, dim)], "batch": lambda: [nn.BatchNorm2d(dim)]}
        self.projections = nn.ModuleList(nn.Sequential(c, *(norms[norm]() if norm else ())) for c in convolutions)
        self.inputs = len(channels)
        for convolution in convolutions if norm == "group" else ():
            nn.init.xavier_uniform_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        out = [project(m) for project, m in zip(self.projections, maps, strict=False)]
        last = maps[-1]
        for project in self.projections[self.inputs :]:
            last = project(last)
            out.append(last)
        return out


class FeaturePyramid(Neck):
    """Every map to ``dim`` features and added, enlarged, to the next finer one; then a 3 x 3 convolution each (FPN, Lin et al. 2017,
    arXiv:1612.03144, section 3).

    Args:
        coarser: further maps, each by a ReLU and a 3 x 3 convolution of stride 2 on the one before (FCOS, Tian et al. 2019,
            arXiv:1904.01355, section 3.2).
        finest: the finest map alone becomes an output, by a further 1 x 1 convolution (PETR).
    """

    def __init__(self, channels: Sequence[int], dim: int, *, coarser: int = 0, finest: bool = False):
        super().__init__(channels, dim)
        self.outputs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in channels[: 1 if finest else None])
        self.coarser = nn.ModuleList(nn.Conv2d(dim, dim, 3, stride=2, padding=1) for _ in range(coarser))
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d):
                assert convolution.bias is not None
                nn.init.kaiming_uniform_(convolution.weight, a=1)
                nn.init.zeros_(convolution.bias)
        self.last = Convolution(dim, dim, 1) if finest else nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        out = super().forward(maps)
        for coarse, fine in pairwise(reversed(range(len(out)))):
            out[fine] = out[fine] + F.interpolate(out[coarse], size=out[fine].shape[-2:])
        out = [convolution(m) for convolution, m in zip(self.outputs, out, strict=False)]
        for shrink in self.coarser:
            out.append(shrink(out[-1].relu()))
        return [self.last(m) for m in out]
