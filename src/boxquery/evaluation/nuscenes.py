"""nuScenes' detection metrics: AP by the distance of centres, errors of true positives, NDS. Imports no torch.

Defined by nuscenes-devkit's detection_cvpr_2019; ``benchmarks/nuscenes_devkit.py`` runs that on random results, which tests compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from boxquery.boxes3d import contains
from boxquery.data.scenes import DetectionProtocol, SceneDetections, SceneRecord
from boxquery.evaluation.threshold import best_threshold, rates

DISTANCES = (0.5, 1.0, 2.0, 4.0)
"""Metres between centres below which a detection is a true positive; AP is the mean over them."""
ERROR_DISTANCE = 2.0
"""The one of ``DISTANCES`` at which the errors of true positives are measured."""
MOST = 500
"""Detections per scene that count."""

_RECALLS = np.linspace(0, 1, 101)
_FIRST = 11  # of the recalls that count: those above a tenth
_LEAST_PRECISION = 0.1
_AP_WEIGHT = 5
_AT_ONCE = 50  # resamples computed at once, to keep tables in the CPU's cache


@dataclass(frozen=True, slots=True)
class _Table:
    """Boxes of all scenes side by side, each with the number of its scene; for ground truth, scores are 0."""

    scenes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray


def evaluate_scenes(
    records: Sequence[SceneRecord], predictions: Mapping[int, SceneDetections], protocol: DetectionProtocol
) -> dict[str, Any]:
    """Compare detections with the annotations.

    Args:
        records: the scenes of a split.
        predictions: position in ``records`` -> detections. A position without an entry is a scene without detections.
        protocol: that of the data.

    Returns:
        ``mAP``, ``NDS``, ``mATE`` ... (those errors that the protocol measures); ``AP@0.5`` ... ``AP@4``, the means over classes;
        ``classes``: per class ``name``, ``AP``, ``AP@0.5`` ..., ``ATE`` ... (None where it is undefined), ``objects``, ``detections``;
        ``best_threshold``: the score with the best F1 at 2 m, and ``precision``, ``recall`` and ``f1`` there, of all classes together (None
        where nothing is found); ``objects``; ``scenes``; ``truncated``: detections beyond the ``MOST`` best of their scene, which do not
        count. As in nuScenes a class without objects has AP 0 and errors of 1, and counts. NDS weighs mAP five times as much as 1 - error
        (at least 0) of each error.
    """
    truth, (found, truncated) = _truth(records, protocol), _found(records, predictions, protocol)
    rows, right = [], np.zeros(len(found.labels), dtype=bool)
    for name, own, matched, scenes in _by_class(truth, found, protocol):
        objects, once = len(scenes), np.ones((1, len(own)), np.int64)
        precisions = {distance: float(_average_precision(taken >= 0, once, np.array([objects]))[0]) for distance, taken in matched.items()}
        right[own] = matched[ERROR_DISTANCE] >= 0
        errors = _errors(truth, found, own, matched[ERROR_DISTANCE], objects, name in protocol.symmetric)
        skipped = protocol.undefined.get(name, ())
        rows.append(
            {"name": name, "AP": float(np.mean(list(precisions.values())))}
            | {f"AP@{distance:g}": value for distance, value in precisions.items()}
            | {error: None if error in skipped else errors[error] for error in protocol.errors}
            | {"objects": objects, "detections": len(own)}
        )
    means = {f"m{error}": _mean([row[error] for row in rows]) for error in protocol.errors}
    mean_ap = float(np.mean([row["AP"] for row in rows]))
    scores = [max(0.0, 1 - error) for error in means.values() if error is not None]
    return {
        "mAP": mean_ap,
        "NDS": (_AP_WEIGHT * mean_ap + sum(scores)) / (_AP_WEIGHT + len(scores)),
        **means,
        **{f"AP@{distance:g}": float(np.mean([row[f"AP@{distance:g}"] for row in rows])) for distance in DISTANCES},
        "classes": rows,
        **_operating_point(found.scores, right, len(truth.labels)),
        "objects": len(truth.labels),
        "scenes": len(records),
        "truncated": truncated,
    }


def resampled_map(
    records: Sequence[SceneRecord], predictions: Mapping[int, SceneDetections], protocol: DetectionProtocol, weights: np.ndarray
) -> np.ndarray:
    """The mAP of ``evaluate_scenes`` where every scene counts as often as ``weights`` [R, scenes] says: [R]."""
    truth, (found, _) = _truth(records, protocol), _found(records, predictions, protocol)
    table = np.zeros((len(weights), len(protocol.ranges), len(DISTANCES)))
    for label, (_, own, matched, scenes) in enumerate(_by_class(truth, found, protocol)):
        for start in range(0, len(weights), _AT_ONCE):
            part = weights[start : start + _AT_ONCE]
            times, objects = part[:, found.scenes[own]], part[:, scenes].sum(1)
            for place, taken in enumerate(matched.values()):
                table[start : start + _AT_ONCE, label, place] = _average_precision(taken >= 0, times, objects)
    return table.mean((1, 2))


class _Class(NamedTuple):
    """``own``: its detections, best first; ``matched``: by distance, the object that each takes, or -1; ``scenes``: of its objects."""

    name: str
    own: np.ndarray
    matched: dict[float, np.ndarray]
    scenes: np.ndarray


def _by_class(truth: _Table, found: _Table, protocol: DetectionProtocol) -> Iterator[_Class]:
    pairs = _pairs(truth, found)
    for label, name in enumerate(protocol.ranges):
        own = np.flatnonzero(found.labels == label)
        own = own[np.argsort(found.scores[own], kind="stable")[::-1]]  # of equal scores the last first, as in the devkit
        matched = {distance: _match(pairs, own, len(truth.labels), distance) for distance in DISTANCES}
        yield _Class(name, own, matched, truth.scenes[truth.labels == label])


def _operating_point(scores: np.ndarray, right: np.ndarray, objects: int) -> dict[str, float | None]:
    """What is measured at the score threshold with the best F1."""
    threshold = best_threshold(scores, right, objects)
    kept = scores >= (np.inf if threshold is None else threshold)
    return {"best_threshold": threshold, **rates(int(right[kept].sum()), int((~right[kept]).sum()), objects)}


def _truth(records: Sequence[SceneRecord], protocol: DetectionProtocol) -> _Table:
    parts = []
    for i, record in enumerate(records):
        kept = ~record.ignore & _counts(record, record.boxes, record.labels, protocol)
        scores = np.zeros(len(record.boxes))
        parts.append(_rows(i, record.boxes, scores, record.labels, record.attributes, kept))
    return _joined(parts)


def _found(records: Sequence[SceneRecord], predictions: Mapping[int, SceneDetections], protocol: DetectionProtocol) -> tuple[_Table, int]:
    parts, truncated = [], 0
    for i, record in enumerate(records):
        if i not in predictions:
            continue
        boxes, scores, labels, attributes = predictions[i]
        best = np.arange(len(scores))
        if len(scores) > MOST:
            truncated += len(scores) - MOST
            best = np.sort(np.argsort(-scores, kind="stable")[:MOST])
        boxes, scores, labels = (np.asarray(values)[best] for values in (boxes, scores, labels))
        attributes = np.full(len(best), "") if attributes is None else np.asarray(attributes)[best]
        parts.append(_rows(i, boxes, scores, labels, attributes, _counts(record, boxes, labels, protocol)))
    return _joined(parts), truncated


def _counts(record: SceneRecord, boxes: np.ndarray, labels: np.ndarray, protocol: DetectionProtocol) -> np.ndarray:
    """Which boxes [N] are in their class's range and not in a bicycle rack."""
    limits = np.array(list(protocol.ranges.values()))
    counts = np.hypot(boxes[:, 0], boxes[:, 1]) < limits[labels]
    if len(record.racks):
        cycles = np.isin(labels, [i for i, name in enumerate(protocol.ranges) if name in protocol.in_racks])
        counts &= ~(cycles & contains(record.racks, boxes[:, :3]).any(1))
    return counts


def _rows(scene: int, boxes, scores, labels, attributes, kept) -> tuple[np.ndarray, ...]:
    return np.full(kept.sum(), scene), boxes[kept], scores[kept], labels[kept], attributes[kept]


def _joined(parts: list[tuple[np.ndarray, ...]]) -> _Table:
    empty = np.zeros(0, np.int64), np.zeros((0, 9)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, "U1")
    return _Table(*(np.concatenate(columns) for columns in zip(empty, *parts, strict=True)))


def _pairs(truth: _Table, found: _Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections and objects of one scene and class whose centres are near enough for any of ``DISTANCES``, and how near."""
    starts, ends = (np.searchsorted(truth.scenes, found.scenes, side) for side in ("left", "right"))
    counts = ends - starts
    detection = np.repeat(np.arange(len(found.scenes)), counts)
    target = np.arange(len(detection)) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(starts, counts)
    offset = found.boxes[detection, :2] - truth.boxes[target, :2]
    distance = np.hypot(offset[:, 0], offset[:, 1])
    near = (found.labels[detection] == truth.labels[target]) & (distance < max(DISTANCES))
    return detection[near], target[near], distance[near]


def _match(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], own: np.ndarray, objects: int, limit: float) -> np.ndarray:
    """Per detection in ``own``, best first, the object that it takes: the nearest within ``limit`` that no better one took; -1: none.

    Detections ask for their nearest object all at once; an object keeps the best that asked, and those turned away ask for their next.
    As every object prefers better detections, the end is that of one after the other.
    """
    rank = np.full(max(own.max(initial=-1), pairs[0].max(initial=-1)) + 1, -1)
    rank[own] = np.arange(len(own))
    here = (rank[pairs[0]] >= 0) & (pairs[2] < limit)
    asker, wanted, distance = rank[pairs[0][here]], pairs[1][here], pairs[2][here]
    order = np.lexsort((wanted, distance, asker))
    asker, wanted = asker[order], wanted[order]
    turn, end = (np.searchsorted(asker, np.arange(len(own)), side) for side in ("left", "right"))
    holder = np.full(objects, len(own))
    asking = np.flatnonzero(turn < end)
    while len(asking):
        np.minimum.at(holder, wanted[turn[asking]], asking)
        active = np.flatnonzero(turn < end)
        asking = active[holder[wanted[turn[active]]] != active]
        turn[asking] += 1
        asking = asking[turn[asking] < end[asking]]
    taken = np.full(len(own), -1)
    held = np.flatnonzero(holder < len(own))
    taken[holder[held]] = held
    return taken


def _average_precision(right: np.ndarray, times: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The mean of what precision is above a tenth, at recalls above a tenth, as a share of the most that it can be: [R].

    Precision is that after each detection, linear between them and 0 beyond the last.

    Args:
        right: of the detections, best first: bool [K].
        times: how often each counts, int64 [R, K], next to itself.
        objects: int64 [R].
    """
    at = np.flatnonzero(right)
    if not len(at):
        return np.zeros(len(times))
    recalls, safe = _RECALLS[_FIRST:], np.maximum(objects, 1)[:, None]
    shown, hits = times.cumsum(1), times[:, at].cumsum(1)
    most = hits[:, -1:]
    # true positives up to each recall, and the next one: its place, and what is shown before it
    known = np.floor(recalls * safe).astype(np.int64)
    known = np.minimum(known + ((known + 1) / safe <= recalls) - (known / safe > recalls), most)
    offset = np.arange(len(times))[:, None] * (int(most.max()) + 2)
    place = np.searchsorted((hits + offset).ravel(), (known + 1 + offset).ravel()).reshape(known.shape)
    place = np.minimum(place - np.arange(len(times))[:, None] * len(at), len(at) - 1)
    before = np.take_along_axis(shown[:, at] - hits, place, 1) + known
    precision, following = known / np.maximum(before, 1), (known + 1) / (before + 1)
    precision = precision + (following - precision) * (recalls - known / safe) * safe
    precision[before == 0] = 1
    end = np.broadcast_to(most / np.maximum(shown[:, -1:], 1), known.shape)
    precision = np.where(known < most, precision, np.where(known / safe == recalls, end, 0))
    return np.clip(precision - _LEAST_PRECISION, 0, None).mean(1) / (1 - _LEAST_PRECISION)


def _errors(truth: _Table, found: _Table, own: np.ndarray, taken: np.ndarray, objects: int, symmetric: bool) -> dict[str, float]:
    """The mean errors of true positives over recalls from above a tenth to the highest; 1 where none is that high."""
    right = taken >= 0
    if not right.any():
        return dict.fromkeys(("ATE", "ASE", "AOE", "AVE", "AAE"), 1.0)
    scores = np.interp(_RECALLS, right.cumsum() / objects, found.scores[own], right=0)
    last = np.flatnonzero(scores)[-1] if scores.any() else 0
    hit, target = own[right], taken[right]
    a, b = found.boxes[hit], truth.boxes[target]
    shared = np.minimum(a[:, 3:6], b[:, 3:6]).prod(1)
    period = math.pi if symmetric else 2 * math.pi
    turned = np.abs((b[:, 6] - a[:, 6] + period / 2) % period - period / 2)
    wrong = (truth.attributes[target] != found.attributes[hit]).astype(np.float64)
    measured = {
        "ATE": np.hypot(*(a[:, :2] - b[:, :2]).T),
        "ASE": 1 - shared / (a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - shared),
        "AOE": turned,
        "AVE": np.hypot(*(a[:, 7:9] - b[:, 7:9]).T),
        "AAE": np.where(truth.attributes[target] == "", np.nan, wrong),
    }
    errors = {}
    for name, values in measured.items():
        curve = np.interp(scores[::-1], found.scores[hit][::-1], _running_mean(values)[::-1])[::-1]
        errors[name] = float(curve[_FIRST : last + 1].mean()) if last >= _FIRST else 1.0
    return errors


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean up to each value, without NaN; all ones where there is nothing else, and 0 before the first."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    return np.nancumsum(values) / np.maximum(known.cumsum(), 1)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
