"""What training, evaluation and saving ask of a model: a transformer of the family, or a reference that it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from boxquery.parts.backbone import Backbone


class Model(nn.Module, ABC):
    """Images in, answers out, and a loss between them. Whoever trains, evaluates, saves or loads knows no more than this.

    Attributes:
        backbone: its parameters have their own rate, and can be frozen.
        config: what ``create_model`` was called with; enough to build the model again.
        low_lr_patterns: substrings of the names of parameters that the paper trains at a lower rate.
        num_queries_per_layer: queries of each decoder layer, training-only ones not counted; of a baseline its maximum number of
            detections per image. Set by ``create_model``.
        has_queries: whether ``forward`` has a ``trace`` of what each query did, which is what ``explain`` reads.
    """

    backbone: Backbone
    config: dict[str, Any]
    low_lr_patterns: tuple[str, ...] = ()
    num_queries_per_layer: tuple[int, ...] = ()
    has_queries: ClassVar[bool] = True

    @abstractmethod
    def forward(self, images: Tensor, mask: Tensor | None = None, *, targets: list[dict] | None = None, last_only: bool = False) -> Any:
        """images [B, 3, H, W] normalised floats, mask [B, H, W] bool (True = padding) or None -> what ``loss`` and ``postprocess`` take.

        The result has ``logits`` [..., C] (or C + 1 with a column that is no class, the last), in which a class is ruled out by -inf.

        Args:
            targets: per image ``{"labels": int64 [N], "boxes": [N, 4] cxcywh in [0, 1] of the unpadded extent}``.
            last_only: only the final answers are asked for.
        """

    @abstractmethod
    def loss(self, out: Any, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term by name: a number, or [L], one a layer. Raises ``UserError`` if it is not finite."""

    @abstractmethod
    def postprocess(
        self, out: Any, sizes: list[tuple[int, int]], *, top_k: int | None = None, one_label: bool = False, nms: float | None = None
    ) -> list[dict]:
        """Answers in pixels: per image ``{"scores" [K], "labels" [K], "boxes" [K, 4] xyxy}``, best first.

        Args:
            sizes: (height, width) of the original images.
            top_k: how many at most; None: the paper's own number.
            one_label: each query, anchor or proposal answers with its best class only.
            nms: of two answers of a class that overlap by more than this IoU the better stays; 1: both; None: as the paper has it.
        """

    def freeze(self) -> None:
        """Stem, first stage and batch norm of the backbone keep their (trained) values, as published."""
        self.backbone.freeze()
        self.config["frozen"] = True

    def query_parameters(self) -> Sequence[nn.Parameter]:
        """What is learned a query (places, contents): each gets a gradient from its own few objects only, and may have its own rate."""
        return ()

    def fit_to_data(self, sizes: np.ndarray) -> dict[str, Any]:
        """Called once before the first step with the widths and heights [N, 2] of the training objects, in pixels of the model's input.

        Returns the options that the model set from them, as they have to be written down to build it again. None in the family.
        """
        return {}
