"""``boxquery explain``: pages, figures and tables about what a run's queries did. Imports no torch until it is called."""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console, RenderableType

from boxquery.data.scenes.open import holds_scenes, only_images
from boxquery.errors import UserError
from boxquery.files import atomic_write
from boxquery.flags import Device, Switch

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from boxquery.data.dataset import Data
    from boxquery.detector import Detector
    from boxquery.explain.explanation import Explanation
    from boxquery.explain.missed import MissedObjects
    from boxquery.explain.usage import Usage

_SCENE = "shapes:"


@dataclass
class ExplainResult:
    """What ``boxquery explain`` found and wrote: tables and paths on the terminal, JSON with ``--json``.

    Attributes:
        explanations: per image and run ``Explanation.summary``, with ``run``, and ``faithfulness`` and ``relevance`` if requested.
        files: the files written.
        data: the results over data sets, by flag: "missed", "usage".
        tables: printed on the terminal.
    """

    explanations: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    tables: list[RenderableType] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        data = {name: result.summary() for name, result in self.data.items()}
        return {"explanations": self.explanations, "files": [str(path) for path in self.files], **data}

    def show(self) -> None:
        console = Console(highlight=False)
        for table in self.tables:
            console.print(table)
        for result in self.data.values():
            result.show()
        for path in self.files:
            console.print(f"written: {path}", markup=False, soft_wrap=True)


@dataclass
class _Explained:
    """An explanation with its run, and the query and its map of relevance for a figure."""

    run: str
    detector: Detector
    explanation: Explanation
    query: int
    relevance: Tensor | None = None


def explain(
    run: str,
    /,
    *images: str,
    query: int | None = None,
    box: str | None = None,
    missed: str | None = None,
    usage: str | None = None,
    split: str = "val",
    scene: int = 0,
    threshold: float | None = None,
    against: str | None = None,
    faithful: Switch = False,
    relevance: Switch = False,
    figure: Path | None = None,
    out: Path = Path("explanation"),
    device: Device = "auto",
    download: Switch = False,
    strict: Switch = False,
    image_folder: Annotated[str | None, Parameter(name="--images")] = None,
    annotations: str | None = None,
) -> ExplainResult:
    """Show what every query attends to in each layer, which queries compete for an object, and why objects are missed.

    Args:
        run: Run folder, model folder (ours or one of transformers) or hub id.
        images: Image files; shapes:17 is scene 17 of the built-in validation scenes. For a model of several cameras, nuScenes' folder, or
            the word ``surround``: a page with what the query of each detection read from which cameras.
        query: Number of the query to explain. Default: all detections.
        box: Explain the query whose box is centred nearest to this point, written x,y in pixels.
        missed: Data set in which to explain why objects have no detection.
        usage: Data set over which to show how often each query is used, and where.
        split: Split of the data sets of --missed and --usage, and of scenes of several cameras.
        scene: Of scenes of several cameras: which one, by its place in the split, from 0.
        threshold: Minimum score of a detection, 0 to 1. Default: the one of the best F1 in training.
        against: Second run, shown beside the first on the same images.
        faithful: Measure whether detections depend on the pixels that attention maps point to; many times slower.
        relevance: Compute relevance by gradients: its share inside each box, and a last row of the figure.
        figure: File (.png or .svg) for a figure of one query, with a row per layer and a column per image and run.
        out: Folder to write pages to, or the name of one page that ends with .html for all images.
        device: Where the model runs.
        download: Fetch a model from the hub also if it has more than 200 MB.
        strict: Stop at invalid boxes and images of a data set instead of skipping them.
        image_folder: Folder of the data set's images, where it is not found by itself. Relative to the data or the working directory.
        annotations: Folder or file of its annotations, where it is not found by itself. Relative to the data or the working directory.
    """
    if images and holds_scenes(images[0]):
        flags = {"box": box, "missed": missed, "usage": usage, "against": against, "faithful": faithful, "relevance": relevance}
        only_images(flags | {"figure": figure, "images": image_folder, "annotations": annotations}, images[0])
        from boxquery.explain.scene_command import explain_in_data

        found, page = explain_in_data(
            run, images[0], split=split, scene=scene, query=query, threshold=threshold, out=out, device=device, download=download,
            strict=strict,
        )  # fmt: skip
        return ExplainResult([found.summary()], [page], tables=[found.table()])
    if not images and missed is None and usage is None:
        raise UserError("explain: name images (files, or shapes:17 for a built-in scene), or give --missed DATA or --usage DATA")
    if query is not None and box is not None:
        raise UserError("--query and --box both choose the query; give one of them")
    if not images and (figure is not None or query is not None or box is not None or against is not None or faithful or relevance):
        raise UserError("--figure, --query, --box, --against, --faithful and --relevance are about images; name some")
    point = None if box is None else _parse_point(box)
    one_page = out.suffix.lower() == ".html"
    folder = out.parent if one_page else out
    _check_folder(folder)
    if figure is not None:
        from boxquery.explain.figure import check_figure

        check_figure(figure)
        _check_folder(figure.parent)

    from boxquery.device import choose_device
    from boxquery.model_folder import load

    place = choose_device(device)
    runs = [(name, load(name, download=download).to(place)) for name in (run, against) if name is not None]
    sources = {name: source for name, source in (("missed", missed), ("usage", usage)) if source is not None}
    opened = {source: _open(source, split, strict, image_folder, annotations, runs[0][1]) for source in dict.fromkeys(sources.values())}
    result, shown, pages = ExplainResult(), [], {}
    reserved = {folder / f"{name}.html" for name in sources}
    for name in images:
        explained = _explain_image(name, runs, threshold, query, point)
        for each in explained:
            _add_values(each, faithful, relevance, result)
        if one_page or figure is not None:
            shown += explained
        if not one_page:
            pages[_free_path(folder, name, pages.keys() | reserved)] = _page(explained)
    if one_page and shown:
        pages[out] = _page(shown)
    result.files += [atomic_write(path, text) for path, text in pages.items()]
    if figure is not None:
        result.files.append(_write_figure(shown, figure))
    for name, source in sources.items():
        result.data[name] = _over_data(name, runs[0][1], opened[source], split, threshold, strict)
        result.files.append(result.data[name].write(folder))
    return result


def _parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--box {text}: write x,y in pixels of the image, as --box 120,48") from error
    return x, y


def _check_folder(path: Path) -> None:
    """Raise ``UserError`` if the folder, or one above it, is a file."""
    first = next(each for each in (path, *path.parents) if each.exists())
    if not first.is_dir():
        raise UserError(f"{path}: {first} is a file, so nothing can be written there; choose another folder")


def _read(name: str) -> Image.Image:
    """An image file, or ``shapes:N``."""
    from boxquery.data.images import read_image
    from boxquery.data.shapes import shapes_data

    number = name.removeprefix(_SCENE)
    if number == name:
        return read_image(name)
    scenes = shapes_data().splits["val"]
    if not number.isdecimal() or int(number) >= len(scenes):
        raise UserError(f"{name}: write {_SCENE} and a number from 0 to {len(scenes) - 1}")
    return scenes.read(int(number))


def _free_path(folder: Path, name: str, taken: Container[Path]) -> Path:
    """A page's path by its image's name, with a number if that is taken."""
    stem = name.replace(":", "-") if name.startswith(_SCENE) else Path(name).stem
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(path for each in names if (path := folder / f"{each}.html") not in taken)


def _explain_image(
    name: str, runs: Sequence[tuple[str, Detector]], threshold: float | None, query: int | None, point: tuple[float, float] | None
) -> list[_Explained]:
    """One image by every run; the second run explains the query for the same object as the first."""
    from boxquery.explain.explanation import explain

    image, explained = _read(name), []
    for run, detector in runs:
        explanation = replace(explain(detector, image, threshold=threshold), path=name)
        if point is not None:
            chosen = explanation.nearest(*point)
        elif explained:
            chosen = explanation.at(explained[0].explanation.boxes[-1, explained[0].query])
        else:
            chosen = explanation.shown[0] if query is None else query
        if query is not None or point is not None:
            explanation = explanation.choose(chosen)
        explained.append(_Explained(run, detector, explanation, chosen))
    return explained


def _add_values(each: _Explained, faithful: bool, relevance: bool, result: ExplainResult) -> None:
    """Add an explanation's values and tables to the result, and its map of relevance to itself."""
    explanation, values = each.explanation, {"run": each.run, **each.explanation.summary()}
    result.explanations.append(values)
    result.tables.append(explanation.table())
    layers = explanation.present(each.query)
    pruned = layers < len(explanation.boxes)
    if pruned and explanation.chosen is not None:  # nothing predicted at the end that could be judged
        values |= {name: None for name, requested in (("faithfulness", faithful), ("relevance", relevance)) if requested}
        if faithful or relevance:
            result.tables.append(f"query {each.query} was pruned after layer {layers}: it has no detection to judge")
        return
    if faithful:
        from boxquery.explain.faithfulness import faithfulness

        values["faithfulness"] = summary = faithfulness(each.detector, explanation, explanation.shown).summary()
        for name in ("deletion", "insertion"):
            areas = ", ".join(f"{order} {area:.2f}" for order, area in summary[name].items())
            result.tables.append(f"{name}, area under the curve by order of pixels: {areas}")
    if relevance:
        from boxquery.explain.relevance import relevances

        queries = explanation.shown if pruned or each.query in explanation.shown else [*explanation.shown, each.query]
        maps = relevances(each.detector, explanation.image, queries).map
        each.relevance = None if pruned else maps[queries.index(each.query)]
        values["relevance"] = rows = [_inside(explanation, *pair) for pair in zip(explanation.shown, maps, strict=False)]
        for row in rows:
            result.tables.append(
                f"query {row['query']}: its box, {row['share_of_image']:.0%} of the image, holds "
                f"{row['attention_inside']:.0%} of its attention and {row['inside']:.0%} of its relevance"
            )


def _inside(explanation: Explanation, query: int, heat: Tensor) -> dict[str, Any]:
    attention = explanation.inside(query, explanation.heatmap(query).map)
    inside, share = explanation.inside(query, heat), explanation.share(query)
    return {"query": query, "inside": inside, "attention_inside": attention, "share_of_image": share}


def _titles(explained: Sequence[_Explained]) -> list[str]:
    """The names of the runs' folders, or whole paths if two have the same name."""
    runs = {each.run for each in explained}
    short = {run: Path(run).name or run for run in runs}
    return [short[each.run] if len(set(short.values())) == len(runs) else each.run for each in explained]


def _page(explained: Sequence[_Explained]) -> str:
    from boxquery.explain.page import explanation_page

    return explanation_page([each.explanation for each in explained], titles=_titles(explained))


def _write_figure(explained: Sequence[_Explained], path: Path) -> Path:
    from boxquery.explain.figure import write_figure

    return write_figure(
        [each.explanation for each in explained],
        path,
        queries=[each.query for each in explained],
        titles=_titles(explained),
        relevances=[each.relevance for each in explained],
    )


def _over_data(name: str, detector: Detector, data: Data, split: str, threshold: float | None, strict: bool) -> MissedObjects | Usage:
    from boxquery.explain.missed import missed
    from boxquery.explain.usage import usage

    return {"missed": missed, "usage": usage}[name](detector, data, split, threshold=threshold, strict=strict)


def _open(source: str, split: str, strict: bool, images: str | None, annotations: str | None, detector: Detector) -> Data:
    """A data set that has the split and only classes that the detector knows; its notes and skipped images are printed on stderr."""
    from boxquery.data.open import open_data
    from boxquery.explain.inference import open_split

    data = open_data(source, strict=strict, images=images, annotations=annotations)
    open_split(detector, data, split)
    for line in data.messages():
        print(line, file=sys.stderr)
    return data
