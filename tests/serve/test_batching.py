"""Batches: at once while idle, together under load, in order, bounded in words; and one scan for equal searches."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import (
    AlignmentConfig,
    Embeddings,
    Gallery,
    GalleryWriter,
    Matcher,
    open_for_writing,
    open_gallery_with_matcher,
    split_gallery,
)
from chan_rt.runtime.embeddings import Kind
from chan_rt.runtime.gallery.result import SearchResult
from chan_rt.runtime.gallery.where import Filter
from chan_rt.serve import Settings
from chan_rt.serve import batching as batching_module
from chan_rt.serve import jobs as jobs_module
from chan_rt.serve import state as state_module
from chan_rt.serve import work as work_module
from chan_rt.serve.answers import search_response
from chan_rt.serve.batching import Batcher, Job
from chan_rt.serve.galleries import OpenGallery
from chan_rt.serve.jobs import make_job
from chan_rt.serve.state import State
from chan_rt.serve.work import Search, Work, encode_texts, run_batch


class Worker:
    """Runs batches that last until they are told to end."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)

    def run(self, jobs: Sequence[Job]) -> None:
        self.batches.append([job.words for job in jobs])
        assert self.go.acquire(timeout=20)
        for job in jobs:
            if job.words == 13:
                job.error = ValueError("unlucky")
        if any(job.words == 99 for job in jobs):
            raise RuntimeError("the batch failed")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_waits_is_the_next_batch_in_order_and_within_the_words() -> None:
    async def scenario() -> list[list[int]]:
        worker = Worker()
        batcher = Batcher(worker.run, lanes=1, words=10)
        tasks = []
        for words in (3, 4, 5, 2, 30, 1):
            tasks.append(asyncio.create_task(batcher.do(Job(words=words))))
            await settle()
        assert (batcher.waiting, batcher.waiting_words) == (5, 42)
        worker.go.release(10)
        await asyncio.gather(*tasks)
        assert (batcher.waiting, batcher.waiting_words) == (0, 0)
        batcher.close()
        return worker.batches

    # The first starts alone, 4 + 5 fit in 10 words and 2 more do not, and 30 words are a batch of their own.
    assert asyncio.run(scenario()) == [[3], [4, 5], [2], [30], [1]]


def test_lanes_work_at_the_same_time() -> None:
    async def scenario() -> None:
        barrier = threading.Barrier(2, timeout=20)
        batcher = Batcher(lambda jobs: barrier.wait() and None, lanes=2, words=10)
        await asyncio.gather(batcher.do(Job(words=1)), batcher.do(Job(words=1)))
        batcher.close()

    asyncio.run(scenario())


class Gates:
    """Runs batches; one with a job of 5 words or more lasts until that job's gate is opened."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gates = {words: threading.Event() for words in (5, 6)}

    def run(self, jobs: Sequence[Job]) -> None:
        self.batches.append([job.words for job in jobs])
        for job in jobs:
            assert job.words < 5 or self.gates[job.words].wait(20)


async def until_patience_ends() -> None:
    await settle()
    await asyncio.sleep(2 * batching_module.PATIENCE)  # a timer that is due after those of the batches


def test_what_waits_goes_by_a_batch_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query of 256 vectors that resemble no row held up all others for 13 s."""
    monkeypatch.setattr(batching_module, "PATIENCE", 0.01)
    monkeypatch.setattr(batching_module, "SLACK", 0)

    async def scenario() -> None:
        worker = Gates()
        batcher = Batcher(worker.run, lanes=1, words=10, beside=1)
        first = asyncio.create_task(batcher.do(Job(words=5)))
        await settle()
        await asyncio.gather(*(batcher.do(Job(words=words)) for words in (1, 2)))
        assert worker.batches == [[5], [1, 2]]
        second = asyncio.create_task(batcher.do(Job(words=6)))
        await until_patience_ends()
        last = asyncio.create_task(batcher.do(Job(words=3)))
        await until_patience_ends()
        assert worker.batches == [[5], [1, 2], [6]], "more batches are at work than there may be"
        assert batcher.waiting == 1
        worker.gates[5].set()
        await asyncio.gather(first, last)
        assert worker.batches == [[5], [1, 2], [6], [3]]
        worker.gates[6].set()
        await second
        await batcher.do(Job(words=4))
        batcher.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize(("before", "beside"), [(False, 0), (True, 1)], ids=["no-room", "usual"])
def test_nothing_goes_by_where_there_is_no_room_or_batches_usually_take_as_long(
    monkeypatch: pytest.MonkeyPatch, before: bool, beside: int
) -> None:
    monkeypatch.setattr(batching_module, "PATIENCE", 0.01)
    monkeypatch.setattr(batching_module, "SLACK", 10**9)

    async def scenario() -> list[list[int]]:
        worker = Gates()
        batcher = Batcher(worker.run, lanes=1, words=10, beside=beside)
        if before:
            await batcher.do(Job(words=1))
        first = asyncio.create_task(batcher.do(Job(words=5)))
        await until_patience_ends()
        other = asyncio.create_task(batcher.do(Job(words=2)))
        await until_patience_ends()
        assert batcher.waiting == 1
        worker.gates[5].set()
        await asyncio.gather(first, other)
        batcher.close()
        return worker.batches

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == [[1], [5], [2]][not before :]


def test_a_job_that_nobody_waits_for_is_not_done() -> None:
    async def scenario() -> list[list[int]]:
        worker = Worker()
        batcher = Batcher(worker.run, lanes=1, words=10)
        first, given_up, last = (asyncio.create_task(batcher.do(Job(words=words))) for words in (1, 2, 3))
        await settle()
        given_up.cancel()
        await settle()
        worker.go.release(10)
        await asyncio.gather(first, last)
        batcher.close()
        return worker.batches

    assert asyncio.run(scenario()) == [[1], [3]]


def test_errors_reach_those_they_belong_to() -> None:
    async def scenario() -> list[object]:
        worker = Worker()
        worker.go.release(10)
        batcher = Batcher(worker.run, lanes=1, words=20)
        first = [batcher.do(Job(words=words)) for words in (1, 13, 2)]
        done = await asyncio.gather(*first, return_exceptions=True)
        done += await asyncio.gather(batcher.do(Job(words=99)), return_exceptions=True)
        done += await asyncio.gather(batcher.do(Job(words=1)), return_exceptions=True)
        batcher.close()
        return [None if one is None else str(one) for one in done]

    assert asyncio.run(scenario()) == [None, "unlucky", None, "the batch failed", None]


@pytest.mark.parametrize("words", [1, 256])
def test_no_small_request_waits_for_a_large_one(
    opened: OpenGallery, gallery: Path, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    """It waited for every batch that had one: 2 clients with 64 captions a request made one caption take 17 times as
    long (2.3 s)."""
    go = threading.Event()

    def run(jobs: Sequence[Job], most: int) -> None:
        assert max(job.words for job in jobs) <= words or go.wait(20)

    monkeypatch.setattr(state_module, "run_batch", run)

    async def scenario() -> None:
        state = State(Settings({"mine": gallery}))
        large = [asyncio.create_task(state.do(Work(opened=opened, words=257))) for _ in range(3)]
        await settle()
        await state.do(Work(opened=opened, words=words))
        state.report_work()
        exposed = state.metrics.exposition({})[0].decode().splitlines()
        assert {"chan_queue_requests 2.0", "chan_queue_words 514.0"} <= set(exposed)
        assert not any(task.done() for task in large)
        go.set()
        await asyncio.gather(*large)
        state.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_search_goes_by_one_that_takes_long_and_both_find_what_they_find_alone(
    opened: OpenGallery, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions, dim = ["a cloud", "the green apple"], opened.gallery.settings.dim
    hard = Embeddings.from_rows([np.random.default_rng(1).standard_normal((99, dim))], "captions")
    alone = opened.gallery.search(opened.matcher.encode_texts(captions), 3)
    hard_alone = opened.gallery.search(hard, 3)
    begun, go, search = threading.Event(), threading.Event(), Gallery.search

    def slow_search(self: Gallery, queries: Embeddings, k: int, **named: object) -> list[SearchResult]:
        if queries.vectors.shape[1] == 99:
            begun.set()
            assert go.wait(20)
        return search(self, queries, k, **named)

    def found(results: Sequence[SearchResult]) -> list[tuple[bool, list[tuple[str, float]]]]:
        return [(one.certified, [(hit.id, hit.score) for hit in one.hits]) for one in results]

    monkeypatch.setattr(Gallery, "search", slow_search)

    async def scenario() -> None:
        state = State(Settings({"mine": gallery}))
        slow = Work(opened=opened, words=99, embeddings=hard, search=Search(3))
        waiting = asyncio.create_task(state.do(slow))
        assert await asyncio.to_thread(begun.wait, 20)
        ordinary = Work(opened=opened, words=8, captions=captions, search=Search(3))
        await state.do(ordinary)
        assert not waiting.done()
        go.set()
        await waiting
        assert (found(ordinary.results), found(slow.results)) == (found(alone), found(hard_alone))
        state.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_one_picture_comes_between_those_of_requests_with_many(
    opened: OpenGallery, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for all of them: beside 2 clients with 40 pictures of 36 megapixels a request 41 s, and now 0.5 s."""
    decoded: list[bytes] = []

    def decode(opened: OpenGallery, data: bytes, pixels: int, name: str) -> None:
        time.sleep(0.01)
        decoded.append(data)

    monkeypatch.setattr(jobs_module, "decode_upload", decode)

    async def scenario() -> None:
        state = State(Settings({"mine": gallery}))
        many = [asyncio.create_task(make_job(state, opened, pictures=[b"many"] * 30)) for _ in range(2)]
        await settle()
        await make_job(state, opened, pictures=[b"one"])
        assert len(decoded) < 10
        assert [len(job.pictures) for job in await asyncio.gather(*many)] == [30, 30]
        state.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.fixture
def opened(gallery: Path):
    with open_gallery_with_matcher(gallery, threads=1) as (one, matcher):
        yield OpenGallery("mine", one, matcher, lambda: None)


CAPTIONS = ["a cloud", "two red apples lie on the blue table under two white clouds", "the green apple", "a"] * 3


@pytest.mark.parametrize("words", [1, 14, 30, 10_000])
def test_captions_are_encoded_as_alone_in_runs_of_bounded_words(opened: OpenGallery, words: int) -> None:
    alone = opened.matcher.encode_texts(CAPTIONS)
    with patch.object(Matcher, "encode_texts", autospec=True, side_effect=Matcher.encode_texts) as encode:
        together = encode_texts(opened.matcher, CAPTIONS, words)
    np.testing.assert_array_equal(together.lengths, alone.lengths)
    np.testing.assert_allclose(together.vectors, alone.vectors, atol=1e-6)
    runs = [[len(opened.matcher.tokenizer.tokens(text)) for text in call.args[1]] for call in encode.call_args_list]
    assert sorted(length for run in runs for length in run) == sorted(alone.lengths.tolist())
    for run in runs:
        assert len(run) == 1 or len(run) * max(run) <= words
    assert [length for run in runs for length in run] == sorted(alone.lengths.tolist())


def test_equal_searches_of_a_batch_share_a_scan_and_others_do_not(opened: OpenGallery) -> None:
    same = Search(2, Filter.parse({"path": {"$exists": True}, "n": {"$exists": False}}))
    turned = Search(2, Filter.parse({"n": {"$exists": False}, "path": {"$exists": True}}))
    other = Search(3)
    jobs = [Work(opened=opened, words=5, captions=[text], search=search)
            for text, search in zip(CAPTIONS, [same, turned, other, same], strict=False)]  # fmt: skip
    with patch.object(Gallery, "search", autospec=True, side_effect=Gallery.search) as search:
        run_batch(jobs, 1000)
    assert sorted(len(call.args[1]) for call in search.call_args_list) == [1, 3]
    for job, text in zip(jobs, CAPTIONS, strict=False):
        assert job.error is None
        assert job.search is not None
        (alone,) = opened.gallery.search(opened.matcher.encode_texts([text]), job.search.k)
        (found,) = job.results
        assert [hit.id for hit in found.hits] == [hit.id for hit in alone.hits]
        assert [hit.score for hit in found.hits] == pytest.approx([hit.score for hit in alone.hits], abs=1e-5)


def test_one_that_fails_does_so_alone(opened: OpenGallery) -> None:
    texts = ["a cloud", " ", "the green apple", "word " * 200]
    jobs = [Work(opened=opened, words=5, captions=[text], search=Search(2)) for text in texts]
    jobs.append(Work(opened=opened, words=5, captions=["a"], search=Search(2, Filter.parse({"nothing": 1}))))
    jobs.append(Work(opened=opened, words=5, captions=[""], search=Search(2), off=[1]))
    run_batch(jobs, 1000)
    assert [type(job.error).__name__ for job in jobs] == [
        "NoneType",
        "InputError",
        "NoneType",
        "TensorError",
        "InputError",
        "InputError",
    ]
    assert [len(job.results) for job in jobs] == [1, 0, 1, 0, 0, 0]


def test_a_word_that_is_off_in_a_caption_that_cannot_be_encoded_harms_no_other(opened: OpenGallery) -> None:
    jobs = [
        Work(opened=opened, words=5, captions=[text], off=off, search=Search(2))
        for text, off in ((" ", [0]), ("a", []))
    ]
    run_batch(jobs, 1000)
    assert [type(job.error).__name__ for job in jobs] == ["InputError", "NoneType"]
    assert len(jobs[1].results) == 1


@pytest.mark.parametrize("method", ["encode_texts", "encode_pictures", "search"])
@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside-another"])
def test_a_batch_ends_between_its_parts_where_nobody_waits_for_it(
    opened: OpenGallery, monkeypatch: pytest.MonkeyPatch, method: str, other: bool
) -> None:
    """A request that took too long was computed to its end, and what came after it waited for that."""
    monkeypatch.setattr(work_module, "QUERIES", 1)
    monkeypatch.setattr(Matcher, "pictures_at_once", 1)
    items = {"pictures": [Image.new("RGB", (8, 8))] * 4} if method == "encode_pictures" else {"captions": CAPTIONS[:4]}
    search = None if method == "encode_pictures" else Search(2)
    jobs = [Work(opened=opened, words=5, search=search, **items) for _ in range(1 + other)]
    loop = asyncio.new_event_loop()
    jobs[0].done = loop.create_future()
    owner = Gallery if method == "search" else Matcher
    real = getattr(owner, method)

    def leave(*args: object, **named: object) -> object:
        jobs[0].done.cancel()
        return real(*args, **named)

    with patch.object(owner, method, autospec=True, side_effect=leave) as called:
        run_batch(jobs, 1)
    loop.close()
    assert called.call_count == (8 if other else 1)
    assert [job.error for job in jobs] == [None] * len(jobs)
    assert [len(job.results) for job in jobs[1:]] == [0 if search is None else 4] * other


def test_a_gallery_that_was_closed_meanwhile_is_a_refusal(opened: OpenGallery) -> None:
    opened.release()
    job = Work(opened=opened, words=5, captions=["a cloud"])
    run_batch([job], 1000)
    assert "was closed" in str(job.error)


def vectors(seed: int, count: int, kind: Kind) -> Embeddings:
    return Embeddings.from_rows(list(np.random.default_rng(seed).standard_normal((count, 3, 8))), kind)


@pytest.mark.parametrize("like", [None, "3"], ids=["queries", "like"])
@pytest.mark.parametrize("shards", [1, 3])
def test_an_answer_is_of_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, like: str | None
) -> None:
    """The later queries of a request saw a commit that came meanwhile, and it failed where a row that the earlier ones
    had found was gone when its shares were wanted."""
    monkeypatch.setattr(work_module, "QUERIES", 2)
    path = tmp_path / "gallery"
    with GalleryWriter.create(path, dim=8, alignment=AlignmentConfig("VSA")) as writer:
        writer.add(range(30), vectors(1, 30, "images"), [{"state": "before"}] * 30)
    if shards > 1:
        split_gallery(path, tmp_path / "shards", shards)
        path = tmp_path / "shards"
    commits = []

    def commit() -> None:
        commits.append(1)
        with open_for_writing(path) as writer:
            writer.delete(range(3, 30))
            writer.add(range(20), vectors(2, 20, "images"), [{"state": "after"}] * 20, overwrite=True)
            writer.compact()

    def before_a_commit(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **named: object) -> object:
            result = real(*args, **named)
            if not commits:
                commit()
            return result

        return call

    with Gallery.open(path, threads=1) as gallery:
        opened = OpenGallery("mine", gallery, None, lambda: None)

        def answers_of_jobs() -> list[dict]:
            jobs = [
                Work(opened=opened, words=15, search=Search(4, like=like), embeddings=queries, describe=search_response)
                for queries in ([None] * 2 if like else [vectors(3, 5, "captions"), vectors(4, 1, "captions")])
            ]
            run_batch(jobs, 1000)
            return [msgspec.json.decode(job.answer) for job in jobs if not job.error]

        def states(answers: list[dict]) -> set[str]:
            return {hit["metadata"]["state"] for one in answers for result in one["results"] for hit in result["hits"]}

        expected = answers_of_jobs()
        assert (len(expected), states(expected)) == (2, {"before"})
        for method in ("search", "embeddings"):
            monkeypatch.setattr(Gallery, method, before_a_commit(getattr(Gallery, method)))
        assert answers_of_jobs() == expected
        assert commits
        assert states(answers_of_jobs()) == {"after"}
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
        assert mapped
        assert not any("(deleted)" in line for line in mapped), "the files of the old commit are still held"
