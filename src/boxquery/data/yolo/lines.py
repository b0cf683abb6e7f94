"""YOLO's label lines: a class, then a box, and what else tools write there: polygons, rotated boxes, key points, confidences.

What the numbers mean is decided once for all lines of a data set, since a single line of, say, twelve numbers can be a polygon of six
corners or a box with four key points.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from boxquery.data.raw import Box, Fault, RawObject, as_number
from boxquery.data.yolo.geometry import Keypoints, around, centred, fits_image, guess_keypoints, is_parallelogram

T = TypeVar("T")
_SAMPLE = 1000  # lines looked at closely to decide what the numbers mean
_MOST = 0.98  # of all lines that must agree on what a number means
_EDGE = 1.01  # of a polygon's numbers: rounding may put a corner so far outside
_PIXELS = 2.0  # a larger number is no share of an image, even of a box that reaches beyond it
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_COMMENT = re.compile(r"(?:^|\s+)#.*")
_HEADER = re.compile(r"(imagesource|gsd)\s*:", re.IGNORECASE)
_IN_PIXELS = Fault(
    "numbers are pixels, not shares of the image",
    remedy="write centre and size, x and width divided by the image's width, y and height by its height",
)
_FOREIGN = {
    "KITTI": Fault("KITTI's form, whose corners are pixels", remedy="convert the labels to YOLO or COCO: numbers 4 to 7 are the corners"),
    "VisDrone": Fault(
        "VisDrone's own form (left, top, width, height in pixels, score, class, ...)", remedy="convert the annotations to YOLO or COCO"
    ),
    "corners": Fault(
        "a class and four corners in pixels, as OIDv4 writes them",
        remedy="convert the labels to YOLO or COCO: the numbers are left, top, right, bottom",
    ),
}
_OUTSIDE = Fault("polygon with numbers outside 0 to 1", remedy="write corners as shares of the image")
_TURNED = Fault("five numbers after the class, the last no confidence", remedy="write rotated boxes as four corners")


class LabelLines:
    """The label lines of a data set: first all are added (``add``), then each becomes an object (``objects``).

    Attributes:
        names: class names by number; where empty, they are taken from the lines (``use_found_names``).
        keypoints: as the settings state them, or None.
        in_pixels: lines are in DOTA's form, whose corners are pixels; known once all lines were added.
    """

    def __init__(self, names: dict[int, str], keypoints: Keypoints | None = None):
        self.names = names
        self._numbers = {name.casefold(): number for number, name in reversed(names.items())}
        self.keypoints = keypoints
        self._lengths: Counter[int] = Counter()
        self._short, self._long = _Sample(), _Sample()
        self._dota = 0
        self._foreign: Counter[str] = Counter()
        self._classes: dict[str, None] = {}
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._settled: _Meaning | None = None

    def add(self, lines: Iterable[tuple[str, str]]) -> None:
        """Lines of one file, each with what names it in messages."""
        for _, line in lines:
            if _HEADER.match(line):
                continue
            tokens, _ = _tokens(line)
            if _is_dota(tokens):
                self._dota += 1
                self._classes.setdefault(tokens[8])
                continue
            name, numbers = self._class_and_numbers(tokens)
            self._classes.setdefault(name)
            self._lengths[len(numbers)] += 1
            self._foreign[_foreign(name, numbers, "," in line)] += 1
            if len(numbers) >= 4:
                (self._short if len(numbers) == 4 else self._long).add(numbers)

    @property
    def in_pixels(self) -> bool:
        return self._dota > self._lengths.total()

    def use_found_names(self) -> None:
        """Name the classes by what the lines hold, where nothing else lists them: words, or "class 0" for number 0."""
        numbers = sorted({number for text in self._classes if (number := _whole(text)) is not None})
        words = sorted(text for text in self._classes if math.isnan(as_number(text)) and text)
        self.names = {i: f"class {i}" for i in numbers} if numbers else dict(enumerate(words))
        self._numbers = {name.casefold(): number for number, name in reversed(self.names.items())}

    def objects(self, lines: Iterable[tuple[str, str]]) -> list[RawObject]:
        """The objects of one file, one per line."""
        if self._settled is None:
            self._settled = self._decide()
        labels = {number: label for label, number in enumerate(sorted(self.names))}
        return [self._object(where, line, labels) for where, line in lines if not (self.in_pixels and _HEADER.match(line))]

    def notes(self) -> Iterator[str]:
        """What was inferred, in one line each."""
        points = self._settled.keypoints if self._settled else None
        if points and self._counts["keypoints"]:
            said = f"{points}" if points.stated else f"no kpt_shape in data.yaml, but all fit {points}"
            yield self._note("keypoints", f"a box and key points ({said}): the first four numbers are the box, the rest is not used")
            if self._counts["no keypoints"]:
                yield self._note("no keypoints", "a box without key points, which is used")
        texts = {
            "polygon": "a polygon: the box around it is used" + self._doubt(),
            "rotated": "a rotated box (four corners): the upright box around it is used, which is larger where the object is tilted",
            "dota": "DOTA's form (corners in pixels, class, difficulty): the upright box around the corners is used",
            "confidence": "a confidence at the end, as saved predictions have: it is not used",
            "confidence first": "a number between class and box, probably a confidence: it is not used",
            "track": "a whole number behind the box, as tracking writes it: it is not used",
            "commas": "commas or semicolons between the numbers",
            "decimal commas": "decimal commas",
            "class names": "the class's name instead of its number: taken by name",
            "class fractions": "a class number with a decimal point",
        }
        for kind, text in texts.items():
            if self._counts[kind]:
                yield self._note(kind, text)

    def _note(self, kind: str, text: str) -> str:
        count, total = self._counts[kind], self._counts["lines"]
        if count == total:
            return f"all {count:,} label lines have {text}"
        return f"{count:,} of {total:,} label lines {'has' if count == 1 else 'have'} {text} (first: {self._first[kind]})"

    def _doubt(self) -> str:
        """For polygons of equally many corners: what to write if they are something else."""
        long = {length for length in self._lengths if length > 5}
        if len(long) != 1 or self._counts["polygon"] < 2:
            return ""
        (length,) = long
        shapes = [f"[{(length - 4) // size}, {size}]" for size in (2, 3) if length > 4 and (length - 4) % size == 0]
        return f"; if the lines are boxes with key points, say so in data.yaml: kpt_shape: {' or '.join(shapes)}" if shapes else ""

    def _count(self, kind: str, where: str) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, where)

    def _class_and_numbers(self, tokens: list[str]) -> tuple[str, list[str]]:
        """The class as written, which may be a name of several words, and the rest."""
        if not math.isnan(as_number(tokens[0])) or len(tokens) < 2:
            return tokens[0], tokens[1:]
        for end in range(len(tokens) - 1, 0, -1):
            if " ".join(tokens[:end]).casefold() in self._numbers:
                return " ".join(tokens[:end]), tokens[end:]
        end = next((i for i, token in enumerate(tokens) if i and not math.isnan(as_number(token))), 1)
        return (" ".join(tokens[:end]), tokens[end:]) if not self.names else (tokens[0], tokens[1:])

    def _decide(self) -> _Meaning:
        """What the numbers of all lines mean."""
        short, long = self._short.values(), self._long.values()
        pixels = [max(map(abs, values)) > _PIXELS for values in short if all(map(math.isfinite, values))]
        keypoints = self.keypoints or guess_keypoints(self._lengths, long)
        fifth = [values[4] for values in long if len(values) == 5]
        sixth = [values[4:] for values in long if len(values) == 6]
        five = [values for values in long if len(values) == 5]
        odd = sum(count for length, count in self._lengths.items() if length >= 5 and length % 2)
        foreign = next((form for form in _FOREIGN if self._foreign[form] >= _MOST * max(1, self._foreign.total())), "")
        return _Meaning(
            keypoints,
            foreign=_FOREIGN.get(foreign),
            pixels=sum(pixels) > len(pixels) / 2,
            fifth="confidence" if _most(fifth, _is_share) else "track" if _most(fifth, _is_count) else "angle",
            confidence_first=bool(five) and not _most(five, fits_image) and _most(five, lambda values: fits_image(values[1:])),
            tracked=_most(sixth, lambda pair: _is_share(pair[0]) and _is_count(pair[1])) and any(pair[1] > 1 for pair in sixth),
            confidences=odd > _MOST * self._lengths.total() and _most([values[-1] for values in long if len(values) % 2], _is_share),
        )

    def _object(self, where: str, line: str, labels: dict[int, int]) -> RawObject:
        tokens, how = _tokens(line)
        self._counts["lines"] += 1
        if how:
            self._count(how, where)
        if self.in_pixels and _is_dota(tokens):
            self._count("dota", where)
            label = self._label(tokens[8], labels, where)
            difficult = len(tokens) == 10 and tokens[9] in ("1", "2")
            return RawObject(where, label, around([as_number(text) for text in tokens[:8]]), line, ignore=difficult)
        name, texts = self._class_and_numbers(tokens)
        try:
            values = list(map(float, texts))
        except ValueError:
            values = [math.nan]
        box, fault = (None, None) if any(map(math.isnan, values)) else self._box(values, where)
        return RawObject(where, self._label(name, labels, where), box, line, fault=fault)

    def _label(self, name: str, labels: dict[int, int], where: str) -> int | None:
        number = _whole(name)
        if number is not None:
            if not name.isdecimal():
                self._count("class fractions", where)
            return labels.get(number)
        number = next((number for number, known in self.names.items() if known == name), self._numbers.get(name.casefold()))
        if number is None:
            return None
        self._count("class names", where)
        return labels[number]

    def _box(self, values: list[float], where: str) -> tuple[Box | None, Fault | None]:
        """The box, xyxy in shares of the image, and what is wrong with it, if anything is."""
        assert self._settled is not None
        meaning, count = self._settled, len(values)
        if meaning.foreign is not None:
            return None, meaning.foreign
        points = meaning.keypoints
        if count < 4:
            return None, None
        box = centred(values)
        finite = all(map(math.isfinite, values))
        if points and points.numbers in (count, count - 1):
            self._count("keypoints", where)
            if count > points.numbers:
                self._count("confidence", where)
            return box, _IN_PIXELS if finite and max(map(abs, values[:4])) > _PIXELS else None
        if points and points.stated and count > 5:
            return None, Fault(
                f"{count} numbers after the class, where {points} says {points.numbers}", remedy="correct kpt_shape or the lines"
            )
        if count == 4:
            if points:
                self._count("no keypoints", where)
            wrong = meaning.pixels and finite and max(map(abs, values)) > _PIXELS
            return box, _IN_PIXELS if wrong else None
        if count == 6 and meaning.tracked:
            self._count("track", where)
            return box, None
        if count == 5 and meaning.confidence_first:
            self._count("confidence first", where)
            return centred(values[1:]), None
        if count == 5:
            if not (_is_share(values[4]) if meaning.fifth == "confidence" else meaning.fifth == "track" and _is_count(values[4])):
                return None, _TURNED
            self._count(meaning.fifth, where)
            return box, None
        if count % 2:
            if not meaning.confidences:
                return None, None
            self._count("confidence", where)
            values = values[:-1]
        if finite and max(map(abs, values)) > _PIXELS:
            return around(values), _IN_PIXELS
        if finite and not (min(values) >= 1 - _EDGE and max(values) <= _EDGE):
            return around(values), _OUTSIDE
        self._count("rotated" if len(values) == 8 and is_parallelogram(values) else "polygon", where)
        return around(values), None


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What the lines share.

    Attributes:
        keypoints: stated or guessed, or None.
        foreign: why no line can be used, where all are in the form of another tool.
        pixels: boxes are in pixels.
        fifth: what the number behind a box is: "confidence", "track", or perhaps an "angle".
        confidence_first: that number stands before the box: as they are read, boxes reach beyond the image, otherwise none does.
        tracked: a confidence and the number of a track are behind a box.
        confidences: every line ends with one.
    """

    keypoints: Keypoints | None
    foreign: Fault | None
    pixels: bool
    fifth: str
    confidence_first: bool
    tracked: bool
    confidences: bool


@dataclass(slots=True)
class _Sample:
    """Every so many-th of the lines that are added, at most ``_SAMPLE``."""

    step: int = 1
    seen: int = 0
    lines: list[list[str]] = field(default_factory=list)

    def add(self, numbers: list[str]) -> None:
        if self.seen % self.step == 0:
            self.lines.append(numbers)
        self.seen += 1
        if len(self.lines) > _SAMPLE:
            self.lines = self.lines[::2]
            self.step *= 2

    def values(self) -> list[list[float]]:
        """The numbers of the lines that hold nothing else."""
        found = [[as_number(text) for text in line] for line in self.lines]
        return [values for values in found if not any(map(math.isnan, values))]


def _tokens(line: str) -> tuple[list[str], str | None]:
    """The words of a line, and what is unusual between them."""
    tokens = line.split()
    if "," not in line and ";" not in line:
        return tokens, None
    if len(tokens) >= 5 and all("," not in token or _DECIMAL_COMMA.fullmatch(token) for token in tokens):
        return [token.replace(",", ".") for token in tokens], "decimal commas"
    return [token for token in re.split(r"[,;\s]+", line) if token] or [line], "commas"


def _foreign(name: str, numbers: list[str], commas: bool) -> str:
    """The form of ``_FOREIGN`` that a line is in, or ""."""
    values = [as_number(text) for text in numbers]
    word = math.isnan(as_number(name))
    if word and len(values) in (14, 15) and _corners(values[3:7]):
        return "KITTI"
    if commas and not word and len(values) == 7 and all(map(_is_count, values)) and max(values[1:3]) > _PIXELS:
        return "VisDrone"
    return "corners" if word and len(values) == 4 and _corners(values) else ""


def _corners(values: list[float]) -> bool:
    """True for left, top, right, bottom in pixels."""
    x1, y1, x2, y2 = values
    return x1 < x2 and y1 < y2 and max(x2, y2) > _PIXELS and min(x1, y1) >= 0


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


def _is_count(value: float) -> bool:
    return math.isfinite(value) and value >= 0 and value == int(value)


def _most(values: list[T], test: Callable[[T], bool]) -> bool:
    """True if the test holds for nearly all values, also if there are none."""
    return sum(map(test, values)) >= _MOST * len(values)


def looks_like_labels(line: str) -> bool:
    """True for a class and four numbers or more, and for DOTA's lines."""
    tokens, _ = _tokens(_COMMENT.sub("", line.strip()))
    return (
        _HEADER.match(line) is not None
        or (len(tokens) >= 5 and not any(math.isnan(as_number(text)) for text in tokens[-4:]))
        or _is_dota(tokens)
    )


def begins_like_labels(line: str) -> bool:
    """True also for a label that is too short or goes on wrongly: at least two numbers at the beginning."""
    tokens, _ = _tokens(line.strip())
    return looks_like_labels(line) or (len(tokens) > 1 and not any(math.isnan(as_number(text)) for text in tokens[:2]))


def without_comments(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Lines without what stands behind "#"; those that are nothing else are left out."""
    return [(where, short) for where, line in lines if (short := _COMMENT.sub("", line) if "#" in line else line)]


def _is_dota(tokens: list[str]) -> bool:
    """Eight numbers, a class name, and perhaps how difficult the object is."""
    if len(tokens) not in (9, 10) or not math.isnan(as_number(tokens[8])) or (len(tokens) == 10 and tokens[9] not in ("0", "1", "2")):
        return False
    return not any(math.isnan(as_number(text)) for text in tokens[:8])


def _whole(text: str) -> int | None:
    """A class number, which may be written as 1.0."""
    value = as_number(text)
    return int(value) if math.isfinite(value) and value == int(value) and value >= 0 else None
