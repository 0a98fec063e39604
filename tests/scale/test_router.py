"""The router of shards in other processes never certifies a wrong answer, whatever the processes do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime import Gallery, ShardedWriter
from chan_rt.runtime.errors import GalleryError, GalleryIncomplete, InputError
from chan_rt.runtime.gallery.sharded.manifest import read_manifest
from chan_rt.scale.asking import Patience
from chan_rt.scale.questions import Broken, Gone, Question, SearchShard
from chan_rt.scale.router import Commits, Router
from chan_rt.scale.shard_host import ShardHost

from .fake_shards import FakeTransport, answers_of, hits_of, make_shards, plain, rows_of, run

PATIENCE = Patience(hedge=1.0, limit=5.0)
Behave = Callable[[int, int], Any]


def search(folder: Path, behave: Behave, queries: Any, k: int, patience: Patience = PATIENCE, **choice: Any) -> Any:
    """(answers, seconds, questions) of one search through a router with one slot for each shard."""
    transport = FakeTransport(folder, len(read_manifest(folder)[1].shards), behave)

    async def work() -> Any:
        router = Router(Commits(folder), transport, patience)
        try:
            return await router.search(queries, k, same_kind=True, **choice)
        finally:
            await router.close()

    try:
        results, seconds = run(work)
        return results, seconds, transport.asked
    finally:
        transport.close()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shards=st.integers(1, 5),
    count=st.sampled_from([1, 3, 12]),
    k=st.sampled_from([1, 4, 50]),
    ties=st.booleans(),
    choice=st.sampled_from(["all", "where", "ids", "ids and where", "no ids", "at_least", "no row"]),
)
def test_answers_are_those_of_one_gallery(seed: int, shards: int, count: int, k: int, ties: bool, choice: str) -> None:
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as scratch:
        folder = make_shards(Path(scratch), shards, rows_of(rng, 40, ties))
        with ShardedWriter.open(folder) as writer:
            writer.delete([f"r{i}" for i in rng.permutation(40)[:7]])
            writer.add(["late"], rows_of(rng, 1, ties), [{"n": 40, "even": True, "late": True}])
        with Gallery.open(folder) as gallery:
            left = [row.id for row in gallery.rows()]
        queries = rows_of(rng, count, ties)
        given_as: dict[str, Any] = {
            "all": {},
            "where": {"where": {"even": True}},
            "ids": {"ids": left[::2]},
            "ids and where": {"ids": left[:4], "where": {"late": True}},  # only the last row has the key
            "no ids": {"ids": [], "where": {"n": 1}},
            "at_least": {"at_least": 0.1},
            "no row": {"where": {"n": -1}},
        }[choice]
        found, *_ = search(folder, lambda slot, number: float(rng.random()) * 0.5, queries, k, **given_as)
        assert plain(found) == answers_of(folder, queries, k, **given_as)


@dataclass
class Moment:
    """What is right at one commit: each query's ranking of all rows, and the ids of each shard by its name."""

    rankings: list[list[Any]]
    shards: dict[str, set[str]]
    reason: str


def moment(folder: Path, queries: Any) -> Moment:
    """What is right now."""
    shards = {}
    host = ShardHost(folder, 1)
    for entry in read_manifest(folder)[1].shards:
        part = host._part(Question(0, entry, SearchShard(queries, 1, ())))
        shards[entry.name] = {row.id for row in part.rows()}
    host.close()
    with Gallery.open(folder, threads=1) as gallery:
        found = gallery.search(queries, 1000, same_kind=True)
    return Moment([hits_of(one) for one in found], shards, found[0].reason)


def is_right(results: Any, right: Moment, k: int) -> bool:
    """Whether all answers are of this commit: certified ones of all rows, others of all rows but those they name."""
    for result, ranking in zip(results, right.rankings, strict=True):
        lost = {id for name, ids in right.shards.items() if f"{name} with rows" in result.reason for id in ids}
        if result.certified == bool(lost) or hits_of(result) != [hit for hit in ranking if hit[0] not in lost][:k]:
            return False
        if not result.certified and not result.reason.startswith(f"{len(lost)} rows are lost and were left out"):
            return False
    return True


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([1, 6]),
    ties=st.booleans(),
    trouble=st.sampled_from([0.0, 0.2, 0.6]),
    changes=st.sampled_from([0.0, 0.15]),
    slots=st.integers(1, 4),
)
def test_no_answer_is_wrong_whatever_happens_meanwhile(
    seed: int, count: int, ties: bool, trouble: float, changes: float, slots: int
) -> None:
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as scratch:
        folder = make_shards(Path(scratch), 3, rows_of(rng, 30, ties))
        queries, k = rows_of(rng, count, ties), int(rng.choice([1, 3, 100]))
        moments = [moment(folder, queries)]

        def behave(slot: int, number: int) -> Any:
            if rng.random() < changes:
                change(rng, folder, ties)
                moments.append(moment(folder, queries))
            if rng.random() < trouble:
                return [20.0, 1.5, OSError("killed"), Gone(), Broken("a file is damaged")][rng.integers(5)]
            return float(rng.random())

        transport = FakeTransport(folder, slots, behave)

        async def work() -> None:
            router = Router(Commits(folder), transport, PATIENCE)
            for _ in range(5):
                first = len(moments) - 1
                results = await router.search(queries, k, same_kind=True)
                assert any(is_right(results, right, k) for right in moments[first:])
            await router.close()

        run(work)
        transport.close()


def change(rng: np.random.Generator, folder: Path, ties: bool) -> None:
    """Commit something."""
    with ShardedWriter.open(folder) as writer:
        ids = [row.id for row in writer.rows()]
        what = rng.choice(["add", "delete", "rebalance", "compact"])
        if what == "add":
            writer.add([f"s{rng.integers(1 << 60)}" for _ in range(3)], rows_of(rng, 3, ties))
        elif what == "delete" and len(ids) > 12:
            writer.delete(rng.permutation(ids)[:3].tolist())
        elif what == "rebalance":
            writer.rebalance(int(rng.integers(1, 5)))
        else:
            writer.compact()


def test_a_late_shard_is_asked_twice_and_the_first_answer_counts(shards: Path, query: Any) -> None:
    late = {1}

    def behave(slot: int, number: int) -> float:
        return 20.0 if slot in late and not late.discard(slot) else 0.1

    found, seconds, asked = search(shards, behave, query, 5)
    assert plain(found) == answers_of(shards, query, 5)
    assert seconds == pytest.approx(PATIENCE.hedge + 0.1)
    assert [slot for slot, _ in asked] == [0, 1, 2, 1]
    assert asked[-1][1].task.at_least[0] > -np.inf  # the floor that the other shards found travels with it


def test_a_shard_that_fails_is_asked_again_at_once(shards: Path, query: Any) -> None:
    failures = {0: 2}

    def behave(slot: int, number: int) -> Any:
        failures[slot] = failures.get(slot, 0) - 1
        return OSError("killed") if failures[slot] >= 0 else 0.1

    found, seconds, _ = search(shards, behave, query, 5)
    assert plain(found) == answers_of(shards, query, 5)
    assert seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("behavior", "problem", "seconds"),
    [
        (100.0, "it did not answer within 5 seconds", 5.0),
        (OSError("killed"), "its process failed", 0.1),
        (Broken("shard-000002/catalogue is damaged"), "shard-000002/catalogue is damaged", 0.1),
        (Gone(), "it is missing", 0.1),
    ],
)
def test_a_shard_without_an_answer_is_named(
    shards: Path, query: Any, behavior: Any, problem: str, seconds: float
) -> None:
    found, took, _ = search(shards, lambda slot, number: behavior if slot == 1 else 0.1, query, 5)
    (result,) = found
    assert not result.certified
    assert result.reason == f"10 rows are lost and were left out: shard-000002 with rows 10 to 19 ({problem})"
    assert result.rows == 20
    assert took == pytest.approx(seconds)
    with Gallery.open(shards) as gallery:
        others = [f"r{i}" for i in range(30) if not 10 <= i < 20]
        (expected,) = gallery.search(query, 5, ids=others, same_kind=True)
    assert hits_of(result) == hits_of(expected)
    complete = Patience(PATIENCE.hedge, PATIENCE.limit, complete=True)
    with pytest.raises(GalleryIncomplete, match=r"shard-000002 with rows 10 to 19 \("):
        search(shards, lambda slot, number: behavior if slot == 1 else 0.1, query, 5, complete)


def test_a_shard_that_is_down_delays_one_search_and_comes_back(shards: Path, query: Any) -> None:
    asleep = [True]
    transport = FakeTransport(shards, 3, lambda slot, number: 100.0 if slot == 2 and asleep[0] else 0.1)

    async def work() -> list[tuple[bool, float]]:
        loop, found = asyncio.get_running_loop(), []
        router = Router(Commits(shards), transport, PATIENCE)
        for step in range(4):
            if step == 2:
                asleep[0] = False
                await asyncio.sleep(101)
            began = loop.time()
            (result,) = await router.search(query, 5, same_kind=True)
            found.append((result.certified, round(loop.time() - began, 3)))
            assert bool(router.asker.down) is not result.certified
        await router.close()
        return found

    assert run(work)[0] == [(False, 5.0), (False, 0.1), (True, 0.1), (True, 0.1)]
    transport.close()


def test_rows_are_found_in_every_shard_and_may_be_in_one_that_is_silent(shards: Path) -> None:
    silent: set[int] = set()
    transport = FakeTransport(shards, 3, lambda slot, number: OSError() if slot in silent else 0.1)

    async def work() -> None:
        router = Router(Commits(shards), transport, PATIENCE)
        with Gallery.open(shards) as gallery:
            ids = ["r25", "r3", "r12"]
            found = await router.find(ids, embeddings=True)
            assert [row for row, _ in found] == gallery.find(ids)
            for id, (_, embeddings) in zip(ids, found, strict=True):
                assert embeddings is not None
                np.testing.assert_array_equal(embeddings.vectors, gallery.embeddings([id]).vectors)
            with pytest.raises(InputError, match="ids: not in the gallery: nobody"):
                await router.find(["r3", "nobody"])
            with pytest.raises(InputError, match="ids: not in the gallery: nobody"):
                await router.search(gallery.embeddings(["r1"]), ids=["r3", "nobody"], same_kind=True)
            with pytest.raises(InputError, match="where: no row has the key 'nowhere'"):
                await router.search(gallery.embeddings(["r1"]), where={"nowhere": 1}, same_kind=True)
            silent.add(1)
            assert [row.id for row, _ in await router.find(["r3", "r25"])] == ["r3", "r25"]
            with pytest.raises(GalleryIncomplete, match="one of them may be r12"):
                await router.find(["r3", "r12"])
            (result,) = await router.search(gallery.embeddings(["r1"]), ids=["r3", "r12"], same_kind=True)
            assert ([hit.id for hit in result.hits], result.certified) == (["r3"], False)
        await router.close()

    run(work)
    transport.close()


def test_a_gallery_that_changes_all_the_time_is_an_error(shards: Path, query: Any) -> None:
    rng = np.random.default_rng(0)

    def behave(slot: int, number: int) -> Any:
        with ShardedWriter.open(shards) as writer:
            writer.add([f"new{number}"], rows_of(rng, 1))
        return Gone()

    with pytest.raises(GalleryError, match="it is changed faster than it is searched"):
        search(shards, behave, query, 5)


def test_a_host_answers_from_the_commit_that_is_named(shards: Path, query: Any) -> None:
    host = ShardHost(shards, 1)
    before = read_manifest(shards)[1]
    task = SearchShard(query, 3, (-np.inf,))
    old = host.answer(Question(before.generation, before.shards[0], task))
    with ShardedWriter.open(shards) as writer:
        writer.delete([old.results[0].hits[0].id])
    after = read_manifest(shards)[1]
    new = host.answer(Question(after.generation, after.shards[0], task))
    assert new.results[0].hits[0].id != old.results[0].hits[0].id
    again = host.answer(Question(before.generation, before.shards[0], task))
    assert plain(again.results) == plain(old.results)
    fresh = ShardHost(shards, 1)
    assert fresh.answer(Question(before.generation, before.shards[0], task)) == Gone()
    host.answer(Question(after.generation + 5, after.shards[1], task))  # commits that nobody asks for are let go
    host.answer(Question(after.generation + 6, after.shards[1], task))
    assert host.answer(Question(before.generation, before.shards[0], task)) == Gone()
    for generation in (after.generation + 5, after.generation + 6, after.generation):  # as of a copy that is restored
        host.answer(Question(generation, after.shards[2], task))
    kept = host._part(Question(after.generation, after.shards[0], task))
    assert host._part(Question(after.generation, after.shards[0], task)) is kept
    host.close()
    fresh.close()
