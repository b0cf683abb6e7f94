"""Differences in AP between models, and the conclusions that they allow. NumPy only, no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from boxquery.errors import count
from boxquery.evaluation.bootstrap import Interval, interval
from boxquery.pages.format import bounds


def against_best(means: Mapping[str, float], resampled: Mapping[str, np.ndarray]) -> tuple[str, dict[str, tuple[float, Interval]]]:
    """The highest mean's name, and how much lower each other is, with an interval.

    The intervals hold together with 95 %: each is widened for their number (Bonferroni).
    """
    best = max(means, key=lambda name: means[name])
    others = [name for name in means if name != best]
    level = 1 - 0.05 / max(len(others), 1)
    found = {}
    for name in others:
        difference = interval(resampled[best] - resampled[name], level)
        if difference is not None:
            found[name] = means[best] - means[name], difference
    return best, found


def conclusion(
    means: Mapping[str, float], resampled: Mapping[str, np.ndarray], seeds: Mapping[str, int], budget: str, images: int
) -> list[str]:
    """Two sentences that the figures support; they may say that no difference is shown.

    Args:
        means: AP by entry, mean over seeds; at least one.
        resampled: resampled means [R] of the same entries, on the same images.
        seeds: how many each entry has.
    """
    best, lower = against_best(means, resampled)
    own = interval(resampled[best])
    where = f"on {images:,} validation images"
    uncertainty = f"({f'95 % interval {bounds(own)}, ' if own else ''}{count(seeds[best], 'seed')})"
    if means[best] == 0:
        who = "all of them" if len(means) > 1 else best
        return [f"After {budget}, AP is 0 {where} for {who}.", "No difference is shown: they find nothing yet."]
    if len(means) == 1:
        return [f"After {budget}, {best} has AP {means[best]:.3f} {where} {uncertainty}.", "There is nothing to compare it with."]
    first = f"After {budget}, {best} has the highest AP {where}: {means[best]:.3f} {uncertainty}."
    shown = [name for name, (_, (low, _)) in lower.items() if low > 0]
    rest = [name for name in means if name != best and name not in shown]
    parts = []
    if shown:
        listed = "; ".join(f"{name} by {lower[name][0]:.3f} ({bounds(lower[name][1])})" for name in shown)
        parts.append(f"lower by more than chance explains: {listed}")
    if rest:
        listed = "; ".join(f"{name} ({lower[name][0]:+.3f}, {bounds(lower[name][1])})" if name in lower else name for name in rest)
        parts.append(f"no difference from it is shown for {listed}")
    second = ", and ".join(parts)
    return [first, second[0].upper() + second[1:] + "."]
