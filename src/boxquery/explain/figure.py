"""A figure for a paper: what one query of each model attends to, layer by layer. matplotlib is imported only when a figure is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from boxquery.errors import UserError
from boxquery.explain.explanation import Explanation
from boxquery.files import atomic_write
from boxquery.pages.drawing import colour, font_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm

ENDINGS = (".png", ".svg")
#: multiple of uniform attention at which the colour scale ends
MOST = 100.0
_WIDTH, _DPI, _LETTERS = 3, 160, 42  # of a column in inches, pixels per inch, letters that fit into a line


def check_figure(path: Path) -> None:
    """Raise ``UserError`` if no figure can be drawn to this path: wrong ending, or matplotlib is missing."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: the name of a figure must end with {' or '.join(ENDINGS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path}: drawing a figure needs matplotlib; run pip install 'boxquery[viz]'") from error


def write_figure(
    explanations: Sequence[Explanation],
    path: Path,
    *,
    queries: Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
    relevances: Sequence[Tensor | None] | None = None,
) -> Path:
    """Write a figure with a column per explanation and a row per decoder layer.

    A panel shows the query's attention map (see ``draw_map``), the box that the layer predicts (solid) and the reference that the layer
    starts from (dashed, or a cross if it is a point), with class and score below. A query that is pruned has no panels after that.

    Args:
        explanations: of any models and images.
        path: ``.png``, or ``.svg`` for text and lines that can be scaled.
        queries: one per explanation; default: the first of its ``shown``.
        titles: one per explanation; default: its model's name.
        relevances: one per explanation, a relevance map [h, w] of its query for a last row, or None.

    Raises ``UserError`` as ``check_figure`` does.
    """
    check_figure(path)
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    queries = [each.shown[0] for each in explanations] if queries is None else queries
    titles = [each.model for each in explanations] if titles is None else titles
    relevances = [None] * len(explanations) if relevances is None else relevances
    columns = list(zip(explanations, queries, titles, relevances, strict=True))
    rows = max(each.present(query) + (relevance is not None) for each, query, _, relevance in columns)
    height = _WIDTH * max(min(1, each.image.height / each.image.width) for each in explanations)
    fonts = _fonts([*titles, *(str(name) for each in explanations for name in each.classes)])
    file, kind = io.BytesIO(), path.suffix[1:].lower()
    with rc_context({"font.family": fonts, "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "boxquery"}):
        figure = Figure((_WIDTH * len(explanations), (height + 0.3) * rows + 1), dpi=_DPI, layout="constrained")
        axes = figure.subplots(rows, len(explanations), squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False, anchor="NW")
        for place, column in enumerate(columns):
            _draw_column(axes[:, place].tolist(), *column)
        scale = ScalarMappable(*_scale())
        bar = figure.colorbar(scale, ax=axes, location="bottom", panchor=False, shrink=0.7 / len(columns), aspect=30, format="%g")
        bar.set_label("times uniform attention")
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return atomic_write(path, file.getvalue())


def draw_map(axis: Axes, image: Image.Image, heat: Tensor) -> None:
    """Draw a map [h, w] that sums to one over an image in grey, in the image's coordinates.

    The map is transparent up to uniform attention, then brighter on a logarithmic scale up to ``MOST`` times that, in all figures alike.
    """
    extent, (norm, colours) = (0, image.width, image.height, 0), _scale()
    axis.imshow(image.convert("L"), cmap="gray", vmin=-53, vmax=287, extent=extent)
    axis.imshow(heat.numpy() * heat.numel(), cmap=colours, norm=norm, extent=extent)
    axis.autoscale(False)


def _scale() -> tuple[LogNorm, Colormap]:
    """Colours of multiples of uniform attention."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    levels = np.linspace(0, 1, 256)
    colours = colormaps["inferno"](0.25 + 0.75 * levels)
    colours[:, 3] = 0.85 * np.sqrt(levels)
    return LogNorm(1, MOST), ListedColormap(colours).with_extremes(under="none")


def _draw_column(axes: Sequence[Axes], explanation: Explanation, query: int, title: str, relevance: Tensor | None) -> None:
    present, scale = explanation.present(query), _WIDTH * _DPI / max(explanation.size)
    height, width = (max(1, round(side * scale)) for side in explanation.size)
    pruned = f", pruned after layer {present}" if present < len(explanation.boxes) else ""
    axes[0].set_title(f"{fill(title, _LETTERS)}\nquery {query}{pruned}", loc="left", fontsize=9, parse_math=False)
    for layer in range(present):
        heat = explanation.heatmap(query, layer, (height, width))
        reference = None if explanation.references is None else explanation.references[layer, query]
        lost = f", {heat.lost:.0%} outside the image" if heat.lost >= 0.005 else ""
        caption = f"layer {layer + 1}: {explanation.name(query, layer)} {explanation.scores[layer, query]:.2f}{lost}"
        _draw_panel(axes[layer], explanation, query, layer, heat.map, reference, caption)
    if relevance is not None:
        _draw_panel(axes[present], explanation, query, -1, relevance, None, "relevance by gradient, all layers")


def _draw_panel(
    axis: Axes, explanation: Explanation, query: int, layer: int, heat: Tensor, reference: np.ndarray | None, caption: str
) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    draw_map(axis, explanation.image, heat)
    axis.set_xlabel(fill(caption, _LETTERS), loc="left", parse_math=False)
    ink, halo = np.array(colour(int(explanation.labels[layer, query]))) / 255, [withStroke(linewidth=2.6, foreground="#0008")]
    boxes = [(explanation.boxes[layer, query], "-")]
    if reference is not None and len(reference) == 4 and (reference[:2] < reference[2:]).all():
        boxes.append((reference, "--"))
    elif reference is not None:
        axis.plot(*reference[:2], "w+", ms=8, mew=1.5, path_effects=halo)
    for (x1, y1, x2, y2), style in boxes:
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=ink, lw=1.2, ls=style, path_effects=halo))


def _fonts(texts: Iterable[str]) -> list[str]:
    """Families of fonts that can write the texts: matplotlib's own, then one of this machine for letters which that lacks."""
    from matplotlib.font_manager import FontProperties, fontManager

    path = getattr(font_for(texts, 12), "path", None)
    if not isinstance(path, str):  # Pillow's own font, which is none that matplotlib can open
        return ["DejaVu Sans"]
    fontManager.addfont(path)
    return ["DejaVu Sans", FontProperties(fname=path).get_name()]
