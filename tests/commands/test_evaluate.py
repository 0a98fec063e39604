"""`chan evaluate`: checkpoints, bundles and ensembles give the same recalls as the reference."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import checkpoint, evaluation
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.inference import ReferenceMatcher
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.evaluation import metrics
from chan_rt.runtime.evaluation.coco import Directions
from chan_rt.runtime.text import ScanTokenizer, build_scan_vocabulary

from ..altered import forget_hashes
from ..run_chan import chan, ok

IMAGES, REGIONS, WIDTH = 10, 4, 12
CAPTIONS = [" ".join(f"w{(row * 7 + k * k) % 23}" for k in range(1 + row % 6)) for row in range(5 * IMAGES)]


def _save(path: Path, pooling: str, seed: int, width: int = WIDTH) -> Path:
    torch.manual_seed(seed)
    vocabulary = build_scan_vocabulary(CAPTIONS, 1)
    config = ModelConfig(
        region_dim=width,
        embed_dim=16,
        attention_heads=4,
        word_dim=8,
        vocab_size=ScanTokenizer(vocabulary["word2idx"]).vocab_size,
        alignment=AlignmentConfig(pooling=pooling),  # type: ignore[arg-type]
    )
    checkpoint.save(path, ChanModel(config).eval(), {"vocab.json": json.dumps(vocabulary).encode()}, {})
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    (root / "data/precomp").mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(root / "data/precomp/test_ims.npy", rng.standard_normal((IMAGES, REGIONS, WIDTH)).astype(np.float32))
    (root / "data/precomp/test_caps.txt").write_text("\n".join(CAPTIONS) + "\n")
    _save(root / "lse", "LSE", 1)
    _save(root / "mean", "Mean", 2)
    export_bundle(root / "lse", root / "bundle", ("fp32", "fp16"))
    return root


def _run(*arguments: object) -> dict[str, object]:
    result = ok("evaluate", *arguments, "--json")
    return json.loads(result)


def _scores(path: Path, root: Path) -> np.ndarray:
    """The slow way: everything at once in the reference."""
    matcher = ReferenceMatcher.open(path)
    features = np.load(root / "data/precomp/test_ims.npy")
    images = matcher.encode_images(features, np.full(IMAGES, REGIONS, np.int32))
    return matcher.score(images, matcher.encode_texts(CAPTIONS))


OWNER = np.arange(50) // 5


def test_a_checkpoint_a_bundle_and_the_reference_agree(place: Path) -> None:
    expected = metrics.evaluate(_scores(place / "lse", place), OWNER)
    for arguments in (
        [place / "lse"],
        [place / "bundle", "--backend", "onnxruntime"],
        [place / "bundle", "--backend", "onnxruntime", "--precision", "fp16"],
    ):
        found = _run(*arguments, place / "data")
        if "fp16" not in arguments:
            assert found["rsum"] == pytest.approx(expected.rsum)
            assert found["i2t"] == pytest.approx(vars(expected.i2t))
        else:
            assert found["rsum"] == pytest.approx(expected.rsum, abs=25)
        assert (found["images"], found["captions"]) == (IMAGES, 50)
        bounds = found["rsum_bounds"]
        assert bounds["pessimistic"] <= found["rsum"] <= bounds["optimistic"]  # type: ignore[index]


def test_an_ensemble_is_the_mean_on_one_scale(place: Path) -> None:
    mixed = (0.1 * _scores(place / "lse", place) + _scores(place / "mean", place)) / 2
    expected = metrics.evaluate(mixed, OWNER)
    found = _run(place / "lse", place / "mean", place / "data")
    assert found["rsum"] == pytest.approx(expected.rsum)
    assert found["t2i"] == pytest.approx(vars(expected.t2i))
    assert ok("evaluate", place / "lse", place / "mean", place / "data").startswith("ensemble of 2 models: 10 images, ")
    assert ok("evaluate", place / "lse", place / "data").startswith("10 images, ")


def test_folds_are_averaged(place: Path) -> None:
    scores = _scores(place / "lse", place)
    folds = [scores[2 * fold : 2 * fold + 2, 10 * fold : 10 * fold + 10] for fold in range(5)]
    expected = np.mean([metrics.evaluate(fold, np.arange(10) // 5).rsum for fold in folds])
    assert _run(place / "lse", place / "data", "--folds", 5)["rsum"] == pytest.approx(expected)


@pytest.mark.parametrize("folds", [1, 2])
def test_ranks_alone_give_what_scores_give(place: Path, monkeypatch: pytest.MonkeyPatch, folds: int) -> None:
    arguments = [place / "lse", place / "data", *(["--folds", folds] if folds > 1 else [])]
    ranked = _run(*arguments)
    monkeypatch.setattr(evaluation, "is_faster", lambda alignment: False)
    scored = _run(*arguments)
    for name in ("i2t", "t2i", "rsum"):
        assert ranked[name] == scored[name]


def test_the_table_and_the_errors(place: Path, tmp_path: Path) -> None:
    def invoke(*arguments: object) -> tuple[int, str]:
        result = chan("evaluate", *arguments)
        return result.exit_code, result.output

    code, text = invoke(place / "lse", place / "data", "--folds", 2)
    assert code == 0
    assert "10 images, 50 captions of test, mean of 2 folds" in text
    assert "image-to-text" in text
    assert "rsum" in text
    code, text = invoke(tmp_path, place / "data")
    assert code == 1
    assert "neither a checkpoint" in text
    shutil.copytree(place / "lse", tmp_path / "run" / "best")
    code, text = invoke(tmp_path / "run", place / "data")
    assert code == 1
    assert f"run is the folder of a run: give its checkpoint, {tmp_path / 'run' / 'best'}" in text
    code, text = invoke(place / "lse", place / "data", "--eccv")
    assert code == 1
    assert "test_ids.txt is missing" in text
    code, text = invoke(place / "lse", place / "data", "--split", "testall")
    assert code == 1
    assert "testall_caps.txt is missing" in text


def test_a_vocabulary_that_does_not_fit_is_refused_by_every_command(place: Path, tmp_path: Path) -> None:
    """Too many words would index past the embedding, too few are another model's and score nonsense in silence."""

    def fails(command: str, *arguments: object) -> str:
        result = chan(command, *arguments)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)  # not a traceback
        return result.stderr

    rows = len(build_scan_vocabulary(CAPTIONS, 1)["word2idx"]) + 1
    for words, rule in (
        (
            json.dumps(build_scan_vocabulary([*CAPTIONS, "two more"], 1)),
            f"has {rows + 2} ids and its word embedding {rows}",
        ),
        (json.dumps(build_scan_vocabulary(CAPTIONS[:1], 1)), "rows: put the"),
        ("[1]", "vocab.json must be a vocabulary"),
        ("{", "vocab.json must be a vocabulary"),
    ):
        model = tmp_path / "model"
        shutil.copytree(place / "lse", model, dirs_exist_ok=True)
        (model / "tokenizer/vocab.json").write_text(words)
        assert "tokenizer/vocab.json was altered" in fails("evaluate", model, place / "data")
        forget_hashes(model)
        assert rule in fails("evaluate", model, place / "data")
        assert rule in fails("parity", place / "bundle", "--checkpoint", model, "--data", place / "data")
        assert rule in fails("export", model, "-o", tmp_path / "bundle")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_features_of_another_width_are_named_before_any_work(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wide/precomp"
    folder.mkdir(parents=True)
    np.save(folder / "test_ims.npy", np.zeros((IMAGES, REGIONS, WIDTH + 3), np.float32))
    (folder / "test_caps.txt").write_text("\n".join(CAPTIONS) + "\n")
    _save(tmp_path / "fitting", "Mean", 3, WIDTH + 3)
    for models in ([place / "lse"], [place / "bundle"], [tmp_path / "fitting", place / "lse"]):
        result = chan("evaluate", *models, tmp_path / "wide")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")  # no line of progress before it
        error = f"{folder / 'test_ims.npy'} has features {WIDTH + 3} wide and {models[-1]} reads {WIDTH}"
        assert error in result.stderr


@contextmanager
def coco_ids(place: Path) -> Iterator[None]:
    """The split has COCO ids, 100 and more."""
    ids = place / "data/precomp/test_ids.txt"
    ids.write_text("".join(f"{100 + row}\n" for row in range(IMAGES)))
    try:
        yield
    finally:
        ids.unlink()


def test_eccv_gets_the_whole_matrix_with_its_ids(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[np.ndarray, list[str]]] = []

    def judge(scores: np.ndarray, image_ids: list[str], image_of_caption: np.ndarray) -> dict[str, Directions]:
        given.append((scores, image_ids))
        np.testing.assert_array_equal(image_of_caption, OWNER)
        return {"cxc_r1": Directions(12.5, 25.0)}

    monkeypatch.setattr("chan_rt.chan_ref.evaluation.extended_metrics", judge)
    monkeypatch.setattr("chan_rt.chan_ref.evaluation.check_split", lambda image_ids, image_of_caption: None)
    with coco_ids(place):
        found = _run(place / "lse", place / "data", "--eccv")
        table = chan("evaluate", place / "lse", place / "data", "--eccv").output
        both = chan("evaluate", place / "lse", place / "data", "--eccv", "--folds", "2").output
    np.testing.assert_allclose(given[0][0], _scores(place / "lse", place), atol=1e-6)
    assert given[0][1] == [str(100 + row) for row in range(IMAGES)]
    assert found["extended"] == {"cxc_r1": {"i2t": 12.5, "t2i": 25.0}}
    assert "cxc_r1" in table
    assert "leave --folds out" in both


def test_eccv_of_other_images_is_refused_before_any_scoring(place: Path) -> None:
    pytest.importorskip("eccv_caption", reason="the extra coco is not installed")
    with coco_ids(place):
        stderr = chan("evaluate", place / "lse", place / "data", "--eccv").stderr
    assert stderr.startswith("Error: CxC and ECCV need the 5000 images of the COCO 5K test")  # no line of progress


def test_blank_and_long_captions_are_counted_or_refused_with_their_line(place: Path, tmp_path: Path) -> None:
    captions = list(CAPTIONS)
    captions[3], captions[17] = " ", " ".join(["w1"] * 150)
    (tmp_path / "precomp").mkdir()
    shutil.copy(place / "data/precomp/test_ims.npy", tmp_path / "precomp")
    (tmp_path / "precomp/test_caps.txt").write_text("\n".join(captions) + "\n")
    found = _run(place / "bundle", place / "lse", tmp_path, "--backend", "onnxruntime")
    assert found["captions"] == 49
    assert found["skipped"] == [{"item": f"{tmp_path}/precomp/test_caps.txt: caption 4", "reason": "it has no word"}]
    assert found["cut"] == {str(place / "bundle"): 1, str(place / "lse"): 0}  # a GRU in PyTorch has no limit
    result = chan("evaluate", place / "bundle", tmp_path)
    assert f"longer than {place / 'bundle'} takes: 1" in result.stdout
    assert "caption 4: it has no word" in result.stderr
    strict = ["evaluate", str(place / "bundle"), str(tmp_path), "--strict"]
    assert "test_caps.txt: caption 4 must hold a word" in chan(*strict).stderr
    captions[3] = "w1"
    (tmp_path / "precomp/test_caps.txt").write_text("\n".join(captions) + "\n")
    assert "caption 18 must have at most 128 words" in chan(*strict).stderr


def test_more_regions_than_a_bundle_takes_are_named_before_any_work(place: Path, tmp_path: Path) -> None:
    regions = np.random.default_rng(0).standard_normal((IMAGES, 101, WIDTH)).astype(np.float32)
    np.save(tmp_path / "test_ims.npy", regions)
    shutil.copy(place / "data/precomp/test_caps.txt", tmp_path)
    stderr = chan("evaluate", place / "lse", place / "bundle", tmp_path).stderr
    assert stderr.startswith(f"Error: {tmp_path}/test_ims.npy has images of 101 regions and {place}/bundle takes 100: ")
    assert "export it again with --max-regions 101" in stderr
