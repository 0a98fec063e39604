"""What `GET /metrics` reports, in Prometheus' text format. docs/serve.md lists the names.

With several workers each keeps its values in files of a shared folder, and whichever is asked reports their sum.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import GalleryError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from .galleries import OpenGallery
    from .work import Work

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's variable; it must be set before that is imported
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WORDS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """The metrics of one worker."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        registry = CollectorRegistry()
        if SHARED not in os.environ:
            ProcessCollector(registry=registry)
        self._registry = registry
        self.requests = Counter("chan_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "chan_request_seconds", "Seconds from a request's head to its answer.", ["route"], registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.failures = Counter("chan_failures", "Requests answered with an error.", ["reason"], registry=registry)
        self.at_work = Gauge(
            "chan_requests_at_work", "Requests at work or waiting.", registry=registry, multiprocess_mode="livesum"
        )
        self.waiting = Gauge(
            "chan_queue_requests", "Requests waiting for a batch.", registry=registry, multiprocess_mode="livesum"
        )
        self.waiting_words = Gauge(
            "chan_queue_words", "Words of the requests waiting for a batch.", registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "chan_queue_seconds", "Seconds that a request waited for a batch.", registry=registry, buckets=_SECONDS
        )
        self.batch_requests = Histogram(
            "chan_batch_requests", "Requests in a batch.", registry=registry, buckets=_REQUESTS
        )
        self.batch_words = Histogram("chan_batch_words", "Words in a batch.", registry=registry, buckets=_WORDS)
        self.encode_seconds = Histogram(
            "chan_encode_seconds", "Seconds that a batch was encoded.", registry=registry, buckets=_SECONDS
        )
        self.search_seconds = Histogram(
            "chan_search_seconds", "Seconds that a batch was searched for.", registry=registry, buckets=_SECONDS
        )
        self.searches = Counter("chan_searches", "Queries answered.", ["gallery", "certified"], registry=registry)
        self.rescored_share = Histogram(
            "chan_rescored_share", "Share of a gallery's rows that a query scored again.", ["gallery"],
            registry=registry, buckets=_SHARES,
        )  # fmt: skip
        self.rows = Gauge(
            "chan_gallery_rows", "Rows of a gallery.", ["gallery"], registry=registry, multiprocess_mode="mostrecent"
        )
        self.left_out = Gauge(
            "chan_shards_left_out", "Groups of processes of shards that do not answer.", ["gallery"], registry=registry,
            multiprocess_mode="mostrecent",
        )  # fmt: skip

    def batch(self, jobs: Sequence[Work]) -> None:
        """Count a batch that begins."""
        self.batch_requests.observe(len(jobs))
        self.batch_words.observe(sum(job.words for job in jobs))
        for job in jobs:
            self.queue_seconds.observe(job.queued)

    def done(self, jobs: Sequence[Work]) -> None:
        """Count a batch that is done."""
        if any(job.captions or job.pictures for job in jobs):
            self.encode_seconds.observe(jobs[0].encode_seconds)
        if any(job.search is not None for job in jobs):
            self.search_seconds.observe(jobs[0].search_seconds)
        for job in jobs:
            for result in job.results:
                self.searches.labels(job.opened.name, str(result.certified).lower()).inc()
                self.rescored_share.labels(job.opened.name).observe(result.rescored_share)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def exposition(self, galleries: Mapping[str, OpenGallery]) -> tuple[bytes, str]:
        """The text of `/metrics`, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        for name, opened in galleries.items():
            try:
                self.rows.labels(name).set(len(opened.gallery))
            except GalleryError:  # the other metrics are wanted all the more
                self.rows.labels(name).set(math.nan)
            if (left_out := opened.left_out) is not None:
                self.left_out.labels(name).set(left_out)
        registry: CollectorRegistry = self._registry
        if SHARED in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def forget(folder: Path, pid: int) -> None:
    """Take a worker that died out of the values that are only of living ones; what it counted stays."""
    for file in folder.glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)
