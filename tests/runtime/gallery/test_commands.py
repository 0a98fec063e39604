"""`chan index`, `chan gallery` and `chan search`, as a user types them."""

import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chan_rt.commands.terminal import visible_lines
from chan_rt.runtime.gallery import Gallery, GalleryWriter, folder_writer
from chan_rt.runtime.indexing import index
from chan_rt.runtime.matcher import Matcher
from chan_rt.runtime.pictures.load import picture_suffixes
from chan_rt.runtime.session import gallery_settings

from ...run_chan import chan

CAPTION = "two red Clouds"
WORDS = ["<start>", "two", "red", "clouds", "<end>"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (30, 60, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    (folder / "precomp").mkdir()
    np.save(folder / "precomp" / "test_ims.npy", rng.standard_normal((6, 4, 12)).astype(np.float32))
    words = ["red", "strawberry", "green", "apple", "blue", "table", "two", "white", "clouds"]
    captions = [" ".join(rng.choice(words, 4)) for _ in range(30)]
    (folder / "precomp" / "test_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    return folder


def ok(*args: object) -> str:
    result = chan(*args)
    assert result.exit_code == 0, result.output
    return result.output


def on_page(page: Path) -> tuple[str, Any]:
    """The heading of a page of hits, and the data that its components draw."""
    tag, texts = "", {"h1": "", "script": ""}
    parser = HTMLParser()

    def start(name: str, attributes: list[tuple[str, str | None]]) -> None:
        nonlocal tag
        tag = name if name != "script" or ("type", "application/json") in attributes else ""

    def text(data: str) -> None:
        if tag in texts:
            texts[tag] += data

    parser.handle_starttag, parser.handle_data = start, text  # type: ignore[method-assign]
    parser.feed(page.read_text())
    return texts["h1"].strip(), json.loads(texts["script"])


def expected_order(bundle: Path, photos: Path) -> tuple[list[str], np.ndarray]:
    with Matcher.open(bundle, "onnxruntime") as matcher:
        files = sorted(photos.iterdir())
        scores = matcher.score(matcher.encode_pictures(files), matcher.encode_texts([CAPTION]))[:, 0]
    return [f"{photos.name}/{files[i].name}" for i in np.argsort(-scores)], np.sort(scores)[::-1]


def test_pictures_are_indexed_searched_and_drawn(bundle: Path, photos: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "g"
    assert "7 images in 1 segment," in ok("index", bundle, photos, "-o", gallery)
    ids, scores = expected_order(bundle, photos)
    page = tmp_path / "new" / "hits.html"
    found = json.loads(ok("search", gallery, CAPTION, "-k", 3, "--json", "--html", page))
    assert [hit["id"] for hit in found["hits"]] == ids[:3]
    np.testing.assert_allclose([hit["score"] for hit in found["hits"]], scores[:3], atol=1e-4)
    assert found["certified"]
    with Matcher.open(bundle, "onnxruntime") as matcher:
        for hit in found["hits"]:
            explained = matcher.explain(matcher.encode_pictures([hit["metadata"]["path"]]), CAPTION)
            assert [word["word"] for word in hit["words"]] == WORDS
            assert [word["region"] for word in hit["words"]] == [match.region for match in explained.words]
    title, drawn = on_page(page)
    assert title == CAPTION
    assert [hit["id"] for hit in drawn["hits"]] == ids[:3]
    assert (drawn["certified"], drawn["rescored"]) == (True, found["rescored"])
    for hit, same in zip(found["hits"], drawn["hits"], strict=True):
        assert same["picture"].startswith("data:image/jpeg;base64,")
        assert [(word["word"], word["region"]) for word in same["words"]] == [
            (word["word"], word["region"]) for word in hit["words"]
        ]
        assert sum(word["share"] for word in same["words"]) == pytest.approx(1)
        for word in same["words"]:
            row, column = divmod(word["region"], 2)
            assert word["box"] == [column / 2, row / 2, 1 / 2, 1 / 2]
    assert [word["word"] for word in drawn["words"] if word["mark"]] == ["<start>", "<end>"]
    assert list(page.parent.iterdir()) == [page]
    shown = ok("search", gallery, CAPTION, "-k", 2)
    assert shown.splitlines()[0].split()[2] == ids[0]
    assert "\ncertified: " in shown


def test_pictures_are_searched_without_a_gallery(bundle: Path, photos: Path) -> None:
    ids, _ = expected_order(bundle, photos)
    found = json.loads(ok("search", bundle, photos, CAPTION, "--json"))
    assert [hit["id"] for hit in found["hits"]] == ids
    one, two = sorted(photos.iterdir())[:2]
    found = json.loads(ok("search", bundle, two, one, CAPTION, "--json", "-k", 1))
    assert found["rows"] == 2


def test_index_goes_on_where_it_stopped(bundle: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    copy, gallery = tmp_path / "photos", tmp_path / "g"
    shutil.copytree(photos, copy)
    (copy / "5.png").write_bytes(b"no picture")
    monkeypatch.setattr(index, "COMMIT_ROWS", 2)
    stopped = chan("index", bundle, copy, "-o", gallery, "--max-bad", 0)
    assert stopped.exit_code == 1
    assert "5.png" in stopped.output
    with Gallery.open(gallery) as opened:
        assert len(opened) == 5, "what was committed before the broken picture is kept, and its neighbor"
    (copy / "5.png").unlink()
    assert "1 encoded, 5 already there" in ok("index", bundle, copy, "-o", gallery)
    assert "6 encoded, 0 already there" in ok("index", bundle, copy, "-o", gallery, "--replace")
    assert "6 rows, every byte is as it was committed" in ok("gallery", "verify", gallery)


def test_what_cannot_be_read_is_skipped_counted_and_listed(bundle: Path, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    good = sorted(copy.iterdir())
    (copy / "cut.png").write_bytes(good[0].read_bytes()[:-900])
    (copy / "empty.jpg").touch()
    (copy / "._0.png").write_bytes(b"\0\5\26\7" + bytes(80))
    (copy / "gone.jpg").symlink_to("nowhere.jpg")
    (copy / "folder.jpg").mkdir()
    os.mkfifo(copy / "fifo.jpg")
    Path(os.fsdecode(os.fsencode(copy) + b"/caf\xe9.jpg")).write_bytes(good[1].read_bytes())
    (copy / "two\nlines.png").write_bytes(good[2].read_bytes())
    for suffix in ("bmp", "tiff", "gif"):
        Image.open(good[3]).save(copy / f"other.{suffix}")
    (copy / "notes.txt").write_text("words")
    (copy / "README").touch()
    suffix = "" if ".heic" in picture_suffixes() else ".heic"
    (copy / f"photo{suffix or '.mov'}").touch()
    bad = {"cut.png", "empty.jpg", "._0.png", "gone.jpg", "fifo.jpg", "caf\udce9.jpg"}
    done = chan("index", bundle, copy, "-o", tmp_path / "g", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["encoded"] == len(good) + 4
    assert {Path(one["item"]).name for one in found["skipped"]} == bad
    assert all(one["reason"] for one in found["skipped"])
    assert found["not_read"] == {"": 1, suffix or ".mov": 1, ".txt": 1}
    assert "3 files that are no pictures were not read: 1 without suffix, 1 ." in done.stderr
    assert ("reading HEIC needs the extra heif" in done.stderr) == bool(suffix)
    assert f"Warning: {len(bad)} items were skipped" in done.stderr
    again = chan("-v", "index", bundle, copy, "-o", tmp_path / "g", "--strict")
    assert f"Info: opened {bundle} with onnxruntime at fp32" in again.stderr
    assert again.stderr.count("Info: skipped ") == again.stderr.count("Info: skipped /") >= 3
    assert again.exit_code == 1
    assert f"0 encoded, {len(good) + 4} already there" in again.stdout
    limited = chan("index", bundle, copy, "-o", tmp_path / "limited", "--max-bad", 5)
    assert limited.exit_code == 1
    assert "at most 5 items may be unreadable" in limited.output


def test_a_damaged_hit_does_not_hide_the_others(bundle: Path, photos: Path, tmp_path: Path) -> None:
    copy, gallery, page = tmp_path / "photos", tmp_path / "g", tmp_path / "hits.html"
    shutil.copytree(photos, copy)
    ok("index", bundle, copy, "-o", gallery)
    (copy / "0.png").write_bytes(b"garbage")
    (copy / "1.png").unlink()
    (copy / "2.png").unlink()
    os.mkfifo(copy / "2.png")
    (copy / "3.png").unlink()
    (copy / "3.png").mkdir()
    found = chan("search", gallery, CAPTION, "--html", page, "--json")
    assert found.exit_code == 0, found.output
    lost = {Path(one["item"]).name: one["reason"] for one in json.loads(found.stdout)["skipped"]}
    assert set(lost) == {"0.png", "1.png", "2.png", "3.png"}
    assert "No such file" in lost["1.png"]
    assert "regular file" in lost["2.png"]
    _, drawn = on_page(page)
    assert len(drawn["hits"]) == 7
    assert sum(hit["picture"] is not None for hit in drawn["hits"]) == 3
    assert {Path(hit["metadata"]["path"]).name for hit in drawn["hits"] if hit["lost"]} == set(lost)
    assert "4 items were skipped" in found.stderr
    assert chan("search", gallery, CAPTION, "--html", page, "--strict").exit_code == 1
    assert "at most 3 items" in chan("search", gallery, CAPTION, "--html", page, "--max-bad", 3).output


def test_unreadable_pictures_are_left_out_of_a_search(bundle: Path, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    (copy / "8.png").write_bytes(b"garbage")
    found = chan("search", bundle, copy, CAPTION, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["rows"] == 7
    assert [Path(one["item"]).name for one in json.loads(found.stdout)["skipped"]] == ["8.png"]
    assert chan("search", bundle, copy, CAPTION, "--strict").exit_code == 1
    refused = chan("search", bundle, copy, CAPTION, "--where", "a=1")
    assert (refused.exit_code, "--where needs a gallery" in refused.output) == (2, True)


def test_unknown_words_are_marked_everywhere(bundle: Path, photos: Path, tmp_path: Path) -> None:
    gallery, page, picture = tmp_path / "g", tmp_path / "hits.html", sorted(photos.iterdir())[0]
    ok("index", bundle, photos, "-o", gallery)
    nonsense = chan("search", gallery, "zzyzzx qqq", "--json", "--html", page)
    found = json.loads(nonsense.stdout)
    assert found["unknown_words"] == ["zzyzzx", "qqq"]
    assert [word["known"] for word in found["hits"][0]["words"]] == [True, False, False, True]
    assert "does not know zzyzzx, qqq. These are most words of this caption" in nonsense.stderr
    _, drawn = on_page(page)
    assert [word["known"] for word in drawn["words"]] == [True, False, False, True]
    assert all([word["known"] for word in hit["words"]] == [True, False, False, True] for hit in drawn["hits"])
    some = chan("search", gallery, "two red zzyzzx")
    assert "does not know zzyzzx. It treats all unknown words as the same word." in some.stderr
    assert "know" not in chan("search", gallery, CAPTION).stderr
    explained = chan("explain", bundle, picture, "red zzyzzx", "--json")
    found = json.loads(explained.stdout)
    assert found["unknown_words"] == ["zzyzzx"]
    assert [word["known"] for word in found["words"]] == [True, True, False, True]
    assert "does not know zzyzzx" in explained.stderr
    assert "unknown word" in chan("explain", bundle, picture, "red zzyzzx").stdout


def test_names_from_others_are_shown_not_sent(bundle: Path, photos: Path, tmp_path: Path) -> None:
    copy, gallery = tmp_path / "photos", tmp_path / "g"
    copy.mkdir()
    shutil.copy(sorted(photos.iterdir())[0], copy / "a\x1b[2J\u202egnp.png")
    (copy / "b\x1b]0;x\x07.png").touch()
    outputs = [chan("index", bundle, copy, "-o", gallery), chan("index", bundle, copy, "-o", gallery, "--json")]
    outputs += [chan("search", gallery, CAPTION, *more) for more in ((), ("--json",), ("--html", tmp_path / "h.html"))]
    outputs += [chan("gallery", "list", gallery, *more) for more in ((), ("--json",))]
    outputs += [chan("search", bundle, copy, CAPTION), chan("search", gallery, "\x1b[2J zzyzzx")]
    for result in outputs:
        assert result.exit_code == 0, result.output
        assert visible_lines(result.output) == result.output
    assert outputs[-2].stdout.splitlines()[0].endswith("a\\x1b[2J\\u202egnp.png")


def test_a_data_folder_both_ways(bundle: Path, data: Path, photos: Path, tmp_path: Path) -> None:
    images, captions = tmp_path / "images", tmp_path / "captions"
    assert "6 images" in ok("index", bundle, data, "-o", images)
    assert "30 captions" in ok("index", bundle, data, "--captions", "-o", captions)
    found = json.loads(ok("search", images, CAPTION, "--json", "--where", "row=3"))
    assert [hit["id"] for hit in found["hits"]] == [f"{data.name}/test/3"]
    assert len(found["hits"][0]["metadata"]["captions"]) == 5
    picture = sorted(photos.iterdir())[0]
    page = tmp_path / "hits.html"
    found = json.loads(ok("search", captions, "--image", picture, "--json", "-k", 4, "--html", page))
    with Matcher.open(bundle, "onnxruntime") as matcher:
        texts = (data / "precomp" / "test_caps.txt").read_text().splitlines()
        scores = matcher.score(matcher.encode_pictures([picture]), matcher.encode_texts(texts))[0]
    np.testing.assert_allclose([hit["score"] for hit in found["hits"]], np.sort(scores)[::-1][:4], atol=1e-4)
    assert [word["word"] for word in found["hits"][0]["words"]][1:-1] == found["hits"][0]["metadata"]["caption"].split()
    _, drawn = on_page(page)
    assert drawn["picture"].startswith("data:image/jpeg;base64,"), "once, not once a hit"
    assert drawn["words"] == []
    assert [[word["word"] for word in hit["words"]] for hit in drawn["hits"]] == [
        [word["word"] for word in hit["words"]] for hit in found["hits"]
    ]


def test_two_data_folders_are_two_sets_of_rows(bundle: Path, data: Path, tmp_path: Path) -> None:
    gallery, other = tmp_path / "g", tmp_path / "other"
    shutil.copytree(data, other)
    ok("index", bundle, data, "-o", gallery)
    assert "6 encoded, 0 already there" in ok("index", bundle, other, "-o", gallery)
    assert len(ok("gallery", "list", gallery).splitlines()) == 12
    features = other / "precomp" / "test_ims.npy"
    rows = np.load(features)
    rows[2] = rows[3]
    np.save(features, rows)
    changed = ok("index", bundle, other, "-o", gallery)
    assert "1 encoded, 5 already there" in changed
    assert "1 of these encoded again" in changed
    assert "0 encoded, 6 already there" in ok("index", bundle, data, "-o", gallery, "--prune")
    assert len(ok("gallery", "list", gallery).splitlines()) == 12


def test_a_gallery_follows_its_folder_and_its_bundle(bundle: Path, photos: Path, tmp_path: Path) -> None:
    copy, gallery, moved = tmp_path / "photos", tmp_path / "g", tmp_path / "moved"
    shutil.copytree(photos, copy)
    shutil.copytree(bundle, moved)
    table = tmp_path / "years.csv"
    table.write_text("path,year\n0.png,2019\n1.png,2020\nnone.png,1\n")
    done = chan("index", moved, copy, "-o", gallery, "--metadata", table, "--json")
    assert json.loads(done.stdout)["metadata_without_picture"] == ["none.png"]
    assert f"1 line of {table} names no picture of SOURCES:\n  none.png\n" in done.stderr
    ids = [hit["id"] for hit in json.loads(ok("search", gallery, CAPTION, "--where", "year>=2020", "--json"))["hits"]]
    assert ids == ["photos/1.png"]
    table.write_text("path,year\n0.png,2019\n1.png,2021\n")
    for changed, touched in ((1, "2.png"), (0, "0.png")):  # a file that is touched has no other metadata by that
        os.utime(copy / touched)
        again = json.loads(chan("index", moved, copy, "-o", gallery, "--metadata", table, "--json").stdout)
        assert (again["relabeled"], again["encoded"]) == (changed, 0)
    table.write_text("path,year\n0.png,2019\n1.png,2022\n")
    text = ok("index", moved, copy, "-o", gallery, "--metadata", table)
    assert "\n1 of those that were there have other metadata now\n" in text
    (copy / "0.png").rename(copy / "zero.png")
    (copy / "2.png").unlink()
    text = ok("index", moved, copy, "-o", gallery)
    assert "1 renamed" in text
    assert "1 kept although the item is gone, such as photos/2.png; --prune removes these" in text
    assert "1 removed, because the item is gone" in ok("index", moved, copy, "-o", gallery, "--prune")
    listed = json.loads(ok("gallery", "list", gallery, "--where", "year=2019", "--json"))
    assert [row["id"] for row in listed] == ["photos/zero.png"]
    shutil.rmtree(moved)
    assert "the gallery's bundle" in chan("search", gallery, CAPTION).output
    ok("search", gallery, CAPTION, "--bundle", bundle)
    ok("search", gallery, CAPTION)
    assert json.loads(ok("gallery", "info", gallery, "--json"))["bundle"] == str(bundle.resolve())


def test_lines_of_metadata_that_fit_no_picture_are_named(bundle: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "years.csv"
    table.write_text("path,year\n0.png,2019\n" + "".join(f"none-{n}.png,1\n" for n in range(23)))
    words = ("index", bundle, photos, "-o", tmp_path / "g", "--metadata", table)
    done = chan(*words)
    assert done.exit_code == 0
    named = re.findall(r"^  (none-\d+\.png)$", done.stderr, re.MULTILINE)
    assert named == [f"none-{n}.png" for n in range(20)]
    assert "\n  and 3 more, which --json names, too\n" in done.stderr
    strict = chan(*words, "--strict", "--json")
    assert strict.exit_code == 1
    assert len(json.loads(strict.stdout)["metadata_without_picture"]) == 23
    table.write_text("path,year\n0.png,2019\n")
    assert chan(*words, "--strict").exit_code == 0


def test_text_files_are_galleries_of_captions(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("red apple\n\nblue table\nred apple\n")
    assert "2 captions" in ok("index", bundle, tmp_path / "lines.txt", "--captions", "-o", tmp_path / "g")


def test_gallery_commands(bundle: Path, photos: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "g"
    ok("index", bundle, photos, "-o", gallery, "--fine", "float16")
    ids = ok("gallery", "list", gallery).splitlines()
    assert ids == [f"{photos.name}/{path.name}" for path in sorted(photos.iterdir())]
    listed = json.loads(ok("gallery", "list", gallery, "--where", f"path~{ids[3]}", "--json"))
    assert [row["id"] for row in listed] == [ids[3]]
    assert listed[0]["metadata"]["source"]["root"] == photos.name
    assert "2 deleted" in ok("gallery", "delete", gallery, *ids[:2])
    facts = json.loads(ok("gallery", "info", gallery, "--json"))
    assert (facts["rows"], facts["deleted_rows"], facts["fine"]) == (5, 2, "float16")
    for given in ((), (ids[2], "--where", f"path={ids[3]}")):
        assert "give the IDS of the rows to delete, or --where" in chan("gallery", "delete", gallery, *given).output
    assert "0 deleted; " in ok("gallery", "delete", gallery, "--where", "path=none")
    assert json.loads(ok("gallery", "delete", gallery, "--where", f"path~{ids[3]}", "--json"))["deleted"] == 1
    assert ok("gallery", "list", gallery).splitlines() == [ids[2], *ids[4:]]
    ok("gallery", "compact", gallery)
    assert "deleted_rows  0" in ok("gallery", "info", gallery)
    (tmp_path / "queries.txt").write_text("red apple\nblue table\nwhite clouds\ntwo clouds\n")
    assert "top 10 over 2 queries" in ok("gallery", "prepare", gallery, "--queries", tmp_path / "queries.txt")
    assert "the fit to queries of an earlier run is replaced" in chan("gallery", "prepare", gallery).stderr
    assert chan("gallery", "prepare", gallery).stderr == ""
    file = next((gallery / "segments").iterdir())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    damaged = chan("gallery", "verify", gallery)
    assert damaged.exit_code == 1
    assert file.name in damaged.output


def test_mistakes_are_one_line(
    bundle: Path, photos: Path, data: Path, tmp_path: Path, make_small_model: Callable
) -> None:
    gallery = tmp_path / "g"
    ok("index", bundle, photos, "-o", gallery)
    other = make_small_model(coding="THA", pictures=True).bundle
    for arguments, message in {
        ("search", gallery): "is a gallery: give one caption, --image, --like or --embeddings",
        ("search", gallery, "a", "b"): "--like or --embeddings. Put a caption of several words in quotes",
        (
            "search",
            gallery,
            "a",
            "--image",
            next(photos.iterdir()),
        ): "give one caption, --image, --like or --embeddings",
        ("index", photos, bundle, "-o", tmp_path / "y"): "is not a bundle: it has no manifest.json",
        ("search", tmp_path / "none", "red"): "none does not exist; to search pictures give BUNDLE IMAGES... CAPTION",
        ("search", photos, "red"): "is not a gallery; to search pictures give BUNDLE IMAGES... CAPTION",
        ("search", gallery, "--image", next(photos.iterdir()), "--html", "x"): "compares no caption with a picture",
        ("search", gallery, CAPTION, "--where", "=x"): "where: must be KEY=VALUE, ",
        ("search", gallery, CAPTION, "--bundle", other): "was made with another model",
        ("index", other, photos, "-o", gallery): "was made with another model",
        ("index", bundle, data, "--captions", "-o", gallery): "kind must be this gallery's images, got captions",
        ("index", bundle, data, photos, "-o", tmp_path / "x"): "a data folder must stand alone",
        ("index", bundle, photos, "-o", photos): "already exists and is not empty",
        ("gallery", "delete", gallery, "nothing"): "not in the gallery: nothing",
        ("gallery", "delete", gallery, "--where", "yaer=1"): "'yaer'",
        ("gallery", "info", photos): "is not a gallery; make one with: chan index BUNDLE IMAGES -o GALLERY",
    }.items():
        result = chan(*arguments)
        usage = arguments[0] == "search" and "another model" not in message
        assert result.exit_code == (2 if usage else 1), (arguments, result.output)
        assert message in result.output, result.output
        assert "Traceback" not in result.output
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert chan("index", bundle, tmp_path / "broken.png", "-o", tmp_path / "empty").exit_code == 1
    assert not (tmp_path / "empty").exists()
    GalleryWriter.create(tmp_path / "empty", gallery_settings(bundle)).close()
    empty = chan("search", tmp_path / "empty", CAPTION)
    assert (empty.exit_code, empty.output) == (1, "Error: the gallery is empty: chan index adds rows\n")
    moved = tmp_path / "moved"
    shutil.copytree(bundle, moved)
    gone = tmp_path / "gone"
    ok("index", moved, photos, "-o", gone)
    shutil.rmtree(moved)
    assert "say where it is with --bundle" in chan("search", gone, CAPTION).output
    ok("search", gone, CAPTION, "--bundle", bundle)


def test_a_damaged_gallery_is_verified_searched_and_repaired(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a person would: search fails, verify names the file, --skip-damaged answers, repair saves the rest."""
    monkeypatch.setattr(folder_writer, "SEGMENT_BYTES", 1)  # a segment for each picture
    gallery = tmp_path / "g"
    ok("index", bundle, photos, "-o", gallery)
    whole = json.loads(ok("search", gallery, CAPTION, "--json", "-k", 99))
    assert whole["certified"]
    with GalleryWriter.open(gallery) as writer:
        segments = writer._folders[0].catalogue.segments
    file = gallery / "segments" / segments[-1].vectors.name
    file.write_bytes(file.read_bytes()[:-1])
    refused = chan("search", gallery, CAPTION)
    assert refused.exit_code == 1
    assert "were committed" in refused.output
    verified = chan("gallery", "verify", gallery)
    assert (verified.exit_code, verified.output.count(file.name)) == (1, 1)
    left = json.loads(ok("search", gallery, CAPTION, "--json", "--skip-damaged", "-k", 99))
    assert not left["certified"]
    assert "is lost to damage" in left["reason"]
    repaired = json.loads(ok("gallery", "repair", gallery, "--json"))
    assert repaired["lost"]
    kept = [hit["id"] for hit in whole["hits"] if hit["id"] not in repaired["lost"]]
    assert [hit["id"] for hit in left["hits"]] == kept
    after = json.loads(ok("search", gallery, CAPTION, "--json", "-k", 99))
    assert after["certified"]
    assert [hit["id"] for hit in after["hits"]] == kept
    assert "every byte is as it was committed" in ok("gallery", "verify", gallery)
    assert ok("index", bundle, photos, "-o", gallery)
    again = json.loads(ok("search", gallery, CAPTION, "--json", "-k", 99))
    assert sorted(hit["id"] for hit in again["hits"]) == sorted(hit["id"] for hit in whole["hits"])


def test_a_gallery_of_damaged_rows_is_not_called_empty(bundle: Path, photos: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "g"
    ok("index", bundle, photos, "-o", gallery)
    with GalleryWriter.open(gallery) as writer:
        files = [gallery / "segments" / segment.vectors.name for segment in writer._folders[0].catalogue.segments]
    for file in files:
        file.write_bytes(bytes(file.stat().st_size))
    assert "see what is lost with: chan gallery verify" in chan("search", gallery, CAPTION).output
    found = chan("search", gallery, CAPTION, "--skip-damaged")
    assert (found.exit_code, found.output) == (1, "Error: no row of the gallery can be read: all 7 are damaged\n")
    for text in (chan("gallery", "verify", gallery).output, ok("gallery", "repair", gallery)):
        assert "the bytes are not those that were committed\n" in text, "no advice to run what has just run"
