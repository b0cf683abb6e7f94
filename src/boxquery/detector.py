"""A detector: a model, what its classes are called, and how an image becomes its input. It is what is saved, loaded and used."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from boxquery.data.images import read_image
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import EvalTransform
from boxquery.errors import UserError, first_line
from boxquery.files import atomic_write
from boxquery.models import create_model, list_baselines, list_models

if TYPE_CHECKING:
    from boxquery.data.dataset import Data
    from boxquery.models.base import DetectionTransformer
    from boxquery.models.interface import Model

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUM = "crc32"
"""In the metadata of the weights, their check sum: the format has none, and a flipped bit would be a wrong answer. The only entry, since
safetensors writes several in any order and the same weights would be different files."""


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in one image, best first.

    Attributes:
        boxes: float32 [K, 4], xyxy in pixels of the upright image, clipped to it.
        scores: float32 [K], 0..1.
        labels: int64 [K], positions in the detector's ``classes``.
        names: K class names.
        ids: K category ids of the data set that the detector learned from.
        size: (height, width) of the image.
        path: the file, where the image came from one.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    ids: list[int]
    size: tuple[int, int]
    path: str | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def to_supervision(self) -> Any:
        """As ``supervision.Detections`` (needs the ``viz`` extra)."""
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("to_supervision() needs the package supervision: pip install 'boxquery[viz]'") from error
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data={"class_name": np.array(self.names)}
        )


Source = str | Path | Image.Image | np.ndarray


class Detector:
    """A trained model with everything that its answers need.

    Args:
        model: from ``create_model``.
        classes: class names, one a logit column; None for a column that has no name and is never output.
        ids: the data set's own category ids, parallel to ``classes``.
        image_size: short side of the input in pixels.
        threshold: the score that is used where none is given; 0.5 until an evaluation has found a better one.
    """

    def __init__(self, model: Model, classes: Sequence[str | None], ids: Sequence[int], image_size: int, threshold: float = 0.5):
        if not len(classes) == len(ids) == model.config["classes"]:
            raise UserError(f"the model has {model.config['classes']} classes, but {len(classes)} names and {len(ids)} ids were given")
        self.model, self.classes, self.ids = model, list(classes), list(ids)
        self.image_size, self.threshold = image_size, threshold
        self.transform = EvalTransform(Preprocessing(image_size))
        #: the run folder that it came from, if it did
        self.run: Path | None = None

    def summary(self) -> dict[str, Any]:
        """What it is and, of a run, how well it did: plain values."""
        evaluation = self.run / "evaluation.json" if self.run else None
        known = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation and evaluation.is_file() else {}
        measured = {name: {k: split[k] for k in ("AP", "AP50", "AP75")} for name, split in known.items()}
        return {"model": self.model.config["name"], "classes": self.classes, "run": self.run and str(self.run), **measured}

    @property
    def unnamed(self) -> list[int]:
        """The columns that have no name, and are never an answer."""
        return [i for i, name in enumerate(self.classes) if name is None]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def transformer(self) -> DetectionTransformer:
        """The model, where it is one of the family. Raises ``UserError`` where it is a reference, which has no queries."""
        if not self.model.has_queries:
            name, family = self.model.config["name"], ", ".join(list_models())
            raise UserError(f"{name} has no queries: this needs a model of the family ({family})")
        return cast("DetectionTransformer", self.model)

    def to(self, device: str | torch.device) -> Detector:
        self.model.to(device)
        return self

    # -- files ------------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``, each whole or not at all; the weights know their own check sum.

        Raises ``UserError`` where they cannot be written.
        """
        folder = Path(folder)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        atomic_write(folder / WEIGHTS, to_bytes(weights, metadata={SUM: _check_sum(weights)}))
        atomic_write(folder / CONFIG, json.dumps(self.config(), indent=1) + "\n")
        return folder

    def config(self) -> dict[str, Any]:
        return {
            "library": "boxquery",
            "model": self.model.config,
            "classes": self.classes,
            "ids": self.ids,
            "image_size": self.image_size,
            "threshold": self.threshold,
        }

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload to the hub; returns the address. Needs a login there."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return str(api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "model"))

    # -- answers ----------------------------------------------------------------------------------------------------------------

    def predict(
        self, source: Source | Iterable[Source], *, threshold: float | None = None, batch_size: int = 1, top_k: int | None = None
    ) -> Any:
        """Find objects.

        Args:
            source: a path, PIL image or RGB uint8 array [H, W, 3] gives a ``Result``; a list gives a list; any other iterable gives a
                generator that holds one batch at a time.
            threshold: least score, 0..1; None: the detector's own.
            batch_size: images at once.
            top_k: most answers an image; None: the paper's own number.

        Each query answers with one label. Raises ``UserError`` for an image that cannot be read.
        """
        if isinstance(source, str | Path | Image.Image | np.ndarray):
            return next(self._stream([source], threshold, 1, top_k))
        stream = self._stream(source, threshold, batch_size, top_k)
        return list(stream) if isinstance(source, list | tuple) else stream

    def explain(self, source: Source | Sequence[Source], *, threshold: float | None = None) -> Any:
        """What every query did: where it looked, how its box moved from layer to layer, and which queries wanted the same object.

        Args:
            source: a path, PIL image or RGB uint8 array [H, W, 3] gives an ``Explanation``; a list gives a list. Each keeps the attention
                of every layer, which takes memory.
            threshold: least score of a detection, 0..1; None: the detector's own.

        Raises ``UserError`` for an image that cannot be read.
        """
        from boxquery.explain.explanation import explain

        if isinstance(source, str | Path | Image.Image | np.ndarray):
            return explain(self, source, threshold=threshold)
        return [explain(self, each, threshold=threshold) for each in source]

    def _stream(self, sources: Iterable[Source], threshold: float | None, batch_size: int, top_k: int | None) -> Iterator[Result]:
        from boxquery.data.loading import collate

        least = self.threshold if threshold is None else threshold
        if not 0 <= least <= 1:
            raise UserError(f"threshold={least}: must be from 0 to 1")
        for group in _batched(sources, batch_size):
            images = [as_image(s) for s in group]
            none = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
            batch = collate([{"image": self.transform(image), "target": none, "index": i} for i, image in enumerate(images)])
            sizes = [(image.height, image.width) for image in images]
            answers = self.answers(batch.images, batch.mask, sizes, top_k=top_k, one_label=True)
            for s, answer, size in zip(group, answers, sizes, strict=True):
                yield self._result(answer, least, size, str(s) if isinstance(s, str | Path) else None)

    @torch.inference_mode()
    def answers(
        self,
        images: Tensor,
        mask: Tensor | None,
        sizes: list[tuple[int, int]],
        *,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> list[dict[str, Tensor]]:
        """The model's answers in pixels (see ``Model.postprocess``), without columns that have no name."""
        self.model.eval()
        mask = None if mask is None else mask.to(self.device)
        out = self.model(images.to(self.device), mask, last_only=True)
        if unnamed := self.unnamed:
            out.logits[..., unnamed] = -torch.inf
        return self.model.postprocess(out, sizes, top_k=top_k, one_label=one_label, nms=nms)

    def _result(self, answer: dict[str, Tensor], threshold: float, size: tuple[int, int], path: str | None) -> Result:
        keep = (answer["scores"] >= threshold) & (answer["scores"] > 0)
        boxes = answer["boxes"][keep].float().cpu()
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
        labels = answer["labels"][keep].cpu().numpy()
        return Result(
            boxes=boxes.numpy(),
            scores=answer["scores"][keep].float().cpu().numpy(),
            labels=labels,
            names=[str(self.classes[i]) for i in labels],
            ids=[self.ids[i] for i in labels],
            size=size,
            path=path,
        )

    def evaluate(
        self,
        data: str | Path | Data,
        *,
        split: str = "val",
        batch_size: int = 8,
        workers: int = 0,
        strict: bool = False,
        nms: float | None = None,
    ) -> dict[str, Any]:
        """AP and the numbers around it on a split of a data set; classes are matched by name.

        ``nms``: of two answers of a class that overlap by more than this IoU only the better counts; 1: both do; None: as the model has
        it, which is all of them in the family, and the option ``nms`` of a reference.

        An image whose pixels cannot be read is named on stderr and left out; with ``strict`` it is fatal.
        Raises ``UserError`` where the data lacks the split or has a class that the detector does not know.
        """
        from boxquery.data.classes import map_labels
        from boxquery.data.open import open_data
        from boxquery.evaluation.metrics import evaluate
        from boxquery.evaluation.predictions import drop_unreadable, predict_split

        if nms is not None and not 0 < nms <= 1:
            raise UserError(f"nms={nms}: must be an IoU above 0 and at most 1, which keeps all")
        opened = open_data(data, strict=strict) if isinstance(data, str | Path) else data
        records = map_labels(opened, split, self.classes)
        found = predict_split(self, records, batch_size=batch_size, workers=workers, nms=nms, strict=strict)
        records, found = drop_unreadable(records, found)
        names = [name if name is not None else f"(no name {i})" for i, name in enumerate(self.classes)]
        return evaluate(records, found, names, self.ids)


def load(source: str | Path) -> Detector:
    """A detector from a run folder, a folder with ``config.json`` and ``model.safetensors``, or a hub id. Nothing in it is executed.

    A model of your own is known by its name alone: ``boxquery.models.register`` it first.
    """
    folder = Path(source)
    run = None
    if not folder.is_dir():
        folder = _download(str(source))
    elif (folder / "model" / CONFIG).is_file():
        run, folder = folder, folder / "model"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{source}: neither a run nor a model folder ({CONFIG} and {WEIGHTS} are looked for, also under model/)")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        made, options = config["model"], dict(config["model"]["options"])
        if (name := made["name"]) not in [*list_models(), *list_baselines()]:
            raise UserError(
                f"{folder / CONFIG}: model {name!r} is none of the library's; register it first (boxquery.models.register, docs/mixing.md)"
            )
        model = create_model(name, classes=made["classes"], preset=made["preset"], **options)
        if made["frozen"]:
            model.freeze()
        weights = _weights(folder / WEIGHTS)
        if wrong := difference(weights, model.state_dict()):
            raise UserError(f"{folder / WEIGHTS}: does not hold the weights that {CONFIG} describes: {wrong}")
        model.load_state_dict(weights)
        if not all(name is None or isinstance(name, str) for name in config["classes"]):
            raise TypeError("classes should be words")
        if not isinstance(config["threshold"], (int, float)) or not 0 <= config["threshold"] <= 1:
            raise TypeError("threshold should be from 0 to 1")
        detector = Detector(model.eval(), config["classes"], config["ids"], config["image_size"], config["threshold"])
        detector.run = run
        return detector
    except UserError:
        raise
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: not a boxquery model's configuration ({type(error).__name__}: {error})") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS}: does not hold the weights that {CONFIG} describes ({first_line(error)})") from error


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, which are what was written and finite. Raises ``UserError``."""
    with safe_open(path, "pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    if metadata.get(SUM, "") not in ("", _check_sum(weights)):
        raise UserError(f"{path}: damaged, its check sum is another; copy it again")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds numbers that are not finite; use another state of this model")
    return weights


def difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that only one of two has, or that they have in another size; empty where there is none."""
    for name in [*wanted, *found]:
        there, here = (list(tensors[name].shape) if name in tensors else "missing" for tensors in (found, wanted))
        if there != here:
            return f"{name} is {there} in the file, {here} in the model"
    return ""


def _check_sum(weights: Mapping[str, Tensor]) -> str:
    """CRC-32 over the bytes of all tensors, by name."""
    total = 0
    for name in sorted(weights):
        total = zlib.crc32(weights[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _download(source: str) -> Path:
    local = f"{source}: no such folder"
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(f"{local}; give a run folder, a model folder or a hub id (owner/name)")
    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS]))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{local}, and no such model on the hub; check the name") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{local}, and the hub cannot be reached; check the path or the network") from error


def as_image(source: Source) -> Image.Image:
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise UserError(f"an array of {source.dtype} {list(source.shape)}: give RGB uint8 [H, W, 3]")
    return Image.fromarray(source)


def _batched(items: Iterable[Source], size: int) -> Iterator[list[Source]]:
    group: list[Source] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
