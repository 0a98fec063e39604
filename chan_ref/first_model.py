"""The model that a training run begins with: a new one, or that of a checkpoint."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import torch
from torch import Tensor

from ..runtime.errors import InputError
from ..runtime.text import ScanTokenizer, build_scan_vocabulary, extend_scan_vocabulary
from . import checkpoint
from .bert import bert_from_pretrained
from .bert import read_tokenizer as read_bert_tokenizer
from .config import ModelConfig
from .inference import open_tokenizer, read_tokenizer
from .model import ChanModel
from .train_config import TrainConfig
from .train_data import TrainData

_WORDS = "text_encoder.embedding.weight"


def new_model(config: TrainConfig, data: TrainData) -> tuple[ChanModel, dict[str, bytes]]:
    """A model with new weights (those of BERT are pretrained), and the files of its tokenizer.

    Raises:
        InputError: its sizes are more than a tensor, or the memory, has room for; or the pretrained BERT is not usable.
    """
    shape = ModelConfig(
        region_dim=data.train.region_dim,
        embed_dim=config.embed_dim,
        region_encoder=config.region_encoder,
        word_dim=config.word_dim,
        vocab_size=1,  # until the vocabulary is known
        alignment=config.alignment,
    )
    if config.bert is None:
        vocabulary = build_scan_vocabulary(data.captions, config.min_count)
        size = ScanTokenizer(vocabulary["word2idx"]).vocab_size
        files = {"vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode()}
        return _made(replace(shape, vocab_size=size)), files
    sizes, weights = bert_from_pretrained(config.bert)
    files = read_bert_tokenizer(config.bert, sizes.vocab_size)
    used = read_tokenizer(files).vocab_size  # fewer than the rows of an embedding that is padded
    sizes, weights["words.weight"] = replace(sizes, vocab_size=used), weights["words.weight"][:used]
    model = _made(replace(shape, text_encoder="bert", bert=sizes, vocab_size=0))
    model.text_encoder.get_submodule("bert").load_state_dict(weights)
    return model, files


def started_model(config: TrainConfig, data: TrainData) -> tuple[TrainConfig, ChanModel, dict[str, bytes], int]:
    """The model of the checkpoint `config.start`.

    The vocabulary of a GRU model grows: words of the captions that it lacks and that occur `config.min_count` times get
    new rows of the word embedding, with random weights. All other words keep their ids and weights.

    Returns:
        The configuration with the encoders, widths and alignment of the checkpoint; its model; the files of its
        tokenizer; and the number of words that were added.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        InputError: it reads features of another width than the data have, or it has no BERT to keep frozen.
    """
    start = str(config.start)
    loaded = checkpoint.load(start)
    tokenizer = open_tokenizer(loaded, start)
    model, files = loaded.model, dict(loaded.tokenizer_files)
    if model.config.region_dim != data.train.region_dim:
        widths = f"{model.config.region_dim} numbers a region, the features of the data have {data.train.region_dim}"
        raise InputError(f"the checkpoint {start} reads {widths}: give features of the network it was trained with")
    config = replace(
        config,
        embed_dim=model.config.embed_dim,
        region_encoder=model.config.region_encoder,
        text_encoder=model.config.text_encoder,
        word_dim=model.config.word_dim,
        alignment=model.config.alignment,
    )
    if not isinstance(tokenizer, ScanTokenizer):
        return config, model, files, 0
    if config.bert_tuning != "all":
        raise InputError(f"bert_tuning must be 'all', got {config.bert_tuning!r}: the checkpoint {start} has no BERT")
    old = json.loads(files["vocab.json"])["word2idx"]
    vocabulary = extend_scan_vocabulary(old, data.captions, config.min_count)
    added = vocabulary["idx"] - len(old)
    if added:
        files["vocab.json"] = json.dumps(vocabulary, ensure_ascii=False).encode()
        model = _with_words(model, added, start)
    return config, model, files, added


def _with_words(model: ChanModel, added: int, source: str) -> ChanModel:
    """The same model with new rows of the word embedding before that of `<mask>`, which stays the last."""
    state: dict[str, Tensor] = dict(model.state_dict())
    words = state[_WORDS]
    fresh = torch.empty(added, words.shape[1]).uniform_(-0.1, 0.1)  # as in BiGRUTextEncoder
    state[_WORDS] = torch.cat([words[:-1], fresh, words[-1:]])
    return checkpoint.build(replace(model.config, vocab_size=model.config.vocab_size + added), state, source)


def _made(config: ModelConfig) -> ChanModel:
    """A model with new weights; InputError where its sizes are more than a tensor, or the memory, has room for."""
    sizes = f"embed_dim {config.embed_dim:,} and word_dim {config.word_dim:,}"
    advice = "lower --embed-dim or --word-dim"
    try:
        with torch.device("meta"):  # no memory, so that a wrong size cannot exhaust it
            size = sum(tensor.nbytes for tensor in ChanModel(config).state_dict().values())
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{sizes} are more than a tensor can have: {advice}") from error
    if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise InputError(f"a model with {sizes} takes {size / 1e9:,.0f} GB, more than this machine has: {advice}")
    return ChanModel(config)
