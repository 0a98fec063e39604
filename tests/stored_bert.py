"""A BERT as Hugging Face stores it, with random weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from chan_rt.chan_ref.bert import CONFIG_FIELDS
from chan_rt.chan_ref.bert_families import huggingface_names
from chan_rt.chan_ref.config import BertConfig
from chan_rt.chan_ref.encoders import Bert


def store_bert(folder: Path, words: Sequence[str], hidden: int, intermediate: int = 32, positions: int = 16) -> Path:
    """Write one of one layer and two heads into a new folder, with BERT's own pieces and these words."""
    folder.mkdir()
    torch.manual_seed(0)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = BertConfig(len(pieces), hidden, layers=1, heads=2, intermediate=intermediate, positions=positions)
    state = Bert(config).state_dict()
    tensors = {theirs: state[ours].contiguous() for theirs, ours in huggingface_names(config).items()}
    save_file(tensors, folder / "model.safetensors")
    raw = {theirs: getattr(config, ours) for ours, theirs in CONFIG_FIELDS.items()}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **raw}))
    return folder
