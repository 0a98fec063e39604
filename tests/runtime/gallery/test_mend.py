"""Galleries whose ids an earlier version stored as they came: read as they are, mended by the next writer."""

from __future__ import annotations

import enum
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.errors import GalleryCorrupt
from chan_rt.runtime.gallery import Gallery, GalleryWriter, verify_gallery
from chan_rt.runtime.gallery.store.catalogue import OLD_CATALOGUE
from chan_rt.runtime.gallery.store.mend import mended_id

pytestmark = pytest.mark.skipif(
    int(np.__version__.split(".")[0]) < 2, reason="earlier versions ran with NumPy 2 only, whose forms of ids these are"
)
STORED: list[tuple[Any, str]] = [
    (np.str_("caf\u00e9"), "caf\u00e9"),
    (3, "3"),
    (2**62, str(2**62)),
    (True, "1"),
    (1.5, "1.5"),
    (1e20, "1.0e+20"),
    (np.float64(2.5), "2.5"),
    (np.int64(7), "7"),
    (np.int32(-8), "-8"),
    (np.uint8(200), "200"),
    (np.uint64(2**63 + 1), str(2**63 + 1)),
    (np.False_, "False"),
    ("plain", "plain"),
]


@pytest.fixture
def old_gallery(tmp_path: Path, make_embeddings, make_settings, downgrade) -> Path:
    """A gallery whose rows have the ids of STORED, as the earlier version stored them."""
    path = tmp_path / "g"
    count = len(STORED)
    with GalleryWriter.create(path, make_settings()) as writer:
        writer.add([str(i) for i in range(count)], make_embeddings(1, count), [{"n": i} for i in range(count)])
    downgrade(path, [value for value, _ in STORED])
    return path


def test_rows_are_read_searched_and_mended(old_gallery: Path, make_embeddings) -> None:
    texts = [text for _, text in STORED]
    with Gallery.open(old_gallery) as gallery:
        assert [row.id for row in gallery.rows()] == texts
        assert {hit.id for hit in gallery.search(make_embeddings(9, 1), k=99)[0].hits} == set(texts)
        assert gallery.search(make_embeddings(9, 1), where={"n": 7})[0].hits[0].id == texts[7]
    with GalleryWriter.open(old_gallery) as writer:
        assert writer.ids(texts) == set(texts)
        writer.delete(texts[:4])
        writer.add(texts[4:6], make_embeddings(2, 2), overwrite=True)
        writer.compact()
    with Gallery.open(old_gallery) as gallery:
        assert [row.id for row in gallery.rows()] == [*texts[6:], *texts[4:6]]
        assert gallery.verify() == []


def test_two_rows_never_become_one(tmp_path: Path, make_embeddings, make_settings, downgrade) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add(["0", "1", "2"], make_embeddings(1, 3))
    downgrade(tmp_path / "g", [np.int64(7), "7", np.int32(7)])
    with GalleryWriter.open(tmp_path / "g"), Gallery.open(tmp_path / "g") as gallery:
        assert sorted(row.id for row in gallery.rows()) == ["7", "7~", "7~~"]
        assert gallery.verify() == []


def test_damage_is_not_taken_for_an_old_form(tmp_path: Path, make_embeddings, make_settings, downgrade) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add(["10", "11"], make_embeddings(1, 2))
    downgrade(tmp_path / "g")
    with sqlite3.connect(tmp_path / "g" / OLD_CATALOGUE) as connection:
        connection.execute("UPDATE rows SET id = '12' WHERE id = '11'")
    connection.close()
    for door in (Gallery.open, GalleryWriter.open):
        with pytest.raises(GalleryCorrupt, match="row '12' is not what was committed"):
            door(tmp_path / "g")
    (found,) = verify_gallery(tmp_path / "g")
    assert "row '12' is not what was committed" in found


def test_a_form_that_cannot_be_known_is_damage() -> None:
    class Color(str, enum.Enum):  # noqa: UP042 - a StrEnum's repr is another
        RED = "red"

    assert mended_id("red", lambda form: form == repr(Color.RED)) is None
    assert mended_id(b"raw", lambda form: True) is None
    assert mended_id("1", lambda form: form == "True") == "1"
