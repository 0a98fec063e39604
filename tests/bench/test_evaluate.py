"""The published loop and this package's evaluation give the same ranks on the same made-up split."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from chan_rt.bench import evaluate as bench


def test_both_loops_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAIRS", 7)
    monkeypatch.setattr(bench.published, "BLOCK", 4)
    monkeypatch.setattr(bench, "FEATURES", 64)
    monkeypatch.setattr(bench, "ModelConfig", lambda **sizes: _config(region_dim=64, embed_dim=32, **sizes))
    found = bench.make_split(tmp_path, 6, 11.4)
    assert (found["images"], found["captions"], found["longest"]) == (6, 30, 69)
    assert 12 < found["mean_words"] < 18
    job = bench.Job(tmp_path / "checkpoint", tmp_path, "test", tmp_path)
    ours, theirs = bench.evaluate(job), bench.evaluate_as_published(job)
    assert ours["rsum"] == pytest.approx(theirs["rsum"])
    figures = {"cpu_seconds": 1.0}
    found = bench._compare([ours | figures], theirs | figures, tmp_path)
    assert (found["ranks"], found["different"], found["unexplained"]) == (36, 0, 0)
    assert 0 < ours["encoding"] < ours["seconds"]


def test_the_command_tells_what_it_does() -> None:
    result = CliRunner().invoke(bench.main, ["--help"])
    assert result.exit_code == 0
    assert "published loop" in result.output


_config = bench.ModelConfig
