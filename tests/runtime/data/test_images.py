"""The precomp layout in every form users have on disk, and what is said about files that do not fit."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.data.images import CaptionedImages, open_sample, spread
from chan_rt.runtime.data.layout import has_split
from chan_rt.runtime.errors import InputError, TensorError

RNG = np.random.default_rng(7)
IMAGES = RNG.standard_normal((4, 3, 6)).astype(np.float32)


def write(folder: Path, split: str = "test", images: np.ndarray | None = IMAGES, captions: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_caps.txt").write_text("".join(f"caption {n}\n" for n in range(captions)), encoding="utf-8")
    if images is not None:
        np.save(folder / f"{split}_ims.npy", images)
    return folder


@pytest.mark.parametrize("name", ["precomp", "f30k_precomp", "coco_precomp", "."])
def test_five_captions_an_image_in_every_folder_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    split = CaptionedImages.open(tmp_path, "test")
    assert (split.num_images, split.num_captions, split.region_dim, split.max_regions) == (4, 20, 6, 3)
    assert split.captions[7] == "caption 7"
    assert split.image_ids is None
    np.testing.assert_array_equal(split.image_of_caption, np.arange(20) // 5)
    regions, lengths = split.regions([2, 0])
    np.testing.assert_array_equal(regions, IMAGES[[2, 0]])
    assert regions.dtype == np.float32
    assert lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, [3, 3])
    np.testing.assert_array_equal(split.regions(slice(1, 9))[0], IMAGES[1:])


def test_images_stored_five_times_are_one_image(tmp_path: Path) -> None:
    write(tmp_path / "precomp", images=np.repeat(IMAGES, 5, axis=0))
    (tmp_path / "precomp/test_ids.txt").write_text("".join(f"{n // 5}\n" for n in range(20)))
    split = CaptionedImages.open(tmp_path, "test")
    assert split.num_images == 4
    assert split.image_ids == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(split.image_of_caption, np.arange(20) // 5)
    np.testing.assert_array_equal(split.regions([3, 1])[0], IMAGES[[3, 1]])


def test_as_many_different_images_as_captions_are_one_a_caption(tmp_path: Path) -> None:
    images = RNG.standard_normal((20, 3, 6)).astype(np.float32)
    write(tmp_path / "precomp", images=images)
    split = CaptionedImages.open(tmp_path, "test")
    np.testing.assert_array_equal(split.image_of_caption, np.arange(20))
    np.testing.assert_array_equal(split.regions([19])[0], images[19:])


def test_half_repeated_images_are_refused(tmp_path: Path) -> None:
    images = np.repeat(IMAGES, 5, axis=0)
    images[7] += 1
    write(tmp_path / "precomp", images=images)
    with pytest.raises(InputError, match="only some groups of five rows"):
        CaptionedImages.open(tmp_path, "test")


def test_dev_is_cut_to_five_thousand_captions(tmp_path: Path) -> None:
    images = RNG.standard_normal((1014, 1, 2)).astype(np.float32)
    folder = write(tmp_path / "precomp", "dev", images, 5070)
    (folder / "dev_ids.txt").write_text("".join(f"{n}\n" for n in range(1014)))
    split = CaptionedImages.open(tmp_path, "dev")
    assert (split.num_captions, split.num_images) == (5000, 1000)
    assert split.image_ids is not None
    assert len(split.image_ids) == 1000
    with pytest.raises(InputError, match="rows must lie in 0 to 999"):
        split.regions([1000])
    assert has_split(tmp_path, "dev")
    assert not has_split(tmp_path, "testall")


def test_ids_may_be_one_a_caption(tmp_path: Path) -> None:
    folder = write(tmp_path / "precomp")
    (folder / "test_ids.txt").write_text("".join(f"{100 + n // 5}\n" for n in range(20)))
    assert CaptionedImages.open(tmp_path, "test").image_ids == ["100", "101", "102", "103"]


def test_unusual_line_separators_stay_inside_a_caption(tmp_path: Path) -> None:
    folder = write(tmp_path / "precomp")
    lines = ["a\x85b", "c\u2028d", "", "e\x0cf", "caf\u00e9\r", *(["x"] * 15)]
    (folder / "test_caps.txt").write_bytes("\n".join(lines).encode())
    split = CaptionedImages.open(tmp_path, "test")
    assert split.captions[:4] == ["a\x85b", "c\u2028d", "e\x0cf", "caf\u00e9"]


RAGGED = [RNG.standard_normal((n, 6)).astype(np.float32) for n in (3, 1, 5, 2)]
SPANS = np.array([[0, 3], [3, 4], [4, 9], [9, 11]])


def _npz_flat(folder: Path) -> None:
    np.savez(folder / "test_ims.npz", features=np.concatenate(RAGGED), pos_boxes=SPANS, boxes=np.zeros((11, 4)))


def _npz_padded(folder: Path) -> None:
    features = np.zeros((4, 5, 6), np.float16)
    for row, image in enumerate(RAGGED):
        features[row, : len(image)] = image
    np.savez(folder / "test_ims.npz", features=features, num_boxes=np.array([3, 1, 5, 2]))


def _hdf5(folder: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    with h5py.File(folder / "test_ims.hdf5", "w") as file:
        file["image_features"], file["pos_boxes"] = np.concatenate(RAGGED), SPANS
        file["image_bb"] = np.zeros((11, 4))


def _file_per_image(folder: Path) -> None:
    (folder / "test_ims").mkdir()
    (folder / "test_ids.txt").write_text("b\na\nd\nc\n")
    for name, image in zip("badc", RAGGED, strict=True):
        np.savez_compressed(folder / f"test_ims/{name}.npz", x=image, bbox=np.zeros((len(image), 4)))


@pytest.mark.parametrize("store", [_npz_flat, _npz_padded, _hdf5, _file_per_image])
def test_region_counts_that_vary(tmp_path: Path, store: object) -> None:
    folder = write(tmp_path / "precomp", images=None)
    store(folder)  # type: ignore[operator]
    split = CaptionedImages.open(tmp_path, "test")
    assert (split.num_images, split.max_regions, split.region_dim) == (4, 5, 6)
    regions, lengths = split.regions([3, 2, 1])
    np.testing.assert_array_equal(lengths, [2, 5, 1])
    assert regions.shape == (3, 5, 6)
    for row, image in enumerate([RAGGED[3], RAGGED[2], RAGGED[1]]):
        np.testing.assert_allclose(regions[row, : len(image)], image, rtol=1e-3)
        assert not regions[row, len(image) :].any()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "test_ims.npy").unlink(),
            r"test_ims.npy is missing: make it with `chan features DATA -o DATA`, or put features there",
        ),
        (lambda f: (f / "test_caps.txt").unlink(), "test_caps.txt is missing .*no split is there"),
        (lambda f: (f / "test_caps.txt").rename(f / "dev_caps.txt"), "the splits there are: dev"),
        (
            lambda f: np.save(f / "test_ims.npy", IMAGES[:3]),
            "3 images and .* 20 captions: expected 20 / 5 = 4 images, or",
        ),
        (lambda f: np.save(f / "test_ims.npy", IMAGES[0]), r"must be float32 .* got float32 \[3, 6\]"),
        (lambda f: np.save(f / "test_ims.npy", IMAGES.astype(int)), "must be float32 .* got int64"),
        (lambda f: np.save(f / "test_ims.npy", np.array([{}]), allow_pickle=True), "array of numbers"),
        (lambda f: (f / "test_ims.npy").write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda f: (f / "test_ims.npy").write_bytes(b"a download's error page"), "the magic string is not correct"),
        (lambda f: (f / "test_ims.npy").write_bytes((f / "test_ims.npy").read_bytes()[:200]), "cannot be read"),
        (lambda f: np.savez(f / "test_ims.npz", features=IMAGES), "in several forms"),
        (lambda f: (f / "test_ids.txt").write_text("1\n2\n"), "test_ids.txt must name each of the 4 images"),
        (lambda f: (f / "test_caps.txt").write_bytes(b"\xff\n"), "must be UTF-8"),
        (lambda f: (f / "test_caps.txt").write_text(""), "one caption a line, got an empty file"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, spoil: object, message: str) -> None:
    folder = write(tmp_path / "precomp")
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        CaptionedImages.open(tmp_path, "test")


def test_several_data_sets_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    write(tmp_path / "f30k_precomp")
    write(tmp_path / "coco_precomp")
    with pytest.raises(InputError, match="holds several data sets"):
        CaptionedImages.open(tmp_path, "test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": IMAGES[0], "pos_boxes": np.array([[0, 9]])}, "row ranges first < last within the 3"),
        ({"features": IMAGES[0], "pos_boxes": np.array([0, 3])}, r"must be integers \[N, 2\]"),
        (
            {"features": IMAGES, "num_boxes": np.array([0, 1, 1, 1])},
            "every image must have a region, but 1 have none",
        ),
        ({"features": IMAGES, "num_boxes": np.array([4, 1, 1, 1])}, "one number from 1 to 3 for each of 4"),
        ({"features": IMAGES, "num_boxes": np.array([1.5, 1, 1, 1])}, r"num_boxes must be integers \[N\], got float64"),
        ({"features": IMAGES, "num_boxes": np.array(["a", "b", "c", "d"])}, r"num_boxes must be integers"),
        ({"other": IMAGES}, "has no `features`.*found"),
        ({"features": np.array([{}])}, "holds Python objects"),
    ],
)
def test_archives_that_do_not_fit_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    folder = write(tmp_path / "precomp", images=None)
    np.savez(folder / "test_ims.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        CaptionedImages.open(tmp_path, "test")


@pytest.mark.parametrize("content", [b"a download's error page", b"", b"\x93NUMPY\x01\x00"])
def test_an_image_s_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path / "precomp", images=None)
    _file_per_image(folder)
    (folder / "test_ims/d.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"d\.npz is not an \.npz archive, or was cut off"):
        CaptionedImages.open(tmp_path, "test")


def test_features_that_are_not_finite_are_named_when_read(tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[2, 1, 3] = np.inf
    write(tmp_path / "precomp", images=images)
    split = CaptionedImages.open(tmp_path, "test")
    split.regions([0, 1, 3])
    with pytest.raises(TensorError, match=r"test_ims\.npy: features must be finite, got NaN or infinity in image 2"):
        split.regions([0, 2])


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_features_larger_than_memory_are_read_by_rows(tmp_path: Path) -> None:
    """A sparse 64 GB file is opened and read in a process that may use 1 GB of data."""
    folder = write(tmp_path / "precomp", images=None, captions=5 * 200_000)
    np.lib.format.open_memmap(folder / "test_ims.npy", "w+", np.float32, (200_000, 40, 2000)).flush()
    limit = 1 << 30
    code = (
        "import resource, sys; from chan_rt.runtime.data.images import CaptionedImages;"
        f"split = CaptionedImages.open({str(tmp_path)!r}, 'test');"
        "regions, _ = split.regions([0, 199_999]);"
        "assert regions.shape == (2, 40, 2000) and split.num_images == 200_000"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def test_a_sample_is_spread_evenly_with_all_captions_of_its_images(tmp_path: Path) -> None:
    write(tmp_path / "precomp")
    (tmp_path / "precomp/test_ids.txt").write_text("a\nb\nc\nd\n")
    sample = open_sample(tmp_path, "test", 2)
    assert sample.image_rows.tolist() == [0, 3]
    assert sample.image_ids == ["a", "d"]
    assert sample.image_of_caption.tolist() == [0] * 5 + [1] * 5
    assert sample.caption_rows.tolist() == [*range(5), *range(15, 20)]
    assert sample.captions[5] == "caption 15"
    np.testing.assert_array_equal(sample.regions(slice(None))[0], IMAGES[[0, 3]])
    last = sample.take(np.array([1]))
    assert (last.image_rows.tolist(), last.caption_rows.tolist()) == ([3], list(range(15, 20)))
    np.testing.assert_array_equal(last.regions([0])[0], IMAGES[[3]])


def test_positions_are_spread_over_the_data() -> None:
    assert spread(100, 3).tolist() == [0, 49, 99]
    assert spread(5, 50).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="samples must be positive, got 0"):
        spread(5, 0)


def test_arrays_are_captioned_images_too() -> None:
    found = CaptionedImages.from_arrays(IMAGES, ["a", "b", "c"], np.array([0, 2, 2]), np.array([1, 2, 3, 1]))
    regions, lengths = found.regions([2, 0])
    assert lengths.tolist() == [3, 1]
    np.testing.assert_array_equal(regions[0], IMAGES[2])
    assert not regions[1, 1:].any()
    for captions, owner, rule in (
        (["a", "b"], [1, 0], "must be ascending"),
        (["a"], [0, 1], "must be ascending"),
        ([], [], "at least one image and one caption, got 4 and 0"),
    ):
        with pytest.raises(InputError, match=rule):
            CaptionedImages.from_arrays(IMAGES, captions, np.array(owner))


def test_pictures_are_found_by_the_mapping_in_the_data_folder_or_beside_precomp(tmp_path: Path) -> None:
    write(tmp_path / "precomp")
    (tmp_path / "precomp/test_ids.txt").write_text("a\nb\nc\nd\n")
    assert CaptionedImages.open(tmp_path, "test").pictures() == [None] * 4
    (tmp_path / "b.png").touch()
    (tmp_path / "id_mapping.json").write_text('{"a": "gone.png", "b": "b.png"}')
    for folder in (tmp_path, tmp_path / "precomp"):
        found = CaptionedImages.open(folder, "test").pictures()
        assert [None if file is None else file.resolve() for file in found] == [None, tmp_path / "b.png", None, None]
    for name in ("images", "flickr30k-images"):  # as VSE-infinity has them
        (tmp_path / name).mkdir()
        (tmp_path / "b.png").rename(tmp_path / name / "b.png")
        found = CaptionedImages.open(tmp_path, "test").pictures()
        assert found == [None, tmp_path / name / "b.png", None, None]
        (tmp_path / name / "b.png").rename(tmp_path / "b.png")
    (tmp_path / "id_mapping.json").write_text('{"a": ["a.png"]}')
    with pytest.raises(InputError, match=r"must map image ids to files, got \['a.png'\] for the id 'a'"):
        CaptionedImages.open(tmp_path, "test").pictures()
