"""What `chan_rt.runtime` offers is a decision, not an accident."""

import subprocess
import sys

import pytest

from chan_rt import runtime
from chan_rt.runtime import errors

PUBLIC = [
    "AlignmentConfig",
    "Backend",
    "BackendError",
    "BertTokenizer",
    "BundleError",
    "ChanError",
    "CheckpointError",
    "EmbeddingSource",
    "Embeddings",
    "EngineError",
    "Explanation",
    "Gallery",
    "GalleryCorrupt",
    "GalleryError",
    "GalleryIncomplete",
    "GalleryLocked",
    "GalleryMissing",
    "GallerySettings",
    "GalleryWriter",
    "GpuMemoryError",
    "Hit",
    "IndexResult",
    "IndexedEmbeddings",
    "InputError",
    "Manifest",
    "Matcher",
    "Metrics",
    "MissingExtra",
    "ParityError",
    "Preparation",
    "Relabel",
    "Repair",
    "Row",
    "ScanTokenizer",
    "SearchResult",
    "ShardedWriter",
    "SkippedItem",
    "Source",
    "TensorError",
    "TokenBatch",
    "WordMatch",
    "embedding_settings",
    "embedding_source",
    "evaluate",
    "gallery_settings",
    "index_embeddings",
    "index_source",
    "merge_gallery",
    "open_backend",
    "open_for_writing",
    "open_gallery_with_matcher",
    "open_matcher",
    "open_source",
    "open_writer",
    "picture_source",
    "prepare_embeddings",
    "prepare_search",
    "read_embeddings",
    "read_metadata",
    "repair_gallery",
    "split_gallery",
    "text_source",
    "verify_gallery",
    "with_metadata",
]


def test_the_public_surface() -> None:
    assert runtime.__all__ == PUBLIC, "a name was added or removed: decide it here, and write it in the changelog"
    assert [name for name in PUBLIC if not hasattr(runtime, name)] == []
    assert dir(runtime) == runtime.__all__


def test_every_error_is_public() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= set(PUBLIC)


def test_each_name_is_the_one_of_its_module() -> None:
    for name in runtime.__all__:
        value = getattr(runtime, name)
        assert value.__name__ == name
        assert value.__module__.startswith("chan_rt.runtime.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Torch'"):
        runtime.Torch  # noqa: B018


def test_errors_cost_no_numpy() -> None:
    code = "import sys; from chan_rt.runtime import ChanError; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
