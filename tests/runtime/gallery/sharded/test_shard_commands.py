"""What takes a gallery takes one in shards: `chan index`, `search`, `gallery` and `serve`."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from chan_rt.serve import Settings
from chan_rt.serve.app import create_app
from chan_rt.serve.state import State

from ....run_chan import chan, ok

CAPTION = "two red Clouds"


def paint(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 60, 3), np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        paint(folder / f"{i}.png", i)
    return folder


def hits(gallery: Path) -> list[tuple[str, float]]:
    return [(hit["id"], hit["score"]) for hit in json.loads(ok("search", gallery, CAPTION, "--json"))["hits"]]


def test_commands_take_shards(make_small_model: Callable, photos: Path, tmp_path: Path) -> None:
    bundle, gallery, shards = make_small_model(pictures=True).bundle, tmp_path / "g", tmp_path / "shards"
    ok("index", bundle, photos, "-o", gallery)
    assert "9 rows in 3 shards of 3 rows each" in ok("gallery", "split", gallery, "-o", shards, "--shards", 3)
    assert hits(shards) == hits(gallery)
    assert "0 encoded, 9 already there" in ok("index", bundle, photos, "-o", shards)
    paint(photos / "4.png", 40)
    (photos / "1.png").rename(photos / "moved.png")
    (photos / "8.png").unlink()
    paint(photos / "new.png", 41)
    for path in (gallery, shards):
        done = json.loads(ok("index", bundle, photos, "-o", path, "--prune", "--json"))
        assert (done["added"], done["refreshed"], done["moved"], done["removed"]) == (1, 1, 1, 1)
    assert hits(shards) == hits(gallery)
    assert ok("gallery", "list", shards, "--json") == ok("gallery", "list", gallery, "--json")
    for path in (gallery, shards):
        assert "1 deleted" in ok("gallery", "delete", path, "photos/3.png")
    assert json.loads(ok("gallery", "info", shards, "--json"))["rows"] == 8
    ok("gallery", "compact", shards)
    (tmp_path / "queries.txt").write_text("red apple\nblue table\nwhite clouds\ntwo clouds\n")
    assert "top 10 over 2 queries" in ok("gallery", "prepare", shards, "--queries", tmp_path / "queries.txt")
    assert "in 2 shards of 4 rows each" in ok("gallery", "rebalance", shards, "--shards", 2)
    assert "8 rows, every byte is as it was committed" in ok("gallery", "verify", shards)
    assert "nothing was damaged" in ok("gallery", "repair", shards)
    ok("gallery", "export", shards, "-o", tmp_path / "out.npz")
    ok("search", shards, CAPTION, "--html", tmp_path / "hits.html")
    ok("search", shards, "--like", "photos/5.png")
    assert hits(shards) == hits(gallery)
    assert "merged: 8 rows" in ok("gallery", "merge", shards, "-o", tmp_path / "merged")
    assert hits(tmp_path / "merged") == hits(gallery)
    moved = shutil.move(bundle, tmp_path / "bundle")
    try:
        assert "certified" in ok("search", shards, CAPTION, "--bundle", moved)
        assert "certified" in ok("search", shards, CAPTION), "the shards remember where the bundle is now"
    finally:
        shutil.move(moved, bundle)


def test_mistakes_are_one_line(make_small_model: Callable, photos: Path, tmp_path: Path) -> None:
    bundle, gallery, shards = make_small_model(pictures=True).bundle, tmp_path / "g", tmp_path / "shards"
    ok("index", bundle, photos, "-o", gallery)
    ok("gallery", "split", gallery, "-o", shards, "--shards", 2)
    for words, message in (
        (("gallery", "split", gallery, "-o", shards, "--shards", 2), "already exists and is not empty"),
        (("gallery", "split", gallery, "-o", tmp_path / "x", "--shards", 10), "at most the number of rows, 9, got 10"),
        (
            ("gallery", "rebalance", gallery, "--shards", 2),
            "is not a gallery in shards; make one with: chan",
        ),
        (("gallery", "kernel", shards), "is a gallery in shards, which is searched on the CPU"),
        (("search", shards, CAPTION, "--device", "cuda"), "a gallery in shards is searched on the CPU, got cuda"),
    ):
        result = chan(*words)
        assert result.exit_code == 1
        assert message in result.output
        assert result.output.count("\n") == 1


def test_a_server_searches_and_changes_shards(make_small_model: Callable, photos: Path, tmp_path: Path) -> None:
    gallery, shards = tmp_path / "g", tmp_path / "shards"
    ok("index", make_small_model(pictures=True).bundle, photos, "-o", gallery)
    ok("gallery", "split", gallery, "-o", shards, "--shards", 3)
    state = State(Settings({"mine": shards}, threads=1, writable=True))

    async def scenario() -> None:
        transport = httpx.ASGITransport(create_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            body = {"captions": [CAPTION], "k": 20}
            before = (await client.post("/v1/search", json=body)).json()["results"][0]
            assert before["certified"]
            assert [(hit["id"], hit["score"]) for hit in before["hits"]] == [
                (id, pytest.approx(score)) for id, score in hits(gallery)
            ]
            rows = {"ids": ["new"], "pictures": [base64.b64encode((photos / "1.png").read_bytes()).decode()]}
            answer = await client.put("/v1/galleries/mine/rows", json=rows)
            assert answer.status_code == 200, answer.text
            assert answer.json()["rows"] == 10
            await asyncio.to_thread(ok, "gallery", "rebalance", shards, "--shards", 2)
            after = (await client.post("/v1/search", json=body)).json()["results"][0]
            assert {hit["id"] for hit in after["hits"]} == {"new", *(hit["id"] for hit in before["hits"])}
            gone = await client.request("DELETE", "/v1/galleries/mine/rows", json={"ids": ["new"]})
            assert gone.json()["rows"] == 9

    state.galleries.reopen()
    state.ready = True
    try:
        asyncio.run(scenario())
    finally:
        state.close()
