"""From a split to batches. The augmentation of an image depends on seed, epoch and image alone.

Random numbers never come from a worker's own generator, so neither the number of workers, nor the order, nor a resumed run changes an
image. The sampler yields (epoch, index, plain), which is how the epoch reaches workers that live longer than one. Images that one is mixed
with are drawn from its own random numbers.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2.functional import pil_to_tensor

from boxquery.data.dataset import Record, Split
from boxquery.data.images import read_image
from boxquery.data.transforms import Labelled, ResizeTransform, TrainTransform, relative
from boxquery.errors import UserError

CACHE_SHARE = 0.25
"""Share of the free memory that a split's pixels may fill: decoded, and resized where they are the same in every epoch."""
GROUP_WINDOW = 16
"""Batches that images are exchanged between, to be with others of their shape."""
_COUNT_LIMIT = 100_000  # a split of more images is not even measured


class Sample(TypedDict):
    """One image for the model.

    ``image`` float32 [3, H, W] normalised, or uint8 where the transform only resizes;
    ``target`` {"labels": int64 [N], "boxes": float32 [N, 4] cxcywh in 0..1 of this image};
    ``index`` its position in the split; ``unreadable`` one line per image that was skipped to get to this one.
    """

    image: Tensor
    target: dict[str, Tensor]
    index: int
    unreadable: NotRequired[list[str]]


@dataclass(slots=True)
class Batch:
    """Samples side by side.

    Attributes:
        images: as in ``Sample`` [B, 3, H, W], zero where there is no image.
        mask: bool [B, H, W], True on padding; None if no image is padded.
        targets: as in ``Sample``, boxes still relative to each image's own extent.
        indices: positions in the split.
        unreadable: one line per image that was replaced by another.
    """

    images: Tensor
    mask: Tensor | None
    targets: list[dict[str, Tensor]]
    indices: list[int]
    unreadable: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None]:
        """What a model is called with."""
        return self.images, self.mask

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory; ``DataLoader`` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        targets = [{name: move(value) for name, value in target.items()} for target in self.targets]
        return replace(self, images=move(self.images), mask=None if self.mask is None else move(self.mask), targets=targets)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of any sizes as one batch, padded to the largest height and width among them, at the right and below."""
    images = [sample["image"] for sample in samples]
    targets, indices = [sample["target"] for sample in samples], [sample["index"] for sample in samples]
    unreadable = [line for sample in samples for line in sample.get("unreadable", ())]
    if len({image.shape for image in images}) == 1:
        return Batch(torch.stack(images), None, targets, indices, unreadable)
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        padded[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = False
    return Batch(padded, mask, targets, indices, unreadable)


class Item(NamedTuple):
    """Which image: epoch, position in the split, and whether its augmentation is that of the end of a run."""

    epoch: int
    index: int
    plain: bool = False


class DetectionDataset(Dataset[Sample]):
    """A split as a PyTorch data set.

    Args:
        split: records and their pixels.
        transform: applied to them; the random numbers of a ``TrainTransform`` depend on (``seed``, epoch, image id).
        seed: of the whole run.
        cache: keep decoded images in memory if the whole split fits into ``cache_limit()``. Forked workers share them; under other
            start methods each worker decodes for itself.
        strict: an image whose pixels cannot be read is fatal; else the next readable one replaces it (validation reads only the header).
    """

    def __init__(
        self, split: Split, transform: TrainTransform | ResizeTransform, *, seed: int = 0, cache: bool = False, strict: bool = False
    ):
        self.split = split
        self.transform = transform
        self.seed = seed
        self.strict = strict
        self.cache = PixelCache(self.shapes()) if cache and self._fits_into_cache() else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: int | tuple[int, int] | Item) -> Sample:
        """A sample by ``Item`` or (epoch, index), or of epoch 0 by index alone.

        Raises UserError if the image can no longer be read, and ``strict`` or no other can.
        """
        epoch, index, plain = item if isinstance(item, Item) else Item(*item) if isinstance(item, tuple) else Item(0, item)
        unreadable: list[str] = []
        picture, index = self._readable(index, unreadable)
        record = self.split[index]
        if isinstance(self.transform, TrainTransform):

            def others(chance: torch.Generator) -> Labelled:
                return self._readable(int(torch.randint(len(self), (), generator=chance)), unreadable)[0]

            image, boxes, labels = self.transform(*picture, generator(self.seed, epoch, record.id), others, plain)
        else:
            image, labels = self.transform.finish(picture.image), picture.labels
            boxes = relative(picture.boxes, record.height, record.width)
        return {"image": image, "target": {"labels": labels, "boxes": boxes}, "index": index, "unreadable": unreadable}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": None}  # shared memory crosses a fork, not a pickle

    def _readable(self, wanted: int, unreadable: list[str]) -> tuple[Labelled, int]:
        """An image with its objects, or the first readable one after it; its index. ``unreadable`` gets a line per image skipped."""
        skipped: list[str] = []
        for index in [*range(wanted, len(self.split)), *range(wanted)]:
            try:
                pixels, record = self._pixels(index), self.split[index]
            except UserError as error:
                if self.strict:
                    raise
                skipped.append(error.line())
                continue
            unreadable += skipped
            boxes, labels = torch.from_numpy(record.boxes[~record.ignore]), torch.from_numpy(record.labels[~record.ignore])
            if isinstance(self.transform, TrainTransform) and pixels.shape[1:] != (record.height, record.width):
                boxes = boxes * torch.tensor([pixels.shape[2] / record.width, pixels.shape[1] / record.height] * 2)
            return Labelled(pixels, boxes, labels), index
        raise UserError(f"no image of split {self.split.name!r} can be read: {skipped[0]}")

    def _pixels(self, index: int) -> Tensor:
        """Uint8, of the shape in ``shapes``; not to be written to."""

        def read() -> Tensor:
            if not isinstance(self.transform, TrainTransform):
                return self.transform.pixels(self.split.read(index))
            record = self.split[index]
            factor = self.transform.reduction(record.height, record.width)
            if factor == 1 or record.path is None:
                return pil_to_tensor(self.split.read(index))
            height, width = _reduced(record, factor)
            # a JPEG comes at this size; of one a little smaller the decoder would not make less
            image = read_image(record.path, at_least=max(height, width) - 2)
            if image.size != (width, height):
                whole = image if image.size == (record.width, record.height) else self.split.read(index)
                image = whole.reduce(factor)
            return pil_to_tensor(image)

        return read() if self.cache is None else self.cache.get(index, read)

    def shapes(self) -> list[tuple[int, int, int]]:
        """Of the pixels of each image: its own, or those that it is resized to where that is all that is done."""
        if isinstance(self.transform, TrainTransform):
            return [(3, *self._shown_size(record)) for record in self.split]
        return [(3, *self.transform.resize.size(record.height, record.width)) for record in self.split]

    def _shown_size(self, record: Record) -> tuple[int, int]:
        """Height and width of what a ``TrainTransform`` gets."""
        assert isinstance(self.transform, TrainTransform)
        factor = 1 if record.path is None else self.transform.reduction(record.height, record.width)
        return _reduced(record, factor)

    def _fits_into_cache(self) -> bool:
        return len(self.split) <= _COUNT_LIMIT and sum(map(math.prod, self.shapes())) <= cache_limit()


def _reduced(record: Record, factor: int) -> tuple[int, int]:
    """Height and width of an image at one ``factor``-th of its size, as JPEG decoders and Pillow round."""
    return -(-record.height // factor), -(-record.width // factor)


def cache_limit() -> int:
    """Bytes of pixels up to which a split is kept in memory: a share of what is free, on the machine and to its container; of 1 GiB where
    the system does not tell."""
    memory = _number("/proc/meminfo", r"MemAvailable: *(\d+) kB")
    free = [memory * 1024] if memory is not None else []
    for most, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        limit, now = (_number(f"/sys/fs/cgroup/{name}", r"(\d+)$") for name in (most, used))
        if limit is not None and now is not None:
            free.append(max(limit - now, 0))
    return int(CACHE_SHARE * min(free, default=2**30))


def _number(path: str, pattern: str) -> int | None:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])


class PixelCache:
    """Images in anonymous shared memory, which forked workers fill and read together; pages cost nothing until written."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self._shapes = shapes
        self._ends = torch.tensor([math.prod(shape) for shape in shapes]).cumsum(0).tolist()
        self._pixels = torch.frombuffer(mmap.mmap(-1, self._ends[-1]), dtype=torch.uint8)
        self._filled = torch.frombuffer(mmap.mmap(-1, len(shapes)), dtype=torch.uint8)

    def get(self, index: int, read: Callable[[], Tensor]) -> Tensor:
        """The pixels of an image, which ``read`` decodes the first time."""
        shape, end = self._shapes[index], self._ends[index]
        slot = self._pixels[end - math.prod(shape) : end].view(shape)
        if not self._filled[index]:
            slot.copy_(read())
            self._filled[index] = 1
        return slot


class EpochSampler(Sampler[Item]):
    """Items of an epoch in an order that depends on seed and epoch alone.

    With several processes each takes every ``world``-th of the same order, which is repeated from its beginning until all have equally
    many, so that every index is in at least one process.

    Args:
        n: number of items.
        seed: of the order.
        rank, world: this process, and how many there are.
        shapes: a number per item; items of similar ones come one after the other, ``group`` of them at a time, so that batches are padded
            less. None: in any order.
        group: items of a batch, of all processes together.

    Attributes:
        plain_from: of an epoch, the point of the run, in epochs, from which images are plain, as planned when the epoch begins.
    """

    def __init__(self, n: int, seed: int, rank: int = 0, world: int = 1, *, shapes: Sequence[float] | None = None, group: int = 1):
        if n < 1 or not 0 <= rank < world:
            raise ValueError(f"EpochSampler: n={n}, rank={rank}, world={world}")
        self.n, self.seed, self.rank, self.world = n, seed, rank, world
        self.shapes, self.group = None if shapes is None else torch.as_tensor(shapes), group
        self.epoch = 0
        self.plain_from: Callable[[int], float] = lambda epoch: math.inf

    def __len__(self) -> int:
        return -(-self.n // self.world)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Item]:
        chance = generator(self.seed, self.epoch, "order")
        order = torch.randperm(self.n, generator=chance)
        order = (order if self.shapes is None else _grouped(order, self.shapes[order], self.group, chance)).tolist()
        plain = (self.plain_from(self.epoch) - self.epoch) * len(self)
        return iter([Item(self.epoch, order[(i * self.world + self.rank) % self.n], i >= plain) for i in range(len(self))])


def _grouped(order: Tensor, shapes: Tensor, group: int, chance: torch.Generator) -> Tensor:
    """Items [N] with their shapes [N], those of a window sorted by shape, its groups in any order; what fills no group stays at the end."""
    groups = []
    whole = len(order) // group * group
    for items, own in zip(order[:whole].split(GROUP_WINDOW * group), shapes[:whole].split(GROUP_WINDOW * group), strict=True):
        rows = items[own.argsort(stable=True)].view(-1, group)
        groups.append(rows[torch.randperm(len(rows), generator=chance)].flatten())
    return torch.cat([*groups, order[whole:]])


def generator(seed: int, epoch: int, name: int | str) -> torch.Generator:
    """The random generator of something with a name in an epoch of a run."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name!r}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
