"""One process of the GPU benchmark: what it times, profiles and counts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from chan_rt.bench import gpu as bench
from chan_rt.bench import gpu_run, gpu_worker
from chan_rt.bench.gpu_candidates import Where


@pytest.mark.parametrize(("left", "expected"), [([], 30 * 4 * 64), ([5, 9, 7], None)])
def test_bytes_read_are_those_of_the_level_and_of_what_it_leaves(left: list[int], expected: int | None) -> None:
    where = Where(None, left=left)
    images = SimpleNamespace(count=1000, regions=4, dim=1024, size=lambda precision: 30 * 4 * 64)
    found = gpu_worker.bytes_read(images, where, "int8")
    assert found == (expected or 4 * (1000 * 128 + (7 + 256) * 1024))


def test_another_caption_is_searched_for_at_each_call() -> None:
    asked: list[int] = []
    flushed: list[int] = []

    def find(captions: list) -> list:
        asked.extend(captions)
        return []

    times = gpu_worker.timed(find, [0, 1, 2], 0.0, lambda: flushed.append(len(asked)))
    assert len(times) == 5
    assert asked == [0, 1, 2, 0, 1, 2, 0, 1]
    assert flushed == [3, 4, 5, 6, 7], "before each call that is timed"


def test_the_functions_that_take_longest_are_named() -> None:
    asked: list[int] = []

    def slow() -> None:
        time.sleep(0.002)

    def find(captions: list) -> list:
        asked.append(len(captions))
        slow()
        return []

    found = gpu_worker.profiled(find, [[0, 1]] * 3)
    assert asked == [2] * 7, "one warms up, three are timed, three are profiled"
    assert found["captions"] == 2
    assert found["ms"] >= 2
    first = found["functions"][0]
    assert "sleep" in first["function"]
    assert first["calls"] == 1
    assert first["ms"] >= 2


def test_the_host_is_profiled_with_one_caption_and_with_many(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = bench.jobs(["host"], [], [20], (1, 1), (4, 4, 64), 0.0, Path("demo"), interpreted=False)
    asked: list[int] = []

    @contextmanager
    def candidate(images: object, where: Where) -> Iterator[Callable]:
        yield lambda captions: asked.append(len(captions))

    monkeypatch.setattr(gpu_worker, "candidates", lambda: {bench.CERTIFIED: candidate})
    found = gpu_worker.host(job.request | {"case": str(case), "capability": None})
    assert (found["one"]["captions"], found["many"]["captions"]) == (1, 512)
    assert set(asked) == {1, 512}
    assert gpu_run._brief(found).startswith("1 at once in ")
