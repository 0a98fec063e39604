"""Galleries from elsewhere, whose files agree with each other and are made to mislead: an error or an answer, no crash.

Every change here is followed by new sums and a new digest, so that only the checks of what the bytes say are left.
"""

import json
import os
import random
import re
import signal
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.errors import ChanError, GalleryCorrupt, GalleryError
from chan_rt.runtime.gallery import Gallery, GalleryWriter, verify_gallery
from chan_rt.runtime.gallery.proof.prefix import SearchPlan
from chan_rt.runtime.gallery.store.array_file import PAGE, FileRecord
from chan_rt.runtime.gallery.store.catalogue import (
    CATALOGUE,
    OLD_CATALOGUE,
    SCHEMA,
    SegmentRecord,
    read_catalogue,
)
from chan_rt.runtime.gallery.store.commit import NewFiles, publish
from chan_rt.runtime.gallery.store.files import SEGMENTS, MappedFile
from chan_rt.runtime.gallery.store.header import digest_of
from chan_rt.runtime.gallery.store.segments import Segment
from chan_rt.runtime.progress import WorkCounter

DEEP = json.loads("[" * 900 + "]" * 900)
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53, 2**63, 10**30, 0.5, -0.5, 1e308),
    *("", "x", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "AAAA", [], [1], [[]], {}, {"a": 1}, DEEP),
]


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Fails the test where the block takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def make_embeddings(make_embeddings: Callable[..., Any]) -> Callable[..., Any]:
    """Wide enough that preparing makes levels."""
    return partial(make_embeddings, dim=192)


@pytest.fixture
def path(tmp_path: Path, make_embeddings, make_settings) -> Path:
    """A gallery of two segments, with a deleted row, prepared, with both levels."""
    with GalleryWriter.create(tmp_path / "g", make_settings(dim=192)) as writer:
        writer.add([str(i) for i in range(30)], make_embeddings(1, 30), [{"n": i} for i in range(30)])
        writer.add([f"b{i}" for i in range(12)], make_embeddings(2, 12), [{"n": i} for i in range(12)])
        writer.delete(["b3"])
        writer.prepare()
    return tmp_path / "g"


def use(path: Path, queries, scan: str = "numpy") -> list[str]:
    """Do with a gallery what people do; returns the errors' words. Anything but a ChanError fails the test."""
    errors: list[str] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except ChanError as error:
            errors.append(str(error))

    def search() -> None:
        with Gallery.open(path, scan=scan, threads=1) as gallery:
            gallery.search(queries, 5)
            gallery.search(queries, 50, where={"n": 3})
            gallery.search(queries, 50, ids=[row.id for row in gallery.rows()[:1]])
            gallery.info()

    def change() -> None:
        with GalleryWriter.open(path) as writer:
            writer.add(["new"], queries[0], overwrite=True)
            writer.delete(["new"])
            writer.compact()

    def skip() -> None:
        with Gallery.open(path, scan=scan, threads=1, damaged="skip") as gallery:
            gallery.search(queries, 5)

    with in_time(30):
        attempt(search)
        errors += verify_gallery(path)
        attempt(skip)
        attempt(change)
    return errors


# -- the catalogue


def set_body(path: Path, body: object) -> None:
    """Give the catalogue another body, under a digest that fits."""
    file = path / CATALOGUE
    line = file.read_bytes().split(b"\n", 1)[0].decode().split()
    text = json.dumps(body, ensure_ascii=True).encode()
    digest = digest_of(SCHEMA, line[2], int(line[3]), text)
    file.write_bytes(f"{f'chan-gallery {SCHEMA} {line[2]} {line[3]} {digest}':<127}\n".encode() + text + b"\n")


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value in a JSON document."""
    yield at
    if isinstance(node, dict | list) and len(at) < 8:
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from places(node[key], (*at, key))


def changed(node: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The document with another value in one place."""
    if not at:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[at[0]] = changed(node[at[0]], at[1:], value)
    return copy


def test_every_value_of_the_catalogue_may_be_anything(path: Path, make_embeddings) -> None:
    """Opening refuses it, or nothing is wrong with it: 26 values in place of each of some 60."""
    body = json.loads((path / CATALOGUE).read_bytes().split(b"\n", 1)[1])
    queries, refused, tried = make_embeddings(9, 1), 0, 0
    for at in places(body):
        for value in VALUES:
            set_body(path, changed(body, at, value))
            tried += 1
            with in_time(30), suppress(ChanError):
                refused += 1
                with Gallery.open(path, scan="numpy", threads=1) as gallery:
                    gallery.search(queries, 5)
                refused -= 1
    assert tried > 1000
    assert refused > 0.9 * tried


def test_missing_and_additional_keys_of_the_catalogue_are_refused(path: Path) -> None:
    body = json.loads((path / CATALOGUE).read_bytes().split(b"\n", 1)[1])
    for at in [(), ("settings",), ("prepared",), ("segments", 0), ("segments", 0, "vectors"), ("prepared", "file")]:
        node = body
        for key in at:
            node = node[key]
        for key in node:
            set_body(path, changed(body, at, {name: value for name, value in node.items() if name != key}))
            with pytest.raises(GalleryCorrupt):
                Gallery.open(path)
        set_body(path, changed(body, at, {**node, "more": 1}))
        with pytest.raises(GalleryCorrupt):
            Gallery.open(path)


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"{" * 1000, b"nonsense", b"\xff\xfe", b"1" * 10_000, b"NaN"])
def test_a_catalogue_that_is_no_json_is_refused(path: Path, text: bytes) -> None:
    file = path / CATALOGUE
    line = file.read_bytes().split(b"\n", 1)[0].decode().split()
    digest = digest_of(SCHEMA, line[2], int(line[3]), text)
    file.write_bytes(f"{f'chan-gallery {SCHEMA} {line[2]} {line[3]} {digest}':<127}\n".encode() + text + b"\n")
    for door in (Gallery.open, GalleryWriter.open):
        with in_time(20), pytest.raises(GalleryCorrupt):
            door(path)
    assert len(verify_gallery(path)) == 1


def test_a_huge_catalogue_is_refused_before_it_is_read(path: Path) -> None:
    os.truncate(path / CATALOGUE, 1 << 40)
    with in_time(20), pytest.raises(GalleryCorrupt, match="larger than"):
        Gallery.open(path)


# -- segment files


def rewrite(path: Path, change: Callable[[dict], dict], kind: str = "vectors") -> None:
    """Give the first segment a file with other arrays, and the catalogue its length and sums."""
    catalogue = read_catalogue(path)[1]
    first, *others = catalogue.segments
    file = MappedFile(path / SEGMENTS, getattr(first, kind))
    arrays = change({name: file.read(name).copy() for name in file.names})
    files = NewFiles(path, catalogue, None)
    record: SegmentRecord = replace(first, **{kind: files.write(arrays)})
    publish(path, catalogue.followed_by(segments=(record, *others), next_file=files.next_file), None)


def put_bytes(path: Path, data: bytes, kind: str = "vectors") -> None:
    """Give the first segment a file of these bytes, and the catalogue its length and sums."""
    catalogue = read_catalogue(path)[1]
    first, *others = catalogue.segments
    name = f"{catalogue.gallery}-{catalogue.next_file}.safetensors"
    (path / SEGMENTS / name).write_bytes(data)
    sums = np.array([zlib.crc32(data[i : i + PAGE]) for i in range(0, len(data), PAGE)], "<u4").tobytes()
    record = replace(first, **{kind: FileRecord(name, len(data), sums)})
    following = catalogue.followed_by(segments=(record, *others), next_file=catalogue.next_file + 1)
    publish(path, following, None)


def put(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], dict]:
    return lambda arrays: {**arrays, name: np.ascontiguousarray(value(arrays[name]))}


def at(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def filled(array: np.ndarray) -> np.ndarray:
    return np.resize(np.frombuffer(b"[1, 2]  ", np.uint8), len(array))


def shifted(header: dict, name: str, by: int) -> dict:
    entry = header[name]
    return {**header, name: {**entry, "data_offsets": [offset + by for offset in entry["data_offsets"]]}}


ARRAYS: dict[str, tuple[str, Callable[[dict], dict]]] = {
    "starts descending": ("vectors", put("starts", lambda a: a[::-1])),
    "starts huge at the end": ("vectors", put("starts", at(-1, 10**15))),
    "starts huge in the middle": ("vectors", put("starts", at(10, 10**12))),
    "starts negative": ("vectors", put("starts", at(10, -(10**9)))),
    "starts negative at first": ("vectors", put("starts", at(0, -(10**9)))),
    "starts with an empty row": ("vectors", lambda a: {**a, "starts": np.r_[a["starts"][:-2], [a["starts"][-1]] * 2]}),
    "starts all zero": ("vectors", put("starts", np.zeros_like)),
    "starts missing": ("vectors", lambda a: {k: v for k, v in a.items() if k != "starts"}),
    "starts as floats": ("vectors", put("starts", lambda a: a.astype(np.float32))),
    "codes wider": ("vectors", put("codes", lambda a: a[: len(a) // 2 * 2].reshape(-1, 128))),
    "codes flat": ("vectors", put("codes", lambda a: a.reshape(-1))),
    "codes fewer": ("vectors", put("codes", lambda a: a[:3])),
    "fine narrow": ("vectors", put("fine", lambda a: a[:, :1])),
    "fine fewer": ("vectors", put("fine", lambda a: a[:3])),
    "fine of another type": ("vectors", put("fine", lambda a: a.astype(np.float16))),
    "fine as bytes": ("vectors", put("fine", lambda a: a.view(np.uint8))),
    "fine missing": ("vectors", lambda a: {k: v for k, v in a.items() if k != "fine"}),
    "fine NaN": ("vectors", put("fine", lambda a: np.full_like(a, np.nan))),
    "fine infinite": ("vectors", put("fine", lambda a: np.full_like(a, np.inf))),
    "scale NaN": ("vectors", put("scale", lambda a: np.full_like(a, np.nan))),
    "scale infinite": ("vectors", put("scale", lambda a: np.full_like(a, np.inf))),
    "scale negative": ("vectors", put("scale", lambda a: -a)),
    "scale short": ("vectors", put("scale", lambda a: a[:3])),
    "error negative": ("vectors", put("error", lambda a: -a)),
    "error NaN": ("vectors", put("error", lambda a: np.full_like(a, np.nan))),
    "norm NaN": ("vectors", put("norm", lambda a: np.full_like(a, np.nan))),
    "measures narrow": ("prepared", put("measures", lambda a: a[:, :1])),
    "measures wide": ("prepared", put("measures", lambda a: np.c_[a, a])),
    "measures fewer": ("prepared", put("measures", lambda a: a[:3])),
    "measures NaN": ("prepared", put("measures", lambda a: np.full_like(a, np.nan))),
    "measures negative": ("prepared", put("measures", lambda a: -a)),
    "measures missing": ("prepared", lambda a: {k: v for k, v in a.items() if k != "measures"}),
    "first level fewer": ("prepared", put("first", lambda a: a[:3])),
    "first level flat": ("prepared", put("first", lambda a: a.reshape(-1))),
    "first level missing": ("prepared", lambda a: {k: v for k, v in a.items() if k != "first"}),
    "second level fewer": ("prepared", put("second", lambda a: a[:3])),
    "second level wider": ("prepared", put("second", lambda a: np.c_[a, a])),
    "second level of another type": ("prepared", put("second", lambda a: a.astype(np.float16))),
    "loose short": ("prepared", put("loose", lambda a: a[:3])),
    "blocks in an order that is outside": ("prepared", put("order", lambda a: a + 10**9)),
    "blocks in a negative order": ("prepared", put("order", lambda a: a - 100)),
    "blocks of one row many times": ("prepared", put("order", np.zeros_like)),
    "blocks in another order": ("prepared", put("order", lambda a: a[::-1])),
    "ids outside": ("rows", put("id_starts", at(-1, 10**12))),
    "ids before": ("rows", put("id_starts", at(1, -5))),
    "metadata outside": ("rows", put("metadata_starts", at(5, 2**40))),
    "ids of fewer rows": ("rows", lambda a: {**a, "hashes": a["hashes"][:3], "order": a["order"][:3]}),
    "order outside": ("rows", put("order", lambda a: a + 10**9)),
    "order negative": ("rows", put("order", lambda a: a - 100)),
    "ids that are no text": ("rows", put("id_bytes", lambda a: np.full_like(a, 0xFF))),
    "metadata that is no JSON": ("rows", put("metadata_bytes", lambda a: np.full_like(a, ord("{")))),
    "metadata that is a list": (
        "rows",
        put("metadata_bytes", lambda a: np.resize(np.frombuffer(b"[1, 2, 3]", "u1"), len(a))),
    ),
}


@pytest.mark.parametrize(
    ("name", "scan"),
    [
        *((name, "numpy") for name in ARRAYS),
        *((name, "auto") for name in ARRAYS if name.startswith(("starts", "codes")) or ARRAYS[name][0] == "prepared"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(path: Path, make_embeddings, name: str, scan: str) -> None:
    kind, change = ARRAYS[name]
    rewrite(path, change, kind)
    assert verify_gallery(path), "verify said nothing"
    assert use(path, make_embeddings(9, 2), scan), "nothing was said"


@pytest.mark.parametrize("name", ["error", "norm", "codes", "fine", "scale"])
def test_numbers_that_lie_crash_nothing(path: Path, make_embeddings, name: str) -> None:
    """A gallery is believed as far as its own numbers go: what they claim decides what is certified, nothing more."""
    rewrite(path, put(name, lambda a: a * 0))
    assert any("do not fit its fine copy" in text for text in verify_gallery(path))
    use(path, make_embeddings(9, 2))
    rewrite(path, put(name, lambda a: (a * 100).astype(a.dtype)))
    use(path, make_embeddings(9, 2))


def every(change: Callable[[np.ndarray], np.ndarray], column: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Changes all of an array's numbers, or one column of them."""

    def changed(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        where = copy if column is None else copy[:, column]
        where[...] = change(where)
        return copy

    return changed


def lane(norm: int) -> Callable[[np.ndarray], np.ndarray]:
    """Makes one of the norms 0 in each row of each block: four bytes of each of 16 rows lie side by side."""

    def changed(array: np.ndarray) -> np.ndarray:
        blocks = array.reshape(len(array), -1, 16, 4).copy()
        blocks[:, norm // 4, :, norm % 4] = 0
        return blocks.reshape(array.shape)

    return changed


NORMS = 9  # of each level here: of seven blocks of axes, of what no axis holds, and of the codes
FAULTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    **{f"measure {column}": ("measures", every(np.zeros_like, column)) for column in range(9)},
    "measures a little small": ("measures", every(lambda a: a * np.float32(0.999))),
    **{f"norm {norm} of the first level": ("first", lane(norm)) for norm in range(NORMS)},
    **{f"norm {norm} of the second level": ("second", every(np.zeros_like, norm)) for norm in range(NORMS)},
    "codes of the first level": ("first", every(lambda a: a ^ 64)),
    "codes of the second level": ("second", every(lambda a: a ^ 64)),
    "norms a step too small": ("second", every(lambda a: np.maximum(a, 1) - 1)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_verify_finds_levels_that_do_not_bound_their_rows(path: Path, name: str) -> None:
    """As a faulty writer would leave them, every sum being right."""
    array, change = FAULTS[name]
    rewrite(path, put(array, change), "prepared")
    (found,) = verify_gallery(path)
    what = {"measures": "codes and measures", "first": "the first level", "second": "the second level"}[array]
    assert re.search(f"segments/.*: {what} of row [0-9]+ do not fit its fine copy", found)


def test_verify_finds_levels_along_other_axes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that codes rows along axes which are not those that it keeps."""
    prepare = Segment.prepare

    def along_others(segment: Segment, plan: SearchPlan, work: WorkCounter) -> dict[str, np.ndarray]:
        others = replace(plan.axes, basis=plan.axes.basis[::-1].copy())
        return prepare(segment, replace(plan, axes=others), work)

    monkeypatch.setattr(Segment, "prepare", along_others)
    with GalleryWriter.open(path) as writer:
        writer.prepare()
    assert [re.sub(".*: | of row [0-9]+", "", text) for text in verify_gallery(path)] == [
        "codes and measures do not fit its fine copy"
    ] * 2


HEADERS: dict[str, Callable[[dict], object]] = {
    "negative offsets": lambda h: {**h, "fine": {**h["fine"], "data_offsets": [-(10**9), 0]}},
    "huge offsets": lambda h: {**h, "fine": {**h["fine"], "data_offsets": [10**15, 10**16]}},
    "offsets past the end": lambda h: {
        **h,
        "fine": {**h["fine"], "data_offsets": [x + 64 for x in h["fine"]["data_offsets"]]},
    },
    "huge shape": lambda h: {**h, "scale": {**h["scale"], "shape": [10**15]}},
    "a shape whose product overflows": lambda h: {**h, "scale": {**h["scale"], "shape": [2**40, 2**40]}},
    "an unknown type": lambda h: {**h, "fine": {**h["fine"], "dtype": "BF16"}},
    "a type that is a list": lambda h: {**h, "fine": {**h["fine"], "dtype": ["F32"]}},
    "a shape of text": lambda h: {**h, "fine": {**h["fine"], "shape": ["a"]}},
    "no shape": lambda h: {**h, "fine": {**h["fine"], "shape": []}},
    "a list": lambda h: [1, 2],
    "no array": lambda h: {},
    "a thousand arrays": lambda h: {f"a{i}": h["scale"] for i in range(500)},
    "text": lambda h: b"nonsense",
    "depth": lambda h: b"[" * 30_000,
    "codes off a cache line": lambda h: {
        **h,
        "codes": {**h["codes"], "data_offsets": [x + 8 for x in h["codes"]["data_offsets"]]},
    },
}


def with_header(data: bytes, change: Callable[[dict], object]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = change(json.loads(data[8 : 8 + size]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_do_not_fit_are_refused(path: Path, make_embeddings, name: str) -> None:
    data = (path / SEGMENTS / read_catalogue(path)[1].segments[0].vectors.name).read_bytes()
    put_bytes(path, with_header(data, HEADERS[name]))
    assert use(path, make_embeddings(9, 2))
    assert verify_gallery(path)


@pytest.mark.parametrize("size", [0, 1, 8, 2**16 - 8, 2**16 + 56, 2**31, 2**63])
def test_a_header_of_any_size_is_refused(path: Path, make_embeddings, size: int) -> None:
    put_bytes(path, size.to_bytes(8, "little") + bytes(4096))
    assert use(path, make_embeddings(9, 2))


@pytest.mark.parametrize("what", ["a pipe", "a folder", "a link", "a device", "missing", "empty"])
@pytest.mark.parametrize("kind", ["vectors", "rows", "prepared", CATALOGUE])
def test_what_is_no_regular_file_is_refused_at_once(path: Path, make_embeddings, kind: str, what: str) -> None:
    file = path / kind
    if kind != CATALOGUE:
        file = path / SEGMENTS / getattr(read_catalogue(path)[1].segments[0], kind).name
    data = file.read_bytes()
    file.unlink()
    if what == "a pipe":
        os.mkfifo(file)
    elif what == "a folder":
        file.mkdir()
    elif what == "a link":
        (path.parent / "elsewhere").write_bytes(data)
        file.symlink_to(path.parent / "elsewhere")
    elif what == "a device":
        file.symlink_to("/dev/zero")
    elif what == "empty":
        file.touch()
    if kind == CATALOGUE and what == "missing":
        with pytest.raises(GalleryError, match="is not a gallery"):
            Gallery.open(path)
        return
    assert use(path, make_embeddings(9, 2))


# -- at random


def give(text: bytes, header: dict) -> bytes:
    """In place of any header, this one."""
    return text


def fuzz(path: Path, queries, seed: int, count: int) -> int:
    """Change bytes or values of files at random, with sums that fit; returns how often something was refused."""
    choose = random.Random(seed)
    whole = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    refused = 0
    for _ in range(count):
        for file in path.rglob("*"):
            if file.is_file() and file not in whole:
                file.unlink()
        for file, data in whole.items():
            file.write_bytes(data)
        kind = choose.choice(["catalogue", "header", "bytes", "cut", "raw"])
        if kind == "catalogue":
            body = json.loads(whole[path / CATALOGUE].split(b"\n", 1)[1])
            for _ in range(choose.randint(1, 3)):
                body = changed(body, choose.choice(list(places(body))), choose.choice(VALUES))
            set_body(path, body)
        elif kind == "raw":
            data = bytearray(whole[path / CATALOGUE])
            for _ in range(choose.randint(1, 8)):
                data[choose.randrange(len(data))] = choose.randrange(256)
            (path / CATALOGUE).write_bytes(data)
        else:
            part = choose.choice(["vectors", "rows", "prepared"])
            record = getattr(read_catalogue(path)[1].segments[0], part)
            data = bytearray(whole[path / SEGMENTS / record.name])
            if kind == "cut":
                del data[choose.randrange(64, len(data)) :]
            elif kind == "bytes":
                for _ in range(choose.choice([1, 4, 64])):
                    data[choose.randrange(len(data))] = choose.choice([0, 255, choose.randrange(256)])
            else:
                size = int.from_bytes(data[:8], "little")
                header = json.loads(data[8 : 8 + size])
                place, value = choose.choice(list(places(header))), choose.choice(VALUES[:-1])
                text = json.dumps(changed(header, place, value)).encode()
                data = bytearray(with_header(bytes(data), partial(give, text)))
            put_bytes(path, bytes(data), part)
        refused += bool(use(path, queries, choose.choice(["numpy", "auto"])))
    return refused


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("seed", "count"), [(1, 80), *(pytest.param(s, 5000, marks=pytest.mark.nightly) for s in range(2, 22))]
)
def test_random_changes_are_refused_or_harmless(path: Path, make_embeddings, seed: int, count: int) -> None:
    """10^5 of them every night."""
    assert fuzz(path, make_embeddings(9, 1), seed, count) > count / 3


# -- schema 2

SQL = {
    "a view in place of the rows": (
        "ALTER TABLE rows RENAME TO r2",
        "CREATE VIEW rows AS SELECT id, segment, position, metadata, sum FROM r2",
    ),
    "an endless view": (
        "ALTER TABLE segments RENAME TO s2",
        "CREATE VIEW segments AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT number, "
        "place + x AS place, file, length, sums, fast_file, fast_length, fast_sums, rows, live, sum FROM s2, c",
    ),
    "a trigger": ("CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM rows; END",),
    "a table less": ("DROP TABLE rows",),
    "a column more": ("ALTER TABLE segments ADD COLUMN evil TEXT",),
    "a column less": ("ALTER TABLE segments DROP COLUMN fast_sums",),
    "a table more": ("CREATE TABLE evil (x)",),
    "sums that are text": ("UPDATE rows SET sum = 'x'",),
    "metadata that is no text": ("UPDATE rows SET metadata = x'fffe'",),
    "no settings": ("DELETE FROM meta WHERE key = 'settings'",),
    "no schema": ("DELETE FROM meta WHERE key = 'schema'",),
    "rows of no segment": ("UPDATE rows SET segment = segment + 77",),
    "a length of text": ("UPDATE segments SET length = 'abc'",),
    "a name that leaves the gallery": ("UPDATE segments SET file = '../../outside.safetensors'",),
}


@pytest.mark.parametrize("name", SQL)
def test_hostile_catalogues_of_schema_2_are_refused(path: Path, make_embeddings, downgrade, name: str) -> None:
    downgrade(path)
    connection = sqlite3.connect(path / OLD_CATALOGUE, isolation_level=None)
    for statement in SQL[name]:
        connection.execute(statement)
    connection.close()
    for door in (Gallery.open, GalleryWriter.open):
        with in_time(30), pytest.raises(GalleryError):
            door(path)
    if name != "no schema":
        with in_time(30):
            assert verify_gallery(path)


def test_random_bytes_in_a_catalogue_of_schema_2(path: Path, make_embeddings, downgrade) -> None:
    downgrade(path)
    file = path / OLD_CATALOGUE
    whole, choose = file.read_bytes(), random.Random(5)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(choose.choice([1, 10, 100])):
            data[choose.randrange(len(data))] = choose.randrange(256)
        file.write_bytes(data)
        with in_time(30), suppress(ChanError), Gallery.open(path, scan="numpy", threads=1) as gallery:
            gallery.search(make_embeddings(9, 1), 5)
        with in_time(30):
            verify_gallery(path)
