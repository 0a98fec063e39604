"""int8 of timm's and torchvision's networks for onnxruntime, from pictures to the verdict of parity."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.backbones.operators import declare_operators
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.runtime.contract import Manifest
from chan_rt.runtime.text import ScanTokenizer, build_scan_vocabulary

from ...run_chan import chan, ok

WORDS = [f"w{index}" for index in range(12)]
COUNT = 20
NETWORKS = [
    ("timm:test_vit", 64),
    ("timm:test_resnet", 96),
    pytest.param("torchvision:resnet50", 2048, marks=pytest.mark.nightly),
    pytest.param("timm:vit_base_patch16_224", 768, marks=pytest.mark.nightly),
    pytest.param("timm:convnext_tiny", 768, marks=pytest.mark.nightly),
]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: make test-backbones"
)


def write_world(folder: Path, width: int) -> None:
    """Pictures of colored cells with a caption each, and a checkpoint that reads regions of that width."""
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        cells = rng.integers(0, 256, (6, 6, 3), np.uint8).repeat(32, 0).repeat(32, 1)
        Image.fromarray(cells).save(folder / f"pictures/{number}.png")
        (folder / f"pictures/{number}.txt").write_text(" ".join(rng.choice(WORDS, 4)))
    vocabulary = build_scan_vocabulary(WORDS, 1)
    torch.manual_seed(0)
    vocab_size = ScanTokenizer(vocabulary["word2idx"]).vocab_size
    model = ChanModel(ModelConfig(width, 16, vocab_size=vocab_size, word_dim=8)).eval()
    checkpoint.save(folder / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})


def weights_of(name: str, folder: Path) -> str | Path:
    """Weights of a timm ResNet whose branches do something: with its random ones they make zeros, as in training."""
    if not name.startswith("timm:test_resnet"):
        return "random"
    declare_operators()
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", zero_init_last=False)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize(("name", "width"), NETWORKS)
def test_a_network_is_quantized_and_passes_parity(name: str, width: int, tmp_path: Path) -> None:
    write_world(tmp_path, width)
    saved, bundle, data = (tmp_path / part for part in ("checkpoint", "bundle", "data"))
    network = ["--backbone", name, "--weights", weights_of(name, tmp_path)]
    ok("data", tmp_path / "pictures", "-o", data, "--dev-share", 0, "--test-share", 0, "--min-count", 1)
    ok("features", data, "-o", data, *network)
    ok("export", saved, "-o", bundle, "--precision", "fp32", *network)
    ok("calibrate", bundle, data, "--samples", COUNT)
    sample = ["--data", data, "--split", "train", "--samples", COUNT, "--precision", "int8_x86", *network, "--json"]
    # 20 captions are too few for the bounds of ranks, which are not what is tested
    found = json.loads(ok("export", saved, "-o", bundle, *sample, "--force"))
    assert [one["precision"] for one in found["graphs"] if one["graph"] == "backbone"] == ["int8_x86"]
    assert Manifest.load(bundle).resolve("backbone", "int8_x86") == "int8_x86"
    result = chan("parity", bundle, "--checkpoint", saved, *sample)
    (check,) = [part for part in json.loads(result.stdout)["stages"][0]["checks"] if part["part"] == "backbone"]
    assert check["misses"] == []
    assert 0.9 < check["measures"]["cosine_min"] < 0.999999, "it was the int8 backbone that ran"
