"""Conclusions claim no more than the figures support."""

import numpy as np

from boxquery.compare.statistics import against_best, conclusion
from boxquery.evaluation.metric_names import OF_IMAGES


def test_the_best_and_how_much_lower_others_are():
    rng = np.random.default_rng(0)
    drawn = {"a": rng.normal(0.5, 0.01, 1000), "b": rng.normal(0.3, 0.01, 1000), "c": rng.normal(0.499, 0.01, 1000)}
    means = {"a": 0.5, "b": 0.3, "c": 0.499}
    best, lower = against_best(means, drawn)
    assert best == "a"
    assert set(lower) == {"b", "c"}
    assert 0 < lower["b"][1][0] < 0.2 < lower["b"][1][1]
    assert lower["c"][1][0] < 0 < lower["c"][1][1]
    sentences = conclusion(means, drawn, dict.fromkeys(means, 3), "8,000 images", OF_IMAGES, 200)
    assert len(sentences) == 2
    assert sentences[0].startswith("After 8,000 images, a has the highest AP on 200 validation images: 0.500 (95 % interval 0.4")
    assert "lower by more than chance explains: b by 0.200" in sentences[1].lower()
    assert "no difference from it is shown for c" in sentences[1]


def test_intervals_of_more_comparisons_are_wider():
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0.5, 0.05, 2000) for name in "abcdefgh"}
    two = against_best({"a": 0.6, "b": 0.5}, drawn)[1]["b"][1]
    eight = against_best({name: 0.5 + 0.1 * (name == "a") for name in drawn}, drawn)[1]["b"][1]
    assert eight[0] < two[0] < two[1] < eight[1]


def test_one_model_alone_is_compared_with_nothing():
    sentences = conclusion({"a": 0.5}, {"a": np.full(10, 0.5)}, {"a": 1}, "3 epochs", OF_IMAGES, 6)
    assert sentences == [
        "After 3 epochs, a has AP 0.500 on 6 validation images (95 % interval 0.500 to 0.500, 1 seed).",
        "There is nothing to compare it with.",
    ]


def test_where_nothing_is_found_no_model_is_best():
    sentences = conclusion({"a": 0.0, "b": 0.0}, {"a": np.zeros(10), "b": np.zeros(10)}, {"a": 1, "b": 1}, "3 epochs", OF_IMAGES, 6)
    assert sentences == [
        "After 3 epochs, AP is 0 on 6 validation images for all of them.",
        "No difference is shown: they find nothing yet.",
    ]
