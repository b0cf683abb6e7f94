"""Resampled AP is COCO's on the images as often as they were drawn; intervals are those of the mean."""

import numpy as np
import pytest

from boxquery.evaluation.bootstrap import image_weights, interval, mean_over_images, resample_seeds, resampled_ap
from boxquery.evaluation.metrics import evaluate
from tests.report.fake_run import NAMES, make_predictions, make_split

IDS = list(range(1, len(NAMES) + 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_every_image_once_it_is_what_evaluate_gives(seed):
    split = make_split("val", 40, seed)
    predictions = make_predictions(split, seed)
    ap, ap50 = resampled_ap(split, predictions, len(NAMES), np.ones((1, 40), np.int64))
    metrics = evaluate(split, predictions, NAMES, IDS)
    assert ap[0] == pytest.approx(metrics["AP"], abs=1e-9)
    assert ap50[0] == pytest.approx(metrics["AP50"], abs=1e-9)


def test_an_image_drawn_twice_counts_as_two():
    split = make_split("val", 25, 3)
    predictions = make_predictions(split, 3)
    weights = image_weights(25, 6)
    assert (weights.sum(axis=1) == 25).all()
    ap, ap50 = resampled_ap(split, predictions, len(NAMES), weights)
    for row in range(6):
        copies = np.repeat(np.arange(25), weights[row])
        metrics = evaluate([split[i] for i in copies], {n: predictions[i] for n, i in enumerate(copies)}, NAMES, IDS)
        assert ap[row] == pytest.approx(metrics["AP"], abs=1e-9)
        assert ap50[row] == pytest.approx(metrics["AP50"], abs=1e-9)


def test_images_without_objects_give_no_number():
    split = make_split("val", 5, 4)
    weights = np.array([[0] * 5, [1] * 5])
    empty = [i for i in range(5) if not len(split[i].boxes)]
    weights[0, empty] = 1
    ap, _ = resampled_ap(split, {}, len(NAMES), weights)
    assert np.isnan(ap[0])
    assert ap[1] == 0
    assert interval(np.array([np.nan, np.nan])) is None


def test_seeds_are_drawn_with_the_spread_of_their_mean():
    """The variance of resampled means is the unbiased one of a mean: the sample's, divided by the number of seeds."""
    for values in ([0.1, 0.3], [0.1, 0.2, 0.6], [0.4, 0.1, 0.2, 0.3]):
        drawn = resample_seeds(np.repeat(np.array(values)[:, None], 200_000, axis=1), 0)
        assert drawn.mean() == pytest.approx(np.mean(values), abs=2e-3)
        assert drawn.var() == pytest.approx(np.var(values, ddof=1) / len(values), rel=0.03)
    alone = np.array([[0.1, 0.2]])
    assert resample_seeds(alone, 0).tolist() == [0.1, 0.2]


def test_images_and_not_values_are_resampled():
    """Values of one image move together: with them equal, the interval is that of as many means as there are images."""
    rng = np.random.default_rng(0)
    level = rng.normal(0.5, 0.1, 50)
    found = mean_over_images([np.full(20, value) for value in level] + [np.empty(0)])
    alone = mean_over_images([np.array([value]) for value in level])
    assert found == pytest.approx(alone)
    assert found["mean"] == pytest.approx(level.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * level.std() / 50**0.5, rel=0.1)
    assert mean_over_images([np.empty(0)]) == {"mean": None, "low": None, "high": None}


def test_mean_over_images_resamples_images_not_values():
    assert mean_over_images([]) == {"mean": None, "low": None, "high": None}
    assert mean_over_images([np.array([2.0, 4.0])]) == {"mean": 3, "low": 3, "high": 3}
    rng = np.random.default_rng(0)
    groups = [rng.normal(0, 1) + rng.normal(0, 0.1, rng.integers(1, 9)) for _ in range(40)]
    found = mean_over_images(groups)
    slow = []
    for _ in range(2000):
        drawn = np.concatenate([groups[i] for i in rng.integers(40, size=40)])
        slow.append(drawn.mean())
    assert found["mean"] == pytest.approx(np.concatenate(groups).mean())
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.05)
