"""Options of `chan serve --ray`, and what an incomplete gallery is over HTTP; tests/scale has the shards themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chan_rt.runtime.errors import GalleryIncomplete, InputError
from chan_rt.scale.ray_serve import RayShards
from chan_rt.serve.calls import error_of
from chan_rt.serve.problems import problem_of, problem_response, retry_headers
from chan_rt.serve.settings import Settings

from ..run_chan import chan


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--replicas", "2"], "--replicas has no effect without --ray"),
        (["--require-complete"], "--require-complete has no effect without --ray"),
        (["--workers", "1025"], "workers must be at most 1024, got 1025"),
        (["--workers", "2", "--ray"], "workers must be 1 where shards are searched on Ray, got 2"),
        (["--device", "cuda", "--ray"], "device must be cpu where shards are searched on Ray, got cuda"),
        (["--replicas", "3", "--max-replicas", "2", "--ray"], "max_replicas must be at least replicas (3), got 2"),
        (["s3://bucket/gallery", "--ray"], "galleries must be folders where shards are searched on Ray, got a URL"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_opened(arguments: list[str], problem: str) -> None:
    result = chan("serve", "gallery", *arguments)
    assert result.exit_code == 2
    assert problem in result.output


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = chan("serve", tmp_path, "--ray")
    assert "chan serve --ray needs ray: pip install 'chan-rt[ray]'" in result.output


def test_server_and_shards_load_no_ray_before_it_is_used() -> None:
    modules = (
        "chan_rt.serve.server, chan_rt.serve.galleries, chan_rt.scale, chan_rt.scale.ray_serve, chan_rt.scale.router"
    )
    code = f"import sys; sys.modules['ray'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)})


def test_settings_name_what_ray_cannot_do() -> None:
    with pytest.raises(InputError, match="workers must be 1"):
        Settings({"one": Path("one")}, workers=2, ray=RayShards())


def test_an_incomplete_gallery_is_tried_again_later_and_known_to_clients() -> None:
    error = GalleryIncomplete("/srv/shards: no shard answers")
    problem = problem_of(error, "an-id", {"/srv/shards": "the gallery shards"})
    answer = problem_response(problem, retry_headers(problem.status))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    known = error_of(503, bytes(answer.body))
    assert type(known) is GalleryIncomplete
    assert str(known) == "the gallery shards: no shard answers"
