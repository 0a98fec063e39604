"""The steps of `make demo`: each makes one use of the library and returns what the page shows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

from ..chan_ref.backbone import GRID, load_backbone
from ..chan_ref.backbones.base import Backbone
from ..chan_ref.backbones.names import LITES
from ..chan_ref.checkpoint import load as load_checkpoint
from ..export.bundle import export_bundle
from ..export.engines import BuiltEngine, build_engine, find_target, plan
from ..export.parity import TorchRunner
from ..runtime.backends.table import FLAVORS
from ..runtime.contract import AlignmentConfig, Manifest
from ..runtime.data.images import CaptionedImages
from ..runtime.embeddings import Embeddings
from ..runtime.errors import EngineError
from ..runtime.explanation import Explanation
from ..runtime.files import publish
from ..runtime.gallery import Gallery, GallerySettings, GalleryWriter, SearchResult, fingerprint
from ..runtime.matcher import Matcher
from ..runtime.pictures.draw import draw_explanation
from ..runtime.session import gallery_directions
from ..runtime.text import load_tokenizer, pad_rows
from .dataset import write_scenes
from .pointing import Pointing, chosen_regions, pointing_accuracy, read_boxes

CHECKPOINT = Path(__file__).parent / "checkpoint"
SPLIT: Literal["test"] = "test"
SEED = 0  # of the scenes the checkpoint was measured on; it was trained on the same seed's training split
HITS = 5
TIMED = 30  # repetitions of the timed query
Progress = Callable[[str, int, int], None]
T = TypeVar("T")


def draw_scenes(data: Path, scenes: int, progress: Progress) -> bool:
    """Draw the test scenes with captions, boxes and region features unless they exist, and return whether it drew."""
    if data.is_dir():
        found = CaptionedImages.open(data, SPLIT)
        if found.num_images == scenes:
            return False
        shutil.rmtree(data)
    done = 0
    for finished in write_scenes(data, {SPLIT: scenes}, SEED):
        done += finished
        progress("scenes", done, scenes)
    return True


def export(bundle: Path, progress: Progress) -> bool:
    """Export the demo's checkpoint, and return whether the bundle changed; one of the same bytes keeps its engines."""
    done = 0

    def on_graph(graph: str, total: int) -> None:
        nonlocal done
        progress(graph, done := done + 1, total)

    fresh = bundle.with_name(f".{bundle.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        export_bundle(CHECKPOINT, fresh, backbone=Backbone(*load_backbone(), LITES[0]), on_graph=on_graph)
        if bundle.is_dir() and _content(bundle) == _content(fresh):
            return False
        publish(fresh, bundle)
        return True
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _content(bundle: Path) -> object:
    manifest = Manifest.load(bundle)
    return manifest.graphs, manifest.tokenizer, manifest.alignment


def build_engines(bundle: Path, progress: Progress) -> tuple[list[BuiltEngine], list[str]]:
    """Build engines of every graph and precision with each TensorRT flavor that is usable; reasons for the others."""
    engines, reasons = [], []
    for flavor in FLAVORS:
        try:
            target = find_target(flavor)
        except EngineError as error:
            reasons.append(str(error))
            continue
        wanted = plan(bundle)
        for number, (graph, precision, profiles) in enumerate(wanted):
            progress(f"{flavor} {graph} {precision}", number, len(wanted))
            engines.append(build_engine(bundle, graph, precision, target, profiles))
    return engines, reasons


def measure_pointing(bundle: Path, data: Path, precisions: Sequence[str]) -> dict[str, Pointing]:
    """Measure whether words choose the pictures they name, in torch and at each precision on onnxruntime."""
    source = CaptionedImages.open(data, SPLIT)
    checkpoint = load_checkpoint(CHECKPOINT)
    reference = TorchRunner(checkpoint.model)
    manifest = Manifest.load(bundle)
    tokens = pad_rows(load_tokenizer(bundle, manifest.tokenizer).rows(source.captions))

    def accuracy(images: Embeddings, texts: Embeddings) -> Pointing:
        return pointing_accuracy(chosen_regions(images, texts, source.image_of_caption), data, SPLIT, GRID)

    regions, lengths = source.regions(slice(None))
    found = {
        "torch": accuracy(
            Embeddings(reference.encode_regions(regions, lengths), lengths),
            Embeddings(reference.encode_words(tokens.ids, tokens.lengths), tokens.lengths),
        )
    }
    for precision in precisions:
        with Matcher.open(bundle, "onnxruntime", precision) as matcher:
            images, texts = matcher.encode_images(regions, lengths), matcher.encode_texts(source.captions)
            found[f"onnxruntime/{precision}"] = accuracy(images, texts)
    return found


@dataclass(frozen=True)
class Query:
    """A search of the gallery with one caption.

    Attributes:
        caption: the caption of a scene.
        scene: the row of that scene.
        backend: the backend that encoded the query.
        result: the best pictures, each with the region that every word chose.
        words: of the caption, as the model reads them.
        alignment: of the model.
        encode_ms, search_ms: median time of encoding the caption and of the search, of `timed` repetitions.
        gallery_bytes: of the gallery's files.
        explanation: of the best picture.
    """

    caption: str
    scene: int
    backend: str
    result: SearchResult
    words: list[str]
    alignment: AlignmentConfig
    encode_ms: float
    search_ms: float
    timed: int
    gallery_bytes: int
    explanation: Explanation


def search(bundle: Path, data: Path, gallery: Path, picture: Path) -> Query:
    """Index the scenes, search with one caption, and draw which region of the best picture each word chose.

    Args:
        bundle: opened with the backend that `auto` finds: an engine where there is a GPU.
        data: folder that `draw_scenes` wrote.
        gallery: folder of the new gallery; an earlier one is replaced.
        picture: file for the drawing.
    """
    source = CaptionedImages.open(data, SPLIT)
    _, records = read_boxes(data, SPLIT)
    every = [words for record in records for words in record["mentions"]]
    caption = choose_caption(source.captions, every)
    with Matcher.open(bundle) as matcher:
        shutil.rmtree(gallery, ignore_errors=True)
        settings = GallerySettings(
            kind="images",
            dim=matcher.manifest.embed_dim,
            alignment=matcher.alignment,
            model=fingerprint(matcher.manifest, matcher.precision),
            bundle=str(bundle.resolve()),
            precision=matcher.precision,
        )
        paths = [(data / record["image"]).resolve() for record in records]
        with GalleryWriter.create(gallery, settings) as writer:
            embeddings = matcher.encode_images(*source.regions(slice(None)))
            writer.add([path.name for path in paths], embeddings, [{"path": str(path)} for path in paths])
            writer.prepare(directions=gallery_directions(writer))
        text = source.captions[caption]
        with Gallery.open(gallery) as opened:
            encode_ms, words = _timed(lambda: matcher.encode_texts([text]))
            search_ms, results = _timed(lambda: opened.search(words, HITS))
            size = int(opened.info()["bytes"])
        result = results[0]
        best = Path(str(result.hits[0].metadata["path"]))
        explanation = matcher.explain(matcher.encode_pictures([best]), text)
        draw_explanation(best, text, explanation).save(picture)
        return Query(
            caption=text,
            scene=int(source.image_of_caption[caption]),
            backend=matcher.backend,
            result=result,
            words=matcher.tokenizer.tokens(text),
            alignment=matcher.alignment,
            encode_ms=encode_ms,
            search_ms=search_ms,
            timed=TIMED,
            gallery_bytes=size,
            explanation=explanation,
        )


def choose_caption(captions: Sequence[str], mentions: Sequence[Sequence[dict[str, Any]]]) -> int:
    """Choose the first caption that names two pictures in at most eight words."""
    fitting = (row for row, names in enumerate(mentions) if len(names) >= 2 and len(captions[row].split()) <= 8)
    return next(fitting, 0)


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    """Return the median milliseconds of a call, after one call that is not timed, and its result."""
    result = call()
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return median(times), result


def size_of(paths: Iterable[Path]) -> int:
    """Sum the bytes of all files among `paths`."""
    return sum(path.stat().st_size for path in paths if path.is_file())
