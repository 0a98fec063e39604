"""The ONNX graphs between two sets of embeddings; `chan_ref.alignment` defines what they must compute.

hard_alignment   region_embeddings [I, R, D], region_lengths [I], word_embeddings [C, W, D], word_lengths [C]
                 -> scores [I, C]
alignment_map    the same -> word_scores [I, C, W], word_regions [I, C, W]
best_images      the same -> best_scores [C, K], best_images [C, K]

Values past a length never matter, NaN included: they are replaced, not multiplied by zero.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from ..runtime.contract import AlignmentConfig
from .builder import EPSILON, MASKED, GraphBuilder


def hard_alignment(config: AlignmentConfig, embed_dim: int) -> onnx.ModelProto:
    """Scores [I, C] of every image with every caption: similarities, then the coding, then the pooling.

    Explanations have a graph of their own, `alignment_map`: neither onnxruntime nor TensorRT skips an output that was
    not asked for. With them, 128 images x 64 captions of 16 words (D = 1024) took onnxruntime 135 ms instead of 124 on
    one thread, and TensorRT would add a TopK and carry 2 I C W numbers off the device.
    """
    b = GraphBuilder("hard_alignment")
    _scores(b, config, embed_dim)
    b.output("scores", "float32", ("I", "C"))
    return b.build()


def best_images(config: AlignmentConfig, embed_dim: int, k: int) -> onnx.ModelProto:
    """For each caption the k best images, best first, ties by lower image; I must be at least k.

    For a gallery that stays on the device: the scores [I, C] never leave it. An image of no regions scores below all
    others.
    """
    b = GraphBuilder("best_images")
    scores = _scores(b, config, embed_dim)
    # With no region to choose, pooling has made NaN of nothing but MASKED.
    none = b.node("Cast", b.integer(0), name="none", to=TensorProto.INT32)
    empty = b.node("Equal", "region_lengths", none, name="empty")
    empty = b.node("Unsqueeze", empty, b.integers(1), name="empty_images")  # [I, 1]
    scores = b.node("Where", empty, b.real(MASKED), scores, name="not_empty")
    scores = b.node("Transpose", scores, name="by_caption", perm=[1, 0])  # [C, I]
    index = b.top_k(scores, k, name="best", values="best_scores")
    b.node("Cast", index, name="best32", output="best_images", to=TensorProto.INT32)
    b.output("best_scores", "float32", ("C", k))
    b.output("best_images", "int32", ("C", k))
    return b.build()


def _scores(b: GraphBuilder, config: AlignmentConfig, embed_dim: int) -> str:
    """`scores` [I, C] of the alignment's inputs."""
    regions, region_valid, words, word_valid = _embeddings(b, embed_dim)
    if config.coding == "VSA":  # it multiplies words by weights that are 0 in the padding, where NaN must not be
        words = b.node("Where", b.row_mask(word_valid), words, b.real(0.0), name="clear_padding")
    similarity = _similarities(b, regions, words, embed_dim)  # [I, R, C, W]
    if config.coding == "VHA":
        coding = _best_region(b, similarity, region_valid)  # [I, C, W]
        valid, axis = b.node("Unsqueeze", word_valid, b.integers(0), name="pooled_words"), 2  # [1, C, W]
    else:
        if config.coding == "THA":
            coding = _best_word(b, similarity, word_valid)  # [I, R, C]
        else:
            coding = _soft_attention(b, similarity, words, word_valid, config.attention_temperature)
        valid, axis = b.node("Unsqueeze", region_valid, b.integers(2), name="pooled_regions"), 1  # [I, R, 1]
    _pool(b, coding, valid, axis, config)
    return "scores"


def alignment_map(embed_dim: int) -> onnx.ModelProto:
    """For each word its best similarity over the image's valid regions and the region that has it.

    Ties go to the lower region; past a caption's length the score is 0 and the region -1.
    """
    b = GraphBuilder("alignment_map")
    regions, region_valid, words, word_valid = _embeddings(b, embed_dim)
    similarity = _similarities(b, regions, words, embed_dim)
    masked = _mask_regions(b, similarity, region_valid)
    best = b.node("ReduceMax", masked, b.integers(1), name="best", keepdims=0)  # [I, C, W]
    region = b.node("ArgMax", masked, name="region", axis=1, keepdims=0)
    region = b.node("Cast", region, name="region32", to=TensorProto.INT32)
    b.node("Where", word_valid, best, b.real(0.0), name="word_scores", output="word_scores")
    none = b.node("Cast", b.integer(-1), name="no_region", to=TensorProto.INT32)
    b.node("Where", word_valid, region, none, name="word_regions", output="word_regions")
    b.output("word_scores", "float32", ("I", "C", "W"))
    b.output("word_regions", "int32", ("I", "C", "W"))
    return b.build()


def _embeddings(b: GraphBuilder, embed_dim: int) -> tuple[str, str, str, str]:
    """The alignment's inputs: regions [I, R, D] and their mask [I, R], words [C, W, D] and theirs [C, W]."""
    regions = b.input("region_embeddings", "float32", ("I", "R", embed_dim))
    region_lengths = b.input("region_lengths", "int32", ("I",))
    words = b.input("word_embeddings", "float32", ("C", "W", embed_dim))
    word_lengths = b.input("word_lengths", "int32", ("C",))
    return regions, b.length_mask(region_lengths, regions), words, b.length_mask(word_lengths, words)


def _similarities(b: GraphBuilder, regions: str, words: str, embed_dim: int) -> str:
    """[I, R, C, W] as one product [I R, D] x [D, C W]: a single large GEMM for every I and C."""
    rows = b.integers(-1, embed_dim)
    flat = b.node(
        "Gemm",
        b.node("Reshape", regions, rows, name="region_rows"),
        b.node("Reshape", words, rows, name="word_rows"),
        name="similarity",
        transB=1,
    )
    shape = b.node(
        "Concat",
        b.node("Shape", regions, name="region_sizes", start=0, end=2),
        b.node("Shape", words, name="word_sizes", start=0, end=2),
        name="sizes",
        axis=0,
    )
    return b.node("Reshape", flat, shape, name="similarities")


def _mask_regions(b: GraphBuilder, similarity: str, region_valid: str) -> str:
    valid = b.node("Unsqueeze", region_valid, b.integers(2, 3), name="valid_regions")  # [I, R, 1, 1]
    return b.node("Where", valid, similarity, b.real(MASKED), name="masked_regions")


def _best_region(b: GraphBuilder, similarity: str, region_valid: str) -> str:
    """VHA [I, C, W]: each word's best region."""
    return b.node("ReduceMax", _mask_regions(b, similarity, region_valid), b.integers(1), name="VHA", keepdims=0)


def _best_word(b: GraphBuilder, similarity: str, word_valid: str) -> str:
    """THA [I, R, C]: each region's best word."""
    masked = b.node("Where", word_valid, similarity, b.real(MASKED), name="masked_words")
    return b.node("ReduceMax", masked, b.integers(3), name="THA", keepdims=0)


def _soft_attention(b: GraphBuilder, similarity: str, words: str, word_valid: str, temperature: float) -> str:
    """VSA [I, R, C]: region . attended / (||attended|| + EPSILON), attended the softmax-weighted sum of the words.

    The attended vectors [I, R, C, D] are never made. With weights p over a caption's words and their Gram matrix G,
    region . attended = p . s and ||attended||^2 = p G p, so that nothing is larger than the similarities.
    """
    with b.scope("attend"):
        logits = b.node("Div", similarity, b.real(temperature), name="logits")
        logits = b.node("Where", word_valid, logits, b.real(MASKED), name="masked_words")
        weights = b.node("Softmax", logits, name="weights", axis=3)
        numerator = b.node("Mul", weights, similarity, name="weighted")
        numerator = b.node("ReduceSum", numerator, b.integers(3), name="dot", keepdims=0)  # [I, R, C]
        transposed = b.node("Transpose", words, name="words_transposed", perm=[0, 2, 1])
        gram = b.node("MatMul", words, transposed, name="gram")  # [C, W, W]
        # [I, R, C, 1, W] x [C, W, W] would be I R C products of one row; by caption they are C of I R rows.
        by_caption = b.node("Transpose", weights, name="by_caption", perm=[0, 2, 1, 3])  # [I, C, R, W]
        spread = b.node("MatMul", by_caption, gram, name="spread")
        square = b.node("Mul", spread, by_caption, name="products")
        square = b.node("ReduceSum", square, b.integers(3), name="square", keepdims=0)  # [I, C, R]
        # Rounding may carry a vanishing square below zero.
        norm = b.node("Sqrt", b.node("Max", square, b.real(0.0), name="not_negative"), name="norm")
        norm = b.node("Transpose", norm, name="by_region", perm=[0, 2, 1])  # [I, R, C]
        return b.node("Div", numerator, b.node("Add", norm, b.real(EPSILON), name="safe_norm"), name="VSA")


def _pool(b: GraphBuilder, x: str, valid: str, axis: int, config: AlignmentConfig) -> None:
    """`scores` from a coding's valid entries along `axis`."""
    axes = b.integers(axis)

    def reduce(op: str, value: str, name: str, *, keep: bool = False, output: str | None = None) -> str:
        return b.node(op, value, axes, name=name, keepdims=int(keep), output=output)

    with b.scope("pool"):
        if config.pooling == "Max":
            reduce("ReduceMax", b.node("Where", valid, x, b.real(MASKED), name="masked"), "Max", output="scores")
            return
        zeroed = b.node("Where", valid, x, b.real(0.0), name="zeroed")
        if config.pooling == "Sum":
            reduce("ReduceSum", zeroed, "Sum", output="scores")
            return
        if config.pooling == "Mean":
            count = reduce("ReduceSum", b.node("Cast", valid, name="ones", to=TensorProto.FLOAT), "count")
            b.node("Div", reduce("ReduceSum", zeroed, "sum"), count, name="Mean", output="scores")
            return
        scaled = b.node("Div", x, b.real(config.pooling_temperature), name="scaled")
        scaled = b.node("Where", valid, scaled, b.real(MASKED), name="masked")
        top = reduce("ReduceMax", scaled, "top", keep=True)
        powers = b.node("Exp", b.node("Sub", scaled, top, name="shifted"), name="exp")  # 0 where masked
        total = reduce("ReduceSum", powers, "total")
        if config.pooling == "LSE":
            log = b.node("Log", total, name="log")
            b.node("Add", log, b.node("Squeeze", top, axes, name="shift"), name="LSE", output="scores")
            return
        weighted = reduce("ReduceSum", b.node("Mul", powers, zeroed, name="weighted"), "weighted_sum")
        b.node("Div", weighted, total, name="Softmax", output="scores")
