"""The page as its user has it: real clicks and keys in a headless Chromium."""

import os
import re
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from boxquery.explain.page import write_page
from tests.models.builders import systems

from .test_page import NAMES, explained, stand_in

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with chromedriver in PATH"),
]


@pytest.fixture(scope="module")
def chrome():
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # as the superuser Chromium starts no other way
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """A page that is open, and what its user does with it."""

    def __init__(self, driver, path, width=1300, height=1000):
        self.driver = driver
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        )
        driver.get(path.as_uri())
        until = time.monotonic() + 30
        while not self.js("return 'ready' in document.getElementById('page').dataset"):
            assert time.monotonic() < until, driver.get_log("browser")
            time.sleep(0.02)

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector="p.now"):
        return self.one(selector).text

    def press(self, *keys):
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def hover(self, element):
        webdriver.ActionChains(self.driver).move_to_element(element).perform()

    def heat(self, panel=0):
        """The map's colours [h, w, 4] as the canvas has them, with how much of the picture they cover."""
        script = """const c = document.querySelectorAll('canvas.heat')[arguments[0]];
            const copy = new OffscreenCanvas(c.width, c.height).getContext('2d', {willReadFrequently: true});
            copy.drawImage(c, 0, 0);
            return [c.height, c.width, Array.from(copy.getImageData(0, 0, c.width, c.height).data)]"""
        h, w, values = self.js(script, panel)
        return np.array(values).reshape(h, w, 4)

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def dab():
    return explained("dab-detr")


@pytest.fixture(scope="module")
def single(dab, tmp_path_factory):
    return write_page([dab], tmp_path_factory.mktemp("single") / "page.html")


def keys():
    return webdriver.Keys


def shades(colours):
    """How much the page shows of each cell's share: its colours only get lighter and cover more from share to share."""
    return colours @ [0.3, 0.59, 0.11, 1]


def test_shows_the_best_query_and_its_map(chrome, dab, single):
    page = Page(chrome, single)
    best = dab.found[0]
    assert page.text() == f"{dab.name(best)} {dab.scores[-1, best]:.2f} query {best}, layer 3 of 3"
    expected = dab.heatmap(best, -1, page.heat().shape[:2]).map.numpy()
    assert np.corrcoef(np.argsort(np.argsort(expected.ravel())), np.argsort(np.argsort(shades(page.heat()).ravel())))[0, 1] > 0.98
    assert np.unravel_index(expected.argmax(), expected.shape) == np.unravel_index(shades(page.heat()).argmax(), expected.shape)
    assert any(NAMES[1] in element.text for element in page.all(".list b")) == (1 in dab.labels[-1, dab.found])
    assert page.complaints() == []


def test_hover_shows_another_map_and_leaving_brings_it_back(chrome, dab, single):
    page = Page(chrome, single)
    before, text = page.heat(), page.text()
    item = page.all("[role=option]")[1]
    page.hover(item)
    assert page.text() != text
    assert (page.heat() != before).any()
    page.hover(page.one("h1"))
    assert page.text() == text
    assert (page.heat() == before).all()


def test_box_on_the_image_hover_click_focus_and_enter(chrome, dab, single):
    page = Page(chrome, single)
    smallest = page.all(".boxes rect")[-1]  # the last drawn lies on top
    query = smallest.get_attribute("data-query")
    page.hover(smallest)
    assert f"query {query}," in page.text()
    smallest.click()
    page.hover(page.one("h1"))
    assert f"query {query}," in page.text()
    assert page.one("[aria-selected=true]").get_attribute("data-query") == query
    first = page.all(".boxes rect")[0]
    other = first.get_attribute("data-query")
    page.js("arguments[0].focus()", first)
    assert f"query {other}," in page.text()
    assert page.one("[aria-selected=true]").get_attribute("data-query") == query
    page.press(keys().ENTER)
    page.js("document.activeElement.blur()")
    assert f"query {other}," in page.text()
    assert page.complaints() == []


def test_layers_by_key_button_slider_and_table(chrome, dab, single):
    page = Page(chrome, single)
    best = dab.found[0]
    last, tag, box = page.heat(), page.text(".tag"), page.one("dd").text
    page.press(keys().ARROW_LEFT)
    assert page.text(".tag") == f"{dab.name(best, 1)} {dab.scores[1, best]:.2f}"
    assert page.text("#at") == "2 of 3"
    x0, y0, x1, y1 = (round(float(v)) for v in dab.boxes[1, best])
    assert page.one("dd").text == f"{x0}, {y0} to {x1}, {y1}".replace("-0", "0")
    assert (page.one("dd").text, page.text(".tag")) != (box, tag)
    assert (page.heat() != last).any()
    drawn = [float(page.one(".marks .over").get_attribute(name)) for name in ("x", "y", "width", "height")]
    np.testing.assert_allclose(drawn, [*dab.boxes[1, best, :2], *(dab.boxes[1, best, 2:] - dab.boxes[1, best, :2])], atol=0.05)
    page.one("[aria-label='Next layer']").click()
    assert page.text(".tag") == tag
    page.one("[aria-label='Go to layer 2']").click()
    assert page.text("#at") == "2 of 3"
    assert page.one("tr[aria-current]").text.startswith("2")
    page.js("arguments[0].focus()", page.one("#layer"))
    page.press(keys().ARROW_RIGHT)
    assert page.text("#at") == "3 of 3"
    assert page.one("#layer").get_attribute("aria-valuetext") == "layer 3 of 3"


def test_queries_by_key_and_click(chrome, dab, single):
    page = Page(chrome, single)
    page.press("2")
    assert f"query {dab.found[1]}," in page.text()
    page.press(keys().ARROW_DOWN)
    assert f"query {dab.found[2]}," in page.text()
    page.press(keys().ARROW_UP)
    assert f"query {dab.found[1]}," in page.text()
    page.press(keys().ESCAPE)
    assert f"query {dab.found[0]}," in page.text()
    page.all("[role=option]")[3].click()
    assert f"query {dab.found[3]}," in page.text()
    assert page.one("[role=listbox]").get_attribute("aria-activedescendant").endswith(f"-q{dab.found[3]}")
    page.press(keys().END)
    assert f"query {dab.found[-1]}," in page.text()
    assert page.js("const l = document.querySelector('.list'); return l.scrollTop + l.clientHeight >= l.scrollHeight - 2")


def test_heads(chrome, dab, single):
    from selenium.webdriver.support.ui import Select

    page = Page(chrome, single)
    mean = page.heat()
    Select(page.one("select")).select_by_visible_text("head 2")
    assert (page.heat() != mean).any()
    exact = dab.heatmaps(dab.found[:1], -1, page.heat().shape[:2], heads=True).map[0, 1].numpy()
    assert np.unravel_index(exact.argmax(), exact.shape) == np.unravel_index(shades(page.heat()).argmax(), exact.shape)
    page.js("document.activeElement.blur()")
    page.press("h" * (page.js("return document.querySelector('select').options.length") - 2))
    assert page.one("select").get_attribute("value") == "-1"
    assert (page.heat() == mean).all()


def rows(page, panel=0):
    return page.all(".panel")[panel].find_elements("css selector", ".rivals button:not([hidden])")


def test_rivals_are_listed_drawn_and_gone_to(chrome, dab, single):
    page = Page(chrome, single)
    best = dab.found[0]
    rivals = dab.rivals(best)
    assert 0 < len(rows(page)) == min(len(rivals), 6)
    first = rivals[0]
    text = rows(page)[0].text.replace("\n", " ")
    scores = " ".join(f"{score:.2f}" for score in first.scores)
    assert text.startswith(f"{first.name} {first.fate}")
    assert f"query {first.query} score {scores}" in text
    shares = [float(share) for share in re.findall(r"([\d.]+) %", text)]
    assert shares == pytest.approx([100 * first.attention_to_winner[-1], 100 * first.attention_from_winner[-1]], abs=0.51)
    assert ("there are more" in page.text(".rivals")) == (len(rivals) > 6)

    def drawn():
        return [float(page.one(".marks .rival").get_attribute(name)) for name in ("x", "y", "width", "height")]

    def expected(query, layer=-1):
        box = dab.boxes[layer, query]
        return pytest.approx([*box[:2], *(box[2:] - box[:2])], abs=0.05)

    assert drawn() == [0, 0, 0, 0]
    page.hover(rows(page)[0])
    assert drawn() == expected(first.query)
    assert f"query {best}," in page.text()  # looking at a rival leaves the query
    page.hover(page.one("h1"))
    assert drawn() == [0, 0, 0, 0]
    page.press("r")
    assert drawn() == expected(first.query)
    page.press(keys().TAB)
    assert drawn() == expected(rivals[1].query)
    page.press(keys().ARROW_LEFT)
    assert drawn() == expected(rivals[1].query, 1)
    assert "of layer 2;" in page.text(".rivals")
    page.press(keys().ENTER)
    assert f"query {rivals[1].query}," in page.text()
    assert page.one("[aria-selected=true]").get_attribute("data-query") == str(rivals[1].query)
    again = dab.rivals(rivals[1].query)
    assert drawn() == expected(again[1].query, 1)  # the focus stays in its row, which is another rival now
    rows(page)[0].click()
    assert f"query {again[0].query}," in page.text()
    assert page.complaints() == []


def test_one_rival_goes_back_to_the_winner(chrome, dab, tmp_path):
    """A row that is no longer there gives its focus to one that is."""
    scores = np.full_like(dab.scores, 0.01)
    boxes = np.repeat(np.array([[1, 1, 9, 9], [70, 70, 90, 90]], np.float32).repeat([4, scores.shape[1] - 4], 0)[None], len(scores), 0)
    scores[:, :3] = [0.9, 0.7, 0.5]
    scores[-1, 1:3] = 0.02
    boxes[-1, 1] = [1, 1, 9, 4.9]  # nobody's but its neighbour's
    known = replace(dab, scores=scores, boxes=boxes, references=None, threshold=0.4, found=[0])
    [one, two] = known.rivals(0)
    assert (one.fate, two.fate, len(known.rivals(7)), [r.query for r in known.rivals(1)]) == ("silenced", "silenced", 0, [])
    page = Page(chrome, write_page([known], tmp_path / "page.html"))
    assert [row.text.split("\n")[1] for row in rows(page)] == ["silenced from layer 3 on"] * 2
    rows(page)[0].click()
    assert "query 1," in page.text()
    assert "no other query competes for this object" in page.text(".rivals")
    assert page.js("return document.activeElement.getAttribute('role')") == "listbox"
    page.press("r", keys().ESCAPE)
    assert "query 0," in page.text()
    assert page.complaints() == []


def test_cross_attention_and_the_same_through_the_encoder(chrome, dab, single, tmp_path):
    page = Page(chrome, single)
    best = dab.found[0]
    read, (button, back) = page.heat(), reversed(page.all(".views button"))
    button.click()
    expected = dab.origin(best, -1, page.heat().shape[:2]).map.numpy()
    assert np.unravel_index(expected.argmax(), expected.shape) == np.unravel_index(shades(page.heat()).argmax(), expected.shape)
    assert np.corrcoef(np.argsort(np.argsort(expected.ravel())), np.argsort(np.argsort(shades(page.heat()).ravel())))[0, 1] > 0.98
    assert page.text().endswith(": traced through the encoder")
    assert [each.get_attribute("aria-pressed") for each in (button, back)] == ["true", "false"]
    assert not page.one("select").is_enabled()
    last = page.heat()
    page.press(keys().ARROW_LEFT)
    assert (page.heat() != last).any()
    page.press(keys().ARROW_RIGHT, "o")
    assert (page.heat() == read).all()
    page.press("o")
    assert (page.heat() == last).all()
    back.click()
    assert (page.heat() == read).all()
    assert page.one("select").is_enabled()
    assert page.complaints() == []
    page = Page(chrome, write_page([explained("detr", encoder_layers=0)], tmp_path / "page.html"))
    before = page.heat()
    page.press("o")
    assert (page.heat() == before).all()
    assert page.all(".views") == []


def test_opacity(chrome, single):
    page = Page(chrome, single)
    assert page.js("return getComputedStyle(document.querySelector('.heat')).opacity") == "0.8"
    page.js("arguments[0].focus()", page.one("#opacity"))
    page.press(keys().HOME)
    assert page.js("return getComputedStyle(document.querySelector('.heat')).opacity") == "0"
    assert page.text("#at") == "3 of 3"


def test_keyboard_reaches_everything_in_sight(chrome, single):
    page = Page(chrome, single)
    seen = []
    for _ in range(30):
        page.press(keys().TAB)
        name, outline = page.js(
            """const e = document.activeElement, s = getComputedStyle(e.closest('.stage') ?? e);
            const text = e.matches('.rivals button, .views button') ? e.textContent : e.dataset.query ?? '';
            return [e.id || e.getAttribute('aria-label') || e.tagName + text, s.outlineStyle]"""
        )
        if name == "BODY" or name in seen:
            break
        assert outline != "none", name
        seen.append(name)
    assert {"opacity", "all", "layer", "Previous layer", "p0-head", "Go to layer 1", "p0-list", "SUMMARY"} <= set(seen)
    assert {"BUTTONCross-attention", "BUTTONThrough the encoder"} <= set(seen)
    assert sum("attends to this query" in name for name in seen) == len(rows(page))
    assert sum(", query " in name for name in seen) == 1  # one stop for all boxes


def test_two_models_step_together(chrome, dab, tmp_path):
    other = explained("deformable-detr", decoder_layers=2)
    page = Page(chrome, write_page([dab, other], tmp_path / "page.html"))
    tops = [round(stage.rect["y"]) for stage in page.all(".stage")]
    assert tops[0] == tops[1]
    before = [page.heat(0), page.heat(1)]
    assert page.all("p.now")[1].text.endswith("layer 2 of 2 (its last)")
    page.press(keys().ARROW_LEFT, keys().ARROW_LEFT)
    assert [element.text[-len("layer 1 of 3") :] for element in page.all("p.now")] == ["layer 1 of 3", "layer 1 of 2"]
    assert all((page.heat(i) != before[i]).any() for i in (0, 1))
    assert "layer 1 of 3, Box, " in page.js("return document.querySelector('[aria-live]').textContent")
    text = page.all("p.now")[1].text
    elsewhere = [place for place, query in enumerate(dab.found) if f"query {other.at(dab.boxes[-1, query])}, " not in text]
    page.all(".panel")[0].find_elements("css selector", "[role=option]")[elsewhere[-1]].click()
    assert page.all("p.now")[1].text != text
    page.press(keys().ARROW_RIGHT, keys().ARROW_RIGHT)
    for place in range(4):  # the same object, as a figure and the command have it
        page.all(".panel")[0].find_elements("css selector", "[role=option]")[place].click()
        assert f"query {other.at(dab.boxes[-1, dab.found[place]])}, " in page.all("p.now")[1].text
    page.one("#follow").click()
    text = page.all("p.now")[1].text
    page.all(".panel")[0].find_elements("css selector", "[role=option]")[2].click()
    assert page.all("p.now")[1].text == text
    assert page.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
def test_phone_has_no_sideways_scrolling(chrome, dab, dark, tmp_path):
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    path = write_page(
        [dab, explained("detr"), explained("sam-detr", seed=1)], tmp_path / "page.html", titles=["a-long-name-" * 6, "b", "c"]
    )
    page = Page(chrome, path, 375, 800)
    page.one("#all").click()
    page.one("summary").click()
    assert page.js("return document.documentElement.scrollWidth") == 375
    assert all(panel.rect["x"] + panel.rect["width"] <= 375 for panel in page.all(".panel"))
    assert (page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(19, 22, 25)") == dark
    assert page.complaints() == []
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_heads_of_row_column_attention(chrome, tmp_path):
    known = explained("anchor-detr")
    page = Page(chrome, write_page([known], tmp_path / "page.html"))
    page.press("h")
    exact = known.heatmaps(known.found[:1], -1, page.heat().shape[:2], heads=True).map[0, 0].numpy()
    assert np.unravel_index(exact.argmax(), exact.shape) == np.unravel_index(shades(page.heat()).argmax(), exact.shape)


def test_starts_with_the_chosen_query(chrome, tmp_path):
    name, options = systems()["deformable-detr-refined"]
    known = explained(name, threshold=1.0, **options)
    page = Page(chrome, write_page([replace(known, chosen=7)], tmp_path / "page.html"))
    assert "query 7," in page.text()
    assert page.one("select").is_enabled()
    place = page.all("dd")[1].text
    assert " to " in place
    page.one("[aria-label='Go to layer 1']").click()  # it starts from a point
    x, y = known.references[0, 7, :2]
    assert page.all("dd")[1].text == f"{x:.0f}, {y:.0f}"
    page.press(keys().ESCAPE)
    assert f"query {known_order(known)[0]}," in page.text()
    assert page.complaints() == []


def test_a_pruned_query_says_so_in_the_layers_after(chrome, tmp_path):
    known = explained("dab-detr", decoder_layers=3, num_queries=[12, 7, 4])
    gone = next(query for query in range(12) if known.present(query) == 1)
    page = Page(chrome, write_page([replace(known, chosen=gone)], tmp_path / "page.html"))
    assert "pruned after layer 1" in page.text()
    assert not page.one("canvas.heat").is_displayed()
    assert [term.text for term in page.all("dt")] == ["Last box"]
    assert [row.text.split()[1:] for row in page.all("tbody tr")[1:]] == [["pruned"]] * 2
    page.one("#all").click()
    assert len(page.all(".boxes rect:not(.gone)")) == 4
    page.one("[aria-label='Go to layer 1']").click()
    assert "pruned" not in page.text()
    assert page.one("canvas.heat").is_displayed()
    assert len(page.all(".boxes rect:not(.gone)")) == 12
    exact = known.heatmap(gone, 0, page.heat().shape[:2]).map.numpy()
    assert np.unravel_index(exact.argmax(), exact.shape) == np.unravel_index(shades(page.heat()).argmax(), exact.shape)
    assert page.complaints() == []


def test_every_model_starts_with_its_chosen_query(chrome, dab, tmp_path):
    page = Page(chrome, write_page([replace(dab, chosen=3), replace(dab, chosen=5)], tmp_path / "page.html"))
    assert ["query 3," in page.all("p.now")[0].text, "query 5," in page.all("p.now")[1].text] == [True, True]


def test_900_queries_stay_responsive(chrome, tmp_path):
    known = stand_in(heads=2, cells=(13, 21))
    known.found[:] = known.found[:5]
    page = Page(chrome, write_page([known], tmp_path / "page.html"))
    assert len(page.all("[role=option]")) == 5
    page.one("#all").click()
    assert len(page.all("[role=option]")) == 900
    assert page.js("return document.querySelectorAll('.boxes rect').length") == 900
    for key in (keys().ARROW_DOWN, keys().ARROW_LEFT):
        press = """const from = performance.now();
            for (let i = 0; i < 5; i++) {
              document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}));
              document.body.getBoundingClientRect();
            }
            return (performance.now() - from) / 5"""
        name = "ArrowDown" if key == keys().ARROW_DOWN else "ArrowLeft"
        assert page.js(press, name) < 200
    page.press(keys().ARROW_DOWN)
    assert f"query {known_order(known)[6]}," in page.text()
    assert not page.one("select").is_enabled()
    assert "only the mean" in page.text(".choice")
    assert page.complaints() == []


def known_order(known):
    return np.argsort(-known.scores[-1], kind="stable").tolist()
