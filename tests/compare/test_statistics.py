"""Resampled AP is COCO's on the images as often as they were drawn; intervals and sentences say no more than the figures."""

import numpy as np
import pytest

from boxquery.compare.statistics import against_best, average_precisions, conclusion, drawn_images, drawn_means, interval
from boxquery.evaluation.metrics import evaluate
from tests.report.fake_run import NAMES, make_predictions, make_split

IDS = list(range(1, len(NAMES) + 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_every_image_once_it_is_what_evaluate_gives(seed):
    split = make_split("val", 40, seed)
    predictions = make_predictions(split, seed)
    ap, ap50 = average_precisions(split, predictions, len(NAMES), np.ones((1, 40), np.int64))
    metrics = evaluate(split, predictions, NAMES, IDS)
    assert ap[0] == pytest.approx(metrics["AP"], abs=1e-9)
    assert ap50[0] == pytest.approx(metrics["AP50"], abs=1e-9)


def test_an_image_drawn_twice_counts_as_two():
    split = make_split("val", 25, 3)
    predictions = make_predictions(split, 3)
    times = drawn_images(25, 6)
    assert (times.sum(axis=1) == 25).all()
    ap, ap50 = average_precisions(split, predictions, len(NAMES), times)
    for row in range(6):
        copies = np.repeat(np.arange(25), times[row])
        metrics = evaluate([split[i] for i in copies], {n: predictions[i] for n, i in enumerate(copies)}, NAMES, IDS)
        assert ap[row] == pytest.approx(metrics["AP"], abs=1e-9)
        assert ap50[row] == pytest.approx(metrics["AP50"], abs=1e-9)


def test_images_without_objects_give_no_number():
    split = make_split("val", 5, 4)
    times = np.array([[0] * 5, [1] * 5])
    empty = [i for i in range(5) if not len(split[i].boxes)]
    times[0, empty] = 1
    ap, _ = average_precisions(split, {}, len(NAMES), times)
    assert np.isnan(ap[0])
    assert ap[1] == 0
    assert interval(np.array([np.nan, np.nan])) is None


def test_seeds_are_drawn_with_the_spread_of_their_mean():
    """The variance of drawn means is the reject_bias variance of a mean: the sample's, divided by the number of seeds."""
    for values in ([0.1, 0.3], [0.1, 0.2, 0.6], [0.4, 0.1, 0.2, 0.3]):
        drawn = drawn_means(np.repeat(np.array(values)[:, None], 200_000, axis=1), 0)
        assert drawn.mean() == pytest.approx(np.mean(values), abs=2e-3)
        assert drawn.var() == pytest.approx(np.var(values, ddof=1) / len(values), rel=0.03)
    alone = np.array([[0.1, 0.2]])
    assert drawn_means(alone, 0).tolist() == [0.1, 0.2]


def test_the_best_and_how_much_lower_others_are():
    rng = np.random.default_rng(0)
    drawn = {"a": rng.normal(0.5, 0.01, 1000), "b": rng.normal(0.3, 0.01, 1000), "c": rng.normal(0.499, 0.01, 1000)}
    means = {"a": 0.5, "b": 0.3, "c": 0.499}
    best, lower = against_best(means, drawn)
    assert best == "a"
    assert set(lower) == {"b", "c"}
    assert 0 < lower["b"][1][0] < 0.2 < lower["b"][1][1]
    assert lower["c"][1][0] < 0 < lower["c"][1][1]
    said = conclusion(means, drawn, dict.fromkeys(means, 3), "8,000 images", 200)
    assert len(said) == 2
    assert said[0].startswith("After 8,000 images, a has the highest AP on 200 validation images: 0.500 (95 % interval 0.4")
    assert "lower by more than chance explains: b by 0.200" in said[1].lower()
    assert "no difference from it is shown for c" in said[1]


def test_intervals_of_more_comparisons_are_wider():
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0.5, 0.05, 2000) for name in "abcdefgh"}
    two = against_best({"a": 0.6, "b": 0.5}, drawn)[1]["b"][1]
    eight = against_best({name: 0.5 + 0.1 * (name == "a") for name in drawn}, drawn)[1]["b"][1]
    assert eight[0] < two[0] < two[1] < eight[1]


def test_one_model_alone_is_compared_with_nothing():
    said = conclusion({"a": 0.5}, {"a": np.full(10, 0.5)}, {"a": 1}, "3 epochs", 6)
    assert said == [
        "After 3 epochs, a has AP 0.500 on 6 validation images (95 % interval 0.500 to 0.500, one seed).",
        "There is nothing to compare it with.",
    ]


def test_where_nothing_is_found_nobody_is_best():
    said = conclusion({"a": 0.0, "b": 0.0}, {"a": np.zeros(10), "b": np.zeros(10)}, {"a": 1, "b": 1}, "3 epochs", 6)
    assert said == ["After 3 epochs, AP is 0 on 6 validation images for all of them.", "No difference is shown: they find nothing yet."]
