"""A matcher after close, in another working directory, and in the log."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.matcher import Matcher
from chan_rt.runtime.regions import Regions

ROWS = np.ones((2, 3, 12), np.float32)


@pytest.fixture
def small(make_small_model: Callable) -> Any:
    return make_small_model()


def test_every_use_after_close_says_that_the_matcher_is_closed(small: Any) -> None:
    matcher = Matcher.open(small.bundle, "onnxruntime", threads=1)
    images, texts = matcher.encode_images(ROWS), matcher.encode_texts(["a red apple"])
    matcher.close()
    matcher.close()
    uses: dict[str, Callable[[], object]] = {
        "encode_images": lambda: matcher.encode_images(ROWS),
        "encode_regions": lambda: matcher.encode_regions(Regions(ROWS, np.full(2, 3, np.int32), None)),
        "encode_texts": lambda: matcher.encode_texts(["a red apple"]),
        "score": lambda: matcher.score(images, texts),
        "align": lambda: matcher.align(images, texts),
        "explain": lambda: matcher.explain(images[0], "a red apple"),
    }
    for use in uses.values():
        with pytest.raises(BackendError, match=r"^this matcher is closed; open it again with Matcher.open$"):
            use()
    assert matcher.unknown_words("a red apple") == []
    public = {name for name, _ in inspect.getmembers(Matcher, inspect.isfunction) if not name.startswith("_")}
    assert matcher.directions("captions") is None
    needs_a_backbone, needs_no_graph = {"encode_pictures"}, {"close", "directions", "unknown_words"}
    assert public == uses.keys() | needs_a_backbone | needs_no_graph


def test_a_graph_opened_later_is_found_from_another_working_directory(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(small.bundle).parent)
    with Matcher.open(Path(small.bundle).name, "onnxruntime", threads=1) as matcher:
        monkeypatch.chdir(tmp_path)
        assert matcher.explain(matcher.encode_images(ROWS)[0], "a red apple").words  # opens alignment_map


def test_the_log_tells_what_was_opened_and_what_auto_did_not_choose(
    small: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with Matcher.open(small.bundle, "onnxruntime", threads=1):
        pass
    assert capfd.readouterr() == ("", "")  # nothing where nobody asked for a log
    with caplog.at_level(logging.INFO, logger="chan_rt"), Matcher.open(small.bundle, threads=1) as matcher:
        messages = [record.getMessage() for record in caplog.records]
    assert f"opened {small.bundle} with {matcher.backend} at fp32" in messages
    if matcher.backend == "onnxruntime":
        assert any(message.startswith("auto takes onnxruntime and not tensorrt: ") for message in messages)
