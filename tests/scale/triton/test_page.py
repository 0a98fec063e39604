"""docs/triton.md runs as it stands, beside a bundle and a gallery; the server's port takes the place of 8000."""

from __future__ import annotations

import json
import re
import shlex
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chan_rt.runtime import Gallery, Matcher
from chan_rt.scale.triton.configs import SEARCH_INPUTS, SEARCH_OUTPUTS

from ...run_chan import ok

pytest.importorskip("tritonclient", reason="tritonclient is not installed: make test-triton")

PAGE = Path(__file__).parents[3] / "docs" / "triton.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python)?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_block_runs(
    start_triton: Callable[..., Any],
    bundle: Path,
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bundle").symlink_to(bundle)
    Path("gallery").symlink_to(gallery)
    commands, curl, python, image, bench = (text for _, text in BLOCKS)
    write, validate, serve = (shlex.split(line, comments=True) for line in commands.splitlines())
    for line in (write, validate):
        ok(*line[1:])
    assert serve == ["tritonserver", "--model-repository=repository"]
    # Of the models only chan_search has a backend in this server.
    server = start_triton(Path("repository"), "--model-control-mode=explicit", "--load-model=chan_search")
    with Gallery.open(gallery) as opened, Matcher.open(bundle) as matcher:
        (wanted,) = opened.search(matcher.encode_texts(["a red apple and a strawberry"]), 3)
    program, url, flag, body = shlex.split(curl)
    assert (program, flag) == ("curl", "-d")
    with urllib.request.urlopen(url.replace(":8000", f":{server.started.http}"), body.encode()) as answer:
        outputs = {one["name"]: one for one in json.load(answer)["outputs"]}
    assert outputs["ids"]["data"] == [hit.id for hit in wanted.hits]
    capsys.readouterr()
    exec(compile(python.replace(":8000", f":{server.started.http}"), PAGE.name, "exec"), {})
    assert repr(wanted.hits[0].id.encode()) in capsys.readouterr().out
    assert bench.startswith("python -m chan_rt.bench.serve --triton ")  # tests/scale/triton/test_bench.py
    assert image.startswith("FROM nvcr.io/nvidia/tritonserver:")


def test_the_tables_are_the_tensors() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \[([\w, ]+)\] \|", TEXT, re.MULTILINE)
    kinds = {
        "BYTES": "TYPE_STRING",
        "FP32": "TYPE_FP32",
        "FP64": "TYPE_FP64",
        "INT32": "TYPE_INT32",
        "BOOL": "TYPE_BOOL",
    }
    said = [(name, kinds[kind], len(axes.split(",")) - 1) for name, kind, axes in rows]
    assert said == [(name, kind, len(dims)) for name, kind, dims in (*SEARCH_INPUTS, *SEARCH_OUTPUTS)]
