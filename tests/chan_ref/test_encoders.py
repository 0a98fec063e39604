"""The encoders' own promises; that they agree with the published ones is in test_published.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.chan_ref.config import BertConfig, ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.runtime.errors import ChanError, TensorError

BERT = BertConfig(vocab_size=12, hidden=16, layers=2, heads=4, intermediate=8, positions=6)
CONFIGS = {
    "gru": ModelConfig(region_dim=6, embed_dim=8, attention_heads=2, vocab_size=12, word_dim=5),
    "bert": ModelConfig(region_dim=6, embed_dim=8, region_encoder="basic", text_encoder="bert", bert=BERT),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> ChanModel:
    torch.manual_seed(0)
    return ChanModel(CONFIGS[request.param]).eval()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(data=st.data())
def test_a_row_never_depends_on_its_batch_nor_on_padding(model: ChanModel, data: st.DataObject):
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    extra = data.draw(st.integers(0, 4))
    width = int(lengths.max()) + extra
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    regions = torch.randn(len(lengths), width, 6, generator=generator)
    ids = torch.randint(1, 12, (len(lengths), width), generator=generator)
    for row, length in enumerate(lengths):
        regions[row, length:] = torch.nan
        ids[row, length:] = 10**6  # far outside the vocabulary
    encoded = model.encode_regions(regions, lengths), model.encode_words(ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = (
            model.encode_regions(regions[row : row + 1, :length], lengths[row : row + 1]),
            model.encode_words(ids[row : row + 1, :length], lengths[row : row + 1]),
        )
        for together, single in zip(encoded, alone, strict=True):
            torch.testing.assert_close(together[row, :length], single[0], rtol=1e-5, atol=1e-6)
            assert (together[row, length:] == 0).all()
            torch.testing.assert_close(single[0].norm(dim=1), torch.ones(length))


def test_match_padding_makes_padding_visible_as_published():
    torch.manual_seed(0)
    encoder = ChanModel(CONFIGS["gru"]).eval().region_encoder
    torch.nn.init.normal_(encoder.projection.bias)
    regions, lengths = torch.randn(1, 3, 6), torch.tensor([3])
    wide = torch.nn.functional.pad(regions, (0, 0, 0, 4))
    assert (encoder(wide, lengths)[:, :3] - encoder(regions, lengths)).abs().max() < 1e-6
    assert (encoder(wide, lengths, match_padding=True)[:, :3] - encoder(regions, lengths)).abs().max() > 1e-3
    torch.testing.assert_close(encoder(regions, lengths, match_padding=True), encoder(regions, lengths))


def test_gradients_reach_every_parameter_and_stay_finite(model: ChanModel):
    model.zero_grad()
    regions, lengths = torch.randn(2, 4, 6), torch.tensor([2, 4])
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    model(regions, lengths, ids, torch.tensor([3, 4])).diagonal().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (torch.tensor([[1, 12]]), torch.tensor([2]), r"token_ids: must lie in 0..11, the vocabulary, got 1..12"),
        (torch.tensor([[1, -1]]), torch.tensor([2]), r"token_ids: must lie in 0..11, the vocabulary, got -1..1"),
        (torch.tensor([1, 2]), torch.tensor([2]), r"token_ids: must have shape \[B, W\], got \(2,\)"),
        (torch.tensor([[1, 2]]), torch.tensor([0]), r"token_lengths: must lie in 1..2, got 0..0"),
    ],
)
def test_wrong_captions_are_named(model: ChanModel, ids: torch.Tensor, lengths: torch.Tensor, message: str):
    with pytest.raises(TensorError, match=message):
        model.encode_words(ids, lengths)


def test_wrong_regions_are_named(model: ChanModel):
    with pytest.raises(TensorError, match=r"regions: must have shape \[B, R, 6\], got \(1, 2, 5\)"):
        model.encode_regions(torch.zeros(1, 2, 5), torch.tensor([2]))


def test_bert_has_only_so_many_positions():
    model = ChanModel(CONFIGS["bert"]).eval()
    with pytest.raises(TensorError, match="token_lengths: must be at most 6, BERT's positions, got 7"):
        model.encode_words(torch.ones(1, 7, dtype=torch.long), torch.tensor([7]))


def test_bert_heads_must_divide_its_width():
    with pytest.raises(ChanError, match=r"bert hidden must be a multiple of heads, got 16 and 3"):
        BertConfig(vocab_size=12, hidden=16, layers=1, heads=3, intermediate=8, positions=6)


def test_the_same_seed_makes_the_same_model():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(ChanModel(CONFIGS["gru"]).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
