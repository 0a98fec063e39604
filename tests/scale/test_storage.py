"""Galleries in object storage, against a server of S3's API in another process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import (
    AlignmentConfig,
    Embeddings,
    Gallery,
    GalleryWriter,
    ShardedWriter,
    gallery_settings,
    split_gallery,
    verify_gallery,
)
from chan_rt.runtime.errors import GalleryCorrupt, GalleryError, InputError
from chan_rt.runtime.gallery.store.array_file import PAGE
from chan_rt.runtime.gallery.store.header import with_line
from chan_rt.scale import cache as cache_module
from chan_rt.scale import cached_gallery, head, pull, pull_gallery, push, push_gallery
from chan_rt.scale.remote import Remote

from ..run_chan import chan, ok


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a page, so that files have several; and no gallery is held from the test before."""
    monkeypatch.setattr(head, "PIECE_BYTES", PAGE)
    monkeypatch.setattr(push, "PIECE_BYTES", PAGE)
    monkeypatch.setattr(pull, "PIECE_BYTES", PAGE)
    monkeypatch.setattr(cache_module, "_held", {})


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A gallery whose file of vectors has 1.6 MB."""
    rng = np.random.default_rng(0)
    with GalleryWriter.create(tmp_path / "large", dim=512, alignment=AlignmentConfig.maxsim()) as writer:
        vectors = rng.standard_normal((600, 1, 512)).astype(np.float32)
        writer.add([str(i) for i in range(600)], Embeddings(vectors, np.ones(600, np.int32)))
    return tmp_path / "large"


def found(path: Path, queries: Embeddings) -> list[list[tuple[str, float]]]:
    with Gallery.open(path, threads=1) as gallery:
        return [[(hit.id, hit.score) for hit in one.hits] for one in gallery.search(queries, 50)]


@pytest.mark.parametrize("shards", [0, 3])
def test_what_is_pulled_is_what_was_pushed(bucket: str, gallery: Path, tmp_path: Path, make_rows, shards: int) -> None:
    if shards:
        split_gallery(gallery, tmp_path / "shards", shards)
        gallery = tmp_path / "shards"
    url, queries, steps = f"{bucket}/some/where", make_rows(99, 3), []
    done = push_gallery(gallery, url, progress=lambda done, total: steps.append((done, total)))
    assert (done.rows, done.sent, steps[-1]) == (38, done.bytes, (done.bytes, done.bytes))
    assert push_gallery(gallery, url).sent == 0
    pulled = pull_gallery(url, tmp_path / "pulled")
    assert (pulled.rows, pulled.size) == (38, done.bytes)
    assert verify_gallery(tmp_path / "pulled") == []
    assert found(tmp_path / "pulled", queries) == found(gallery, queries)
    assert found(cached_gallery(url), queries) == found(gallery, queries)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in left if name.startswith(".")] == []
    writer = ShardedWriter.open(tmp_path / "pulled") if shards else GalleryWriter.open(tmp_path / "pulled")
    with writer:  # an ordinary gallery
        writer.add(["new"], make_rows(5, 1))
    assert push_gallery(tmp_path / "pulled", url).rows == 39
    assert len(found(cached_gallery(url), queries)[0]) == 39


def test_a_new_commit_sends_only_what_is_new_and_prune_removes_the_rest(
    bucket: str, gallery: Path, tmp_path: Path, make_rows, objects: Callable
) -> None:
    url = f"{bucket}/g"
    first = push_gallery(gallery, url)
    before = objects(url)
    with GalleryWriter.open(gallery) as writer:
        writer.add(["new"], make_rows(5, 1))
    second = push_gallery(gallery, url)
    assert 0 < second.sent < first.bytes / 2
    kept = objects(url)
    assert before < kept
    assert push_gallery(gallery, url, prune=True).removed > 0
    after = objects(url)
    assert after < kept
    assert pull_gallery(url, tmp_path / "pulled").rows == 39
    assert verify_gallery(tmp_path / "pulled") == []


def test_what_is_half_pushed_is_not_there(bucket: str, gallery: Path, tmp_path: Path, make_rows, monkeypatch) -> None:
    """The storage refuses each write in turn: until the last one the commit before is what is found."""
    url, queries = f"{bucket}/g", make_rows(99, 2)
    push_gallery(gallery, url)
    before = found(cached_gallery(url), queries)
    with GalleryWriter.open(gallery) as writer:
        writer.add(["new"], make_rows(5, 1))
    sent, allowed = [], [0]

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def fail(self: Remote, name: str, *rest: Any) -> Any:
            if len(sent) == allowed[0]:
                raise GalleryError(f"{self.url}: refused")
            sent.append(name)
            return write(self, name, *rest)

        return fail

    for name in ("put", "replace"):
        monkeypatch.setattr(Remote, name, failing(getattr(Remote, name)))
    written = []
    while "gallery" not in written:
        sent.clear()
        with contextlib.suppress(GalleryError):
            push_gallery(gallery, url)
        written += sent
        if "gallery" not in written:
            assert found(cached_gallery(url), queries) == before
        allowed[0] = 1
    assert len(written) == len(set(written)) > 2, "each try sends what the tries before have not sent"
    assert written[-1] == "gallery"
    assert found(cached_gallery(url), queries) == found(gallery, queries) != before


def test_an_interrupted_pull_goes_on(bucket: str, large: Path, tmp_path: Path, monkeypatch) -> None:
    """Each try fetches two pieces, until all are there."""
    url = f"{bucket}/g"
    push_gallery(large, url)
    pieces = len(head.parse_head(Remote(url).get("gallery") or b"", url).pieces)
    assert pieces > 7
    get, fetched = Remote.get, [0, 0]  # in this try, and in all

    def fail(self: Remote, name: str) -> bytes | None:
        if name.startswith("pieces/"):
            if fetched[0] == 2:
                raise GalleryError("refused")
            fetched[:] = [number + 1 for number in fetched]
        return get(self, name)

    monkeypatch.setattr(Remote, "get", fail)
    monkeypatch.setattr(pull, "AT_ONCE", 1)
    tries, reasons = 0, set[str]()
    while not (tmp_path / "pulled").exists():
        tries, fetched[0] = tries + 1, 0
        try:
            pull_gallery(url, tmp_path / "pulled")
        except GalleryError as error:
            reasons.add(str(error))
    assert (tries, fetched[1], reasons) == (-(-pieces // 2), pieces, {"refused"})
    assert verify_gallery(tmp_path / "pulled") == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["s3", "file"])
@pytest.mark.parametrize("other", [True, False])
def test_of_two_galleries_that_are_pushed_at_once_one_is_refused(
    bucket: str, gallery: Path, tmp_path: Path, make_rows, monkeypatch, kind: str, other: bool
) -> None:
    """At the worst moment: the second push comes in whole between the first one's look at the address and its end."""
    url = f"{bucket}/at-once" if kind == "s3" else f"file://{tmp_path}/stored"
    second = tmp_path / "second"
    if other:
        with GalleryWriter.create(second, dim=16, alignment=AlignmentConfig.maxsim()) as writer:
            writer.add(["a"], make_rows(1, 1))
    else:
        push_gallery(gallery, url)
        shutil.copytree(gallery, second)
        with GalleryWriter.open(second) as writer:
            writer.add(["new"], make_rows(1, 1))
            writer.compact()
    sizes, seen = Remote.sizes, []

    def sizes_then_second(self: Remote, folder: str) -> dict[str, int]:
        found = sizes(self, folder)
        seen.append(folder)
        if len(seen) == 1:
            push_gallery(second, url, prune=True)
        return found

    if not other:  # so that it has something to put back
        with GalleryWriter.open(gallery) as writer:
            writer.delete(["7"])
    monkeypatch.setattr(Remote, "sizes", sizes_then_second)
    if other:
        with pytest.raises(GalleryError, match="holds another gallery; push to another address"):
            push_gallery(gallery, url)
    else:
        push_gallery(gallery, url)
    monkeypatch.setattr(Remote, "sizes", sizes)
    pull_gallery(url, tmp_path / "pulled")
    with Gallery.open(tmp_path / "pulled") as pulled, Gallery.open(second if other else gallery) as expected:
        assert pulled.rows() == expected.rows()
        assert pulled.verify() == []


def test_a_push_that_is_killed_goes_on(bucket: str, large: Path, tmp_path: Path, objects: Callable) -> None:
    """The process ends in the middle; the next one sends the rest."""
    child = f"""
import os, signal
from chan_rt.scale import head, push, push_gallery
from chan_rt.scale.remote import Remote
head.PIECE_BYTES = push.PIECE_BYTES = {PAGE}
put, sent = Remote.put, []
def kill(self, name, data):
    if len(sent) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    sent.append(name)
    put(self, name, data)
Remote.put, push.AT_ONCE = kill, 1
push_gallery({str(large)!r}, {f"{bucket}/g"!r})
"""
    done = subprocess.run([sys.executable, "-c", child], timeout=120, check=False)
    assert done.returncode == -9
    assert len(objects(f"{bucket}/g")) == 3
    with pytest.raises(GalleryError, match=r"holds no gallery; put one there with: chan gallery push"):
        cached_gallery(f"{bucket}/g")
    pushed = push_gallery(large, f"{bucket}/g")
    assert pushed.sent == pushed.bytes - 3 * PAGE
    assert pull_gallery(f"{bucket}/g", tmp_path / "pulled").rows == 600


def test_a_changed_byte_is_found_on_either_side(
    bucket: str, large: Path, tmp_path: Path, s3_server: str, objects
) -> None:
    url = f"{bucket}/g"
    push_gallery(large, url)
    remote = Remote(url)
    name = next(name for name in sorted(objects(url)) if len(remote.get(name) or b"") == PAGE)
    data = bytearray(remote.get(name) or b"")
    data[0] ^= 1
    remote.put(name, bytes(data))
    for door in (cached_gallery, lambda url: pull_gallery(url, tmp_path / "pulled")):
        with pytest.raises(GalleryCorrupt, match=rf"{name.rpartition('/')[2]} is not what was pushed"):
            door(url)
    assert not (tmp_path / "pulled").exists()
    file = max((large / "segments").iterdir(), key=lambda file: file.stat().st_size)
    local = bytearray(file.read_bytes())
    local[-9] ^= 1
    file.write_bytes(local)
    with pytest.raises(GalleryCorrupt, match="not those that were committed; nothing was pushed"):
        push_gallery(large, f"{bucket}/other")
    with pytest.raises(GalleryError, match="holds no gallery"):
        cached_gallery(f"{bucket}/other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["files"][0].update(path="../../x"), r"files\[0\].path must be that of a gallery's file"),
        (lambda body: body["files"][0].update(path="segments/../catalogue"), r"files\[0\].path must be"),
        (lambda body: body["files"][0].update(length=-1), r"files\[0\].length must be an integer"),
        (lambda body: body["files"][0].update(pieces=["../x"]), r"files\[0\].pieces must be a sha256"),
        (lambda body: body["files"].pop(), "is missing|not a gallery"),
        (lambda body: body.update(rows=39), "says 39 rows, but its files have 38"),
        (lambda body: body.update(more=1), "the head must be an object with"),
    ],
)
def test_a_head_that_breaks_a_rule_is_an_error(bucket: str, gallery: Path, change, message: str) -> None:
    url = f"{bucket}/g"
    push_gallery(gallery, url)
    remote = Remote(url)
    data = remote.get("gallery") or b""
    stored, body = head.parse_head(data, url), json.loads(data[128:])
    change(body)
    text = json.dumps(body).encode()
    remote.put("gallery", with_line("chan-stored", 1, stored.gallery, stored.generation, text)[1])
    with pytest.raises(GalleryError, match=message):
        cached_gallery(url)
    remote.put("gallery", data[:-5] + b"x" + data[-4:])
    with pytest.raises(GalleryCorrupt, match="its digest differs"):
        cached_gallery(url)


def test_addresses_that_cannot_be_used(bucket: str, gallery: Path, tmp_path: Path, make_rows) -> None:
    for url, message in (
        ("ftp://x/y", "url must begin with s3://"),
        ("gallery", "url must begin with s3://"),
        ("file://gallery", "url must have an absolute path, as in file:///mnt/gallery, got file://gallery"),
    ):
        with pytest.raises(InputError, match=message):
            cached_gallery(url)
    with pytest.raises(GalleryError, match="s3://there-is-no-such-bucket/g holds no gallery"):
        cached_gallery("s3://there-is-no-such-bucket/g")
    with pytest.raises(GalleryError, match="there is no such bucket"):
        push_gallery(gallery, "s3://there-is-no-such-bucket/g")
    push_gallery(gallery, f"{bucket}/g")
    with GalleryWriter.create(tmp_path / "other", dim=16, alignment=AlignmentConfig.maxsim()) as writer:
        writer.add(["1"], make_rows(1, 1))
    with pytest.raises(GalleryError, match="holds another gallery; push to another address"):
        push_gallery(tmp_path / "other", f"{bucket}/g")
    with pytest.raises(GalleryError, match="already exists and is not empty"):
        pull_gallery(f"{bucket}/g", gallery)
    for read in (cached_gallery, lambda url: pull_gallery(url, tmp_path / "pulled")):
        with pytest.raises(GalleryError, match="there is no such folder"):
            read(f"file://{tmp_path}/store")
    with pytest.raises(GalleryError, match="is not a gallery"):
        push_gallery(tmp_path / "none", f"file://{tmp_path}/store")
    assert not (tmp_path / "store").exists()
    assert push_gallery(gallery, f"file://{tmp_path}/store").rows == 38
    assert cached_gallery(f"file://{tmp_path}/store").is_dir()


# -- the cache


def sizes(url_cache: Path) -> dict[str, int]:
    return {file.stem: int(file.read_text()) for file in url_cache.glob("*.size")}


def test_the_cache_is_bounded_and_keeps_what_is_in_use(
    bucket: str, gallery: Path, tmp_path: Path, make_rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, urls = tmp_path / "cache", []
    for i in range(4):
        with GalleryWriter.create(tmp_path / f"g{i}", dim=16, alignment=AlignmentConfig.maxsim()) as writer:
            writer.add([str(n) for n in range(40)], make_rows(i, 40))
        urls.append(f"{bucket}/g{i}")
        size = push_gallery(tmp_path / f"g{i}", urls[-1]).bytes
    monkeypatch.setenv("CHAN_CACHE_BYTES", str(int(2.5 * size)))
    first, second = cached_gallery(urls[0]), cached_gallery(urls[1])
    assert cached_gallery(urls[0]) == first
    with pytest.raises(GalleryError, match="full of galleries that are in use: raise CHAN_CACHE_BYTES"):
        cached_gallery(urls[2])
    os.close(cache_module._held.pop(first))  # as if this process had ended
    third = cached_gallery(urls[2])
    assert not first.exists()
    assert second.exists()
    assert sizes(cache).keys() == {second.name, third.name}
    for held in (second, third):
        os.close(cache_module._held.pop(held))
    cached_gallery(urls[1])  # used again: the other one was used longest ago
    cached_gallery(urls[3])
    assert second.exists()
    assert not third.exists()
    monkeypatch.setenv("CHAN_CACHE_BYTES", "1000")
    with pytest.raises(GalleryError, match=r"the cache .* may have 1000: raise CHAN_CACHE_BYTES"):
        cached_gallery(urls[0])
    monkeypatch.setenv("CHAN_CACHE_BYTES", "many")
    with pytest.raises(InputError, match="CHAN_CACHE_BYTES must be a positive integer, got 'many'"):
        cached_gallery(urls[0])


def test_a_new_commit_takes_over_the_files_that_stay(bucket: str, large: Path, make_rows, monkeypatch) -> None:
    url = f"{bucket}/g"
    push_gallery(large, url)
    before = cached_gallery(url)
    with GalleryWriter.open(large) as writer:
        writer.delete(["5"])
    push_gallery(large, url)
    asked, get = [], Remote.get
    monkeypatch.setattr(Remote, "get", lambda self, name: asked.append(name) or get(self, name))
    after = cached_gallery(url)
    assert after != before
    assert len([name for name in asked if name.startswith("pieces/")]) == 1, "the catalogue alone"
    with pytest.raises(GalleryError, match="cannot be written"):
        GalleryWriter.open(after)
    with Gallery.open(before) as old, Gallery.open(after) as new:
        assert (len(old), len(new)) == (600, 599)


def test_processes_share_the_cache(bucket: str, large: Path, tmp_path: Path) -> None:
    """Four processes open one address at once: its pieces are fetched by one of them, and each finds the gallery."""
    url = f"{bucket}/g"
    push_gallery(large, url)
    child = f"""
from chan_rt.runtime import Gallery
from chan_rt.runtime.gallery.store.array_file import PAGE
from chan_rt.runtime.gallery.store.header import with_line
from chan_rt.scale import cached_gallery, head, pull
from chan_rt.scale.remote import Remote
head.PIECE_BYTES = pull.PIECE_BYTES = {PAGE}
get, asked = Remote.get, []
Remote.get = lambda self, name: asked.append(name) or get(self, name)
with Gallery.open(cached_gallery({url!r})) as gallery:
    print(len(gallery), len([name for name in asked if name.startswith("pieces/")]))
"""
    children = [subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate(timeout=300)[0].split() for process in children]
    pieces = len(head.parse_head(Remote(url).get("gallery") or b"", url).pieces)
    assert sorted(answers, key=lambda answer: int(answer[1])) == [["600", "0"]] * 3 + [["600", str(pieces)]]


# -- commands


@pytest.mark.parametrize("reason", ["http://169.254.169.254/latest/api/token", "http://metadata/computeMetadata/v1"])
def test_credentials_that_are_missing_are_named(bucket: str, reason: str) -> None:
    """Without any, obstore asks a server that only machines in a cloud have, and its error is about that server."""
    message = (
        "s3://.* cannot be read: no credentials, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY .*Error performing"
    )
    with pytest.raises(GalleryError, match=message), Remote(bucket)._errors("read"):
        raise OSError(f"Generic S3 error: Error performing PUT {reason} in 1ms")


def test_commands_take_addresses(bucket: str, gallery: Path, tmp_path: Path) -> None:
    url = f"{bucket}/g"
    assert "38 rows" in ok("gallery", "push", gallery, url)
    assert json.loads(ok("gallery", "push", gallery, url, "--prune", "--json"))["sent"] == 0
    assert json.loads(ok("gallery", "info", url, "--json"))["rows"] == 38
    assert ok("gallery", "list", url) == ok("gallery", "list", gallery)
    assert ok("gallery", "verify", url) == f"{url}: 38 rows, every byte is as it was committed\n"
    assert json.loads(ok("gallery", "verify", url, "--json"))["gallery"] == url
    assert ok("search", url, "--like", "7", "-k", "3") == ok("search", gallery, "--like", "7", "-k", "3")
    assert "38 rows in 2 shards" in ok("gallery", "split", url, "-o", tmp_path / "shards", "--shards", "2")
    assert "pulled: 38 rows" in ok("gallery", "pull", url, "-o", tmp_path / "pulled")
    result = chan("gallery", "delete", url, "7")
    assert result.exit_code == 2
    assert "does not exist" in result.output


def test_a_server_names_an_address_by_its_last_part(bucket: str, gallery: Path) -> None:
    from chan_rt.commands.serve import _named

    assert _named("s3://bucket/some/photos/") == ("photos", "=", "s3://bucket/some/photos/")
    assert _named("mine=s3://bucket/photos") == ("mine", "=", "s3://bucket/photos")
    assert _named("s3://bucket/year=2026") == ("year=2026", "=", "s3://bucket/year=2026")
    assert _named("mine=photos") == ("", "", "mine=photos")
    assert _named("photos") == ("", "", "photos")


def test_a_cached_gallery_does_not_learn_where_its_bundle_is(
    bucket: str, tmp_path: Path, make_small_model: Callable, make_rows: Callable
) -> None:
    """A search with --bundle remembers the place in a gallery of one's own, but never changes a copy in the cache."""
    bundle = make_small_model(pictures=True).bundle
    settings = dataclasses.replace(gallery_settings(bundle), bundle=str(tmp_path / "gone"))
    with GalleryWriter.create(tmp_path / "g", settings) as writer:
        writer.add([str(i) for i in range(20)], make_rows(0, 20))
    for shards, url in ((0, f"{bucket}/one"), (2, f"{bucket}/many")):
        if shards:
            split_gallery(tmp_path / "g", tmp_path / "many", shards)
        push_gallery(tmp_path / ("many" if shards else "g"), url)
        before = {path: path.read_bytes() for path in cached_gallery(url).rglob("*") if path.is_file()}
        assert "certified" in ok("search", url, "two red apples", "--bundle", bundle)
        assert {path: path.read_bytes() for path in cached_gallery(url).rglob("*") if path.is_file()} == before
        assert ok("gallery", "verify", url)
