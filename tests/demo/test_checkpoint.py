"""The checkpoint in the repository: small enough, and as good as its README says on scenes nobody has seen."""

from pathlib import Path

import numpy as np
import pytest

from chan_rt.chan_ref.backbone import GRID, REGION_DIM
from chan_rt.chan_ref.inference import ReferenceMatcher
from chan_rt.demo.dataset import write_scenes
from chan_rt.demo.pointing import Pointing, chosen_regions, pointing_accuracy
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.evaluation.metrics import Metrics, evaluate

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


def measure(data: Path) -> tuple[Metrics, Pointing]:
    """Recalls and pointing accuracy over the test scenes of a folder."""
    split = CaptionedImages.open(data, "test")
    model = ReferenceMatcher.open(CHECKPOINT)
    images, texts = model.encode_images(*split.regions(slice(None))), model.encode_texts(split.captions)
    scores = _scores(model, images, texts)
    pointing = pointing_accuracy(chosen_regions(images, texts, split.image_of_caption), data, "test", GRID)
    return evaluate(scores, split.image_of_caption), pointing


def _scores(model: ReferenceMatcher, images: Embeddings, texts: Embeddings) -> np.ndarray:
    return np.concatenate([model.score(images[row : row + 20], texts) for row in range(0, len(images), 20)])


def test_size_stays_below_ten_megabytes() -> None:
    assert 1e6 < sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) <= 10e6


def test_it_reads_the_backbone() -> None:
    assert ReferenceMatcher.open(CHECKPOINT).model.config.region_dim == REGION_DIM


def test_unseen_scenes_are_found_and_pointed_at(tmp_path: Path) -> None:
    for _ in write_scenes(tmp_path / "scenes", {"test": 50}, seed=1):
        pass
    found, pointing = measure(tmp_path / "scenes")
    # Chance over 50 scenes: R@1 of 2.
    assert found.i2t.r1 > 80
    assert found.t2i.r1 > 65
    assert pointing.accuracy > 0.5 > 5 * pointing.chance


@pytest.mark.nightly
def test_promised_recalls_over_500_unseen_scenes(tmp_path: Path) -> None:
    for _ in write_scenes(tmp_path / "scenes", {"test": 500}, seed=0):
        pass
    found, _ = measure(tmp_path / "scenes")
    assert found.i2t.r1 >= 50
    assert found.t2i.r1 >= 40
