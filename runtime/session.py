"""A gallery together with the bundle that its rows were encoded with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .contract import AlignmentConfig, Manifest
from .directions import read_directions
from .embeddings import Kind
from .errors import GalleryError, InputError
from .gallery import Gallery, GallerySettings, GalleryWriter, RowWriter, fingerprint, is_gallery, open_for_writing
from .gallery.settings import NO_MODEL, Precision
from .matcher import Matcher


def gallery_settings(
    bundle: str | Path, kind: Kind = "images", *, precision: str = "fp32", fine: Precision = "float32"
) -> GallerySettings:
    """The settings of a gallery whose rows a bundle encodes.

    Args:
        bundle: the bundle's folder; the gallery remembers where it is.
        kind: `images` or `captions`, what the rows are.
        precision: of the bundle's graphs.
        fine: the copy of the vectors that exact search ranks by; `none` keeps int8 codes only, and certifies nothing.

    Raises:
        BundleError: no bundle.
        InputError: kind or fine is none of those above.
    """
    manifest = Manifest.load(bundle)
    return GallerySettings(
        kind=kind,
        dim=manifest.embed_dim,
        alignment=manifest.alignment,
        model=fingerprint(manifest, precision),
        fine=fine,
        bundle=str(Path(bundle).resolve()),
        precision=precision,
    )


def embedding_settings(
    dim: int, alignment: AlignmentConfig | None = None, kind: Kind = "images", *, fine: Precision = "float32"
) -> GallerySettings:
    """The settings of a gallery of another model's embeddings, for `open_writer`.

    Args:
        dim: D, width of the embeddings.
        alignment: how inner products become a score; None for MaxSim, the score of ColBERT and ColPali.
        kind: `images` for rows that queries choose vectors of, such as pages and documents; `captions` for the other
            side.
        fine: as in `gallery_settings`.

    Raises:
        InputError: a value is out of its range.
    """
    return GallerySettings(kind, dim, alignment or AlignmentConfig.maxsim(), NO_MODEL, fine)


def open_writer(path: str | Path, settings: GallerySettings) -> RowWriter:
    """Open the gallery at `path` for writing; make it where there is none.

    Raises:
        GalleryError: it was made with another model, cannot be written, or something else is there.
        GalleryLocked: another writer has it open.
        InputError: it holds the other kind of rows, or another fine copy.
    """
    writer = open_for_writing(path) if is_gallery(path) else GalleryWriter.create(path, settings)
    try:
        writer.check(settings)
        if settings.bundle is not None and _is_gone(writer.settings.bundle):
            writer.set_bundle(settings.bundle)
    except BaseException:
        writer.close()
        raise
    return writer


class HasSettings(Protocol):
    """A gallery that is open in any way.

    Attributes:
        path: the gallery's folder, absolute.
        settings: what was fixed when the gallery was made.
    """

    path: Path

    @property
    def settings(self) -> GallerySettings:
        """See above."""
        ...


def bundle_of(settings: GallerySettings, bundle: str | Path | None = None) -> Path:
    """The folder of the bundle that a gallery's rows were encoded with.

    Args:
        settings: of the gallery.
        bundle: the folder where it was moved; None for the one that the gallery remembers.

    Raises:
        InputError: the gallery does not know its bundle, or it is no longer there.
    """
    folder = bundle if bundle is not None else settings.bundle
    if folder is None or not Path(folder).is_dir():
        raise InputError(f"the gallery's bundle {folder} is not there; say where it is with --bundle")
    return Path(folder)


def open_matcher(
    gallery: HasSettings,
    bundle: str | Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "cuda",
) -> Matcher:
    """Open the bundle that a gallery's rows were encoded with, at their precision.

    Args:
        gallery: open.
        bundle: the bundle's folder where it was moved; None for the one that the gallery remembers.
        backend: as in `Matcher.open`.
        threads: CPU threads of onnxruntime; None for one per CPU this process may use.
        device: the GPU of a backend that runs on one, as in `Matcher.open`.

    Raises:
        InputError: the gallery does not know its bundle, or it is no longer there; its embeddings came without one.
        GalleryError: the bundle is of another model.
        BundleError, BackendError: as in `Matcher.open`.
    """
    settings = gallery.settings
    if settings.model == NO_MODEL:
        raise InputError(
            f"{gallery.path} holds embeddings of no known model, so nothing here encodes captions or pictures for it. "
            "Encode them with the model that made its rows, and search with `chan search GALLERY --embeddings FILE`"
        )
    folder = bundle_of(settings, bundle)
    matcher = Matcher.open(folder, backend, settings.precision or "fp32", threads, device=device)
    try:
        settings.check_model(fingerprint(matcher.manifest, matcher.precision), gallery.path)
    except BaseException:
        matcher.close()
        raise
    return matcher


def gallery_directions(writer: RowWriter, bundle: str | Path | None = None) -> NDArray[np.float32] | None:
    """The directions of a gallery's queries, where its bundle is there and was calibrated; see `read_directions`.

    Args:
        writer: of the gallery.
        bundle: the bundle's folder where it was moved; None for the one that the gallery remembers.

    Raises:
        InputError: the bundle that was given is not there.
        GalleryError: the bundle is of another model.
        BundleError: its directions are damaged.
    """
    settings = writer.settings
    folder = bundle if bundle is not None else settings.bundle
    if folder is None or not Path(folder).is_dir():
        if bundle is not None:
            raise InputError(f"the gallery's bundle {bundle} is not there")
        return None
    manifest = Manifest.load(folder)
    settings.check_model(fingerprint(manifest, settings.precision or "fp32"), writer.path)
    return read_directions(folder, manifest, "captions" if settings.kind == "images" else "images")


@contextmanager
def open_gallery_with_matcher(
    path: str | Path,
    *,
    bundle: str | Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    damaged: Literal["refuse", "skip"] = "refuse",
    encoder_device: str = "cuda",
) -> Iterator[tuple[Gallery, Matcher]]:
    """Open a gallery for search, and the matcher that encodes its queries; both are closed at the end.

    A bundle that is given because the one that the gallery remembers is gone is remembered from then on.

        with open_gallery_with_matcher("gallery") as (gallery, matcher):
            (result,) = gallery.search(matcher.encode_texts(["a red apple"]), k=10)

    Args:
        path: the gallery's folder.
        bundle: as in `open_matcher`.
        backend: as in `Matcher.open`; it runs the encoders, not the scan.
        threads: CPU threads for encoding and for scans; None for every core.
        device: where the gallery is scanned, as in `Gallery.open`.
        damaged: whether damaged rows are an error or left out, as in `Gallery.open`.
        encoder_device: the GPU of a backend that runs on one, as `device` of `Matcher.open`.

    Raises:
        InputError, GalleryError, BundleError, BackendError: as `Gallery` and `open_matcher` raise them.
    """
    with (
        Gallery.open(path, threads=threads, device=device, damaged=damaged) as gallery,
        open_matcher(gallery, bundle, backend, threads, encoder_device) as matcher,
    ):
        if bundle is not None and _is_gone(gallery.settings.bundle):
            _remember(path, bundle)
        yield gallery, matcher


def _is_gone(bundle: str | None) -> bool:
    return bundle is None or not Path(bundle).is_dir()


def _remember(path: str | Path, bundle: str | Path) -> None:
    """Keep with the gallery where its bundle is now, if this process may write there and nobody else does."""
    with suppress(GalleryError), open_for_writing(path) as writer:
        writer.set_bundle(bundle)
