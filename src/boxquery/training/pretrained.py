"""What the backbone of a run starts from: released weights, a file of them, or random values; and what the presets then change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from boxquery.errors import UserError
from boxquery.hub import Unavailable
from boxquery.models import preset
from boxquery.parts.weights import BackboneWeights, find_weights
from boxquery.training.config import RunConfig
from boxquery.transfer import changed_options

RANDOM = {"source": "random"}
#: what random weights cost, by those who measured it: He et al. 2019, "Rethinking ImageNet Pre-training" (arXiv:1811.08883)
COST = "Random weights take several times the steps, and with few images end at a lower AP (He et al. 2019, arXiv:1811.08883)"


def choose_weights(
    model: str, size: str, options: Mapping[str, Any], wanted: bool | str, say: Callable[[str], Any]
) -> BackboneWeights | None:
    """What the backbone of a model is to start from; None: random values, which ``auto`` falls back to and ``say`` is told.

    Raises ``UserError`` where weights must be had and cannot.
    """
    if wanted is False:
        return None
    backbone = options.get("backbone", preset(model, size, pretrained=True).options.backbone)
    if wanted != "auto":
        try:
            return find_weights(backbone, wanted, say)
        except Unavailable as error:
            raise Unavailable(
                f"--pretrained: {error}; name a file or folder of weights, or use --pretrained none for random ones"
            ) from error
    if options.get("backbone_options"):
        say("note: the backbone starts from random weights, as its backbone_options may change its shape; --pretrained FILE loads some")
        return None
    try:
        return find_weights(backbone, True, say)
    except Unavailable as error:
        say(f"note: the backbone starts from random weights: {error}. {COST}; --pretrained FILE loads a file")
        return None


def with_weights(config: RunConfig, say: Callable[[str], Any]) -> RunConfig:
    """A new run with what its backbone starts from, and the options that its preset then has."""
    wanted = config.pretrained
    if wanted == "auto" and config.start_from:
        wanted = False  # a trained model has its own
    weights = choose_weights(config.model, config.preset, config.options, wanted, say)
    if weights is None:
        return replace(config, pretrained=False, weights=RANDOM)
    usual, released = (asdict(preset(config.model, config.preset, pretrained=how).options) for how in (False, True))
    changed = {name: own for name, (_, own) in changed_options(usual, released).items() if name not in config.options}
    return replace(
        config,
        pretrained=True if wanted == "auto" else wanted,
        weights=asdict(weights),
        options=config.options | changed,
        chosen=sorted({*config.chosen, *changed}),
    )


def with_own_file(config: RunConfig) -> RunConfig:
    """The same run, with the released weights that its first process has found as this machine's cache has them, fetched if need be.

    Raises ``UserError`` where the hub now has others.
    """
    if config.pretrained is not True or Path(config.weights["file"]).exists():
        return config
    backbone = config.options.get("backbone", preset(config.model, config.preset, pretrained=True).options.backbone)
    own = find_weights(backbone, True)
    if own.sha256 != config.weights["sha256"]:
        raise UserError(
            f"{own}: the first process has other weights (sha256 {config.weights['sha256'][:12]}); copy its file of the hub's cache"
        )
    return replace(config, weights=asdict(own))


def recorded_weights(config: RunConfig) -> BackboneWeights | None:
    """What a run started from, by its configuration. Raises ``UserError`` where that is no longer there; asks no network."""
    if not config.pretrained:
        return None
    try:
        return BackboneWeights(**config.weights).checked()
    except (TypeError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else "its configuration does not say which weights it started from"
        raise UserError(f"{reason}; the run cannot begin again without them: train in another --out") from error
