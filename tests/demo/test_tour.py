"""`make demo`, small: every step runs on the real checkpoint, the page holds what was found, a rerun keeps it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chan_rt.demo import __main__ as tour
from chan_rt.demo import steps
from chan_rt.runtime.backends.sidecar import read_sidecars
from chan_rt.runtime.contract import Manifest
from chan_rt.runtime.gallery import Gallery

SCENES = 6


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished demo of few scenes and one engine."""
    out = tmp_path_factory.mktemp("tour") / "demo"
    plan = steps.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "plan", lambda bundle: plan(bundle, ["hard_alignment"], ["fp32"]))
        patch.setattr(steps, "TIMED", 7)
        patch.setattr(steps, "HITS", 4)
        result = CliRunner().invoke(tour.main, [str(out), "--scenes", str(SCENES)])
    assert result.exit_code == 0, result.output
    return out, result


def test_every_step_is_told_and_every_path_exists(toured: tuple[Path, Result]) -> None:
    out, result = toured
    text = result.output
    numbers = re.findall(rf"^(\d)/{tour.STEPS}  ", text, re.M)
    assert numbers == [str(number) for number in range(1, tour.STEPS + 1)]
    assert "engines by tensorrt_rtx" in text
    assert re.search(r"parity holds in (\d) of \1 stages", text)
    assert re.search(r"^Parity holds\. \d+ seconds in all", text, re.M)
    for name in ("index.html", "parity.html", "parity.json", "alignment.png", "gallery", "bundle/manifest.json"):
        assert (out / name).exists()
    assert json.loads((out / "parity.json").read_text())["sample"]["images"] == SCENES
    assert set(Manifest.load(out / "bundle").parity) >= {"onnxruntime/fp32", "onnxruntime/fp16"}


def test_recalls_and_pointing_are_the_reference_s_at_fp32(toured: tuple[Path, Result]) -> None:
    text = toured[1].output
    for table in (r"^    {}( +[\d.]+){{7}}$", r"^    {} +([\d.]+% of .*)$"):
        torch, runtime = (
            re.search(table.format(name), text, re.M) for name in ("torch", re.escape("onnxruntime/fp32"))
        )
        assert torch is not None
        assert runtime is not None
        assert torch[0].split()[1:] == runtime[0].split()[1:]


def test_page_shows_the_pictures_and_loads_nothing(toured: tuple[Path, Result]) -> None:
    html = (toured[0] / "index.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 4 + 1, "the hits, and the best one large"
    assert "The 4 best of 6 pictures" in html
    assert "(medians of 7)" in html
    assert "parity holds" in html
    assert "built, not run" in html or "tensorrt_rtx/fp32" in html
    assert not re.search(r'(src|href)="(?!data:|parity\.html|#)', html.replace('xlink:href="#', ""))
    assert "script-src &#39;sha256-" in html
    assert "unsafe" not in html


@pytest.mark.parametrize(("size", "dark"), [("phone", True), ("laptop", False)])
def test_page_is_accessible_and_shows_regions(
    toured: tuple[Path, Result], open_page: Callable, violations: Callable, misplaced: Callable, size: str, dark: bool
) -> None:
    page = open_page((toured[0] / "index.html").as_uri(), size, dark)
    assert page.locator(".hit").count() == 4
    page.locator(".word-bar .chip >> nth=1").hover()
    assert page.locator(".hit .box.lit").count() == 4
    page.locator("[data-view=explanation] tbody tr >> nth=1").hover()
    assert page.locator("[data-view=explanation] .tag.shown").count() == 1
    assert violations(page) == []
    assert misplaced(page) == []


def test_gallery_can_be_asked_again(toured: tuple[Path, Result]) -> None:
    with Gallery.open(toured[0] / "gallery") as gallery:
        assert len(gallery) == SCENES
        assert Path(gallery.rows()[0].metadata["path"]).is_file()
        assert Path(str(gallery.settings.bundle)).samefile(toured[0] / "bundle")


def test_a_rerun_keeps_scenes_bundle_and_engines(toured: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = toured
    bundle = out / "bundle"

    def again(checkpoint: Path, fresh: Path, **options: object) -> None:
        shutil.copytree(bundle / "graphs", fresh / "graphs")
        shutil.copy(bundle / "manifest.json", fresh)

    monkeypatch.setattr(steps, "export_bundle", again)
    assert steps.draw_scenes(out / "data", SCENES, quiet) is False
    assert steps.export(bundle, quiet) is False
    assert len(read_sidecars(bundle).engines) == 1, "the engine is still there"
    assert not list(out.glob(".*fresh*"))


def quiet(what: str, done: int, total: int) -> None:
    return


def test_the_caption_asked_is_short_and_names_two_pictures() -> None:
    captions = ["a dog " * 10, "a cat and a dog", "a cat"]
    mentions = [[{}, {}], [{}, {}], [{}]]
    choose: Callable[..., int] = steps.choose_caption
    assert choose(captions, mentions) == 1
    assert choose(captions[2:], mentions[2:]) == 0
