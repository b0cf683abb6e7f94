"""What is exported: a module from pixels to detections, and its trace as a graph. docs/export.md lists its inputs and outputs."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from boxquery.boxes3d import widened
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import normalize
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.parts.box_coder_3d import to_boxes
from boxquery.parts.boxes import at_least_float32, cxcywh_to_xyxy
from boxquery.parts.cameras import limits
from boxquery.parts.output import Output
from boxquery.scene_detector import SceneDetector

OUTPUTS = ("boxes", "scores", "labels", "queries", "class_scores", "query_boxes")
#: cameras of the scene that a graph of any number of cameras is traced with; no other side of it is as long
VIEWS = 5


class Graph(nn.Module, ABC):
    """Normalisation, a detector's model and its post-processing in one; the model is a copy in float32 on the CPU.

    Called with images and with what belongs to them, it returns ``OUTPUTS``.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model: Any = deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
        self.preprocessing = preprocessing

    @abstractmethod
    def example(self, batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """Inputs by their names, of so many images or scenes of that (height, width)."""

    @abstractmethod
    def free(self, any_size: bool) -> tuple[dict[int, Any], ...]:
        """Which dimensions of each input vary."""

    def kept(self, out: Output) -> Tensor | None:
        """Indices of the queries that were not pruned."""
        if out.alive is None:
            return None
        count = torch.sym_min(self.model.num_queries_per_layer[-1], out.boxes.shape[2])
        return out.alive[-1].to(torch.float32).topk(count).indices.sort(1).values


class ExportGraph(Graph):
    """Of images."""

    unnamed: Tensor | None

    def __init__(self, detector: Detector):
        super().__init__(detector.transformer, detector.preprocessing)
        unnamed = torch.zeros(len(detector.classes) + self.model.criterion.classification.has_no_object, dtype=torch.bool)
        unnamed[detector.unnamed] = True
        self.register_buffer("unnamed", unnamed if detector.unnamed else None)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """``OUTPUTS`` of images uint8 [B, 3, h, w] and the (height, width) of the originals, int64 [B, 2]."""
        out = self.model(normalize(images, self.preprocessing), last_only=True)
        logits, boxes = at_least_float32(out.logits[-1], out.boxes[-1])
        if self.unnamed is not None:
            logits = logits.masked_fill(self.unnamed, -torch.inf)
        found = self.model.postprocessor(logits, boxes, sizes, self.kept(out), one_label=True)
        scale = sizes.flip(-1).repeat(1, 2).to(boxes)[:, None]
        return found.boxes, found.scores, found.labels, found.queries, self.model.scores(logits), cxcywh_to_xyxy(boxes) * scale

    def example(self, batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
        return {"images": torch.zeros(batch, 3, *size, dtype=torch.uint8), "sizes": torch.tensor([size] * batch)}

    def free(self, any_size: bool) -> tuple[dict[int, Any], ...]:
        return dict.fromkeys((0, 2, 3) if any_size else (0,), Dim.DYNAMIC), {0: Dim.DYNAMIC}


class SceneGraph(Graph):
    """Of scenes of several cameras; where the model takes any number of these, so does the graph."""

    def __init__(self, detector: SceneDetector):
        super().__init__(detector.transformer, detector.preprocessing)
        self.area, self.views = detector.area, detector.cameras

    def forward(self, images: Tensor, lidar2img: Tensor) -> tuple[Tensor, ...]:
        """``OUTPUTS`` of images uint8 [B, V, 3, h, w] and their calibration, float32 [B, V, 4, 4]; boxes far outside the area have 0 in
        ``scores``."""
        out = self.model(normalize(images, self.preprocessing), lidar2img, last_only=True)
        logits, codes = at_least_float32(out.logits[-1], out.boxes[-1])
        boxes = to_boxes(codes)
        low, high = limits(widened(self.area), boxes)
        outside = ((boxes[..., :3] < low) | (boxes[..., :3] > high)).any(-1, keepdim=True)
        found = self.model.postprocessor(logits.masked_fill(outside, -torch.inf), codes, self.kept(out), one_label=True)
        return found.boxes, found.scores, found.labels, found.queries, self.model.scores(logits), boxes

    def example(self, batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
        views = self.views or VIEWS
        return {"images": torch.zeros(batch, views, 3, *size, dtype=torch.uint8), "lidar2img": torch.eye(4).repeat(batch, views, 1, 1)}

    def free(self, any_size: bool) -> tuple[dict[int, Any], ...]:
        scenes = (0,) if self.views else (0, 1)
        return dict.fromkeys((*scenes, 3, 4) if any_size else scenes, Dim.DYNAMIC), dict.fromkeys(scenes, Dim.DYNAMIC)


def trace(graph: Graph, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph of any number of images, of any height and width or of one ``size``. Raises ``UserError`` where torch cannot trace it."""
    # sides that differ and are no power of two, so that nothing is taken for another by chance
    height, width = size or (graph.preprocessing.image_size + 8, graph.preprocessing.image_size * 5 // 4 + 40)
    given = tuple(graph.example(2, (height, width)).values())
    name = graph.model.config["name"]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(graph, given, dynamic_shapes=graph.free(any_size=size is None), strict=False)
    except UserError:
        raise
    except Exception as error:
        hint = "report it" if size else "give a fixed --size HxW"
        raise UserError(f"{name}: torch {torch.__version__} cannot trace the model ({type(error).__name__}); {hint}") from error
    if size is None and pinned(program, graph.example, height, width):
        raise UserError(f"{name}: part of the graph would be that of one size; give a fixed --size HxW")
    return program


def pinned(program: ExportedProgram, example: Callable[[int, tuple[int, int]], dict[str, Tensor]], height: int, width: int) -> bool:
    """Whether something computed from the size of images became a constant of the size traced, which torch reports only of sides.

    An equation among what torch assumed is then wrong for other sizes; those that hold for all of them cost nothing.

    Args:
        example: as ``Graph`` has it.
    """
    equations = [guard for guard in getattr(program, "_guards_code", ()) if " == " in guard]
    for batch, h, w in ((1, height + 1, width + 2), (3, 2 * height + 3, width - 5), (5, width + 9, height), (2, 33, 47)):
        with torch.device("meta"):
            given = example(batch, (h, w))
        if not all(eval(equation, {"torch": torch, "L": given}) for equation in equations):
            return True
    return False
