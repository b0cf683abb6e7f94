"""What one query looks at, layer by layer, in a trained model: the picture of docs/models/NAME.md.

    python benchmarks/pictures.py RUN OUT.png [--scene N] [--object K]

A held-out built-in scene: left the truth (dashed) and the model's detections; then, for the query that answers the chosen object best in
the last layer, what it read in each decoder layer (its heat map, brightest where it read most), the reference it was placed at (a cross,
dotted if it is a box) and the box that the layer predicts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torchvision.ops import box_convert, box_iou

import boxquery as bq
from boxquery.data.open import open_data
from boxquery.detector import Detector


def query_of(detector: Detector, boxes: torch.Tensor, wanted: torch.Tensor) -> int:
    """The query whose last box [Q, 4] overlaps the wanted one most."""
    return int(box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted[None], "cxcywh", "xyxy"))[:, 0].argmax())


@torch.no_grad()
def draw(run: Path, out: Path, scene: int, number: int | None) -> None:
    detector = bq.load(str(run))
    split = open_data("shapes").splits["test"]
    record, pixels = split[scene], split.read(scene)
    width, height = pixels.size
    traced = detector.model(detector.transform(pixels)[None], trace=True)
    truth = torch.from_numpy(record.boxes) / torch.tensor([width, height, width, height])
    sizes = truth[:, 2:] - truth[:, :2]
    chosen = int(sizes.prod(-1).argmax()) if number is None else number
    wanted = box_convert(truth[chosen], "xyxy", "cxcywh")
    query = query_of(detector, traced.boxes[-1, 0], wanted)
    found = detector.predict(pixels)

    layers = traced.trace.layers
    figure = Figure(figsize=(2.6 * (1 + len(layers)), 3.0), layout="constrained")
    axes = figure.subplots(1, 1 + len(layers))
    for axis in axes:
        axis.imshow(pixels)
        axis.set_axis_off()
    axes[0].set_title("truth and detections", fontsize=10)
    for box in record.boxes:
        axes[0].add_patch(_frame(box, "white", "--"))
    for box in found.boxes:
        axes[0].add_patch(_frame(box, "#ffd23f", "-"))
    scale = torch.tensor([width, height, width, height])
    for i, (axis, layer) in enumerate(zip(axes[1:], layers, strict=True)):
        heat = layer.heatmap(query, (height, width))
        share = heat.map / heat.map.max().clamp(min=1e-12)
        axis.imshow(share, cmap="inferno", alpha=(0.35 + 0.6 * share).clamp(max=0.95).numpy(), vmin=0)
        axis.add_patch(_frame(record.boxes[chosen], "white", "--"))
        axis.add_patch(_frame(box_convert(layer.boxes[0, query] * scale, "cxcywh", "xyxy"), "#ffd23f", "-"))
        if layer.reference is not None:
            at = layer.reference[0, query] * scale[: layer.reference.shape[-1]]
            if len(at) == 4:
                axis.add_patch(_frame(box_convert(at, "cxcywh", "xyxy"), "#3ddbd9", ":"))
            axis.plot(float(at[0]), float(at[1]), marker="+", ms=9, mew=1.8, color="#3ddbd9")
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axis.set_title(f"layer {i + 1}: read", fontsize=10)
    figure.savefig(out, dpi=80)


def _frame(box, colour: str, style: str) -> Rectangle:
    left, top, right, bottom = (float(v) for v in box)
    return Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, ls=style, lw=1.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scene", type=int, default=5)
    parser.add_argument("--object", type=int, help="its number in the scene; the largest if left out")
    given = parser.parse_args()
    draw(given.run, given.out, given.scene, given.object)


if __name__ == "__main__":
    main()
