"""A gallery in shards answers as one gallery of all rows does, whatever was done to both, to the bit."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import (
    Gallery,
    GallerySettings,
    GalleryWriter,
    ShardedWriter,
    folder_writer,
    merge_gallery,
    split_gallery,
)
from chan_rt.runtime.gallery.store.rows import Relabel

DIM = 16


def rows_of(rng: np.random.Generator, count: int, data: str) -> Embeddings:
    """Rows whose scores tie, or nearly tie, or are far apart."""
    lengths = rng.integers(1, 4, count).astype(np.int32)
    vectors = rng.standard_normal((count, 3, DIM)).astype(np.float32)
    if data == "ties":
        vectors = np.sign(vectors)
    elif data == "duplicates":
        vectors, lengths = np.repeat(vectors[:1], count, axis=0), np.repeat(lengths[:1], count)
    elif data == "near":
        vectors = np.nextafter(vectors[:1], np.float32(2) * np.sign(vectors)).astype(np.float32)
    vectors[np.arange(3) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths)


def plain(results: Any) -> list[Any]:
    """All that an answer says, but for how much was read."""
    return [
        (
            one.certified,
            one.reason,
            one.rows,
            [(h.id, h.score, h.metadata, h.word_regions.tolist(), h.word_scores.tolist()) for h in one.hits],
        )
        for one in results
    ]


def check_same(one: Path, many: Path, queries: Embeddings, k: int, scan: Any = "auto", **choice: Any) -> None:
    with Gallery.open(one, threads=1, scan=scan) as whole, Gallery.open(many, threads=1, scan=scan) as shards:
        assert len(shards) == len(whole)
        assert shards.rows() == whole.rows()
        expected = plain(whole.search(queries, k, **choice))
        assert plain(shards.search(queries, k, **choice)) == expected


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    data=st.sampled_from(["ties", "duplicates", "near", "random"]),
    kind=st.sampled_from(["images", "captions"]),
    coding=st.sampled_from(["VHA", "THA", "VSA"]),
    pooling=st.sampled_from(["Max", "Mean", "Sum", "LSE", "Softmax"]),
    fine=st.sampled_from(["float32", "fixed16", "float16"]),
    scan=st.sampled_from(["auto", "auto", "numpy"]),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=2),
)
def test_answers_are_those_of_one_gallery(seed, data, kind, coding, pooling, fine, scan, cuts) -> None:
    rng = np.random.default_rng(seed)
    made = GallerySettings(kind, DIM, AlignmentConfig(coding, pooling, 0.1, 0.1), "m", fine)
    count = int(rng.choice([8, 20, 60]))
    with TemporaryDirectory() as scratch:
        one, many = Path(scratch, "one"), Path(scratch, "many")
        with GalleryWriter.create(one, made) as writer:
            for part in np.array_split(np.arange(count), 3):
                metadata = [{"n": int(i), "even": bool(i % 2 == 0)} for i in part]
                writer.add([f"r{i}" for i in part], rows_of(rng, len(part), data), metadata)
            gone = [f"r{i}" for i in rng.permutation(count)[: rng.integers(0, count - 7)]]
            writer.delete(gone)
            if fine != "none" and rng.integers(2):
                writer.prepare(rows_of(rng, 4, data))
        split_gallery(one, many, cuts[0])
        queries = rows_of(rng, int(rng.choice([1, 3, 70])), data)
        kinds = {"same_kind": True}
        k = int(rng.choice([1, 2, 5, count, count + 3]))
        check_same(one, many, queries, k, scan, **kinds)
        check_same(one, many, queries, k, scan, where={"even": True}, **kinds)
        left = [f"r{i}" for i in range(count) if f"r{i}" not in gone]
        check_same(one, many, queries, k, scan, ids=left[:: int(rng.integers(1, 4))], **kinds)
        with Gallery.open(one) as whole:
            scores = [result.hits[-1].score for result in whole.search(queries, min(k, 3), **kinds)]
        check_same(one, many, queries, k, scan, at_least=scores, **kinds)
        for shards in cuts[1:]:
            with ShardedWriter.open(many) as sharded:
                sharded.rebalance(shards)
            check_same(one, many, queries, k, scan, **kinds)
        merge_gallery(many, Path(scratch, "merged"))
        check_same(one, Path(scratch, "merged"), queries, k, scan, **kinds)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), data=st.sampled_from(["ties", "duplicates", "random"]), small=st.booleans())
def test_changes_do_what_they_do_to_one_gallery(seed: int, data: str, small: bool) -> None:
    rng = np.random.default_rng(seed)
    made = GallerySettings("images", DIM, AlignmentConfig(), "m")
    before, folder_writer.SEGMENT_BYTES = folder_writer.SEGMENT_BYTES, 3000 if small else folder_writer.SEGMENT_BYTES
    try:
        with TemporaryDirectory() as scratch:
            one, many = Path(scratch, "one"), Path(scratch, "many")
            with GalleryWriter.create(one, made) as writer:
                writer.add([f"r{i}" for i in range(30)], rows_of(rng, 30, data), [{"n": i} for i in range(30)])
            split_gallery(one, many, 3)
            queries = rows_of(rng, 3, data)
            with GalleryWriter.open(one) as whole, ShardedWriter.open(many) as shards:
                for step in range(8):
                    change_both(rng, whole, shards, data, step)
                    assert shards.rows() == whole.rows()
                    assert len(shards) == len(whole)
                    assert shards.roots == whole.roots
                    check_same(one, many, queries, 7, same_kind=True)
            with Gallery.open(many) as gallery:
                assert gallery.verify() == []
    finally:
        folder_writer.SEGMENT_BYTES = before


def change_both(rng: np.random.Generator, whole: GalleryWriter, shards: ShardedWriter, data: str, step: int) -> None:
    """Make one change of a random kind to both galleries."""
    ids = [row.id for row in whole.rows()]
    some = rng.permutation(ids)[: rng.integers(1, 6)].tolist()
    change = rng.choice(["add", "overwrite", "delete", "relabel", "compact", "prepare", "rebalance"])
    if change in ("add", "overwrite"):
        given_ids = [f"s{step}-{i}" for i in range(4)] + (some if change == "overwrite" else [])
        rows = rows_of(rng, len(given_ids), data)
        for writer in (whole, shards):
            writer.add(given_ids, rows, [{"step": step}] * len(given_ids), overwrite=change == "overwrite")
    elif change == "delete" and len(ids) > 10:
        for writer in (whole, shards):
            writer.delete(some)
    elif change == "relabel":
        names = [*some[1:], some[0]] if rng.integers(2) else [f"{id}'" for id in some]  # a rotation, or new names
        changes = [Relabel(old, new, {"step": step}) for old, new in zip(some, names, strict=True)]
        for writer in (whole, shards):
            writer.relabel(changes, {"photos": f"/photos/{step}"})
    elif change == "compact":
        for writer in (whole, shards):
            writer.compact()
    elif change == "prepare":
        queries = rows_of(rng, 6, data)
        for writer in (whole, shards):
            writer.prepare(queries)
    elif change == "rebalance":
        shards.rebalance(int(rng.integers(1, 6)))


@pytest.mark.parametrize("fine", ["none"])
def test_a_gallery_of_codes_only_is_split_and_certifies_nothing(tmp_path: Path, fine: Any) -> None:
    rng = np.random.default_rng(0)
    with GalleryWriter.create(tmp_path / "one", GallerySettings("images", DIM, AlignmentConfig(), "m", fine)) as writer:
        writer.add([str(i) for i in range(20)], rows_of(rng, 20, "random"))
    split_gallery(tmp_path / "one", tmp_path / "many", 3)
    queries = rows_of(rng, 4, "random")
    check_same(tmp_path / "one", tmp_path / "many", queries, 5, same_kind=True)
    with Gallery.open(tmp_path / "many") as gallery:
        assert not any(result.certified for result in gallery.search(queries, same_kind=True))
