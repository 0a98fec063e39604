"""Many small additions: few segments, each row written again seldom, and no descriptor held."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime.gallery import Gallery, GalleryWriter, verify_gallery
from chan_rt.runtime.gallery.store.merging import GROWTH, groups_to_compact, segments_to_fold


def run(additions: list[int], limit: float) -> tuple[list[float], list[float], float]:
    """Sizes of the segments at the end, those when there were most, and bytes written for each byte added."""
    sizes: list[float] = []
    written = 0.0
    most: list[float] = []
    for new in additions:
        count = segments_to_fold(sizes, new, limit)
        kept, folded = (sizes[:-count], sizes[-count:]) if count else (sizes, [])
        assert sum(folded) + new <= max(limit, new)
        assert not folded or sum(folded) + new >= GROWTH * max(folded)
        sizes = [*kept, sum(folded) + new]
        written += sizes[-1]
        most = max(most, sizes, key=len)
    return sizes, most, written / sum(additions)


def test_equal_additions_leave_few_segments() -> None:
    for count in (10, 100, 1100, 10_000):
        _, most, amplification = run([1] * count, 1e12)
        levels = 1 + np.log(count) / np.log(GROWTH)
        assert len(most) <= GROWTH * levels
        assert amplification <= levels


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
@settings(deadline=None, max_examples=200)
def test_any_additions_leave_few_segments(additions: list[int]) -> None:
    _, most, amplification = run(additions, 1e12)
    levels = 1 + np.log(sum(additions) / min(additions)) / np.log(GROWTH)
    assert len(most) <= 2 * GROWTH * levels
    assert amplification <= levels


def test_adversarial_additions_leave_few_segments() -> None:
    for additions in (
        [size for _ in range(300) for size in (1, 1000)],
        [size for _ in range(300) for size in (1000, 1, 1)],
        [2**i for i in range(40)],
        [2**i for i in reversed(range(40))],
        [3**i for i in reversed(range(25))] * 8,
        [1, 3, 1, 3, 12, 1, 3, 1, 3, 12, 48] * 60,
    ):
        _, most, amplification = run(additions, 1e15)
        levels = 1 + np.log(sum(additions) / min(additions)) / np.log(GROWTH)
        assert len(most) <= 2 * GROWTH * levels
        assert amplification <= levels


def test_segments_fill_up_to_the_limit() -> None:
    """262,000 pictures as `chan index` adds them: 1,024 commits of 47 MB, never merged by hand."""
    sizes, _, amplification = run([47 << 20] * 1024, 512 << 20)
    assert len(sizes) <= 4 * 1024 * 47 / 512
    assert amplification <= 2
    assert len(list(groups_to_compact(sizes, 512 << 20))) <= 1 + 1024 * 47 / 376


MANY = """
import resource, sys
from pathlib import Path
from chan_rt.runtime.gallery import Gallery, GalleryWriter
sys.path.insert(0, sys.argv[1])
from conftest import embeddings, settings
path, count = Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
with GalleryWriter.create(path, settings()) as writer:
    for i in range(count):
        writer.add([str(i)], embeddings(i, 1), [{"n": i}])
with Gallery.open(path, scan="numpy", threads=1) as gallery:
    assert len(gallery.search(embeddings(3, 1), 5)[0].hits) == 5
"""

FEW = """
import os, resource, sys
from pathlib import Path
from chan_rt.runtime.gallery import Gallery, GalleryWriter, verify_gallery
sys.path.insert(0, sys.argv[1])
from conftest import embeddings
path = Path(sys.argv[2])
Gallery.open(path, scan="numpy", threads=1).close()  # what Python itself opens when it first runs something
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
before = len(os.listdir("/proc/self/fd"))
with Gallery.open(path, scan="numpy", threads=1) as gallery:
    assert len(os.listdir("/proc/self/fd")) == before, "a gallery holds descriptors"
    rows = len(gallery)
    assert len(gallery.search(embeddings(3, 1), 5)[0].hits) == 5
    with GalleryWriter.open(path) as writer:
        writer.delete(["0"])
        writer.add(["0"], embeddings(0, 1))
        writer.prepare(embeddings(5, 8))
        writer.compact()
        assert len(os.listdir("/proc/self/fd")) == before + 1, "a writer holds its lock and nothing else"
    assert len(gallery) == rows
    assert len(gallery.search(embeddings(3, 1), 5)[0].hits) == 5
assert verify_gallery(path) == []
"""


def child(code: str, *arguments: object) -> None:
    command = [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_1100_additions_of_one_row_under_usual_limits(tmp_path: Path) -> None:
    child(MANY, tmp_path / "g", 1100)
    with Gallery.open(tmp_path / "g", threads=1) as gallery:
        assert [row.id for row in gallery.rows()] == [str(i) for i in range(1100)]
        assert gallery.info()["segments"] <= 20
    assert verify_gallery(tmp_path / "g") == []
    child(FEW, tmp_path / "g")


def test_40_segments_under_32_descriptors(tmp_path: Path, make_embeddings, make_settings) -> None:
    """Segments too large to merge: each has its files, and none of them stays open."""
    from chan_rt.runtime.gallery import folder_writer

    limit = folder_writer.SEGMENT_BYTES
    folder_writer.SEGMENT_BYTES = 1
    try:
        with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
            writer.add([str(i) for i in range(40)], make_embeddings(1, 40))
    finally:
        folder_writer.SEGMENT_BYTES = limit
    assert len(list((tmp_path / "g" / "segments").iterdir())) == 80
    child(FEW, tmp_path / "g")


def test_mappings_go_with_the_gallery(gallery_path: Path, make_embeddings) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(gallery_path))

    with Gallery.open(gallery_path) as gallery:
        assert mapped() == 6
        gallery.search(make_embeddings(1, 1))
        with GalleryWriter.open(gallery_path) as writer:
            writer.compact()
        gallery.search(make_embeddings(1, 1))
        assert mapped() == 2, "the old files are mapped no more"
    del gallery
    assert mapped() == 0
