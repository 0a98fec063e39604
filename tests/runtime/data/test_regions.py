"""Region features in every form they are stored in, and files that claim what they do not hold."""

from __future__ import annotations

import base64
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.data import npz
from chan_rt.runtime.data.layout import SplitFiles
from chan_rt.runtime.data.regions import open_store
from chan_rt.runtime.data.store import RegionStore
from chan_rt.runtime.errors import InputError

RNG = np.random.default_rng(7)
RAGGED = [RNG.standard_normal((n, 6)).astype(np.float32) for n in (3, 1, 5, 2)]
FLAT = np.concatenate(RAGGED)
SPANS = np.array([[0, 3], [3, 4], [4, 9], [9, 11]])
PADDED = np.full((4, 5, 6), np.nan, np.float32)
for row, image in enumerate(RAGGED):
    PADDED[row, : len(image)] = image
NAMES = ["b", "a", "d", "c"]


def opened(folder: Path, ids: list[str] | None = NAMES) -> RegionStore:
    return open_store(SplitFiles(folder, folder, "test"), ids)


def hdf5(folder: Path, **arrays: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    with h5py.File(folder / "test_ims.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(
                name.replace("__", "/"), data=array, **({"compression": "gzip"} if array.size > 1 else {})
            )


def tsv_line(name: str, image: np.ndarray) -> str:
    boxes = base64.b64encode(np.zeros((len(image), 4), np.float32)).decode()
    return "\t".join([name, "640", "480", str(len(image)), boxes, base64.b64encode(image).decode()]) + "\n"


def tsv(folder: Path) -> None:
    lines = [tsv_line(name, image) for name, image in zip(NAMES, RAGGED, strict=True)]
    (folder / "test_ims.tsv").write_text(
        "".join([lines[2], tsv_line("other", RAGGED[0]), lines[0], lines[3], lines[1]])
    )


def files(folder: Path, suffix: str, name: str = "") -> None:
    (folder / "test_ims").mkdir()
    for image_id, image in zip(NAMES, RAGGED, strict=True):
        path = folder / f"test_ims/{image_id}.{suffix}"
        np.save(path, image) if suffix == "npy" else np.savez_compressed(path, **{name: image, "bbox": image[:, :4]})


FORMS: dict[str, Callable[[Path], object]] = {
    "flat": lambda f: np.savez(f / "test_ims.npz", features=FLAT, pos_boxes=SPANS, objects=np.array([{}])),
    "flat, compressed": lambda f: np.savez_compressed(f / "test_ims.npz", image_features=FLAT, pos_boxes=SPANS),
    "padded": lambda f: np.savez(f / "test_ims.npz", feat=PADDED, num_boxes=[3, 1, 5, 2]),
    "padded, counts as float": lambda f: np.savez(f / "test_ims.npz", x=PADDED, num_boxes=np.array([[3.0, 1, 5, 2]])),
    "padded, float64 in Fortran's order": lambda f: np.savez(
        f / "test_ims.npz", features=np.asfortranarray(PADDED.astype(">f8")), num_boxes=[3, 1, 5, 2]
    ),
    "hdf5, flat": lambda f: hdf5(f, features=FLAT, pos_boxes=SPANS),
    "hdf5, padded": lambda f: hdf5(f, features=PADDED, num_boxes=np.array([3.0, 1, 5, 2])),
    "hdf5, a group an image": lambda f: hdf5(f, **{f"{n}__features": i for n, i in zip(NAMES, RAGGED, strict=True)}),
    "hdf5, an array an image": lambda f: hdf5(f, **dict(zip(NAMES, RAGGED, strict=True))),
    "tsv": tsv,
    "a folder of npy": lambda f: files(f, "npy"),
    "a folder of npz": lambda f: files(f, "npz", "feat"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path)
    store = opened(tmp_path)
    assert (store.count, store.max_regions, store.region_dim) == (4, 5, 6)
    for wanted in ([0, 1, 2, 3], [3, 0], [2, 2]):
        found = store.read(np.array(wanted))
        for row, image in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(image, RAGGED[row])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux shows which pages a process holds")
@pytest.mark.parametrize("form", ["npy", "flat", "padded"])
def test_memory_does_not_hold_what_was_read(tmp_path: Path, form: str) -> None:
    features = RNG.standard_normal((8, 32, 2048)).astype(np.float32)  # 2 MiB
    match form:
        case "npy":
            np.save(tmp_path / "test_ims.npy", features)
        case "flat":
            np.savez(tmp_path / "test_ims.npz", features=features.reshape(-1, 2048), pos_boxes=32 * np.c_[:8, 1:9])
        case "padded":
            np.savez(tmp_path / "test_ims.npz", features=features, num_boxes=np.full(8, 32))
    store = opened(tmp_path, None)
    for row in range(8):
        np.testing.assert_array_equal(store.read(np.array([row]))[0], features[row])
    smaps = Path("/proc/self/smaps").read_text().split("/test_ims.")
    held = [int(mapping.split("Rss:")[1].split()[0]) for mapping in smaps[1:]]  # KiB
    assert held
    assert sum(held) <= 64, held


def test_the_order_of_a_tsv_file_needs_no_ids(tmp_path: Path) -> None:
    tsv(tmp_path)
    store = opened(tmp_path, None)
    assert store.names == ["d", "other", "b", "c", "a"]
    np.testing.assert_array_equal(store.read(np.array([4]))[0], RAGGED[1])


def test_a_large_compressed_array_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "test_ims.npz", features=PADDED)
    monkeypatch.setattr(npz, "MAX_COMPRESSED", 200)
    with pytest.raises(InputError, match=r"too many to read at once: write it with numpy\.savez"):
        opened(tmp_path)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_integer_features_are_refused_with_what_to_do(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "test_ims.npy", np.ones((4, 5, 6), dtype))
    with pytest.raises(InputError, match=r"must be float32 or float16 features, got .*: multiply them by the scale"):
        opened(tmp_path)


EMPTY = np.zeros((0, 6), np.float32)


@pytest.mark.parametrize(
    "write",
    [
        lambda f: np.savez(f / "test_ims.npz", features=PADDED, num_boxes=[3, 0, 5, 2]),
        lambda f: np.savez(f / "test_ims.npz", features=FLAT, pos_boxes=[[0, 3], [3, 3], [4, 9], [9, 11]]),
        lambda f: hdf5(f, b=RAGGED[0], a=EMPTY, d=RAGGED[2], c=RAGGED[3]),
        lambda f: (f / "test_ims.tsv").write_text(
            "".join(tsv_line(n, i) for n, i in zip(NAMES, [RAGGED[0], EMPTY, *RAGGED[2:]], strict=True))
        ),
    ],
)
def test_images_without_regions_are_named_with_what_to_do(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path)
    with pytest.raises(
        InputError, match=r"(1 have none \(the first: image 1\)|image 'a': .* this one has none): give it one region"
    ):
        opened(tmp_path)


def _archive(members: dict[str, bytes]) -> bytes:
    """An archive of stored members, each an .npy file as given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def _npy(shape: tuple[int, ...], values: bytes, dtype: str = "<f4") -> bytes:
    """An .npy file whose header claims a shape, whatever its values are."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + values


@pytest.mark.parametrize(
    "shape", [(5, 5, 6), (4, 5, 7), (3, 5, 6), (1 << 40, 5, 6), (-4, -5, 6), (1 << 62, 4, 1 << 62), (4, 1 << 70, 6)]
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_claims_more_than_it_holds_is_refused(
    tmp_path: Path, shape: tuple[int, ...], compression: int
) -> None:
    """Behind it another member follows, whose bytes would be read as features."""
    with zipfile.ZipFile(tmp_path / "test_ims.npz", "w", compression) as archive:
        archive.writestr("features.npy", _npy(shape, PADDED.tobytes()))
        archive.writestr("secret.npy", _npy((4000,), bytes(16000)))
    with pytest.raises(InputError, match=r"test_ims\.npz"):
        opened(tmp_path)


def test_a_directory_that_claims_more_than_a_member_holds_is_refused(tmp_path: Path) -> None:
    """Header and directory agree on 5 images, and the bytes of the fifth are the next member's."""
    whole = _archive({"features": _npy((5, 5, 6), PADDED.tobytes()), "secret": _npy((4000,), bytes(16000))})
    claimed = len(_npy((5, 5, 6), PADDED.tobytes())) + PADDED[0].nbytes
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"PK\x01\x02"))  # features' entry in the directory
    sizes = np.array([claimed, claimed], "<u4").tobytes()
    (tmp_path / "test_ims.npz").write_bytes(whole[: at + 20] + sizes + whole[at + 28 :])
    with pytest.raises(InputError, match="must not reach into the member behind it"):
        opened(tmp_path)


def _external(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "other.h5", "w") as file:
        file["features"] = PADDED
    with h5py.File(folder / "test_ims.h5", "w") as file:
        file["features"] = h5py.ExternalLink("other.h5", "features")


def _soft(folder: Path) -> None:
    import h5py

    _external(folder)
    with h5py.File(folder / "test_ims.h5", "a") as file:
        file["image_features"] = h5py.SoftLink("/features")
        file.move("features", "elsewhere")


def _virtual(folder: Path) -> None:
    import h5py

    _external(folder)
    with h5py.File(folder / "test_ims.h5", "w") as file:
        layout = h5py.VirtualLayout((4, 5, 6), "f4")
        layout[:] = h5py.VirtualSource(folder / "other.h5", "features", (4, 5, 6))
        file.create_virtual_dataset("features", layout)


def _raw(folder: Path) -> None:
    import h5py

    (folder / "secret").write_bytes(PADDED.tobytes())
    with h5py.File(folder / "test_ims.h5", "w") as file:
        file.create_dataset("features", (4, 5, 6), "f4", external=[(str(folder / "secret"), 0, PADDED.nbytes)])


def _inner(folder: Path) -> None:
    import h5py

    _external(folder)
    with h5py.File(folder / "test_ims.h5", "w") as file:
        for name in NAMES:
            file.create_group(name)["features"] = h5py.ExternalLink("other.h5", "features")


@pytest.mark.parametrize("write", [_external, _soft, _virtual, _raw, _inner])
def test_an_hdf5_file_that_refers_to_another_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    write(tmp_path)
    with pytest.raises(InputError, match=r"perhaps to another file|is stored in another file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: (f / "test_ims.tsv").write_text("1\t2\n"), r"line 1 must have 6 columns \(image_id"),
        (lambda f: (f / "test_ims.tsv").write_text(""), "has no line of the image id 'b'"),
        (lambda f: (f / "test_ims.tsv").write_text(tsv_line("a", RAGGED[0]) * 2), "got 'a' again"),
        (lambda f: (f / "test_ims.tsv").write_text("a\t1\t1\tx\t\t\n"), "num_boxes a number"),
        (lambda f: (f / "test_ims.tsv").write_text("a\t1\t1\t-1\t\t\n"), "must not be negative"),
        (lambda f: (f / "test_ims.tsv").write_text("a\t1\t1\t2\t\tAAAA\n"), r"float32 \[2, F\] in base64"),
        (lambda f: files(f, "npy") or (f / "test_ims/d.npy").unlink(), "d.npz is missing, though test_ids.txt names"),
        (lambda f: hdf5(f, b=RAGGED[0]), "has no group of the image id 'a'"),
        (lambda f: hdf5(f, other=FLAT[0, 0]), "has no group of the image id 'b'"),
        (lambda f: hdf5(f, features__x=FLAT), "features must be an array, got a group"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "a/b", "", "a\\b", "a\0b"])
def test_ids_never_leave_the_folder_of_images(tmp_path: Path, name: str) -> None:
    files(tmp_path, "npy")
    np.save(tmp_path / "secret.npy", RAGGED[0])
    with pytest.raises(InputError, match=r"an image id in test_ids\.txt must be the name of a file"):
        opened(tmp_path, [name])


def test_damaged_base64_is_named_when_it_is_read(tmp_path: Path) -> None:
    tsv(tmp_path)
    text = (tmp_path / "test_ims.tsv").read_text()
    encoded = base64.b64encode(RAGGED[0]).decode()
    (tmp_path / "test_ims.tsv").write_text(
        text.replace("b\t640\t480\t3", "b\t640\t480\t3").replace(encoded, "!" + encoded[1:])
    )
    store = opened(tmp_path)
    with pytest.raises(InputError, match="image 'b': features must be base64"):
        store.read(np.array([0]))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "test_ims.npy")
    with pytest.raises(InputError, match="must be a file or a folder"):
        opened(tmp_path)
