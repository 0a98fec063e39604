"""Rows that cannot be encoded are found among those that can, counted and limited."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies

from chan_rt.runtime import (
    Embeddings,
    Gallery,
    GalleryWriter,
    InputError,
    Matcher,
    gallery_settings,
    index_source,
    open_matcher,
    open_source,
    open_writer,
    text_source,
)
from chan_rt.runtime.indexing.sources import each_row, picture_source
from chan_rt.runtime.skipped import Skipped, SkippedItem


def rows_as_vectors(rows: Sequence[int]) -> Embeddings:
    return Embeddings(np.array(rows, np.float32).reshape(-1, 1, 1), np.ones(len(rows), np.int32), "images")


@given(bad=strategies.sets(strategies.integers(0, 63)), count=strategies.integers(1, 64))
def test_bad_rows_are_found_with_few_calls(bad: set[int], count: int) -> None:
    calls = 0

    def encode(matcher: Any, rows: Sequence[int]) -> Embeddings:
        nonlocal calls
        calls += 1
        wrong = [row for row in rows if row in bad]
        if wrong:
            raise InputError(f"row {wrong[0]} is bad")
        return rows_as_vectors(rows)

    ids = [f"id {row}" for row in range(count)]
    found = each_row(ids, encode)(None, range(count))  # type: ignore[arg-type]
    wrong = [row for row in range(count) if row in bad]
    assert list(found.rows) == [row for row in range(count) if row not in bad]
    assert found.problems == [SkippedItem(f"id {row}", f"row {row} is bad") for row in wrong]
    kept = [] if found.embeddings is None else found.embeddings.vectors.ravel().tolist()
    assert kept == list(found.rows)
    assert calls <= 1 + 2 * len(wrong) * 7


def test_a_limit_lets_as_many_pass_and_stops_at_the_next() -> None:
    skipped = Skipped(2)
    skipped.add(SkippedItem("a", "x"))
    skipped.add(SkippedItem("b", "y"))
    with pytest.raises(InputError, match="at most 2 items may be unreadable, and this is one more: c: z"):
        skipped.add(SkippedItem("c", "z"))
    with pytest.raises(InputError, match="max_bad must be 0 or more, got -1"):
        Skipped(-1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    (tmp_path / "data" / "precomp").mkdir(parents=True)
    regions = rng.standard_normal((6, 4, 12)).astype(np.float32)
    regions[2, 1, 3] = np.nan
    np.save(tmp_path / "data" / "precomp" / "test_ims.npy", regions)
    lines = "".join("red apple\n" for _ in range(30))
    (tmp_path / "data" / "precomp" / "test_caps.txt").write_text(lines)
    return tmp_path / "data"


def test_an_image_that_is_not_finite_is_left_out(make_small_model: Callable, data: Path, tmp_path: Path) -> None:
    bundle = make_small_model().bundle
    with Matcher.open(bundle) as matcher, open_writer(tmp_path / "g", gallery_settings(bundle)) as writer:
        done = index_source(writer, matcher, open_source([data]))
        (lost,) = done.skipped
        assert (done.encoded, lost.item) == (5, "test/2")
        assert "must be finite" in lost.reason
        again = index_source(writer, matcher, open_source([data]))
        assert (again.encoded, again.unchanged, again.skipped) == (0, 5, done.skipped)
    with pytest.raises(InputError, match="at most 0 items"):
        write(bundle, tmp_path / "strict", data)


def write(bundle: Path, out: Path, data: Path) -> None:
    with Matcher.open(bundle) as matcher, open_writer(out, gallery_settings(bundle)) as writer:
        index_source(writer, matcher, open_source([data]), max_bad=0)


def test_features_of_another_width_are_one_mistake_not_many(
    make_small_model: Callable, data: Path, tmp_path: Path
) -> None:
    np.save(data / "precomp" / "test_ims.npy", np.zeros((6, 4, 7), np.float32))
    with pytest.raises(InputError, match="7 wide and the bundle reads 12"):
        write(make_small_model().bundle, tmp_path / "g", data)


def test_a_source_of_the_other_kind_is_refused(make_small_model: Callable, tmp_path: Path) -> None:
    bundle = make_small_model().bundle
    (tmp_path / "lines.txt").write_text("red apple\n")
    source = text_source([tmp_path / "lines.txt"])
    with Matcher.open(bundle) as matcher, open_writer(tmp_path / "g", gallery_settings(bundle)) as writer:
        with pytest.raises(InputError, match="kind must be this gallery's images, got captions"):
            index_source(writer, matcher, source)
        assert len(writer) == 0
    with pytest.raises(InputError, match="kind must be this gallery's images, got captions"):
        open_writer(tmp_path / "g", gallery_settings(bundle, "captions"))
    with GalleryWriter.open(tmp_path / "g"):
        pass  # the writer that was refused gave its lock back


def test_a_gallery_opens_its_bundle_at_its_precision(make_small_model: Callable, tmp_path: Path) -> None:
    bundle = make_small_model(precisions=("fp32", "fp16")).bundle
    settings = gallery_settings(bundle, precision="fp16")
    with (
        open_writer(tmp_path / "g", settings) as writer,
        Matcher.open(bundle, "onnxruntime", "fp16") as matcher,
    ):
        writer.add(["a"], matcher.encode_images(np.ones((1, 2, 12), np.float32)))
    with Gallery.open(tmp_path / "g") as gallery:
        with open_matcher(gallery) as matcher:
            assert matcher.precision == "fp16"
        with pytest.raises(InputError, match="the gallery's bundle nowhere is not there"):
            open_matcher(gallery, "nowhere")


@pytest.mark.parametrize("source", [picture_source, text_source])
def test_one_path_is_no_list_of_paths(source: Callable) -> None:
    with pytest.raises(InputError, match=r"paths must be a list, got one path: write \['photos'\]"):
        source("photos")
