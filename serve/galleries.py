"""The galleries that are served, each with the matcher of its bundle: opened, held while in use, and opened again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..runtime.counts import counted
from ..runtime.errors import GalleryError
from ..runtime.gallery import Gallery, fingerprint
from ..runtime.gallery.settings import NO_MODEL
from ..runtime.matcher import Matcher
from ..runtime.session import open_matcher
from . import bodies
from .problems import Refusal
from .settings import Settings

if TYPE_CHECKING:
    from ..scale.ray_serve import RayCluster
    from ..scale.remote_gallery import RemoteGallery

ServedGallery: TypeAlias = "Gallery | RemoteGallery"
_log = logging.getLogger(__name__)


class Held:
    """Something that is closed when its last holder lets go of it."""

    def __init__(self, close: Callable[[], object]) -> None:
        self._close = close
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> bool:
        """Take part in holding it; False where it is closed already."""
        with self._lock:
            self._holders += self._holders > 0
            return self._holders > 0

    def release(self) -> None:
        """Let go."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._close()


class OpenGallery(Held):
    """A gallery that is served, open together with the matcher of its bundle, if it has one.

    Attributes:
        name: in the API.
        gallery, matcher: open until the last holder lets go; no matcher where the embeddings came without a bundle.
    """

    def __init__(self, name: str, gallery: ServedGallery, matcher: Matcher | None, close: Callable[[], object]) -> None:
        super().__init__(close)
        self.name = name
        self.gallery = gallery
        self.matcher = matcher

    def need_matcher(self) -> Matcher:
        """What encodes captions and pictures.

        Raises:
            Refusal: there is none.
        """
        if self.matcher is None:
            why = "holds embeddings of no known model, so nothing here encodes captions or pictures for it"
            search = "search it with embeddings, or with the id of a row as `like`"
            raise Refusal(422, "model", f"the gallery {self.name} {why}: {search}")
        return self.matcher

    @property
    def side(self) -> str:
        """What the gallery's rows are: `images` or `captions`."""
        return self.gallery.settings.kind

    @property
    def grid(self) -> int | None:
        """The regions of pictures are a grid x grid raster; None where they have boxes, or no pictures are read."""
        preprocess = None if self.matcher is None else self.matcher.manifest.preprocess
        return None if preprocess is None else preprocess.grid

    @property
    def regions(self) -> int:
        """The number of regions of a picture, as far as the bundle tells; 1 where it does not read pictures."""
        specs = self.need_matcher().manifest.graphs.get("backbone", {}).values()
        sizes = [spec.outputs[0].shape[1] for spec in specs if len(spec.outputs[0].shape) == 3]
        return next((size for size in sizes if isinstance(size, int)), 1)

    @property
    def left_out(self) -> int | None:
        """How many shards do not answer now; None where shards are not in other processes."""
        return len(self.gallery.left_out) if hasattr(self.gallery, "left_out") else None

    def info(self, writable: bool) -> bodies.GalleryInfo:
        """What `GET /v1/galleries` answers about it."""
        rows, prepared, problem = 0, None, None
        try:
            rows, prepared = len(self.gallery), self.gallery.prepared
        except GalleryError as error:  # the others are wanted all the same
            problem = type(error).__name__
        settings = self.gallery.settings
        return bodies.GalleryInfo(
            name=self.name,
            kind=settings.kind,
            rows=rows,
            dim=settings.dim,
            coding=settings.alignment.coding,
            pooling=settings.alignment.pooling,
            fine=settings.fine,
            precision=settings.precision,
            model=settings.model,
            scan=self.gallery.scan,
            grid=self.grid,
            takes_captions=self.matcher is not None,
            takes_pictures=self.matcher is not None and self.matcher.manifest.preprocess is not None,
            max_words=0 if self.matcher is None else self.matcher.max_words,
            writable=writable,
            prepared=prepared if prepared is None or isinstance(prepared, str) else prepared.describe(),
            problem=problem,
        )


class Galleries:
    """Every gallery of a server by its name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, OpenGallery] = {}
        self._cluster: RayCluster | None = None
        self._reopening = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names in the API, in the order of the command line."""
        return list(self._settings.galleries)

    @property
    def places(self) -> dict[str, str]:
        """Folders of this server -> what an error calls them."""
        found = {str(Path(path).absolute()): f"the gallery {name}" for name, path in self._settings.galleries.items()}
        for name, opened in self._open.items():
            bundle = self._settings.bundle or opened.gallery.settings.bundle
            found |= {} if bundle is None else {str(Path(bundle).absolute()): f"the bundle of {name}"}
        return found

    def connect(self) -> None:
        """Connect with the Ray cluster whose processes search shards, where there is one.

        Call it from the main thread before it handles signals: Ray sets handlers of its own that end the process.

        Raises:
            MissingExtra, BackendError: as `RayCluster`.
        """
        if self._settings.ray is not None:
            from ..scale.ray_serve import RayCluster

            self._cluster = RayCluster(self._settings.ray)

    def reopen(self) -> None:
        """Open every gallery and bundle from its folder; those that were open go on until nobody uses them.

        Raises:
            ChanError: one cannot be opened; then all stay as they were.
        """
        with self._reopening:
            opened = _open_all(self._settings, self._cluster)
            before, self._open = self._open, opened
        for old in before.values():
            old.release()
        _log.info("opened %s", ", ".join(f"{one.name} ({counted(len(one.gallery), 'row')})" for one in opened.values()))

    def close(self) -> None:
        """Close what nobody uses; the rest closes when it is let go."""
        before, self._open = self._open, {}
        for old in before.values():
            old.release()
        if self._cluster is not None:
            self._cluster.close()

    def hold(self, name: str | None) -> OpenGallery:
        """The gallery of a name, held for the caller, who must release it.

        Args:
            name: None for the only one.

        Raises:
            Refusal: there is none of that name, or there are several and no name is given.
        """
        if name is None and len(self._settings.galleries) > 1:
            raise Refusal(422, "gallery", f"gallery must be one of {', '.join(self.names)}, got none")
        found = self._open.get(self.names[0] if name is None else name)
        if found is None or not found.hold():
            raise Refusal(404, "gallery", f"gallery must be one of {', '.join(self.names)}, got {name!r}")
        return found

    @contextmanager
    def using(self, name: str | None) -> Iterator[OpenGallery]:
        """The gallery of a name, held for a block; as `hold`."""
        held = self.hold(name)
        try:
            yield held
        finally:
            held.release()

    def all(self) -> Mapping[str, OpenGallery]:
        """What is open now, by name."""
        return dict(self._open)


def _open_all(settings: Settings, cluster: RayCluster | None) -> dict[str, OpenGallery]:
    """Open each gallery once, and each bundle once."""
    matchers: dict[tuple[str, str | None], tuple[Matcher, Held]] = {}

    def matcher_of(name: str, gallery: ServedGallery) -> tuple[Matcher, Held] | None:
        if gallery.settings.model == NO_MODEL:
            _log.info("%s holds embeddings of no known model: it is searched with embeddings or `like`", name)
            return None
        key = (str(settings.bundle or gallery.settings.bundle), gallery.settings.precision)
        if key in matchers:
            matcher, held = matchers[key]
            gallery.check_model(fingerprint(matcher.manifest, matcher.precision))
            held.hold()
        else:
            matcher = open_matcher(
                gallery, settings.bundle, settings.backend, settings.threads, settings.encoder_device
            )
            matchers[key] = matcher, Held(matcher.close)
        return matchers[key]

    opened: dict[str, OpenGallery] = {}
    with ExitStack() as undo:
        for name, path in settings.galleries.items():
            gallery: ServedGallery
            if cluster is None:
                gallery = Gallery.open(path, threads=settings.threads, device=settings.device)
            else:
                gallery = cluster.open(name, path)
            with ExitStack() as on_error:
                on_error.callback(gallery.close)
                found = matcher_of(name, gallery)
                on_error.pop_all()
            matcher, held = found or (None, None)
            opened[name] = OpenGallery(name, gallery, matcher, _closer(gallery, held))
            undo.callback(opened[name].release)
        undo.pop_all()
    return opened


def _closer(gallery: ServedGallery, matcher: Held | None) -> Callable[[], None]:
    def close() -> None:
        gallery.close()
        if matcher is not None:
            matcher.release()

    return close
