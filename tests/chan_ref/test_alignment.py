"""The ground truth against what the published code computes, and against its own promise of independence."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.chan_ref import alignment
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import TensorError

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("b*.npz"))
CODINGS, POOLINGS = ("VHA", "THA", "VSA"), ("Max", "Mean", "Sum", "LSE", "Softmax")
CONFIGS = [AlignmentConfig(coding, pooling) for coding, pooling in product(CODINGS, POOLINGS)]


def test_all_five_golden_files_are_here():
    assert len(NAMES) == 5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.coding + config.pooling)
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_published_ones(name: str, config: AlignmentConfig):
    golden = np.load(GOLDEN / f"{name}.npz")
    scores = alignment.score(
        torch.from_numpy(golden["image_embeddings"]),
        torch.from_numpy(golden["image_lengths"]),
        torch.from_numpy(golden["caption_embeddings"]),
        torch.from_numpy(golden["caption_lengths"]),
        config,
    )
    expected = golden[f"scores/{config.coding}Coding/{config.pooling}Pooling"]
    assert scores.isfinite().all()
    if config.pooling == "Softmax":
        # Published: padding is -inf when it is multiplied by its weight 0, so every padded row is NaN. There the
        # truth is the pair without its padding (test_a_score_depends_on_its_own_pair_alone).
        image_lengths, caption_lengths = golden["image_lengths"], golden["caption_lengths"]
        whole = (
            np.outer(image_lengths == 7, np.ones(9))
            if config.coding != "VHA"
            else np.outer(np.ones(6), caption_lengths == golden["captions"].shape[1])
        )
        np.testing.assert_array_equal(np.isfinite(expected), whole.astype(bool))
        expected = np.where(np.isnan(expected), scores.numpy(), expected)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-5)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    images, captions, regions, words, width = (draw(st.integers(1, high)) for high in (3, 3, 4, 5, 3))
    # A true -1 must be as good as any other number (the published code takes it for padding).
    values = st.one_of(st.just(-1.0), st.floats(-1, 1, width=32))
    arrays = [draw(hnp.arrays(np.float32, shape, elements=values)) for shape in ((images, regions, width),)]
    arrays.append(draw(hnp.arrays(np.int64, images, elements=st.integers(1, regions))))
    arrays.append(draw(hnp.arrays(np.float32, (captions, words, width), elements=values)))
    arrays.append(draw(hnp.arrays(np.int64, captions, elements=st.integers(1, words))))
    return tuple(torch.from_numpy(array) for array in arrays)


@settings(deadline=None, derandomize=True)
@given(batches(), st.sampled_from(CONFIGS))
def test_a_score_depends_on_its_own_pair_alone(batch: tuple[torch.Tensor, ...], config: AlignmentConfig):
    regions, region_lengths, words, word_lengths = batch
    pad = torch.nn.functional.pad
    garbage_regions, garbage_words = (pad(rows, (0, 0, 0, 2), value=torch.nan) for rows in (regions, words))
    for i, length in enumerate(region_lengths):
        garbage_regions[i, length:] = torch.nan
    for c, length in enumerate(word_lengths):
        garbage_words[c, length:] = torch.nan
    together = alignment.score(garbage_regions, region_lengths, garbage_words, word_lengths, config)
    word_scores, word_regions = alignment.align(garbage_regions, region_lengths, garbage_words, word_lengths)
    for i, r in enumerate(region_lengths.tolist()):
        for c, w in enumerate(word_lengths.tolist()):
            pair = regions[i : i + 1, :r], torch.tensor([r]), words[c : c + 1, :w], torch.tensor([w])
            torch.testing.assert_close(alignment.score(*pair, config)[0, 0], together[i, c])
            alone_scores, alone_regions = alignment.align(*pair)
            torch.testing.assert_close(alone_scores[0, 0], word_scores[i, c, :w])
            s = regions[i, :r] @ words[c, :w].T
            chosen = s.gather(0, word_regions[i, c, :w].long()[None])[0]
            torch.testing.assert_close(chosen, s.amax(0))
            assert (alone_regions[0, 0] < r).all()
            assert (word_regions[i, c, w:] == -1).all()
            assert (word_scores[i, c, w:] == 0).all()


def test_of_equal_regions_a_word_chooses_the_lower():
    regions = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    words = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    _, chosen = alignment.align(regions, torch.tensor([3]), words, torch.tensor([2]))
    assert chosen.tolist() == [[[1, 0]]]
    assert chosen.dtype == torch.int32


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.coding + config.pooling)
def test_gradients_ignore_padding_and_stay_finite(config: AlignmentConfig):
    torch.manual_seed(0)
    regions, words = torch.randn(2, 4, 3, requires_grad=True), torch.randn(3, 5, 3, requires_grad=True)
    alignment.score(regions, torch.tensor([2, 4]), words, torch.tensor([1, 3, 5]), config).sum().backward()
    assert regions.grad is not None
    assert words.grad is not None
    assert regions.grad.isfinite().all()
    assert words.grad.isfinite().all()
    assert (regions.grad[0, 2:] == 0).all()
    assert (words.grad[0, 1:] == 0).all()
    assert words.grad[2].abs().sum() > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"region_lengths": torch.tensor([0])}, "region_lengths: must lie in 1..2, got 0..0"),
        ({"word_lengths": torch.tensor([4])}, "word_lengths: must lie in 1..3, got 4..4"),
        ({"word_embeddings": torch.zeros(1, 3, 5)}, "word_embeddings: must be 4 wide, as the regions, got 5"),
        ({"region_lengths": torch.tensor([[1]])}, "region_lengths: must be a vector"),
    ],
)
def test_a_broken_rule_is_named(changed: dict[str, torch.Tensor], message: str):
    arguments = {
        "region_embeddings": torch.zeros(1, 2, 4),
        "region_lengths": torch.tensor([2]),
        "word_embeddings": torch.zeros(1, 3, 4),
        "word_lengths": torch.tensor([3]),
    }
    with pytest.raises(TensorError, match=message):
        alignment.score(**{**arguments, **changed}, config=AlignmentConfig())
