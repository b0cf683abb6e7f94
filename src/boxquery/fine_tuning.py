"""Where ``--model auto`` starts from weights that were trained on COCO: which, of what size, and how they are trained on; and from which
where there are none.

Of the numbers for weights of COCO none is measured: they could not be fetched where this was written. Imports no torch until it chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from boxquery.augment import augment_parts
from boxquery.auto import (
    FEW,
    LARGE_MEMORY,
    MANY,
    MANY_CORES,
    Choice,
    DataFacts,
    Given,
    fit_batch_size,
    fit_image_size,
    fit_length,
    fit_queries,
    fit_rate,
    left_open,
    words_of,
)
from boxquery.data.builtin import names_scenes
from boxquery.data.shapes import WORD
from boxquery.flags import option_word
from boxquery.hub import HubModel, Unavailable, find_model
from boxquery.models import preset as known_preset
from boxquery.models.recipes import recipe_of

if TYPE_CHECKING:
    from boxquery.device import Processor

#: the model that comes with the library, trained on drawn scenes, and the paper and preset that it is
SHAPES, SHAPES_IS = "shapes", ("deformable-detr", "tiny")
#: options that may be given beside it: what was learned is of use whatever they are
SHAPES_ALLOWS = frozenset(
    {"num_queries", "inference_layers", "dropout", "matching", "denoising", "contrastive", "groups", "hybrid_queries", "hybrid_repeats",
     "class_loss"}
)  # fmt: skip
#: value of ``--recipe``, see ``boxquery.models.recipes.FINE_TUNING``
RECIPE = "fine-tuning"


@dataclass(frozen=True)
class Start:
    """Weights that a run may start from.

    Attributes:
        name: on the hub, in transformers' names; trained on COCO.
        model, preset: what it is here.
    """

    name: str
    model: str
    preset: str


#: by size, the smallest first
STARTS = {
    "nano": Start("ustc-community/dfine-nano-coco", "d-fine", "n"),
    "small": Start("ustc-community/dfine-small-coco", "d-fine", "s"),
    "medium": Start("ustc-community/dfine-medium-coco", "d-fine", "m"),
    "large": Start("ustc-community/dfine-large-coco", "d-fine", "paper"),
}
#: image size on a CPU, unless small objects need a larger one; on a GPU it is that of the source
CPU_SIZE = 320
#: that of the demo, whose scenes have 160 pixels
DEMO_SIZE = 320
#: minutes of a run on a GPU below which the smallest is taken
SHORT_GPU = 5.0
#: fewest optimizer steps
LEAST_STEPS = 1_000


def fitting(facts: DataFacts, processor: Processor, given: Given) -> Start:
    """The weights whose size fits data and processor."""
    if processor.device != "cuda":
        return STARTS["small" if processor.cores >= MANY_CORES else "nano"]
    if given.minutes is not None and given.minutes < SHORT_GPU:
        return STARTS["nano"]
    if facts.images < FEW:
        return STARTS["small"]
    return STARTS["large" if facts.images >= MANY and processor.memory >= LARGE_MEMORY else "medium"]


def find_start(facts: DataFacts, processor: Processor, given: Given, say: Callable[[str], Any]) -> tuple[Start, HubModel] | None:
    """The weights that fit and where they are, if the hub or its cache has them; ``say`` is told why not.

    None without a word where a preset or an option is given, which belong to a model that auto chooses otherwise.

    Where the cache has nothing the hub is asked, which takes about three seconds where there is no answer.
    """
    if given.preset or given.options:
        return None
    start = fitting(facts, processor, given)
    try:
        return start, find_model(start.name)
    except Unavailable as error:
        say(f"note: no weights trained on COCO to start from: {error}")
        return None


def tune(facts: DataFacts, processor: Processor, given: Given, start: Start, found: HubModel) -> Choice:
    """How a model that was trained on COCO is trained on the data, apart from what is given."""
    base = known_preset(start.model, start.preset)
    recipe, options = recipe_of(base, RECIPE), fit_queries(facts, given, base.options.num_queries)
    if processor.device != "cuda":
        recipe = replace(recipe, image_size=min(recipe.image_size, CPU_SIZE))
    square = recipe.square if given.square is None else given.square
    image_size, of_size = fit_image_size(facts, processor, given, recipe, square)
    batch_size, of_batch = fit_batch_size(facts, processor, given, recipe, image_size)
    lr, of_rate = fit_rate(facts.objects, given, recipe, batch_size)
    epochs, of_length = fit_length(facts, given, recipe, batch_size, LEAST_STEPS)
    asked = augment_parts(given.augment)
    augment: dict[str, Any] = {"level": "light"} | ({"scales": [1.0]} if square else {}) | asked
    words = [name if name == "own" else str(value) if name == "level" else option_word(name, value) for name, value in augment.items()]
    return Choice(
        model=start.model,
        preset=start.preset,
        options=options,
        image_size=image_size,
        square=square,
        batch_size=batch_size,
        lr=lr,
        epochs=epochs,
        augment=augment,
        start_from=start.name,
        recipe=RECIPE,
        chosen=sorted(["model", "preset", "start_from", "recipe", *options, *left_open(given)]),
        lines=[
            f"auto: {start.model} {start.preset}{words_of(options)} from {found}, trained on COCO (--from; --pretrained none: random)",
            f"auto: {of_size} (--image-size){', in squares' * square}; {of_batch} (--batch-size); {of_rate} (--lr)",
            f"auto: fine-tuning (--recipe); {of_length}; augmentation {', '.join(words)} (--augment)",
        ],
    )


def from_shapes(choice: Choice, given: Given, source: str) -> Choice:
    """The same choice, started from the model that was trained on drawn scenes, where it is of that size and no option makes it another.

    The scenes themselves, as ``source`` of the data, are learned from random weights.
    """
    if (choice.model, choice.preset) != SHAPES_IS or names_scenes(source, WORD):
        return choice
    first, *others = choice.lines
    usual = known_preset(*SHAPES_IS).options
    another = [name for name, value in (given.options or {}).items() if name not in SHAPES_ALLOWS and value != getattr(usual, name, value)]
    if another:
        why = f"as {another[0]} builds another network (--from {SHAPES} keeps what fits)"
        return replace(choice, lines=[f"{first}; not from the weights that learned drawn scenes, {why}", *others])
    start = f"{first}; it starts from weights that learned drawn scenes and come with boxquery (--from; --pretrained none: random)"
    return replace(choice, start_from=SHAPES, chosen=sorted([*choice.chosen, "start_from"]), lines=[start, *others])
