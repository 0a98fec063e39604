"""Embeddings in bodies: the vectors of all rows, one after the other, without padding."""

from __future__ import annotations

import numpy as np

from ..runtime.embeddings import Embeddings, check_embeddings
from ..runtime.errors import TensorError
from . import bodies


def pack(embeddings: Embeddings) -> bodies.PackedEmbeddings:
    """Embeddings as a body has them; TensorError if they are anything else, such as an array."""
    check_embeddings("embeddings", embeddings)
    rows = [vectors[:length] for vectors, length in zip(embeddings.vectors, embeddings.lengths, strict=True)]
    data = np.concatenate(rows).astype("<f4").tobytes()
    return bodies.PackedEmbeddings(embeddings.dim, embeddings.lengths.tolist(), data, embeddings.kind)


def unpack(packed: bodies.PackedEmbeddings, limit: int | None = None) -> Embeddings:
    """Embeddings from a body.

    Args:
        packed: the embeddings.
        limit: the most bytes that the rows may take once they are padded to the longest, which one long row decides.

    Raises:
        TensorError: the number of bytes is not that of dim and lengths, or too large once padded.
    """
    total, padded = sum(packed.lengths), 4 * packed.dim * len(packed.lengths) * max(packed.lengths)
    if limit is not None and padded > limit:
        rule = f"all rows, padded to the longest, must have at most {limit} bytes (4 x dim x rows x longest)"
        raise TensorError("lengths", rule, padded)
    if len(packed.vectors) != 4 * packed.dim * total:
        raise TensorError(
            "vectors", f"must have 4 x dim x sum(lengths) = {4 * packed.dim * total} bytes", len(packed.vectors)
        )
    flat = np.frombuffer(packed.vectors, "<f4").reshape(total, packed.dim)
    lengths = np.array(packed.lengths, np.int32)
    vectors = np.zeros((len(lengths), int(lengths.max()), packed.dim), np.float32)
    vectors[np.arange(vectors.shape[1]) < lengths[:, None]] = flat
    return Embeddings(vectors, lengths, packed.kind)
