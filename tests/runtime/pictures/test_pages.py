"""The pages that commands write, in a real browser, by pointer and by keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, strategies
from PIL import Image

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.explanation import Explanation, WordMatch
from chan_rt.runtime.gallery.result import Hit, SearchResult
from chan_rt.runtime.pictures.document import asset, embedded_json
from chan_rt.runtime.pictures.page import HitWords, render_explanation, render_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

GRID = 4
WORDS = ("<start>", "two", "red", "apples", "zyzzyva", "<end>")
KNOWN = (True, True, True, True, False, True)
Open = Callable[..., "Page"]
Make = Callable[..., Any]
Check = Callable[["Page"], list[str]]
ATTACKS = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "<!--<script>",
    "{{ 7 * 7 }}${alert(1)}",
    "javascript:alert(1)",
    "\u202egnp.exe \x1b[2J",
]


@pytest.fixture
def make_result(tmp_path: Path) -> Callable[..., SearchResult]:
    """An answer to `WORDS` in which word w of hit n chose region (n + 5 w) % 16."""

    def make(count: int = 7, ids: Sequence[str] = (), **metadata: Any) -> SearchResult:
        hits = []
        for number in range(count):
            path = tmp_path / f"{number}.png"
            size = ((120, 120), (160, 90), (90, 160))[number % 3]
            pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(path)
            regions = np.array([(number + 5 * word) % GRID**2 for word in range(len(WORDS))], np.int32)
            similarity = np.linspace(0.3, 0.9, len(WORDS), dtype=np.float32)
            name = ids[number] if ids else f"photos/{number}.png"
            hits.append(Hit(name, 9 - number / 10, {"path": str(path), **metadata}, regions, similarity))
        reason = "every row that was not rescored is proven to score less than all hits"
        return SearchResult(tuple(hits), True, reason, 500, 9)

    return make


@pytest.fixture
def write_hits(tmp_path: Path) -> Callable[..., str]:
    """Write the page of an answer to a file, and return its address."""

    def write(result: SearchResult, caption: str = "two red apples zyzzyva", words: Sequence[str] = WORDS) -> str:
        spoken = [HitWords(words, KNOWN)] * len(result.hits)
        page, skipped = render_page(result, spoken, caption, None, GRID, AlignmentConfig())
        assert not skipped
        (tmp_path / "hits.html").write_text(page, encoding="utf-8")
        return (tmp_path / "hits.html").as_uri()

    return write


def lit(page: Page, hit: int) -> list[str]:
    """The regions of a hit that are lit."""
    boxes = page.locator(f".hit:nth-child({hit + 1}) .box.lit")
    return [box.get_attribute("data-region") or "" for box in boxes.all()]


def tag(page: Page, hit: int) -> str:
    return page.locator(f".hit:nth-child({hit + 1}) .tag.shown").inner_text()


def test_a_word_lights_its_region_on_every_hit(open_page: Open, make_result: Make, write_hits: Make) -> None:
    page = open_page(write_hits(make_result()))
    assert page.locator(".hit").count() == 7
    page.hover(".word-bar .chip:has-text('apples')")
    assert [lit(page, hit) for hit in range(7)] == [[str((hit + 15) % 16)] for hit in range(7)]
    assert tag(page, 0) == "apples 0.66"
    page.mouse.move(0, 0)
    assert page.locator(".box.lit").count() == 0
    page.focus(".word-bar .chip >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert [lit(page, hit) for hit in range(7)] == [[str((hit + 10) % 16)] for hit in range(7)]
    page.keyboard.press("End")
    assert tag(page, 3) == "<end> 0.90"
    assert "<end> marks where the caption ends" in page.locator(".hint").inner_text()


def test_words_stay_in_reach(open_page: Open, make_result: Make, write_hits: Make) -> None:
    page = open_page(write_hits(make_result(40)))
    page.mouse.wheel(0, 1500)
    page.wait_for_selector(".hit[aria-posinset='16']")
    page.hover(".word-bar .chip:has-text('apples')")
    assert page.evaluate("scrollY") > 1000
    assert page.locator(".tag.shown").count() > 8
    page.focus(".word-bar .chip >> nth=0")
    page.locator(".hit[aria-posinset='16'] .open-hit").focus()
    page.keyboard.press("ArrowUp")
    hit, words = (page.locator(one).bounding_box() for one in (".hit:has(:focus)", ".answer-head"))
    assert hit is not None
    assert words is not None
    assert hit["y"] >= words["y"] + words["height"]


def test_a_finger_lights_a_word(open_page: Open, make_result: Make, write_hits: Make) -> None:
    page = open_page(write_hits(make_result(3)), "phone", has_touch=True, is_mobile=True)
    page.tap(".word-bar .chip:has-text('red')")
    assert page.locator(".tag.shown").all_inner_texts() == ["red 0.54"] * 3
    assert "Tap a word" in page.locator(".hint").inner_text()


def test_paper_has_every_hit(open_page: Open, make_result: Make, write_hits: Make) -> None:
    page = open_page(write_hits(make_result(60)))
    assert page.locator(".hit").count() < 60
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".hit").count() == 60
    places = page.locator(".hit").evaluate_all(
        "all => all.map((one) => `${one.getBoundingClientRect().x} ${one.getBoundingClientRect().y}`)"
    )
    assert len(set(places)) == 60


def test_a_region_names_the_words_that_chose_it(open_page: Open, make_result: Make, write_hits: Make) -> None:
    result = make_result(2)
    result.hits[0].word_regions[1:4] = 6
    page = open_page(write_hits(result))
    page.hover(".hit:nth-child(1) .box[data-region='6']")
    assert tag(page, 0) == "two 0.42, red 0.54, apples 0.66"
    assert page.locator(".word-bar .chip.lit").all_inner_texts() == ["two", "red", "apples"]
    assert lit(page, 1) == [], "only where it is pointed at"


def test_a_hit_opens_large_with_its_shares(open_page: Open, make_result: Make, write_hits: Make) -> None:
    page = open_page(write_hits(make_result()))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    dialog = page.locator("dialog[open]")
    assert dialog.locator("h2").inner_text() == "3. 2.png"
    rows = [row.inner_text().split() for row in dialog.locator("tbody tr").all()]
    assert [row[0] for row in rows] == ["<start>", "two", "red", "apples", "zyzzyva", "<end>"]
    assert [row[1] for row in rows] == ["0.30", "0.42", "0.54", "0.66", "0.78", "0.90"]
    assert rows[-1][2:] == ["70", "%"], "exp(0.9 / 0.1) of the sum of all words"
    assert "All unknown words are the same word" in dialog.inner_text()
    dialog.locator("tbody .chip >> nth=2").focus()
    assert dialog.locator(".tag.shown").inner_text() == "red 0.54"
    dialog.locator(".box[data-region='1']").focus()
    assert dialog.locator(".tag.shown").inner_text() == "apples 0.66"
    assert dialog.locator(".box[data-region='1']").get_attribute("aria-label") == "Region 1, chosen by apples 0.66"
    page.keyboard.press("ArrowRight")
    assert dialog.locator("h2").inner_text() == "4. 3.png"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.wait_for_function("document.activeElement.getAttribute('aria-label')?.startsWith('3.png, rank 4')")


def test_the_badge_explains_itself(open_page: Open, make_result: Make, write_hits: Make) -> None:
    page = open_page(write_hits(make_result()))
    badge = page.locator("summary")
    assert badge.inner_text().startswith("certified, 1.8 % rescored")
    badge.focus()
    page.keyboard.press("Enter")
    text = page.locator(".explained").inner_text()
    assert "proven to be the best 7 of 500" in text
    assert "bounds left 9 that could be among the best" in text
    page.keyboard.press("Escape")
    assert not page.locator(".explained > div").is_visible()
    broken = SearchResult(make_result(1).hits, False, "nothing proves the choice of rows", 500, 25)
    page = open_page(write_hits(broken))
    assert page.locator("summary").inner_text().startswith("not certified")


@pytest.mark.parametrize(
    ("size", "dark"),
    [("phone", True), ("laptop", False), ("4K", True)],
    ids=["phone in the dark", "laptop in the light", "4K in the dark"],
)
def test_every_state_is_accessible_and_in_its_place(
    open_page: Open, make_result: Make, write_hits: Make, violations: Check, misplaced: Check, size: str, dark: bool
) -> None:
    page = open_page(write_hits(make_result(9)), size, dark)
    columns = page.evaluate(
        "new Set([...document.querySelectorAll('.hit')].map((one) => one.getBoundingClientRect().left)).size"
    )
    assert {"phone": 2, "laptop": 4, "4K": 5}[size] <= columns <= {"phone": 2, "laptop": 6, "4K": 9}[size]
    for chip in range(6):
        page.hover(f".word-bar .chip >> nth={chip}")
        assert misplaced(page) == []
    assert violations(page) == []
    page.click("summary")
    assert misplaced(page) == []
    assert violations(page) == []
    page.click(".hit:nth-child(2) .rank")
    page.hover("dialog[open] tbody tr >> nth=3")
    assert misplaced(page) == []
    assert violations(page) == []


def test_names_of_any_length_stay_in_their_cards(
    open_page: Open, make_result: Make, write_hits: Make, misplaced: Check
) -> None:
    words = ("<start>", "two", "red", "a" * 200, "zyzzyva", "<end>")
    result = make_result(4, ids=["x" * 300, "y y " * 90, "z", "/"], long="v" * 500, words=["a b"] * 50)
    page = open_page(write_hits(result, "word " * 100 + "w" * 300, words), "phone")
    page.hover(".word-bar .chip >> nth=3")
    assert misplaced(page) == []
    page.click(".hit:nth-child(1) .rank")
    page.hover("dialog[open] tbody tr >> nth=3")
    assert misplaced(page) == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_of_others_is_only_text(open_page: Open, make_result: Make, write_hits: Make, attack: str) -> None:
    words = ("<start>", attack, "red", attack, "zyzzyva", "<end>")
    result = make_result(
        3, ids=[f"{attack}/{number}/{attack}" for number in range(3)], **{"caption": attack, attack: attack}
    )
    page = open_page(write_hits(result, attack, words))
    shown = re.sub("\u202e", "\\\\u202e", attack.replace("\x1b", "\\u001b"))
    assert page.locator(".open-hit").first.inner_text() == shown
    assert page.locator(".word-bar .chip").nth(1).inner_text() == shown
    page.hover(".word-bar .chip >> nth=1")
    page.click(".hit:nth-child(1) .rank")
    assert shown in page.locator("dialog[open] .metadata").inner_text()
    assert page.locator("script").count() == 2, "the data and the components"
    assert page.locator(".hit script, .hit svg, dialog script, dialog svg, [onerror], [onload]").count() == 0
    assert page.locator("img").evaluate_all("all => all.every((one) => one.src.startsWith('data:image/jpeg'))")


def test_a_picture_that_is_gone_is_named(open_page: Open, make_result: Make, tmp_path: Path, violations: Check) -> None:
    (hit,) = make_result(1).hits
    gone = tmp_path / "<img src=x onerror=alert(1)>.png"
    result = SearchResult((replace(hit, metadata={"path": str(gone)}),), True, "proven", 1, 1)
    text, skipped = render_page(result, [HitWords(WORDS, KNOWN)], "two", None, GRID, AlignmentConfig())
    assert [item.item for item in skipped] == [str(gone)]
    (tmp_path / "hits.html").write_text(text)
    page = open_page((tmp_path / "hits.html").as_uri())
    assert page.locator(".hit .lost").inner_text().startswith(f"{gone} cannot be read")
    assert page.locator(".hit img").count() == 0
    assert page.locator(".hit .share-bar i").count() == 6
    assert violations(page) == []


def test_the_policy_stops_a_script_that_got_in(
    browser: Any, make_result: Make, write_hits: Make, tmp_path: Path
) -> None:
    file = tmp_path / "hits.html"
    write_hits(make_result(2))
    added = (
        "<script>document.title = 'taken'</script><style>body { display: none }</style><img src=x onerror='alert(1)'>"
    )
    file.write_text(file.read_text().replace("</main>", f"{added}</main>"))
    page = browser.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(file.as_uri())
    assert page.locator(".hit").count() == 2
    assert (page.title(), dialogs) == ("two red apples zyzzyva", [])
    assert page.locator("h1").is_visible()
    page.close()


def test_ten_thousand_hits_are_drawn_where_they_are_seen(open_page: Open, make_result: Make, tmp_path: Path) -> None:
    (one,) = make_result(1).hits
    hits = tuple(
        Hit(f"row {number}", float(-number), {}, one.word_regions, one.word_scores) for number in range(10_000)
    )
    words = HitWords(WORDS, KNOWN)
    result = SearchResult(hits, True, "proven", 20_000, 12_000)
    text, _ = render_page(result, [words] * len(hits), "two red apples", None, 4, AlignmentConfig())
    (tmp_path / "many.html").write_text(text)
    page = open_page((tmp_path / "many.html").as_uri())
    assert page.locator(".hit").count() < 60
    page.focus(".open-hit[tabindex='0']")
    page.keyboard.press("End")
    page.wait_for_selector(".open-hit[title='row 9999']:focus")
    assert page.locator(".hit").count() < 60
    assert page.locator(".hit").last.get_attribute("aria-posinset") == "10000"
    page.keyboard.press("PageUp")
    page.keyboard.press("Home")
    page.wait_for_selector(".open-hit[title='row 0']:focus")
    assert page.evaluate("scrollY") < 400
    page.bring_to_front()  # a page behind another one gets no frames
    cards = page.evaluate("""async () => {
      const cards = [];
      for (let step = 0; step < 60; step += 1) {
        scrollBy(0, 900);
        await nextFrame();
        await nextFrame();
        cards.push(document.querySelectorAll(".hit").length);
      }
      return cards;
    }""")
    assert all(0 < count < 60 for count in cards), "a fast scroll keeps only the cards in view"
    names = page.locator(".hit").evaluate_all("all => all.map((one) => Number(one.getAttribute('aria-posinset')))")
    assert names == sorted(names), "the cards stand in the order of their ranks"


def test_a_page_without_scripts_lists_its_hits(browser: Any, make_result: Make, write_hits: Make) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(write_hits(make_result(3)))
    assert page.locator("noscript li").count() == 3
    assert "8.9000 photos/1.png" in page.locator("noscript").inner_text()
    page.close()


def test_captions_that_a_picture_found(open_page: Open, make_result: Make, tmp_path: Path, violations: Check) -> None:
    image = tmp_path / "query.png"
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(image)
    hits = tuple(
        Hit(
            f"row {n}",
            9.0 - n,
            {"caption": f"a dog number {n}"},
            np.array([n, n, n + 1, n + 2, n + 3, 0], np.int32),
            np.full(6, 0.5, np.float32),
        )
        for n in range(3)
    )
    words = [HitWords(("<start>", "a", "dog", "number", str(n), "<end>"), (True,) * 6) for n in range(3)]
    result = SearchResult(hits, True, "proven", 3, 3)
    text, _ = render_page(result, words, None, image, 4, AlignmentConfig())
    (tmp_path / "captions.html").write_text(text)
    page = open_page((tmp_path / "captions.html").as_uri())
    assert page.locator(".hit img").count() == 3
    assert page.locator(".word-bar").count() == 0
    page.hover(".hit:nth-child(2) .spoken:has-text('dog')")
    assert lit(page, 1) == ["2"]
    assert lit(page, 0) == []
    page.hover(".hit:nth-child(3) .box[data-region='4']")
    assert page.locator(".spoken.lit").all_inner_texts() == ["number"]
    assert violations(page) == []


@pytest.mark.parametrize("size", ["phone", "laptop"])
@pytest.mark.parametrize("grid", [4, None])
def test_an_explanation(
    open_page: Open, tmp_path: Path, violations: Check, misplaced: Check, size: str, grid: int | None
) -> None:
    picture = tmp_path / "a<b>.png"
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(picture)
    matches = (
        WordMatch("<start>", 0, 0.1, 0.05),
        WordMatch("red", 5, 0.7, 0.75),
        WordMatch("dogs", 15, -0.2, 0.2, False),
    )
    (tmp_path / "why.html").write_text(render_explanation(picture, "red dogs", Explanation(9.1234, matches, grid)))
    page = open_page((tmp_path / "why.html").as_uri(), size)
    assert "Score 9.1234" in page.locator(".side").inner_text()
    assert page.locator("img").get_attribute("alt") == "Picture: a<b>.png"
    page.hover("tbody tr:nth-child(3)")
    shown = page.locator(".tag.shown").all_inner_texts()
    assert shown == (["dogs -0.20"] if grid else [])
    assert page.locator(".box").count() == (3 if grid else 0)
    assert misplaced(page) == []
    assert violations(page) == []


def test_colors_of_words_stand_out_in_both_modes() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    style = asset("page.css")
    words = re.findall(r"--word: (#\w{6})", style)
    surfaces = re.findall(r"--surface: (#\w{6})", style)
    assert (len(words), len(set(words)), len(surfaces)) == (13, 13, 2)
    for word in words:
        for surface in surfaces:
            dark, light = sorted([luminance(word), luminance(surface)])
            assert (light + 0.05) / (dark + 0.05) >= 3, (word, surface)


@given(text=strategies.text(strategies.characters(codec=None)))
def test_embedded_json_is_only_data(text: str) -> None:
    written = embedded_json({text: [text]})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {text: [text]}


def test_embedded_json_ends_no_script() -> None:
    assert embedded_json({"a": "</script><!-- & \u2028"}) == '{"a":"\\u003c/script\\u003e\\u003c!-- \\u0026 \\u2028"}'
