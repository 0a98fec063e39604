"""A real browser for the tests of pages, and pages that need no model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.gallery.result import Hit, SearchResult
from chan_rt.runtime.pictures.page import HitWords, render_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
GRID = 4
WORDS = ("<start>", "two", "red", "apples", "zyzzyva", "<end>")
KNOWN = (True, True, True, True, False, True)
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MISPLACED = """() => {
  const texts = '.tag.shown, .chip, .about *:not(bdi), .badge, .side *, h1, h2, p, label, .button';
  const found = [...document.querySelectorAll(texts)]
    .filter((one) => one.offsetParent && !one.closest('.scroll, .hidden'))
    .filter((one) => {
      const box = one.getBoundingClientRect();
      const around = one.closest('.picture, .hit, .side, dialog') ?? document.documentElement;
      const card = around.getBoundingClientRect();
      return box.width && (box.left < card.left - 1 || box.right > card.right + 1);
    }).map((one) => `${one.className}: ${one.textContent.slice(0, 60)}`);
  const wide = document.documentElement.scrollWidth - innerWidth;
  return wide > 0 ? [...found, `the page is ${wide} pixels too wide`] : found;
}"""
SIZES = {"phone": (400, 800), "laptop": (1280, 800), "4K": (3840, 2160)}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open an address. A message of the console, an error or a request to elsewhere fails the test."""
    opened: list[tuple[Page, list[str]]] = []

    def new(url: str, size: str = "laptop", dark: bool = False, **options: Any) -> Page:
        width, height = SIZES[size]
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        page.set_default_timeout(10_000)
        faults: list[str] = []
        origin = url.split("/", 3)[2]
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("data:", "blob:")) or request.url.split("/", 3)[2] == origin
                else faults.append(f"a request to {request.url}")
            ),
        )
        page.goto(url)
        opened.append((page, faults))
        return page

    yield new
    for page, faults in opened:
        page.close()
        assert faults == [], faults


@pytest.fixture
def violations() -> Callable[[Page], list[str]]:
    """What axe-core finds wrong with a page as it is now."""

    def check(page: Page) -> list[str]:
        page.wait_for_timeout(200)  # boxes fade, and axe measures what it sees
        page.evaluate(AXE)  # not a script element: the page's policy forbids scripts of others, as it should
        found = page.evaluate(f"axe.run({{runOnly: {AXE_RULES}}})")
        return [
            f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]

    return check


@pytest.fixture
def misplaced() -> Callable[[Page], list[str]]:
    """Texts that reach beyond the card, picture or window that they lie in; a page wider than its window."""

    def check(page: Page) -> list[str]:
        return cast("list[str]", page.evaluate(MISPLACED))

    return check


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
        return SearchResult(tuple(hits), "exact", True, reason, 500, 9)

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
