"""A detection transformer that learns where patches of its images are, and what becomes of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boxquery.errors import UserError
from boxquery.matching.patches import PatchQueries, patch_of_query
from boxquery.models.base import DetectionTransformer
from boxquery.models.interface import Model
from boxquery.parts.backbone import Backbone
from boxquery.parts.boxes import at_least_float32, cxcywh_to_xyxy
from boxquery.parts.decoder_outputs import DecoderOutputs
from boxquery.parts.output import Output
from boxquery.parts.queries import ProposalQueries
from boxquery.parts.trace import NoTrace


@dataclass(frozen=True)
class PatchOutput:
    """What a ``PatchDetection`` returns.

    Attributes:
        found: predictions of the ordinary queries.
        content: [L, B, Q, D], that these were made from.
        features: [B, P, channels] of the patches.
    """

    found: Output
    content: Tensor
    features: Tensor


class PatchDetection(Model):
    """A model of one class, "a patch", whose queries are told which patches to look for. Targets have ``patches`` [P, 3, h, w].

    A patch's feature is the mean over the last map of the model's own backbone. What ``model`` has for training with labels alone
    (denoising, further queries, a dense head, scores of proposals) rests.
    """

    has_queries: ClassVar[bool] = False

    #: weight of the reconstruction of features
    FEATURE: ClassVar[float] = 1.0

    def __init__(self, model: DetectionTransformer):
        super().__init__()
        self.model, self.config = model, model.config
        self.low_lr_patterns, self.num_queries_per_layer = model.low_lr_patterns, model.num_queries_per_layer
        options = model.config["options"]
        self.patches = PatchQueries(model.backbone.channels[-1], options["hidden_dim"], max(options.get("patterns", 1), 1))
        resting = [getattr(model.queries, name, None) for name in ("denoising", "further")] + [model.dense]
        if isinstance(model.queries, ProposalQueries):
            model.queries.evenly = True
            resting += [model.queries.memory_proj, model.queries.memory_norm, model.queries.head]
        for part in resting:
            if part is not None:
                part.requires_grad_(False)

    @property
    def backbone(self) -> Backbone:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.backbone

    def query_parameters(self) -> list[torch.nn.Parameter]:
        return self.model.query_parameters()

    def forward(
        self, images: Tensor, context: Tensor | None = None, /, *, targets: list[dict] | None = None, last_only: bool = False
    ) -> PatchOutput:
        """See ``DetectionTransformer.forward``; without patches among the targets there is nothing to look for, a ``UserError``."""
        if targets is None:
            raise UserError("patch detection needs targets with patches: its queries are told what to look for")
        features = self.features(torch.stack([target["patches"] for target in targets]))
        memory, outputs = self.model.encoder(self.model.embed_image(images, context)), DecoderOutputs(last_only)
        self.model.decode(self.patches(self.model.queries(memory, None), features), memory, outputs, None, NoTrace())
        every, alive = outputs.stacked()
        found = Output(every.logits, every.boxes, alive=alive, raw=every.raw, anchor=every.anchor, initial=every.initial)
        return PatchOutput(found, outputs.contents(), features)

    def features(self, patches: Tensor) -> Tensor:
        """Normalised pixels [B, P, 3, h, w] -> [B, P, channels]."""
        return self.model.backbone(patches.flatten(0, 1))[-1].mean((-2, -1)).unflatten(0, patches.shape[:2])

    def loss(self, out: PatchOutput, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's own, with one class, and of every layer's matched queries the reconstruction of their patch's feature ("feature")."""
        with torch.autocast(out.found.boxes.device.type, enabled=False):
            learned = self.model.criterion.learned(out.found, targets)
            total, terms = self.model.criterion.total(learned)
            feature = self.patches.loss(out.content, out.features, learned[0][1])
            return total + self.FEATURE * feature.sum(), terms | {"feature": feature}

    def postprocess(
        self,
        out: PatchOutput,
        sizes: list[tuple[int, int]],
        *,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> list[dict]:
        """The box of every query, in pixels, with the patch that it was told to look for as its label."""
        logits, boxes = at_least_float32(out.found.logits[-1], out.found.boxes[-1])
        scores, order = self.model.scores(logits)[..., 0].sort(descending=True, stable=True)
        group = patch_of_query(scores.shape[1], out.features.shape[1], self.patches.runs).to(order.device)
        extents = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype, device=boxes.device)
        corners = cxcywh_to_xyxy(boxes) * extents[:, None]
        return [
            {"scores": own, "labels": group[queries], "boxes": found[queries]}
            for own, queries, found in zip(scores, order, corners, strict=True)
        ]


def ordinary_state(state: dict[str, Any]) -> dict[str, Any]:
    """Of a ``PatchDetection``'s state what belongs to its ``model``, by the names that it has there."""
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
