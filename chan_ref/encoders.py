"""Region and text encoders: features or token ids in, one embedding per region or word out.

Symbols: B batch, R regions, F region features, W words, D embedding, H BERT's hidden width. Rows past a length are
exact zeros, and what the input holds there never matters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..runtime.errors import CheckpointError, TensorError
from .alignment import EPSILON, length_mask, zero_padding
from .config import BertConfig, ModelConfig

BERT_DROPOUT = 0.1  # of BERT as pretrained: hidden states and attention weights, in training only


def normalize(rows: Tensor) -> Tensor:
    """Divide each row by its L2 norm + 1e-8: [..., D] -> [..., D]."""
    divided: Tensor = rows / (rows.norm(dim=-1, keepdim=True) + EPSILON)
    return divided


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(Q K' / sqrt(d)) V per head of width d, heads joined, one linear at the end."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D], [B, L] bool (True: may be attended to) -> [B, L, D]."""
        queries, keys, values = (
            layer(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, d]
            for layer in (self.query, self.key, self.value)
        )
        logits = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5  # [B, heads, L, L]
        weights = self.dropout(logits.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1))
        attended: Tensor = self.output((weights @ values).transpose(1, 2).flatten(2))
        return attended


class RegionEncoder(nn.Module):
    """`x = W f + b`; with `selfattention` then `x + MHA(LN(x))`; then the L2 norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.normalize = config.normalize_regions
        self.projection = nn.Linear(config.region_dim, config.embed_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.norm: nn.LayerNorm | None = None
        self.attention: SelfAttention | None = None
        if config.region_encoder == "selfattention":
            self.norm = nn.LayerNorm(config.embed_dim)
            self.attention = SelfAttention(config.embed_dim, config.attention_heads)

    def forward(self, regions: Tensor, region_lengths: Tensor, match_padding: bool = False) -> Tensor:
        """Encode regions: [B, R, F], [B] -> [B, R, D], unit rows, exact zeros past the length.

        Args:
            regions: features, anything past the length.
            region_lengths: integers in 1..R.
            match_padding: reproduce the published self-attention, which is not told the lengths: zero-padded regions
                become keys, so that a result depends on how far its batch was padded.

        Raises:
            TensorError: a shape or a length breaks its rule.
        """
        width = self.projection.in_features
        if regions.ndim != 3 or regions.shape[2] != width:
            raise TensorError("regions", f"must have shape [B, R, {width}]", tuple(regions.shape))
        mask = length_mask(region_lengths, regions.shape[1], "region_lengths")
        x = self.projection(zero_padding(regions, mask))  # [B, R, D]
        if self.norm is not None and self.attention is not None:
            x = x + self.attention(self.norm(x), torch.ones_like(mask) if match_padding else mask)
        return zero_padding(normalize(x) if self.normalize else x, mask)


class BiGRUTextEncoder(nn.Module):
    """Word embedding, one bidirectional GRU layer read by true length, `(forward + backward) / 2`, the L2 norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.normalize = config.normalize_words
        self.embedding = nn.Embedding(config.vocab_size, config.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.gru = nn.GRU(config.word_dim, config.embed_dim, batch_first=True, bidirectional=True)

    def forward(self, token_ids: Tensor, token_lengths: Tensor) -> Tensor:
        """Encode captions: [B, W], [B] -> [B, W, D], unit rows, exact zeros past the length.

        Raises:
            TensorError: a shape, a length or an id breaks its rule.
        """
        ids, mask = _read_captions(token_ids, token_lengths, self.embedding.num_embeddings)
        packed = pack_padded_sequence(self.embedding(ids), token_lengths.cpu().long(), True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=ids.shape[1])
        x = states.unflatten(-1, (2, -1)).mean(-2)  # type: ignore[no-untyped-call]  # [B, W, D]
        return zero_padding(normalize(x) if self.normalize else x, mask)


class BertLayer(nn.Module):
    """One transformer layer of BERT, norms after the residuals, exact GELU."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.hidden, config.heads, BERT_DROPOUT)
        self.attention_norm = nn.LayerNorm(config.hidden, config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden, config.intermediate)
        self.output = nn.Linear(config.intermediate, config.hidden)
        self.output_norm = nn.LayerNorm(config.hidden, config.layer_norm_eps)
        self.dropout = nn.Dropout(BERT_DROPOUT)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, W, H], [B, W] bool -> [B, W, H]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        hidden: Tensor = self.output(nn.functional.gelu(self.intermediate(x)))
        normed: Tensor = self.output_norm(x + self.dropout(hidden))
        return normed


class Bert(nn.Module):
    """BERT (Devlin et al. 2019) without its pooler: token ids to last hidden states. All tokens are of segment 0."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.segments = nn.Embedding(config.segments, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, config.layer_norm_eps)
        self.dropout = nn.Dropout(BERT_DROPOUT)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, W], [B, W] bool (True: may be attended to) -> [B, W, H]."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        embedded = self.words(token_ids) + self.segments.weight[0] + self.positions(positions)
        x: Tensor = self.dropout(self.norm(embedded))
        for layer in self.layers:
            x = layer(x, mask)
        return x


class BertTextEncoder(nn.Module):
    """BERT's last hidden state, `Linear(H, D)`, the L2 norm.

    The published code hides tokens whose id is 0 (`[PAD]`), here those past the length are hidden. The two agree
    because no tokenizer emits `[PAD]` inside a caption.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.bert is None:
            raise CheckpointError("a BERT text encoder needs ModelConfig.bert")
        self.normalize = config.normalize_words
        self.bert = Bert(config.bert)
        self.projection = nn.Linear(config.bert.hidden, config.embed_dim)

    def forward(self, token_ids: Tensor, token_lengths: Tensor) -> Tensor:
        """Encode captions: [B, W], [B] -> [B, W, D], unit rows, exact zeros past the length.

        Raises:
            TensorError: a shape, a length or an id breaks its rule, or captions are longer than BERT has positions.
        """
        ids, mask = _read_captions(token_ids, token_lengths, self.bert.words.num_embeddings)
        positions = self.bert.positions.num_embeddings
        longest = int(token_lengths.max())
        if longest > positions:
            raise TensorError("token_lengths", f"must be at most {positions}, BERT's positions", longest)
        # A batch may be padded beyond BERT's positions: read the real columns, then pad the embeddings.
        x = self.projection(self.bert(ids[:, :longest], mask[:, :longest]))
        x = nn.functional.pad(x, (0, 0, 0, ids.shape[1] - longest))
        return zero_padding(normalize(x) if self.normalize else x, mask)


def _read_captions(token_ids: Tensor, token_lengths: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Ids as int64 with 0 past the length, and the mask; a wrong id is an error here, not a crash in a GPU kernel."""
    if token_ids.ndim != 2:
        raise TensorError("token_ids", "must have shape [B, W]", tuple(token_ids.shape))
    mask = length_mask(token_lengths, token_ids.shape[1], "token_lengths")
    ids = torch.where(mask, token_ids, 0).long()
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        found = f"{int(ids.min())}..{int(ids.max())}"
        raise TensorError("token_ids", f"must lie in 0..{vocab_size - 1}, the vocabulary", found)
    return ids, mask
