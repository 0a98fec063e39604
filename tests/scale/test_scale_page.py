"""docs/scale.md runs as it stands, from top to bottom, beside an S3 server and a gallery of 1,200 rows.

The server of the tests stands for the page's, a bucket of its for `s3://bucket`, and the cluster of the tests for the
page's.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from chan_rt.bench.own_cluster import NODE
from chan_rt.runtime import Embeddings, Gallery, GalleryWriter, gallery_settings
from chan_rt.scale.remote import Remote

from ..run_chan import chan
from .served import serving

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

CAPTION = "a red apple and a strawberry"
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python)?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_small_model) -> Path:
    """What the page takes for granted: `bundle`, `gallery`, which was made with it, and `photos`."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("bundle").symlink_to(make_small_model(pictures=True).bundle)
    Path("photos").mkdir()
    for i in range(260):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(f"photos/{i:03}.png")
    vectors = rng.standard_normal((1200, 4, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    with GalleryWriter.create("gallery", gallery_settings("bundle")) as writer:
        writer.add([f"photos/{i}.png" for i in range(1200)], Embeddings(vectors, np.full(1200, 4, np.int32)))
    return tmp_path / "gallery"


def run(line: str) -> str:
    result = chan(*shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, (line, result.output)
    return result.stdout


def test_every_block_runs(gallery: Path, bucket: str, ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)  # it is the cluster of this machine
    names: dict[str, Any] = {}
    for path in Path("photos").iterdir():
        Remote(f"{bucket}/photos").put(path.name, path.read_bytes())
    printed: dict[str, str] = {}
    for number, (language, text) in enumerate(BLOCKS):
        block = text.replace("s3://bucket", bucket).replace("10.0.0.1:6379", ray_cluster.address)
        if language:
            exec(compile(block, f"{PAGE.name} block {number}", "exec"), names)
        elif block.startswith("chan ") and "--skip-damaged" in block:
            printed["whole"] = run('chan search shards "a red apple and a strawberry"')
            run("chan gallery rebalance shards --shards 4")
            shutil.move("shards/shard-000009", "elsewhere")
            printed["lacking"] = run(block)
            shutil.move("elsewhere", "shards/shard-000009")
        elif block.startswith("chan serve"):
            run("chan gallery rebalance shards --shards 2")  # fewer processes to start
            node = ray_cluster.add_node(**NODE | {"num_cpus": 8})
            for line in block.splitlines():
                with serving(gallery.parent / "log", *shlex.split(line, comments=True)[2:]) as client:
                    served = client.post("/v1/search", json={"captions": [CAPTION]}).json()["results"][0]
                expected = json.loads(run(f'chan search shards "{CAPTION}" --json'))["hits"]
                assert [(hit["id"], hit["score"]) for hit in served["hits"]] == [
                    (hit["id"], hit["score"]) for hit in expected
                ]
                assert served["certified"]
            ray_cluster.remove_node(node)
        elif block.startswith("chan "):
            for line in block.splitlines():
                printed[line.partition(" #")[0].strip()] = run(line)
    searched = printed['chan search shards "a red apple and a strawberry"']
    assert searched.splitlines()[:-1] == printed["whole"].splitlines()[:-1]
    assert "\ncertified: " in searched
    assert run('chan search gallery "a red apple and a strawberry"').splitlines()[:10] == searched.splitlines()[:10]
    (verdict,) = (line for line in printed["lacking"].splitlines() if line.startswith("not certified"))
    (said,) = (block for _, block in BLOCKS if block.startswith("not certified"))
    shown = said.strip().replace("shard-000002", "shard-000009")
    assert verdict.startswith(shown.partition(" (")[0])
    assert (
        printed[f'chan search {bucket}/gallery "a red apple and a strawberry"'].splitlines()[:10]
        == (searched.splitlines()[:10])
    )
    with Gallery.open("shards") as shards, Gallery.open("merged") as merged, Gallery.open("pulled") as pulled:
        assert len(pulled) == 1200
        assert [row.id for row in shards.rows()] == [row.id for row in merged.rows()]
        assert len(shards) == 1200
    with Gallery.open("fleet") as fleet, Gallery.open("from-bucket") as from_bucket:
        assert [row.id for row in from_bucket.rows()] == [row.id for row in fleet.rows()]
        assert list(fleet.info()["shards"].values()) == [100, 100, 60]
    (folder,) = (block for _, block in BLOCKS if block.startswith("shards/shards"))
    named = {re.sub(r"shard-\d+/", "shard-N/", line.split()[0]) for line in folder.splitlines()}
    there = {f"shards/{path.name}{'/' * path.is_dir()}" for path in Path("shards").iterdir()}
    assert {re.sub(r"shard-\d+/", "shard-N/", name) for name in there} == named
