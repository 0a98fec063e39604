"""Every command of `chan gallery` prints its result as JSON where it is asked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import pytest

from chan_rt.commands.gallery import command as group
from chan_rt.runtime import AlignmentConfig, Embeddings, GalleryWriter

from ..run_chan import chan

DIM = 8


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the gallery `g` of six rows, `0` to `5`, and queries for it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal((3, DIM)).astype(np.float32) for _ in range(6)]
    with GalleryWriter.create("g", dim=DIM, alignment=AlignmentConfig.maxsim()) as writer:
        writer.add([str(i) for i in range(6)], Embeddings.from_rows(vectors))
    np.save("queries.npy", np.stack(vectors))
    return tmp_path


def run(*words: str, status: int = 0) -> Any:
    """What a command prints to stdout, as JSON."""
    done = chan("gallery", *words, "--json")
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def test_every_command_has_the_option() -> None:
    commands = cast("click.Group", group).commands
    assert len(commands) >= 14
    assert [name for name, one in commands.items() if "as_json" not in {p.name for p in one.params}] == []


def test_results_are_json(desk: Path) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    assert run("info", "g")["rows"] == 6
    assert run("delete", "g", "5") == {"gallery": "g", "deleted": 1, "rows": 5}
    assert run("compact", "g") == {"gallery": "g", "rows": 5}
    assert "prepared" in run("prepare", "g", "--queries", "queries.npy")
    assert run("verify", "g") == {"gallery": "g", "rows": 5, "damaged": []}
    shards = {"shard-000001": 2, "shard-000002": 3}
    assert run("split", "g", "-o", "s", "--shards", "2") == {"gallery": "s", "rows": 5, "shards": shards}
    assert run("rebalance", "s", "--shards", "3") == {"gallery": "s", "rows": 5, "shards": 3}
    assert run("merge", "s", "-o", "m") == {"gallery": "m", "rows": 5}
    url = f"file://{desk}/store"
    sent = run("push", "m", url)
    assert run("pull", url, "-o", "p") == {"gallery": "p", "url": url, "rows": 5, "bytes": sent["bytes"]}
    assert [row["id"] for row in run("list", "p")] == ["0", "1", "2", "3", "4"]


def test_damage_is_json_too(desk: Path) -> None:
    file = max((desk / "g" / "segments").iterdir(), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    found = run("verify", "g", status=1)
    assert found["gallery"] == "g"
    assert any(file.name in problem for problem in found["damaged"])
