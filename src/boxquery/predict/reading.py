"""Pixels of all sources, one image or frame after the other, so that memory does not grow with their number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from boxquery.data.images import read_header, read_image
from boxquery.data.video import Video
from boxquery.data.web import read_web_image
from boxquery.errors import UserError
from boxquery.predict.sources import Item, Source
from boxquery.predict.summary import Summary
from boxquery.progress import Progress


class Reader:
    """Reads sources in order; one that cannot be read is named, counted and left out.

    Args:
        every: only each n-th frame of a video.
        number: of the sources; None: there is no end of them, and it is no error if none can be read.

    Attributes:
        items: what was read and has not been taken yet, in order; ``take`` one per result.
    """

    def __init__(self, sources: Iterable[Source], summary: Summary, progress: Progress, *, every: int = 1, number: int | None = None):
        self.sources, self.summary, self.progress, self.every, self.number = sources, summary, progress, every, number
        self.items: deque[Item] = deque()

    def take(self) -> Item:
        """The item of the next result."""
        return self.items.popleft()

    def images(self) -> Iterator[Image.Image]:
        """Raises ``UserError`` where no source could be read."""
        failed: UserError | None = None
        for source in self.sources:
            try:
                for item, image in self._read(source):
                    self.items.append(item)
                    yield image
            except UserError as error:
                failed = error
                self.summary.unreadable += 1
                if self.number == 1:  # which is the error itself
                    raise
                self.progress.warn(f"skipped: {error.line()}")
                self.progress.advance()
        if failed is not None and self.summary.unreadable == self.number:
            raise UserError(f"none of {self.number} images could be read") from failed

    def _read(self, source: Source) -> Iterator[tuple[Item, Image.Image]]:
        if source.has_frames:
            yield from self._frames(source)
        elif source.kind == "web image":
            yield Item(source), read_web_image(str(source.path))
        else:
            image = read_image(source.path)
            self.summary.remark(source.name, read_header(source.path))
            yield Item(source), image

    def _frames(self, source: Source) -> Iterator[tuple[Item, Image.Image]]:
        video = Video(source.path, every=self.every)
        for frame in video:
            yield Item(source, frame.number, frame.time, video.rate, video.time_base), frame.image
        if video.remark:
            self.progress.warn(f"warning: {source.name}: {video.remark}")


def count_images(sources: Sequence[Source], every: int) -> int | None:
    """How many images and frames there are, by the headers of videos; None if that cannot be known."""
    total = 0
    for source in sources:
        if source.kind == "live":
            return None
        known: int | None = 1
        if source.kind == "video":
            with suppress(UserError):  # it will be named when its turn comes
                video = Video(Path(source.path), every=every)
                known = video.total
                video.close()
        if known is None:
            return None
        total += known
    return total
