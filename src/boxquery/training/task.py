"""What a run learns, as far as training has to know it: the data, how they become batches, how models are evaluated, which is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from boxquery.augment import Augment
from boxquery.check.run_checks import CheckResult
from boxquery.data.dataset import AnyData, AnySplit
from boxquery.data.preprocessing import Preprocessing
from boxquery.errors import UserError, count
from boxquery.model_folder import save
from boxquery.models import create_model
from boxquery.models.interface import Model
from boxquery.parts.weights import BackboneWeights
from boxquery.training.config import RunConfig, TrainFlags

if TYPE_CHECKING:
    from boxquery.evaluation.alignment import Alignment
    from boxquery.training.settings import Automatic


class Trained(Protocol):
    """What training needs of any kind of detector: a model with what belongs to it."""

    model: Model
    threshold: float

    def to(self, device: str) -> Any: ...


D = TypeVar("D", bound=Trained)
Found = Mapping[int, Any]
"""Position in a split -> what a model predicted there, as the task has it."""


class Closing(NamedTuple):
    """What is said of a split at the end of a run: ``metrics``, the ``baseline``'s that does not look, and ``warnings``."""

    metrics: dict[str, Any]
    baseline: dict[str, Any]
    warnings: list[str]


class Task(ABC, Generic[D]):
    """The part of a run that depends on what is learned; ``D`` is the kind of detector, a model with all that detection needs beside it.

    Args:
        data: with the splits "train" and "val".

    Attributes:
        kind: the ``Model.task`` of models that can learn it.
        unit: what a batch holds, in words.
        better: the metric that decides which model is better, the higher; None in an evaluation is that there is nothing to choose by.
        zero: the metric that stays 0 where nothing is learned.
        shown: metrics that are printed; the first is ``better``.
        columns: metrics of an evaluation that ``metrics.csv`` has.
        duplicates: whether an evaluation has a ``duplicate_rate``, which ``with_nms`` may lower.
        baseline: what ``Closing.baseline`` is, in words.
        collate: samples of ``dataset`` -> a batch with ``inputs``, ``targets``, ``indices`` and ``unreadable``.
    """

    kind: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[str]
    zero: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]
    duplicates: ClassVar[bool]
    baseline: ClassVar[str]
    columns: Sequence[str]
    collate: Callable[[Any], Any]

    def __init__(self, data: AnyData[Any]):
        self.data = data

    @property
    def train(self) -> AnySplit[Any, Any]:
        return self.data.splits["train"]

    @property
    def val(self) -> AnySplit[Any, Any]:
        return self.data.splits["val"]

    # before the first step

    def automatic(self, requested: TrainFlags, say: Callable[[str], Any]) -> Automatic:
        """See ``boxquery.training.settings.automatic``; asked only where a run may begin without a model's name. Raises ``UserError``."""
        raise NotImplementedError

    def with_rate(self, requested: TrainFlags, say: Callable[[str], Any]) -> tuple[TrainFlags, list[str]]:
        """Flags with a learning rate that suits the data, of a model that is named, and the names of those that were chosen here."""
        return requested, []

    @property
    def contents(self) -> str:
        """What the data hold beside their splits, in words."""
        return f"{count(len(self.data.names), 'class', 'classes')}: {', '.join(self.data.names[:12])}"

    def check_data(self) -> None:
        """Raises ``UserError`` where nothing can be trained or evaluated on the data."""
        self.data.training_split()
        self.data.split("val")

    def model_options(self) -> dict[str, Any]:
        """Options of the model that the data decide, where the user does not."""
        return {}

    def build(self, config: RunConfig, weights: BackboneWeights | None) -> Model:
        """A new model, its backbone with weights or random. Raises ``UserError`` for one of another task."""
        options = self.model_options() | config.options
        model = create_model(config.model, classes=self.data.names, preset=config.preset, pretrained=weights or False, **options)
        if model.task != self.kind:
            raise UserError(f"{config.data} holds {self.unit}s, which {config.model} does not take; {self.remedy}")
        return model

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to do where the model is of another task."""

    def fit_to_data(self, model: Model, preprocessing: Preprocessing) -> dict[str, Any]:
        """Called once before the first step; see ``Model.fit_to_data``."""
        return {}

    def augment(self, config: RunConfig) -> dict[str, Any]:
        """The parts of augmentation that were asked for. Raises ``UserError`` for what cannot be done to these data."""
        return config.augment

    @abstractmethod
    def dataset(self, config: RunConfig, model: Model, preprocessing: Preprocessing, augment: Augment) -> Dataset[Any]:
        """The training split, augmented."""

    def shapes(self) -> Sequence[float] | None:
        """A number for each item of the training split by which batches are formed of similar ones; None where all are alike."""
        return None

    @abstractmethod
    def check(self, config: RunConfig, model: Model, augment: Augment, findings: Sequence[Any], *, picture: bool) -> CheckResult:
        """What is wrong with the data, and what will go wrong. Raises nothing; ``findings`` are those of opening the data."""

    def test(self, config: RunConfig) -> list[str]:
        """The words of a command that shows whether the model can learn at all."""
        return ["boxquery", "check", config.data, *config.places(), "--model", config.model, "--overfit"]

    @abstractmethod
    def detector(self, model: Model, preprocessing: Preprocessing) -> D:
        """The model with what belongs to it."""

    def save(self, detector: D, folder: Path, *, epoch: Mapping[str, Any]) -> None:
        """Write the model of an epoch, see ``boxquery.model_folder.save``."""
        save(detector, folder, epoch=epoch)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def load(self, folder: Path) -> D:
        """The detector of a run's folder. Raises ``UserError``."""

    # evaluation

    @abstractmethod
    def val_dataset(self, detector: D, strict: bool) -> Any:
        """The val split as ``predict`` reads it, kept in memory where it fits: its ``cache`` is None where it does not."""

    @abstractmethod
    def predict(
        self, detector: D, split: AnySplit[Any, Any], config: RunConfig, *, only: Sequence[int] | None = None, cached: Any = None,
        strict: bool = False, warn: Callable[[str], None],
    ) -> dict[int, Any]:  # fmt: skip
        """Position in the split -> detections; what cannot be read has none.

        Args:
            only: positions; None: all.
            cached: of ``val_dataset``.
            warn: called with a line for each that cannot be read.
        """

    @abstractmethod
    def evaluate(self, records: Sequence[Any], found: Found, config: RunConfig) -> dict[str, Any]:
        """Metrics, ``columns`` among them."""

    @abstractmethod
    def resampled(self, records: Sequence[Any], found: Found, weights: np.ndarray, config: RunConfig) -> np.ndarray:
        """``better`` where each item counts as often as ``weights`` [R, items] says: [R], NaN where there is nothing to find."""

    def with_nms(self, detector: D, split: AnySplit[Any, Any], found: Found, threshold: float, config: RunConfig) -> Found:
        """Detections after NMS at an IoU threshold, 1: without; asked only where there are ``duplicates``."""
        raise NotImplementedError

    @abstractmethod
    def draw(self, split: AnySplit[Any, Any], position: int, found: Found, threshold: float) -> tuple[Image.Image, Image.Image]:
        """An item with its ground truth, and with the detections whose scores are at least the threshold."""

    def measures_alignment(self, model: Model) -> bool:
        """Whether ``alignment`` measures anything."""
        return False

    def alignment(self, detector: D, only: Sequence[int], cached: Any) -> Alignment:
        """What the queries that find the objects of a few val images read."""
        raise NotImplementedError

    @abstractmethod
    def spreads(self, found: Found) -> np.ndarray:
        """Of every item with more than one box: how far its boxes are apart, as a share of what they may be in."""

    @abstractmethod
    def scores(self, found: Found) -> np.ndarray:
        """The best score of every item."""

    # the end

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """``data.json``."""

    @abstractmethod
    def close(self, folder: Path, split: AnySplit[Any, Any], found: dict[int, Any], detector: D, config: RunConfig) -> Closing:
        """Evaluate the kept model on a split for the report, and write what that shows; of val also pictures."""
