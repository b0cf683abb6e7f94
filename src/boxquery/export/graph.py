"""What is exported: a module from pixels to detections, and its trace as a graph. docs/export.md lists its inputs and outputs."""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from boxquery.data.transforms import normalize
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.parts.boxes import at_least_float32, cxcywh_to_xyxy

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "labels", "queries", "class_scores", "query_boxes")


class ExportGraph(nn.Module):
    """Normalisation, a detector's model and its post-processing in one; the model is a copy in float32 on the CPU."""

    unnamed: Tensor | None

    def __init__(self, detector: Detector):
        super().__init__()
        self.model = deepcopy(detector.transformer).to("cpu", torch.float32).eval().requires_grad_(False)
        self.preprocessing = detector.preprocessing
        unnamed = torch.zeros(len(detector.classes) + self.model.criterion.classification.has_no_object, dtype=torch.bool)
        unnamed[detector.unnamed] = True
        self.register_buffer("unnamed", unnamed if detector.unnamed else None)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """``OUTPUTS`` of images uint8 [B, 3, h, w] and the (height, width) of the originals, int64 [B, 2]."""
        out = self.model(normalize(images, self.preprocessing), last_only=True)
        logits, boxes = at_least_float32(out.logits[-1], out.boxes[-1])
        if self.unnamed is not None:
            logits = logits.masked_fill(self.unnamed, -torch.inf)
        kept = None
        if out.alive is not None:
            count = torch.sym_min(self.model.num_queries_per_layer[-1], boxes.shape[1])
            kept = out.alive[-1].to(torch.float32).topk(count).indices.sort(1).values
        found = self.model.postprocessor(logits, boxes, sizes, kept, one_label=True)
        scale = sizes.flip(-1).repeat(1, 2).to(boxes)[:, None]
        return found.boxes, found.scores, found.labels, found.queries, self.model.scores(logits), cxcywh_to_xyxy(boxes) * scale


def trace(graph: ExportGraph, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph of any number of images, of any height and width or of one ``size``. Raises ``UserError`` where torch cannot trace it."""
    # sides that differ and are no power of two, so that nothing is taken for another by chance
    height, width = size or (graph.preprocessing.image_size + 8, graph.preprocessing.image_size * 5 // 4 + 40)
    sides = {} if size else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    given = torch.zeros(2, 3, height, width, dtype=torch.uint8), torch.tensor([[height, width]] * 2)
    name = graph.model.config["name"]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(graph, given, dynamic_shapes=({0: Dim.DYNAMIC, **sides}, {0: Dim.DYNAMIC}), strict=False)
    except UserError:
        raise
    except Exception as error:
        hint = "report it" if size else "give a fixed --size HxW"
        raise UserError(f"{name}: torch {torch.__version__} cannot trace the model ({type(error).__name__}); {hint}") from error
    if size is None and pinned(program, height, width):
        raise UserError(f"{name}: part of the graph would be that of one size; give a fixed --size HxW")
    return program


def pinned(program: ExportedProgram, height: int, width: int) -> bool:
    """Whether something computed from the size of images became a constant of the size traced, which torch reports only of sides.

    An equation among what torch assumed is then wrong for other sizes; those that hold for all of them cost nothing.
    """
    equations = [guard for guard in getattr(program, "_guards_code", ()) if " == " in guard]
    for batch, h, w in ((1, height + 1, width + 2), (3, 2 * height + 3, width - 5), (5, width + 9, height), (2, 33, 47)):
        images, sizes = torch.empty(batch, 3, h, w, device="meta"), torch.empty(batch, 2, device="meta")
        if not all(eval(equation, {"torch": torch, "L": {"images": images, "sizes": sizes}}) for equation in equations):
            return True
    return False
