"""Pictures in a bucket: indexed like those of a folder, on one machine and on a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import Gallery
from chan_rt.scale.remote import Remote

from ..run_chan import chan, ok

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(30):
        name = f"sub/{i:02}.png" if i % 2 else f"{i:02}.png"
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def printed(*words: object) -> Any:
    return json.loads(ok(*words, "--json"))


def upload(folder: Path, url: str) -> None:
    remote = Remote(url)
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(path.relative_to(folder).as_posix(), path.read_bytes())


def vectors(path: Path) -> dict[str, bytes]:
    with Gallery.open(path) as gallery:
        ids = [row.id for row in gallery.rows()]
        return dict(zip(ids, (row.tobytes() for row in gallery.embeddings(ids).rows()), strict=True))


def test_a_bucket_is_indexed_like_a_folder_and_brought_up_to_date(
    bucket: str, photos: Path, bundle: Path, tmp_path: Path
) -> None:
    url = f"{bucket}/photos"
    upload(photos, url)
    printed("index", bundle, photos, "-o", tmp_path / "plain")
    result = printed("index", bundle, url, "-o", tmp_path / "gallery")
    assert result["added"] == 30
    assert result["not_read"] == {".txt": 1}
    assert {row["item"]: row["reason"] for row in result["skipped"]} == {
        f"{url}/broken.png": "cannot be read as a picture: it is in no format that Pillow knows, or damaged",
        f"{url}/empty.png": "cannot be read as a picture: it is empty",
    }
    assert vectors(tmp_path / "gallery") == vectors(tmp_path / "plain")
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert gallery.rows()[0].metadata["path"] == f"{url}/00.png"
    remote = Remote(url)
    remote.put("02.png", (photos / "04.png").read_bytes())
    remote.put("moved.png", (photos / "06.png").read_bytes())
    remote.delete(["06.png", "08.png"])
    again = printed("index", bundle, url, "-o", tmp_path / "gallery", "--prune")
    assert (again["encoded"], again["refreshed"], again["moved"], again["removed"]) == (1, 1, 1, 1)
    found = vectors(tmp_path / "gallery")
    assert found["photos/02.png"] == found["photos/04.png"]
    assert "photos/08.png" not in found


def test_two_buckets_with_folders_of_one_name_stay_apart(
    bucket: str, photos: Path, bundle: Path, tmp_path: Path
) -> None:
    for place in ("one", "two"):
        upload(photos, f"{bucket}/{place}/photos")
        assert printed("index", bundle, f"{bucket}/{place}/photos", "-o", tmp_path / "gallery")["added"] == 30
    assert {id.partition("/")[0] for id in vectors(tmp_path / "gallery")} == {"photos", "photos-2"}


def test_a_cluster_reads_the_pictures_itself(photos: Path, bundle: Path, tmp_path: Path, ray_cluster: Cluster) -> None:
    url = f"file://{photos}"
    printed("index", bundle, photos, "-o", tmp_path / "plain")
    command = ["index", bundle, url, "-o", tmp_path / "shards", "--ray", ray_cluster.address, "--shard-rows", 20]
    assert printed(*command)["encoded"] == 30
    assert printed(*command)["encoded"] == 0
    assert vectors(tmp_path / "shards") == vectors(tmp_path / "plain")


def test_an_address_stands_alone_and_must_hold_pictures(bucket: str, bundle: Path, tmp_path: Path) -> None:
    for arguments, reason in (
        ([f"{bucket}/a", f"{bucket}/b"], "an address must be the only source"),
        ([f"{bucket}/a", "--captions"], "an address must be the only source, and it holds pictures"),
        ([f"{bucket}/a"], f"below {bucket}/a"),
        (["ftp://host/a"], "url must begin with s3://"),
    ):
        result = chan("index", bundle, *arguments, "-o", tmp_path / "gallery")
        assert result.exit_code != 0
        assert reason in " ".join(result.output.split())
