"""The live page in a real browser, before real servers: every interaction, by pointer and by keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import (
    AlignmentConfig,
    Embeddings,
    GalleryWriter,
    Matcher,
    gallery_settings,
    open_matcher,
    open_writer,
)
from chan_rt.runtime.gallery.where import parse_words

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Open = Callable[..., "Page"]
Check = Callable[["Page"], list[str]]
CAPTION = "two red apple clouds"
WORDS = ["<start>", "two", "red", "apple", "clouds", "<end>"]
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>{{7*7}}\u202egnp"
PHOTOS = 8
SHOT = 2**60 + 1  # more digits than a number of JavaScript has
COLORS = "all => all.map((one) => getComputedStyle(one).getPropertyValue('--word'))"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for number in range(PHOTOS):
        cells = rng.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(cells.repeat(40, 0).repeat((40, 70, 25)[number % 3], 1)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def site(
    bundle: Path, photos: list[Path], start_server: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server of pictures, of ten thousand rows, of captions, of rows whose every text is an attack, and of embeddings
    without a bundle.
    """
    folder = tmp_path_factory.mktemp("galleries")
    captions = ["a red apple", "two white clouds", "the green table", f"{ATTACK} apple"]
    with open_matcher_of(bundle) as matcher:
        images, texts = matcher.encode_pictures(photos), matcher.encode_texts(captions)
    settings = gallery_settings(bundle)
    with open_writer(folder / "photos", settings) as writer:
        metadata = [{"path": str(path), "year": 2018 + n, "shot": SHOT + n} for n, path in enumerate(photos)]
        writer.add([f"photos/{path.name}" for path in photos], images, metadata)
    with open_writer(folder / "hostile", settings) as writer:
        ids = [f"{number}{ATTACK}" for number in range(PHOTOS)]
        writer.add(ids, images, [{"path": str(path), "caption": ATTACK, ATTACK: ATTACK} for path in photos])
    with open_writer(folder / "many", settings) as writer:
        metadata = [{"path": str(photos[number % PHOTOS]), "number": number} for number in range(10_000)]
        writer.add([f"row {number}" for number in range(10_000)], many_rows(), metadata)
    with open_writer(folder / "captions", gallery_settings(bundle, "captions")) as writer:
        writer.add([f"{number}" for number in range(4)], texts, [{"caption": caption} for caption in captions])
    with GalleryWriter.create(folder / "vectors", dim=16, alignment=AlignmentConfig.maxsim()) as writer:
        writer.add([f"page {number}" for number in range(40)], many_rows()[:40])
    galleries = [folder / name for name in ("photos", "hostile", "many", "captions", "vectors")]
    with start_server(*galleries, "--max-k", 10_000) as running:
        yield running.url


def many_rows() -> Embeddings:
    vectors = np.random.default_rng(0).standard_normal((10_000, 4, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return Embeddings(vectors, np.full(10_000, 4, np.int32), "images")


def open_matcher_of(bundle: Path) -> Matcher:
    return Matcher.open(bundle, "onnxruntime", threads=1)


def state(page: Page) -> dict[str, str]:
    """The state that the address holds."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(page.url).query).items()}


def wait_text(within: Page | Locator, selector: str, text: str | re.Pattern[str]) -> None:
    """Wait until an element has this text in it: what the page shows follows its requests."""
    within.locator(selector).filter(has_text=text).first.wait_for()


def ids(page: Page) -> list[str]:
    """Names of the hits, best first."""
    page.wait_for_selector("#answer:not([aria-busy]) .hit")
    return [button.get_attribute("title") or "" for button in page.locator(".open-hit").all()]


def find(page: Page, caption: str = CAPTION) -> list[str]:
    page.fill("#caption", caption)
    page.keyboard.press("Enter")
    return ids(page)


def lit(page: Page) -> list[str]:
    return [box.get_attribute("data-region") or "" for box in page.locator(".hit .box.lit").all()]


def drop(page: Page, photo: Path, event: str = "drop") -> None:
    """Drop or paste a picture file, as a browser reports it."""
    page.evaluate(
        """([event, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], 'own <b>.png', { type: 'image/png' }));
          const made = event === 'paste' ? new ClipboardEvent('paste', { clipboardData: data, bubbles: true })
            : new DragEvent(event, { dataTransfer: data, bubbles: true });
          document.body.dispatchEvent(made);
        }""",
        [event, list(photo.read_bytes())],
    )


def test_a_search_shows_what_the_library_finds(open_page: Open, site: str, bundle: Path, photos: list[Path]) -> None:
    page = open_page(site)
    wait_text(page, "#start-title", "8 pictures to search")
    assert page.evaluate("document.activeElement.id") == "caption"
    found = find(page)
    with open_matcher_of(bundle) as matcher:
        images = matcher.encode_pictures(photos)
        scores = matcher.score(images, matcher.encode_texts([CAPTION]))[:, 0]
        explained = matcher.explain(images[int(scores.argmax())], CAPTION)
    assert found == [photos[row].name for row in np.argsort(-scores)]
    assert page.locator(".word-bar").all_inner_texts()[0].split("\n") == WORDS
    wait_text(page, "summary", "certified")
    for word, match in enumerate(explained.words):
        page.hover(f".word-bar .chip >> nth={word}")
        assert lit(page)[0] == str(match.region)
        wait_text(page, ".tag.shown", f"{match.word} {match.similarity:.2f}")
    page.hover(".hit:first-child .box >> nth=0")
    region = page.locator(".hit:first-child .box").first.get_attribute("data-region")
    chose = [match.word for match in explained.words if str(match.region) == region]
    assert page.locator(".word-bar .chip.lit").all_inner_texts() == chose
    wait_text(page, "#status", re.compile(r"8 of 8 pictures; encoded in [\d.]+ ms, found in [\d.]+ ms"))


@pytest.mark.parametrize("off", [3, 5])
def test_a_word_that_is_switched_off_changes_the_ranking(open_page: Open, site: str, bundle: Path, off: int) -> None:
    with open_matcher_of(bundle) as matcher:
        words = matcher.encode_texts([CAPTION])
        kept = [word for word in range(6) if word != off]
        fewer = Embeddings(words.vectors[:, kept], np.array([5], np.int32), "captions")
        everything, without = (
            [f"row {row}" for row in np.argsort(-matcher.score(many_rows(), query)[:, 0], kind="stable")[:8]]
            for query in (words, fewer)
        )
    address = f"{site}/?gallery=many&q={quote(CAPTION)}&k=8"
    page = open_page(address)
    assert ids(page) == everything
    page.focus(".word-bar .chip >> nth=0")
    for key in ["ArrowRight"] * off + ["Space"]:
        page.keyboard.press(key)
    page.wait_for_selector(".word-bar .chip.off")
    assert state(page)["off"] == str(off)
    assert page.locator(".chip.off").all_inner_texts() == [WORDS[off]]
    assert page.locator(".chip.off").get_attribute("aria-pressed") == "false"
    page.wait_for_selector(".chip.off:focus")
    assert ids(page) == without
    moves = [everything.index(name) - rank if name in everything else None for rank, name in enumerate(without)]
    arrows = ["new" if by is None else f"▲{by}" if by > 0 else f"▼{-by}" for by in moves if by != 0]
    assert page.locator(".moved > [aria-hidden]").all_inner_texts() == arrows
    assert arrows
    for word in range(6):
        page.hover(f".word-bar .chip >> nth={word}")
        assert (lit(page) == []) == (word == off)
        tags = page.locator(".tag.shown").evaluate_all(COLORS)
        assert set(tags) <= set(page.locator(f".word-bar .chip >> nth={word}").evaluate_all(COLORS))
    page.go_back()
    page.wait_for_selector(".word-bar:not(:has(.off))")
    assert ids(page) == everything
    page = open_page(f"{address}&off={off}")
    assert ids(page) == without
    assert page.locator(".moved > [aria-hidden]").all_inner_texts() == arrows, "a link shows the movement, too"


def test_a_finger_lights_a_word_before_it_switches_it(open_page: Open, site: str) -> None:
    page = open_page(f"{site}/?q={quote(CAPTION)}", "phone", has_touch=True, is_mobile=True)
    ids(page)
    page.tap(".word-bar .chip >> nth=2")
    assert page.locator(".tag.shown").count() > 0
    assert "off" not in state(page)
    page.tap(".word-bar .chip >> nth=2")
    page.wait_for_selector(".chip.off")
    assert state(page)["off"] == "2"


def test_a_hit_opens_and_two_captions_are_compared(
    open_page: Open, site: str, bundle: Path, photos: list[Path], violations: Check
) -> None:
    page = open_page(site)
    found = find(page)
    page.focus(".open-hit[tabindex='0']")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    wait_text(dialog, "h2", f"2. {found[1]}")
    assert state(page)["open"] == f"photos/{found[1]}"
    assert dialog.locator("tbody tr").count() == 6
    wait_text(dialog, ".metadata", "year")
    assert violations(page) == []
    dialog.locator(".compare-form input").fill("the green table")
    page.keyboard.press("Enter")
    dialog.locator(".compare").wait_for()
    assert state(page)["vs"] == "the green table"
    assert dialog.locator(".compare h3").all_inner_texts() == [CAPTION, "the green table"]
    with open_matcher_of(bundle) as matcher:
        image = matcher.encode_pictures([next(path for path in photos if path.name == found[1])])
        scores = matcher.score(image, matcher.encode_texts([CAPTION, "the green table"]))[0]
    shown = [float(text.split()[1]) for text in dialog.locator(".score-line").all_inner_texts()]
    np.testing.assert_allclose(shown, scores, atol=2e-4)
    better = "first" if scores[0] > scores[1] else "second"
    wait_text(dialog, ".verdict", f"The {better} caption fits better")
    assert violations(page) == []
    link = page.url
    page.click("[aria-label='The next hit']")
    page.wait_for_selector(f"dialog[open] h2:has-text('3. {found[2]}')")
    dialog.locator(".compare").wait_for()
    assert (state(page)["open"], state(page)["vs"]) == (f"photos/{found[2]}", "the green table")
    page.click("[aria-label='The hit before']")
    page.wait_for_selector(f"dialog[open] h2:has-text('2. {found[1]}')")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    page.wait_for_url(lambda url: "open=" not in url)
    page.wait_for_selector(f".open-hit[title='{found[1]}']:focus")
    page.go_forward()
    page.wait_for_selector("dialog[open]")
    page.go_back()
    page.wait_for_selector("dialog[open]", state="detached")
    other = open_page(link)
    other.locator("dialog[open] .compare").wait_for()
    assert other.locator("dialog[open] .compare h3").all_inner_texts() == [CAPTION, "the green table"]
    other.keyboard.press("Escape")
    other.wait_for_url(lambda url: "open=" not in url)


def test_filters_count_and_are_in_the_address(open_page: Open, site: str) -> None:
    page = open_page(site)
    find(page)
    page.click("#filters-button")
    page.fill("[data-part=name]", "year")
    page.select_option("[data-part=sign]", ">=")
    page.fill("[data-part=value]", "2022")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit[aria-setsize='4']")
    assert state(page)["where"] == "year>=2022"
    wait_text(page, "#filters-button", "Filters (1)")
    assert {int(name[0]) for name in ids(page)} == {4, 5, 6, 7}
    for condition, rows in (("year=2019", {1}), ("year!=2019", {0, 2, 3, 4, 5, 6, 7}), ("year", set(range(8)))):
        page.goto(f"{site}/?q=apple&where={quote(condition)}")
        assert {int(name[0]) for name in ids(page)} == rows, condition
    whole = quote('{"year": {"$in": [2018, 2020]}}')
    page.goto(f"{site}/?q=apple&where={whole}&k=1")
    assert len(ids(page)) == 1
    wait_text(page, "summary", re.compile("^certified"))


@pytest.mark.parametrize(
    "condition",
    [
        "year=2020", "year!=2020", "year='x'", 'year="2020"', 'year>="2020"', "year>=2020", "year>true", "year=true",
        "year= 2020", "year=0x7E4", "year=2.02e3", "year=1e400", "year=NaN", "year=",
        "year=02020", "year>+2020", "year<=2020.", "year<-.5e4", "year>=00.50", "year=-0", "year=1_000", "year>1.2.3",
        'year="', "year~20", "year=null",
        "year", "!year", f"shot={SHOT}", f"shot>{SHOT}", f'{{"shot": {{"$in": [{SHOT}]}}}}', "__proto__=1",
    ],
)  # fmt: skip
def test_a_filter_means_what_it_means_in_a_terminal(browser: Any, site: str, condition: str) -> None:
    page = browser.new_page()
    with page.expect_request("**/v1/search") as asked:
        page.goto(f"{site}/?gallery=photos&q=apple&where={quote(condition)}")
    assert json.loads(asked.value.post_data)["where"] == parse_words([condition])
    page.close()


def test_no_digit_of_a_large_number_is_lost(open_page: Open, site: str) -> None:
    page = open_page(f"{site}/?q=apple&where=shot%3D{SHOT + 3}")
    assert [int(name[0]) for name in ids(page)] == [3]
    page.click(".open-hit")
    wait_text(page, "dialog .metadata dd", str(SHOT + 3))
    page.goto(f"{site}/")
    find(page)
    page.click("#filters-button")
    page.fill("[data-part=name]", "a=b")
    page.select_option("[data-part=sign]", "!")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit[aria-setsize='8']")
    assert state(page)["where"] == '{"a=b":{"$exists":false}}'


def test_mistakes_are_explained(browser: Any, site: str, violations: Check) -> None:
    page = browser.new_page()  # the console lists the statuses that are meant here
    page.goto(f"{site}/?q=apple&where=yeer%3D2019")
    wait_text(page, ".problem", "yeer")
    assert violations(page) == []
    page.goto(f"{site}/?q=apple&where=%7B")
    wait_text(page, ".problem", "is no JSON")
    page.goto(f"{site}/?q=apple&where=!year%3D2019")
    wait_text(page, ".problem", "cannot be read")
    for value in ("1e999", "0x7E4", "1_000", "inf"):
        page.goto(f"{site}/?q=apple&where=year%3C%3D{value}")
        wait_text(page, ".problem", f'Quote it if it is text: year<="{value}"')
    page.goto(f"{site}/?q=two+zyzzyva")
    page.wait_for_selector("#status:has-text('The model does not know zyzzyva.')")
    page.goto(f"{site}/?gallery=captions&q=apple")
    wait_text(page, ".problem", "Search it with a picture")
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.fill("#caption", "")
    page.keyboard.press("Enter")
    page.wait_for_selector(".problem:has-text('picture')")
    page.route("**/pictures?*", lambda route: route.abort())
    page.goto(f"{site}/?q=apple")
    page.wait_for_selector(".hit .lost:has-text('The picture of this row cannot be shown.')")
    page.route("**/v1/search", lambda route: route.abort())
    page.goto(f"{site}/?q=apple")
    page.wait_for_selector(".problem:has-text('The server cannot be reached.')")
    page.close()


def test_a_busy_server_is_tried_again(browser: Any, site: str) -> None:
    page = browser.new_page()
    refused = []

    def refuse_once(route: Any) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route)
            route.fulfill(status=429, headers={"Retry-After": "1"}, body="{}")

    page.route("**/v1/search", refuse_once)
    page.goto(f"{site}/?q=apple")
    assert len(ids(page)) == PHOTOS
    assert len(refused) == 1
    page.close()


@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_finds_captions(
    open_page: Open, site: str, photos: list[Path], bundle: Path, how: str, violations: Check
) -> None:
    page = open_page(f"{site}/?gallery=captions")
    page.wait_for_selector("#start-title")
    if how == "choose":
        page.set_input_files("#file", photos[2])
    else:
        drop(page, photos[2], how)
    captions = ["a red apple", "two white clouds", "the green table", f"{ATTACK} apple"]
    with open_matcher_of(bundle) as matcher:
        scores = matcher.score(matcher.encode_pictures([photos[2]]), matcher.encode_texts(captions))[0]
    found = ids(page)
    assert [name.replace("\\u202e", "\u202e") for name in found] == [captions[row] for row in np.argsort(-scores)]
    page.hover(".hit:has-text('clouds') .spoken:has-text('white')")
    assert page.locator(".box.lit").count() == 1
    page.click(".hit:has-text('clouds') .rank")
    assert page.locator("dialog[open] img").get_attribute("src").startswith("blob:")
    page.locator("dialog[open] .compare-form input").fill("a red table")
    page.keyboard.press("Enter")
    page.locator("dialog[open] .compare").wait_for()
    assert page.locator("dialog[open] h3").all_inner_texts() == ["two white clouds", "a red table"]
    assert violations(page) == []


def test_a_picture_of_ones_own_is_explained(open_page: Open, site: str, photos: list[Path], bundle: Path) -> None:
    page = open_page(f"{site}/?q={quote(CAPTION)}")
    drop(page, photos[4])
    page.wait_for_selector("#explained .shares")
    with open_matcher_of(bundle) as matcher:
        explained = matcher.explain(matcher.encode_pictures([photos[4]]), CAPTION)
    wait_text(page, "#explained .score-line", f"Score {explained.score:.4f}")
    wait_text(page, "#picture", "own <b>.png")
    page.click("#picture button")
    assert len(ids(page)) == PHOTOS
    page.go_back()
    page.wait_for_selector("#explained .shares")


def test_a_hit_finds_rows_like_it(
    open_page: Open, site: str, bundle: Path, photos: list[Path], violations: Check
) -> None:
    page = open_page(site)
    found = find(page)
    page.click(f".open-hit[title='{found[0]}']")
    page.click("dialog[open] >> text='More like this'")
    page.wait_for_selector("dialog[open]", state="detached")
    page.wait_for_selector("#answer:not([aria-busy]) .hit")
    with open_matcher_of(bundle) as matcher:
        images = matcher.encode_pictures(photos)
    mine = images[[path.name for path in photos].index(found[0])].vectors[0].astype(np.float64)
    alike = [np.exp((row @ mine.T).max(axis=0) / 0.1).sum() for row in images.vectors.astype(np.float64)]
    names = [photos[row].name for row in np.argsort(alike)[::-1]]
    assert ids(page) == [name for name in names if name != found[0]]
    wait_text(page, "#picture", f"like photos/{found[0]}")
    assert page.locator("#answer .box").count() == page.locator(".word-bar").count() == 0
    assert violations(page) == []
    page.go_back()
    page.wait_for_selector(f"dialog[open] h2:has-text('1. {found[0]}')")
    page.go_forward()
    page.wait_for_selector("#picture:visible")
    page.click("#picture button")
    page.wait_for_selector("#start")
    assert "like" not in state(page)


def test_a_gallery_without_a_bundle_is_searched_by_ids(open_page: Open, site: str, violations: Check) -> None:
    page = open_page(f"{site}/?gallery=vectors")
    wait_text(page, "#start-text", "it knows no words and no pictures")
    assert not page.locator("label[for=file]").is_visible()
    found = find(page, "page 7")
    assert found
    assert "page 7" not in found
    assert state(page)["like"] == "page 7"
    assert violations(page) == []
    page.click(f".open-hit[title='{found[0]}']")
    assert page.locator("dialog[open] .compare-form, dialog[open] .shares").count() == 0
    page.click("dialog[open] >> text='More like this'")
    page.wait_for_selector(f"#picture:has-text('like {found[0]}')")


def test_what_is_asked_before_the_page_is_ready_is_done(open_page: Open, site: str, photos: list[Path]) -> None:
    page = open_page(site)
    found = find(page)
    held = []
    page.route("**/v1/galleries", lambda route: held.append(route))
    page.goto(site)
    page.fill("#caption", CAPTION)
    page.keyboard.press("Enter")
    held.pop().continue_()
    assert ids(page) == found
    page.goto(site)
    page.fill("#k", "3")
    page.fill("#caption", CAPTION)
    page.keyboard.press("Enter")
    held.pop().continue_()
    page.wait_for_selector(".hit")
    assert ids(page) == found[:3]
    page.goto(site)
    page.fill("#k", "3")
    page.fill("#caption", CAPTION)
    held.pop().continue_()
    page.wait_for_selector("#gallery option", state="attached")
    assert (page.input_value("#k"), page.input_value("#caption")) == ("3", CAPTION), "what was typed stays"
    page.goto(f"{site}/?q={quote(CAPTION)}")
    drop(page, photos[4])
    held.pop().continue_()
    page.wait_for_selector("#explained .shares")
    assert state(page)["q"] == CAPTION


def test_ten_thousand_hits_stream_in_and_scroll(open_page: Open, site: str) -> None:
    page = open_page(f"{site}/?gallery=many")
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json["k"]) if "search" in request.url else None)
    page.fill("#k", "10000")
    page.fill("#caption", CAPTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    assert asked[0] == 60, "the first hits do not wait for the rest"
    page.wait_for_selector(".hit[aria-setsize='10000']", timeout=30_000)
    assert asked == [60, 10_000]
    assert page.locator(".hit").count() < 60
    page.focus(".open-hit[tabindex='0']")
    page.keyboard.press("End")
    page.wait_for_selector(".hit[aria-posinset='10000'] .open-hit:focus")
    assert page.locator(".hit").count() < 60
    page.hover(".word-bar .chip >> nth=2") if page.locator(".word-bar").is_visible() else None
    page.bring_to_front()  # a page behind another one gets no frames
    steps = page.evaluate("""async () => {
      const steps = [];
      let made = 0;
      const added = (records) => records.forEach((one) => { made += one.addedNodes.length; });
      new MutationObserver(added).observe(document.querySelector(".hit").parentElement, { childList: true });
      for (let step = 0; step < 60; step += 1) {
        made = 0;
        scrollBy(0, -900);
        await nextFrame();
        await nextFrame();
        steps.push([made, document.querySelectorAll(".hit").length]);
      }
      return steps;
    }""")
    assert all(0 < made < 60 and made <= cards < 60 for made, cards in steps), "a scroll makes only the cards in view"
    assert asked == [60, 10_000], "and asks for nothing"


def test_texts_of_others_are_only_text(open_page: Open, site: str) -> None:
    page = open_page(f"{site}/?gallery=hostile&q={quote(ATTACK)}&vs={quote(ATTACK)}")
    shown = ATTACK.replace("\u202e", "\\u202e")
    assert ids(page) == [shown] * PHOTOS
    page.hover(".word-bar .chip >> nth=1")
    page.click(".hit:first-child .rank")
    page.locator("dialog[open] .compare-form input").fill(ATTACK)
    page.keyboard.press("Enter")
    page.locator("dialog[open] .compare").wait_for()
    page.click("dialog[open] [aria-label='Close']")
    assert page.locator("script").count() == 1
    assert page.locator("main svg, main script, dialog svg, [onerror], [onload]").count() == 0


def test_addresses_of_others_are_only_text(browser: Any, site: str) -> None:
    page = browser.new_page()  # the console lists what the server refuses
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: asked.append(str(error)))
    for name in ("q", "gallery", "where", "open", "vs", "picture", "off", "k"):
        values = {"q": "apple", "open": "photos/0.png", name: ATTACK}
        page.goto(f"{site}/?" + "&".join(f"{one}={quote(value)}" for one, value in values.items()))
        page.wait_for_selector(".problem, #answer:not([hidden], [aria-busy]), #start:not([hidden])")
        page.wait_for_timeout(50)
        assert page.locator("main svg, main script, dialog svg, [onerror], [onload]").count() == 0, name
    assert asked == []
    page.close()


@pytest.mark.parametrize(
    ("size", "dark"),
    [("phone", True), ("laptop", False), ("4K", True)],
    ids=["phone in the dark", "laptop in the light", "4K in the dark"],
)
def test_every_state_is_accessible_and_in_its_place(
    open_page: Open, site: str, violations: Check, misplaced: Check, size: str, dark: bool
) -> None:
    page = open_page(site, size, dark)
    page.wait_for_selector("#start-title")
    assert misplaced(page) == []
    assert violations(page) == []
    find(page)
    page.click("#filters-button")
    page.hover(".word-bar .chip >> nth=3")
    assert misplaced(page) == []
    assert violations(page) == []
    page.click(".word-bar .chip >> nth=3")
    page.wait_for_selector(".chip.off")
    page.click("summary")
    assert misplaced(page) == []
    assert violations(page) == []


def test_everything_works_without_a_pointer(open_page: Open, site: str) -> None:
    page = open_page(f"{site}/?q={quote(CAPTION)}")
    ids(page)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "caption"
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    for wanted in ("file", "k", "filters-button", "gallery", "open-hit"):
        assert wanted in reached, reached
    assert sum("chip" in one for one in reached) == 1, "the words are one stop"
    assert "SUMMARY" in reached


def test_a_key_is_asked_for_and_sent(
    browser: Any, start_server: Callable, bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    with (
        open_writer(tmp_path / "locked", gallery_settings(bundle)) as writer,
        open_matcher(writer, threads=1) as matcher,
    ):
        metadata = [{"path": str(path)} for path in photos]
        writer.add([path.name for path in photos], matcher.encode_pictures(photos), metadata)
    (tmp_path / "key").write_text("correct horse")
    with start_server(tmp_path / "locked", "--api-key-file", tmp_path / "key") as running:
        page = browser.new_page()
        page.goto(f"{running.url}/?q={quote(CAPTION)}")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-text:has-text('The server did not take this key.')")
        page.fill("#key", "correct horse")
        page.keyboard.press("Enter")
        assert len(ids(page)) == PHOTOS
        page.wait_for_load_state("networkidle")
        assert page.locator(".hit img").evaluate_all("all => all.every((one) => one.naturalWidth > 0)")
        assert page.locator(".hit img").first.get_attribute("src").startswith("blob:")
        assert "correct" not in page.url
        page.reload()
        assert len(ids(page)) == PHOTOS, "the tab remembers the key"
        page.close()
