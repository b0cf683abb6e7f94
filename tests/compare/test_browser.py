"""The page in a headless Chromium: nothing is wider than the window, every picture is there, values show under the pointer."""

import pytest

from boxquery.compare.report import write_report
from boxquery.compare.results import collect
from tests.explain.test_browser import BROWSER, DRIVER, chrome, webdriver  # noqa: F401

from .fake_comparison import make_comparison

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with chromedriver in PATH"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = make_comparison(tmp_path_factory.mktemp("compare") / "all")
    return write_report(folder / "report.html", collect([folder]))


@pytest.mark.parametrize("width", [1300, 390])
def test_it_fits_and_is_whole(chrome, page, width):  # noqa: F811
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    chrome.get(page.as_uri())
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = chrome.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert pictures
    assert all(pictures)
    names = chrome.execute_script("return [...document.querySelectorAll('#curves svg text.name')].map(t => t.textContent)")
    assert "deformable-detr" in names
    assert not [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]


def test_values_show_under_the_pointer(chrome, page):  # noqa: F811
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1300, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    chrome.get(page.as_uri())
    column = chrome.find_elements("css selector", "#curves svg .at")[3]
    shown = "return getComputedStyle(arguments[0].querySelector('g')).visibility"
    assert chrome.execute_script(shown, column) == "hidden"
    webdriver.ActionChains(chrome).move_to_element(column.find_element("css selector", "rect")).perform()
    assert chrome.execute_script(shown, column) == "visible"
