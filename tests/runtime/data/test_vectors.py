"""Embeddings of other models are read the same from every form of file, and a file that is none is refused in words."""

import json
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from chan_rt.runtime.data.parquet import write_parquet_vectors
from chan_rt.runtime.data.safetensors_file import Content, map_safetensors, write_safetensors
from chan_rt.runtime.data.vectors import open_vectors
from chan_rt.runtime.errors import InputError, MissingExtra
from chan_rt.runtime.indexing.embedding_source import embedding_source, read_embeddings

DIM = 5
LENGTHS = (3, 1, 4, 2)
Rows = list[np.ndarray]


def rows_of(dtype: Any = np.float32) -> Rows:
    rng = np.random.default_rng(3)
    return [rng.standard_normal((length, DIM)).astype(dtype) for length in LENGTHS]


def padded(rows: Rows, *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """[N, L, D] with zeros, and the mask."""
    array = np.zeros((len(rows), 6, DIM), rows[0].dtype)
    mask = np.zeros((len(rows), 6), bool)
    for number, row in enumerate(rows):
        place = slice(6 - len(row), 6) if left else slice(0, len(row))
        array[number, place], mask[number, place] = row, True
    return array, mask


def write_folder(folder: Path, rows: Rows) -> None:
    folder.mkdir()
    for number, row in enumerate(rows):
        np.save(folder / f"{number}.npy", row)


def write_lists(file: Path, rows: Rows, fixed: bool = False, **columns: Any) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    number = {np.dtype("f2"): pa.float16(), np.dtype("f4"): pa.float32(), np.dtype("f8"): pa.float64()}[rows[0].dtype]
    kind = pa.list_(pa.list_(number, DIM) if fixed else pa.list_(number))
    lists = [[list(vector) for vector in row] for row in rows]
    parquet.write_table(pa.table({"embeddings": pa.array(lists, kind), **columns}), file, row_group_size=3)


FORMS: dict[str, Callable[[Path, Rows], Any]] = {
    "padded.npy": lambda path, rows: np.save(path, padded(rows)[0]),
    "fortran.npy": lambda path, rows: np.save(path, np.asfortranarray(padded(rows, left=True)[0])),
    "padded.npz": lambda path, rows: np.savez(path, padded(rows)[0]),
    "lengths.npz": lambda path, rows: np.savez(path, embeddings=padded(rows)[0], lengths=np.array(LENGTHS)),
    "mask.npz": lambda path, rows: np.savez_compressed(path, vectors=padded(rows)[0], attention_mask=padded(rows)[1]),
    "doclens.npz": lambda path, rows: np.savez(path, embedding=np.concatenate(rows), doclens=np.array(LENGTHS, "i4")),
    "offsets.npz": lambda path, rows: np.savez(path, embeddings=np.concatenate(rows), offsets=[0, 3, 4, 8, 10]),
    "named.npz": lambda path, rows: np.savez(path, *rows),
    "named.safetensors": lambda path, rows: save_file({str(i): row for i, row in enumerate(rows)}, path),
    "mask.safetensors": lambda path, rows: save_file(
        {"embeddings": padded(rows, left=True)[0], "mask": padded(rows, left=True)[1].astype("i8")}, path
    ),
    "folder": write_folder,
    "lists.parquet": write_lists,
    "fixed.parquet": lambda path, rows: write_lists(path, rows, fixed=True),
}  # fmt: skip


def read(path: Path) -> Rows:
    return read_embeddings([path])[1].rows()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str, dtype: str) -> None:
    rows = rows_of(dtype)
    FORMS[name](tmp_path / name, rows)
    found = read(tmp_path / name)
    assert len(found) == len(rows)
    for row, kept in zip(rows, found, strict=True):
        np.testing.assert_array_equal(row.astype(np.float32), kept)
    assert embedding_source([tmp_path / name]).rounded == (["float64"] if dtype == "float64" else [])


@pytest.mark.parametrize(
    ("dtype", "rounded"),
    [(">f2", []), (">f4", []), (">f8", ["float64"]), (np.longdouble, [np.longdouble().dtype.name])],
)
def test_numbers_that_are_rounded_are_known_whatever_their_form(tmp_path: Path, dtype: Any, rounded: list[str]) -> None:
    rows = np.stack([np.concatenate(rows_of())[:4]] * 2).astype(dtype)
    np.save(tmp_path / "x.npy", rows)
    np.savez(tmp_path / "x.npz", embeddings=rows)
    np.savez(tmp_path / "named.npz", a=rows[0], b=rows[1])
    for name in ("x.npy", "x.npz", "named.npz"):
        np.testing.assert_array_equal(read(tmp_path / name)[0], rows[0].astype(np.float32))
        assert embedding_source([tmp_path / name]).rounded == rounded


@pytest.mark.parametrize("name", ["one.npy", "one.npz", "one.safetensors", "one.parquet"])
def test_one_vector_a_row(tmp_path: Path, name: str) -> None:
    vectors = np.concatenate(rows_of())
    if name == "one.npy":
        np.save(tmp_path / name, vectors)
    elif name == "one.npz":
        np.savez(tmp_path / name, embeddings=vectors)
    elif name == "one.safetensors":
        save_file({"embeddings": vectors}, tmp_path / name)
    else:
        pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        parquet.write_table(pa.table({"v": pa.array(list(vectors), pa.list_(pa.float32()))}), tmp_path / name)
    ids, found = read_embeddings([tmp_path / name])
    np.testing.assert_array_equal(found.vectors[:, 0], vectors)
    assert ids[:2] == ["one/0", "one/1"]


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    """As ColPali writes it: padded on the left, with a mask."""
    array, mask = padded(rows_of(), left=True)
    stored = torch.from_numpy(array).bfloat16()
    save_torch({"embeddings": stored, "attention_mask": torch.from_numpy(mask)}, str(tmp_path / "x.safetensors"))
    found = read(tmp_path / "x.safetensors")
    for row in range(len(LENGTHS)):
        np.testing.assert_array_equal(stored[row][torch.from_numpy(mask[row])].float().numpy(), found[row])


def test_ids_stand_beside_or_are_the_names(tmp_path: Path) -> None:
    rows = rows_of()
    flat = np.concatenate(rows)
    np.savez(tmp_path / "text.npz", embeddings=flat, lengths=LENGTHS, ids=np.array(["a", "b", "ü", "d"]))
    np.savez(tmp_path / "number.npz", embeddings=flat, lengths=LENGTHS, ids=[7, 8, 9, 10])
    np.savez(tmp_path / "bytes.npz", embeddings=flat, lengths=LENGTHS, ids=[b"e", b"f", "ß".encode(), b"h"])
    np.savez(tmp_path / "named.npz", **{f"x/{i}": row for i, row in enumerate(rows)})
    files = [tmp_path / f"{name}.npz" for name in ("text", "number", "bytes", "named")]
    source = embedding_source(files)
    assert " ".join(source.ids) == "a b ü d 7 8 9 10 e f ß h x/0 x/1 x/2 x/3"
    assert [len(row.vectors) for row in source.read() if row.vectors is not None] == list(LENGTHS) * 4


def test_a_number_among_the_rows_is_skipped(tmp_path: Path) -> None:
    """Of one name among those of rows, such as a scale."""
    (row,) = rows_of()[:1]
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "x.npz", a=row, scale=np.float32(2))
    save_file({"a": row, "scale": np.array(2, np.float32)}, tmp_path / "x.safetensors")
    np.save(tmp_path / "folder/a.npy", row)
    np.save(tmp_path / "folder/scale.npy", np.float32(2))
    for name in ("x.npz", "x.safetensors", "folder"):
        found = {read.id: read.problem for read in embedding_source([tmp_path / name]).read()}
        assert found["a"] is None
        assert found["scale"] == "vectors: must be vectors [L, D], neither 0, or one vector [D], got []"


def test_a_folder_of_shards_is_read_in_order(tmp_path: Path) -> None:
    for shard in range(3):
        np.save(tmp_path / f"{shard}.npy", padded(rows_of())[0] * (shard + 1))
    ids, found = read_embeddings([tmp_path])
    assert ids[::4] == ["0/0", "1/0", "2/0"]
    np.testing.assert_array_equal(found.rows()[4], rows_of()[0] * 2)


def test_files_are_mapped_once_whatever_the_number_of_rows(tmp_path: Path) -> None:
    """A mapped file holds a file descriptor, of which a process has 1,024 in most places."""
    names = {f"{i}": np.full((1, 2), i, np.float32) for i in range(1, 1500)}
    np.savez(tmp_path / "many.npz", **names)
    save_file(names, tmp_path / "many.safetensors")
    write_folder(tmp_path / "many", list(names.values()))
    for name in ("many.npz", "many.safetensors", "many"):
        before = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
        files = open_vectors(tmp_path / name)
        assert files[0].count == 1499
        after = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
        assert after - before < 10


# -- files that are none


def flat_with(**beside: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, embeddings=np.concatenate(rows_of()), **beside)


def padded_with(**beside: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, embeddings=padded(rows_of())[0], **beside)


def tensors(change: Callable[[bytes, dict], bytes]) -> Callable[[Path], None]:
    """A file of safetensors whose header or bytes are changed."""

    def write(path: Path) -> None:
        save_file({"embeddings": np.ones((2, 3), np.float32)}, path)
        whole = path.read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        path.write_bytes(change(whole[8 + length :], json.loads(whole[8 : 8 + length])))

    return write


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> Callable[[bytes, dict], bytes]:
    return lambda data, header: with_header({"embeddings": {**header["embeddings"], **changes}}, data)


def twice(path: Path) -> None:
    with open(path, "wb") as file:
        for _ in range(2):
            np.save(file, np.ones((2, 4), F4))


def named_twice(path: Path) -> None:
    np.savez(path, embeddings=np.ones((2, 4), F4))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("embeddings", b"")


def npy(array: Any) -> Callable[[Path], object]:
    return lambda path: np.save(path, array)


def npz(**arrays: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **arrays)


def lines(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


F4 = np.float32
CUT = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9), }\n"


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


HOSTILE: list[tuple[str, Callable[[Path], object], str]] = [
    ("x.npy", text(b""), "cannot be read as a numpy array"),
    ("x.npy", text(CUT), "cannot be read as a numpy array"),
    ("x.npy", twice, "holds 160 bytes behind its array [2, 4], such as those of a second numpy.save"),
    ("x.npz", named_twice, "must hold one array of each name, got 2 named embeddings"),
    ("x.npy", npy(np.array([[1, None]])), "cannot be read as a numpy array"),
    ("x.npy", npy(np.ones(4, F4)), "[N, D], none of them 0, got float32 [4]; write one vector [D] as [1, D]"),
    ("x.npz", npz(embeddings=np.ones(4, F4)), "got float32 [4]; write one vector [D] as [1, D], a row of one vector"),
    ("x.npy", npy(np.zeros((0, 4), F4)), "none of them 0, got float32 [0, 4]"),
    ("x.npy", npy(np.zeros((2, 3), np.int8)), "numbers, got int8 [2, 3]; multiply"),
    ("x.npy", npy(np.zeros((2, 3), np.complex64)), "must be floating-point numbers, got complex64"),
    ("x.npy", npy(np.zeros((2, 3), [("a", "f4")])), "must be floating-point numbers"),
    ("x.npz", text(b"PK\x03\x04 no archive"), "cannot be read as an .npz archive"),
    ("x.npz", npz(), "must hold arrays, got none"),
    ("x.npz", npz(a=np.array([None])), "holds Python objects"),
    ("x.npz", npz(arr_0=np.zeros((4, 3), F4)), "can be one row of 4 vectors, or 4 rows"),
    ("x.npz", npz(a=np.ones((1, 3), F4), b=np.ones(3, np.int64)), "b must be floating-point numbers"),
    ("x.npz", flat_with(lengths=[3, 1, 4]), "that add up to the 10 vectors, got 1 to 4, 8 in all"),
    ("x.npz", flat_with(lengths=[11, -1]), "lengths must be integers that add up to the 10 vectors"),
    ("x.npz", flat_with(lengths=[3.5, 6.5]), "lengths must be integers"),
    ("x.npz", flat_with(lengths=[[5, 5]]), "lengths must be integers that add up to the 10 vectors"),
    ("x.npz", flat_with(offsets=[0, 7, 3, 10]), "offsets must be integers that rise from 0 to the 10 vectors"),
    ("x.npz", flat_with(offsets=[1, 10]), "offsets must be integers that rise from 0 to the 10 vectors"),
    ("x.npz", flat_with(offsets=np.zeros(0, int)), "offsets must be integers that rise from 0"),
    ("x.npz", flat_with(mask=np.ones(10)), "a mask needs embeddings [N, L, D], got float32 [10, 5]; use lengths"),
    ("x.npz", flat_with(lengths=[10], offsets=[0, 10]), "only one of lengths, offsets may say"),
    ("x.npz", flat_with(year=[10]), "beside `embeddings` there may be lengths, mask, offsets, ids, rows"),
    ("x.npz", flat_with(lengths=[3, 7], ids=["a"]), "ids must be 2 texts or integers, got <U1 [1]"),
    ("x.npz", flat_with(lengths=[3, 7], ids=[0.5, 1]), "ids must be 2 texts or integers, got float64 [2]"),
    ("x.npz", flat_with(lengths=[3, 7], ids=np.array([b"a", b"\xff"])), "ids must be text in UTF-8, got b'\\xff'"),
    (
        "x.npz",
        flat_with(lengths=[3, 7], ids=np.array([[97, 97], [97, 0x110000]], np.uint32).view("<U2")[:, 0]),
        "ids must be text, got no letter, 0x110000, in row 1",
    ),
    ("x.npz", flat_with(lengths=[3, 7], rows=lines(b'{"id": 1}\n{}')), "line 1 must be an object with id"),
    ("x.npz", flat_with(lengths=[3, 7], rows=lines(b'{"id": 1, "metadata": {}}')), "rows must have 2 lines, got 1"),
    ("x.npz", padded_with(lengths=[3, 1, 4, 7]), "lengths must be 4 integers up to 6, got 1 to 7"),
    ("x.npz", padded_with(mask=np.ones((4, 5))), "mask must be numbers 0 and 1 [4, 6], got float64 [4, 5]"),
    ("x.npz", padded_with(offsets=[0, 1]), "offsets need embeddings [T, D]"),
    ("x.safetensors", text(b"abc"), "shorter than its header"),
    ("x.safetensors", text(struct.pack("<Q", 1 << 60) + b"{}"), "its header claims 1,152,921,504,606,846,976 bytes"),
    ("x.safetensors", text(struct.pack("<Q", 2) + b"[]"), "its header must be a JSON object"),
    ("x.safetensors", text(struct.pack("<Q", 4) + b"\xff\xfe{}"), "not UTF-8"),
    ("x.safetensors", tensors(lambda data, header: with_header(header, data[:-1])), "take 24 bytes, and 23 follow"),
    ("x.safetensors", tensors(lambda data, header: with_header(header, data + b"x")), "24 bytes, and 25"),
    ("x.safetensors", tensors(entry(dtype="F8_E4M3")), "the type of 'embeddings' must be one of F64, F32"),
    ("x.safetensors", tensors(entry(shape=[2, 4])), "'embeddings' of shape [2, 4] takes 32 bytes"),
    ("x.safetensors", tensors(entry(shape=[-2, -3])), "'embeddings' of shape [-2, -3]"),
    ("x.safetensors", tensors(entry(data_offsets=[1, 25])), "and the header gives it 1 to 25"),
    ("x.safetensors", tensors(entry(data_offsets=[-24, 0])), "and the header gives it -24 to 0"),
    ("x.safetensors", tensors(entry(shape="x")), "'embeddings'.shape must be a list"),
    ("x.parquet", text(b"PAR1 no parquet PAR1"), "cannot be read as Parquet"),
    ("x.pt", text(b"\x80\x02."), "may be a pickle, which runs code when it is read"),
    ("x.txt", text(b"1 2 3"), "must end in .npy, .npz, .safetensors, .parquet, or be a folder of such files"),
    ("x", lambda path: path.mkdir(), "must hold files that end in .npy"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "message"), HOSTILE, ids=[message[:40] for *_, message in HOSTILE])
def test_what_is_no_file_of_embeddings(
    tmp_path: Path, name: str, write: Callable[[Path], object], message: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    write(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(message)) as found:
        embedding_source([tmp_path / name])
    assert str(tmp_path / name) in str(found.value)


def test_a_plaid_index_has_no_vectors_any_more(tmp_path: Path) -> None:
    np.save(tmp_path / "centroids.npy", np.ones((2, 2), F4))
    with pytest.raises(InputError, match="is a PLAID index, which keeps compressed vectors only"):
        open_vectors(tmp_path)


def test_a_row_of_the_mask_that_is_no_mask(tmp_path: Path) -> None:
    padded_with(mask=np.full((4, 6), 0.5))(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"mask must be numbers 0 and 1, got 0.5 in row 0"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("cut", [1, 10, 40])
@pytest.mark.parametrize("name", [name for name in FORMS if name != "folder"])
def test_a_file_that_is_cut_short(tmp_path: Path, name: str, cut: int) -> None:
    FORMS[name](tmp_path / name, rows_of())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-cut])
    with pytest.raises(InputError):
        read(tmp_path / name)


# -- Parquet


def test_columns_of_parquet_are_ids_and_metadata(tmp_path: Path) -> None:
    rows = rows_of()
    write_lists(
        tmp_path / "x.parquet", rows, id=[4, 5, 6, 7], year=[2020, None, 2022, 2023], tags=[["a"], [], None, ["b"]]
    )
    source = embedding_source([tmp_path / "x.parquet"])
    assert source.ids == ["4", "5", "6", "7"]
    found = [dict(row.metadata) for row in source.read()]
    assert found == [{"year": 2020, "tags": ["a"]}, {"tags": []}, {"year": 2022}, {"year": 2023, "tags": ["b"]}]


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
@pytest.mark.parametrize("name", ["caf\udce9.parquet", "s3:x.parquet", "file:x.parquet"])
def test_parquet_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """pyarrow takes paths for UTF-8, and some of them for addresses."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    monkeypatch.chdir(tmp_path)
    write_parquet_vectors(Path(name), "float32", [(["a"], [np.ones((2, 3), np.float32)], ["{}"])])
    (row,) = embedding_source([name]).read()
    np.testing.assert_array_equal(row.vectors, np.ones((2, 3)))


def test_values_of_parquet_that_json_lacks_become_what_they_mean(tmp_path: Path) -> None:
    long = Decimal("12345678901234567890123")
    columns = {
        "price": [Decimal("19.99"), Decimal("20.00"), None, Decimal("-0.01")],
        "big": [long, None, None, None],
        "took": [timedelta(minutes=1, milliseconds=500), None, None, None],
        "name": [b"caf\xc3\xa9", None, None, None],
        "deep": [{"price": [Decimal("0.5")]}, None, None, None],
    }
    ids = [Decimal(number) for number in (4, 5, 6, 7)]
    write_lists(tmp_path / "x.parquet", rows_of(), id=ids, **columns)
    source = embedding_source([tmp_path / "x.parquet"])
    assert source.ids == ["4", "5", "6", "7"]
    first, second, third, last = (row.metadata for row in source.read())
    assert first == {"price": 19.99, "big": int(long), "took": 60.5, "name": "café", "deep": {"price": [0.5]}}
    assert (second["price"], third.get("price"), last["price"]) == (20, None, -0.01)


def test_two_columns_of_embeddings_in_parquet_are_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_lists(tmp_path / "x.parquet", rows_of(), vectors=[[1.0]] * len(rows_of()))
    rule = "must have only one of the columns embeddings, embedding, vectors, got embeddings, vectors"
    with pytest.raises(InputError, match=rule):
        embedding_source([tmp_path / "x.parquet"])


def test_dates_and_times_of_parquet_are_text(tmp_path: Path) -> None:
    at = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
    columns = {"when": [at] * 4, "day": [at.date()] * 4, "hour": [at.time()] * 4, "days": [[at.date()], [], None, []]}
    write_lists(tmp_path / "x.parquet", rows_of(), id=[4, 5, 6, 7], **columns)
    found = [dict(row.metadata) for row in embedding_source([tmp_path / "x.parquet"]).read()]
    each = {"when": "2026-11-26T09:30:00+00:00", "day": "2026-11-26", "hour": "09:30:00"}
    assert found[0] == {**each, "days": ["2026-11-26"]}
    assert found[2] == each


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (None, "its embeddings are null"),
        ([], "vectors: must be vectors [L, D]"),
        ([[1.0, 2.0], None], "one of its vectors is null"),
        ([[1.0, None]], "one of its numbers is null"),
        ([[1.0, 2.0], [3.0]], "its vectors must have one width, got [1, 2]"),
        ([[]], "vectors: must be vectors [L, D]"),
        ([[1.0, float("nan")]], "vectors[0, 1]: must be finite, got nan"),
        ([[0.0, 0.0]], "vectors[0]: must not be a vector of zeros"),
    ],
)
def test_a_row_of_parquet_that_is_none(tmp_path: Path, cells: Any, problem: str) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    column = pa.array([[[1.0, 2.0]], cells, [[3.0, 4.0]]], pa.list_(pa.list_(pa.float32())))
    parquet.write_table(pa.table({"v": column}), tmp_path / "x.parquet")
    good, bad, last = embedding_source([tmp_path / "x.parquet"]).read()
    assert (good.problem, last.problem) == (None, None)
    np.testing.assert_array_equal(last.vectors, [[3, 4]])
    assert bad.problem is not None
    assert bad.problem.startswith(problem)


def test_what_is_missing_in_metadata_of_parquet_costs_no_row(tmp_path: Path) -> None:
    """pyarrow and polars write NaN where pandas writes null; a value that is none costs its row alone."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    nan, inf = float("nan"), float("inf")
    columns = {
        "embeddings": [[1.0, 2.0]] * 6,
        "year": [1.0, nan, None, 2.0, inf, 3.0],
        "inside": [{"a": 1.0}, {"a": nan}, None, {"a": None}, {"a": 1.0}, {"a": 1.0}],
        "list": [[1.0], [nan, 2.0], None, [], [], []],
        "metadata": ['{"x": 1}', "null", None, '{"x": NaN}', "{}", '{"x": null}'],
    }
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = list(embedding_source([tmp_path / "x.parquet"]).read())
    assert [row.metadata for row in found if row.problem is None] == [
        {"x": 1, "year": 1, "inside": {"a": 1}, "list": [1]},
        {"inside": {"a": None}, "list": [None, 2]},
        {},
        {"x": None, "year": 3, "inside": {"a": 1}, "list": []},
    ]
    assert [row.problem for row in found if row.problem is not None] == [
        "the column metadata must have JSON objects: it must be valid JSON: NaN is no JSON number",
        "metadata['year']: must be finite, got inf; leave it out, or make it null",
    ]
    with pytest.raises(InputError, match=r"x\.parquet: the column metadata must have JSON objects: .* NaN is no"):
        embedding_source([tmp_path / "x.parquet"], metadata=tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("kind", "number"), [("timestamp[us, tz=Mars/Phobos]", 1), ("duration[s]", 2**62), ("timestamp[ms]", 2**60)]
)
def test_a_column_of_parquet_that_python_cannot_hold(tmp_path: Path, kind: str, number: int) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    unit, _, zone = kind.partition("[")[2].rstrip("]").partition(", tz=")
    of = pa.duration(unit) if kind.startswith("duration") else pa.timestamp(unit, zone or None)
    table = pa.table({"v": [[1.0, 2.0]], "when": pa.array([number], of)})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet: "):
        list(embedding_source([tmp_path / "x.parquet"]).read())
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet: "):
        embedding_source([tmp_path / "x.parquet"], metadata=tmp_path / "x.parquet")


def test_the_column_of_embeddings_must_be_clear(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    vectors = pa.array([[1.0, 2.0]], pa.list_(pa.float32()))
    for columns, found in (({"a": vectors, "b": vectors}, "a, b"), ({"a": [1]}, r"a \(int64\)"), ({}, "no column")):
        parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
        with pytest.raises(InputError, match=f"must have one column of lists of floating-point numbers.* got {found}$"):
            embedding_source([tmp_path / "x.parquet"])
    parquet.write_table(pa.table({"a": vectors, "embeddings": vectors}), tmp_path / "x.parquet")
    (row,) = embedding_source([tmp_path / "x.parquet"]).read()
    assert row.metadata == {"a": [1.0, 2.0]}


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra, match=re.escape("reading Parquet needs pyarrow: pip install 'chan-rt[parquet]'")):
        open_vectors(tmp_path / "x.parquet")


# -- safetensors


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    from safetensors import safe_open

    pieces = rows_of()
    rows = np.frombuffer(b"{}", np.uint8)
    arrays = {"embeddings": Content(np.float32, (10, DIM), iter(pieces)), "rows": Content(np.uint8, (2,), [rows])}
    write_safetensors(tmp_path / "x.safetensors", arrays, {"format": "np"})
    with safe_open(tmp_path / "x.safetensors", "np") as found:
        assert found.metadata() == {"format": "np"}
        np.testing.assert_array_equal(found.get_tensor("embeddings"), np.concatenate(pieces))
        np.testing.assert_array_equal(found.get_tensor("rows"), rows)


def test_every_type_of_the_library_is_read(tmp_path: Path) -> None:
    types = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in types} | {"empty": np.zeros((0, 3), "f4")}
    save_file(arrays, tmp_path / "x.safetensors")
    found = map_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
