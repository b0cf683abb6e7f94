"""Every figure of the course in docs/learn, from this library's own code.

    python docs/learn/figures.py                    # all of them, into docs/learn/figures
    python docs/learn/figures.py gaussian start     # these alone
    python docs/learn/figures.py --runs FOLDER      # where trained models are (default: runs/convergence)

The numbers behind each figure are also printed, one line per figure. Most figures need no training: they show small arrays or untrained
models. A few need trained models: finished runs of `benchmarks/convergence.py`, folders named MODEL-RATE-SEED-EPOCHS. If a model has
several runs, the one with the lowest seed and, among those, the highest AP is drawn. The chapter on several cameras needs
a run beside these, in the same folder:

    boxquery train surround --model detr3d --preset tiny --minutes 20 --out runs/convergence/detr3d-surround

A figure without any run is left as it is and named on stderr.

Needs the `viz` extra (matplotlib).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou, generalized_box_iou, roi_align

import boxquery as bq
from boxquery.boxes3d import corners, project
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.records import SceneRecord
from boxquery.data.shapes import shapes_data
from boxquery.data.surround import surround_data
from boxquery.detector import Detector
from boxquery.explain.explanation import Explanation, explain
from boxquery.matching.patches import patch_of_query
from boxquery.model_folder import load_scenes
from boxquery.models.base import DetectionTransformer
from boxquery.models.recipes import NARROW_RESNET10
from boxquery.pages.cameras import draw_scene, tint
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.gaussian import log_gaussian
from boxquery.parts.attention.regions import SAMPLES, SIDE
from boxquery.parts.backbone import Backbone
from boxquery.parts.cameras import Cameras
from boxquery.parts.decoder_outputs import DecoderOutputs
from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.layers import DecoderLayer
from boxquery.parts.memory import Memory
from boxquery.parts.positions import SinePosition, sine
from boxquery.parts.scene_tokens import RayPosition
from boxquery.parts.trace import LayerTrace, Trace

HERE = Path(__file__).parent
INK, GOLD, TEAL, RED = "#1f2933", "#e0a100", "#0f8b8d", "#c8443b"
#: in the course's order
FAMILY = ("detr", "conditional-detr", "deformable-detr", "smca-detr", "anchor-detr", "dab-detr", "sam-detr")
#: untrained models: one feature map at stride 8 for all, and Deformable DETR as first published
FINE = {"backbone_options": {**NARROW_RESNET10, "output_stride": 8}, "dilation": False}
PLAIN = {
    "deformable-detr": {"box_refine": False, "two_stage": False, "matching": "one-to-one", "levels": 1, "points": 4, "heads": 8},
}
#: the built-in scenes on which untrained and trained models are shown, each with its largest object
SCENE, AFTER = 8, 3
#: the built-in scene of six cameras
CAMERAS = 57
#: the run of six cameras, a folder in --runs
DETR3D = "detr3d-surround"


class Missing(Exception):
    """No finished run of a model that the figure needs."""


# -- models and data ------------------------------------------------------------------------------------------------------------


def untrained(name: str) -> Detector:
    """An untrained tiny model, for images of 160 pixels."""
    torch.manual_seed(0)
    model = bq.create_model(name, classes=len(names()[0]), preset="tiny", **FINE, **PLAIN.get(name, {})).eval()
    return Detector(model, *names(), Preprocessing(160))


def trained(name: str, runs: Path) -> Detector:
    """The finished run of a model with the lowest seed and, among those, the highest AP. Raises ``Missing``."""
    found = []
    for folder in runs.glob(f"{name}-[0-9]*-[0-9]*-[0-9]*"):
        table, settings = folder / "metrics.csv", folder / "config.yaml"
        if not (table.is_file() and settings.is_file() and (folder / "model").is_dir()):
            continue
        rows = list(csv.DictReader(table.open(encoding="utf-8")))
        if len(rows) >= yaml.safe_load(settings.read_text(encoding="utf-8"))["epochs"]:
            found.append((int(folder.name.split("-")[-2]), -max(float(row["AP"] or 0) for row in rows), folder))
    if not found:
        raise Missing(name)
    return bq.load(str(min(found)[2]))


def found_run(name: str, runs: Path) -> Path:
    """The run folder of one of the later chapters. Raises ``Missing``."""
    if not (runs / name / "model").is_dir():
        raise Missing(name)
    return runs / name


def names() -> tuple[list[str], list[int]]:
    """Names and ids of the built-in classes."""
    return shapes_data().names, shapes_data().ids


def scene(index: int = SCENE):
    """A validation scene: its record and its image."""
    split = shapes_data().splits["val"]
    return split[index], split.read(index)


def largest(boxes: np.ndarray) -> np.ndarray:
    return boxes[((boxes[:, 2:] - boxes[:, :2]).prod(-1)).argmax()]


def normalised_entropy(mass: Tensor) -> float:
    """Entropy of a map that sums to one, divided by that of a uniform map: 1 if uniform, 0 if a single cell has all the weight."""
    share = mass.flatten().double()
    return float(-(share * share.clamp(min=1e-300).log()).sum() / np.log(len(share)))


def inside(heat: Tensor, box: np.ndarray) -> tuple[float, float]:
    """The share of a map [H, W] (one value per pixel) within a box in pixels, and the box's share of the image."""
    left, top, right, bottom = (round(float(v)) for v in box)
    region = heat[top:bottom, left:right]
    return float(region.sum()), region.numel() / heat.numel()


def nearest_query(explanation: Explanation, box: np.ndarray) -> int:
    """The query whose first reference is nearest to the centre of a box; without references, the first one."""
    if explanation.references is None:
        return 0
    at = explanation.references[0]
    at = at if at.shape[1] == 2 else (at[:, :2] + at[:, 2:]) / 2
    return int(np.hypot(*(at - (box[:2] + box[2:]) / 2).T).argmin())


def best_query(explanation: Explanation, box: np.ndarray, label: int) -> int:
    """The query whose final prediction fits an object best: score of its class times IoU."""
    overlap = box_iou(torch.from_numpy(explanation.boxes[-1]), torch.from_numpy(box)[None])[:, 0].numpy()
    return int((overlap * explanation.scores[-1] * (explanation.labels[-1] == label)).argmax())


@contextmanager
def encoded(detector: Detector, image) -> Iterator[tuple[Memory, DetectionTransformer]]:
    """The memory of an image, and the model."""
    model = detector.model.eval()
    batch = detector.transform(image)[None]
    with torch.no_grad():
        yield model.encoder(model.tokens(model.neck(model.backbone(batch)), None, batch.shape[-2:])), model


# -- drawing --------------------------------------------------------------------------------------------------------------------


def sheet(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def panels(columns: int, title: str | None = None, side: float = 2.4, rows: int = 1, head: float = 0.35) -> tuple[Figure, np.ndarray]:
    figure = sheet(side * columns, (side + head) * rows + (0.35 if title else 0))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


def bare(axis: Axes, title: str = "", size: float = 9) -> Axes:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=size)
    return axis


def clean(axis: Axes) -> Axes:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    return axis


def framed(axis: Axes, box, colour: str = "white", style: str = "--", width: float = 1.8) -> None:
    left, top, right, bottom = (float(v) for v in box)
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, ls=style, lw=width))


def glow(axis: Axes, image, heat: Tensor | np.ndarray) -> None:
    """A map over an image, bright where it is high. Each map is scaled to its own maximum."""
    share = np.asarray(heat) / max(float(np.asarray(heat).max()), 1e-12)
    axis.imshow(image)
    axis.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=0.35 + 0.55 * share, extent=(0, image.width, image.height, 0))
    axis.set(xlim=(0, image.width), ylim=(image.height, 0))


def cells(axis: Axes, values, title: str, form: str = "{:.2f}", size: float = 10) -> None:
    """A small matrix with its numbers."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    axis.imshow(values, cmap="YlGnBu", vmin=min(values.min(), 0), vmax=max(values.max() * 1.6, 1e-9), aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, form.format(value), ha="center", va="center", fontsize=size, color=INK)
    bare(axis, title)


# -- 1: attention ---------------------------------------------------------------------------------------------------------------

QUERY = np.array([2.0, 0, 1, 1])
KEYS = np.array([[0.0, 2, 1, -1], [1, 5, 0, 0], [1, 0, 1, 1]])
VALUES = np.array([[10.0, 0], [4, 6], [0, 10]])


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def attention(runs: Path) -> tuple[Figure, str]:
    """The example that can be followed by hand."""
    logits = KEYS @ QUERY / 2
    weights = softmax(logits)
    names = ("ground", "edge", "ball")
    figure = sheet(9.6, 2.7)
    axes = figure.subplots(1, 5, width_ratios=[4, 1.2, 1.6, 2, 2])
    cells(axes[0], KEYS, f"three keys; the query asks {QUERY.astype(int).tolist()}", "{:.0f}")
    axes[0].set_yticks(range(3), names, fontsize=9)
    cells(axes[1], logits[:, None], "logits\nquery·key / 2", "{:.0f}")
    cells(axes[2], weights[:, None], "weights\nsoftmax")
    cells(axes[3], VALUES, "values", "{:.0f}")
    cells(axes[4], weights @ VALUES, "output")
    axes[3].set_xticks(range(2), ["ground", "ball"], fontsize=8)
    axes[4].set_xticks(range(2), ["ground", "ball"], fontsize=8)
    return figure, f"weights {np.round(weights, 3).tolist()}, output {np.round(weights @ VALUES, 2).tolist()}"


def sharpness(runs: Path) -> tuple[Figure, str]:
    """The same logits, larger and smaller: softmax goes from uniform to sharp."""
    factors, numbers = (0, 0.2, 1, 5), []
    figure = sheet(8.4, 2.2)
    for axis, factor in zip(figure.subplots(1, 4, sharey=True), factors, strict=True):
        weights = softmax(factor * np.array([0.0, 1, 2]))
        clean(axis).bar(("ground", "edge", "ball"), weights, color=[INK, INK, GOLD])
        axis.axhline(1 / 3, ls=":", color=TEAL)
        axis.set_title(f"logits x {factor:g}\nentropy {normalised_entropy(torch.from_numpy(weights)):.2f}", fontsize=9)
        axis.set_ylim(0, 1)
        numbers.append(f"x{factor:g}: {np.round(weights, 2).tolist()}")
    return figure, "; ".join(numbers)


def patches(runs: Path) -> tuple[Figure, str]:
    """An image, its cells, and their tokens in an untrained model."""
    _, image = scene()
    torch.manual_seed(0)
    model = bq.create_model("detr", classes=5, preset="tiny").eval()
    with encoded(Detector(model, *names(), Preprocessing(160)), image) as (memory, _):
        h, w = memory.shapes[0]
        tokens = memory.tokens[0]
    figure = sheet(9.4, 2.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.7])
    bare(left, f"image: {image.height} x {image.width} pixels").imshow(image)
    bare(middle, f"{h} x {w} cells of {image.height // h} x {image.width // w} pixels").imshow(image)
    for k in range(1, h):
        middle.axhline(k * image.height / h, color="white", lw=0.4)
        middle.axvline(k * image.width / w, color="white", lw=0.4)
    chosen = (h // 3, w // 2)
    framed(middle, np.array([chosen[1], chosen[0], chosen[1] + 1, chosen[0] + 1]) * image.height / h, GOLD, "-", 2)
    right.imshow(tokens, aspect="auto", cmap="coolwarm", vmin=-3, vmax=3)
    right.axhline(chosen[0] * w + chosen[1], color=GOLD, lw=1.5)
    right.set_title(f"{tokens.shape[0]} tokens (rows) of {tokens.shape[1]} channels", fontsize=9)
    right.tick_params(labelsize=7)
    return figure, f"{h} x {w} cells, tokens {tuple(tokens.shape)}"


# -- 2: DETR --------------------------------------------------------------------------------------------------------------------


def pieces(runs: Path) -> tuple[Figure, str]:
    """DETR's parts with the shapes of a real forward pass."""
    torch.manual_seed(0)
    model = bq.create_model("detr", classes=5, preset="tiny", num_queries=100).eval()
    images = torch.zeros(1, 3, 160, 160)
    with torch.no_grad():
        maps = model.backbone(images)
        reduced = model.neck(maps)
        memory = model.encoder(model.tokens(reduced, None, images.shape[-2:]))
        out = model(images)
    content = model.queries(memory, None).content

    def size(tensor: Tensor) -> str:
        return " x ".join(str(n) for n in tensor.shape[1:])

    figure = sheet(10.4, 4.1)
    axis = figure.subplots()
    axis.set(xlim=(0, 10.4), ylim=(0, 4.2))
    axis.set_axis_off()
    blue, sand = "#dcebf5", "#fbf0d2"

    def block(x: float, y: float, text: str, below: str, colour: str, width: float = 1.45, height: float = 0.8) -> None:
        axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec=INK, lw=1))
        axis.text(x + width / 2, y + height / 2 + 0.12, text, ha="center", va="center", fontsize=9, color=INK)
        axis.text(x + width / 2, y + 0.17, below, ha="center", va="center", fontsize=8, color=TEAL, family="monospace")

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=colour, lw=1.2))

    top, low = 3.2, 1.2
    for x, text, below in (
        (0.1, "image", size(images)),
        (1.9, "CNN", size(maps[0])),
        (3.7, "1x1 convolution", size(reduced[0])),
        (5.5, "flattened", size(memory.tokens)),
        (7.3, f"encoder x {len(model.encoder.layers)}", size(memory.tokens)),
    ):
        block(x, top, text, below, blue)
    for x in (1.55, 3.35, 5.15, 6.95):
        arrow((x, top + 0.4), (x + 0.35, top + 0.4))
    axis.text(8.15, top - 0.22, "region-region", fontsize=8, style="italic")
    block(0.1, low, "queries", size(content), sand)
    block(2.3, low, "self-attention", "object-object", sand, 1.6)
    block(4.3, low, "cross-attention", "region-object", sand, 1.6)
    block(6.3, low, "FFN", "each alone", sand, 1.2)
    block(8.2, low, "heads", "FFNs", sand, 1.2)
    arrow((1.55, low + 0.4), (2.3, low + 0.4))
    arrow((3.9, low + 0.4), (4.3, low + 0.4))
    arrow((5.9, low + 0.4), (6.3, low + 0.4))
    arrow((7.5, low + 0.4), (8.2, low + 0.4))
    arrow((7.9, top), (5.2, low + 0.85), TEAL)
    axis.text(5.7, 2.5, f"memory {size(memory.tokens)}, as keys and values", fontsize=8, color=TEAL, ha="right")
    axis.add_patch(Rectangle((2.15, low - 0.2), 5.5, 1.2, fill=False, ec=INK, ls=":", lw=1.2))
    axis.text(4.9, low - 0.45, f"decoder layer x {len(model.layers)}", ha="center", fontsize=9)
    axis.text(0.82, low - 0.35, "content: zeros\nposition: learned", ha="center", va="center", fontsize=8)
    arrow((8.8, low), (8.8, 0.62))
    axis.text(
        8.8, 0.4, f"classes {size(out.logits[-1])}\nboxes {size(out.boxes[-1])}", ha="center", va="center", fontsize=8, family="monospace"
    )
    axis.text(
        4.9, 0.25, "the heads predict after every layer in training, after the last in inference", ha="center", fontsize=8, style="italic"
    )
    return figure, f"cells {memory.shapes[0]}, classes {tuple(out.logits.shape)}, boxes {tuple(out.boxes.shape)}"


def table_of_positions(side: int = 20, dim: int = 128, temperature: float = 10000.0) -> Tensor:
    """[side, side, dim]: DETR's sine encoding."""
    return SinePosition(dim, temperature)(torch.zeros(1, side, side, dtype=torch.bool), torch.zeros(1))[0]


def positions(runs: Path) -> tuple[Figure, str]:
    """Sine encoding: single features along a row, and how similar one cell's encoding is to all others."""
    table = table_of_positions()
    figure = sheet(9.4, 2.7)
    axes = figure.subplots(1, 4, width_ratios=[1.6, 1, 1, 1])
    x = torch.linspace(0, 1, 200)
    waves = sine(x[:, None], 64)
    for pair, colour in ((0, INK), (6, GOLD), (12, TEAL)):
        axes[0].plot(x, waves[:, 2 * pair], color=colour, label=f"sine {pair}")
    clean(axes[0]).set_title("three of the features along a row", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False, loc="lower left")
    similarity = {}
    for axis, cell in zip(axes[1:], ((5, 5), (10, 14), (16, 3)), strict=True):
        similarity[cell] = (table @ table[cell]) / table[cell].square().sum()
        bare(axis, f"similarity to cell {cell}").imshow(similarity[cell], cmap="inferno")
        axis.plot(cell[1], cell[0], "+", color=TEAL, ms=10, mew=2)
    highest = all(int(map_.argmax()) == row * 20 + column for (row, column), map_ in similarity.items())
    return figure, f"each cell is most similar to itself: {highest}"


def step_by_step(model: DetectionTransformer, memory: Memory) -> list[tuple[str, Tensor]]:
    """The queries' contents after each step of a decoder without references."""
    state = model.queries(memory, None)
    contents = [("start", state.content)]
    content = state.content
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        geometry = QueryGeometry(position=state.position)
        content = layer.self_residual(content, lambda c, layer=layer, geometry=geometry: layer.self_attention(c, geometry))
        contents.append((f"self {i + 1}", content))
        content = layer.read_residual(content, lambda c, layer=layer, geometry=geometry: layer.read(c, geometry, memory))
        contents.append((f"cross {i + 1}", content))
        content = layer.ffn_residual(content, layer.ffn)
        contents.append((f"FFN {i + 1}", content))
    return contents


def start_of_queries(runs: Path) -> tuple[Figure, str]:
    """How much queries differ from each other after each step of an untrained DETR."""
    _, image = scene()
    with encoded(untrained("detr"), image) as (memory, model):
        contents = step_by_step(model, memory)
    spread = [float(c[0].std(0, unbiased=False).mean()) for _, c in contents]
    figure = sheet(7.2, 2.5)
    axis = clean(figure.subplots())
    colours = {"start": INK, "self": GOLD, "cross": TEAL, "FFN": INK}
    axis.bar([name for name, _ in contents], spread, color=[colours[name.split()[0]] for name, _ in contents])
    axis.set_ylabel("std over queries", fontsize=8)
    axis.set_title("how much the contents of queries differ after each step of an untrained DETR", fontsize=9)
    return figure, ", ".join(f"{name} {value:.3f}" for (name, _), value in zip(contents, spread, strict=True))


def matching(runs: Path) -> tuple[Figure, str]:
    """Five predictions, three objects: the cheapest one-to-one matching, and the cost of greedy matching."""
    objects = np.array([[8, 12, 40, 52], [34, 20, 70, 56], [74, 58, 96, 84.0]])
    predictions = np.array([[13, 14, 45, 53], [2, 8, 31, 46], [60, 60, 92, 90], [6, 62, 30, 94], [72, 8, 98, 30.0]])
    scale = 100.0
    truth, predicted = torch.from_numpy(objects / scale), torch.from_numpy(predictions / scale)
    centres = [box_convert(some, "xyxy", "cxcywh") for some in (predicted, truth)]
    cost = (5 * torch.cdist(*centres, p=1) - 2 * generalized_box_iou(predicted, truth)).numpy()
    rows, columns = linear_sum_assignment(cost)
    figure = sheet(8.2, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    bare(left, "objects (dashed) and five predictions").set(xlim=(0, 100), ylim=(100, 0), aspect="equal")
    for k, box in enumerate(objects):
        framed(left, box, INK, "--", 2)
        left.text(box[2] - 1, box[3] - 2, f"object {'abc'[k]}", fontsize=8, ha="right", va="bottom", color=INK)
    for k, box in enumerate(predictions):
        matched = k in rows
        framed(left, box, TEAL if matched else "#9aa5b1", "-", 1.6)
        left.text(box[0] + 1, box[1] + 1, f"{k + 1}", fontsize=9, va="top", color=TEAL if matched else "#7b8794")
    cells(right, cost, "cost of each pair; cheapest matching framed")
    right.set_xticks(range(3), [f"object {c}" for c in "abc"], fontsize=8)
    right.set_yticks(range(5), [f"prediction {k + 1}" for k in range(5)], fontsize=8)
    for row, column in zip(rows, columns, strict=True):
        framed(right, (column - 0.47, row - 0.45, column + 0.47, row + 0.45), RED, "-", 2)
    greedy = greedy_matching(cost)
    best, worse = cost[rows, columns].sum(), sum(cost[pair] for pair in greedy)
    return figure, f"predictions {(rows + 1).tolist()} for objects {['abc'[c] for c in columns]}: {best:.2f}; greedy: {worse:.2f}"


def greedy_matching(cost: np.ndarray) -> list[tuple[int, int]]:
    left, pairs = cost.astype(float).copy(), []
    for _ in range(min(cost.shape)):
        row, column = (int(i) for i in np.unravel_index(left.argmin(), left.shape))
        pairs.append((row, column))
        left[row], left[:, column] = np.inf, np.inf
    return pairs


def deep_supervision(runs: Path) -> tuple[Figure, str]:
    """How well each layer's own matched boxes fit, in the available trained models."""
    split, curves = shapes_data().splits["val"], {}
    for name in FAMILY:
        try:
            detector = trained(name, runs)
        except Missing:
            continue
        totals = np.zeros(len(detector.model.layers))
        for index in range(40):
            explanation, record = explain(detector, split.read(index)), split[index]
            for layer, boxes in enumerate(explanation.boxes):
                overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(record.boxes)).numpy()
                rows, columns = linear_sum_assignment(-overlap)
                totals[layer] += overlap[rows, columns].mean() / 40
        curves[name] = totals
    if not curves:
        raise Missing("any model")
    figure = sheet(5.2, 2.7)
    axis = clean(figure.subplots())
    for name, values in curves.items():
        axis.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axis.set_xticks(range(1, 1 + max(len(v) for v in curves.values())))
    axis.set(xlabel="decoder layer")
    axis.set_ylabel("IoU of matched pairs", fontsize=8)
    axis.set_title("every layer predicts: how well its boxes fit", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    return figure, "; ".join(f"{name}: {np.round(values, 2).tolist()}" for name, values in curves.items())


class AttendToSelfOnly(nn.Module):
    """Self-attention in which every query attends to itself only."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, content: Tensor, geometry: QueryGeometry, trace: LayerTrace | None = None) -> Tensor:
        others = ~torch.eye(content.shape[1], dtype=torch.bool)
        return self.inner(content, replace(geometry, self_mask=others), trace)


def duplicates(runs: Path) -> tuple[Figure, str]:
    """Duplicate predictions with and without self-attention, in the available trained models."""
    split, counts = shapes_data().splits["val"], {}
    for name in FAMILY:
        try:
            usual, isolated = trained(name, runs), trained(name, runs)
        except Missing:
            continue
        for layer in isolated.model.layers:
            assert isinstance(layer, DecoderLayer)
            layer.self_attention = AttendToSelfOnly(layer.self_attention)
        counts[name] = [duplicate_rate(detector, split, 60) for detector in (usual, isolated)]
    if not counts:
        raise Missing("any model")
    figure = sheet(5.6, 2.7)
    axis = clean(figure.subplots())
    for k, (label, colour) in enumerate((("queries attend to each other", TEAL), ("each query attends to itself only", RED))):
        at = np.arange(len(counts)) + 0.38 * (k - 0.5)
        bars = axis.bar(at, [100 * pair[k] for pair in counts.values()], 0.36, color=colour, label=label)
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.set_xticks(range(len(counts)), [name.replace("-detr", "\ndetr") for name in counts], fontsize=8)
    axis.set_ylabel("duplicates, % of predictions", fontsize=8)
    axis.set_title("60 scenes: of the N best predictions for N objects,\nthose that duplicate a better one", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    axis.margins(y=0.3)
    return figure, "; ".join(f"{name}: {a:.3f} with, {b:.3f} without" for name, (a, b) in counts.items())


def duplicate_rate(detector: Detector, split, scenes: int) -> float:
    """Of the N best predictions in a scene with N objects: the share with IoU above 0.5 to a better one of its class."""
    duplicates = total = 0
    for index in range(scenes):
        result, count = detector.predict(split.read(index), threshold=0.0), len(split[index].boxes)
        boxes, labels = torch.from_numpy(result.boxes[:count]), result.labels[:count]
        same = (box_iou(boxes, boxes).numpy() > 0.5) & (labels[:, None] == labels[None])
        duplicates += int(np.tril(same, -1).any(1).sum())
        total += count
    return duplicates / total


# -- 3: why it converges slowly -------------------------------------------------------------------------------------------------


def even(runs: Path) -> tuple[Figure, str]:
    """What three queries of an untrained DETR attend to, layer by layer, on one scale."""
    record, image = scene()
    box, explanation = largest(record.boxes), explain(untrained("detr"), image)
    queries = (0, 1, 2)
    figure, axes = panels(4, side=2.2, rows=len(queries), head=0.15)
    numbers = []
    h, w = explanation.trace.layers[0].memory.shapes[0]
    for row, query in zip(axes, queries, strict=True):
        bare(row[0], "uniform attention" if query == 0 else "").imshow(np.full((h, w), 1.0), cmap="inferno", vmin=0, vmax=2)
        row[0].set_ylabel(f"query {query}", fontsize=9)
        for layer in range(3):
            mass = explanation.trace.layers[layer].masses(0, [query])[0].mean(0)
            share, area = inside(explanation.heatmap(query, layer).map, box)
            bare(row[layer + 1], f"layer {layer + 1}: entropy {normalised_entropy(mass):.3f}").imshow(
                mass * h * w, cmap="inferno", vmin=0, vmax=2, extent=(0, image.width, image.height, 0)
            )
            framed(row[layer + 1], box)
            numbers.append(f"{share:.2f}/{area:.2f}")
    every = [normalised_entropy(mass) for layer in explanation.trace.layers for mass in layer.masses(0, range(40)).mean(1)]
    return figure, f"entropy of all queries and layers {min(every):.3f}..{max(every):.3f}; in the box/its area: {', '.join(numbers)}"


def start(runs: Path) -> tuple[Figure, str]:
    """What one query attends to in the first layer of every untrained model."""
    record, image = scene()
    box = largest(record.boxes)
    figure, axes = panels(len(FAMILY), "before any training: what one query attends to in the first decoder layer", side=1.9)
    numbers = []
    for axis, name in zip(axes[0], FAMILY, strict=True):
        explanation = explain(untrained(name), image)
        query = nearest_query(explanation, box)
        heat = explanation.heatmap(query, 0).map
        h, w = explanation.trace.layers[0].memory.shapes[0]
        mass = explanation.heatmap(query, 0, (h, w)).map
        share, area = inside(heat, box)
        glow(axis, image, heat)
        framed(axis, box)
        if explanation.references is not None:
            mark_reference(axis, explanation.references[0, query])
        bare(axis, f"{name}\nentropy {normalised_entropy(mass):.2f}\nin the box {share:.2f}", 8)
        numbers.append(f"{name} {normalised_entropy(mass):.2f}, {share:.2f} (area {area:.2f})")
    return figure, "; ".join(numbers)


def mark_reference(axis: Axes, reference: np.ndarray) -> None:
    """A point as a cross, a box dotted."""
    if len(reference) == 4:
        framed(axis, reference, "#3ddbd9", ":")
        reference = (reference[:2] + reference[2:]) / 2
    axis.plot(*reference, "+", color="#3ddbd9", ms=9, mew=1.8)


# -- 4: remedies ----------------------------------------------------------------------------------------------------------------


def sampling(runs: Path) -> tuple[Figure, str]:
    """Where an untrained Deformable DETR samples: around a point, and in units of a box."""
    record, image = scene()
    box = largest(record.boxes)
    figure, axes = panels(3, side=2.7)
    bare(axes[0, 0], "around a point: offsets in cells").imshow(image)
    explanation = explain(untrained("deformable-detr"), image)
    query = nearest_query(explanation, box)
    layer = explanation.trace.layers[0]
    assert layer.locations is not None
    assert explanation.references is not None
    points = layer.locations[0, query, :, 0].flatten(0, 1) * 160
    mark_reference(axes[0, 0], explanation.references[0, query])
    axes[0, 0].scatter(*points.T, s=14, color=GOLD, edgecolors=INK, linewidths=0.5)
    mass = layer.masses(0, [query])[0].mean(0)
    bare(axes[0, 1], f"the cells it attends to: {int((mass > 0).sum())} of {mass.numel()}")
    glow(axes[0, 1], image, mass.numpy())
    bare(axes[0, 2], "in boxes: offsets scale with the box").imshow(image)
    steps = initial_offsets()
    for wanted in record.boxes[:3]:
        centre, size = torch.from_numpy((wanted[:2] + wanted[2:]) / 2), torch.from_numpy(wanted[2:] - wanted[:2])
        axes[0, 2].scatter(*(centre + steps * 0.5 / 4 * size).T, s=10, color=GOLD, edgecolors=INK, linewidths=0.4)
        framed(axes[0, 2], wanted, "#3ddbd9", ":")
    for axis in axes[0]:
        axis.set(xlim=(0, 160), ylim=(160, 0))
    return figure, f"{len(points)} sampling points touch {int((mass > 0).sum())} of {mass.numel()} cells"


def initial_offsets(heads: int = 8, points: int = 4) -> Tensor:
    """[heads * points, 2]: the initial offsets of deformable attention, one level."""
    attention = DeformableAttention(32, heads, 1, points)
    with torch.no_grad():
        attention.init_weights()
    return attention.sampling_offsets.bias.detach().view(-1, 2)


def cost(runs: Path) -> tuple[Figure, str]:
    """Attention weights per query and head for a map of n x n cells."""
    sides = np.arange(10, 101)
    figure = sheet(5.2, 2.7)
    axis = clean(figure.subplots())
    for label, count, colour in (
        ("dense: n x n", sides**2, RED),
        ("row and column: 2 n", 2 * sides, GOLD),
        ("deformable: 4 points", np.full(len(sides), 4), TEAL),
    ):
        axis.plot(sides, count, color=colour, label=label, lw=2)
    axis.set(yscale="log", xlabel="side of the map in cells, n", ylabel="weights")
    axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=3)
    axis.set_ylim(2, 1e5)
    axis.set_title("attention weights per query, head and map", fontsize=9)
    return figure, "at n = 100: 10000, 200, 4"


def grid_memory(side: int = 20) -> Memory:
    """An empty map of side x side cells, for formulas that depend on positions only."""
    return Memory(torch.zeros(1, side * side, 4), None, None, ((side, side),), torch.ones(1, 1, 2), torch.full((1, 2), 8.0 * side))


def gaussian(runs: Path) -> tuple[Figure, str]:
    """Untrained attention of a DETR head, a Gaussian, and their product; and the effect of the scales."""
    record, image = scene()
    layer = explain(untrained("detr"), image).trace.layers[0]
    assert layer.attention is not None
    (map_,) = layer.attention
    assert isinstance(map_, Tensor)
    dense = map_[0, 0, 0].log()
    side = dense.shape[0]
    memory, box = grid_memory(side), largest(record.boxes) / 160 * side
    centre = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]).float().view(1, 1, 1, 2)

    def bump(across: float, down: float) -> Tensor:
        squares = (torch.tensor([[[across**2]]]), torch.tensor([[[down**2]]]), None)
        return (log_gaussian(centre, squares, memory, (1.0,)) / 8).view(side, side)

    figure, axes = panels(5, side=2.0)
    modulated = (dense + bump(1, 1)).flatten().softmax(0).view(side, side)
    maps = (
        (f"attention, untrained\nentropy {normalised_entropy(dense.exp()):.2f}", dense.exp()),
        ("x Gaussian\nscales 1 and 1", bump(1, 1).exp()),
        (f"= attention under it\nentropy {normalised_entropy(modulated):.2f}", modulated),
        ("a wider Gaussian\nscales 0.5 and 0.5", bump(0.5, 0.5).exp()),
        ("a flat one\nscales 0.4 and 1.5", bump(0.4, 1.5).exp()),
    )
    for axis, (title, shown) in zip(axes[0], maps, strict=True):
        bare(axis, title).imshow(shown, cmap="inferno", vmin=0, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
        framed(axis, box - 0.5)
    return figure, f"entropy {normalised_entropy(dense.exp()):.3f} without, {normalised_entropy(modulated):.3f} under the Gaussian"


def row_column(runs: Path) -> tuple[Figure, str]:
    """A row times a column; and two spots on a diagonal, which no such product can give."""
    n = torch.arange(20.0)

    def around(*places: float) -> Tensor:
        return torch.stack([-((n - p) ** 2) / 3 for p in places]).logsumexp(0).softmax(0)

    row, column = around(13), around(6)
    wanted = (torch.outer(around(5), around(4)) + torch.outer(around(14), around(15))) / 2
    closest = torch.outer(wanted.sum(1), wanted.sum(0))
    figure = sheet(9.2, 2.7)
    axes = figure.subplots(1, 4)
    clean(axes[0]).bar(n, row, color=GOLD, label="a: columns")
    axes[0].bar(n, -column, color=TEAL, label="b: rows (downwards)")
    axes[0].set_title("20 + 20 weights", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False, loc="lower right")
    axes[0].set_yticks([])
    bare(axes[1], "their product: 400 cells").imshow(torch.outer(column, row), cmap="inferno")
    bare(axes[2], "wanted: two spots").imshow(wanted, cmap="inferno")
    bare(axes[3], "row times column: four").imshow(closest, cmap="inferno")
    ghost = float(closest[:10, 10:].sum() + closest[10:, :10].sum())
    return figure, f"weight on the two unwanted spots: {ghost:.2f}"


def anchors(runs: Path) -> tuple[Figure, str]:
    """Anchor DETR's points, learned (before training) and on a grid."""
    _, image = scene()
    figure, axes = panels(2, side=2.5)
    for axis, prior in zip(axes[0], ("learned", "grid"), strict=True):
        torch.manual_seed(0)
        model = bq.create_model("anchor-detr", classes=5, preset="tiny", spatial_prior=prior, num_queries=100).eval()
        explanation = explain(Detector(model, *names(), Preprocessing(160)), image)
        assert explanation.references is not None
        points = np.unique(explanation.references[0], axis=0)
        bare(axis, f"{prior}: {len(points)} points, {len(explanation.references[0])} queries").imshow(image, alpha=0.55)
        axis.plot(*points.T, "+", color=RED, ms=6, mew=1.4)
        axis.set(xlim=(0, 160), ylim=(160, 0))
    return figure, "100 points x 3 patterns"


def box_logits(centre: tuple[float, float], size: tuple[float, float], reference: float = 0.2, side: int = 20) -> Tensor:
    """[side, side]: DAB's positional logits, without learned projections (x, y, w, h in [0, 1])."""
    half = 64
    table = SinePosition(2 * half, 20, offset=0.5)(torch.zeros(1, side, side, dtype=torch.bool), torch.zeros(1))[0]
    position = sine(torch.tensor([[centre[1], centre[0]]]), half, 20)[0]
    down, across = table[..., :half] @ position[:half], table[..., half:] @ position[half:]
    return (down * reference / size[1] + across * reference / size[0]) / np.sqrt(half / 8)


def boxes(runs: Path) -> tuple[Figure, str]:
    """How a box says where and how widely to look."""
    figure, axes = panels(4, side=2.2)
    numbers = []
    for axis, (title, centre, size) in zip(
        axes[0],
        (
            ("a point: no size", (0.4, 0.4), (0.2, 0.2)),
            ("a large box", (0.4, 0.4), (0.5, 0.5)),
            ("a wide box", (0.4, 0.4), (0.7, 0.15)),
            ("a tall box elsewhere", (0.7, 0.5), (0.15, 0.7)),
        ),
        strict=True,
    ):
        mass = box_logits(centre, size).flatten().softmax(0).view(20, 20)
        bare(axis, title).imshow(mass, cmap="inferno", vmin=0, extent=(0, 1, 1, 0))
        if title != "a point: no size":
            framed(
                axis, (centre[0] - size[0] / 2, centre[1] - size[1] / 2, centre[0] + size[0] / 2, centre[1] + size[1] / 2), "#3ddbd9", ":"
            )
        axis.plot(*centre, "+", color="#3ddbd9", ms=9, mew=1.8)
        axis.set(xlim=(0, 1), ylim=(1, 0))
        y, x = torch.meshgrid(*(2 * [(torch.arange(20) + 0.5) / 20]), indexing="ij")
        spread = [float((mass * (axis_ - (mass * axis_).sum()) ** 2).sum().sqrt()) for axis_ in (x, y)]
        numbers.append(f"{title}: {spread[0]:.2f} across, {spread[1]:.2f} down")
    return figure, "; ".join(numbers)


def likeness(runs: Path) -> tuple[Figure, str]:
    """Similarity of an untrained network's features to a random vector, and to one of themselves."""
    record, image = scene()
    box, detector = largest(record.boxes), untrained("sam-detr")
    with encoded(detector, image) as (memory, _):
        grid = memory.maps(memory.tokens)[0][0]
    side = grid.shape[0]
    y, x = int((box[1] + box[3]) / 2 / 160 * side), int((box[0] + box[2]) / 2 / 160 * side)
    features = grid - grid.mean((0, 1))
    features = features / features.norm(dim=-1, keepdim=True)
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(200, grid.shape[-1]), dim=-1)
    other, own = features @ vectors[0], features @ features[y, x]
    figure, axes = panels(3, side=2.5)
    bare(axes[0, 0], "image, object, one point in it").imshow(image)
    for axis, map_, title in ((axes[0, 1], other, "similarity to a random vector"), (axes[0, 2], own, "similarity to the feature at +")):
        bare(axis, title).imshow(map_, cmap="inferno", vmin=-1, vmax=1, extent=(0, 160, 160, 0))
    for axis in axes[0]:
        framed(axis, box)
        axis.plot((x + 0.5) * 160 / side, (y + 0.5) * 160 / side, "+", color="#3ddbd9", ms=10, mew=2)
        axis.set(xlim=(0, 160), ylim=(160, 0))
    spread = float((features.flatten(0, 1) @ vectors.T).abs().amax(0).mean())
    return figure, f"highest similarity: {spread:.2f} to a random vector (mean of 200), 1.00 to a feature of the image"


def salient(runs: Path) -> tuple[Figure, str]:
    """SAM-DETR before training: the reference box of a query and the points where its heads sample features."""
    record, image = scene()
    box = largest(record.boxes)
    explanation = explain(untrained("sam-detr"), image)
    query = nearest_query(explanation, box)
    figure, axes = panels(len(explanation.trace.layers), side=2.4)
    assert explanation.references is not None
    for i, (axis, layer) in enumerate(zip(axes[0], explanation.trace.layers, strict=True)):
        assert layer.salient_points is not None
        bare(axis, f"layer {i + 1}: {layer.salient_points.shape[2]} points").imshow(image)
        framed(axis, explanation.references[i, query], "#3ddbd9", ":")
        axis.scatter(*(layer.salient_points[0, query] * 160).T, s=26, color=GOLD, edgecolors=INK, linewidths=0.6)
        axis.set(xlim=(0, 160), ylim=(160, 0))
    return figure, "8 points per query, one per head"


def after(runs: Path) -> tuple[Figure, str]:
    """What the query of one object attends to, layer by layer, in every available trained model."""
    record, image = scene(AFTER)
    chosen = ((record.boxes[:, 2:] - record.boxes[:, :2]).prod(-1)).argmax()
    box, label = record.boxes[chosen], int(record.labels[chosen])
    explanations, means = {}, {}
    for name in FAMILY:
        try:
            detector = trained(name, runs)
        except Missing:
            continue
        explanations[name], means[name] = explain(detector, image), mean_inside(detector)
    if not explanations:
        raise Missing("any model")
    figure, axes = panels(3, "after training: what the query of the framed object attends to", side=2.3, rows=len(explanations), head=0.2)
    numbers = []
    for row, (name, explanation) in zip(axes, explanations.items(), strict=True):
        query = best_query(explanation, box, label)
        row[0].set_ylabel(f"{name}\n40 scenes: {means[name][0][-1]:.2f}", fontsize=9)
        shares = []
        for i, axis in enumerate(row[: len(explanation.boxes)]):
            share, area = inside(explanation.heatmap(query, i).map, box)
            shares.append(f"{share:.2f}")
            glow(axis, image, explanation.heatmap(query, i).map)
            framed(axis, box)
            framed(axis, explanation.boxes[i, query], "#ffd23f", "-")
            if explanation.references is not None:
                mark_reference(axis, explanation.references[i, query])
            bare(axis, f"layer {i + 1}: {share:.2f} in the object")
        numbers.append(
            f"{name} {'/'.join(shares)} (area {area:.2f}), 40 scenes {np.round(means[name][0], 2).tolist()} (area {means[name][1]:.2f})"
        )
    return figure, "; ".join(numbers)


def mean_inside(detector: Detector, scenes: int = 40) -> tuple[np.ndarray, float]:
    """Mean over all objects: share of their queries' attention inside them, per layer, and their share of the image."""
    split, shares, areas = shapes_data().splits["val"], [], []
    for index in range(scenes):
        record, explanation = split[index], explain(detector, split.read(index))
        for box, label in zip(record.boxes, record.labels, strict=True):
            query = best_query(explanation, box, int(label))
            found = [inside(explanation.heatmap(query, layer).map, box) for layer in range(len(explanation.boxes))]
            shares.append([share for share, _ in found])
            areas.append(found[0][1])
    return np.mean(shares, 0), float(np.mean(areas))


# -- 5: Sparse R-CNN -----------------------------------------------------------------------------------------------------------


def regions(runs: Path) -> tuple[Figure, str]:
    """RoIAlign on the image itself: whatever the size of a box, 7 x 7 cells come out."""
    record, image = scene()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    chosen = {
        "the whole image": np.array([0.0, 0, image.width, image.height]),
        "an object": largest(record.boxes).astype(float),
        "a wide box": np.array([8.0, 100, 152, 130]),
    }
    colours = ("white", GOLD, "#3ddbd9")
    figure, axes = panels(4, side=2.3)
    bare(axes[0, 0], "three boxes").imshow(image)
    numbers = []
    for axis, (name, box), colour in zip(axes[0, 1:], chosen.items(), colours, strict=True):
        framed(axes[0, 0], box + (1 if box[0] == 0 else 0), colour, "-", 2.2)
        cut = roi_align(pixels, [torch.from_numpy(box)[None].float()], SIDE, sampling_ratio=SAMPLES, aligned=True)[0]
        width, height = (box[2:] - box[:2]) / SIDE
        bare(axis, f"{name}: {SIDE} x {SIDE} cells\nof {width:.0f} x {height:.0f} pixels").imshow(cut.permute(1, 2, 0).clamp(0, 255).byte())
        for spine in axis.spines.values():
            spine.set(color=colour if colour != "white" else INK, linewidth=3)
        numbers.append(f"{name} {tuple(cut.shape[1:])}")
    axes[0, 0].set(xlim=(0, image.width), ylim=(image.height, 0))
    return figure, "; ".join(numbers)


# -- 6: several cameras ---------------------------------------------------------------------------------------------------------


def surround_scene(index: int) -> tuple[SceneRecord, list[Image.Image]]:
    """A held-out scene of six cameras: its record and its images."""
    split = surround_data(train=1).split("val")
    return split[index], split.read(index)


def from_above(axis: Axes, title: str, radius: float = 50) -> Axes:
    """Axes in metres, forward at the top and left at the left, with the vehicle in the middle."""
    bare(axis, title).set(xlim=(radius, -radius), ylim=(-radius, radius), aspect="equal")
    for ring in range(10, int(radius * 1.4), 10):
        axis.add_patch(Circle((0, 0), ring, fill=False, ec="#d5dadf", lw=0.7))
    axis.plot(0, 0, marker="^", color=INK, ms=7)
    return axis


def outlines(axis: Axes, boxes: np.ndarray, colour: str, style: str = "-", width: float = 1.5) -> None:
    """3-D boxes from above, each with a line to its front."""
    for box, points in zip(boxes, corners(boxes), strict=True):
        loop = points[[0, 1, 2, 3, 0], :2]
        axis.plot(loop[:, 1], loop[:, 0], color=colour, ls=style, lw=width)
        front = points[:2, :2].mean(0)
        axis.plot([box[1], front[1]], [box[0], front[0]], color=colour, ls=style, lw=width)


def in_two_cameras(record: SceneRecord) -> tuple[int, np.ndarray, list[int], np.ndarray]:
    """Of the objects whose nearest edge two cameras see, the nearest: its number, a point on that edge, the cameras, its pixels [V, 2]."""
    edges = corners(record.boxes)[:, :4] + [0, 0, 1]
    points = edges[np.arange(len(edges)), np.hypot(edges[..., 0], edges[..., 1]).argmin(1)]
    pixels, depth = project(points, record.lidar2img)
    seen = (depth > 0.1) & (pixels > 3).all(2) & (pixels < record.sizes[:, None] - 3).all(2)
    both = np.flatnonzero(seen.sum(0) == 2)
    chosen = int(both[np.hypot(*points[both, :2].T).argmin()])
    return chosen, points[chosen], np.flatnonzero(seen[:, chosen]).tolist(), pixels[:, chosen]


def two_spaces(runs: Path) -> tuple[Figure, str]:
    """Regions of six images on the one side, objects in metres on the other."""
    record, images = surround_scene(CAMERAS)
    drawn = draw_scene(
        images, record.lidar2img, record.boxes, record.labels, names=surround_data().names, cameras=record.cameras, width=1100
    )
    figure = sheet(11, 11 * drawn.height / drawn.width + 0.35)
    axis = bare(
        figure.subplots(), "input: regions of six images                                       output: objects in metres, from above", 10
    )
    axis.imshow(drawn)
    axis.set_axis_off()
    return figure, f"{len(record.boxes)} objects, {len(images)} images of {images[0].width} x {images[0].height} pixels"


def rays(runs: Path) -> tuple[Figure, str]:
    """Where in space two cells of two cameras may be: the points that PETR's positions are made of."""
    record, images = surround_scene(CAMERAS)
    chosen, point, cameras, pixels = in_two_cameras(record)
    torch.manual_seed(0)
    data = surround_data()
    position = bq.create_model("petr", classes=data.names, preset="tiny", area=list(data.area)).get_submodule("tokens.position")
    assert isinstance(position, RayPosition)
    cells = (12, 20)
    views = Cameras(torch.from_numpy(record.lidar2img)[None], (images[0].height, images[0].width), data.area)
    points = views.unproject(cells, torch.tensor(position.depths, dtype=torch.float64))[0].numpy()
    figure = sheet(9.4, 3.3)
    axes = figure.subplots(1, 3, width_ratios=[1.5, 1.5, 1.1])
    above, ends = from_above(axes[2], "the two cells' rays, from above"), []
    outlines(above, record.boxes, "#9aa5b1")
    outlines(above, record.boxes[chosen : chosen + 1], RED, width=2)
    above.plot(point[1], point[0], ".", color=RED, ms=8)
    for axis, camera, colour in zip(axes, cameras, (GOLD, TEAL), strict=False):
        side = images[camera].width / cells[1]
        column, row = (pixels[camera] // side).astype(int)
        bare(axis, f"{record.cameras[camera]}: the cell of a point on an object").imshow(images[camera])
        axis.plot(*pixels[camera], ".", color=RED, ms=6)
        framed(axis, (column * side, row * side, (column + 1) * side, (row + 1) * side), colour, "-", 2.4)
        axis.set(xlim=(0, images[camera].width), ylim=(images[camera].height, 0))
        ray = points[camera, row, column]
        ends.append(np.linalg.norm(ray - point, axis=1).min())
        above.plot(ray[:, 1], ray[:, 0], ".-", color=colour, ms=6, lw=1)
    return figure, f"{len(position.depths)} points per cell, the nearest {ends[0]:.1f} and {ends[1]:.1f} m from the point"


def projected(runs: Path) -> tuple[Figure, str]:
    """Where the cameras see three points in space, which is where DETR3D's queries would read."""
    record, images = surround_scene(CAMERAS)
    points = np.array([in_two_cameras(record)[1], [25.0, 0, 1], [-12, -20, 1]])
    pixels, depth = project(points, record.lidar2img)
    seen = (depth > 0.1) & (pixels > 0).all(2) & (pixels < record.sizes[:, None]).all(2)
    order = [1, 0, 5, 2, 3, 4]
    figure = sheet(10.4, 3.0)
    left, right = figure.subfigures(1, 2, width_ratios=[2.6, 1])
    for axis, camera in zip(left.subplots(2, 3).flat, order, strict=True):
        bare(axis, record.cameras[camera], 8).imshow(images[camera])
        for point, colour in enumerate((RED, GOLD, "#3ddbd9")):
            if seen[camera, point]:
                axis.plot(*pixels[camera, point], "o", color=colour, ms=10, mec=INK)
                axis.text(*pixels[camera, point], str(point + 1), fontsize=7, ha="center", va="center")
    above = from_above(right.subplots(), "three points in space, from above")
    outlines(above, record.boxes, "#9aa5b1")
    for number, (point, colour) in enumerate(zip(points, (RED, GOLD, "#3ddbd9"), strict=True), 1):
        above.plot(point[1], point[0], "o", color=colour, ms=10, mec=INK)
        above.text(point[1], point[0], str(number), fontsize=7, ha="center", va="center")
    return figure, "; ".join(f"point {n + 1} is in {', '.join(record.cameras[c] for c in np.flatnonzero(seen[:, n]))}" for n in range(3))


def one_and_six(runs: Path) -> tuple[Figure, str]:
    """The same query of a trained DETR3D given six cameras, and one."""
    detector = load_scenes(found_run(DETR3D, runs))
    model, (record, images) = detector.transformer.eval(), surround_scene(CAMERAS)
    chosen, _, cameras, _ = in_two_cameras(record)
    with torch.no_grad():
        memory = model.embed_scene(*detector.inputs_of(*detector.inputs(images, record.lidar2img)))
        state, seen = model.queries(memory, None), memory.cameras
        assert seen is not None

        def read(only: int | None) -> tuple[Tensor, np.ndarray]:
            """Maps [Q, V, 96, 160] of the last layer, and the centres [Q, 2] of its boxes. Other cameras look away: nothing is in them."""
            away = torch.arange(seen.count) != (0 if only is None else only)
            matrices = seen.lidar2img.clone()
            if only is not None:
                matrices[:, away, 2] = torch.tensor([0.0, 0, 0, -1])
            outputs, trace = DecoderOutputs(last_only=False), Trace(decoder_only=True)
            model.decode(state, replace(memory, cameras=replace(seen, lidar2img=matrices)), outputs, None, trace)
            found = trace.layers[-1].heatmaps(range(state.content.shape[1]), (96, 160))
            return found.map, outputs.stacked()[0].boxes[-1, 0][:, [0, 1]].numpy()

        six, found = read(None)
        query = int(np.hypot(*(found - record.boxes[chosen, :2]).T).argmin())
        rows = [("six cameras", six[query], found[query])]
        rows += [(f"{record.cameras[c]} alone", maps[query], where[query]) for c in cameras for maps, where in [read(c)]]
    figure, axes = panels(6, side=1.75, rows=len(rows), head=-0.35)
    for row, (name, maps, _) in zip(axes, rows, strict=True):
        for axis, camera in zip(row, (1, 0, 5, 2, 3, 4), strict=True):
            share = float(maps[camera].sum())
            bare(axis, f"{record.cameras[camera]}: {share:.2f}", 8)
            axis.imshow(tint(images[camera], (maps[camera] / maps.max()).numpy()))
            if share == 0:
                axis.images[0].set_alpha(0.3)
        row[0].set_ylabel(name, fontsize=8)
    shares = [
        f"{name}: {np.round(maps.sum((1, 2)).numpy(), 3).tolist()}, sum {float(maps.sum()):.4f}, "
        f"{float(np.hypot(*(where - record.boxes[chosen, :2]))):.1f} m from the object's centre"
        for name, maps, where in rows
    ]
    return figure, f"query {query}; " + "; ".join(shares)


def calibration(runs: Path) -> tuple[Figure, str]:
    """A trained DETR3D with the cameras' own calibration, and with each camera given that of the next one."""
    detector, scenes = load_scenes(found_run(DETR3D, runs)), 12
    split, hits = surround_data(train=1).split("val"), np.zeros((2, 2))
    figure = sheet(6.4, 3.8)
    axes = figure.subplots(1, 2)
    for index in range(scenes):
        record, images = split[index], split.read(index)
        for place, matrices in enumerate((record.lidar2img, np.roll(record.lidar2img, 1, 0))):
            result = detector.predict(images, matrices, threshold=0.0)
            apart = np.linalg.norm(record.boxes[:, None, :2] - result.boxes[None, :20, :2], axis=2)
            near = (apart < 4) & (record.labels[:, None] == result.labels[None, :20])
            hits[place] += near.any(1).sum(), len(near)
            if index == 0:
                from_above(axes[place], "")
                outlines(axes[place], record.boxes, "#9aa5b1", "-", 2.5)
                outlines(axes[place], result.boxes[result.scores >= detector.threshold], RED)
    shares = hits[:, 0] / hits[:, 1]
    for axis, name, share in zip(axes, ("own calibration", "calibration of the next camera"), shares, strict=True):
        axis.set_title(f"{name}\n{scenes} scenes: {share:.0%} of objects found", fontsize=9)
    return (
        figure,
        f"of {int(hits[0, 1])} objects, found within 4 m by the 20 best: {shares[0]:.3f} with their own, {shares[1]:.3f} with the next",
    )


# -- 7: without labels ----------------------------------------------------------------------------------------------------------


def pretext(runs: Path) -> tuple[Figure, str]:
    """Random query patch detection: patches of an image, and where they were cropped from."""
    _, image = scene()
    random = np.random.default_rng(3)
    colours = (GOLD, "#3ddbd9", RED)
    corners = [random.integers(5, 95, 2) for _ in colours]
    sizes = [random.integers(30, 56, 2) for _ in colours]
    figure = sheet(7.2, 2.6)
    axes = figure.subplots(1, 4, width_ratios=[2, 1, 1, 1])
    bare(axes[0], "the image and the targets").imshow(image)
    for k, (corner, size, colour) in enumerate(zip(corners, sizes, colours, strict=True)):
        (left, top), (right, bottom) = corner.tolist(), (corner + size).tolist()
        box = (left, top, right, bottom)
        framed(axes[0], box, colour, "-", 2)
        bare(axes[k + 1], f"given to query {k + 1}").imshow(image.crop(box))
        for spine in axes[k + 1].spines.values():
            spine.set(color=colour, linewidth=3)
    return figure, "three patches"


def groups(runs: Path) -> tuple[Figure, str]:
    """Which queries attend to each other while patches are learned, and afterwards."""
    patch = patch_of_query(40, 10)
    shared = (patch[:, None] == patch).int()
    figure = sheet(6.4, 3.0)
    axes = figure.subplots(1, 2)
    for axis, allowed, title in zip(axes, (shared, torch.ones_like(shared)), ("10 patches, 4 queries each", "with labels"), strict=True):
        axis.imshow(allowed, cmap="YlGnBu", vmin=0, vmax=1.6)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("may attend to query", fontsize=8)
        axis.set_ylabel("query", fontsize=8)
        axis.tick_params(labelsize=7)
    return figure, f"{int(shared.sum())} of {shared.numel()} pairs"


def pseudo_labels(runs: Path) -> tuple[Figure, str]:
    """What the bundled model detects in held-out scenes, taken for labels: right, wrong and missing ones, by threshold."""
    teacher, split, scenes = bq.load("shapes"), shapes_data().splits["val"], 50
    thresholds = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    right, labels, objects = np.zeros(len(thresholds)), np.zeros(len(thresholds)), 0
    for index in range(scenes):
        result, record = teacher.predict(split.read(index), threshold=0.0), split[index]
        objects += len(record.boxes)
        for place, threshold in enumerate(thresholds):
            kept = result.scores >= threshold
            fits = box_iou(torch.from_numpy(record.boxes).double(), torch.from_numpy(result.boxes[kept]).double()).numpy() >= 0.5
            fits &= record.labels[:, None] == result.labels[kept]
            right[place] += fits[linear_sum_assignment(-fits.astype(float))].sum()
            labels[place] += kept.sum()
    figure = sheet(5.6, 2.8)
    axis = clean(figure.subplots())
    for k, (name, values, colour) in enumerate(
        (("right", right, TEAL), ("wrong", labels - right, RED), ("missing", objects - right, "#9aa5b1"))
    ):
        bars = axis.bar(np.arange(len(thresholds)) + 0.28 * (k - 1), 100 * values / objects, 0.27, color=colour, label=name)
        axis.bar_label(bars, fmt="%.0f", fontsize=7)
    axis.set_xticks(range(len(thresholds)), [f"{t:g}" for t in thresholds], fontsize=8)
    axis.set_xlabel("lowest score of a label", fontsize=8)
    axis.set_ylabel("% of the true objects", fontsize=8)
    axis.legend(fontsize=8, frameon=False, ncols=3)
    axis.margins(y=0.25)
    axis.set_title(f"{scenes} held-out scenes, labelled by the model that comes along", fontsize=9)
    return figure, "; ".join(
        f"{t:g}: {r / objects:.3f} right, {(n - r) / objects:.3f} wrong, {1 - r / objects:.3f} missing"
        for t, r, n in zip(thresholds, right, labels, strict=True)
    )


# -- 8: open questions ----------------------------------------------------------------------------------------------------------


def winners(runs: Path) -> tuple[Figure, str]:
    """How often each query of the trained models detects an object."""
    split, shares = shapes_data().splits["val"], {}
    for name in FAMILY:
        try:
            detector = trained(name, runs)
        except Missing:
            continue
        won, scenes = 0, 100
        for index in range(scenes):
            explanation = explain(detector, split.read(index), threshold=0.3)
            hit = np.zeros(len(explanation.scores[-1]))
            hit[explanation.found] = 1
            won = won + hit
        shares[name] = np.sort(won / scenes)[::-1]
    if not shares:
        raise Missing("any model")
    figure = sheet(5.6, 2.7)
    axis = clean(figure.subplots())
    for name, values in shares.items():
        axis.plot(np.arange(1, len(values) + 1) / len(values) * 100, values * 100, label=f"{name}: {len(values)} queries")
    axis.set_xlabel("queries, the busiest first, in %", fontsize=8)
    axis.set_ylabel("detects something, % of scenes", fontsize=8)
    axis.set_title("100 scenes: how often each query detects something (score from 0.3)", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    return figure, "; ".join(
        f"{name}: {values.sum():.1f} detections per scene, {(values == 0).mean():.0%} of queries idle" for name, values in shares.items()
    )


def borders(runs: Path) -> tuple[Figure, str]:
    """A convolutional network on an empty image: its features still reveal the border."""
    torch.manual_seed(0)
    backbone = Backbone("resnet18", 1).eval()
    with torch.no_grad():
        (features,) = backbone(torch.ones(1, 3, 512, 512))
    grid = features[0].permute(1, 2, 0)
    middle = grid[grid.shape[0] // 2, grid.shape[1] // 2]
    away = (grid - middle).norm(dim=-1) / middle.norm()
    figure = sheet(4.2, 3.0)
    axis = figure.subplots()
    shown = bare(axis, "empty image: distance of each cell's\nfeatures from the middle cell's").imshow(away, cmap="viridis", vmin=0)
    figure.colorbar(shown, ax=axis).ax.tick_params(labelsize=7)
    return (
        figure,
        f"in the corners {float(away[0, 0]):.2f}, beside the middle {float(away[grid.shape[0] // 2, grid.shape[1] // 2 - 1]):.2f}",
    )


def taught(runs: Path) -> tuple[Figure, str]:
    """The share of 100 queries that are matched to an object, one to one and one to many."""
    objects = np.array([len(record.boxes) for record in shapes_data().splits["val"][:]])
    repeats = (1, 2, 4, 6)
    share = [100 * np.minimum(objects * k, 100).mean() / 100 for k in repeats]
    figure = sheet(5.2, 2.5)
    axis = clean(figure.subplots())
    axis.bar_label(axis.bar([str(k) for k in repeats], share, color=TEAL), fmt="%.0f %%", fontsize=8)
    axis.set_xlabel("queries matched to each object", fontsize=8)
    axis.set_ylabel("of 100 queries, %", fontsize=8)
    axis.set_title("queries that learn a box per built-in scene, on average", fontsize=9)
    axis.margins(y=0.2)
    return figure, f"{objects.mean():.1f} objects per scene; shares {np.round(share, 1).tolist()} %"


FIGURES: dict[str, Callable[[Path], tuple[Figure, str]]] = {
    "attention": attention,
    "sharpness": sharpness,
    "patches": patches,
    "pieces": pieces,
    "positions": positions,
    "queries-start": start_of_queries,
    "matching": matching,
    "layers": deep_supervision,
    "duplicates": duplicates,
    "even": even,
    "start": start,
    "sampling": sampling,
    "cost": cost,
    "gaussian": gaussian,
    "anchors": anchors,
    "row-column": row_column,
    "boxes": boxes,
    "likeness": likeness,
    "salient": salient,
    "after": after,
    "regions": regions,
    "two-spaces": two_spaces,
    "rays": rays,
    "projected": projected,
    "one-and-six": one_and_six,
    "calibration": calibration,
    "pretext": pretext,
    "groups": groups,
    "pseudo-labels": pseudo_labels,
    "winners": winners,
    "borders": borders,
    "taught": taught,
}


def save(figure: Figure, out: Path) -> None:
    """As a PNG of 256 colours: a third of the size."""
    drawn, part = BytesIO(), out.with_suffix(".part")
    figure.savefig(drawn, dpi=100, format="png")
    Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(part, format="png", optimize=True)
    part.replace(out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(FIGURES)}; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/convergence"), help="folder of trained runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "figures")
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or FIGURES:
        try:
            figure, numbers = FIGURES[name](args.runs)
        except Missing as missing:
            print(f"{name}: left as it is, no finished run of {missing} in {args.runs}", file=sys.stderr)
            continue
        save(figure, args.out / f"{name}.png")
        print(f"{name}: {numbers}", flush=True)


if __name__ == "__main__":
    main()
