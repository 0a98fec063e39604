"""The galleries of the GPU benchmark are those that a user has: segments, plans and levels as the writer makes them."""

from pathlib import Path

import numpy as np
import pytest

from chan_rt.bench import gpu as bench
from chan_rt.bench.gpu_images import Case, make_case, segment_rows
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import GallerySettings, GalleryWriter
from chan_rt.runtime.gallery.proof.rows import code_rows


def test_a_case_is_the_same_as_segments_and_as_one_part(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chan_rt.bench.gpu_images.SEGMENT_BYTES", 7 * 4 * 64 * 4)
    several, one = Case.load(case), Case.load(case, one_part=True)
    assert [len(part.starts) - 1 for part in several.images.parts] == [7, 7, 7, 7, 2]
    assert len(one.images.parts) == 1
    assert several.images.count == one.images.count == 30
    assert several.images.size("int8") == 30 * 4 * 64
    stored = np.concatenate([part.stored for part in several.images.parts])
    np.testing.assert_array_equal(stored, one.images.parts[0].stored)
    assert one.images.parts[0].blocks.shape[1] > 0, "its bounds are the narrow ones"
    assert len(one.truth) == len(one.captions) == 6


def test_segments_are_cut_as_the_writer_cuts_them(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bench.gpu_images", "runtime.gallery.folder_writer"):
        monkeypatch.setattr(f"chan_rt.{module}.SEGMENT_BYTES", 7 * 4 * 64 * 4 + 1000)
    vectors = np.random.default_rng(0).standard_normal((30, 4, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    settings = GallerySettings("images", 64, AlignmentConfig(), model="test")
    with GalleryWriter.create(tmp_path / "gallery", settings) as writer:
        writer.add([str(i) for i in range(30)], Embeddings(vectors, np.full(30, 4, np.int32)))
        written = [len(segment.live) for segment in writer._folders[0].catalogue.segments]
    assert written == [len(part.starts) - 1 for part in Case.load(case).images.parts] == [7, 7, 7, 7, 2]


def test_a_full_segment_has_as_many_images_as_the_documents_say() -> None:
    assert segment_rows(bench.REGIONS, bench.DIM) == 3640


def test_a_case_keeps_the_levels_of_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chan_rt.bench.gpu_images.SEGMENT_BYTES", 7 * 3 * 192 * 4)
    make_case(tmp_path, 12, 2, 3, 4, 192)
    parts = Case.load(tmp_path).images.parts
    assert [len(part.starts) - 1 for part in parts] == [7, 5]
    for part in parts:
        assert part.plan is not None
        assert part.coded is not None
        again = code_rows(np.asarray(part.exact, np.float32), part.starts, part.plan)
        assert again is not None
        for name in ("first", "second", "loose"):
            np.testing.assert_array_equal(getattr(part.coded, name), getattr(again, name))
