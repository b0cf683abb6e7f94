"""What was found in all images together, in numbers and in words. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from boxquery.data.images import Header
from boxquery.data.raw import Fault
from boxquery.errors import count, some
from boxquery.evaluation.errors import IOU_DUPLICATE, overlapped
from boxquery.flags import DEFAULT_THRESHOLD
from boxquery.result import Result

#: duplicates are mentioned from this share of the boxes, and this number
_SHARE, _NUMBER = 0.1, 3


class Summary:
    """Counts results.

    Args:
        threshold: minimum score of the detections.
        given: whether the user chose it.
        named: whether a class of the model has a name; those without are not counted.
    """

    def __init__(self, threshold: float, given: bool, named: bool = True):
        self.threshold, self.given, self.named = threshold, given, named
        self.images = self.empty = self.unreadable = self.duplicates = 0
        self.classes: Counter[str] = Counter()
        self.remarks: defaultdict[str, list[str]] = defaultdict(list)

    def remark(self, name: str, header: Header | Fault) -> None:
        """Note how an image was read where that is not plain."""
        for words in header.remarks if isinstance(header, Header) else ():
            self.remarks[words].append(name)

    def add(self, result: Result) -> None:
        self.images += 1
        self.empty += not len(result)
        self.duplicates += int(overlapped(result.boxes, result.labels).sum())
        self.classes.update(result.names)

    @property
    def objects(self) -> int:
        return self.classes.total()

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "objects": self.objects,
            "empty_images": self.empty,
            "unreadable": self.unreadable,
            "per_class": dict(self.classes.most_common()),
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

    def lines(self) -> list[str]:
        """For people."""
        empty = f" ({self.empty:,} without any)" if 0 < self.empty < self.images else ""
        named = ", ".join(f"{number:,} {name}" for name, number in self.classes.most_common(10))
        more = f" and {len(self.classes) - 10} more classes" if len(self.classes) > 10 else ""
        lines = [f"{count(self.objects, 'object')} in {count(self.images, 'image')}{empty}" + (f": {named}{more}" if named else "")]
        weaker = ""
        if self.images and not self.objects:
            if not self.named:
                weaker = "; no class of this model has a name, so nothing can be found (import-official --classes a,b,c names them)"
            elif self.threshold > 0:
                weaker = "; a lower --threshold shows what is weaker"
        lines.append(f"threshold: a score of {self.threshold:.3g} or more, {self._why()}{weaker}")
        if self.unreadable:
            lines.append(f"{count(self.unreadable, 'image')} could not be read")
        return lines

    def _why(self) -> str:
        if self.given:
            return "as given"
        if self.threshold == DEFAULT_THRESHOLD:
            return "the default, since no evaluation has found a better one"
        return "which had the best F1 in the evaluation during training"
