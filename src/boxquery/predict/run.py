"""From sources to files: what ``boxquery predict`` does once it knows its detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from boxquery.predict.outputs import ResultWriter
from boxquery.predict.reading import Reader, count_images
from boxquery.predict.sources import Source
from boxquery.predict.summary import Summary
from boxquery.predict.tracking import Tracker
from boxquery.predict.watch import WatchedFolders
from boxquery.progress import Progress
from boxquery.result import Result


@dataclass(frozen=True)
class Finished:
    """How it went: images per second; after Ctrl-C, how far it came, in words."""

    rate: float
    interrupted: str = ""


def run(
    predict: Callable[[Iterator[Image.Image]], Iterator[Result]],
    sources: Sequence[Source] | WatchedFolders,
    writer: ResultWriter,
    summary: Summary,
    *,
    every: int = 1,
    tracker: Tracker | None = None,
) -> Finished:
    """Look at all sources; what is found goes to ``writer`` and ``summary``.

    Args:
        predict: from images to their results, in order, as it needs them.
        every: only each n-th frame of a video.
        tracker: follows objects from frame to frame.

    Ctrl-C ends it with what was found until then; before the first result it is raised.
    """
    watching = isinstance(sources, WatchedFolders)
    total = None if watching else count_images(sources, every)
    with Progress("predict", total) as progress, writer:
        reader = Reader(sources, summary, progress, every=every, number=None if watching else len(sources))
        try:
            for result in predict(reader.images()):
                item = reader.take()
                result = result if tracker is None else tracker.update(item, result)
                writer.add(item, result)
                summary.add(item, result)
                progress.advance()
        except KeyboardInterrupt:
            if not summary.images + summary.frames:
                raise
            of = f" of {total:,}" if total is not None and not summary.frames else ""
            return Finished(progress.rate, f"{summary.images:,}{of} images" if of else summary.looked_at())
    return Finished(progress.rate)
