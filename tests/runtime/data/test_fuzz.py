"""Damaged data files of every form: each is read, or refused with an InputError, within a bound of memory.

A turn changes bytes, copies and cuts pieces of a sound file, mostly where its structure is. What is read of a file that
was not refused has the shape it promised.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.data.parquet import write_parquet_vectors
from chan_rt.runtime.data.safetensors_file import Content, write_safetensors
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.indexing.embedding_source import embedding_source

IMAGES, REGIONS, WIDTH = 3, 2, 2
FEATURES = np.random.default_rng(0).standard_normal((IMAGES, REGIONS, WIDTH)).astype(np.float32)
COUNTS = np.array([2, 1, 2])
SPANS = np.array([[0, 2], [2, 4], [4, 6]])
pytestmark = pytest.mark.usefixtures("little_memory")


def _hdf5(folder: Path, grouped: bool) -> Path:
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    path = folder / "test_ims.h5"
    with h5py.File(path, "w") as file:
        if grouped:
            for number in range(IMAGES):
                file[f"{number}/features"] = FEATURES[number]
        else:
            file.create_dataset("features", data=FEATURES.reshape(-1, WIDTH), chunks=(3, WIDTH), compression="gzip")
            file["pos_boxes"] = SPANS
    return path


def _tsv(folder: Path) -> Path:
    lines = [
        f"{number}\t6\t4\t{REGIONS}\t\t{base64.b64encode(features).decode()}\n"
        for number, features in enumerate(FEATURES)
    ]
    (folder / "test_ims.tsv").write_text("".join(lines))
    return folder / "test_ims.tsv"


def _npz(folder: Path, compressed: bool) -> Path:
    save = np.savez_compressed if compressed else np.savez
    save(folder / "test_ims.npz", features=FEATURES, num_boxes=COUNTS)
    return folder / "test_ims.npz"


def _npy(folder: Path) -> Path:
    np.save(folder / "test_ims.npy", FEATURES)
    return folder / "test_ims.npy"


def _one_of_a_folder(folder: Path) -> Path:
    (folder / "test_ims").mkdir()
    for number in range(IMAGES):
        np.savez_compressed(folder / f"test_ims/{number}.npz", x=FEATURES[number])
    return folder / "test_ims/1.npz"


def _captions(folder: Path) -> Path:
    _npy(folder)
    (folder / "test_caps.txt").write_text("".join(f"b'caption {line}'\n" for line in range(IMAGES)))
    return folder / "test_caps.txt"


def _ids(folder: Path) -> Path:
    _npy(folder)
    return folder / "test_ids.txt"


def _json(folder: Path) -> Path:
    _npy(folder)
    images = [
        {"split": "test", "filename": f"{number}.jpg", "sentences": [{"raw": f"caption {number}"}]}
        for number in range(IMAGES)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    (folder / "test_caps.txt").unlink()
    return folder / "dataset.json"


FORMS: dict[str, Callable[[Path], Path]] = {
    "npy": _npy,
    "npz": lambda folder: _npz(folder, compressed=False),
    "npz, compressed": lambda folder: _npz(folder, compressed=True),
    "hdf5": lambda folder: _hdf5(folder, grouped=False),
    "hdf5, grouped": lambda folder: _hdf5(folder, grouped=True),
    "tsv": _tsv,
    "folder": _one_of_a_folder,
    "captions": _captions,
    "ids": _ids,
    "json": _json,
}


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """A sound file with some bytes changed, a piece copied elsewhere, or its end cut off."""
    content = bytearray(whole)
    kind = rng.integers(8)
    if kind == 0:
        return bytes(content[: rng.integers(len(content))])
    if kind == 1:
        start, to = rng.integers(0, len(content), 2)
        piece = content[start : start + rng.integers(1, 64)]
        content[to : to + len(piece)] = piece
        return bytes(content)
    for place in rng.integers(0, len(content), rng.integers(1, 6)):
        content[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    return bytes(content)


@pytest.mark.parametrize("turns", [150, pytest.param(100_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, form: str, turns: int) -> None:
    (tmp_path / "test_caps.txt").write_text("".join(f"caption {line}\n" for line in range(IMAGES)))
    (tmp_path / "test_ids.txt").write_text("".join(f"{number}\n" for number in range(IMAGES)))
    file = FORMS[form](tmp_path)
    images = CaptionedImages.open(tmp_path, "test")
    assert images.regions(slice(None))[0].shape == (IMAGES, REGIONS, WIDTH)
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(turns):
        # A new file each time: HDF5 keeps an open file open, and a mapping must not change under its reader.
        file.unlink()
        file.write_bytes(damaged(whole, rng))
        try:
            images = CaptionedImages.open(tmp_path, "test")
            regions, lengths = images.regions(slice(None))
        except InputError as error:
            refused.append(str(error))
        else:
            assert regions.shape == (images.num_images, lengths.max(), images.region_dim)
            assert lengths.min() > 0
            assert lengths.max() <= images.max_regions
            assert images.num_captions == len(images.image_of_caption) >= images.num_images
    assert 0 < len(refused) < turns
    assert all(str(tmp_path) in message for message in refused)


def _vectors_npz(folder: Path) -> Path:
    np.savez(folder / "x.npz", embeddings=FEATURES, lengths=COUNTS, ids=np.array(["a", "b", "c"]))
    return folder / "x.npz"


def _vectors_npy(folder: Path) -> Path:
    np.save(folder / "x.npy", FEATURES)
    return folder / "x.npy"


def _vectors_by_name(folder: Path) -> Path:
    np.savez_compressed(folder / "x.npz", **{str(row): features for row, features in enumerate(FEATURES)})
    return folder / "x.npz"


def _safetensors(folder: Path) -> Path:
    arrays = {
        "embeddings": Content(np.float32, FEATURES.shape, [FEATURES]),
        "lengths": Content(np.int64, COUNTS.shape, [COUNTS]),
    }
    write_safetensors(folder / "x.safetensors", arrays, {})
    return folder / "x.safetensors"


def _parquet(folder: Path) -> Path:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    write_parquet_vectors(folder / "x.parquet", "float32", [(["a", "b", "c"], list(FEATURES), ['{"year": 1}'] * 3)])
    return folder / "x.parquet"


VECTORS: dict[str, Callable[[Path], Path]] = {
    "npy": _vectors_npy,
    "npz": _vectors_npz,
    "npz, by name": _vectors_by_name,
    "safetensors": _safetensors,
    "parquet": _parquet,
}


@pytest.mark.parametrize("turns", [150, pytest.param(20_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("form", VECTORS)
def test_damaged_embeddings_are_read_or_refused_and_nothing_else(tmp_path: Path, form: str, turns: int) -> None:
    file = VECTORS[form](tmp_path)
    assert [np.shape(row.vectors)[1] for row in embedding_source([file]).read()] == [WIDTH] * IMAGES
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(turns):
        file.unlink()
        file.write_bytes(damaged(whole, rng))
        try:
            rows = list(embedding_source([file]).read())
        except InputError as error:
            refused.append(str(error))
        else:
            for row in rows:
                assert (row.vectors is None) == (row.problem is not None)
                if row.vectors is not None:
                    assert row.vectors.ndim == 2
                    assert np.isfinite(row.vectors).all()
    assert 0 < len(refused) < turns
    assert all(str(tmp_path) in message for message in refused)
