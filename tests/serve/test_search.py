"""Searches, scores, encodings and explanations over HTTP are those of the library."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import (
    AlignmentConfig,
    Embeddings,
    Gallery,
    GalleryWriter,
    Matcher,
    gallery_settings,
    open_writer,
)
from chan_rt.serve import Client

CAPTION = "two red apples lie on the blue table"


def picture(seed: int = 1, format: str = "PNG") -> bytes:
    """A picture file."""
    cells = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(cells.repeat(16, 0).repeat(20, 1)).save(data, format)
    return data.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_search_is_that_of_the_library(http: httpx.Client, library: tuple[Gallery, Matcher]) -> None:
    opened, matcher = library
    captions = [CAPTION, "a cloud"]
    answer = http.post("/v1/search", json={"captions": captions, "k": 3})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["gallery"], body["kind"]) == ("gallery", "images")
    results = opened.search(matcher.encode_texts(captions), 3)
    for caption, found, expected in zip(captions, body["results"], results, strict=True):
        assert (found["certified"], found["reason"]) == (True, expected.reason)
        assert (found["rows"], found["rescored"]) == (8, expected.rescored)
        assert found["rescored_share"] == expected.rescored / 8
        assert [word["word"] for word in found["words"]] == matcher.tokenizer.tokens(caption)
        assert found["unknown_words"] == matcher.unknown_words(caption)
        assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected.hits]
        for mine, theirs in zip(found["hits"], expected.hits, strict=True):
            assert mine["score"] == pytest.approx(theirs.score, abs=1e-5)
            explained = matcher.explain(opened.embeddings([theirs.id]), caption).words
            assert [word["word"] for word in mine["words"]] == [one.word for one in explained]
            assert [word["region"] for word in mine["words"]] == theirs.word_regions.tolist()
            assert [word["similarity"] for word in mine["words"]] == pytest.approx(theirs.word_scores, abs=2e-6)
            assert [word["share"] for word in mine["words"]] == pytest.approx(
                [one.share for one in explained], abs=1e-5
            )
            assert [word.get("known", True) for word in mine["words"]] == [one.known for one in explained]
            assert [word.get("mark", False) for word in mine["words"]] == [one.is_mark for one in explained]
            for word in mine["words"]:
                row, column = divmod(word["region"], 2)
                assert word["box"] == [column / 2, row / 2, 0.5, 0.5]


def test_times_and_ids_stand_in_headers(http: httpx.Client) -> None:
    answer = http.post("/v1/search", json={"captions": [CAPTION]}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    for name in ("x-queue-time", "x-inference-time", "x-search-time"):
        assert 0 <= float(answer.headers[name]) < 30_000
    other = http.post("/v1/search", json={"captions": [CAPTION]}, headers={"x-request-id": "not\tmine"})
    assert len(other.headers["x-request-id"]) == 32


def test_metadata_names_no_file_of_the_server(http: httpx.Client, pictures: Path) -> None:
    text = http.post("/v1/search", json={"captions": [CAPTION], "k": 8}).text
    assert str(pictures) not in text
    assert '"metadata":{}' in text


@pytest.mark.parametrize("key", ["path", "source"])
def test_a_filter_cannot_ask_for_files_of_the_server(http: httpx.Client, key: str) -> None:
    def ask(where: dict) -> httpx.Response:
        return http.post("/v1/search", json={"captions": [CAPTION], "k": 8, "where": where})

    for condition in ("x", {"$contains": "/"}, {"$gt": ""}, {"$ne": ""}, {"$in": ["x"]}):
        for where in ({key: condition}, {"$not": {key: condition}}, {"$or": [{key: condition}, {"n": 1}]}):
            answer = ask(where)
            assert (answer.status_code, answer.json()["error"]) == (422, "InputError")
            assert answer.json()["detail"].startswith(f"where: no row has the key '{key}'; no row has metadata")
    for present, rows in ((True, 0), (False, 8)):
        assert len(ask({key: {"$exists": present}}).json()["results"][0]["hits"]) == rows


def test_a_word_can_be_switched_off(http: httpx.Client, library: tuple[Gallery, Matcher]) -> None:
    opened, matcher = library
    body = http.post("/v1/search", json={"captions": [CAPTION], "k": 2, "off": [3, 0]}).json()
    (result,) = body["results"]
    assert [word.get("on", True) for word in result["words"]] == [i not in (0, 3) for i in range(10)]
    query = matcher.encode_texts([CAPTION])
    kept = np.delete(query.vectors, [0, 3], axis=1)
    (expected,) = opened.search(type(query)(kept, query.lengths - 2, "captions"), 2)
    assert [hit["id"] for hit in result["hits"]] == [hit.id for hit in expected.hits]
    assert result["hits"][0]["score"] == pytest.approx(expected.hits[0].score, abs=1e-5)
    tokens = matcher.tokenizer.tokens(CAPTION)
    assert [word["word"] for word in result["hits"][0]["words"]] == [tokens[i] for i in range(10) if i not in (0, 3)]


@pytest.mark.parametrize("off", [[10], list(range(10))])
def test_a_word_that_is_not_there_cannot_be_switched_off(http: httpx.Client, off: list[int]) -> None:
    answer = http.post("/v1/search", json={"captions": [CAPTION], "off": off})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:chan-rt:problem:off")


def test_ids_choose_among_rows(http: httpx.Client) -> None:
    ids = ["photos/1 & co.png", "photos/6 & co.png"]
    (result,) = http.post("/v1/search", json={"captions": [CAPTION], "ids": ids}).json()["results"]
    assert {hit["id"] for hit in result["hits"]} == set(ids)
    assert result["rows"] == 2


def test_embeddings_go_out_and_come_back_as_a_query(http: httpx.Client, library: tuple[Gallery, Matcher]) -> None:
    _, matcher = library
    packed = http.post("/v1/encode", json={"captions": [CAPTION, "a cloud"]}).json()["embeddings"]
    texts = matcher.encode_texts([CAPTION, "a cloud"])
    assert (packed["kind"], packed["dim"], packed["lengths"]) == ("captions", 16, texts.lengths.tolist())
    vectors = np.frombuffer(base64.b64decode(packed["vectors"]), "<f4").reshape(-1, 16)
    np.testing.assert_allclose(vectors[:10], texts.vectors[0, :10], atol=1e-6)
    np.testing.assert_allclose(vectors[10:], texts.vectors[1, : texts.lengths[1]], atol=1e-6)
    by_vectors = http.post("/v1/search", json={"embeddings": packed, "k": 2}).json()["results"]
    by_words = http.post("/v1/search", json={"captions": [CAPTION, "a cloud"], "k": 2}).json()["results"]
    for one, other in zip(by_vectors, by_words, strict=True):
        assert [hit["id"] for hit in one["hits"]] == [hit["id"] for hit in other["hits"]]
        assert one["words"] == []
        assert {word["word"] for word in one["hits"][0]["words"]} == {""}


def test_a_row_is_a_query_for_rows_like_it(http: httpx.Client, library: tuple[Gallery, Matcher]) -> None:
    opened, _ = library
    id = opened.rows()[3].id
    (found,) = http.post("/v1/search", json={"like": id, "k": 3}).json()["results"]
    (expected,) = opened.search(opened.embeddings([id]), 4, same_kind=True)
    expected = expected.without(id, 3)
    assert len(expected.hits) == 3
    assert found["certified"]
    assert [(hit["id"], hit["score"]) for hit in found["hits"]] == [(hit.id, hit.score) for hit in expected.hits]
    assert found["words"] == []
    for mine, theirs in zip(found["hits"], expected.hits, strict=True):
        assert [word["region"] for word in mine["words"]] == theirs.word_regions.tolist()
        assert {word["word"] for word in mine["words"]} == {""}
    ids = [hit.id for hit in expected.hits[1:]] + [id]
    (among,) = http.post("/v1/search", json={"like": id, "k": 9, "ids": ids}).json()["results"]
    assert [hit["id"] for hit in among["hits"]] == ids[:-1]


def test_scores_are_those_of_the_library(http: httpx.Client, library: tuple[Gallery, Matcher], pictures: Path) -> None:
    _, matcher = library
    captions = [CAPTION, "a cloud", "the green apple"]
    files = sorted(pictures.iterdir())[:2]
    expected = matcher.score(matcher.encode_pictures(files), matcher.encode_texts(captions))
    data = [base64_of(file.read_bytes()) for file in files]
    scores = http.post("/v1/score", json={"captions": captions, "pictures": data}).json()["scores"]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    ids = [f"photos/{file.name}" for file in files]
    scores = http.post("/v1/score", json={"captions": captions, "ids": ids}).json()["scores"]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("form", ["json", "file", "id"])
def test_an_explanation_is_that_of_the_library(
    http: httpx.Client, library: tuple[Gallery, Matcher], pictures: Path, form: str
) -> None:
    _, matcher = library
    file = pictures / "4 & co.png"
    if form == "file":
        answer = http.post("/v1/explain", params={"caption": CAPTION}, content=file.read_bytes(),
                           headers={"content-type": "image/png"})  # fmt: skip
    else:
        field = {"id": f"photos/{file.name}"} if form == "id" else {"picture": base64_of(file.read_bytes())}
        answer = http.post("/v1/explain", json={"caption": CAPTION, **field})
    body = answer.json()
    expected = matcher.explain(matcher.encode_pictures([file]), CAPTION)
    assert body["score"] == pytest.approx(expected.score, abs=1e-4)
    assert body["grid"] == 2
    assert [(word["word"], word["region"]) for word in body["words"]] == [(m.word, m.region) for m in expected.words]
    assert [word["share"] for word in body["words"]] == pytest.approx([m.share for m in expected.words], abs=1e-4)
    assert body["unknown_words"] == ["apples"]
    assert (body["picture"] is not None) == (form == "id")


def test_galleries_are_listed_with_the_limits(http: httpx.Client, library: tuple[Gallery, Matcher]) -> None:
    body = http.get("/v1/galleries").json()
    (info,) = body["galleries"]
    assert info | {"scan": "", "model": ""} == {
        "name": "gallery", "kind": "images", "rows": 8, "dim": 16, "coding": "VHA", "pooling": "LSE",
        "fine": "float32", "precision": "fp32", "model": "", "scan": "", "grid": 2,
        "takes_captions": True, "takes_pictures": True, "max_words": library[1].max_words, "writable": False,
        "prepared": None, "problem": None,
    }  # fmt: skip
    assert body["limits"]["k"] == 1000


def test_the_picture_of_a_row_is_a_jpeg_of_the_asked_size(http: httpx.Client) -> None:
    (result,) = http.post("/v1/search", json={"captions": [CAPTION], "k": 1}).json()["results"]
    answer = http.get(result["hits"][0]["picture"] + "&side=160")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("JPEG", (60, 48))
    again = http.get(result["hits"][0]["picture"] + "&side=160", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("id", ["../photos/1 & co.png", "/etc/passwd", "photos/nine.png", ""])
def test_no_other_file_is_a_picture(http: httpx.Client, id: str) -> None:
    answer = http.get("/v1/galleries/gallery/pictures", params={"id": id})
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:chan-rt:problem:picture")


CODINGS = ("VHA", "THA", "VSA")
TEXTS = {"a": "a red strawberry", "b": "the green apple", "c": "two white clouds", "d": "a table"}


@pytest.fixture(scope="module")
def captions_server(start_server, make_small_model, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A client of a server with a gallery of captions for each coding, and explanations of a picture for each."""
    folder, expected = tmp_path_factory.mktemp("captions"), {}
    for coding in CODINGS:
        bundle = make_small_model(coding=coding, pictures=True).bundle
        settings = gallery_settings(bundle, "captions")
        with open_writer(folder / coding, settings) as writer, Matcher.open(bundle, threads=1) as matcher:
            metadata = [{"caption": caption} for caption in TEXTS.values()]
            writer.add(list(TEXTS), matcher.encode_texts(list(TEXTS.values())), metadata)
            images = matcher.encode_pictures([Image.open(io.BytesIO(picture()))])
            expected[coding] = {id: matcher.explain(images, caption) for id, caption in TEXTS.items()}
    with (
        start_server(*(f"{coding}={folder / coding}" for coding in CODINGS)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client, expected


@pytest.mark.parametrize("coding", CODINGS)
def test_captions_are_found_with_a_picture(captions_server, coding: str) -> None:
    client, expected = captions_server
    headers = {"content-type": "image/png"}
    answer = client.post(f"/v1/search?k=3&gallery={coding}", content=picture(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["gallery"], answer.json()["kind"]) == (coding, "captions")
    (result,) = answer.json()["results"]
    assert len(result["hits"]) == 3
    for hit in result["hits"]:
        explained = expected[coding][hit["id"]]
        assert hit["score"] == pytest.approx(explained.score, abs=1e-4)
        assert hit["metadata"] == {"caption": TEXTS[hit["id"]]}
        words = [(word["word"], word["region"]) for word in hit["words"]]
        assert words == [(match.word, match.region) for match in explained.words]
        shares = [match.share for match in explained.words]
        assert [word["share"] for word in hit["words"]] == pytest.approx(shares, abs=1e-4)
    mine = {"gallery": coding, "picture": base64_of(picture())}
    by_id = client.post("/v1/explain", json={**mine, "id": "b"}).json()
    assert by_id["score"] == pytest.approx(expected[coding]["b"].score, abs=1e-4)
    mine = {"gallery": coding, "pictures": [base64_of(picture())]}
    scores = client.post("/v1/score", json={**mine, "ids": ["b", "a"]}).json()["scores"]
    np.testing.assert_allclose(scores, [[expected[coding][id].score for id in "ba"]], atol=1e-4)


@pytest.mark.parametrize("coding", CODINGS)
def test_captions_like_a_caption_are_found(captions_server, coding: str) -> None:
    client, _ = captions_server
    (result,) = client.post("/v1/search", json={"gallery": coding, "like": "b"}).json()["results"]
    assert sorted(hit["id"] for hit in result["hits"]) == ["a", "c", "d"]
    for hit in result["hits"]:
        assert [word["word"] for word in hit["words"]][1:-1] == TEXTS[hit["id"]].split()
        assert {word["box"] for word in hit["words"]} == {None}, "words chose words, which have no place in a picture"


@pytest.fixture(scope="module")
def vectors_server(start_server, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A writable server of embeddings that came without a bundle: its client, the gallery, its URL."""
    path = tmp_path_factory.mktemp("vectors") / "pages"
    rows = [np.random.default_rng(n).standard_normal((3, 8)).astype(np.float32) for n in range(20)]
    with GalleryWriter.create(path, dim=8, alignment=AlignmentConfig.maxsim()) as writer:
        writer.add(range(20), Embeddings.from_rows(rows, "images"), [{"page": n} for n in range(20)])
    with start_server(path, "--writable") as server, Client(server.url) as client, Gallery.open(path) as gallery:
        yield client, gallery, server.url


def test_a_gallery_without_a_bundle_is_searched_with_embeddings(vectors_server) -> None:
    client, gallery, _ = vectors_server
    queries = Embeddings.from_rows([np.ones((2, 8)), np.eye(8)], "captions")
    for mine, theirs in zip(client.search(embeddings=queries, k=5), gallery.search(queries, 5), strict=True):
        assert mine.certified
        assert [(hit.id, hit.score, hit.metadata) for hit in mine.hits] == [
            (hit.id, hit.score, hit.metadata) for hit in theirs.hits
        ]
        for hit, other in zip(mine.hits, theirs.hits, strict=True):
            assert [(word.word, word.region, word.box) for word in hit.words] == [
                ("", region, None) for region in other.word_regions
            ]
    (found,) = client.search(like="7", k=4, where={"page": {"$lt": 10}})
    (expected,) = gallery.search(gallery.embeddings(["7"]), 5, where={"page": {"$lt": 10}}, same_kind=True)
    assert [hit.id for hit in found.hits] == [hit.id for hit in expected.without("7", 4).hits]
    (info,) = client.galleries()
    assert (info.takes_captions, info.takes_pictures, info.max_words, info.grid) == (False, False, 0, None)
    assert client.add(["new"], Embeddings.from_rows([np.ones((1, 8))], "images")).rows == 21
    assert client.delete(["new"]).rows == 20


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("search", {"captions": ["a"]}),
        ("search", {"pictures": [base64_of(picture())]}),
        ("encode", {"captions": ["a"]}),
        ("encode", {"pictures": [base64_of(picture())]}),
        ("score", {"captions": ["a"], "ids": ["1"]}),
        ("explain", {"caption": "a", "id": "1"}),
        ("explain", {"caption": "a", "picture": base64_of(picture())}),
    ],
)
def test_a_gallery_without_a_bundle_knows_no_words_and_no_pictures(vectors_server, path: str, body: dict) -> None:
    *_, url = vectors_server
    answer = httpx.post(f"{url}/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (422, "model")
    assert answer.json()["detail"].startswith("the gallery pages holds embeddings of no known model")
    assert answer.json()["detail"].endswith(": search it with embeddings, or with the id of a row as `like`")


def test_of_several_galleries_one_must_be_named(captions_server) -> None:
    client, _ = captions_server
    assert [one["name"] for one in client.get("/v1/galleries").json()["galleries"]] == list(CODINGS)
    answer = client.post("/v1/search", content=picture(), headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "gallery must be one of VHA, THA, VSA, got none")
