"""The benchmark of shards compares like with like, and known scores spare work."""

from chan_rt.bench.shards import measure


def test_shards_find_the_same_and_known_scores_spare_work() -> None:
    found = measure(images=240, queries=8, shards=(3,), dim=64)
    one, shards, alone = found["ways"].values()
    assert one["rescored_rows"] <= shards["rescored_rows"] < alone["rescored_rows"]
    assert shards["int8_rows"] <= alone["int8_rows"]
    assert min(way["cpu_ms"] for way in found["ways"].values()) > 0
