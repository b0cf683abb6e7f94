"""Options that all papers share, and how a user's keywords become a paper's options. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from boxquery.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from _typeshed import DataclassInstance

    class Checked(DataclassInstance, Protocol):
        """A dataclass of options, also a baseline's."""

        def check(self) -> None: ...


#: of ``Options.matching``, besides one-to-one
STRATEGIES = ("denoising", "group", "hybrid", "one-to-many", "dense")


@dataclass(frozen=True)
class Options:
    """Published R50 values where a paper does not say otherwise.

    Attributes:
        backbone: any timm feature extractor.
        backbone_options: keyword arguments of that timm model (narrower channels, ...).
        num_queries: number of queries, the most objects per image; or one number per decoder layer, none larger than the one before:
            after a layer only the queries with the best scores are kept (docs/options.md).
        inference_layers: decoder layers that inference uses; 0: all. The first layers of a trained model are a faster one (RT-DETR).
        hidden_dim: width D of tokens and queries; a multiple of ``heads``.
        dilation: DC5, the last stage of the backbone at stride 16; of several levels, two then have that stride.
        position: of the image's cells: the paper's own, DETR's sine or learned table, or none.
        valid_ratios: what places cells and boxes on the image: the paper's, of whole cells, which moves boxes where an image's sides are no
            multiple of the strides; or exact, of pixels.
        query_position: position encoding of queries in self-attention and, where the paper adds the same, in cross-attention: the paper's
            own, a learned vector, the sine of the reference, an MLP of that sine, or none.
        relative_bias: bias in cross-attention by each cell's distances to the sides of the query's box (Lin et al. 2023, arXiv:2308.01904).
        encoder: the paper's own, or attention on the coarsest level alone and convolutions between levels (RT-DETR, arXiv:2304.08069).
        fusion_blocks, fusion_expansion: of the hybrid encoder, 3 x 3 convolutions in each fusion of two levels and their width, as a factor
            on ``hidden_dim``; RT-DETR has 3 and 1 with a ResNet-50, 3 and 0.5 with a ResNet-18.
        encoder_ffn: on each token separately, or with its neighbours by a depthwise 3 x 3 convolution (PVTv2, arXiv:2106.13797).
        matching: what teaches in training, besides each object one query, joined by "+" (docs/matching.md); not used in inference.
        denoising: approximate number of noised queries per training step, where ``matching`` has denoising (DINO, section 3.2).
        contrastive: half of the noised queries are negatives (DINO); False: there are positives alone, in five groups (DN-DETR).
        groups: where ``matching`` has group, how many of ``num_queries`` each, the ordinary one included (Group DETR).
        hybrid_queries: where ``matching`` has hybrid, how many more queries, as a multiple of ``num_queries`` (H-DETR).
        hybrid_repeats: of those, how many each object teaches.
        class_loss: the paper's own, or, for sigmoid classes, focal, varifocal ("vfl"), matchability-aware ("mal") or position-supervised.
    """

    #: values of ``query_position`` besides "paper"; the first is what the paper itself has
    query_positions: ClassVar[tuple[str, ...]] = ("learned", "sine", "sine-mlp", "none")

    backbone: str = "resnet50"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    num_queries: int | list[int] = 100
    encoder_layers: int = 6
    decoder_layers: int = 6
    inference_layers: int = 0
    hidden_dim: int = 256
    heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    dilation: bool = False
    position: Literal["paper", "sine", "learned", "none"] = "paper"
    valid_ratios: Literal["paper", "exact"] = "paper"
    query_position: Literal["paper", "learned", "sine", "sine-mlp", "none"] = "paper"
    relative_bias: bool = False
    encoder: Literal["paper", "hybrid"] = "paper"
    fusion_blocks: int = 3
    fusion_expansion: float = 1.0
    encoder_ffn: Literal["linear", "convolutional"] = "linear"
    matching: str = "one-to-one"
    denoising: int = 100
    contrastive: bool = True
    groups: int = 11
    hybrid_queries: int = 5
    hybrid_repeats: int = 6
    class_loss: Literal["paper", "focal", "vfl", "mal", "position"] = "paper"

    @property
    def strategies(self) -> frozenset[str]:
        """The parts of ``matching`` besides one-to-one."""
        return frozenset(self.matching.split("+")) - {"one-to-one"}

    @property
    def queries(self) -> int:
        """``num_queries`` of the first layer: how many a paper makes (for each pattern, where it has patterns)."""
        return self.num_queries if isinstance(self.num_queries, int) else self.num_queries[0]

    def num_queries_per_layer(self) -> list[int]:
        """Queries of every decoder layer, all patterns together."""
        numbers = [self.num_queries] * self.decoder_layers if isinstance(self.num_queries, int) else self.num_queries
        numbers = [self.queries if number == numbers[0] else min(number, self.queries) for number in numbers]
        return [number * max(getattr(self, "patterns", 1), 1) for number in numbers]

    def check(self) -> None:
        """Raise ``UserError`` for values that no model can have."""
        check_least(0, encoder_layers=self.encoder_layers, fusion_blocks=self.fusion_blocks)
        check_least(1, decoder_layers=self.decoder_layers, heads=self.heads, ffn_dim=self.ffn_dim)
        check_least(4, hidden_dim=self.hidden_dim)
        if self.hidden_dim % self.heads or self.hidden_dim % 4:
            raise UserError(f"hidden_dim={self.hidden_dim}: must be a multiple of 4 and of heads={self.heads}")
        if not 0 < self.fusion_expansion <= 4:
            raise UserError(f"fusion_expansion={self.fusion_expansion}: must be above 0 and at most 4")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout}: must be at least 0 and below 1")
        if not 0 <= self.inference_layers <= self.decoder_layers:
            raise UserError(f"inference_layers={self.inference_layers}: must be 0 (all) or at most decoder_layers={self.decoder_layers}")
        self._check_numbers()
        if self.query_position not in ("paper", *self.query_positions):
            possible = ", ".join(map(repr, ("paper", *self.query_positions)))
            raise UserError(f"query_position={self.query_position!r}: this model's queries have no reference for it; possible: {possible}")
        if self.encoder == "hybrid" and (getattr(self, "levels", 1) < 2 or self.dilation):
            raise UserError(
                "encoder='hybrid' fuses levels of halving size: possible for models that have the option levels, from levels=2 on and with "
                "dilation=False"
            )
        self._check_matching()
        if self.encoder_ffn == "convolutional" and not self.encoder_layers:
            raise UserError("encoder_ffn='convolutional' needs encoder_layers of at least 1")

    def _check_matching(self) -> None:
        if unknown := sorted(self.strategies - set(STRATEGIES)):
            raise UserError(
                f"matching={self.matching!r}: no strategy {unknown[0]!r}; known, joined by +: one-to-one, {', '.join(STRATEGIES)}"
            )
        check_least(2, groups=self.groups)
        check_least(1, hybrid_queries=self.hybrid_queries, hybrid_repeats=self.hybrid_repeats)
        if {"group", "hybrid"} <= self.strategies:
            raise UserError(f"matching={self.matching!r}: group and hybrid are two ways of having more queries; choose one")
        if "group" in self.strategies and not isinstance(self.num_queries, int):
            raise UserError(f"matching={self.matching!r}: all groups have the same number of queries: give num_queries one number")
        if (added := self.strategies & {"group", "hybrid"}) and self.query_position == "learned" != self.query_positions[0]:
            raise UserError(f"query_position='learned' needs matching without {min(added)}: it has a vector for each of num_queries alone")
        if self.denoising < 1:
            raise UserError(
                f"denoising={self.denoising}: must be at least 1; for no denoising leave it out of matching ({self.matching!r})"
            )
        if "denoising" in self.strategies and self.query_positions == ("learned",):
            raise UserError(
                f"matching={self.matching!r}: denoising needs queries whose reference can be a noised box, which this model lacks"
            )
        if "denoising" in self.strategies and self.query_position == "learned":
            raise UserError("query_position='learned' needs matching without denoising: noised queries differ in every batch")

    def _check_numbers(self) -> None:
        given, numbers = self.num_queries, [self.num_queries] if isinstance(self.num_queries, int) else self.num_queries
        if min(numbers, default=0) < 1:
            raise UserError(f"num_queries={given}: must be at least 1")
        if not isinstance(given, int) and len(given) != self.decoder_layers:
            raise UserError(f"num_queries={given}: give one number, or one for each of decoder_layers={self.decoder_layers}")
        if sorted(numbers, reverse=True) != numbers:
            raise UserError(f"num_queries={given}: a layer cannot have more queries than the one before it")


def check_least(least: int, **values: int) -> None:
    """Raise ``UserError`` for a value below ``least``."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}")


def check_normed(hidden_dim: int) -> None:
    """Raise ``UserError`` for a width that the neck's group norm cannot have."""
    if hidden_dim % 32:
        raise UserError(f"hidden_dim={hidden_dim}: must be a multiple of 32 (GroupNorm of the neck)")


def check_share(**values: float) -> None:
    """Raise ``UserError`` for a share of the image that is not at least 0 (as published) and below 1."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{name}={value}: must be a share of the image below 1, or 0 for the published initialisation")


def migrate_options(options: dict[str, Any], usual: int = 0) -> dict[str, Any]:
    """Options from before ``matching`` had denoising, when its number alone switched it on, in today's terms.

    Args:
        usual: the number that holds where ``options`` does not name it.
    """
    if not options.keys() & {"denoising", "matching"}:
        return options
    number, strategies = options.get("denoising", usual), set(options.get("matching", "one-to-one").split("+")) - {"one-to-one"}
    others = {name: value for name, value in options.items() if name not in ("denoising", "matching")}
    matching = "+".join(sorted(strategies | ({"denoising"} if number else set()))) or "one-to-one"
    return {**others, "matching": matching, **({"denoising": number} if number else {})}


T = TypeVar("T", bound="Checked")


def with_options(start: T, given: Mapping[str, Any], what: str) -> T:
    """``start`` with the given fields replaced, and checked.

    Args:
        what: begins the message of the ``UserError`` for an unknown name, which lists the known ones, a value of another type, or one that
            no model can have.
    """
    hints = get_type_hints(type(start))
    known = {f.name: hints[f.name] for f in fields(start)}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{what}: unknown option {name!r}; known: {', '.join(sorted(known))}")
        if (problem := _mismatch(value, known[name])) is not None:
            raise UserError(f"{what}: {name}={value!r}: {problem}")
    chosen = replace(start, **given)
    try:
        chosen.check()
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    return chosen


def _mismatch(value: Any, hint: Any) -> str | None:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    if hint in names:
        accepted = (int, float) if hint is float else hint
        if not isinstance(value, accepted) or (hint is not bool and isinstance(value, bool)):
            return f"must be {names[hint]}"
    elif hint == int | list[int]:
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in (value if isinstance(value, list) else [value])):
            return "must be a whole number, or a list of whole numbers"
    elif get_origin(hint) is Literal:
        if value not in get_args(hint):
            return f"must be one of {', '.join(map(repr, get_args(hint)))}"
    elif get_origin(hint) is dict and not isinstance(value, dict):
        return "must be a mapping"
    return None
