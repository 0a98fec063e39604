"""`chan compare`: the recalls of `chan evaluate` for both models, and which captions moved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.text import ScanTokenizer, build_scan_vocabulary

from ..run_chan import chan, ok

IMAGES = 12
CAPTIONS = [" ".join(f"w{(row * 7 + k * k) % 23}" for k in range(1 + row % 6)) for row in range(3 * IMAGES)]


def _model(path: Path, seed: int, width: int = 8) -> Path:
    torch.manual_seed(seed)
    vocabulary = build_scan_vocabulary(CAPTIONS, 1)
    size = ScanTokenizer(vocabulary["word2idx"]).vocab_size
    model = ChanModel(ModelConfig(width, 16, vocab_size=size, word_dim=8)).eval()
    checkpoint.save(path, model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
    return path


def _data(folder: Path, features: np.ndarray, captions: list[str], ids: list[str]) -> Path:
    (folder / "precomp").mkdir(parents=True)
    np.save(folder / "precomp/test_ims.npy", features)
    (folder / "precomp/test_caps.txt").write_text("\n".join(captions) + "\n")
    (folder / "precomp/test_ids.txt").write_text("\n".join(ids) + "\n")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    features = np.random.default_rng(0).standard_normal((IMAGES, 4, 8)).astype(np.float32)
    ids = [f"picture{row // 3}" for row in range(3 * IMAGES)]
    _data(root / "data", features, CAPTIONS, ids)
    _data(root / "wide", np.concatenate([features, features], axis=2), CAPTIONS, ids)
    _data(root / "other captions", features, [*CAPTIONS[:-1], "w1 w2"], ids)
    _data(root / "other images", features, CAPTIONS, [*ids[:-3], "x", "x", "x"])
    _data(root / "fewer", features[:-1], CAPTIONS[:-3], ids[:-3])
    _model(root / "one", 1)
    _model(root / "two", 2)
    _model(root / "wide model", 3, 16)
    export_bundle(root / "one", root / "bundle", ("fp32", "fp16"))
    return root


@pytest.mark.parametrize("folds", [1, 3])
def test_figures_are_those_of_evaluate(place: Path, folds: int) -> None:
    options = ["--folds", folds] if folds > 1 else []
    found = json.loads(ok("compare", place / "one", place / "two", place / "data", *options, "--json"))
    for side, model in (("base", "one"), ("other", "two")):
        alone = json.loads(ok("evaluate", place / model, place / "data", *options, "--json"))
        for direction in ("i2t", "t2i"):
            for cut in (1, 5, 10):
                each = found["differences"][f"{direction} R@{cut}"]
                assert each[side] == pytest.approx(alone[direction][f"r{cut}"])
        assert found["differences"]["rsum"][side] == pytest.approx(alone["rsum"])
    for each in found["differences"].values():
        assert each["difference"] == pytest.approx(each["other"] - each["base"])
        assert each["low"] <= each["difference"] <= each["high"]
    assert (found["images"], found["captions"], found["folds"]) == (IMAGES, 3 * IMAGES, folds)


def test_captions_are_listed_by_how_far_their_image_moved(place: Path) -> None:
    found = json.loads(ok("compare", place / "one", place / "two", place / "data", "--json", "--show", 99))
    for name, sign in (("fell", 1), ("rose", -1)):
        moved = [sign * np.log(after / before) for before, after in (each["ranks"] for each in found[name])]
        assert moved == sorted(moved, reverse=True)
        assert min(moved) > 0
        assert {each["image"] for each in found[name]} <= {f"picture{row}" for row in range(IMAGES)}
    worst = found["fell"][0]
    text = ok("compare", place / "one", place / "two", place / "data", "--show", 1)
    before, after = worst["ranks"]
    assert f"{before} -> {after}  {worst['image']}  {worst['caption']}" in text
    assert "Captions" not in ok("compare", place / "one", place / "two", place / "data", "--show", 0)


def test_a_bundle_is_compared_with_its_checkpoint_and_with_itself(place: Path) -> None:
    arguments = [place / "bundle", place / "data", "--backend", "onnxruntime"]
    text = ok("compare", place / "one", *arguments)
    many, few = (chan("compare", place / "one", *arguments, "--margin", margin).stdout for margin in (110, 40))
    assert "Shown: other's rsum is less than 110 below base's." in many
    assert f"base   {place / 'one'}, PyTorch" in text
    assert f"other  {place / 'bundle'}, fp32" in text
    assert "the interval of rsum holds 0, so these images do not show which model is better" in text
    assert "shown" not in text.replace("not show which", "")
    assert "Not shown: that other's rsum is less than 40 below base's." in few
    assert "where two models answer all of them alike, the interval of rsum is about -100.00 to +100.00." in few
    found = json.loads(ok("compare", place / "bundle", *arguments, "--other-precision", "fp16", "--json"))
    assert (found["base"]["precision"], found["other"]["precision"]) == ("fp32", "fp16")


def test_a_margin_that_is_not_shown_ends_with_status_1(place: Path) -> None:
    found = json.loads(ok("compare", place / "one", place / "two", place / "data", "--json"))
    low = found["differences"]["rsum"]["low"]
    assert low < 0
    for margin, status in ((-low - 0.01, 1), (-low, 1), (-low + 0.01, 0)):
        result = chan("compare", place / "one", place / "two", place / "data", "--margin", margin, "--json")
        assert (result.exit_code, json.loads(result.stdout)["held"]) == (status, status == 0)


def test_models_may_read_features_of_their_own(place: Path) -> None:
    found = json.loads(
        ok("compare", place / "one", place / "wide model", place / "data", "--other-data", place / "wide", "--json")
    )
    alone = json.loads(ok("evaluate", place / "wide model", place / "wide", "--json"))
    assert found["differences"]["rsum"]["other"] == pytest.approx(alone["rsum"])


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("other captions", "must have the same captions in the same order: caption 36 is"),
        ("other images", "must have the same images in the same order: image 12 is 'picture11' and 'x'"),
        ("fewer", "12 images and 36 captions, and 11 and 33"),
        ("wide", "has features 16 wide and"),
    ],
)
def test_data_that_differ_are_refused(place: Path, folder: str, message: str) -> None:
    result = chan("compare", place / "one", place / "two", place / "data", "--other-data", place / folder)
    assert result.exit_code == 1
    assert message in result.stderr
