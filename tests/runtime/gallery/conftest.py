"""Small galleries of made-up embeddings."""

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.gallery import GallerySettings, GalleryWriter, split_gallery
from chan_rt.runtime.gallery.kernels.base import Kernel
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.store.catalogue import CATALOGUE, OLD_CATALOGUE, FileRecord, read_catalogue
from chan_rt.runtime.gallery.store.files import SEGMENTS, MappedFile
from chan_rt.runtime.gallery.store.old import _sum
from chan_rt.runtime.gallery.store.rows import MappedRows

DIM = 24
KERNELS = ("onnxruntime", "numpy")


def embeddings(seed: int, rows: int, longest: int = 6, even: bool = False, dim: int = DIM) -> Embeddings:
    """Unit vectors with random lengths, from a seed."""
    rng = np.random.default_rng(seed)
    lengths = np.full(rows, longest) if even else rng.integers(1, longest + 1, rows)
    vectors = rng.standard_normal((rows, longest, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[np.arange(longest) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths.astype(np.int32))


def settings(**changes: object) -> GallerySettings:
    """Settings of a small gallery of images."""
    values: dict = {"kind": "images", "dim": DIM, "alignment": AlignmentConfig(), "model": "m" * 64, **changes}
    return GallerySettings(**values)


def need_scan(name: str) -> None:
    """Skip the test where this CPU's products of bytes saturate, so that onnxruntime's scan is refused."""
    try:
        open_kernel(name)
    except BackendError as error:
        if "saturate" not in str(error):
            raise
        pytest.skip(str(error))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is parametrized by a scan that is refused here."""
    if (
        isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and "onnxruntime" in item.callspec.params.values()
    ):
        need_scan("onnxruntime")


@pytest.fixture
def gallery_path(tmp_path: Path) -> Path:
    """A gallery of 30 rows in 3 segments; row i has id `i` and metadata {"n": i, "even": ...}."""
    path = tmp_path / "gallery"
    with GalleryWriter.create(path, settings()) as writer:
        for i in range(0, 30, 10):
            ids = [str(n) for n in range(i, i + 10)]
            writer.add(ids, embeddings(i, 10), [{"n": n, "even": n % 2 == 0} for n in range(i, i + 10)])
    return path


@pytest.fixture
def shards(gallery_path: Path, tmp_path: Path) -> Path:
    """The gallery of 30 rows, in 3 shards of 10."""
    split_gallery(gallery_path, tmp_path / "shards", 3)
    return tmp_path / "shards"


@pytest.fixture
def make_read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The function that makes the disk one that is read only, which root would not notice by permission bits."""
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *args, **kwargs)

    return lambda: monkeypatch.setattr(os, "open", refuse)


@pytest.fixture
def make_embeddings() -> Callable[..., Embeddings]:
    """The function that makes embeddings from a seed."""
    return embeddings


@pytest.fixture
def make_settings() -> Callable[..., GallerySettings]:
    """The function that makes settings."""
    return settings


OLD_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (
    number INTEGER PRIMARY KEY, place INTEGER NOT NULL UNIQUE,
    file TEXT NOT NULL, length INTEGER NOT NULL, sums BLOB NOT NULL,
    fast_file TEXT, fast_length INTEGER, fast_sums BLOB,
    rows INTEGER NOT NULL, live BLOB NOT NULL, sum INTEGER NOT NULL);
CREATE TABLE rows (
    id TEXT PRIMARY KEY, segment INTEGER NOT NULL, position INTEGER NOT NULL,
    metadata TEXT NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX place ON rows (segment, position);
"""


def give_old_catalogue(path: Path, ids: Sequence[Any] | None = None) -> None:
    """Give a gallery the catalogue of schema 2; ids: to store as that version did, in place of the rows' own."""
    catalogue = read_catalogue(path)[1]
    given = iter(ids or ())
    connection = sqlite3.connect(path / OLD_CATALOGUE)
    connection.executescript(OLD_TABLES)
    meta = {"schema": 2, "settings": catalogue.settings.to_dict(), "generation": catalogue.generation}
    if catalogue.prepared is not None:
        file = catalogue.prepared.file
        record = {"name": file.name, "length": file.length, "sums": file.sums.hex()}
        meta["fast"] = {"file": record, "share": 0.1, "recall": None, "k": 10, "queries": 0, "planes": 1}
    for key, value in meta.items():
        text = json.dumps(value, sort_keys=True)
        connection.execute("INSERT INTO meta VALUES (?, ?, ?)", (key, text, _sum(key, text)))
    for number, segment in enumerate(catalogue.segments, 1):
        files = (*_fields(segment.vectors), *(_fields(segment.prepared) if segment.prepared else (None, None, None)))
        fields = (number, number, *files, len(segment.live), np.packbits(segment.live).tobytes())
        connection.execute(f"INSERT INTO segments VALUES ({','.join('?' * 11)})", (*fields, _sum(*fields)))
        rows = MappedRows(MappedFile(path / SEGMENTS, segment.rows), len(segment.live))
        for position in np.flatnonzero(segment.live).tolist():
            id, metadata = rows.text(position)
            values = (next(given, id), number, position, metadata)
            connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (*values, _sum(*values)))
        (path / SEGMENTS / segment.rows.name).unlink()
    connection.commit()
    connection.close()
    (path / CATALOGUE).unlink()


def _fields(record: FileRecord) -> tuple[str, int, bytes]:
    return record.name, record.length, record.sums


@pytest.fixture
def downgrade() -> Callable[..., None]:
    """The function that gives a gallery the catalogue of schema 2."""
    return give_old_catalogue


@pytest.fixture(scope="session", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each scan kernel."""
    return open_kernel(request.param)
