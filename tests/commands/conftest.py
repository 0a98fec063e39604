"""A small model and made-up data for commands that read both."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.text import ScanTokenizer, build_scan_vocabulary

WORDS = [f"w{index}" for index in range(12)]


@pytest.fixture(scope="session")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(images, splits) -> a folder with `checkpoint`, its `bundle`, and `data` of that many images in each split."""

    def make(images: int, *splits: str) -> Path:
        root = tmp_path_factory.mktemp("world")
        vocabulary = build_scan_vocabulary(WORDS, 1)
        torch.manual_seed(0)
        vocab_size = ScanTokenizer(vocabulary["word2idx"]).vocab_size
        model = ChanModel(ModelConfig(8, 16, vocab_size=vocab_size, word_dim=8)).eval()
        checkpoint.save(root / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
        export_bundle(root / "checkpoint", root / "bundle", ("fp32",))
        rng = np.random.default_rng(0)
        (root / "data/precomp").mkdir(parents=True)
        for split in splits:
            np.save(root / f"data/precomp/{split}_ims.npy", rng.standard_normal((images, 4, 8)).astype(np.float32))
            captions = [" ".join(rng.choice(WORDS, 4)) for _ in range(5 * images)]
            (root / f"data/precomp/{split}_caps.txt").write_text("\n".join(captions) + "\n")
        return root

    return make
