"""The simulation of many shards follows its record and its own laws; the benchmark that makes records runs by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from chan_rt.bench.ray_shards import _shard_times, _waves
from chan_rt.bench.simulate_shards import Assumed, Recorded, main, simulate
from chan_rt.runtime import AlignmentConfig, Embeddings, GalleryWriter, split_gallery

EVEN = Assumed(straggling=0.0, load=1e-6, efficiency=1.0, cores=1)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Shards that take 1 ms and 0.01 ms for each image, all queries alike, with a router of 2 ms and 0.5 ms a shard."""
    shards: dict[str, Any] = {
        str(count): {"shard_ms": [[1 + 40 / count] * 5] * count, "router_cpu_ms": 2 + 0.5 * count}
        for count in (1, 2, 4)
    }
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"images": 4000, "shards": shards}))
    return path


def test_a_record_of_straight_lines_is_read_as_such(record: Path) -> None:
    recorded = Recorded.read(record)
    assert recorded.per_image == pytest.approx(0.01)
    assert recorded.fixed == pytest.approx(1)
    assert recorded.router_per_shard == pytest.approx(0.5)
    assert recorded.router_fixed == pytest.approx(2)
    np.testing.assert_array_equal(recorded.spread, 1)


def test_without_load_and_stragglers_an_answer_takes_the_router_and_the_slowest_shard(record: Path) -> None:
    recorded = Recorded.read(record)
    for images, shards in ((10**6, 1), (10**7, 5)):
        found = simulate(images, 1, False, recorded, EVEN, 200)
        assert found["nodes"] == shards == np.ceil(images * EVEN.image_bytes / 102.4e9)
        slowest = 1 + 0.01 * images / shards
        assert found["p50_ms"] == pytest.approx(2 + 0.5 * shards + slowest, rel=0.01)
        assert found["p99_ms"] == pytest.approx(found["p50_ms"], rel=0.01)


def test_hedging_shortens_what_stragglers_make_long_and_load_makes_it_longer(record: Path) -> None:
    recorded = Recorded.read(record)
    slow = replace(EVEN, straggling=0.01)
    plain, hedged = (simulate(10**7, 2, way, recorded, slow, 2000) for way in (False, True))
    assert plain["p99_ms"] > 9 * plain["p50_ms"]
    assert hedged["p99_ms"] < 3.5 * hedged["p50_ms"]
    assert hedged["asked_again"] == pytest.approx(0.01, rel=0.3)
    busy = simulate(10**7, 1, False, recorded, replace(slow, load=0.8), 2000)
    assert busy["p99_ms"] > 1.5 * plain["p99_ms"]
    assert busy["queries_per_second"] > plain["queries_per_second"]


def test_the_command_writes_what_is_simulated_and_measured_apart(record: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = CliRunner().invoke(main, ["--record", str(record), "--queries", "20", "-o", str(out)])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert [row["images"] for row in written["simulated"]] == [10**p for p in (6, 7, 8, 9) for _ in range(3)]
    assert written["simulated"][-1]["limit"] == "nodes"
    slow_router = replace(Recorded.read(record), router_per_shard=50.0)
    assert simulate(10**9, 2, True, slow_router, Assumed(), 20)["limit"] == "router"
    assert written["measured"]["record"] == "record.json"
    assert written["assumed"]["straggling"] == Assumed.straggling


def test_the_benchmark_measures_each_shard(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def rows(count: int) -> Embeddings:
        return Embeddings(rng.standard_normal((count, 2, 16)).astype(np.float32), np.full(count, 2, np.int32))

    with GalleryWriter.create(tmp_path / "one", dim=16, alignment=AlignmentConfig.maxsim()) as writer:
        writer.add([str(i) for i in range(60)], rows(60))
    split_gallery(tmp_path / "one", tmp_path / "many", 3)
    times = np.array(_shard_times(tmp_path / "many", rows(4)))
    assert times.shape == (3, 4)
    assert (times > 0).all()
    ways = _waves(tmp_path / "many", rows(4))
    assert ways["at_once_work"] > ways["at_once_path"] > 0
    assert ways["first_before_work"] > ways["first_before_path"] > 0
