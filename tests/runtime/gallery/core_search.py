"""Searches two small galleries with every instruction set of this CPU; writes its name and a hash of what was found."""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import Gallery, GallerySettings, GalleryWriter, compiled

DIM, ROWS = 300, 150


def embeddings(seed: int, rows: int, longest: int, kind: Literal["images", "captions"]) -> Embeddings:
    """Unit vectors of which the first coordinates are the largest; those of row i are the first lengths[i]."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, rows).astype(np.int32)
    vectors = (rng.standard_normal((rows, longest, DIM)) * np.linspace(2, 0.02, DIM) ** 2).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[np.arange(longest) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths, kind)


def main() -> None:
    """For each kind of gallery: write it once, then search it with each instruction set."""
    hashes = {name: hashlib.sha256() for name in compiled.need_core().features()}
    original = compiled.CompiledSearch.__init__
    for kind, other in (("images", "captions"), ("captions", "images")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gallery"
            settings = GallerySettings(kind=kind, dim=DIM, alignment=AlignmentConfig(), model="m" * 64)
            with GalleryWriter.create(path, settings) as writer:
                writer.add([str(i) for i in range(ROWS)], embeddings(1, ROWS, 9, kind))
                writer.prepare()  # without queries nothing is timed, and both levels are kept
            for name, found in hashes.items():

                def with_instructions(self, gallery, plan, threads, name=name) -> None:
                    original(self, gallery, plan, threads, name)

                compiled.CompiledSearch.__init__ = with_instructions
                with Gallery.open(path, scan="compiled", threads=2) as gallery:
                    results = gallery.search(embeddings(3, 6, 7, other), k=5)
                assert all(result.certified for result in results)
                hits = [[(hit.id, float(hit.score).hex()) for hit in result.hits] for result in results]
                found.update(json.dumps(hits).encode())
    for name, found in hashes.items():
        sys.stdout.write(f"{name} {found.hexdigest()}\n")


if __name__ == "__main__":
    main()
