"""How numbers, times and names are printed."""

import pytest

from boxquery.errors import count
from boxquery.pages.format import class_name, duration, number, three


def test_numbers():
    values = {0: "0", 1e-4: "1e-4", 2.5e-5: "2.5e-5", 0.1234: "0.123", 12.345: "12.3", 999: "999", 999.6: "1,000", 12000: "12,000"}
    assert {value: number(value) for value in values} == values


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (6000, "1 h 40 min"), (11100, "3 h 05 min"), (4e5, "4 d 15 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_words():
    assert (count(1, "image"), count(1200, "image"), count(2, "class", "classes")) == ("1 image", "1,200 images", "2 classes")
    assert (class_name(None), class_name(""), class_name("a")) == ("(no name)", "(empty name)", "a")
    assert (three(0.12345), three(None)) == ("0.123", "–")
