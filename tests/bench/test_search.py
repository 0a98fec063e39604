"""The search benchmark compares like with like, and runs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from chan_rt.bench import published, search
from chan_rt.bench.search import WORDS, Concepts, build, bulk, main
from chan_rt.bench.search_measures import packed
from chan_rt.bench.search_real import RealRows, blocks_by_length
from chan_rt.runtime import Embeddings, Gallery, gallery_settings, open_writer


def test_every_candidate_finds_the_same_images(tmp_path: Path) -> None:
    setting = build(tmp_path / "g", 60, Concepts(0))
    regions, word = torch.from_numpy(setting.images.vectors), torch.from_numpy(setting.captions.vectors[0])
    scores = published.scores(regions, word[None], torch.tensor([WORDS]), 0.1)[:, 0]
    found = packed(regions, word)
    with Gallery.open(setting.folder) as gallery:
        hits = gallery.search(setting.captions[0], 10)[0].hits
    assert [int(hit.id) for hit in hits] == found.indices.tolist() == torch.topk(scores, 10).indices.tolist()
    np.testing.assert_allclose([hit.score for hit in hits], found.values, atol=1e-4)


def test_padding_does_not_change_the_published_score() -> None:
    source = Concepts(0)
    texts, pictures = source.captions(np.array([5, 20], np.int32)), source.images(3)
    regions = torch.from_numpy(pictures.vectors)
    padded = published.scores(regions, torch.from_numpy(texts.vectors), torch.tensor([5, 20]), 0.1)
    alone = published.scores(regions, torch.from_numpy(texts.vectors[:1, :5]), torch.tensor([5]), 0.1)
    torch.testing.assert_close(padded[:, :1], alone)


def test_bulk_reports_both_times() -> None:
    found = bulk(4, 20, 30, 1, Concepts(0))
    assert found["published_s"] > 0
    assert found["ratio"] == found["published_s"] / found["exact_s"]


def test_the_command_prints_and_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "read_bandwidth", lambda threads: 3e10)
    out = tmp_path / "report.json"
    arguments = ["--images", "20", "--seconds", "0.01", "--bulk", "2", "10", "--threads", "1", "--json", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "x limit" in result.output
    report = json.loads(out.read_text())
    assert report["20 images"]["rows"] == 20
    assert {"processor", "cores"} <= set(report["machine"])
    grown = CliRunner().invoke(main, ["--grow", "10", "--grow", "20", "--json", str(out)])
    assert grown.exit_code == 0, grown.output
    assert [row["images"] for row in json.loads(out.read_text())["growth"]] == [10, 20]


def test_a_real_gallery_is_measured_from_text_to_hits(
    tmp_path: Path, make_small_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "read_bandwidth", lambda threads: 3e10)
    with open_writer(tmp_path / "g", gallery_settings(make_small_model().bundle)) as writer:
        writer.add(range(20), Embeddings.from_rows(np.random.default_rng(0).standard_normal((20, 3, 16)), "images"))
    (tmp_path / "captions").write_text("a red apple\ntwo white clouds\n")
    arguments = ["--gallery", str(tmp_path / "g"), "--queries", str(tmp_path / "captions"), "--seconds", "0.01"]
    result = CliRunner().invoke(main, [*arguments, "--threads", "1", "--json", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "report").read_text())["gallery"]
    assert {"this (exact, certified)", "this, from text to hits"} < found["latency_ms"].keys()
    assert found["bulk"]["captions"] == 2
    assert found["bulk"]["ratio"] == found["bulk"]["published_s"] / found["bulk"]["exact_s"]
    grown = CliRunner().invoke(main, [*arguments, "--grow", "10", "--grow", "30", "--json", str(tmp_path / "report")])
    assert grown.exit_code == 0, grown.output
    assert [row["images"] for row in json.loads((tmp_path / "report").read_text())["growth"]] == [10, 30]


def test_grown_images_mix_two_of_the_gallery(tmp_path: Path, make_small_model: Callable) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 3, 16)).astype(np.float32)
    with open_writer(tmp_path / "g", gallery_settings(make_small_model().bundle)) as writer:
        writer.add(range(20), Embeddings.from_rows(rows, "images"))
    (tmp_path / "captions").write_text("a red apple\ntwo white clouds\nan apple\n")
    with RealRows(tmp_path / "g", tmp_path / "captions", 1) as source:
        part = source.part(3, 15)
        np.testing.assert_array_equal(part.vectors, source.part(3, 20).vectors[:15])
        assert [len(some) for some in source.captions()] == [1, 2]
    of = {region.tobytes(): i for i, row in enumerate(rows) for region in row}
    origins = np.array([[of[region.tobytes()] for region in row] for row in part.vectors])
    assert (origins[:, 0] == origins[:, 2]).all()
    assert (origins[:, 0] != origins[:, 1]).any()


def test_blocks_of_captions_have_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 300, np.int32)
    blocks = list(blocks_by_length(Concepts(0).captions(lengths)))
    assert sorted(length for block in blocks for length in block.lengths) == sorted(lengths)
    assert [block.vectors.shape[1] for block in blocks] == [max(block.lengths) for block in blocks]
    assert max(blocks[0].lengths) <= min(blocks[1].lengths)
