"""What ``--model auto`` chooses for a data set and a processor: model, preset, options, image size, batch size, length and augmentation.

Every number that a choice depends on is in the table below, apart from what is a preset's own: its image size, batch size, epochs and
number of queries, from which the choices start. Imports no torch until it chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from boxquery.augment import augment_parts
from boxquery.data.dataset import Split
from boxquery.data.preprocessing import Preprocessing, object_sizes
from boxquery.errors import UserError, count
from boxquery.flags import DEFAULT_PRESET, option_word
from boxquery.models import papers, sizes
from boxquery.models import preset as known_preset

if TYPE_CHECKING:
    from boxquery.device import Processor
    from boxquery.models.recipes import Recipe

#: the one that needed the fewest images (docs/convergence)
MODEL = "deformable-detr"
#: of scenes of several cameras
SCENE_MODEL = "petr"
#: up to so many images are called few
FEW = 500

#: minutes of a run below which the preset is tiny, on a CPU and on a GPU; on a CPU it is tiny up to MANY images, too. In 500 CPU seconds AP
#: is .42 in place of .36 on raccoon and .65 in place of .51 on cards (benchmarks/recipe.py), and after 1,250 with 423 images of ten classes
#: .61, from drawn scenes, in place of .39 (docs/LOG.md, "Tiny or small"); small was not ahead in any run, up to 2,942 CPU seconds. More
#: images, longer runs and a GPU are not measured yet
SHORT_CPU, SHORT_GPU = 60.0, 1.0
#: shorter side of the median image, in pixels, up to which the preset is tiny: that of its recipe and a little more (not measured yet)
SMALL_IMAGES = 192
#: from so many images on, and on a GPU with at least so many GB, a larger model is trained (not measured yet)
MANY, LARGE_MEMORY = 5_000, 12.0
#: what it differs in from the preset: the paper's backbone, width and depth (not measured yet)
LARGER: dict[str, Any] = {
    "backbone": "resnet50", "backbone_options": {}, "hidden_dim": 256, "ffn_dim": 1024, "decoder_layers": 6, "num_queries": 300,
}  # fmt: skip
#: queries beyond the fullest image's objects, as a factor; they are rounded up to tens. The most that are chosen (not measured yet)
SPARE_QUERIES, MOST_QUERIES = 1.2, 500

#: image sizes that are chosen where the preset's is too small for the objects or too large for the images
SIZES = (128, 160, 192, 256, 320, 416, 512, 640)
#: all but this share of the objects should measure so many pixels on their shorter side, 1.5 cells of stride 8 (not measured yet)
SMALLEST_SHARE, VISIBLE = 0.1, 12.0
#: the largest size that is chosen, on a CPU with fewer cores than MANY_CORES, with more, and on a GPU (not measured yet)
MOST_CPU, MOST_CORES, MANY_CORES, MOST_GPU = 416, 512, 8, 640

#: on a GPU: images per batch at most, batches per epoch at least, pixels of a batch per GB of its memory, and the ratio of an image's sides
#: (not measured yet)
GPU_BATCH, EPOCH_BATCHES, PIXELS_PER_GB, ASPECT = 16, 50, 200_000, 4 / 3

#: images are resized to squares where the shape of more than this share of them differs from the usual one by more than DIFFERENT: padding
#: doubles the time of a step there (cards: 116 ms per image at 240 px, 63 in squares of 256; benchmarks/recipe.py)
MIXED, DIFFERENT = 0.1, 0.1

#: objects per step that the preset's learning rate was found with (four images of BCCD); with fewer the rate falls by this power of their
#: share, since a gradient of few objects is noisy: half the rate gains .14 AP on raccoon with four objects per step, and loses .04 on BCCD
#: with fifty (benchmarks/recipe.py)
RATE_OBJECTS, RATE_POWER = 50, 0.25

#: up to so many images the augmentation is strong, and from so many on light; between them, and in short runs, it is the preset's (not
#: measured yet)
STRONG_UNTIL, LIGHT_FROM = FEW, MANY
#: minutes on a CPU below which it is not strong: in 500 CPU seconds it gains .02 on raccoon and .03 on cards (benchmarks/recipe.py; shorter
#: runs are not measured yet)
STRONG_MINUTES = 6.0

#: fewest and most optimizer steps, and the fewest epochs whatever they come to; after 4,000 steps AP still rose on cards (the most is not
#: measured yet)
LEAST_STEPS, MOST_STEPS, LEAST_EPOCHS = 8_000, 60_000, 12


@dataclass(frozen=True)
class DataFacts:
    """What the choices depend on.

    Attributes:
        images: number of them.
        objects: per image, on average.
        most_objects: of the fullest image.
        side: median size of the objects, the square root of their area, in pixels of an image whose shorter side is one pixel.
        short_side: shorter side that all but ``SMALLEST_SHARE`` of the objects exceed, in the same unit.
        image_side: shorter side of the median image, in its own pixels.
        mixed: share of the images whose ratio of width to height is not about the median one.
    """

    images: int
    objects: float
    most_objects: int
    side: float
    short_side: float
    image_side: int
    mixed: float

    @classmethod
    def of(cls, split: Split) -> DataFacts:
        """Of the images that are trained on."""
        reference = 320  # sizes are proportional to it, but for the rounding of the images' sides
        per_image = object_sizes(split, Preprocessing(reference))
        sizes = np.concatenate(per_image) / reference
        sides = np.array([(record.width, record.height) for record in split])
        shapes = np.log(sides[:, 0] / sides[:, 1])
        return cls(
            images=len(split),
            objects=len(sizes) / len(split),
            most_objects=max(map(len, per_image)),
            side=float(np.median(np.sqrt(sizes.prod(1)))) if len(sizes) else 1.0,
            short_side=float(np.quantile(sizes.min(1), SMALLEST_SHARE)) if len(sizes) else 1.0,
            image_side=int(np.median(sides.min(1))),
            mixed=float((np.abs(shapes - np.median(shapes)) > DIFFERENT).mean()),
        )


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user decided; ``None`` is to be chosen. As the flags of the same names; ``processes`` share the images."""

    preset: str | None = None
    options: dict[str, Any] | None = None
    image_size: int | None = None
    square: bool | None = None
    batch_size: int | None = None
    lr: float | None = None
    epochs: int | None = None
    minutes: float | None = None
    images_seen: int | None = None
    augment: Any = None
    accumulate: int = 1
    processes: int = 1

    @property
    def has_length(self) -> bool:
        return not (self.epochs is None and self.minutes is None and self.images_seen is None)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The result, with what was given.

    Attributes:
        epochs: None where the length is given in another way.
        augment: as ``augment_parts`` has it; without a level it is the preset's.
        start_from, recipe: as the flags, see ``boxquery.fine_tuning``.
        chosen: names of the flags and options that were not given.
        lines: three, for people: what was chosen, why, and by which flag it is given.
    """

    model: str
    preset: str
    options: dict[str, Any]
    image_size: int
    square: bool
    batch_size: int
    lr: float
    epochs: int | None
    augment: dict[str, Any]
    start_from: str | None = None
    recipe: str | None = None
    chosen: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def flags(self) -> dict[str, Any]:
        """By the names of the flags."""
        return {name: value for name, value in vars(self).items() if name not in ("chosen", "lines")}


def scene_preset(device: str) -> str:
    """The preset of ``SCENE_MODEL`` on a device."""
    return DEFAULT_PRESET if device == "cuda" else "tiny"


def choose(facts: DataFacts, processor: Processor, given: Given) -> Choice:
    """What suits the data and the processor, apart from what is given. Raises ``UserError`` for an unknown preset."""
    size, why, options = _preset(facts, processor, given)
    if size not in sizes(MODEL) and (having := [name for name in papers() if size in sizes(name)]):
        raise UserError(f"--preset {size}: {MODEL}, which auto chose, has none of that name; add --model {' or '.join(having)}")
    base = known_preset(MODEL, size)
    options |= fit_queries(facts, given, options.get("num_queries", base.options.num_queries))
    square, of_square = _square(facts, given)
    image_size, of_size = fit_image_size(facts, processor, given, base.recipe, square)
    batch_size, of_batch = fit_batch_size(facts, processor, given, base.recipe, image_size)
    lr, of_rate = fit_rate(facts.objects, given, base.recipe, batch_size)
    epochs, of_length = fit_length(facts, given, base.recipe, batch_size)
    augment, of_augment = _augment(facts, processor, given, one_size=square or base.recipe.augment.scales == (1.0,))
    words = words_of(options)
    return Choice(
        model=MODEL,
        preset=size,
        options=options | (given.options or {}),
        image_size=image_size,
        square=square,
        batch_size=batch_size,
        lr=lr,
        epochs=epochs,
        augment=augment,
        chosen=sorted(["model", *(["preset"] if given.preset is None else []), *options, *left_open(given)]),
        lines=[
            f"auto: {MODEL} {size}{words}: {why} (--model, --preset{', --option' * bool(options)})",
            f"auto: {of_size} (--image-size){of_square}",
            f"auto: {of_batch} (--batch-size), {of_rate} (--lr), {of_length}, {of_augment} (--augment)",
        ],
    )


def left_open(given: Given) -> list[str]:
    """Names of the flags of the training that the user left to auto."""
    flags = {name: getattr(given, name) for name in ("image_size", "square", "batch_size", "lr")}
    flags |= {"epochs": given.has_length or None, "augment": augment_parts(given.augment).get("level")}
    return [name for name, value in flags.items() if value is None]


def words_of(options: dict[str, Any]) -> str:
    return f" with {', '.join(option_word(*option) for option in options.items())}" if options else ""


def enough_queries(objects: int) -> int:
    """A number of queries with some room above an image of so many objects."""
    return int(-(-objects * SPARE_QUERIES // 10) * 10)


def _preset(facts: DataFacts, processor: Processor, given: Given) -> tuple[str, str, dict[str, Any]]:
    """The preset, why, and the options that it differs in."""
    gpu = processor.device == "cuda"
    if given.preset is not None:
        return given.preset, "the preset as given", {}
    if facts.image_side <= SMALL_IMAGES:
        return "tiny", f"images of {facts.image_side} px are small", {}
    if given.minutes is not None and _is_short(given, processor, SHORT_GPU, SHORT_CPU):
        return "tiny", f"a run of {_minutes(given.minutes)} is short", {}
    if facts.images <= FEW and not gpu:
        return "tiny", f"{_are(facts)} few, and a small model sees them often", {}
    if facts.images < MANY and not gpu:
        return "tiny", f"{_are(facts)} too few for a larger model on a CPU", {}
    if facts.images <= FEW:
        return DEFAULT_PRESET, f"{_are(facts)} few, and it learned fastest from few (docs/convergence)", {}
    if facts.images < MANY:
        return DEFAULT_PRESET, f"{_are(facts)} too few for a larger model", {}
    if gpu and processor.memory >= LARGE_MEMORY:
        larger = {name: value for name, value in LARGER.items() if name not in (given.options or {})}
        return DEFAULT_PRESET, f"{_are(facts)} many, and the GPU has {processor.memory:.0f} GB", larger
    return DEFAULT_PRESET, f"{_are(facts)} many, but a larger model needs a GPU with {LARGE_MEMORY:.0f} GB", {}


def _is_short(given: Given, processor: Processor, gpu: float, cpu: float) -> bool:
    return given.minutes is not None and given.minutes < (gpu if processor.device == "cuda" else cpu)


def fit_queries(facts: DataFacts, given: Given, usual: int) -> dict[str, Any]:
    """More queries than usual where an image has more objects."""
    if facts.most_objects <= usual or "num_queries" in (given.options or {}):
        return {}
    return {"num_queries": min(enough_queries(facts.most_objects), MOST_QUERIES)}


def _square(facts: DataFacts, given: Given) -> tuple[bool, str]:
    """Whether images are resized to squares, and why."""
    if given.square is not None:
        return given.square, f"; {'' if given.square else 'no '}squares as given (--square)"
    if given.preset == "paper" or facts.mixed <= MIXED:
        return False, ""
    return True, "; squares, since shapes differ and would be padded (--no-square)"


def fit_image_size(facts: DataFacts, processor: Processor, given: Given, recipe: Recipe, square: bool) -> tuple[int, str]:
    """The image size, and why: the preset's, or a larger one for small objects, but neither many more pixels than the images have nor more
    than the processor is fast enough for."""
    usual = recipe.image_size
    if square:
        usual = next((size for size in SIZES if size >= usual), usual)
    if given.image_size is not None:
        return given.image_size, f"{given.image_size} px as given"
    if given.preset == "paper":
        return usual, f"{usual} px as published"
    native = next((size for size in SIZES if size >= facts.image_side), SIZES[-1])
    if native < usual and native * facts.short_side >= VISIBLE:
        return native, f"{native} px: the images have {facts.image_side}"
    most = MOST_GPU if processor.device == "cuda" else MOST_CORES if processor.cores >= MANY_CORES else MOST_CPU
    larger = [size for size in SIZES if usual < size <= min(most, native)]
    size = next((size for size in (usual, *larger) if size * facts.short_side >= VISIBLE), larger[-1] if larger else usual)
    small = f"{SMALLEST_SHARE:.0%} of the objects"
    if size * facts.short_side < VISIBLE:
        why = f"the images have {facts.image_side}" if native <= most else f"the most on {_processor(processor)}"
        return size, f"{size} px, as {why}, though {small} measure less than {VISIBLE:g} px there"
    if size > usual:
        return size, f"{size} px: {small} would measure less than {VISIBLE:g} px at {usual}"
    return size, f"{size} px: half of the objects are larger than {facts.side * size:.0f} px there"


def fit_batch_size(facts: DataFacts, processor: Processor, given: Given, recipe: Recipe, image_size: int) -> tuple[int, str]:
    """Images per batch of a process, and why: the preset's, or on a GPU as many as it has room for and the data fill an epoch with."""
    if given.batch_size is not None:
        return given.batch_size, f"batches of {given.batch_size} as given"
    own = max(facts.images // given.processes, 1)
    if own < recipe.batch_size:
        return own, f"batches of {own}, as there are no more images"
    if processor.device != "cuda" or given.preset == "paper":
        return recipe.batch_size, f"batches of {recipe.batch_size}"
    room = processor.memory * PIXELS_PER_GB / (image_size**2 * ASPECT)
    fitting = [2**power for power in range(GPU_BATCH.bit_length()) if 2**power <= min(room, own / EPOCH_BATCHES, GPU_BATCH)]
    size = max([recipe.batch_size, *fitting])
    return size, f"batches of {size}" + " on a GPU" * (size > recipe.batch_size)


def fit_rate(objects: float, given: Given, recipe: Recipe, batch_size: int) -> tuple[float, str]:
    """The learning rate, and why: the preset's, or a lower one where a step has few objects. ``objects`` per image, on average."""
    if given.lr is not None:
        return given.lr, f"learning rate {given.lr:g} as given"
    objects *= batch_size * given.processes * given.accumulate
    if given.preset == "paper" or objects >= RATE_OBJECTS:
        return recipe.lr, f"learning rate {recipe.lr:g}"
    lr = float(f"{recipe.lr * (max(objects, 1) / RATE_OBJECTS) ** RATE_POWER:.1g}")
    return lr, f"learning rate {lr:g}, as a step has {count(round(objects), 'object')}"


def fit_length(facts: DataFacts, given: Given, recipe: Recipe, batch_size: int, least: int = LEAST_STEPS) -> tuple[int | None, str]:
    """Epochs (None where the length is given in another way), and why."""
    if given.has_length:
        words = {"epochs": given.epochs and count(given.epochs, "epoch"), "minutes": given.minutes and _minutes(given.minutes)}
        words |= {"images-seen": given.images_seen and count(given.images_seen, "image")}
        asked = {f"--{flag}": text for flag, text in words.items() if text}
        return given.epochs, f"{' and at most '.join(asked.values())} as given ({', '.join(asked)})"
    per_epoch = -(-max(facts.images // given.processes // batch_size, 1) // given.accumulate)
    epochs, why = recipe.epochs, ""
    if given.preset == "paper":
        why = ", as published"
    elif epochs * per_epoch < least:
        epochs, why = -(-least // per_epoch), f", since {_are(facts)} few"
    elif epochs * per_epoch > MOST_STEPS:
        epochs, why = max(MOST_STEPS // per_epoch, LEAST_EPOCHS), f", since {_are(facts)} many"
    return epochs, f"{count(epochs, 'epoch')}, {_rounded(epochs * per_epoch)} steps{why} (--epochs or --minutes)"


def _augment(facts: DataFacts, processor: Processor, given: Given, one_size: bool) -> tuple[dict[str, Any], str]:
    """The augmentation, and why: a level beside the parts that are given. Squares of several sizes would be padded again."""
    parts = augment_parts(given.augment)
    own = ", ".join(name if name == "own" else option_word(name, value) for name, value in parts.items() if name != "level")
    with_own = f" with {own} as given" if own else ""
    if one_size and given.preset != "paper" and "scales" not in parts:
        parts, with_own = {"scales": [1.0]} | parts, f" in one size{with_own}"
    if "level" in parts:
        return parts, f"augmentation {parts['level']}{with_own or ' as given'}"
    if given.preset == "paper":
        return parts, f"augmentation as published{with_own}"
    if facts.images <= STRONG_UNTIL and not _is_short(given, processor, SHORT_GPU, STRONG_MINUTES):
        return {"level": "strong", **parts}, f"augmentation strong{with_own}, since {_are(facts)} few"
    if facts.images >= LIGHT_FROM:
        return {"level": "light", **parts}, f"augmentation light{with_own}, since {_are(facts)} many"
    return parts, f"augmentation as the preset has it{with_own}"


def _are(facts: DataFacts) -> str:
    return f"{count(facts.images, 'image')} {'is' if facts.images == 1 else 'are'}"


def _rounded(steps: int) -> str:
    """With two significant digits, as the last epoch may be cut short."""
    return f"about {round(steps, 2 - len(str(steps))):,}"


def _minutes(minutes: float) -> str:
    return f"{minutes:g} minute{'s' * (minutes != 1)}"


def _processor(processor: Processor) -> str:
    return "a GPU" if processor.device == "cuda" else f"a CPU with {count(processor.cores, 'core')}"
