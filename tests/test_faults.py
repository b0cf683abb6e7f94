"""Every fault of the table in docs/reliability.md gives what the table says."""

import re
from pathlib import Path

import pytest

from .faults import FAULTS, Place, Stock, meet

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Stock:
    return Stock(tmp_path_factory.mktemp("stock"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}, {fault.what}".replace(" ", "-"))
def test_fault(fault, stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    met = meet(fault, Place(tmp_path / "place", stock))
    assert met.kept, f"status {met.status}: {met.lines}"
    assert not (tmp_path / "executed").exists()


def test_the_table_is_of_these_faults():
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \| `(.*)` \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(kind, what, promise) for _, kind, what, promise, _, _ in rows] == [(f.kind, f.what, f.promise) for f in FAULTS]
    assert all(kept == "yes" and line for *_, line, kept in rows)
    assert len({(fault.kind, fault.what) for fault in FAULTS}) == len(FAULTS) >= 120
