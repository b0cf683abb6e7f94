"""``boxquery explain``: pages, figures and tables about what a run's queries did. Imports no torch until it is called."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from boxquery.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from boxquery.data.dataset import Data
    from boxquery.detector import Detector
    from boxquery.explain.explanation import Explanation

_SCENE = "shapes:"


@dataclass
class Explained:
    """What was said and written; a person reads tables and paths, a program JSON.

    Attributes:
        explanations: plain values of each, see ``Explanation.summary``; with ``run``, and ``faithfulness`` and ``relevance`` where asked.
        files: what was written, in this order.
        over: what was found over a data set, by "missed" and "usage".
        tables: for people.
    """

    explanations: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    over: dict[str, Any] = field(default_factory=dict)
    tables: list[RenderableType] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        over = {name: found.summary() for name, found in self.over.items()}
        return {"explanations": self.explanations, "files": [str(path) for path in self.files], **over}

    def show(self) -> None:
        console = Console(highlight=False)
        for table in self.tables:
            console.print(table)
        for found in self.over.values():
            found.show()
        for path in self.files:
            console.print(f"written: {path}", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class _Wish:
    """What was asked about every image."""

    query: int | None
    point: tuple[float, float] | None
    threshold: float | None
    faithful: bool
    relevance: bool


@dataclass(frozen=True, eq=False)
class _Told:
    """An explanation with the run it is of, and the query that a figure shows of it."""

    run: str
    story: Explanation
    query: int
    relevance: Any


def explain(
    run: str,
    /,
    *images: str,
    query: int | None = None,
    box: str | None = None,
    missed: str | None = None,
    usage: str | None = None,
    split: str = "val",
    threshold: float | None = None,
    against: str | None = None,
    faithful: bool = False,
    relevance: bool = False,
    figure: Path | None = None,
    out: Path = Path("explanation"),
    device: str = "auto",
    strict: bool = False,
) -> Explained:
    """What every query looked at, layer by layer, which queries wanted the same object, and where features came from; as a page.

    Args:
        run: a run folder, a model folder or a hub id.
        images: files; ``shapes:17`` is scene 17 of the built-in validation scenes.
        query: the one to speak of; else all detections.
        box: ``x,y`` in pixels of the image: speak of the query whose box has its centre nearest to this point.
        missed: a data set; why objects of it have no detection.
        usage: a data set; how the queries are used over it.
        split: of these data sets.
        threshold: least score of a detection, 0 to 1; the one of the best F1 in training if not given.
        against: a second run, beside the first on the same images.
        faithful: take the pixels away that the maps point to, and see whether detections go; takes many times as long.
        relevance: a second opinion by gradients: how much of it is inside each box, and a last row of the figure.
        figure: ``.png`` or ``.svg``, one query by layers, for a paper; a column for each image and run.
        out: a folder, or one page that ends with ``.html``, beside which the pages of data sets are put.
        device: "auto", "cpu" or "cuda".
        strict: boxes and images of a data set at fault are fatal instead of skipped.
    """
    if not images and missed is None and usage is None:
        raise UserError("explain: name images to look at (files, or shapes:17 for a built-in scene), or --missed DATA or --usage DATA")
    if query is not None and box is not None:
        raise UserError("--query and --box both choose the query; give one of them")
    if not images and (figure is not None or query is not None or box is not None or against is not None or faithful or relevance):
        raise UserError("--figure, --query, --box, --against, --faithful and --relevance are about images; name some")
    wish = _Wish(query, None if box is None else _point(box), threshold, faithful, relevance)
    one_page = out.suffix.lower() == ".html"
    folder = out.parent if one_page else out
    if figure is not None:
        from boxquery.explain.figure import checked_ending

        checked_ending(figure)
    for path in (folder, *([figure.parent] if figure else [])):
        _check_folder(path)
    runs = [_Run(name, device) for name in (run, *([against] if against else []))]
    for word in images:
        _check(word, wish)
    sources = {name: source for name, source in (("missed", missed), ("usage", usage)) if source is not None}
    opened = {source: _opened(source, split, strict, runs[0].detector) for source in dict.fromkeys(sources.values())}
    over = {name: opened[source] for name, source in sources.items()}
    done, kept, names = Explained(), [], set(over)
    for word in images:
        told = _tell(word, runs, wish, done)
        if one_page or figure is not None:
            kept += told
        if not one_page:
            _page(told, folder / f"{_free(_stem(word), names)}.html", done)
    if one_page and kept:
        _page(kept, out, done)
    if figure is not None:
        _figure(kept, figure, done)
    _over(runs[0].detector, over, split, threshold, folder, strict, done)
    return done


class _Run:
    """A detector and what it is called."""

    def __init__(self, name: str, device: str):
        from boxquery.detector import load
        from boxquery.device import choose_device

        self.name, self.detector = name, load(name).to(choose_device(device))


def _point(word: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in word.split(","))
    except ValueError as error:
        raise UserError(f"--box {word}: write x,y in pixels of the image, as --box 120,48") from error
    return x, y


def _check_folder(path: Path) -> None:
    """``UserError`` where something on the way to the folder is a file."""
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"{path}: {place} is a file, so nothing can be written there; choose another place")
            return


def _check(word: str, wish: _Wish) -> None:
    """``UserError`` for an image that cannot be read or does not have the point, before anything is written."""
    from boxquery.explain.explanation import check_inside

    image = _image(word)
    if wish.point is not None:
        check_inside(*wish.point, (image.height, image.width))


def _image(word: str) -> Image.Image:
    from boxquery.data.images import read_image
    from boxquery.data.shapes import shapes_data

    number = word.removeprefix(_SCENE)
    if number == word:
        return read_image(word)
    scenes = shapes_data().splits["val"]
    if not number.isdecimal() or int(number) >= len(scenes):
        raise UserError(f"{word}: write {_SCENE} and a number from 0 to {len(scenes) - 1}")
    return scenes.read(int(number))


def _stem(word: str) -> str:
    return word.replace(":", "-") if word.startswith(_SCENE) else Path(word).stem


def _free(stem: str, names: set[str]) -> str:
    """The stem, with a number where another image has it."""
    name, number = stem, 1
    while name in names:
        number += 1
        name = f"{stem}-{number}"
    names.add(name)
    return name


def _tell(word: str, runs: list[_Run], wish: _Wish, done: Explained) -> list[_Told]:
    """One image by every run; values and tables go to ``done``."""
    from dataclasses import replace

    image, told = _image(word), []
    for run in runs:
        story = replace(run.detector.explain(image, threshold=wish.threshold), path=word)
        # a second run speaks of the same object
        goal = told[0].story.boxes[-1, told[0].query] if told else None
        query = wish.query if goal is None else story.at(goal)
        if wish.point is not None:
            query = story.nearest(*wish.point)
        if wish.query is not None or wish.point is not None:
            assert query is not None
            story = story.choose(query)
        query = story.shown[0] if query is None else query
        values = {"run": run.name, **story.summary()}
        done.tables.append(story.table())
        told.append(_Told(run.name, story, query, _opinions(run.detector, story, query, wish, values, done)))
        done.explanations.append(values)
    return told


def _opinions(detector: Detector, story: Explanation, query: int, wish: _Wish, values: dict[str, Any], done: Explained) -> Any:
    """Faithfulness and relevance into ``values`` and ``done``; returns the relevance of ``query`` as a function of the size of the map.

    A query that the model dropped has no answer in the end of which they could speak: None, and a line for people.
    """
    dropped = story.present(query) < len(story.boxes)
    if dropped and story.chosen == query and (wish.faithful or wish.relevance):
        values |= {name: None for name, asked in (("faithfulness", wish.faithful), ("relevance", wish.relevance)) if asked}
        done.tables.append(f"query {query} was dropped after layer {story.present(query)}: it has no detection to judge")
        return None
    if wish.faithful:
        from boxquery.explain.faithfulness import faithfulness

        judged = faithfulness(detector, story, story.shown).summary()
        values["faithfulness"] = judged
        for what in ("deletion", "insertion"):
            areas = ", ".join(f"by {order} {area:.2f}" for order, area in judged[what].items())
            done.tables.append(f"{what} (area under the curve): {areas}")
    if not wish.relevance:
        return None
    from boxquery.explain.relevance import relevance, relevances

    heats = relevances(detector, story.image, story.shown).map
    values["relevance"] = rows = [
        {
            "query": each,
            "inside": story.inside(each, heat),
            "attention_inside": story.inside(each, story.heatmap(each).map),
            "share_of_image": story.share(each),
        }
        for each, heat in zip(story.shown, heats, strict=True)
    ]
    for row in rows:
        done.tables.append(
            f"query {row['query']}: inside its box, which is {row['share_of_image']:.0%} of the image, "
            f"are {row['attention_inside']:.0%} of the attention and {row['inside']:.0%} of the relevance"
        )
    return None if dropped else lambda size: relevance(detector, story.image, query, size=size).map


def _titles(told: list[_Told]) -> list[str]:
    """The runs' names, as short as tells them apart."""
    runs = {each.run for each in told}
    short = {run: Path(run).name or run for run in runs}
    return [short[each.run] if len(set(short.values())) == len(runs) else each.run for each in told]


def _page(told: list[_Told], path: Path, done: Explained) -> None:
    from boxquery.explain.page import write_page

    done.files.append(write_page([each.story for each in told], path, titles=_titles(told)))


def _figure(told: list[_Told], path: Path, done: Explained) -> None:
    from boxquery.explain.figure import write_figure

    done.files.append(
        write_figure(
            [each.story for each in told],
            path,
            queries=[each.query for each in told],
            titles=_titles(told),
            relevances=[each.relevance for each in told],
        )
    )


def _over(
    detector: Detector, wanted: dict[str, Data], split: str, threshold: float | None, folder: Path, strict: bool, done: Explained
) -> None:
    if "missed" in wanted:
        from boxquery.explain.missed import missed

        done.over["missed"] = missed(detector, wanted["missed"], split, threshold=threshold, strict=strict)
    if "usage" in wanted:
        from boxquery.explain.usage import usage

        done.over["usage"] = usage(detector, wanted["usage"], split, threshold=threshold, strict=strict)
    done.files += [found.write(folder) for found in done.over.values()]


def _opened(source: str, split: str, strict: bool, detector: Detector) -> Data:
    """The data set, which has the split and no unknown class; what was decided about it and left out of it goes to stderr."""
    from boxquery.data.open import open_data
    from boxquery.evaluation.predictions import say
    from boxquery.explain.inference import records_of

    data = open_data(source, strict=strict)
    records_of(detector, data, split)
    for note in data.notes:
        print(note, file=sys.stderr)
    for line in data.skipped:
        say(line)
    return data
