"""What the server does not do, each with a problem that names the rule; and whatever comes, never a status 500."""

import base64
import contextlib
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chan_rt.runtime import Gallery, gallery_settings, index_source, open_matcher, open_writer, picture_source
from chan_rt.serve.galleries import OpenGallery
from chan_rt.serve.pictures import Pictures
from chan_rt.serve.problems import Refusal
from chan_rt.serve.reading import RepeatedKey, check_keys


class Pairs(list):
    """An object of JSON as its keys and values, of which a key may be there twice."""


CAPTION = "a red strawberry"
JSON = {"content-type": "application/json"}
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def huge_png(side: int) -> bytes:
    """A PNG of side x side pixels in a few bytes: what is compressed is never there."""
    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return PNG_HEAD + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def check_problem(answer: httpx.Response, status: int, reason: str) -> dict:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (answer.status_code, body["status"]) == (status, status), answer.text
    assert body["type"] == f"urn:chan-rt:problem:{reason}"
    assert body["request_id"] == answer.headers["x-request-id"]
    assert 0 < len(body["detail"]) <= 1010
    return body


@pytest.mark.parametrize(
    ("body", "status", "reason", "words"),
    [
        ("{", 400, "json", "must be JSON"),
        (b'{"captions": ["\xff"]}', 400, "json", "must be JSON"),
        ('{"where": {"a": ' + "[" * 100_000, 400, "json", "must be JSON"),
        ("[]", 422, "body", "Expected `object`"),
        (
            '{"captions": ["a"], "k": 2, "captions": ["b"]}',
            422,
            "body",
            "the key 'captions' stands twice in one object",
        ),
        ('{"k": 2, "\\u006b": 3, "captions": ["a"]}', 422, "body", "the key 'k' stands twice in one object"),
        (
            '{"captions": ["a"], "where": {"n": {"$gte": 1}, "n" : {"$lt": 9}}}',
            422,
            "body",
            "the key 'n' stands twice in one object",
        ),
        ({"caption": CAPTION}, 422, "body", "unknown field `caption`"),
        ({"captions": CAPTION}, 422, "body", "`$.captions`"),
        ({"captions": [CAPTION], "k": 0}, 422, "body", ">= 1"),
        ({"captions": [CAPTION], "k": 1001}, 422, "k", "at most 1000 for all queries together, got 1001"),
        ({"captions": [CAPTION] * 11, "k": 91}, 422, "k", "together, got 91 for each of 11"),
        ({"captions": [CAPTION], "mode": "exact"}, 422, "body", "unknown field `mode`"),
        ({}, 422, "body", "got none"),
        ({"captions": [CAPTION], "pictures": []}, 422, "body", "got captions and pictures"),
        ({"captions": [CAPTION], "like": "a"}, 422, "body", "got captions and like"),
        ({"like": "nine"}, 422, "InputError", "not in the gallery: nine"),
        ({"like": "nine", "off": [0]}, 422, "off", "exactly one caption, got 0"),
        ({"captions": []}, 422, "texts", "1 to 64 items, got 0"),
        ({"captions": [CAPTION] * 65}, 422, "texts", "1 to 64 items, got 65"),
        ({"captions": [CAPTION, "a cloud"], "off": [0]}, 422, "off", "exactly one caption"),
        ({"captions": [CAPTION], "gallery": "other"}, 404, "gallery", "one of gallery, got 'other'"),
        (
            {"pictures": ["AAAA"]},
            422,
            "body",
            "gallery of images is searched with captions or embeddings, got pictures",
        ),
        ({"captions": [CAPTION], "ids": ["nine"]}, 422, "InputError", "ids: not in the gallery: nine"),
        ({"captions": [CAPTION], "where": {"a": {"$in": [0] * 101}}}, 422, "where", "at most 100 values"),
        ({"captions": [CAPTION], "where": {"$or": [{"a": 1}] * 101}}, 422, "where", "at most 100 values"),
        ({"captions": [CAPTION], "where": {"a": "x" * 9_000_000}}, 422, "InputError", "no row has the key 'a'"),
        ({"captions": [CAPTION], "where": {"a" * 9_000_000: 1}}, 422, "InputError", "no row has the key 'a"),
        ({"captions": [CAPTION], "where": {"$what": 1}}, 422, "InputError", "$not"),
        ({"captions": [" "]}, 422, "InputError", "at least one word"),
        ({"captions": ["a", "." * 10_001]}, 422, "characters", "captions[1] must have at most 10000 characters"),
        (
            {
                "embeddings": {
                    "dim": 16,
                    "lengths": [5000] + [1] * 63,
                    "vectors": base64.b64encode(bytes(64 * 5063)).decode(),
                }
            },
            422,
            "TensorError",
            "padded to the longest, must have at most 16777216 bytes",
        ),
        ({"captions": ["a " * 200]}, 422, "TensorError", "words"),
        ({"embeddings": {"dim": 16, "lengths": [2], "vectors": "AAAA"}}, 422, "TensorError", "vectors"),
        ({"embeddings": {"dim": 1, "lengths": [1], "vectors": "AACAPw=="}}, 422, "InputError", "gallery's 16, got 1"),
        ({"embeddings": {"dim": 1, "lengths": [1], "vectors": "AACAfw=="}}, 422, "InputError", "gallery's 16, got 1"),
        ({"captions": [CAPTION], "ids": ["\ud800"]}, 400, "json", "must be JSON"),
    ],
)
def test_a_search_that_breaks_a_rule(http: httpx.Client, body, status: int, reason: str, words: str) -> None:
    content = json.dumps(body) if isinstance(body, dict) else body
    problem = check_problem(http.post("/v1/search", content=content, headers=JSON), status, reason)
    assert words in problem["detail"]
    if reason.endswith("Error"):
        assert problem["error"] == reason
    if reason == "TensorError":
        assert problem["detail"] == f"{problem['tensor']}: {problem['rule']}, got {problem['value']}"


def test_no_caption_keeps_the_server_from_others(http: httpx.Client) -> None:
    """Splitting text into words holds Python's lock, so that text is bounded before."""
    for text in ("a" * 9_000_000, "''.. " * 2_000_000):
        check_problem(http.post("/v1/search", json={"captions": [text]}), 422, "characters")
        answer = http.post("/v1/explain", json={"caption": text, "id": "photos/1 & co.png"})
        check_problem(answer, 422, "characters")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://localhost:1", "http://[", "//127.0.0.1", "http://a:b:c"]
)
@pytest.mark.parametrize("path", ["/v1/reopen", "/v1/search"])
def test_a_page_of_another_origin_is_refused(http: httpx.Client, origin: str, path: str) -> None:
    check_problem(http.post(path, headers={"origin": origin}), 403, "origin")
    own = http.post(path, headers={"origin": str(http.base_url).rstrip("/")})
    assert own.json()["type"].rpartition(":")[2] in ("read-only", "media")
    assert own.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_bad_caption_fails_alone(http: httpx.Client) -> None:
    """Requests of one batch do not share their errors: the others are answered."""
    for _ in range(3):
        bodies = [{"captions": [text]} for text in (" ", CAPTION, "a " * 200, "a cloud")]
        answers = [http.post("/v1/search", json=body) for body in bodies]
        assert [answer.status_code for answer in answers] == [422, 200, 422, 200]


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v1/nothing", 404, "path"),
        ("GET", "/v1/search", 405, "method"),
        ("POST", "/v1/galleries", 405, "method"),
        ("PUT", "/v1/galleries/gallery/rows", 403, "read-only"),
        ("PATCH", "/v1/galleries/gallery/rows", 403, "read-only"),
        ("DELETE", "/v1/galleries/gallery/rows", 403, "read-only"),
        ("PUT", "/v1/galleries/gallery/pictures?id=1", 403, "read-only"),
        ("POST", "/v1/reopen", 403, "read-only"),
        ("GET", "/v1/galleries/gallery/pictures", 422, "query"),
        ("GET", "/v1/galleries/gallery/pictures?id=1&side=0", 422, "query"),
        ("GET", "/v1/galleries/gallery/pictures?id=1&side=x", 422, "query"),
        ("GET", "/v1/galleries/other/pictures?id=1", 404, "gallery"),
        ("POST", "/v1/search", 415, "media"),
        ("GET", "/page/../settings.py", 404, "path"),
        ("GET", "/page/%2e%2e/settings.py", 404, "path"),
        ("GET", "/page/..%2fsettings.py", 404, "path"),
    ],
)
def test_a_path_that_is_not_there(http: httpx.Client, method: str, path: str, status: int, reason: str) -> None:
    check_problem(http.request(method, path), status, reason)


def test_another_method_than_that_of_the_path_is_told_the_right_one(http: httpx.Client) -> None:
    answer = http.get("/v1/explain?caption=a+cloud&id=1")
    assert answer.headers["allow"] == "POST"
    assert answer.json()["detail"] == "the path does not have this method; it has POST"


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", 415, "picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", 415, "picture"),
        (PNG_HEAD + b"nothing", 422, "InputError"),
        (b"\xff\xd8\xff" + bytes(100), 422, "InputError"),
        (huge_png(20), 422, "InputError"),
        (huge_png(8_000), 413, "pixels"),
        (huge_png(60_000), 413, "pixels"),
    ],
)
def test_an_upload_that_is_no_picture(http: httpx.Client, data: bytes, status: int, reason: str) -> None:
    headers = {"content-type": "image/png"}
    check_problem(http.post("/v1/encode", content=data, headers=headers), status, reason)


@pytest.mark.parametrize(
    "query",
    [
        "k=3&k=4",
        "k=three",
        "where={",
        "nothing=1",
        "where=[]",
        'where={"a":1,"a":2}',
        'where={"a":NaN}',
        'where={"a":"\\ud800"}',
    ],
)
def test_a_query_that_breaks_a_rule(http: httpx.Client, query: str) -> None:
    answer = http.post(f"/v1/search?{query}", content=PNG_HEAD, headers={"content-type": "image/png"})
    check_problem(answer, 422, "query")


def test_a_filter_of_a_query_has_each_key_once(http: httpx.Client) -> None:
    answer = http.post('/v1/search?where={"a":1,"a":2}', content=PNG_HEAD, headers={"content-type": "image/png"})
    assert check_problem(answer, 422, "query")["detail"].endswith("the key 'a' stands twice in one object")


def test_a_query_beside_json_is_not_ignored(http: httpx.Client) -> None:
    problem = check_problem(http.post("/v1/search?k=3&k=4", json={"captions": [CAPTION]}), 422, "query")
    assert problem["detail"] == "beside a body in JSON the query must be empty, got 'k' in it"


def test_a_compressed_body_is_called_so(http: httpx.Client) -> None:
    packed = gzip.compress(json.dumps({"captions": [CAPTION]}).encode())
    problem = check_problem(
        http.post("/v1/search", content=packed, headers={**JSON, "content-encoding": "gzip"}), 415, "media"
    )
    assert problem["detail"] == "the body must not be encoded, got the content encoding 'gzip'"


KEYS = st.sampled_from(["a", "b", ":", '"', "\\", 'x":', "é", '\\"'])


@given(
    st.recursive(
        st.none() | st.text(alphabet='ab":\\, {}', max_size=6) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=3).map(Pairs),
        max_leaves=8,
    ),
    st.sampled_from(["", " ", "\n\t"]),
    st.booleans(),
)
def test_a_key_is_found_twice_exactly_where_it_stands_twice(value: object, blank: str, escaped: bool) -> None:
    def written(value: object) -> str:
        if isinstance(value, Pairs):
            parts = [f"{json.dumps(key, ensure_ascii=escaped)}{blank}:{written(item)}" for key, item in value]
            return f"{{{','.join(parts)}}}"
        if isinstance(value, list):
            return f"[{','.join(map(written, value))}]"
        return json.dumps(value, ensure_ascii=escaped)

    def twice(value: object) -> bool:
        if isinstance(value, Pairs):
            keys = [key for key, _ in value]
            return len(set(keys)) < len(keys) or any(twice(item) for _, item in value)
        return isinstance(value, list) and any(map(twice, value))

    body = written(value).encode()
    with pytest.raises(RepeatedKey, match="stands twice") if twice(value) else contextlib.nullcontext():
        check_keys(body)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["captions", "pictures", "embeddings", "k", "where", "ids", "off", "gallery", "caption", "picture", "id"]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["search", "score", "encode", "explain"]),
    body=st.dictionaries(FIELDS, VALUES, max_size=4) | VALUES,
)
def test_no_body_makes_the_server_fail(http: httpx.Client, path: str, body: object) -> None:
    try:
        content = json.dumps(body).encode()
    except UnicodeEncodeError:
        return
    answer = http.post(f"/v1/{path}", content=content, headers=JSON)
    assert answer.status_code in (200, 400, 404, 413, 415, 422), answer.text
    if answer.status_code != 200:
        check_problem(answer, answer.status_code, answer.json()["type"].rpartition(":")[2])


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "replace",
    [lambda path: path.write_bytes(huge_png(8_000)), lambda path: path.write_bytes(huge_png(60_000)), _pipe],
    ids=["more pixels than the server's limit", "more than Pillow's", "a pipe that nobody writes to"],
)
def test_a_picture_that_was_replaced_by_what_is_none(
    bundle: Path, pictures: Path, tmp_path: Path, replace: Callable[[Path], object]
) -> None:
    path = tmp_path / "picture.png"
    shutil.copy(next(pictures.iterdir()), path)
    with open_writer(tmp_path / "gallery", gallery_settings(bundle)) as writer, open_matcher(writer) as matcher:
        index_source(writer, matcher, picture_source([path]))
    path.unlink()
    replace(path)
    with Gallery.open(tmp_path / "gallery") as gallery:
        opened = OpenGallery("gallery", gallery, None, lambda: None)
        with pytest.raises(Refusal, match="has no picture here"):
            Pictures([], 50_000_000).read(opened, gallery.rows()[0].id, 160)
