"""How a server starts, refuses, reports, drains and recovers; with raw sockets where a client must misbehave."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from chan_rt.runtime import AlignmentConfig, GalleryWriter, InputError
from chan_rt.runtime.contract import Manifest, write_manifest
from chan_rt.runtime.errors import ChanError
from chan_rt.runtime.gallery.settings import NO_MODEL, GallerySettings
from chan_rt.serve import Settings, launch, serve
from chan_rt.serve.bodies import Problem

from ..run_chan import PROGRAM, chan

SEARCH = {"captions": ["two red apples"], "k": 2}
BODY = json.dumps(SEARCH).encode()


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=20)


def head(length: int | str, path: str = "/v1/search") -> bytes:
    kind = f"content-length: {length}" if isinstance(length, int) else f"transfer-encoding: {length}"
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{kind}\r\n\r\n".encode()


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and the rest of an answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    found = re.match(rb"HTTP/1\.1 (\d+) ", data)
    assert found, data
    length = int(re.search(rb"content-length: (\d+)", data.lower())[1])
    while len(data.partition(b"\r\n\r\n")[2]) < length:
        data += connection.recv(65536)
    return int(found[1]), data


@contextlib.contextmanager
def unfinished(url: str, work: Callable[[], object]) -> Iterator[socket.socket]:
    """A search whose body lacks its last byte, once `work()` shows that the server has it at work."""
    with connect(url) as connection:
        connection.sendall(head(len(BODY)) + BODY[:-1])
        wait_until(work)
        yield connection


def wait_until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def at_work(client: httpx.Client) -> float:
    found = re.search(r"^chan_requests_at_work (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1])


# -- health, headers, key


def test_health_page_and_headers(http: httpx.Client) -> None:
    assert http.get("/livez").json() == {"status": "live"}
    assert http.get("/readyz").json() == {"status": "ready"}
    page = http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert http.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    answer = http.post(
        "/v1/search", json=SEARCH, headers={"origin": http.base_url.scheme + "://" + http.base_url.netloc.decode()}
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("", 421),
        ("127.0.0.1.nip.io", 421),
    ],
)
def test_no_page_reaches_a_local_server_by_another_name(http: httpx.Client, host: str, status: int) -> None:
    for path in ("/v1/galleries", "/"):
        assert http.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        (["localhost", "localhost"], "1.1", 400),
        (["localhost", "evil.example"], "1.0", 400),
        ([], "1.1", 400),
        ([], "1.0", 421),
        (["local host"], "1.1", 400),
        (["localhost/x"], "1.1", 400),
        (["localhost:8000:1"], "1.1", 400),
        (["[::1]:8000"], "1.1", 200),
        (["localhost:"], "1.0", 200),
    ],
)
def test_a_request_names_one_host(server, hosts: list[str], version: str, status: int) -> None:
    """RFC 9112, 3.2: a proxy and this server could take two for different ones."""
    lines = [f"GET /v1/galleries HTTP/{version}", *(f"Host: {host}" for host in hosts), "", ""]
    with connect(server.url) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = read_answer(connection)
    assert answer[0] == status
    if status != 200:
        check_problem(answer, "host")


def test_an_answer_over_http_1_0_says_that_it_is_the_last(server) -> None:
    """Otherwise a client that asked to keep the connection sends its next request into a closed one."""
    with connect(server.url) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
        status, answer = read_answer(connection)
        assert (status, answer.lower().count(b"connection: close\r\n")) == (200, 1)
        assert connection.recv(1) == b""


@pytest.fixture(scope="module")
def keyed(start_server, gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text("s3cret-key\n")
    with start_server(gallery, "--api-key-file", file, "--cors", "https://example.org", "--log", "json") as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer other"}, 401),
        ({"authorization": "Basic s3cret-key"}, 401),
        ({"api-key": "s3cret-key2"}, 401),
        ({"api-key": "ü"}, 401),
        ({"authorization": "Bearer s3cret-key"}, 200),
        ({"authorization": "bearer s3cret-key"}, 200),
        ({"api-key": "s3cret-key"}, 200),
    ],
)
def test_without_the_key_nothing_is_told(keyed, headers: dict[str, str], status: int) -> None:
    with httpx.Client(base_url=keyed.url, timeout=60, headers={k: v.encode() for k, v in headers.items()}) as client:
        for path in ("/v1/galleries", "/v1/galleries/gallery/pictures?id=x", "/metrics", "/openapi.json"):
            found = client.get(path).status_code
            assert found == status or (status == 200 and found == 404)
        assert client.post("/v1/search", json=SEARCH).status_code == status
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert client.get("/").status_code == 200
        if status == 401:
            assert client.get("/v1/galleries").headers["www-authenticate"] == "Bearer"


def test_an_origin_may_be_allowed(keyed) -> None:
    with httpx.Client(base_url=keyed.url, timeout=60, headers={"host": "chan.example"}) as client:
        asks = {"origin": "https://example.org", "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type"}  # fmt: skip
        assert client.options("/v1/search", headers=asks).headers["access-control-allow-origin"] == asks["origin"]
        other = client.options("/v1/search", headers={**asks, "origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_every_origin_may_be_allowed(start_server, gallery: Path) -> None:
    with start_server(gallery, "--cors", "*") as server:
        answer = httpx.post(
            f"{server.url}/v1/search", timeout=60, json=SEARCH, headers={"origin": "https://example.org"}
        )
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


def test_the_log_has_the_request_and_neither_key_nor_picture(keyed) -> None:
    with httpx.Client(
        base_url=keyed.url, timeout=60, headers={"api-key": "s3cret-key", "x-request-id": "find-me"}
    ) as client:
        client.post("/v1/search", json=SEARCH)
        client.post("/v1/encode", content=b"\x89PNG\r\n\x1a\nmy picture", headers={"content-type": "image/png"})
        client.get("/v1/galleries/gallery/pictures", params={"id": "\x1b[31m\nx"})
    keyed.wait_for(lambda log: log.count("find-me") == 3)
    lines = [json.loads(line) for line in keyed.log.read_text().splitlines()]
    search, encode, shown = [line for line in lines if line.get("request_id") == "find-me"]
    assert (search["status"], search["route"], search["method"]) == (200, "/v1/search", "POST")
    assert {"time", "level", "message", "milliseconds", "queue-time", "search-time"} <= search.keys()
    assert (encode["status"], encode["reason"]) == (422, "InputError")
    assert shown["reason"] == "picture"
    text = keyed.log.read_text()
    assert "s3cret" not in text
    assert "my picture" not in text
    assert "\x1b" not in text


def test_no_request_writes_a_line_of_the_log(server, http: httpx.Client) -> None:
    http.get("/forged%0a2020-01-01T00:00:00.000Z info    opened%1b[31m")
    server.wait_for(lambda log: "/forged" in log)
    text = server.log.read_text()
    assert "path=/forged\\n2020-01-01T00:00:00.000Z info    opened\\x1b[31m" in text
    assert not [line for line in text.splitlines() if line.startswith("2020")]


# -- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a b=/x"], "the name of a gallery must be 1 to 64 letters"),
        (["/x/same", "/y/same"], "two galleries are named 'same'"),
        (["/x", "--uploads", "/y"], "--uploads has no effect without --writable"),
        (["/x", "--max-k", "0"], "--max-k"),
        (["/x", "--max-bodies", "100"], "bodies must be at least payload"),
        (["/x", "--port", "70000"], "--port"),
        (["/x", "--cors", "foo"], "such as https://example.org"),
        (["/x", "--cors", "https://example.org/"], "without a path"),
        (["/x", "--otlp-endpoint", "foo"], "otlp_endpoint must be a URL"),
        (["/x", "--otlp-endpoint", "http://"], "otlp_endpoint must be a URL"),
        (["/x", "--log", "xml"], "--log"),
        (["/x", "--grace", "1" + "0" * 10], "grace must be at most 1000000000 seconds"),
        (["/x", "--max-seconds", "1" + "0" * 400], "seconds must be at most 1000000000 seconds"),
    ],
)
def test_a_wrong_command_line_is_one_error(arguments: list[str], words: str) -> None:
    result = chan("serve", *arguments)
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize("origin", ["*", "http://localhost:3000", "http://[::1]:8000", "chrome-extension://abc"])
def test_an_origin_of_a_browser_is_taken(origin: str) -> None:
    assert Settings({"x": Path("/x")}, origins=(origin,)).origins == (origin,)


def test_what_is_missing_is_refused_before_the_server_listens(
    gallery: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listened: list[Settings] = []
    monkeypatch.setattr(launch, "listen", listened.append)
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    manifest = Manifest.load(other)
    files = dict.fromkeys(manifest.tokenizer.files, "0" * 64)
    write_manifest(other, replace(manifest, tokenizer=replace(manifest.tokenizer, files=files)))
    for places, moved, message in (
        ({"here": gallery, "gone": tmp_path / "gone"}, None, "gone is not a gallery, as it does not exist"),
        ({"empty": tmp_path}, None, "is not a gallery; make one"),
        ({"here": gallery}, tmp_path / "gone", "bundle .*gone is not there; say where it is with --bundle"),
        ({"here": gallery}, tmp_path, "is not a bundle: it has no manifest.json"),
        ({"here": gallery}, other, "another model|other model|made with"),
    ):
        with pytest.raises(ChanError, match=message):
            serve(Settings(places, moved))
    assert listened == []


def test_a_bundle_that_no_gallery_needs_is_refused(
    gallery: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listened(Exception): ...

    monkeypatch.setattr(launch, "listen", Mock(side_effect=Listened))
    without = tmp_path / "pages"
    GalleryWriter.create(without, GallerySettings("images", 8, AlignmentConfig("VHA", "Sum"), NO_MODEL)).close()
    with pytest.raises(InputError, match=f"bundle must be left out where no gallery was made with one.*{bundle}"):
        serve(Settings({"pages": without}, bundle))
    for places, moved in (({"pages": without}, None), ({"pages": without, "here": gallery}, bundle)):
        with pytest.raises(Listened):
            serve(Settings(places, moved))


def test_uploads_that_cannot_be_written_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="uploads must be a folder that can be written"):
        serve(Settings({"x": tmp_path}, writable=True, uploads=tmp_path / "file" / "x"))


def test_an_address_that_cannot_be_listened_at_is_named(gallery: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError) as caught:
            serve(Settings({"x": gallery}, port=port))
    place = f"cannot listen at host 127.0.0.1, port {port}"
    assert str(caught.value) == f"{place}: Address already in use; port 0 takes a free one"
    with pytest.raises(InputError, match=r"^host must be an address or a name of this machine, got 'ü\.\.x'$"):
        serve(Settings({"x": gallery}, host="ü..x", port=0))
    with pytest.raises(InputError, match=r"^cannot listen at host 256\.0\.0\.1, port 0: [^(]*$"):
        serve(Settings({"x": gallery}, host="256.0.0.1", port=0))


@pytest.mark.parametrize("key", [b"", b"schl\xc3\xbcssel", b"schl\xfcssel", b"schl\nussel", b"schl\x7fussel"])
def test_a_key_that_no_header_can_carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(key)
    results = [chan("serve", "/x", "--api-key-file", file)]
    with contextlib.suppress(UnicodeDecodeError):
        monkeypatch.setenv("CHAN_API_KEY", key.decode())
        results.append(chan("serve", "/x"))
    for result in results:
        assert result.exit_code == 2
        assert "at least one character of ASCII on one line" in result.output
        assert "schl" not in result.output


# -- bounds


@pytest.fixture(scope="module")
def bounded(start_server, gallery: Path) -> Iterator:
    limits = {"requests": 1, "payload": 1000, "k": 3, "texts": 2, "pixels": 100, "connections": 8}
    with start_server(gallery, *(f"--max-{name}={value}" for name, value in limits.items())) as server:
        yield server


def test_one_request_too_many_is_refused_at_once(bounded) -> None:
    with httpx.Client(base_url=bounded.url, timeout=60) as client:
        with unfinished(bounded.url, lambda: at_work(client) == 1) as connection:
            refused = client.post("/v1/search", json=SEARCH)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["type"] == "urn:chan-rt:problem:overloaded"
            assert client.get("/readyz").status_code == 200
            connection.sendall(BODY[-1:])
            assert read_answer(connection)[0] == 200
        assert client.post("/v1/search", json=SEARCH).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({**SEARCH, "captions": ["word " * 250]}, 413),
        ({**SEARCH, "k": 4}, 422),
        ({**SEARCH, "captions": ["a", "b", "c"]}, 422),
    ],
)
def test_limits_have_flags(bounded, body: dict, status: int) -> None:
    with httpx.Client(base_url=bounded.url, timeout=60) as client:
        assert client.post("/v1/search", json=body).status_code == status


def test_a_body_that_only_grows_is_cut_off(bounded) -> None:
    with connect(bounded.url) as connection:
        connection.sendall(head("chunked"))
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        assert read_answer(connection)[0] == 413


def test_all_bodies_together_are_bounded(start_server, gallery: Path) -> None:
    limits = ("--max-payload", "1000", "--max-bodies", "1500")
    with start_server(gallery, *limits) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with connect(server.url) as first:
            first.sendall(head("chunked"))  # may become 1,000 bytes
            wait_until(lambda: at_work(client) == 1)
            assert client.post("/v1/search", json=SEARCH).status_code == 200
            with connect(server.url) as second:
                second.sendall(head("chunked"))
                status, answer = read_answer(second)
                assert status == 429
                assert b"no room for 1000 more" in answer
            first.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert read_answer(first)[0] == 200
        with connect(server.url) as again:
            again.sendall(head("chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert read_answer(again)[0] == 200


def test_a_head_that_only_grows_is_cut_off(bounded) -> None:
    with connect(bounded.url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for n in range(200):
                connection.sendall(b"x-%d: %s\r\n" % (n, b"y" * 1000))
        answer = read_answer(connection)
        assert answer[0] == 431
        check_problem(answer, "head")


def test_one_connection_too_many_is_refused(bounded) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(bounded.url)) for _ in range(8)]
        for connection in held:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert read_answer(connection)[0] == 200
        with connect(bounded.url) as ninth:
            answer = read_answer(ninth)
            assert answer[0] == 503
            check_problem(answer, "connections")
            assert b"retry-after: 1" in answer[1].lower()
    with httpx.Client(base_url=bounded.url, timeout=60) as client:
        assert client.get("/livez").status_code == 200


def check_problem(answer: tuple[int, bytes], reason: str) -> None:
    """What has not become a request is answered as a request is."""
    status, data = answer
    lines, _, body = data.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in lines.lower()
    problem = msgspec.json.decode(body, type=Problem)
    assert (problem.status, problem.type) == (status, f"urn:chan-rt:problem:{reason}")
    assert problem.detail
    assert f"x-request-id: {problem.request_id}".encode() in lines


@pytest.mark.parametrize("offer", [b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAA", b"Upgrade: websocket"])
@pytest.mark.parametrize("tokens", [b"Upgrade, HTTP2-Settings", b"keep-alive, upgrade"])
@pytest.mark.parametrize("pause", [0, 0.2])
def test_a_request_that_offers_another_protocol_is_answered_over_http(
    server, offer: bytes, tokens: bytes, pause: float
) -> None:
    """Java's client and `curl --http2` offer HTTP/2 with every first request; its body was lost."""
    offering = head(len(BODY))[:-2] + b"Connection: %s\r\n%s\r\n\r\n" % (tokens, offer)
    with connect(server.url) as connection:
        for _ in range(2):  # the connection goes on
            connection.sendall(offering)
            time.sleep(pause)
            connection.sendall(BODY)
            assert read_answer(connection)[0] == 200
        connection.sendall(offering.replace(b"keep-alive", b"close") + BODY + head(len(BODY)) + BODY)
        assert read_answer(connection)[0] == 200
    log = server.log.read_text()
    assert "upgrade" not in log
    assert "pip install 'uvicorn" not in log


@pytest.mark.parametrize("rest", [BODY[:-1], BODY])
def test_a_connection_is_closed_when_idle_also_after_a_body_that_nobody_reads(
    start_server, gallery: Path, rest: bytes
) -> None:
    code = f"import chan_rt.serve.protocol as p; p.KEEP_ALIVE = 1; {PROGRAM}"
    with start_server(gallery, code=code) as server, connect(server.url) as connection:
        connection.sendall(head(len(BODY), "/v1/nothing"))
        assert read_answer(connection)[0] == 404
        connection.sendall(rest)
        assert connection.recv(1) == b""


def test_a_client_that_reads_no_answer_is_cut(start_server, gallery: Path) -> None:
    """It kept its connection for ever, and the server from ending before its grace was over."""
    code = f"import chan_rt.serve.protocol as p; p.KEEP_ALIVE = 2; {PROGRAM}"
    with start_server(gallery, code=code) as server:
        connections = f"/proc/{server.process.pid}/fd"
        time.sleep(3)  # the connections that the start took are closed
        before = len(os.listdir(connections))
        with connect(server.url) as connection:
            connection.setblocking(False)
            deadline = time.monotonic() + 30
            stuck = 0
            while stuck < 20:  # the server takes no more, because it cannot send
                assert time.monotonic() < deadline
                try:
                    connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50)
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                    time.sleep(0.05)
                except ConnectionError:
                    break
            wait_until(lambda: len(os.listdir(connections)) <= before)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


def test_a_client_that_sends_no_more_is_answered(server) -> None:
    """As by `printf ... | nc -N`."""
    for count in (1, 3):
        with connect(server.url) as connection:
            connection.sendall(count * (head(len(BODY)) + BODY))
            connection.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: connection.recv(65536), b""))
        assert len(re.findall(rb"HTTP/1\.1 200 ", data)) == count


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(f"^{re.escape(name)} (.*)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    ("last", "statuses"),
    [
        (b"hello\r\n\r\n", [200, 200, 400]),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 600_000, [200, 200, 431]),
        (head("chunked") + b"no size\r\n", [200, 200, 400]),
    ],
)
def test_what_is_no_http_is_answered_after_the_requests_before_it(
    server, http: httpx.Client, last: bytes, statuses: list[int]
) -> None:
    """Otherwise the client takes the refusal for the answer to its first request."""
    with connect(server.url) as connection:
        connection.sendall(2 * (head(len(BODY)) + BODY) + last)
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", data)] == statuses


def test_what_has_not_become_a_request_is_counted_and_logged(server, http: httpx.Client) -> None:
    before = metric(http, 'chan_failures_total{reason="http"}')
    with connect(server.url) as connection:
        connection.sendall(b"hello\r\n\r\n")
        status, data = read_answer(connection)
    assert metric(http, 'chan_failures_total{reason="http"}') == before + 1
    (id,) = re.findall(rb"x-request-id: (\w+)", data)
    server.wait_for(lambda log: f"refused request_id={id.decode()} reason=http status={status}" in log)


@pytest.mark.parametrize("sent", [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_no_http_is_a_problem(bounded, sent: bytes) -> None:
    with connect(bounded.url) as connection:
        connection.sendall(sent)
        answer = read_answer(connection)
        assert answer[0] == 400
        check_problem(answer, "http")


def test_slow_clients_are_cut_off(start_server, gallery: Path) -> None:
    starts = (head(len(BODY)) + BODY[:-1], b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\n", b"")
    with start_server(gallery, "--max-seconds", "3") as server, contextlib.ExitStack() as stack:
        begin = time.monotonic()
        held = [stack.enter_context(connect(server.url)) for _ in starts]
        for connection, sent in zip(held, starts, strict=True):
            connection.sendall(sent)
        for connection in held:
            answer = read_answer(connection)
            assert answer[0] == 408
            check_problem(answer, "slow")
            assert connection.recv(1) == b""
        assert time.monotonic() - begin < 30
        assert httpx.post(f"{server.url}/v1/search", timeout=60, json=SEARCH).status_code == 200


# -- metrics, schema, traces


def test_a_client_that_leaves_before_its_body_is_whole_is_no_fault(start_server, gallery: Path) -> None:
    with start_server(gallery) as server:
        with connect(server.url) as connection:
            connection.sendall(head(len(BODY)) + BODY[:-5])
            time.sleep(0.2)  # the server waits for the rest
        server.wait_for(lambda log: "reason=left" in log)
        assert server.stop() == 0
        log = server.log.read_text()
        assert " error " not in log
        assert "Traceback" not in log


def test_metrics_count_what_happened(start_server, gallery: Path) -> None:
    with start_server(gallery) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(3):
            client.post("/v1/search", json={"captions": ["two red apples", "a cloud"], "k": 2})
        client.post("/v1/search", json={"captions": [" "]})
        client.get("/nothing")
        values = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    expected = {
        'chan_requests_total{route="/v1/search",status="200"}': 3,
        'chan_requests_total{route="/v1/search",status="422"}': 1,
        'chan_requests_total{route="other",status="404"}': 1,
        'chan_failures_total{reason="InputError"}': 1,
        'chan_failures_total{reason="path"}': 1,
        'chan_request_seconds_count{route="/v1/search"}': 4,
        "chan_requests_at_work": 0,
        "chan_queue_requests": 0,
        "chan_queue_words": 0,
        "chan_queue_seconds_count": 4,
        "chan_batch_requests_sum": 4,
        "chan_batch_words_sum": 3 * (5 + 4) + 4,
        "chan_encode_seconds_count": 4,
        'chan_searches_total{certified="true",gallery="gallery"}': 6,
        'chan_rescored_share_count{gallery="gallery"}': 6,
        'chan_gallery_rows{gallery="gallery"}': 8,
    }
    assert {name: float(values[name]) for name in expected} == expected
    names = {re.split(r"[{ ]", name)[0] for name in values}
    page = Path(__file__).parents[2].joinpath("docs/serve.md").read_text()
    for name in names:
        base = re.sub(r"_(total|count|sum|bucket|created)$", "", name)
        assert f"`{base}`" in page or f"`{name}`" in page or base.startswith("process_"), name


def test_the_page_of_the_server_names_every_field(http: httpx.Client) -> None:
    page = Path(__file__).parents[2].joinpath("docs/serve.md").read_text()
    schema = http.get("/openapi.json").json()
    for name, kind in schema["components"]["schemas"].items():
        for field in kind["properties"]:
            assert f"`{field}`" in page, f"{name}.{field}"
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"`{method.upper()} {path.replace('{name}', 'NAME')}" in page
            assert operation["summary"]


def test_a_request_is_traced(start_server, gallery: Path) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.path.encode() + self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        with start_server(gallery, "--otlp-endpoint", f"http://127.0.0.1:{collector.server_port}") as server:
            trace = "4bf92f3577b34da6a3ce929d0e0e4736"
            headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "x-request-id": "traced"}
            assert httpx.post(f"{server.url}/v1/search", timeout=60, json=SEARCH, headers=headers).status_code == 200
            assert server.stop() == 0  # which sends what was not sent yet
        collector.shutdown()
    sent = b"".join(received)
    assert sent.startswith(b"/v1/traces")
    for part in (b"chan-serve", b"POST /v1/search", b"traced", bytes.fromhex(trace), b"chan.search-time"):
        assert part in sent


def test_curl_is_a_client(http: httpx.Client, server, pictures: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    picture = next(pictures.iterdir())
    command = ["curl", "-sS", "--fail", f"{server.url}/v1/explain?caption=two+red+apples", "-H",
               "content-type: image/png", "--data-binary", f"@{picture}"]  # fmt: skip
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert [word["word"] for word in shown["words"]] == ["<start>", "two", "red", "apples", "<end>"]


# -- the end


def test_a_server_drains(start_server, gallery: Path) -> None:
    with start_server(gallery) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with unfinished(server.url, lambda: at_work(client) == 1) as connection:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for(lambda log: "finishing 1 request" in log)
            assert client.get("/readyz").status_code == 503
            assert client.get("/livez").status_code == 200
            refused = client.post("/v1/search", json=SEARCH)
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:chan-rt:problem:draining")
            assert "retry-after" in refused.headers
            connection.sendall(BODY[-1:])
            assert read_answer(connection)[0] == 200
        assert server.process.wait(20) == 0
        with pytest.raises(OSError, match="refused"):
            connect(server.url)


def test_kept_connections_end_without_a_reset(start_server, gallery: Path) -> None:
    """Of 100 clients that asked again and again, 93 met a reset when the server ended."""
    code = f"import chan_rt.serve.protocol as p; p.LINGER = 60; {PROGRAM}"
    ask = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with start_server(gallery, code=code) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with connect(server.url) as idle, connect(server.url) as asking:
            with unfinished(server.url, lambda: at_work(client) == 1) as working:
                for connection in (idle, asking):
                    connection.sendall(ask)
                    assert b"connection: close" not in read_answer(connection)[1].lower()
                server.process.send_signal(signal.SIGTERM)
                server.wait_for(lambda log: "finishing 1 request" in log)
                asking.sendall(ask)
                assert read_answer(asking)[1].lower().count(b"connection: close") == 1
                assert asking.recv(1) == b""
                working.sendall(BODY[-1:])
                status, answer = read_answer(working)
                assert (status, answer.lower().count(b"connection: close")) == (200, 1)
                assert working.recv(1) == b""
            assert idle.recv(1) == b""
            for _ in range(3):
                idle.sendall(ask)  # it crossed the end
                time.sleep(0.1)
            assert idle.recv(1) == b""
            client.close()
        assert server.process.wait(20) == 0


def test_an_idle_client_does_not_keep_the_server(start_server, gallery: Path) -> None:
    with start_server(gallery) as server, connect(server.url) as idle:
        idle.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        read_answer(idle)
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 10
        assert "Traceback" not in server.log.read_text()


def test_workers_drain_where_every_process_is_told(start_server, gallery: Path) -> None:
    """As by Ctrl-C in a terminal, and by systemd: a worker is told by these and by its supervisor."""
    with start_server(gallery, "--workers", "2") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with unfinished(server.url, lambda: at_work(client) == 1) as connection:
            for pid in (*children(server.process.pid), server.process.pid):
                os.kill(pid, signal.SIGINT)
            server.wait_for(lambda log: "finishing 1 request" in log)
            time.sleep(1)  # what the supervisor tells has come, too
            connection.sendall(BODY[-1:])
            assert read_answer(connection)[0] == 200
        assert server.process.wait(20) == 0
        assert server.log.read_text().count(": finishing ") == 2


def test_workers_that_are_told_twice_end_at_once(start_server, gallery: Path) -> None:
    with (
        start_server(gallery, "--workers", "2") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        unfinished(server.url, lambda: at_work(client) == 1) as connection,
    ):
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda log: "finishing 1 request" in log)
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 10
        status, answer = read_answer(connection)
        assert (status, b"urn:chan-rt:problem:draining" in answer) == (503, True)


def test_a_drain_ends_with_the_grace_and_answers_what_it_cuts(start_server, gallery: Path) -> None:
    with (
        start_server(gallery, "--grace", "1") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        unfinished(server.url, lambda: at_work(client) == 1) as connection,
    ):
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 10
        status, answer = read_answer(connection)
        assert status == 503
        assert b"urn:chan-rt:problem:draining" in answer
        assert b"retry-after: 5" in answer.lower()
        log = server.log.read_text()
        assert "cut, because the grace is over: 1 request" in log
        assert "Traceback" not in log


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gallery_that_cannot_be_opened_ends_the_server(
    start_server, gallery: Path, tmp_path: Path, workers: int
) -> None:
    path = shutil.copytree(gallery, tmp_path / "broken")
    next(path.glob("segments/*")).write_bytes(b"nothing")  # which is found when it is opened, and no earlier
    with start_server(path, "--workers", workers, wait=False) as server:
        assert server.process.wait(30) == 1
        assert "broken" in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_that_dies_is_replaced(start_server, gallery: Path) -> None:
    with (
        start_server(gallery, "--workers", "2", "--writable") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        before = children(server.process.pid)
        assert len(before) == 2
        for _ in range(20):  # each over a connection of its own, so that both workers get some
            assert httpx.post(f"{server.url}/v1/search", timeout=60, json=SEARCH).status_code == 200
        count = 'chan_requests_total{route="/v1/search",status="200"} 20.0'
        assert count in httpx.get(f"{server.url}/metrics", timeout=60).text
        os.kill(before[0], signal.SIGKILL)
        server.wait_for(lambda log: f"worker {before[0]} ended with status -9 and is replaced" in log)
        server.wait_for(lambda log: log.count("opened gallery") == 3)
        after = children(server.process.pid)
        assert len(after) == 2
        assert len({*before, *after}) == 3
        for _ in range(20):
            assert httpx.post(f"{server.url}/v1/search", timeout=60, json=SEARCH).status_code == 200
        assert (
            count.replace("20.0", "40.0") in httpx.get(f"{server.url}/metrics", timeout=60).text
        )  # the dead one's counts stay
        assert (
            httpx.post(f"{server.url}/v1/reopen", timeout=60).status_code == 200
        )  # in the worker asked, and then in both
        server.wait_for(lambda log: log.count("opened gallery") == 6)
        assert client.post("/v1/search", json=SEARCH).status_code == 200
        assert server.stop() == 0
        assert not [pid for pid in after if alive(pid)]


LATE_FIRST = """
import os, time

from chan_rt.cli import main
from chan_rt.runtime import InputError
from chan_rt.runtime.contract import Manifest, write_manifest
from chan_rt.runtime.errors import ChanError
from chan_rt.serve import Settings, launch, serve

fork, forks = os.fork, []


def fork_late_first():
    forks.append(0)
    if pid := fork():
        return pid
    if len(forks) == 1:
        from chan_rt.serve.galleries import Galleries

        reopen = Galleries.reopen

        def late(galleries):
            open({go!r} + ".waits", "w").close()
            while not os.path.exists({go!r}):
                time.sleep(0.01)
            reopen(galleries)

        Galleries.reopen = late
    return 0


os.fork = fork_late_first
main()
"""


@pytest.fixture
def late_first(start_server, gallery: Path, tmp_path: Path) -> Iterator:
    """A server of two workers of which the second has opened the gallery, a copy; the first does when there is `go`."""
    path, go = shutil.copytree(gallery, tmp_path / "late"), tmp_path / "go"
    code = LATE_FIRST.format(go=str(go))
    with start_server(path, "--workers", "2", "--grace", "20", wait=False, code=code) as server:
        server.wait_for(lambda log: "opened late" in log)
        wait_until((tmp_path / "go.waits").exists)
        yield server, path, go
        go.touch()  # for a worker that a failed test left


def test_a_server_that_said_ready_never_says_that_it_loads(late_first) -> None:
    server, _, go = late_first

    def ready() -> bool:
        return httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200

    said = []
    for _ in range(40):  # each over a connection of its own, so that any worker that listens gets some
        said.append(ready())
        time.sleep(0.02)
    assert not any(said), "a worker said ready while another one loads"
    go.touch()
    wait_until(ready)
    for _ in range(30):
        assert httpx.post(f"{server.url}/v1/search", timeout=60, json=SEARCH).status_code == 200
    pids = children(server.process.pid)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda log: log.count("opened late") == 4)
    assert server.stop() == 0
    assert len(pids) == 2
    assert not [pid for pid in pids if alive(pid)]


def test_a_worker_that_waits_for_the_first_hears_signals(late_first) -> None:
    server, _, go = late_first
    first, second = children(server.process.pid)
    os.kill(second, signal.SIGHUP)
    server.wait_for(lambda log: log.count("opened late") == 2)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not alive(second))
    assert alive(first)
    go.touch()
    assert server.process.wait(30) == 0


def test_a_worker_that_waits_for_the_first_takes_its_place_when_it_dies(late_first) -> None:
    server, _, _ = late_first
    os.kill(children(server.process.pid)[0], signal.SIGKILL)
    wait_until(lambda: httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200)
    for _ in range(20):
        assert httpx.post(f"{server.url}/v1/search", timeout=60, json=SEARCH).status_code == 200
    assert server.stop() == 0


def test_a_first_worker_that_cannot_open_ends_the_others(late_first) -> None:
    server, path, go = late_first
    next(path.glob("catalogue*")).write_bytes(b"nothing")
    go.touch()
    assert server.process.wait(30) == 1
    assert "Traceback" not in server.log.read_text()


def test_workers_end_with_their_supervisor(start_server, gallery: Path) -> None:
    with start_server(gallery, "--workers", "2") as server:
        pids = children(server.process.pid)
        server.process.kill()
        server.process.wait(10)
        deadline = time.monotonic() + 20
        while any(
            Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in pids
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
