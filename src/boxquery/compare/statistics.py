"""Differences in AP, or mAP of scenes, between models, and the conclusions that they allow. NumPy only, no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from boxquery.errors import count
from boxquery.evaluation.bootstrap import Interval, interval
from boxquery.evaluation.metric_names import MetricNames
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
    means: Mapping[str, float], resampled: Mapping[str, np.ndarray], seeds: Mapping[str, int], budget: str, metrics: MetricNames, items: int
) -> list[str]:
    """Two sentences that the figures support; they may say that no difference is shown.

    Args:
        means: the better the higher, by entry, mean over seeds; at least one.
        resampled: resampled means [R] of the same entries, on the same images or scenes.
        seeds: how many each entry has.
        items: how many images or scenes that were.
    """
    best, lower = against_best(means, resampled)
    own = interval(resampled[best])
    name, where = metrics.better, f"on {items:,} validation {metrics.unit}s"
    uncertainty = f"({f'95 % interval {bounds(own)}, ' if own else ''}{count(seeds[best], 'seed')})"
    if means[best] == 0:
        who = "all of them" if len(means) > 1 else best
        return [f"After {budget}, {name} is 0 {where} for {who}.", "No difference is shown: they find nothing yet."]
    if len(means) == 1:
        return [f"After {budget}, {best} has {name} {means[best]:.3f} {where} {uncertainty}.", "There is nothing to compare it with."]
    first = f"After {budget}, {best} has the highest {name} {where}: {means[best]:.3f} {uncertainty}."
    shown = [label for label, (_, (low, _)) in lower.items() if low > 0]
    rest = [label for label in means if label != best and label not in shown]
    parts = []
    if shown:
        listed = "; ".join(f"{label} by {lower[label][0]:.3f} ({bounds(lower[label][1])})" for label in shown)
        parts.append(f"lower by more than chance explains: {listed}")
    if rest:
        listed = "; ".join(f"{label} ({lower[label][0]:+.3f}, {bounds(lower[label][1])})" if label in lower else label for label in rest)
        parts.append(f"no difference from it is shown for {listed}")
    second = ", and ".join(parts)
    return [first, second[0].upper() + second[1:] + "."]
