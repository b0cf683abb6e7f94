"""What training, evaluation and saving need of a model: a transformer of the family, or a baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from boxquery.parts.backbone import Backbone


class Model(nn.Module, ABC):
    """Images in, predictions out, and a loss: all that training, evaluation, saving and loading use of a model.

    Attributes:
        task: boxes in images, or 3-D boxes in scenes of several cameras.
        backbone: its parameters have their own rate, and can be frozen.
        config: what ``create_model`` was called with; enough to build the model again.
        low_lr_patterns: substrings of the names of parameters that the paper trains at a lower rate.
        num_queries_per_layer: queries of each decoder layer, training-only ones not counted; of a baseline its maximum number of
            detections per image. Set by ``create_model``.
        has_queries: whether ``forward`` has a ``trace`` of what each query did, which ``explain`` uses.
    """

    task: ClassVar[Literal["boxes", "boxes3d"]] = "boxes"
    backbone: Backbone
    config: dict[str, Any]
    low_lr_patterns: tuple[str, ...] = ()
    num_queries_per_layer: tuple[int, ...] = ()
    has_queries: ClassVar[bool] = True

    @abstractmethod
    def forward(self, images: Tensor, context: Tensor | None, /, *, targets: list[dict] | None = None, last_only: bool = False) -> Any:
        """Normalised images and what belongs to them -> what ``loss`` and ``postprocess`` take.

        Of task "boxes" these are images [B, 3, H, W] and a mask [B, H, W] bool (True = padding) or None; of task "boxes3d" images
        [B, V, 3, H, W] of V cameras and their ``lidar2img`` [B, V, 4, 4] (``boxquery.data.scenes.loading``).

        The result has ``logits`` [..., C] (or C + 1 with a column that is no class, the last), in which a class is ruled out by -inf.

        Args:
            targets: per image ``{"labels": int64 [N], "boxes": [N, 4] cxcywh in [0, 1] of the unpadded extent}``; of task "boxes3d" boxes
                [N, 9] as in ``boxquery.boxes3d``.
            last_only: only the final predictions are needed.
        """

    @abstractmethod
    def loss(self, out: Any, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term by name: [], or [L], one per layer. Raises ``UserError`` if it is not finite."""

    @abstractmethod
    def postprocess(
        self, out: Any, sizes: list[tuple[int, int]], *, top_k: int | None = None, one_label: bool = False, nms: float | None = None
    ) -> list[dict]:
        """Detections in pixels: per image ``{"scores" [K], "labels" [K], "boxes" [K, 4] xyxy}``, best first; of scenes boxes [K, 9].

        Args:
            sizes: (height, width) of the original images; of task "boxes3d" they do not matter.
            top_k: detections per image at most; None: the paper's own number.
            one_label: only the best class of each query, anchor or proposal.
            nms: IoU threshold of class-wise NMS; 1 disables it; None: as the paper has it.
        """

    def freeze(self) -> None:
        """Stem, first stage and batch norm of the backbone keep their (trained) values, as published."""
        self.backbone.freeze()
        self.config["frozen"] = True

    def query_parameters(self) -> Sequence[nn.Parameter]:
        """What is learned per query (positions, contents): the gradient comes from few objects, and the rate may be another."""
        return ()

    def fit_to_data(self, sizes: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
        """Called once before the first step with the widths and heights [N, 2] of the training objects, in pixels of the model's input and
        as shares of their image.

        Returns the options that the model set from them, which are saved to build it again.
        """
        return {}
