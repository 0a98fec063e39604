"""The same matcher and gallery behind LitServe: `python -m chan_rt.bench.serve_peer GALLERY PORT`.

LitServe batches up to 64 requests that come within 5 ms; the search is that of the library. Its answers have ids and
scores only, which is less than what `chan serve` answers.
"""

# No `from __future__ import annotations`: LitServe reads the annotation of a request as a type.
import sys
from contextlib import ExitStack
from typing import Any

import litserve  # in no extra: the benchmark leaves this peer out where it is not installed

from ..runtime.gallery import SearchResult
from ..runtime.session import open_gallery_with_matcher


class Search(litserve.LitAPI):  # type: ignore[misc]
    """One caption a request: `{"captions": [one]}`. LitServe pickles it, and calls `setup` in the worker process."""

    def __init__(self, gallery: str) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.005)
        self.path = gallery

    def setup(self, device: Any) -> None:
        """Open the gallery."""
        self.opened = ExitStack()
        self.gallery, self.matcher = self.opened.enter_context(open_gallery_with_matcher(self.path))

    def decode_request(self, request: dict[str, Any]) -> str:
        """The caption."""
        return str(request["captions"][0])

    def batch(self, inputs: list[str]) -> list[str]:
        """Captions as they are."""
        return inputs

    def predict(self, captions: list[str]) -> list[SearchResult]:
        """Search for all captions of a batch."""
        return self.gallery.search(self.matcher.encode_texts(captions), 10)

    def unbatch(self, output: list[SearchResult]) -> list[SearchResult]:
        """Results as they are."""
        return output

    def encode_response(self, output: SearchResult) -> dict[str, Any]:
        """Ids and scores."""
        return {"hits": [{"id": hit.id, "score": hit.score} for hit in output.hits]}


if __name__ == "__main__":
    server = litserve.LitServer(Search(sys.argv[1]), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
