"""Shards that are lost for good are taken out of the gallery when that is asked for, and never otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chan_rt.runtime.errors import GalleryCorrupt, GalleryLocked, InputError
from chan_rt.runtime.gallery import Gallery, ShardedWriter, repair_gallery, verify_gallery
from chan_rt.runtime.gallery.sharded import give_up
from chan_rt.runtime.gallery.sharded.manifest import read_manifest

from ....run_chan import chan

KEPT = [str(i) for i in range(30) if not 10 <= i < 20]


def remove(shard: Path) -> str:
    shutil.rmtree(shard)
    return f"{shard} is missing"


def flip(shard: Path) -> str:
    data = bytearray((shard / "catalogue").read_bytes())
    data[-5] ^= 1
    (shard / "catalogue").write_bytes(data)
    return f"{shard / 'catalogue'} is not what was committed"


def other(shard: Path) -> str:
    shutil.copy(shard.parent / "shard-000001" / "catalogue", shard / "catalogue")
    return "it has another commit"


def empty(shard: Path) -> str:
    shutil.rmtree(shard / "segments")
    return f"{shard / 'segments'} is missing"


@pytest.mark.parametrize("lose", [remove, flip, other, empty])
def test_a_shard_that_cannot_be_read_is_given_up_in_one_commit(
    shards: Path, make_embeddings: Callable, lose: Callable[[Path], str]
) -> None:
    queries, before = make_embeddings(99, 3), read_manifest(shards)[0]
    with Gallery.open(shards) as gallery:
        expected = [[(hit.id, hit.score) for hit in one.hits] for one in gallery.search(queries, 7, ids=KEPT)]
    problem = lose(shards / "shard-000002")
    with pytest.raises(GalleryCorrupt) as caught:
        repair_gallery(shards)
    if lose in (remove, empty):
        assert str(caught.value).endswith(f"take it out with: chan gallery repair {shards} --give-up-missing")
    assert read_manifest(shards)[0] == before
    repaired = repair_gallery(shards, give_up_missing=True)
    (given_up,) = repaired.given_up
    assert given_up.startswith(f"shard-000002 with rows 10 to 19 ({problem}")
    assert (repaired.kept, repaired.damage, repaired.lost) == (20, (), ())
    assert read_manifest(shards)[0].generation == before.generation + 1
    assert (shards / "damaged" / "shard-000002").exists() == (lose is not remove)
    with Gallery.open(shards) as gallery:
        results = gallery.search(queries, 7)
        assert [[(hit.id, hit.score) for hit in one.hits] for one in results] == expected
        assert all(one.certified for one in results)
    assert verify_gallery(shards) == []
    with ShardedWriter.open(shards) as writer:
        writer.add(["new"], make_embeddings(5, 1))
        writer.rebalance(2)
    assert repair_gallery(shards, give_up_missing=True).given_up == ()


def test_nothing_is_given_up_where_nothing_is_left_or_somebody_writes(shards: Path, gallery_path: Path) -> None:
    with pytest.raises(InputError, match="give_up_missing: must be False for a gallery that is not in shards"):
        repair_gallery(gallery_path, give_up_missing=True)
    with ShardedWriter.open(shards), pytest.raises(GalleryLocked):
        repair_gallery(shards, give_up_missing=True)
    before = read_manifest(shards)
    for number in (1, 2, 3):
        remove(shards / f"shard-00000{number}")
    with pytest.raises(GalleryCorrupt, match="no shard can be read, so there is nothing to keep"):
        repair_gallery(shards, give_up_missing=True)
    assert read_manifest(shards) == before


def test_a_disk_that_refuses_leaves_the_gallery_as_it_was(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(shards / "shard-000002")
    before = read_manifest(shards)

    def refuse(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(give_up, "write_manifest", refuse)
        with pytest.raises(Exception, match="No space left on device"):
            repair_gallery(shards, give_up_missing=True)
    assert read_manifest(shards) == before
    assert (shards / "shard-000002").is_dir()
    assert len(repair_gallery(shards, give_up_missing=True).given_up) == 1


def test_the_command_names_what_it_gives_up(shards: Path) -> None:
    problem = remove(shards / "shard-000003")
    line = f"shard-000003 with rows 20 to 29 ({problem})"
    result = chan("gallery", "repair", shards, "--give-up-missing")
    assert result.output.splitlines() == [
        f"given up: {line}",
        f"{shards}: 20 rows; nothing was damaged; 1 shard given up",
    ]
    result = chan("gallery", "repair", shards, "--give-up-missing", "--json")
    assert json.loads(result.output)["given_up"] == []
