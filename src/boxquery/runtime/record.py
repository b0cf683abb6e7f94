"""What an exported file says of itself: one JSON string in its metadata, from which it is known how to use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from boxquery.data.preprocessing import Preprocessing
from boxquery.errors import UserError, first_line
from boxquery.limits import check_threshold

#: where it is: a key of ONNX's metadata, and of OpenVINO's ``rt_info``
KEY = "boxquery"
#: version of the record and of the graph's inputs and outputs
FORMAT = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Record:
    """Attributes:
    model: its name, as in ``boxquery models``.
    classes, ids: names by label (None: never predicted), and the data set's own category ids.
    threshold: the default score threshold.
    preprocessing: how an image becomes the input; the graph itself normalises.
    queries: how many there are.
    top_k: detections per image where a query may have several classes.
    has_no_object: whether a query has one class alone, as of a softmax.
    size: (height, width) of every input; None: any.
    precision: of ``PRECISIONS``.
    """

    model: str
    classes: list[str | None]
    ids: list[int]
    threshold: float
    preprocessing: Preprocessing
    queries: int
    top_k: int
    has_no_object: bool
    size: tuple[int, int] | None
    precision: str

    @classmethod
    def read(cls, text: str | None, path: Path) -> Self:
        """From the string in the metadata of a file; None where there is none. Raises ``UserError``."""
        if text is None:
            raise UserError(f"{path}: not exported by boxquery, so classes and preprocessing are not known; export it from its run")
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] > FORMAT:
                raise UserError(f"format {values['format']} is of a newer boxquery, this one reads up to {FORMAT}; update it")
            classes, ids, size = list(values["classes"]), list(values["ids"]), values["size"]
            if len(classes) != len(ids) or not all(name is None or isinstance(name, str) for name in classes):
                raise TypeError("classes should be words, and as many as ids")
            if values["precision"] not in PRECISIONS:
                raise TypeError(f"precision {values['precision']!r}")
            check_threshold(float(values["threshold"]))
            return cls(
                model=str(values["model"]),
                classes=classes,
                ids=[int(id_) for id_ in ids],
                threshold=float(values["threshold"]),
                preprocessing=Preprocessing.from_dict(values["preprocessing"]),
                queries=int(values["queries"]),
                top_k=int(values["top_k"]),
                has_no_object=bool(values["has_no_object"]),
                size=None if size is None else (int(size[0]), int(size[1])),
                precision=values["precision"],
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{path}: its record cannot be read ({why}); export it again from its run") from error
