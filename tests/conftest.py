"""Small models with their bundles, and a browser with what pages are held to."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hypothesis
import pytest
import torch

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.backbones.base import Backbone
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.contract import AlignmentConfig, Preprocess
from chan_rt.runtime.text import build_scan_vocabulary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

hypothesis.settings.register_profile("chan", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("chan")

# Of the tests' small models a second thread computes nothing, and waits: 2 cores with other work trained one of them in
# 2.3 s with one thread and in 13.6 s with two (0.5 and 7.1 s of CPU time).
torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

AXE = Path(__file__).parent / "axe" / "axe.min.js"
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
SMALL_WORDS = "a red strawberry and the green apple lie on a blue table under two white clouds"


class SmallBackbone(torch.nn.Module):
    """One convolution: pixels [B, 3, 24, 24] -> regions [B, 4, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = torch.nn.Conv2d(3, 12, 12, stride=12)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.cells(pixels).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class SmallModel:
    """A small model with random weights, and the bundle it was exported to."""

    model: ChanModel
    bundle: Path


@pytest.fixture(scope="session")
def make_small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SmallModel]:
    """(coding, pooling, precisions, pictures) -> SmallModel with 12-d regions, 16-d embeddings, words of `SMALL_WORDS`.

    With `pictures` its bundle has a backbone: 24 x 24 pixels to a 2 x 2 grid.
    """

    @functools.cache
    def make(
        coding: str = "VHA", pooling: str = "LSE", precisions: tuple[str, ...] = ("fp32",), pictures: bool = False
    ) -> SmallModel:
        torch.manual_seed(7)
        vocabulary = build_scan_vocabulary([SMALL_WORDS], min_count=1)
        config = ModelConfig(
            region_dim=12,
            embed_dim=16,
            attention_heads=2,
            vocab_size=len(vocabulary["word2idx"]) + 1,
            word_dim=8,
            alignment=AlignmentConfig(coding, pooling, attention_temperature=0.2, pooling_temperature=0.1),
        )
        model = ChanModel(config).eval()
        folder = tmp_path_factory.mktemp("small")
        checkpoint.save(folder / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
        backbone = Backbone(SmallBackbone().eval(), Preprocess(24, (0.5,) * 3, (0.25,) * 3, 2)) if pictures else None
        export_bundle(folder / "checkpoint", folder / "bundle", precisions, backbone)
        return SmallModel(model, folder / "bundle")

    return make


@pytest.fixture
def small(make_small_model: Callable[..., SmallModel]) -> SmallModel:
    """A small model and its bundle, for region features."""
    return make_small_model()


@pytest.fixture(scope="session")
def bundle(make_small_model: Callable[..., SmallModel]) -> Path:
    """A small bundle that reads pictures."""
    return make_small_model(pictures=True).bundle


@pytest.fixture
def little_memory() -> Iterator[None]:
    """An allocation of a GiB beyond what the tests hold fails, instead of taking the memory of the machine."""
    if sys.platform != "linux":
        pytest.skip("limits the address space as Linux does")
    import resource

    old = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module: until it stops, no other event loop of Playwright can run in this thread."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


# For scripts of a test: an error where no frame comes, since Playwright waits for a script without end.
NEXT_FRAME = """window.nextFrame = () => new Promise((resolve, reject) => {
  setTimeout(() => reject(new Error("no frame came in 20 s")), 20_000);
  requestAnimationFrame(resolve);
});"""


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
        page.add_init_script(NEXT_FRAME)
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
        page.evaluate(
            AXE.read_text(encoding="utf-8")
        )  # not a script element: the page's policy forbids scripts of others, as it should
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
