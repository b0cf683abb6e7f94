"""How much better one model is than others, and what may be said of it. NumPy only, no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from boxquery.evaluation.bootstrap import Interval, interval
from boxquery.pages.format import bounds


def against_best(means: Mapping[str, float], drawn: Mapping[str, np.ndarray]) -> tuple[str, dict[str, tuple[float, Interval]]]:
    """The highest mean's name, and how much lower each other is, with an interval.

    The intervals hold together with 95 %: each is widened for their number (Bonferroni).
    """
    best = max(means, key=lambda name: means[name])
    others = [name for name in means if name != best]
    level = 1 - 0.05 / max(len(others), 1)
    found = {}
    for name in others:
        difference = interval(drawn[best] - drawn[name], level)
        if difference is not None:
            found[name] = means[best] - means[name], difference
    return best, found


def conclusion(
    means: Mapping[str, float], drawn: Mapping[str, np.ndarray], seeds: Mapping[str, int], budget: str, images: int
) -> list[str]:
    """Two sentences that the figures support; "no difference shown" is one of the things they may say.

    Args:
        means: AP by entry, mean over seeds; at least one.
        drawn: resampled means [R] of the same entries, on the same images.
        seeds: how many each entry has.
    """
    best, lower = against_best(means, drawn)
    own = interval(drawn[best])
    runs = f"{seeds[best]} seeds" if seeds[best] > 1 else "one seed"
    where = f"on {images:,} validation images"
    first = f"After {budget}, {best} has the highest AP {where}: {means[best]:.3f}"
    first += f" (95 % interval {bounds(own)}, {runs})." if own else f" ({runs})."
    if means[best] == 0:
        return [
            f"After {budget}, AP is 0 {where} for {'all of them' if len(means) > 1 else best}.",
            "No difference is shown: they find nothing yet.",
        ]
    if len(means) == 1:
        return [
            f"After {budget}, {best} has AP {means[best]:.3f} {where}{first[first.index(' (') :]}",
            "There is nothing to compare it with.",
        ]
    shown = [name for name, (_, (low, _)) in lower.items() if low > 0]
    rest = [name for name in means if name != best and name not in shown]
    parts = []
    if shown:
        said = "; ".join(f"{name} by {lower[name][0]:.3f} ({bounds(lower[name][1])})" for name in shown)
        parts.append(f"lower by more than chance explains: {said}")
    if rest:
        said = "; ".join(f"{name} ({lower[name][0]:+.3f}, {bounds(lower[name][1])})" if name in lower else name for name in rest)
        parts.append(f"no difference from it is shown for {said}")
    second = ", and ".join(parts)
    return [first, second[0].upper() + second[1:] + "."]
