"""From scenes to batches: images of all cameras, and the calibration that holds for these pixels.

Whatever is done to an image or to the vehicle's frame is done to the calibration: a point stays on its pixel. As for images, augmentation
depends on seed, epoch and scene alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from boxquery.boxes3d import rigid, transform, yaw_matrix
from boxquery.data.loading import Item, PixelCache, cache_limit, generator
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.records import SceneRecord, SceneSplit
from boxquery.data.scenes.resize import SceneResize, zoom
from boxquery.data.transforms import normalize, recolour
from boxquery.errors import UserError

_SIDES = {"left": "right", "right": "left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


@dataclass(frozen=True, slots=True)
class SceneAugment:
    """What training does to scenes.

    Attributes:
        flip: probability that the world is mirrored, 0..1: images, boxes and calibration; left and right cameras change places.
        rotation: degrees that the vehicle's frame is turned by at most, either way. The images stay as they are.
        scales: smallest and largest factor that images are zoomed by; what is too large is cut off, what is too small has a margin.
        colour: largest relative change of brightness, contrast and saturation of each image, 0..1; hue changes by up to a fifth of it.
    """

    flip: float = 0.5
    rotation: float = 180.0
    scales: tuple[float, float] = (0.9, 1.1)
    colour: float = 0.1

    def plain(self) -> SceneAugment:
        """Without what no camera sees: for the end of a run."""
        return replace(self, scales=(1.0, 1.0))


class View(NamedTuple):
    """A scene on its way to the model.

    ``images`` uint8 [V, 3, H, W]; ``lidar2img`` float64 [V, 4, 4] for these pixels; ``boxes`` float64 [N, 9] and ``labels`` int64 [N].
    """

    images: Tensor
    lidar2img: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


class SceneSample(TypedDict):
    """One scene for the model.

    ``images`` float32 [V, 3, H, W] normalised, or uint8 of a ``SceneResizeTransform``; ``lidar2img`` float32 [V, 4, 4], from the vehicle's
    frame to these pixels; ``target`` {"labels": int64 [N], "boxes": float32 [N, 9] x, y, z, w, l, h, yaw, vx, vy in metres, NaN where a
    velocity is not known}; ``index`` its position in the split; ``unreadable`` one line per scene that was skipped to get to this one.
    """

    images: Tensor
    lidar2img: Tensor
    target: dict[str, Tensor]
    index: int
    unreadable: list[str]


@dataclass(slots=True)
class SceneBatch:
    """Scenes side by side.

    Attributes:
        images: float32 [B, V, 3, H, W], or uint8 of a ``SceneResizeTransform``.
        lidar2img: float32 [B, V, 4, 4].
        targets, indices: as in ``SceneSample``.
        unreadable: one line per scene that was replaced by another.
    """

    images: Tensor
    lidar2img: Tensor
    targets: list[dict[str, Tensor]]
    indices: list[int]
    unreadable: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """What a model is called with."""
        return self.images, self.lidar2img

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SceneBatch:
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SceneBatch:
        """The same batch in pinned memory; ``DataLoader`` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> SceneBatch:
        targets = [{name: move(value) for name, value in target.items()} for target in self.targets]
        return replace(self, images=move(self.images), lidar2img=move(self.lidar2img), targets=targets)


def collate_scenes(samples: Sequence[SceneSample]) -> SceneBatch:
    """Samples of one split as a batch. Raises ``UserError`` where they have different numbers of cameras."""
    if len(counts := {len(sample["images"]) for sample in samples}) > 1:
        raise UserError(f"scenes of {' and of '.join(map(str, sorted(counts)))} cameras in one batch; split the data by its cameras")
    return SceneBatch(
        torch.stack([sample["images"] for sample in samples]),
        torch.stack([sample["lidar2img"] for sample in samples]),
        [sample["target"] for sample in samples],
        [sample["index"] for sample in samples],
        [line for sample in samples for line in sample["unreadable"]],
    )


class SceneResizeTransform:
    """Resizing of all images of a scene to one size, as in evaluation, prediction and export, for who normalises batches.

    Args:
        area: float [6], x, y, z at least and at most: objects are kept whose centres are in it, in x and y.
    """

    def __init__(self, resize: SceneResize, area: Sequence[float]):
        self.resize, self.area = resize, area

    @property
    def preprocessing(self) -> Preprocessing:
        return self.resize.preprocessing

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image of the model's input."""
        return self.resize.size

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """What is kept where images are cached: uint8 [V, 3, H, W]."""
        return torch.from_numpy(self.resize.pixels(images))

    def finish(self, pixels: Tensor) -> Tensor:
        """From what is kept to the model's input: here uint8, too."""
        return pixels

    def view(self, pixels: Tensor, record: SceneRecord) -> View:
        """Pixels with the record's objects that are not to be ignored."""
        kept = ~record.ignore
        return View(pixels, self.resize.lidar2img(record.lidar2img, record.sizes), record.boxes[kept], record.labels[kept])

    def sample(self, view: View, index: int, unreadable: list[str]) -> SceneSample:
        """A view as the model's input; objects outside the area are left out."""
        centres = view.boxes[:, :2]
        inside = ((centres >= self.area[:2]) & (centres <= self.area[3:5])).all(1)
        target = {"labels": torch.from_numpy(view.labels[inside]), "boxes": torch.from_numpy(view.boxes[inside]).float()}
        return {
            "images": self.finish(view.images),
            "lidar2img": torch.from_numpy(view.lidar2img).float(),
            "target": target,
            "index": index,
            "unreadable": unreadable,
        }


class SceneTransform(SceneResizeTransform):
    """Resizing and normalisation.

    Args:
        preprocessing: gives the size that an image of ``height`` x ``width`` is resized to; all images of all scenes become as large.
        area: as ``SceneResizeTransform`` has it.
    """

    def __init__(self, preprocessing: Preprocessing, height: int, width: int, area: Sequence[float]):
        super().__init__(SceneResize(preprocessing, (height, width)), area)

    def finish(self, pixels: Tensor) -> Tensor:
        """From what is kept to the model's input: float32."""
        return normalize(pixels, self.preprocessing)


def augment_view(view: View, cameras: Sequence[str], augment: SceneAugment, chance: torch.Generator, fill: Sequence[float]) -> View:
    """A changed copy of a scene, of the same size.

    Args:
        cameras: their names; those that differ in left and right change places where the scene is mirrored.
        fill: the colour of margins, per channel in 0..255.
    """
    flipped, turned = torch.rand(2, generator=chance).tolist()
    if flipped < augment.flip:
        view = _mirror(view, cameras)
    if augment.rotation:
        matrix = rigid(yaw_matrix(math.radians(augment.rotation) * (2 * turned - 1)), np.zeros(3))
        view = view._replace(lidar2img=view.lidar2img @ matrix.T, boxes=transform(view.boxes, matrix))
    if augment.scales != (1.0, 1.0):
        view = _rescale(view, augment.scales, chance, fill)
    if augment.colour:
        changes = (torch.rand(len(view.images), 4, generator=chance) * 2 - 1).mul(augment.colour).tolist()
        images = [recolour(image, 1 + b, 1 + c, 1 + s, h / 5) for image, (b, c, s, h) in zip(view.images, changes, strict=True)]
        view = view._replace(images=torch.stack(images))
    return view


def _mirror(view: View, cameras: Sequence[str]) -> View:
    """The scene in a mirror between left and right."""
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    image = np.eye(4)
    image[0, 0], image[0, 2] = -1, view.images.shape[-1]
    names = list(cameras)
    mirrored = [re.sub("|".join(_SIDES), lambda side: _SIDES[side[0]], name) for name in names]
    order = [names.index(name) for name in mirrored] if sorted(mirrored) == sorted(names) else list(range(len(names)))
    return View(view.images[order].flip(-1), (image @ view.lidar2img @ mirror)[order], transform(view.boxes, mirror), view.labels)


def _rescale(view: View, scales: tuple[float, float], chance: torch.Generator, fill: Sequence[float]) -> View:
    """Every image zoomed by the same factor, and a window of it that is as large as before, or all of it with a margin."""
    count, _, height, width = view.images.shape
    factor, *moves = torch.rand(1 + 2 * count, generator=chance).tolist()
    factor = scales[0] + (scales[1] - scales[0]) * factor
    high, wide = max(round(height * factor), 1), max(round(width * factor), 1)
    resized = F.resize(view.images, [high, wide], InterpolationMode.BILINEAR, antialias=True)
    images = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).expand(count, 3, height, width).clone()
    matrices = []
    for v in range(count):
        top, left = round((height - high) * moves[2 * v]), round((width - wide) * moves[2 * v + 1])
        rows, columns = slice(max(top, 0), min(top + high, height)), slice(max(left, 0), min(left + wide, width))
        images[v, :, rows, columns] = resized[v, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        matrix = zoom(wide / width, high / height)
        matrix[:2, 2] = left, top
        matrices.append(matrix)
    return view._replace(images=images, lidar2img=np.stack(matrices) @ view.lidar2img)


class SceneDataset(Dataset[SceneSample]):
    """A split of scenes as a PyTorch data set.

    Args:
        split: records and their pixels.
        transform: applied to them.
        augment: what training does before; None: nothing, as in evaluation.
        seed: of the whole run; random numbers depend on (``seed``, epoch, scene id).
        cache: keep resized images in memory if the whole split fits into ``cache_limit()``; forked workers share them.
        strict: a scene whose images cannot be read is fatal; else the next readable one replaces it.
    """

    def __init__(
        self,
        split: SceneSplit,
        transform: SceneResizeTransform,
        *,
        augment: SceneAugment | None = None,
        seed: int = 0,
        cache: bool = False,
        strict: bool = False,
    ):
        self.split, self.transform, self.augment, self.seed, self.strict = split, transform, augment, seed, strict
        shape = (len(split[0].cameras), 3, *transform.size)
        self.cache = PixelCache([shape] * len(split)) if cache and len(split) * math.prod(shape) <= cache_limit() else None
        self._fill = [float(round(255 * value)) for value in transform.preprocessing.mean or (0.447, 0.447, 0.447)]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: int | tuple[int, int] | Item) -> SceneSample:
        """A sample by ``Item`` or (epoch, index), or of epoch 0 by index alone.

        Raises UserError if the images can no longer be read, and ``strict`` or no other can.
        """
        epoch, index, plain = item if isinstance(item, Item) else Item(*item) if isinstance(item, tuple) else Item(0, item)
        pixels, index, unreadable = self._readable(index)
        record = self.split[index]
        view = self.transform.view(pixels, record)
        if self.augment is not None:
            augment = self.augment.plain() if plain else self.augment
            view = augment_view(view, record.cameras, augment, generator(self.seed, epoch, record.id), self._fill)
        return self.transform.sample(view, index, unreadable)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "cache": None}  # shared memory crosses a fork, not a pickle

    def _readable(self, wanted: int) -> tuple[Tensor, int, list[str]]:
        """The pixels of a scene, or of the first readable one after it; its index; a line per scene that was skipped."""
        skipped: list[str] = []
        for index in [*range(wanted, len(self.split)), *range(wanted)]:
            try:
                return self._pixels(index), index, skipped
            except UserError as error:
                if self.strict:
                    raise
                skipped.append(error.line())
        raise UserError(f"no scene of split {self.split.name!r} can be read: {skipped[0]}")

    def _pixels(self, index: int) -> Tensor:
        """Uint8 [V, 3, H, W], not to be written to."""

        def read() -> Tensor:
            return self.transform.pixels(self.split.read(index))

        return read() if self.cache is None else self.cache.get(index, read)
