"""The benchmark of the server: the load is open-loop and counts what happened; a small run has every figure."""

import http.server
import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from chan_rt.bench import serve as bench
from chan_rt.bench.load import open_loop


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers in turn: at once, after 100 ms, with 429, with 500, and not at all."""

    protocol_version = "HTTP/1.1"
    count = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        kind = Scripted.count % 5
        Scripted.count += 1
        if kind == 1:
            time.sleep(0.1)
        if kind == 4:
            self.close_connection = True
            return
        self.send_response((200, 200, 429, 500)[kind])
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        return


def test_load_counts_every_request() -> None:
    Scripted.count = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = open_loop("127.0.0.1", server.server_port, "/", [b"{}"], rate=100, seconds=1, connections=1)
        server.shutdown()
    assert Scripted.count == 100
    assert found.refused == pytest.approx(0.2)
    assert found.failed == pytest.approx(0.4)
    assert 0 < found.answered <= 0.4 * found.rate
    # One connection: whoever waits behind a slow answer waits, too, and that counts.
    assert found.p50 <= found.p99 <= found.p999
    assert found.p99 > 100


def test_a_small_run_has_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)  # without LitServe
    out = tmp_path / "out.json"
    arguments = ["--images", "30", "--dim", "64", "--seconds", "0.3", "--start", "30", "--out", str(out)]
    result = CliRunner().invoke(bench.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert {(one["threads"], one["batch"]) for one in record["library"]} >= {(1, 1), (2, 64)}
    assert all(one["searches_a_second"] > 0 for one in record["library"])
    ours = record["chan serve"]
    assert ours["peak"] == max(load["answered"] for load in ours["rising"])
    assert all(load["rate"] > ours["peak"] for load in ours["overload"])
    assert ours["normal"]["server_cores"] > 0
    assert ours["normal"]["client_cores"] > 0
    assert sum(load["failed"] for load in ours["rising"]) == 0
    assert "chan serve reaches" in result.output
