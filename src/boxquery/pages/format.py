"""Numbers, times and names as the pages print them."""

from __future__ import annotations

from collections.abc import Sequence

#: printed where there is no value
DASH = "–"


def number(value: float | None) -> str:
    """Three significant digits: 0.0001 -> 1e-4, 0.1234 -> 0.123, 12000 -> 12,000."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 999.5:  # what three digits would write as 1e+03
        return f"{value:,.0f}"
    return f"{value:.3g}"


def three(value: float | None) -> str:
    """Three decimals, as AP is printed."""
    return DASH if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in [0, 1]: 12.5 %."""
    return DASH if value is None else f"{100 * value:.1f} %"


def bounds(interval: Sequence[float] | None) -> str:
    """An interval of AP, with three decimals."""
    return DASH if interval is None else f"{interval[0]:z.3f} to {interval[1]:z.3f}"


def duration(seconds: float | None) -> str:
    """42 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def of_planned(done: int, planned: int, form: str = "d") -> str:
    """How far something is: 3/6, and 7 (6 planned) where it went on, since a plan of minutes is an estimate."""
    return f"{done:{form}}/{planned:{form}}" if done <= planned else f"{done:{form}} ({planned:{form}} planned)"


def split_title(name: str) -> str:
    """A split's name in a sentence."""
    return {"val": "validation"}.get(name, name)


def class_name(name: str | None) -> str:
    """A class name, or that there is none."""
    return "(no name)" if name is None else name or "(empty name)"
