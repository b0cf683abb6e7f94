"""What was found in all images together, in numbers and in words. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from boxquery.data.images import Header
from boxquery.data.raw import Fault
from boxquery.errors import count, some
from boxquery.evaluation.errors import IOU_DUPLICATE, overlapped
from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.predict.sources import Item
from boxquery.predict.tracking import LEAST_SCORE
from boxquery.result import Result

#: duplicates and boxes that tiles cut are mentioned from this share of the boxes, and this number
_SHARE, _NUMBER = 0.1, 3


class Summary:
    """Counts results.

    Args:
        threshold: minimum score of the detections.
        given: whether the user chose it.
        named: whether a class of the model has a name; those without are not counted.
        count_cut: where an image was looked at in tiles: its height and width, and boxes [N, 4] -> how many end where a tile does.
    """

    def __init__(self, threshold: float, given: bool, named: bool = True, count_cut: Callable[[int, int, np.ndarray], int] | None = None):
        self.threshold, self.given, self.named, self.count_cut = threshold, given, named, count_cut
        self.images = self.frames = self.empty = self.unreadable = self.duplicates = self.cut = 0
        self.tracks: set[tuple[str, int]] = set()
        self.classes: Counter[str] = Counter()
        self.remarks: defaultdict[str, list[str]] = defaultdict(list)

    def remark(self, name: str, header: Header | Fault) -> None:
        """Note how an image was read where that is not plain."""
        for words in header.remarks if isinstance(header, Header) else ():
            self.remarks[words].append(name)

    def add(self, item: Item, result: Result) -> None:
        if item.frame is None:
            self.images += 1
        else:
            self.frames += 1
        if result.tracks is not None:
            self.tracks.update((item.sequence, track) for track in result.tracks.tolist() if track >= 0)
        self.empty += not len(result)
        self.duplicates += int(overlapped(result.boxes, result.labels).sum())
        if self.count_cut is not None:
            self.cut += self.count_cut(*result.size, result.boxes)
        self.classes.update(result.names)

    @property
    def objects(self) -> int:
        return self.classes.total()

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "frames": self.frames,
            "objects": self.objects,
            "empty_images": self.empty,
            "unreadable": self.unreadable,
            "per_class": dict(self.classes.most_common()),
            "tracks": len(self.tracks),
            "duplicates": self.duplicates,
            "threshold": self.threshold,
            "threshold_from": "given" if self.given else "default" if self.threshold == DEFAULT_THRESHOLD else "evaluation",
        }

    def remarks_notes(self) -> list[str]:
        """How images were read where that is not plain."""
        return [f"{count(len(names), 'image')} {words}: {some(names)}" for words, names in self.remarks.items()]

    def duplicates_note(self) -> list[str]:
        """Whether so many boxes lie on others that NMS is worth a try."""
        if self.duplicates < max(_NUMBER, _SHARE * self.objects):
            return []
        share = f"{self.duplicates:,} of {count(self.objects, 'box', 'boxes')} ({self.duplicates / self.objects:.0%})"
        return [f"{share} overlap a better one of their class with an IoU above {IOU_DUPLICATE}; --nms {IOU_DUPLICATE} removes them"]

    def cut_note(self) -> list[str]:
        """Whether so many boxes end where a tile does that objects may be larger than what tiles have in common."""
        if self.cut < max(_NUMBER, _SHARE * self.objects):
            return []
        share = f"{self.cut:,} of {count(self.objects, 'box', 'boxes')}"
        return [f"{share} end at the border of a tile and may be parts of larger objects; a larger --overlap or --tiles shows these whole"]

    def lines(self) -> list[str]:
        """For people."""
        empty = f" ({self.empty:,} without any)" if 0 < self.empty < self.images + self.frames else ""
        named = ", ".join(f"{number:,} {name}" for name, number in self.classes.most_common(10))
        more = f" and {len(self.classes) - 10} more classes" if len(self.classes) > 10 else ""
        lines = [f"{count(self.objects, 'object')} in {self.looked_at()}{empty}" + (f": {named}{more}" if named else "")]
        if self.tracks:
            lines.append(f"{count(len(self.tracks), 'object')} followed from frame to frame")
        weaker = ""
        if self.images + self.frames and not self.objects:
            if not self.named:
                weaker = "; no class of this model has a name, so nothing can be found (import-official --classes a,b,c names them)"
            elif self.threshold > 0:
                weaker = "; a lower --threshold shows what is weaker"
        weaker += f"; what continues a track may be weaker, down to {LEAST_SCORE:g}" if self.tracks and self.threshold > LEAST_SCORE else ""
        lines.append(f"threshold: a score of {self.threshold:.3g} or more, {self._why()}{weaker}")
        if self.unreadable:
            lines.append(f"{count(self.unreadable, 'image or video', 'images or videos')} could not be read")
        return lines

    def looked_at(self) -> str:
        """How many images and frames, in words."""
        numbers = [(self.images, "image")] * (self.images > 0 or not self.frames) + [(self.frames, "frame")] * (self.frames > 0)
        return " and ".join(count(*each) for each in numbers)

    def _why(self) -> str:
        if self.given:
            return "as given"
        if self.threshold == DEFAULT_THRESHOLD:
            return "the default, since no evaluation has found a better one"
        return "which had the best F1 in the evaluation during training"
