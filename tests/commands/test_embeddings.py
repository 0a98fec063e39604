"""`chan index --embeddings`, `chan search --embeddings` and `--like`, as a user types them."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryWriter
from chan_rt.runtime.indexing import export as export_module
from chan_rt.runtime.indexing import index_embeddings as module
from chan_rt.runtime.indexing.embedding_source import embedding_source
from chan_rt.runtime.indexing.index_embeddings import index_embeddings

from ..run_chan import chan, ok

DIM = 6


def rows(count: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Unit vectors, one to five for each row."""
    rng = np.random.default_rng(seed)
    made = {f"doc-{i}": rng.standard_normal((rng.integers(1, 6), DIM)) for i in range(count)}
    return {id: (row / np.linalg.norm(row, axis=1, keepdims=True)).astype(np.float32) for id, row in made.items()}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def maxsim(documents: dict[str, np.ndarray], query: np.ndarray) -> list[str]:
    """Ids by MaxSim in float64, best first."""
    scores = {id: (query.astype("f8") @ row.astype("f8").T).max(1).sum() for id, row in documents.items()}
    return sorted(scores, key=lambda id: -scores[id])


def test_a_file_of_another_form_names_all_forms(desk: Path) -> None:
    Path("x.txt").write_text("1 2 3")
    said = chan("index", "--embeddings", "x.txt", "-o", "g").output
    assert "x.txt must end in .npy, .npz, .safetensors, .parquet, .pt, .pth, or be a folder of such files" in said


def test_the_hits_are_those_of_maxsim(desk: Path) -> None:
    documents = rows(40)
    np.savez("docs.npz", **documents)
    queries = rows(3, seed=1)
    np.savez("queries.npz", **queries)
    printed = ok("index", "--embeddings", "docs.npz", "-o", "g")
    assert printed.splitlines() == [
        "40 added, 0 already there",
        "vectors have length 1; a score is VHA and Sum of cosines",
        f"g: {GalleryWriter.open('g').describe()}",
    ]
    answers = json.loads(ok("search", "g", "--embeddings", "queries.npz", "-k", 5, "--json"))
    for (name, query), answer in zip(queries.items(), answers, strict=True):
        assert (answer["query"], answer["certified"]) == (name, True)
        assert [hit["id"] for hit in answer["hits"]] == maxsim(documents, query)[:5]
        best = documents[answer["hits"][0]["id"]] @ query.T
        assert [word["region"] for word in answer["hits"][0]["words"]] == best.argmax(0).tolist()
    shown = ok("search", "g", "--embeddings", "queries.npz", "-k", 1)
    assert re.findall(r"^doc-\d$", shown, re.MULTILINE) == list(queries)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_queries_that_are_rounded_are_said(desk: Path, dtype: str) -> None:
    np.savez("docs.npz", **rows())
    ok("index", "--embeddings", "docs.npz", "-o", "g")
    np.savez("queries.npz", **{id: row.astype(dtype) for id, row in rows(2, seed=1).items()})
    shown = ok("search", "g", "--embeddings", "queries.npz", "-k", 1).splitlines()
    said = [line for line in shown if line.endswith(" values were rounded to float32")]
    assert said == (["float64 values were rounded to float32"] if dtype == "float64" else [])
    answers = json.loads(ok("search", "g", "--embeddings", "queries.npz", "--json"))
    assert [answer["rounded"] for answer in answers] == 2 * [dtype == "float64"]
    assert "rounded" not in json.loads(ok("search", "g", "--like", "doc-1", "--json"))


def test_ids_that_were_made_up_are_said(desk: Path) -> None:
    np.save("a.npy", np.eye(3, DIM, dtype=np.float32))
    np.save("b.npy", np.eye(1, DIM, dtype=np.float32))
    np.savez("named.npz", embeddings=np.eye(2, DIM, dtype=np.float32), ids=["x", "y"])

    def said(*files: str) -> list[str]:
        lines = ok("index", "--embeddings", *files, "-o", "g").splitlines()
        return [line for line in lines if "no id in the files" in line]

    why = "no id in the files, so ids are the file's name and the row's number"
    way_out = "added again; `ids` in it, or a column `id` of --metadata, name its rows for good"
    then = f". Under another name the same file would be {way_out}"
    assert said("b.npy") == [f"1 row has {why}: b/0{then}"]
    assert said("named.npz", "a.npy") == [f"3 rows have {why}: a/0 to a/2{then}"]
    assert said("a.npy", "b.npy") == [f"4 rows have {why}: a/0 to a/2, and so on for 1 other file{then}"]
    assert said("named.npz") == []
    Path("m.jsonl").write_text("".join(f'{{"id": "n{row}"}}\n' for row in range(3)))
    assert said("a.npy", "--metadata", "m.jsonl") == []
    found = json.loads(ok("index", "--embeddings", "a.npy", "b.npy", "-o", "g", "--json"))
    assert found["ids_made_up"] == 4
    assert sorted(row["id"] for row in json.loads(ok("gallery", "list", "g", "--json"))) == [
        "a/0", "a/1", "a/2", "b/0", "n0", "n1", "n2", "x", "y",
    ]  # fmt: skip


def test_a_run_continues_and_brings_the_gallery_up_to_date(desk: Path) -> None:
    documents = rows()
    np.savez("docs.npz", **documents)
    ok("index", "--embeddings", "docs.npz", "-o", "g")
    before = Path("g/catalogue").read_bytes()
    assert ok("index", "--embeddings", "docs.npz", "-o", "g").startswith("0 added, 8 already there\n")
    assert Path("g/catalogue").read_bytes() == before
    documents["doc-3"] = -documents["doc-3"]
    documents |= {f"more-{id}": row for id, row in rows(3, seed=5).items()}
    np.savez("docs.npz", **documents)
    Path("m.jsonl").write_text('{"id": "doc-1", "year": 2020}\n')
    printed = ok("index", "--embeddings", "docs.npz", "--metadata", "m.jsonl", "-o", "g")
    assert printed.startswith(
        "4 added, 7 already there\n1 of these took the place of rows with the same id and other vectors\n"
        "1 of those that were there have other metadata now\n"
    )
    ok("index", "--embeddings", "docs.npz", "-o", "g")  # without metadata, which stays
    with Gallery.open("g") as gallery:
        assert gallery.embeddings(documents).rows()[3].tolist() == documents["doc-3"].tolist()
        assert [row.id for row in gallery.rows({"year": 2020})] == ["doc-1"]


def test_tiny_and_huge_numbers(desk: Path) -> None:
    np.save("tiny.npy", np.full((2, 3, 4), 1e-30, np.float32))
    printed = ok("index", "--embeddings", "tiny.npy", "-o", "h")
    assert "lengths from 2e-30 to 2e-30; a score is VHA and Sum of inner products: if cosines are meant, " in printed
    np.save("huge.npy", np.full((2, 3, 4), 1e200))
    result = chan("index", "--embeddings", "huge.npy", "-o", "h")
    assert result.exit_code == 1
    assert "huge/1: vectors[0, 0]: must be at most 3.4e+38 in size, as float32 is, got 1e+200" in result.output


@pytest.mark.parametrize("fine", ["float32", "float16", "none"])
def test_what_a_gallery_keeps_of_vectors_is_known_to_be_there(desk: Path, fine: str) -> None:
    np.savez("docs.npz", **rows())
    ok("index", "--embeddings", "docs.npz", "-o", "g", "--fine", fine)
    assert ok("index", "--embeddings", "docs.npz", "-o", "g", "--fine", fine).startswith("0 added, 8 already there\n")


def test_rows_that_cannot_be_read_are_listed(desk: Path) -> None:
    documents = rows()
    documents["doc-2"][0, 1] = np.nan
    documents["doc-4"][:] = 0
    documents["doc-5"] = np.zeros((0, DIM), np.float32)
    documents["doc-6"] = np.ones((2, DIM + 1), np.float32)
    documents["doc-7"] *= 1e20
    np.savez("docs.npz", **documents)
    result = chan("index", "--embeddings", "docs.npz", "-o", "g", "--strict")
    assert result.exit_code == 1
    assert "3 added" in result.output
    assert result.output.split("5 items were skipped:\n")[1].splitlines() == [
        "  doc-2: vectors[0, 1]: must be finite, got nan",
        "  doc-4: vectors[0]: must not be a vector of zeros, which is like nothing; leave padding out, got zeros",
        f"  doc-5: vectors: must be vectors [L, D], neither 0, or one vector [D], got [0, {DIM}]",
        f"  doc-6: D must be this gallery's {DIM}, got {DIM + 1}",
        f"  doc-7: values must be at most 1e+15 in size, got {np.abs(documents['doc-7']).max():g}",
    ]
    stopped = chan("index", "--embeddings", "docs.npz", "-o", "g", "--max-bad", 1)
    assert stopped.exit_code == 1
    assert "max_bad: at most 1 item may be unreadable" in stopped.output


def test_lines_of_metadata_belong_to_ids_or_to_rows(desk: Path) -> None:
    np.save("docs.npy", np.stack([row[0] for row in rows(3).values()]))
    Path("m.csv").write_text("id,year\n007,2020\nb,2021\nc,\n")
    ok("index", "--embeddings", "docs.npy", "--metadata", "m.csv", "-o", "g")
    listed = json.loads(ok("gallery", "list", "g", "--json"))
    assert listed == [
        {"id": "007", "metadata": {"year": 2020}},
        {"id": "b", "metadata": {"year": 2021}},
        {"id": "c", "metadata": {}},
    ]
    Path("m.csv").write_text("year\n2020\n2021\n2022\n")
    ok("index", "--embeddings", "docs.npy", "--metadata", "m.csv", "-o", "numbered")
    assert [row["id"] for row in json.loads(ok("gallery", "list", "numbered", "--json"))] == [
        "docs/0",
        "docs/1",
        "docs/2",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "x"}\n', "m.jsonl: the id of each line must be that of a row, got 'x' in 1 of 1"),
        ('{"id": "doc-1"}\n{"id": "doc-1"}\n', "m.jsonl, line 2: each id must occur once, got 'doc-1' again"),
        ('{"year": 3}\n', "m.jsonl, line 1: must have an `id`, because the files of embeddings have ids"),
        ('{"id": null}\n', "m.jsonl, line 1: id[0]: must be text or an integer, got None"),
        ('{"id": "doc-1", "a": 1e999}\n', "m.jsonl, line 1: metadata['a']: must be finite"),
        ('{"id": "doc-1", "source": 1}\n', "m.jsonl, line 1: rename the reserved key 'source'"),
        ('{"id": "\\ud800"}\n', "must be text that UTF-8 can encode"),
    ],
)
def test_lines_of_metadata_that_fit_no_row(desk: Path, lines: str, message: str) -> None:
    np.savez("docs.npz", **rows())
    Path("m.jsonl").write_text(lines)
    result = chan("index", "--embeddings", "docs.npz", "--metadata", "m.jsonl", "-o", "g")
    assert result.exit_code == 1
    assert message in result.output
    assert not Path("g").exists()


def test_metadata_without_a_line_for_each_row(desk: Path) -> None:
    np.save("docs.npy", np.ones((3, DIM), np.float32))
    Path("m.csv").write_text("year\n2020\n")
    result = chan("index", "--embeddings", "docs.npy", "--metadata", "m.csv", "-o", "g")
    assert "m.csv must have a line for each of 3 rows, got 1" in result.output


def test_mistakes_are_one_line(desk: Path) -> None:
    np.savez("docs.npz", **rows())
    np.savez("same.npz", **rows())
    np.savez("wide.npz", a=np.ones((1, DIM + 1), np.float32), b=np.ones((2, DIM + 1), np.float32))
    Path("photo.png").write_bytes(b"x")
    ok("index", "--embeddings", "docs.npz", "-o", "g")
    for arguments, code, message in (
        (
            ("index", "--embeddings", "docs.npz", "same.npz", "-o", "h"),
            1,
            "ids must be unique, got 'doc-0' in row 0 of docs.npz and in row 0 of same.npz, and 7 other ids more than "
            "once",
        ),
        (("index", "--embeddings", "wide.npz", "-o", "g"), 1, f"dim must be this gallery's {DIM}, got {DIM + 1}"),
        (("index", "--embeddings", "docs.npz", "-o", "g", "--pooling", "Mean"), 1, "pooling must be this gallery's"),
        (("index", "--embeddings", "docs.npz", "-o", "g", "--prune"), 2, "--prune has no effect with --embeddings"),
        (("index", "--embeddings", "docs.npz", "-o", "g", "--backend", "auto"), 2, "--backend has no effect with "),
        (("index", "g", "docs.npz", "-o", "h", "--coding", "VHA"), 2, "--coding has no effect without --embeddings"),
        (("index", "docs.npz", "-o", "h"), 2, "give BUNDLE SOURCES..., where BUNDLE is a folder, or --embeddings"),
        (("search", "g", "red apples"), 1, "holds embeddings of no known model, so nothing here encodes captions"),
        (("search", "g", "--image", "photo.png"), 1, "search with `chan search GALLERY --embeddings FILE`"),
        (("search", "g", "--embeddings", "wide.npz"), 1, f"a: D must be {DIM}, got {DIM + 1}"),
        (("search", "g", "--like", "nobody"), 1, "not in the gallery: nobody"),
        (("search", "g", "--like", "doc-1", "--html", "x.html"), 2, "--html has no effect with --like or --embeddings"),
        (("search", "g", "--like", "doc-1", "red"), 2, "give one caption, --image, --like or --embeddings"),
        (("explain", "g", "doc-1", "red"), 1, "holds embeddings of no known model, so nothing here encodes captions"),
        (("gallery", "prepare", "g", "--queries", "wide.npz"), 1, f"a: D must be {DIM}, got {DIM + 1}"),
        (
            ("gallery", "prepare", "g", "--queries", "docs.npz", "--bundle", "."),
            2,
            "--bundle has no effect on a gallery of no known model",
        ),
    ):  # fmt: skip
        result = chan(*arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert message in result.output, (arguments, result.output)
        assert "Traceback" not in result.output
    assert not Path("h").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
def test_a_file_whose_name_is_no_text_gives_no_ids(desk: Path) -> None:
    np.save("caf\udce9.npy", np.eye(2, DIM, dtype=np.float32))
    result = chan("index", "--embeddings", "caf\udce9.npy", "-o", "g")
    assert result.exit_code == 1
    assert r"ids, made of a file's name: must be text that UTF-8 can encode, got 'caf\udce9/0'" in result.output
    Path("m.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    ok("index", "--embeddings", "caf\udce9.npy", "-o", "g", "--metadata", "m.jsonl")
    assert ok("search", "g", "--embeddings", "caf\udce9.npy", "-k", 1).startswith("caf")


def test_vectors_that_may_be_one_query_are_said(desk: Path) -> None:
    documents, query = rows(30), next(iter(rows(1, seed=3).values()))
    query = np.concatenate([query, query])
    np.savez("docs.npz", **documents)
    np.savez("flat.npz", **{id: row[:1] for id, row in documents.items()})
    np.save("one.npy", query)
    np.save("whole.npy", query[None])
    ok("index", "--embeddings", "docs.npz", "-o", "g")
    ok("index", "--embeddings", "flat.npz", "-o", "flat")

    def said(gallery: str, file: str) -> str:
        result = chan("search", gallery, "--embeddings", file, "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)
        return result.stderr

    words = (
        f"one.npy holds {len(query)} queries of one vector each; one query of all these vectors is an array [1, L, D]"
    )
    assert said("g", "one.npy") == f"{words}\n"
    assert said("g", "whole.npy") == said("flat", "one.npy") == ""


def test_rows_like_a_row(desk: Path) -> None:
    documents = rows(30)
    np.savez("docs.npz", **documents)
    ok("index", "--embeddings", "docs.npz", "-o", "g")
    answer = json.loads(ok("search", "g", "--like", "doc-7", "-k", 4, "--json"))
    expected = [id for id in maxsim(documents, documents["doc-7"]) if id != "doc-7"]
    assert [hit["id"] for hit in answer["hits"]] == expected[:4]
    everything = json.loads(ok("search", "g", "--like", "doc-7", "-k", 99, "--json"))
    assert [hit["id"] for hit in everything["hits"]] == expected


def test_an_empty_id_is_an_id_everywhere(desk: Path) -> None:
    np.savez("docs.npz", **rows(3))
    ok("index", "--embeddings", "docs.npz", "-o", "g")
    with GalleryWriter.open("g") as writer, Gallery.open("g") as gallery:
        writer.add([""], gallery.embeddings(["doc-1"]))
    answer = json.loads(ok("search", "g", "--like", "", "-k", 4, "--json"))
    assert answer["hits"][0]["id"] == "doc-1"
    assert "" not in [hit["id"] for hit in answer["hits"]]
    ok("gallery", "delete", "g", "")
    assert len(json.loads(ok("gallery", "list", "g", "--json"))) == 3


def test_search_is_fitted_to_queries_of_embeddings(desk: Path) -> None:
    np.savez("docs.npz", **rows(300))
    np.savez("queries.npz", **rows(60, seed=2))
    printed = ok("index", "--embeddings", "docs.npz", "-o", "g", "--queries", "queries.npz")
    assert "over 30 queries" in printed
    assert "over 30 queries" in ok("gallery", "prepare", "g", "--queries", "queries.npz")


def test_a_fit_to_queries_outlives_runs_without_queries(desk: Path) -> None:
    np.savez("docs.npz", **rows(300))
    np.savez("more.npz", **rows(310))
    np.savez("queries.npz", **rows(60, seed=2))
    ok("index", "--embeddings", "docs.npz", "-o", "g", "--queries", "queries.npz")
    fitted = json.loads(ok("gallery", "info", "g", "--json"))["prepared"]
    printed = ok("index", "--embeddings", "more.npz", "-o", "g")
    assert "310 images" in printed
    assert f"{fitted}\nsearch stays as an earlier run fitted it; --queries fits it again" in printed
    assert json.loads(ok("gallery", "info", "g", "--json"))["prepared"] == fitted
    assert "an earlier run" not in ok("index", "--embeddings", "more.npz", "-o", "g", "--queries", "queries.npz")
    assert "over" not in ok("gallery", "prepare", "g")


def test_queries_that_search_is_not_fitted_to_are_named(desk: Path) -> None:
    np.savez("docs.npz", **rows(20))
    np.savez("queries.npz", **rows(60, seed=2))
    printed = ok("index", "--embeddings", "docs.npz", "-o", "g", "--queries", "queries.npz")
    assert "search is not fitted to queries.npz, because the gallery has fewer than 256 rows" in printed


def test_rows_are_held_a_few_at_a_time(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row among short ones does not pad them all, and no batch is larger than what may be held."""
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 4 * DIM * 20)
    documents = rows(50)
    documents["doc-20"] = np.ones((10_000, DIM), np.float32)
    np.savez("docs.npz", **documents)
    added: list[tuple[int, ...]] = []
    true_add = GalleryWriter.add

    def add(self: GalleryWriter, ids: Any, embeddings: Embeddings, *args: Any, **options: Any) -> None:
        added.append(embeddings.vectors.shape[:2])
        true_add(self, ids, embeddings, *args, **options)

    monkeypatch.setattr(GalleryWriter, "add", add)
    with GalleryWriter.create("g", dim=DIM, alignment=AlignmentConfig.maxsim()) as writer:
        result = index_embeddings(writer, embedding_source(["docs.npz"]))
    assert result.added == 50
    assert [shape for shape in added if np.prod(shape) > 20] == [(1, 10_000)]
    with Gallery.open("g") as gallery:
        assert [row.id for row in gallery.rows()] == list(documents)


def test_pictures_find_pictures_and_captions_captions(desk: Path, make_small_model: Callable) -> None:
    from PIL import Image

    bundle = make_small_model(pictures=True).bundle
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (30, 60, 3), np.uint8)).save(f"photos/{i}.png")
    Path("lines.txt").write_text("two red apples\na white cloud\ntwo red clouds\n")
    ok("index", bundle, "photos", "-o", "pictures")
    ok("index", bundle, "lines.txt", "--captions", "-o", "captions")
    answer = json.loads(ok("search", "pictures", "--image", "photos/4.png", "-k", 2, "--json"))
    assert answer["certified"]
    like = json.loads(ok("search", "pictures", "--like", "photos/4.png", "-k", 1, "--json"))
    assert answer["hits"][0]["id"] == "photos/4.png"
    assert answer["hits"][1]["id"] == like["hits"][0]["id"]
    assert answer["hits"][0]["words"][0].keys() == {"region", "similarity"}
    shown = ok("search", "captions", "two red apples", "-k", 3)
    assert "two red apples" in shown
    result = chan("search", "pictures", "--image", "photos/4.png", "--html", "x.html")
    assert result.exit_code == 2
    assert "this search compares no caption with a picture" in result.output


def test_what_a_gallery_keeps_need_not_be_given_again(desk: Path, make_small_model: Callable) -> None:
    np.savez("docs.npz", **rows())
    ok("index", "--embeddings", "docs.npz", "-o", "g", "--coding", "THA", "--pooling", "Mean", "--fine", "fixed16")
    assert "0 added, 8 already there" in ok("index", "--embeddings", "docs.npz", "-o", "g")
    result = chan("index", "--embeddings", "docs.npz", "-o", "g", "--pooling", "Sum")
    assert "pooling must be this gallery's Mean, got Sum" in result.output
    bundle = make_small_model(precisions=("fp32", "fp16")).bundle
    Path("lines.txt").write_text("two red apples\na white cloud\n")
    command = ("index", bundle, "lines.txt", "--captions", "-o", "captions")
    ok(*command, "--precision", "fp16", "--fine", "float16")
    assert "0 encoded, 2 already there" in ok(*command)
    assert "fine must be this gallery's float16, got float32" in chan(*command, "--fine", "float32").output
    assert "was made with another model" in chan(*command, "--precision", "fp32").output


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".parquet"])
@pytest.mark.parametrize("fine", ["float32", "float16", "none"])
def test_what_is_exported_is_what_the_gallery_keeps(
    desk: Path, suffix: str, fine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with ids and metadata, and a gallery made from it gives the same back."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    monkeypatch.setattr(export_module, "BYTES_AT_ONCE", 4 * DIM * 12)
    documents = {f"{id} ü\n": row for id, row in rows(12).items()}
    metadata: list[dict[str, Any]] = [{"n": n, "tags": ["a", "ß"], "deep": {"x": None}} for n in range(12)]
    with GalleryWriter.create("g", dim=DIM, alignment=AlignmentConfig.maxsim(), fine=fine) as writer:  # type: ignore[arg-type]
        writer.add(documents, Embeddings.from_rows(documents.values()), metadata)
        writer.delete(["doc-4 ü\n"])
    facts = json.loads(ok("gallery", "export", "g", "-o", f"x{suffix}", "--json"))
    kept = [id for id in documents if id != "doc-4 ü\n"]
    with Gallery.open("g") as gallery:
        held = gallery.embeddings(kept).rows()
    assert facts["vectors"] == sum(map(len, held))
    source = embedding_source([f"x{suffix}"])
    assert list(source.ids) == kept
    for row, vectors, id in zip(source.read(), held, kept, strict=True):
        np.testing.assert_array_equal(row.vectors, vectors)
        assert row.metadata == metadata[list(documents).index(id)]
        lost = float(np.linalg.norm(documents[id].astype("f8") - vectors.astype("f8"), axis=1).max())
        if fine == "float32":
            assert (lost, facts["error"]) == (0, 0)
        elif fine == "none":
            assert 0 < lost <= facts["error"] < 0.02
    ok("index", "--embeddings", f"x{suffix}", "-o", "again")
    with Gallery.open("again") as gallery:
        for mine, theirs in zip(gallery.embeddings(kept).rows(), held, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_export_in_words(desk: Path) -> None:
    np.savez("docs.npz", **rows())
    for fine, message in (
        ("float32", "8 rows with 24 vectors of float32, exactly as they were added"),
        ("float16", "8 rows with 24 vectors of float16, exactly as the gallery keeps them, rounded to float16"),
        ("none", "8 rows with 24 vectors of float32, restored from int8 codes, within 0.0"),
    ):
        ok("index", "--embeddings", "docs.npz", "-o", fine, "--fine", fine)
        assert f"x.npz: {message}" in ok("gallery", "export", fine, "-o", "x.npz")
    for arguments, message in (
        (("float32", "-o", "x.txt"), "the ending of file must be one of .safetensors, .npz, .parquet, got '.txt'"),
        (("float32", "-o", "x.npz", "--where", "year=3"), "year"),
    ):
        result = chan("gallery", "export", *arguments)
        assert result.exit_code == 1
        assert message in result.output
    with GalleryWriter.create("empty", dim=DIM, alignment=AlignmentConfig.maxsim()):
        pass
    assert "there must be a row to export, got none" in chan("gallery", "export", "empty", "-o", "y.npz").output
    assert not Path("y.npz").exists()
