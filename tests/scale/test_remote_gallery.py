"""A gallery whose shards other processes search, as a server uses it: from many threads, and closed at any moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import AlignmentConfig, ShardedWriter
from chan_rt.runtime.errors import GalleryCorrupt, GalleryError, GalleryIncomplete, InputError
from chan_rt.scale.asking import Patience
from chan_rt.scale.remote_gallery import RemoteGallery
from chan_rt.scale.router import COMMITS, Moved

from .fake_shards import FakeTransport, plain, rows_of


def test_a_gallery_opens_without_a_silent_shard_unless_answers_must_be_complete(shards: Path, query: Any) -> None:
    transport = FakeTransport(shards, 3, lambda slot, number: OSError("killed") if slot == 1 else 0.0)
    with pytest.raises(GalleryIncomplete, match="shards that do not answer: 2 of 3"):
        RemoteGallery(shards, transport, Patience(complete=True))
    remote = RemoteGallery(shards, transport, Patience())
    (result,) = remote.search(query, 5, same_kind=True)
    assert (result.certified, result.rows, len(remote)) == (False, 20, 30)
    assert remote.left_out == {1: "its process failed"}
    assert remote.prepared is None
    assert remote.alignment == AlignmentConfig.maxsim()
    remote.check_model(remote.settings.model)
    remote.close()
    remote.close()
    with pytest.raises(GalleryError, match="this gallery is closed"):
        remote.search(query)
    with pytest.raises(GalleryIncomplete, match="1, 2, 3 of 3"):
        RemoteGallery(shards, FakeTransport(shards, 3, lambda *_: OSError("killed")), Patience())


def test_what_is_asked_while_it_closes_is_an_error_and_never_waits(shards: Path, query: Any) -> None:
    slow = [False]
    transport = FakeTransport(shards, 3, lambda slot, number: 100.0 if slow[0] else 0.0)
    remote = RemoteGallery(shards, transport, Patience(hedge=50.0, limit=100.0))
    slow[0] = True
    errors: list[Exception] = []

    def ask() -> None:
        try:
            while True:
                remote.search(query, 5, same_kind=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(transport.asked) < 3 + 4 * 3:
        threading.Event().wait(0.01)
    remote.close()
    for thread in threads:
        thread.join(10.0)
    assert [type(error) for error in errors] == [GalleryError] * 4
    assert all("this gallery is closed" in str(error) for error in errors)
    transport.close()


def test_a_slot_whose_watcher_gets_no_answer_is_asked_again(shards: Path, query: Any) -> None:
    lost = [False]

    def behave(slot: int, number: int) -> Any:
        return 1e6 if slot == 1 and lost[0] else 0.0

    transport = FakeTransport(shards, 3, behave)
    remote = RemoteGallery(shards, transport, Patience(hedge=0.2, limit=0.2))
    lost[0] = True
    assert not remote.search(query, 5, same_kind=True)[0].certified
    asked = len(transport.asked)
    while len(transport.asked) == asked:  # the watcher's question, which is lost, too
        threading.Event().wait(0.01)
    lost[0] = False
    end = threading.Event()
    for _ in range(100):
        if not remote.left_out or end.wait(0.1):
            break
    assert remote.left_out == {}
    assert remote.search(query, 5, same_kind=True)[0].certified
    remote.close()
    transport.close()


def test_settings_are_known_whatever_became_of_the_manifest(shards: Path, query: Any) -> None:
    transport = FakeTransport(shards, 3, lambda slot, number: 0.0)
    remote = RemoteGallery(shards, transport, Patience())
    before = remote.settings
    manifest = (shards / "shards").read_bytes()
    (shards / "shards").write_bytes(b"damaged")
    with pytest.raises(GalleryCorrupt):
        remote.search(query, 5, same_kind=True)
    assert remote.settings == before  # an error's handler asks for it
    (shards / "shards").unlink()
    with pytest.raises(GalleryError, match="is not a gallery"):
        len(remote)
    assert remote.settings == before
    (shards / "shards").write_bytes(manifest)
    assert remote.search(query, 5, same_kind=True)[0].certified
    remote.close()
    transport.close()


def test_what_is_read_at_one_commit_sees_no_other(shards: Path, query: Any) -> None:
    transport = FakeTransport(shards, 3, lambda slot, number: 0.0)
    remote = RemoteGallery(shards, transport, Patience())
    begun = []

    def read(gallery: RemoteGallery) -> list[Any]:
        begun.append(1)
        results = gallery.search(query, 5, same_kind=True)
        best = results[0].hits[0].id
        with ShardedWriter.open(shards) as writer:
            writer.delete([best])
            if len(begun) == 1:
                writer.rebalance(2)  # after which no shard has the commit that was begun with
        for _ in range(3 if len(begun) == 1 else 0):  # and hosts let go of it
            with ShardedWriter.open(shards) as writer:
                writer.add([f"new{threading.get_ident()}{len(transport.asked)}"], rows_of(np.random.default_rng(9), 1))
            remote.search(query, 5, same_kind=True)
        assert [row.id for row in gallery.find([best])] == [best]
        assert len(gallery.embeddings([best])) == 1
        again = gallery.search(query, 5, same_kind=True)
        assert plain(again) == plain(results)
        return [best, *plain(results)]

    best, *found = remote.at_one_commit(read)
    assert len(begun) == 2
    with pytest.raises(InputError, match=f"not in the gallery: {best}"):
        remote.find([best])
    assert plain(remote.search(query, 5, same_kind=True)) != found
    remote.close()
    transport.close()


def test_what_never_finds_its_commit_ends(shards: Path, query: Any) -> None:
    remote = RemoteGallery(shards, FakeTransport(shards, 3, lambda slot, number: 0.0), Patience())
    begun = []

    def read(gallery: RemoteGallery) -> None:
        begun.append(1)
        raise Moved

    with pytest.raises(GalleryError, match="it is changed faster than it is searched"):
        remote.at_one_commit(read)
    assert len(begun) == COMMITS
    remote.close()
